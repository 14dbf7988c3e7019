"""From one grid of voxels to another: crops, and resampling as nnU-Net does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from segonnx.predict.recipe import Resampling

Array = npt.NDArray[Any]
Box = tuple[slice, ...]

ANISOTROPY = 3
"""From this ratio between the largest and the smallest spacing on, the axis of low resolution is treated apart."""


def nonzero(image: Array) -> tuple[Array, Box]:
    """What isn't 0 in some channel, holes filled, and the box around it; all where everything is 0.

    Args:
        image: (C, z, y, x).

    Returns:
        A mask of the whole (z, y, x), and its box.
    """
    from scipy.ndimage import binary_fill_holes, find_objects

    mask = np.zeros(image.shape[1:], bool)
    for channel in image:
        mask |= channel != 0
    mask = binary_fill_holes(mask)
    found = find_objects(mask.astype(np.uint8))
    return mask, found[0] if found else tuple(slice(0, size) for size in mask.shape)


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
    from scipy.ndimage import map_coordinates

    if not how.resamples or tuple(shape) == image.shape[1:]:
        return image
    result = np.empty((len(image), *shape), np.float32)
    for channel, target in zip(image, result, strict=True):
        if axis is None:
            target[:] = _zoomed(channel, shape, how.order)
            continue
        flat = [size for other, size in enumerate(shape) if other != axis]
        stack = np.stack([_zoomed(one, flat, how.order) for one in np.moveaxis(channel, axis, 0)], axis)
        if shape[axis] != channel.shape[axis]:
            where: list[Array] = [np.arange(size, dtype=float) for size in shape]
            where[axis] = centres(channel.shape[axis], shape[axis])
            stack = map_coordinates(stack, np.meshgrid(*where, indexing="ij"), order=how.order_z, mode="nearest")
        target[:] = stack
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
