"""How far two computations of the same logits are from each other, and how far they may be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from segonnx.errors import ParityError

CHUNK = 2**17
"""Elements that are compared at a time: logits may take half a gigabyte, and in a cache all goes five times as fast."""


@dataclass(frozen=True)
class Tolerance:
    """The most that two computations of the same logits may differ.

    Errors are relative to the standard deviation (std) of the reference's logits, so that they mean the same for
    a network whose logits are near 1 and for one whose logits are near 1e9.

    Attributes:
        max_rel_error: the most that the largest difference may be.
        rms_rel_error: the most that the root of the mean squared difference may be. It sees a small change of many
            voxels that the largest difference, which one unlucky voxel sets, does not.
        label_agreement: fraction of voxels that must get the same label.
    """

    max_rel_error: float
    rms_rel_error: float
    label_agreement: float


TOLERANCES = {
    "float32": Tolerance(max_rel_error=2e-3, rms_rel_error=1e-4, label_agreement=0.999),
    "bfloat16": Tolerance(max_rel_error=1.0, rms_rel_error=5e-2, label_agreement=0.9),
}
"""By the type in which a runtime computes. For their derivation see docs/decisions/0004."""


@dataclass(frozen=True)
class Difference:
    """How far logits are from a reference.

    Attributes:
        max_abs_error: the largest difference.
        max_rel_error: the same relative to the reference's standard deviation, or a larger scale.
        rms_rel_error: root mean square of the difference, relative to the same.
        label_agreement: fraction of voxels with the same label (see ``labels_of``), of 1.
        spread: the reference's standard deviation; the name is a key of manifests.
    """

    max_abs_error: float
    max_rel_error: float
    rms_rel_error: float
    label_agreement: float
    spread: float

    def within(self, tolerance: Tolerance) -> bool:
        """Whether every figure is within the tolerance; NaN never is."""
        return (
            self.max_rel_error <= tolerance.max_rel_error
            and self.rms_rel_error <= tolerance.rms_rel_error
            and self.label_agreement >= tolerance.label_agreement
        )

    def __str__(self) -> str:
        return (
            f"max {self.max_rel_error:.1e}, rms {self.rms_rel_error:.1e} of std, "
            f"labels {100 * self.label_agreement:.4f} %"
        )


@dataclass(frozen=True)
class Agreement:
    """How far labels are those of a reference.

    Attributes:
        label_agreement: fraction of voxels with the same label, of 1.
    """

    label_agreement: float

    def within(self, tolerance: Tolerance) -> bool:
        """Whether so many agree as must."""
        return self.label_agreement >= tolerance.label_agreement

    def __str__(self) -> str:
        return f"labels {100 * self.label_agreement:.4f} %"


def compare_labels(reference: npt.NDArray[Any], found: npt.NDArray[Any]) -> Agreement:
    """Measure labels against others, both (N, spatial...).

    Raises:
        ParityError: the shapes or types differ.
    """
    if (reference.shape, reference.dtype) != (found.shape, found.dtype):
        raise ParityError(f"labels are {found.shape} of {found.dtype}, expected {reference.shape} of {reference.dtype}")
    return Agreement(float((reference == found).mean()))


def labels_of(logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The labels (N, spatial...) of logits (N, classes, spatial...), in bounded memory.

    Of each voxel the class with the largest logit, the first of those that tie; with one class, 1 where its logit is
    above 0. They are uint8, uint16 for more than 256 classes.
    """
    batch, classes, *spatial = logits.shape
    labels = np.empty((batch, math.prod(spatial)), np.uint8 if classes <= 256 else np.uint16)
    flat = _flat(logits)
    for voxels in _chunks(flat):
        labels[:, voxels] = _decide(flat[:, :, voxels])
    return labels.reshape(batch, *spatial)


def _decide(logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    decided: npt.NDArray[Any] = logits[:, 0] > 0 if logits.shape[1] == 1 else logits.argmax(axis=1)
    return decided


def compare(reference: npt.NDArray[Any], found: npt.NDArray[Any], scale: float = 0.0) -> Difference:
    """Measure ``found`` against ``reference``, both (N, classes, spatial...), in bounded memory.

    Args:
        reference: the logits that are right.
        found: the others.
        scale: what errors are relative to, where the reference's own std is less: logits of a flat image may hardly
            vary.

    Raises:
        ParityError: the shapes differ.
    """
    if reference.shape != found.shape:
        raise ParityError(f"logits have the shape {found.shape}, expected {reference.shape}")
    largest = 0.0
    squares = 0.0
    total = 0.0
    total_squares = 0.0
    agreeing = 0
    reference, found = _flat(reference), _flat(found)
    for voxels in _chunks(reference):
        want = np.asarray(reference[:, :, voxels], dtype=np.float64)
        have = np.asarray(found[:, :, voxels], dtype=np.float64)
        difference = have - want
        # max() would pass NaN over
        largest = float(np.maximum(largest, np.abs(difference).max()))
        squares += float(np.square(difference).sum())
        total += float(want.sum())
        total_squares += float(np.square(want).sum())
        agreeing += int(np.count_nonzero(_decide(want) == _decide(have)))
    count = reference.size
    std = math.sqrt(max(total_squares / count - (total / count) ** 2, 0.0))
    if not math.isfinite(largest) or not math.isfinite(std):
        return Difference(math.nan, math.nan, math.nan, 0.0, std)
    scale = max(std, scale) or 1.0
    return Difference(
        max_abs_error=largest,
        max_rel_error=largest / scale,
        rms_rel_error=math.sqrt(squares / count) / scale,
        label_agreement=agreeing * reference.shape[1] / count,
        spread=std,
    )


def std_of(logits: npt.NDArray[Any]) -> float:
    """The standard deviation of logits, in bounded memory."""
    total, squares = 0.0, 0.0
    flat = _flat(logits)
    for voxels in _chunks(flat):
        part = np.asarray(flat[:, :, voxels], dtype=np.float64)
        total += float(part.sum())
        squares += float(np.square(part).sum())
    return math.sqrt(max(squares / flat.size - (total / flat.size) ** 2, 0.0))


def _flat(logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Logits (N, classes, spatial...) as (N, classes, voxels)."""
    return logits.reshape(*logits.shape[:2], -1)


def _chunks(flat: npt.NDArray[Any]) -> list[slice]:
    """Slices of the voxels of (N, classes, voxels) that hold about ``CHUNK`` elements each."""
    batch, classes, voxels = flat.shape
    step = max(1, CHUNK // max(1, batch * classes))
    return [slice(start, start + step) for start in range(0, voxels, step)]
