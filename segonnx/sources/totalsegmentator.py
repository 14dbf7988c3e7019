"""TotalSegmentator's tasks and trained folders: their networks and classes, and the licences of their weights.

The table in ``totalsegmentator.json`` is made from TotalSegmentator's own by ``tools/make_totalsegmentator.py``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segonnx.core import documents
from segonnx.errors import InputError

WEIGHTS, HOME = "TOTALSEG_WEIGHTS_PATH", "TOTALSEG_HOME_DIR"
"""TotalSegmentator's own environment variables."""


@dataclass(frozen=True)
class Folder:
    """What a trained folder is.

    Attributes:
        task: the task, as TotalSegmentator's users type it.
        licence: the licence of the weights.
        classes: names of the labels from 1 on.
    """

    task: str
    licence: str
    classes: tuple[str, ...]


def folder(dataset: str, trainer: str) -> Folder | None:
    """TotalSegmentator's folder of that data set and trainer; None where it has no such.

    Args:
        dataset: the name of the data set, for example ``Dataset297_TotalSegmentator_total_3mm_1559subj``.
        trainer: the name of the trainer, for example ``nnUNetTrainer_4000epochs_NoMirroring``.
    """
    found = _registry()["folders"].get(dataset)
    if found is None or found["trainer"] != trainer:
        return None
    return Folder(found["name"], found["licence"], tuple(found["classes"]))


@dataclass(frozen=True)
class Network:
    """A network of a task.

    Attributes:
        folder: the folder of its data set.
        trained: the folder in it, of one trainer, plans and configuration.
        folds: the folds whose mean it is; None takes all that are there.
        labels: the task's label for each of its own; None takes them as they are.
    """

    folder: str
    trained: str
    folds: tuple[int, ...] | None
    labels: Mapping[str, int] | None


@dataclass(frozen=True)
class Task:
    """A task of TotalSegmentator, as its inference does it.

    Attributes:
        name: as segonnx's users type it: ``total_fast`` is TotalSegmentator's ``total --fast``.
        modality: ``CT`` or ``MR``.
        licence: of the weights.
        unsupported: why segonnx can't do it; None if it can.
        networks: in the order in which they are run.
        crop: the task that the image is cropped by, ``task``, its ``labels``, and the ``margin`` in mm; None if the
            image isn't cropped.
        subset: the task by which a user's choice of classes is found, ``task``, and the ``margin`` in mm; None if there
            is no such choice.
        entries: more of what goes into the stage of its name in task.json, under the same keys.
        derived: as in task.json.
    """

    name: str
    modality: str
    licence: str
    unsupported: str | None
    networks: tuple[Network, ...]
    crop: Mapping[str, Any] | None
    subset: Mapping[str, Any] | None
    entries: Mapping[str, Any]
    derived: tuple[Mapping[str, Any], ...]

    @property
    def labels(self) -> list[dict[str, Any]]:
        """Its classes: ``value`` and ``name``."""
        found: list[dict[str, Any]] = self.entries["labels"]
        return found


def version() -> str:
    """The version of TotalSegmentator that the table is of."""
    return str(_registry()["totalsegmentator"])


def tasks() -> list[Task]:
    """Every task, in TotalSegmentator's order; each of its modes is one of its own."""
    return [_task(name) for name in _registry()["tasks"]]


def find(name: str) -> Task:
    """The task of this name.

    Raises:
        InputError: there is none, or segonnx can't do it.
    """
    if name not in _registry()["tasks"]:
        raise InputError(
            f"TotalSegmentator {version()} has no task {name!r}: `segonnx list --totalsegmentator` shows them"
        )
    found = _task(name)
    if found.unsupported is not None:
        raise InputError(f"TotalSegmentator's {name} can't be exported: {found.unsupported}")
    return found


def codes(names: list[str]) -> dict[str, Any]:
    """The SNOMED codes and colours of classes, by their names, of those that have any."""
    known = _registry()["codes"]
    return {name: known[name] for name in names if name in known}


def weights_dir() -> Path:
    """Where TotalSegmentator keeps its weights on this machine."""
    if WEIGHTS in os.environ:
        return Path(os.environ[WEIGHTS])
    home = Path(os.environ[HOME]) if HOME in os.environ else Path.home() / ".totalsegmentator"
    return home / "nnunet" / "results"


def _task(name: str) -> Task:
    found = _registry()["tasks"][name]
    return Task(
        name=name,
        modality=found["modality"],
        licence=found["licence"],
        unsupported=found["unsupported"],
        networks=tuple(
            Network(one["folder"], one["trained"], None if one["folds"] is None else tuple(one["folds"]), one["labels"])
            for one in found["networks"]
        ),
        crop=found["crop"],
        subset=found["subset"],
        entries={
            "spacing": found["spacing"],
            "step": found["step"],
            "labels": [{"value": int(value), "name": label} for value, label in found["labels"].items()],
            "drop": found["drop"],
            "steps": found["steps"],
            "outside": found["outside"],
            "within": found["within"],
        },
        derived=tuple(found["derived"]),
    )


def _registry() -> dict[str, Any]:
    registry: dict[str, Any] = documents.packaged("segonnx.sources", "totalsegmentator.json")
    return registry
