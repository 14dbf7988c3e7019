"""Vertebrae of TotalSegmentator's task ``vertebrae_pp``: numbered anew where their labels touch, and grown.

Its network was trained on bodies that were made smaller, so that no two of them touch. Facts from TotalSegmentator
2.18.0 (postprocessing.py). Arrays are (z, y, x), z from feet to head.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from segonnx.predict.interpolation import AnyArray


def number(labels: AnyArray, values: Sequence[int], spacing: AnyArray, mm3: float, mm: float) -> AnyArray:
    """Number vertebrae by their order where two labels touch, then grow each.

    Args:
        labels: The label map, uint8 (z, y, x).
        values: The labels of the vertebrae, from the topmost to the lowest.
        spacing: The spacing (z, y, x) in mm, float32.
        mm3: Components that are smaller are dropped where vertebrae are numbered.
        mm: By how much each is grown.

    Returns:
        A new label map.
    """
    if _touch(labels):
        labels = _by_order(labels, values, mm3 / float(np.prod(spacing)))
    return grow(labels, values, spacing, mm)


def grow(labels: AnyArray, values: Sequence[int], spacing: AnyArray, mm: float) -> AnyArray:
    """Grow each label into the background around it, one after another.

    Args:
        labels: The label map, uint8 (z, y, x).
        values: The labels that grow.
        spacing: The spacing (z, y, x) in mm, float32.
        mm: By how much.

    Returns:
        A new label map.
    """
    from scipy import ndimage

    ball = _ball(spacing, mm)
    reach = [int(np.ceil(np.float32(mm) / size)) for size in spacing]
    result, boxes = labels.copy(), ndimage.find_objects(labels)
    for value in sorted(values):
        box = boxes[value - 1] if value <= len(boxes) else None
        if box is None:
            continue
        around = tuple(
            slice(max(one.start - room, 0), min(one.stop + room, size))
            for one, room, size in zip(box, reach, labels.shape, strict=True)
        )
        grown = ndimage.binary_dilation(labels[around] == value, structure=ball)
        inside = result[around]
        inside[(inside == 0) & grown] = value
    return result


def _touch(labels: AnyArray) -> bool:
    """Whether two labels share a face."""
    for axis in range(labels.ndim):
        first, second = (np.moveaxis(labels, axis, 0)[part] for part in (slice(1, None), slice(None, -1)))
        if np.any((first > 0) & (second > 0) & (first != second)):
            return True
    return False


def _by_order(labels: AnyArray, values: Sequence[int], least: float) -> AnyArray:
    """Components that are large enough, numbered from the lowest up; from the top where only that is there."""
    from scipy import ndimage

    result = np.zeros_like(labels)
    # TotalSegmentator's arrays are (x, y, z): components of the same height keep the order that they have there.
    components = ndimage.label((labels > 0).T)[0].T
    sizes = np.bincount(components.ravel())
    kept = np.flatnonzero(sizes >= least)
    kept = kept[kept != 0]
    mask = np.isin(components, kept)
    present = set(np.unique(labels[mask]).tolist()) & set(values)
    if not present:
        return result
    heights = [centre[0] for centre in ndimage.center_of_mass(mask, components, kept)]
    from_top = values[-1] not in present and values[0] in present
    order = np.argsort([-height for height in heights] if from_top else heights, kind="stable")
    numbers = range(values[0], max(values) + 1) if from_top else range(max(present), min(values) - 1, -1)
    for place, value in zip(order, numbers, strict=False):
        result[components == kept[place]] = value
    return result


def _ball(spacing: AnyArray, mm: float) -> AnyArray:
    """The voxels (z, y, x) within so many mm of one, as TotalSegmentator draws them: from one edge of the ball on."""
    radii = [np.float32(mm) / size for size in spacing[::-1]]
    grids = np.ogrid[tuple(slice(-radius, radius + 1) for radius in radii)]
    inside = sum((grid * grid) / (radius * radius) for grid, radius in zip(grids, radii, strict=True)) <= 1
    return np.asarray(inside).T
