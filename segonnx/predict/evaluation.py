"""Holds label maps against those that experts drew: the numbers of ``nnUNetv2_evaluate_folder``, and its file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from segonnx.artifacts.manifest import Manifest
from segonnx.predict.resampling import AnyArray

SUMMARY = "summary.json"
"""The file that nnU-Net writes beside the label maps."""

Metrics = dict[str, float]
"""``Dice``, ``IoU``, and numbers of voxels: ``TP``, ``FP``, ``FN``, ``TN``, ``n_pred``, ``n_ref``."""


@dataclass(frozen=True)
class Evaluated:
    """What is evaluated of an artifact's label maps.

    Attributes:
        regions: The labels of each foreground label or region, by its key in ``summary.json``.
        ignore: The reference label of voxels that don't count. None if there is no such label.
    """

    regions: Mapping[str, tuple[int, ...]]
    ignore: int | None = None

    @classmethod
    def of(cls, described: Manifest) -> Evaluated:
        """Read it from the manifest of an artifact, or of a member of an ensemble."""
        inference = described.get("inference", {})
        ignore = inference.get("ignore_label")
        classes = len(described["labels"]) or described["outputs"][0]["shape"][1]
        # A network for pictures may have no names for its labels; one class is label 1.
        unnamed = [{"value": value, "labels": [value]} for value in ([1] if classes == 1 else range(classes))]
        entries: list[dict[str, Any]] = described["labels"] or unnamed
        if not inference.get("regions"):
            foreground = [tuple(entry["labels"]) for entry in entries if entry["value"]]
            return cls({str(label): (label,) for (label,) in foreground}, ignore)
        return cls({_key(entry): tuple(entry["labels"]) for entry in entries}, ignore)


def _key(region: Mapping[str, Any]) -> str:
    """A region's key: Python's text of its label, or of the tuple of its labels, as dataset.json has them."""
    labels = tuple(region["labels"])
    return str(labels[0]) if len(labels) == 1 and not region.get("listed") else str(labels)


def compare(reference: AnyArray, prediction: AnyArray, evaluated: Evaluated) -> dict[str, Metrics]:
    """Compare two label maps.

    Args:
        reference: The label map that is right, numbers (z, y, x).
        prediction: The label map that was predicted, of the same shape.
        evaluated: What is compared.

    Returns:
        The metrics of each label or region, by its key. ``Dice`` and ``IoU`` are NaN if neither map has it.
    """
    counted = None if evaluated.ignore is None else reference != evaluated.ignore
    voxels = reference.size if counted is None else int(np.count_nonzero(counted))
    found = {}
    for key, labels in evaluated.regions.items():
        wanted, given = np.isin(reference, labels), np.isin(prediction, labels)
        if counted is not None:
            wanted &= counted
            given &= counted
        both = int(np.count_nonzero(wanted & given))
        only_given = int(np.count_nonzero(given)) - both
        only_wanted = int(np.count_nonzero(wanted)) - both
        union = both + only_given + only_wanted
        found[key] = {
            "Dice": 2 * both / (2 * both + only_given + only_wanted) if union else math.nan,
            "IoU": both / union if union else math.nan,
            "FP": only_given,
            "TP": both,
            "FN": only_wanted,
            "TN": voxels - union,
            "n_pred": only_given + both,
            "n_ref": only_wanted + both,
        }
    return found


def jsonable(metrics: Mapping[str, Metrics]) -> dict[str, dict[str, float | None]]:
    """Metrics for JSON, which has no NaN: a label that is nowhere has no Dice."""
    return {
        key: {name: None if math.isnan(value) else value for name, value in own.items()} for key, own in metrics.items()
    }


@dataclass
class Evaluation:
    """The cases that were compared."""

    cases: list[dict[str, Any]] = field(default_factory=list)

    def add(self, reference: Path, prediction: Path, metrics: Mapping[str, Metrics]) -> None:
        """Add a case.

        Args:
            reference: The file of the label map that is right.
            prediction: The file of the label map that was predicted.
            metrics: What ``compare`` gave.
        """
        self.cases.append(
            {"reference_file": str(reference), "prediction_file": str(prediction), "metrics": dict(metrics)}
        )

    def summary(self) -> dict[str, Any]:
        """The content of ``summary.json``.

        ``mean`` is over the cases that have a number, ``foreground_mean`` over the labels or regions: NaN if one of
        them is in no case at all.
        """
        first = self.cases[0]["metrics"]
        means = {
            key: {name: _mean_of_numbers([case["metrics"][key][name] for case in self.cases]) for name in metrics}
            for key, metrics in first.items()
        }
        names = list(next(iter(first.values())))
        foreground = {name: float(np.mean([mean[name] for mean in means.values()])) for name in names}
        return {"foreground_mean": foreground, "mean": means, "metric_per_case": self.cases}

    def text(self) -> str:
        """The text of ``summary.json``, with NaN where nnU-Net writes it."""
        return json.dumps(self.summary(), indent=4, sort_keys=True)


def _mean_of_numbers(values: Sequence[float]) -> float:
    return math.nan if all(map(math.isnan, values)) else float(np.nanmean(values))
