"""Crops to the nonzero voxels, and resampling to another spacing as nnU-Net does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from segonnx.predict import products
from segonnx.predict.config import InterpolationModes, Resampling
from segonnx.predict.interpolation import LinearInterpolation, centres, spline, spline_apart
from segonnx.predict.workers import Workers, blocks

AnyArray = npt.NDArray[Any]
"""An array of any type; each function says which types it takes."""
Box = tuple[slice, ...]
"""A slice for each spatial axis."""


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
    others = [tuple(other for other in range(mask.ndim) if other != axis) for axis in range(mask.ndim)]
    return mask, box_of([np.asarray(mask.any(axis=axes)) for axes in others])


def box_of(inside: Sequence[AnyArray]) -> Box:
    """The box of some voxels.

    Args:
        inside: For each axis, whether there is one at each of its places.

    Returns:
        The slices from the first to the last one; all places where there is none.
    """
    box = []
    for places in inside:
        indices = np.flatnonzero(places)
        box.append(slice(int(indices[0]), int(indices[-1]) + 1) if len(indices) else slice(0, len(places)))
    return tuple(box)


def filled(mask: AnyArray) -> AnyArray:
    """Fill the holes of a mask (z, y, x): the zeros that no path of zeros connects with the border."""
    from scipy.ndimage import binary_fill_holes

    result: AnyArray = binary_fill_holes(mask)
    return result


def resampled_shape(shape: Sequence[int], spacing: Sequence[float], wanted: Sequence[float]) -> tuple[int, ...]:
    """The number of voxels along each axis that cover the same space at the wanted spacing, both in mm."""
    return tuple(round(old / new * size) for size, old, new in zip(shape, spacing, wanted, strict=True))


def low_resolution_axis(how: Resampling, current: Sequence[float], wanted: Sequence[float]) -> int | None:
    """Find the axis that is resampled apart from the others.

    Args:
        how: How the array is resampled, and whether an axis is resampled apart.
        current: The spacing before, in mm.
        wanted: The spacing after, in mm.

    Returns:
        The axis of the lowest resolution, or None if all axes are resampled together.
    """
    if how.separate_z is False:
        return None
    for spacing in (current, wanted):
        if how.separate_z or max(spacing) / min(spacing) > how.threshold:
            axes = [axis for axis, size in enumerate(spacing) if max(spacing) / size == 1]
            return axes[0] if len(axes) == 1 else None
    return None


def interpolations(
    how: Resampling, old: Sequence[int], new: Sequence[int], axis: int | None
) -> list[LinearInterpolation]:
    """Make the interpolation along each axis, where an array is resampled by interpolations alone.

    Args:
        how: How the array is resampled; the orders of splines are 0 or 1.
        old: The shape before.
        new: The shape after.
        axis: The result of ``low_resolution_axis``.
    """
    return [
        _interpolation(how, before, after, None if axis is None else current == axis)
        for current, (before, after) in enumerate(zip(old, new, strict=True))
    ]


def _interpolation(how: Resampling, old: int, new: int, apart: bool | None) -> LinearInterpolation:
    """The interpolation along one axis; ``apart``: None if no axis is, or whether this one is."""
    if isinstance(how, InterpolationModes):
        mode = how.mode_together if apart is None else how.mode_z if apart else how.mode
        within = (
            {"linear": "bilinear"}.get(mode, mode) if apart is False else mode
        )  # two axes have a kernel of their own
        return LinearInterpolation.torch(within, old, new)
    if apart:
        return LinearInterpolation.between(old, new, nearest=how.order_z == 0)
    if how.order == 0 and old != new:
        return LinearInterpolation.of(_zoomed(np.arange(old), (new,), 0).astype(np.int64))
    return LinearInterpolation.between(old, new)


@dataclass(frozen=True)
class Channel:
    """A channel of an image, whose planes are made when they are asked for.

    Attributes:
        shape: Its shape (z, y, x).
        plane: Makes the plane of a number along an axis, float32: ``plane(number, axis)``.
    """

    shape: tuple[int, ...]
    plane: Callable[[int, int], AnyArray]

    @classmethod
    def of(cls, array: AnyArray) -> Channel:
        """An array (z, y, x) as a channel."""
        return cls(array.shape, lambda number, axis: np.take(array, number, axis).astype(np.float32, copy=False))


def resample(image: AnyArray, shape: Sequence[int], how: Resampling, axis: int | None) -> AnyArray:
    """Resample every channel of an image to another shape.

    Args:
        image: The image, float32 (C, z, y, x).
        shape: The new spatial shape.
        how: How it is resampled.
        axis: The result of ``low_resolution_axis``.

    Returns:
        The resampled image, float32 (C, *shape).
    """
    if not how.resamples or tuple(shape) == image.shape[1:]:
        return image
    result = np.empty((len(image), *shape), np.float32)
    for channel, target in zip(image, result, strict=True):
        resample_channel(Channel.of(channel), target, how, axis, Workers())
    return result


COLUMNS = 2**11
"""So many columns of voxels are resampled along the last axis at a time."""


def resample_channel(channel: Channel, target: AnyArray, how: Resampling, axis: int | None, workers: Workers) -> None:
    """Resample a channel: each plane by a matrix along each of its axes, then all planes by another one.

    Memory holds the planes at their new size. scikit-image's ``resize``, which nnU-Net calls, clips what splines of
    order 2 and more make to the numbers that there were: in each plane, if an axis is resampled apart, or in all.

    Args:
        channel: The channel.
        target: The resampled channel, float32 (z, y, x), which is filled.
        how: How it is resampled.
        axis: The result of ``low_resolution_axis``.
        workers: The threads that share the work.
    """
    front = axis or 0
    matrices = _matrices(how, channel.shape, target.shape, axis)
    through = matrices.pop(front)
    first, second = matrices
    clips = not isinstance(how, InterpolationModes) and how.order > 1
    target = np.moveaxis(target, front, 0)
    planes = target if through is None else np.empty((channel.shape[front], *target.shape[1:]), np.float32)

    def within(number: int) -> tuple[np.float32, np.float32]:
        plane = channel.plane(number, front)
        made = plane if first is None else products.product(first, np.ascontiguousarray(plane))
        made = made if second is None else products.product(made, np.ascontiguousarray(second.T))
        bounds = (plane.min(), plane.max()) if clips else (np.float32(0), np.float32(0))
        planes[number] = np.clip(made, *bounds) if clips and axis is not None and made is not plane else made
        return bounds

    bounds = workers.run(within, range(channel.shape[front]))
    lowest, highest = min(low for low, _ in bounds), max(high for _, high in bounds)
    if through is None and (axis is not None or not clips or (first is None and second is None)):
        return
    rows = planes.reshape(len(planes), -1)
    made = (
        target.reshape(len(target), -1)
        if target.flags.c_contiguous
        else np.empty((len(target), rows.shape[1]), np.float32)
    )

    def along(columns: slice) -> None:
        found = (
            rows[:, columns] if through is None else products.product(through, np.ascontiguousarray(rows[:, columns]))
        )
        made[:, columns] = np.clip(found, lowest, highest) if clips and axis is None else found

    workers.run(along, blocks(rows.shape[1], COLUMNS))
    if not target.flags.c_contiguous:
        target[...] = made.reshape(target.shape)


def _matrices(how: Resampling, old: Sequence[int], new: Sequence[int], axis: int | None) -> list[AnyArray | None]:
    """The matrix of each axis, float32 (new, old); None where an axis stays as it is."""
    found: list[AnyArray | None] = []
    for current, (before, after) in enumerate(zip(old, new, strict=True)):
        if before == after:
            found.append(None)
        elif isinstance(how, InterpolationModes):
            found.append(_interpolation(how, before, after, None if axis is None else current == axis).matrix(before))
        elif current == axis:
            found.append(spline_apart(before, after, how.order_z).astype(np.float32))
        else:
            found.append(spline(before, after, how.order).astype(np.float32))
    return found


def _labels_as_numbers(channel: AnyArray, shape: Sequence[int], how: Resampling, axis: int | None) -> AnyArray:
    """A label map (z, y, x) on another grid, as numbers: float64 of splines, float32 of PyTorch's interpolation."""
    if isinstance(how, InterpolationModes):
        result = channel.astype(np.float32)
        every = interpolations(how, channel.shape, shape, axis)
        for current in reversed(range(len(every))):
            result = every[current].apply(result, current)
        return result
    if axis is None:
        return _zoomed(channel, shape, how.order)
    flat = [size for other, size in enumerate(shape) if other != axis]
    volume = np.stack([_zoomed(plane, flat, how.order) for plane in np.moveaxis(channel, axis, 0)], axis)
    return _deepened(volume, shape[axis], how.order_z, axis)


def resample_labels(labels: AnyArray, shape: Sequence[int], how: Resampling, axis: int | None) -> AnyArray:
    """Resample a label map to another shape.

    Each label's mask is resampled, and each voxel takes the label whose mask is largest there. What it takes of equal
    ones, or where a label map is resampled as numbers, is nnU-Net's choice for the function in question.

    Args:
        labels: The label map, integers (z, y, x).
        shape: The new shape.
        how: How it is resampled.
        axis: The result of ``low_resolution_axis``.

    Returns:
        The resampled label map, of the same type.
    """
    if not how.resamples or tuple(shape) == labels.shape:
        return labels
    if not how.as_labels:  # the type cuts off what follows the point
        return _labels_as_numbers(labels, shape, how, axis).astype(labels.dtype)
    if isinstance(how, InterpolationModes):
        return _interpolated_labels(labels, shape, how, axis)
    if axis is None:
        return _zoomed_labels(labels, shape, how.order)
    flat = [size for other, size in enumerate(shape) if other != axis]
    volume = np.stack([_zoomed_labels(plane, flat, how.order) for plane in np.moveaxis(labels, axis, 0)], axis)
    if how.order_z == 0 or shape[axis] == volume.shape[axis]:
        return _deepened(volume, shape[axis], 0, axis)
    result = np.zeros(tuple(shape), labels.dtype)
    for value in np.unique(volume):
        mask = (volume == value).astype(np.float64)
        result[np.round(_deepened(mask, shape[axis], how.order_z, axis)) > 0.5] = value
    return result


def _interpolated_labels(labels: AnyArray, shape: Sequence[int], how: InterpolationModes, axis: int | None) -> AnyArray:
    """Resample a label map as PyTorch interpolates: within the planes, then along the axis apart, or all at once."""
    every = dict(enumerate(interpolations(how, labels.shape, shape, axis)))
    if axis is None:
        return _vote(labels, every, by_majority=how.by_majority)
    planes = {current: interpolation for current, interpolation in every.items() if current != axis}
    return _vote(_vote(labels, planes, by_majority=how.by_majority), {axis: every[axis]}, by_majority=how.by_majority)


SCALE = 1000
"""What nnU-Net multiplies the masks of labels with, which it then compares in float16."""


def _vote(labels: AnyArray, every: Mapping[int, LinearInterpolation], *, by_majority: bool) -> AnyArray:
    """Interpolate each label's mask along some axes, and take the label that has most of a voxel.

    Of labels that have as much of it, the lowest one is taken; the last one above 70 % wins at once. By majority, a
    voxel takes the last label that has more than half of it, or 0.
    """
    if all(len(found.index) == labels.shape[axis] for axis, found in every.items()):
        return labels
    shape = tuple(len(every[axis].index) if axis in every else size for axis, size in enumerate(labels.shape))
    result, best = np.zeros(shape, labels.dtype), np.full(shape, -np.inf, np.float16)
    decided = np.zeros(shape, bool)
    for value in np.unique(labels):
        score = (labels == value).astype(np.float32)
        if not by_majority:
            score *= SCALE
        for axis in sorted(every, reverse=True):
            score = every[axis].apply(score, axis)
        if by_majority:
            result[score > 0.5] = value
            continue
        score = score.astype(np.float16)
        sure = score > 0.7 * SCALE
        result[sure | (~decided & (score > best))] = value
        np.maximum(best, score, out=best)
        decided |= sure
    return result


def _deepened(volume: AnyArray, depth: int, order: int, axis: int) -> AnyArray:
    """Resample a volume (z, y, x) to ``depth`` slices along one axis, by splines."""
    from scipy.ndimage import map_coordinates

    if depth == volume.shape[axis]:
        return volume
    positions = centres(volume.shape[axis], depth)
    if order == 0:
        slices: AnyArray = np.arange(volume.shape[axis], dtype=np.float64)
        index = map_coordinates(slices, [positions], order=0, mode="nearest").astype(np.int64)
        taken: AnyArray = np.take(volume, index, axis)
        return taken
    along = [np.arange(size, dtype=np.float64) for size in volume.shape]
    along[axis] = positions
    result: AnyArray = map_coordinates(volume, np.meshgrid(*along, indexing="ij"), order=order, mode="nearest")
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
