"""How far two computations of the same logits are from each other, and how far they may be."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from segonnx.core.decisions import Decision, decision
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

    def __str__(self) -> str:
        return (
            f"max {self.max_rel_error:.1e}, rms {self.rms_rel_error:.1e} of std, "
            f"labels {100 * self.label_agreement:.4f} %"
        )


TOLERANCES = {
    "float32": Tolerance(max_rel_error=2e-3, rms_rel_error=1e-4, label_agreement=0.999),
    "bfloat16": Tolerance(max_rel_error=1.0, rms_rel_error=5e-2, label_agreement=0.9),
    "int8": Tolerance(max_rel_error=1.0, rms_rel_error=0.2, label_agreement=0.5),
}
"""By the type in which a runtime computes. For their derivation see docs/decisions/0004."""


@dataclass(frozen=True)
class Difference:
    """How far logits are from a reference.

    Attributes:
        max_abs_error: the largest difference.
        max_rel_error: the same relative to the reference's standard deviation, or a larger scale.
        rms_rel_error: root mean square of the difference, relative to the same.
        label_agreement: fraction of voxels with the same label, of 1. Classes that overlap are decided one by one, and
            count so.
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


def labels_of(values: npt.NDArray[Any], rule: Decision | None = None) -> npt.NDArray[Any]:
    """The labels (N, spatial...) of an output (N, classes, spatial...), in bounded memory.

    Args:
        values: the output; its classes don't overlap.
        rule: how it is decided; None takes it for logits.

    Returns:
        uint8, uint16 for more than 256 classes. With one class, 1 where it is above the rule's level.
    """
    batch, classes, *spatial = values.shape
    rule = rule or decision("logits", classes)
    labels = np.empty((batch, math.prod(spatial)), np.uint8 if classes <= 256 else np.uint16)
    flat = _flat(values)
    for voxels in _chunks(flat):
        decided = rule(flat[:, :, voxels])
        labels[:, voxels] = decided if rule.above is None else decided[:, 0]
    return labels.reshape(batch, *spatial)


def probabilities_of(logits: npt.NDArray[Any], rule: Decision) -> npt.NDArray[np.float32]:
    """The probabilities of logits, both (N, classes, spatial...), in bounded memory.

    Args:
        logits: what the network gives.
        rule: how they are decided: classes of which one wins have a softmax, the others a sigmoid each.
    """
    result = np.empty(logits.shape, np.float32)
    flat, out = _flat(logits), _flat(result)
    for voxels in _chunks(flat):
        part = np.asarray(flat[:, :, voxels], dtype=np.float64)
        if rule.above is None:
            powers = np.exp(part - part.max(axis=1, keepdims=True))
            out[:, :, voxels] = powers / powers.sum(axis=1, keepdims=True)
        else:
            out[:, :, voxels] = 0.5 * (1.0 + np.tanh(0.5 * part))  # the sigmoid, without an overflow
    return result


def compare(
    reference: npt.NDArray[Any], found: npt.NDArray[Any], scale: float = 0.0, rule: Decision | None = None
) -> Difference:
    """Measure ``found`` against ``reference``, both (N, classes, spatial...), in bounded memory.

    Args:
        reference: the output that is right.
        found: the other.
        scale: what errors are relative to, where the reference's own std is less: logits of a flat image may hardly
            vary.
        rule: how labels follow from them; None takes them for logits of classes that don't overlap.

    Raises:
        ParityError: the shapes differ.
    """
    if reference.shape != found.shape:
        raise ParityError(f"logits have the shape {found.shape}, expected {reference.shape}")
    largest = 0.0
    squares = 0.0
    total = 0.0
    total_squares = 0.0
    agreeing = decided = 0
    rule = rule or decision("logits", reference.shape[1])
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
        same = rule(want) == rule(have)
        agreeing += int(np.count_nonzero(same))
        decided += same.size
    count = reference.size
    std = math.sqrt(max(total_squares / count - (total / count) ** 2, 0.0))
    if not math.isfinite(largest) or not math.isfinite(std):
        return Difference(math.nan, math.nan, math.nan, 0.0, std)
    scale = max(std, scale) or 1.0
    return Difference(
        max_abs_error=largest,
        max_rel_error=largest / scale,
        rms_rel_error=math.sqrt(squares / count) / scale,
        label_agreement=agreeing / decided,
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


def size_of(values: npt.NDArray[Any]) -> float:
    """The root mean square of numbers, in float64; 0 of none, and of what isn't float32."""
    if values.dtype != np.float32 or not values.size:
        return 0.0
    return math.sqrt(float(np.square(values, dtype=np.float64).mean()))


def compare_values(
    reference: npt.NDArray[Any], found: npt.NDArray[Any], scale: float | None = None
) -> Difference | None:
    """Measure an output that isn't the segmentation: numbers of any shape, relative to their root mean square.

    Args:
        reference: what it should be.
        found: what it is.
        scale: what errors are relative to, where that is known better: of a mean that is nearly 0 on one input, what it
            is on others.

    Returns:
        None where shapes or types differ, or whole numbers do.
    """
    if (reference.shape, reference.dtype) != (found.shape, found.dtype):
        return None
    if reference.dtype != np.float32:
        return Difference(0.0, 0.0, 0.0, 1.0, 0.0) if np.array_equal(reference, found) else None
    size = size_of(reference) if scale is None else scale
    difference = compare(reference.reshape(1, 1, -1), found.reshape(1, 1, -1), size)
    return replace(difference, label_agreement=1.0)


def _flat(logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Logits (N, classes, spatial...) as (N, classes, voxels)."""
    return logits.reshape(*logits.shape[:2], -1)


def _chunks(flat: npt.NDArray[Any]) -> list[slice]:
    """Slices of the voxels of (N, classes, voxels) that hold about ``CHUNK`` elements each."""
    batch, classes, voxels = flat.shape
    step = max(1, CHUNK // max(1, batch * classes))
    return [slice(start, start + step) for start in range(0, voxels, step)]
