"""The verdict on a network in int8: its label maps against those of float32, on images that calibration didn't see."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segonnx.errors import InputError
from segonnx.predict import evaluation
from segonnx.predict.evaluation import Evaluated
from segonnx.quantization.cases import Case


@dataclass(frozen=True)
class Verdict:
    """How well label maps agree.

    Attributes:
        dice: of each label, its mean over the images that have it in either label map.
        worst: the least Dice of a label in one image, with the label and the image's name.
        agreement: the least fraction of voxels of an image that get the same label.
        images: how many there are.
    """

    dice: dict[str, float]
    worst: tuple[float, str, str]
    agreement: float
    images: int

    @property
    def least(self) -> tuple[float, str]:
        """The least of the labels' Dice, and its label."""
        return min((dice, label) for label, dice in self.dice.items())

    @property
    def entry(self) -> dict[str, Any]:
        """What the manifest says of it. Images have no names there: they may be patients'."""
        return {
            "images": self.images,
            "dice": self.dice,
            "worst_dice": self.worst[0],
            "worst_label": self.worst[1],
            "label_agreement": self.agreement,
        }

    def __str__(self) -> str:
        least, label = self.least
        worst, other, name = self.worst
        return (
            f"Dice of int8 against float32: {least:.4f} of label {label}, the least of {len(self.dice)}; "
            f"at worst {worst:.4f}, label {other} of {name}; labels {100 * self.agreement:.4f} %"
        )


def judge(expected: Path, found: Path, cases: Sequence[Case], evaluated: Evaluated) -> Verdict:
    """Compare label maps.

    Args:
        expected: the folder of those of float32, ``i.npy`` of case i.
        found: the folder of those of int8.
        cases: the images.
        evaluated: what is compared.

    Raises:
        InputError: float32 finds no label in any image, so that nothing can be told.
    """
    by_label: dict[str, list[tuple[float, str]]] = {}
    agreements = []
    seen = False
    for i, case in enumerate(cases):
        one, other = np.load(expected / f"{i}.npy"), np.load(found / f"{i}.npy")
        agreements.append(float((one == other).mean()))
        for label, metrics in evaluation.compare(one, other, evaluated).items():
            seen = seen or metrics["n_ref"] > 0
            if not math.isnan(metrics["Dice"]):
                by_label.setdefault(label, []).append((metrics["Dice"], case.name))
    if not seen:
        raise InputError("float32 finds no label in the held-out images, and nothing can be told of int8: take others")
    means = {label: float(np.mean([dice for dice, _ in found])) for label, found in by_label.items()}
    worst = min((dice, label, name) for label, found in by_label.items() for dice, name in found)
    return Verdict(means, worst, min(agreements), len(cases))
