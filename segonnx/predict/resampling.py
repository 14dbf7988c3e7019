"""From one grid of voxels to another: crops, and resampling as nnU-Net does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from segonnx.predict.config import Resampling

Array = npt.NDArray[Any]
Box = tuple[slice, ...]

ANISOTROPY = 3
"""From this ratio between the largest and the smallest spacing on, the axis of low resolution is treated apart."""


def nonzero(image: Array) -> tuple[Array, Box]:
    """What isn't 0 in some channel, and the box around it; all where everything is 0.

    Args:
        image: (C, z, y, x).

    Returns:
        A mask of the whole (z, y, x), and its box.
    """
    mask = np.zeros(image.shape[1:], bool)
    for channel in image:
        mask |= channel != 0
    box = []
    for axis in range(mask.ndim):
        where = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(int(where[0]), int(where[-1]) + 1) if len(where) else slice(0, mask.shape[axis]))
    return mask, tuple(box)


def filled(mask: Array) -> Array:
    """The mask with its holes filled: what no path of zeros joins with the border."""
    from scipy.ndimage import binary_fill_holes

    result: Array = binary_fill_holes(mask)
    return result


def resampled_shape(shape: Sequence[int], spacing: Sequence[float], wanted: Sequence[float]) -> tuple[int, ...]:
    """How many voxels of the wanted spacing cover the same space."""
    return tuple(round(one / other * size) for size, one, other in zip(shape, spacing, wanted, strict=True))


def low_resolution_axis(how: Resampling, current: Sequence[float], wanted: Sequence[float]) -> int | None:
    """The axis that is resampled apart from the others; None where all are alike.

    Args:
        how: to resample.
        current: spacing.
        wanted: the other spacing.
    """
    if how.separate_z is False:
        return None
    for spacing in (current, wanted):
        if how.separate_z or max(spacing) / min(spacing) > ANISOTROPY:
            axes = [axis for axis, size in enumerate(spacing) if max(spacing) / size == 1]
            return axes[0] if len(axes) == 1 else None
    return None


def resample(image: Array, shape: Sequence[int], how: Resampling, axis: int | None) -> Array:
    """Every channel of an image on another grid.

    Args:
        image: float32 (C, z, y, x).
        shape: of the other grid.
        how: orders of the splines.
        axis: what ``low_resolution_axis`` gave.

    Returns:
        float32 (C, *shape).
    """
    if not how.resamples or tuple(shape) == image.shape[1:]:
        return image
    result = np.empty((len(image), *shape), np.float32)
    for channel, target in zip(image, result, strict=True):
        if axis is None:
            target[:] = _zoomed(channel, shape, how.order)
            continue
        flat = [size for other, size in enumerate(shape) if other != axis]
        stack = np.stack([_zoomed(one, flat, how.order) for one in np.moveaxis(channel, axis, 0)])
        np.moveaxis(target, axis, 0)[:] = _deepened(stack, shape[axis], how.order_z)
    return result


def resample_labels(labels: Array, shape: Sequence[int], how: Resampling, axis: int | None) -> Array:
    """A label map on another grid: at each place the label whose spline is largest; of equal ones, the nearest.

    Args:
        labels: integers (z, y, x).
        shape: of the other grid.
        how: orders of the splines.
        axis: what ``low_resolution_axis`` gave.

    Returns:
        The same type, of the other shape.
    """
    if not how.resamples or tuple(shape) == labels.shape:
        return labels
    if axis is None:
        return _zoomed_labels(labels, shape, how.order)
    flat = [size for other, size in enumerate(shape) if other != axis]
    stack = np.stack([_zoomed_labels(one, flat, how.order) for one in np.moveaxis(labels, axis, 0)])
    if how.order_z == 0:
        return np.moveaxis(_deepened(stack, shape[axis], 0), 0, axis)
    result = np.zeros((shape[axis], *flat), labels.dtype)
    for value in np.unique(stack):
        result[np.round(_deepened((stack == value).astype(np.float64), shape[axis], how.order_z)) > 0.5] = value
    return np.moveaxis(result, 0, axis)


def _deepened(stack: Array, depth: int, order: int) -> Array:
    """Another number of slices, by splines along the first axis."""
    from scipy.ndimage import map_coordinates

    if depth == len(stack):
        return stack
    where = centres(len(stack), depth)
    if order == 0:
        slices: Array = np.arange(len(stack), dtype=np.float64)
        result: Array = stack[map_coordinates(slices, [where], order=0, mode="nearest").astype(np.int64)]
        return result
    others = (np.arange(size, dtype=float) for size in stack.shape[1:])
    result = map_coordinates(stack, np.meshgrid(where, *others, indexing="ij"), order=order, mode="nearest")
    return result


def _zoomed_labels(labels: Array, shape: Sequence[int], order: int) -> Array:
    if order == 0:
        return _zoomed(labels, shape, 0).astype(labels.dtype)
    nearest = _zoomed(labels, shape, 0).astype(labels.dtype)
    result, best = np.zeros(shape, labels.dtype), np.full(shape, -np.inf)
    for value in np.unique(labels):
        score = _zoomed(labels == value, shape, order)
        result[(score > best) | ((score == best) & (nearest == value))] = value
        np.maximum(best, score, out=best)
    return result


def _zoomed(image: Array, shape: Sequence[int], order: int) -> Array:
    """The same space on a grid of another shape, by splines that keep to its range: scikit-image's ``resize``."""
    from scipy.ndimage import zoom

    image = image.astype(np.float64)
    if image.shape == tuple(shape):
        return image
    scales = [new / old for new, old in zip(shape, image.shape, strict=True)]
    result: Array = zoom(image, scales, order=order, mode="nearest", grid_mode=True)
    return np.clip(result, image.min(), image.max(), out=result) if order > 1 else result


def centres(old: int, new: int) -> npt.NDArray[np.float64]:
    """Where the centres of ``new`` voxels lie among those of ``old`` ones that cover the same length."""
    return old / new * (np.arange(new, dtype=np.float64) + 0.5) - 0.5


@dataclass(frozen=True)
class Line:
    """One axis of a linear resampling: each new voxel is a mix of two old ones.

    Attributes:
        low: index of the first.
        high: index of the second.
        part: weight of the second.
    """

    low: npt.NDArray[np.int64]
    high: npt.NDArray[np.int64]
    part: npt.NDArray[np.float32]

    @classmethod
    def make(cls, old: int, new: int, *, nearest: bool = False) -> Line:
        """The mixes for ``new`` voxels of ``old`` ones; ``nearest`` takes the nearest one instead."""
        where = centres(old, new)
        if nearest:
            index = np.clip(np.floor(where + 0.5).astype(np.int64), 0, old - 1)
            return cls(index, index, np.zeros(new, np.float32))
        within = np.clip(where, 0, old - 1)
        low = np.minimum(np.floor(within).astype(np.int64), max(old - 2, 0))
        return cls(low, np.minimum(low + 1, old - 1), (within - low).astype(np.float32))

    def along(self, array: Array, axis: int) -> Array:
        """The array with this axis resampled."""
        if (
            len(self.low) == array.shape[axis]
            and not self.part.any()
            and np.array_equal(self.low, np.arange(len(self.low)))
        ):
            return array
        part = self.part.reshape([-1 if other == axis else 1 for other in range(array.ndim)])
        first = np.take(array, self.low, axis)
        result: Array = first + part * (np.take(array, self.high, axis) - first)
        return result
