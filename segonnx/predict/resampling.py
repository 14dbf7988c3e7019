"""Crops to the nonzero voxels, and resampling to another spacing as nnU-Net does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from segonnx.predict.config import SplineOrders

AnyArray = npt.NDArray[Any]
"""An array of any type; each function says which types it takes."""
Box = tuple[slice, ...]
"""A slice for each spatial axis."""

ANISOTROPY = 3
"""Above this ratio of the largest to the smallest spacing, the axis of low resolution is resampled apart."""


def nonzero(image: AnyArray) -> tuple[AnyArray, Box]:
    """Find the voxels that aren't 0 in some channel, and the box around them.

    Args:
        image: Any numbers, (C, z, y, x).

    Returns:
        The mask of these voxels (z, y, x), and its box. An image that is 0 everywhere gives the box of all voxels.
    """
    mask = np.zeros(image.shape[1:], bool)
    for channel in image:
        mask |= channel != 0
    box = []
    for axis in range(mask.ndim):
        indices = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(int(indices[0]), int(indices[-1]) + 1) if len(indices) else slice(0, mask.shape[axis]))
    return mask, tuple(box)


def filled(mask: AnyArray) -> AnyArray:
    """Fill the holes of a mask (z, y, x): the zeros that no path of zeros connects with the border."""
    from scipy.ndimage import binary_fill_holes

    result: AnyArray = binary_fill_holes(mask)
    return result


def resampled_shape(shape: Sequence[int], spacing: Sequence[float], wanted: Sequence[float]) -> tuple[int, ...]:
    """The number of voxels along each axis that cover the same space at the wanted spacing, both in mm."""
    return tuple(round(old / new * size) for size, old, new in zip(shape, spacing, wanted, strict=True))


def low_resolution_axis(orders: SplineOrders, current: Sequence[float], wanted: Sequence[float]) -> int | None:
    """Find the axis that is resampled apart from the others.

    Args:
        orders: The orders of the splines, and whether an axis is resampled apart.
        current: The spacing before, in mm.
        wanted: The spacing after, in mm.

    Returns:
        The axis of the lowest resolution, or None if all axes are resampled together.
    """
    if orders.separate_z is False:
        return None
    for spacing in (current, wanted):
        if orders.separate_z or max(spacing) / min(spacing) > ANISOTROPY:
            axes = [axis for axis, size in enumerate(spacing) if max(spacing) / size == 1]
            return axes[0] if len(axes) == 1 else None
    return None


def resample(image: AnyArray, shape: Sequence[int], orders: SplineOrders, axis: int | None) -> AnyArray:
    """Resample every channel of an image to another shape.

    Args:
        image: The image, float32 (C, z, y, x).
        shape: The new spatial shape.
        orders: The orders of the splines.
        axis: The result of ``low_resolution_axis``.

    Returns:
        The resampled image, float32 (C, *shape).
    """
    if not orders.resamples or tuple(shape) == image.shape[1:]:
        return image
    result = np.empty((len(image), *shape), np.float32)
    for channel, target in zip(image, result, strict=True):
        if axis is None:
            target[:] = _zoomed(channel, shape, orders.order)
            continue
        flat = [size for other, size in enumerate(shape) if other != axis]
        stack = np.stack([_zoomed(plane, flat, orders.order) for plane in np.moveaxis(channel, axis, 0)])
        np.moveaxis(target, axis, 0)[:] = _deepened(stack, shape[axis], orders.order_z)
    return result


def resample_labels(labels: AnyArray, shape: Sequence[int], orders: SplineOrders, axis: int | None) -> AnyArray:
    """Resample a label map to another shape.

    Each label's mask is resampled, and each voxel takes the label whose mask is largest there. Of equal ones it takes
    the nearest voxel's.

    Args:
        labels: The label map, integers (z, y, x).
        shape: The new shape.
        orders: The orders of the splines.
        axis: The result of ``low_resolution_axis``.

    Returns:
        The resampled label map, of the same type.
    """
    if not orders.resamples or tuple(shape) == labels.shape:
        return labels
    if axis is None:
        return _zoomed_labels(labels, shape, orders.order)
    flat = [size for other, size in enumerate(shape) if other != axis]
    stack = np.stack([_zoomed_labels(plane, flat, orders.order) for plane in np.moveaxis(labels, axis, 0)])
    if orders.order_z == 0:
        return np.moveaxis(_deepened(stack, shape[axis], 0), 0, axis)
    result = np.zeros((shape[axis], *flat), labels.dtype)
    for value in np.unique(stack):
        result[np.round(_deepened((stack == value).astype(np.float64), shape[axis], orders.order_z)) > 0.5] = value
    return np.moveaxis(result, 0, axis)


def _deepened(stack: AnyArray, depth: int, order: int) -> AnyArray:
    """Resample a stack of slices (z, y, x) to ``depth`` slices, by splines along the first axis."""
    from scipy.ndimage import map_coordinates

    if depth == len(stack):
        return stack
    positions = centres(len(stack), depth)
    if order == 0:
        slices: AnyArray = np.arange(len(stack), dtype=np.float64)
        result: AnyArray = stack[map_coordinates(slices, [positions], order=0, mode="nearest").astype(np.int64)]
        return result
    others = (np.arange(size, dtype=float) for size in stack.shape[1:])
    result = map_coordinates(stack, np.meshgrid(positions, *others, indexing="ij"), order=order, mode="nearest")
    return result


def _zoomed_labels(labels: AnyArray, shape: Sequence[int], order: int) -> AnyArray:
    if order == 0:
        return _zoomed(labels, shape, 0).astype(labels.dtype)
    nearest = _zoomed(labels, shape, 0).astype(labels.dtype)
    result, best = np.zeros(shape, labels.dtype), np.full(shape, -np.inf)
    for value in np.unique(labels):
        score = _zoomed(labels == value, shape, order)
        result[(score > best) | ((score == best) & (nearest == value))] = value
        np.maximum(best, score, out=best)
    return result


def _zoomed(image: AnyArray, shape: Sequence[int], order: int) -> AnyArray:
    """Resample to another shape as scikit-image's ``resize``: splines of order 2 and more are clipped to the range."""
    from scipy.ndimage import zoom

    image = image.astype(np.float64)
    if image.shape == tuple(shape):
        return image
    scales = [new / old for new, old in zip(shape, image.shape, strict=True)]
    result: AnyArray = zoom(image, scales, order=order, mode="nearest", grid_mode=True)
    return np.clip(result, image.min(), image.max(), out=result) if order > 1 else result


def centres(old: int, new: int) -> npt.NDArray[np.float64]:
    """The positions of the centres of ``new`` voxels, in units of the ``old`` voxels that cover the same length."""
    return old / new * (np.arange(new, dtype=np.float64) + 0.5) - 0.5


@dataclass(frozen=True)
class LinearInterpolation:
    """Linear interpolation along one axis: each new voxel is a weighted mean of two old ones.

    Attributes:
        lower: For each new voxel, the index of the first old one.
        upper: For each new voxel, the index of the second old one.
        weight: For each new voxel, the weight of the second old one, 0 to 1. The first has the rest.
    """

    lower: npt.NDArray[np.int64]
    upper: npt.NDArray[np.int64]
    weight: npt.NDArray[np.float32]

    @classmethod
    def between(cls, old: int, new: int, *, nearest: bool = False) -> LinearInterpolation:
        """Make the interpolation of ``new`` voxels from ``old`` ones that cover the same length.

        Args:
            old: The number of voxels before.
            new: The number of voxels after.
            nearest: Take the nearest old voxel instead of a mean.
        """
        positions = centres(old, new)
        if nearest:
            index = np.clip(np.floor(positions + 0.5).astype(np.int64), 0, old - 1)
            return cls(index, index, np.zeros(new, np.float32))
        within = np.clip(positions, 0, old - 1)
        lower = np.minimum(np.floor(within).astype(np.int64), max(old - 2, 0))
        return cls(lower, np.minimum(lower + 1, old - 1), (within - lower).astype(np.float32))

    def apply(self, array: AnyArray, axis: int) -> AnyArray:
        """Interpolate an array along one of its axes."""
        if (
            len(self.lower) == array.shape[axis]
            and not self.weight.any()
            and np.array_equal(self.lower, np.arange(len(self.lower)))
        ):
            return array
        weight = self.weight.reshape([-1 if other == axis else 1 for other in range(array.ndim)])
        first = np.take(array, self.lower, axis)
        result: AnyArray = first + weight * (np.take(array, self.upper, axis) - first)
        return result
