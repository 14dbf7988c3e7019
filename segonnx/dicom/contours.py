"""The outlines of a mask, as polygons whose holes are keyholes.

contourpy draws the lines at 0.5 between the centres of pixels: they pass half a pixel from each, so that every centre
of the mask is inside, and no other. A hole becomes part of the polygon around it by a channel without width, which
runs along the row of the hole's rightmost point to the next line there. On its way all pixels are the mask's, so that
it crosses nothing; and that line has a point just there.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def polygons(mask: Mask) -> list[Points]:
    """The outlines of a mask.

    Args:
        mask: The mask, (rows, columns).

    Returns:
        The polygons, (points, 2) as (column, row), where whole numbers are the centres of pixels. Each is closed: its
        last point is followed by its first one.
    """
    from contourpy import FillType, contour_generator

    if not mask.any():
        return []
    padded = np.pad(mask.astype(np.float64), 1)
    lines = contour_generator(z=padded, fill_type=FillType.OuterOffset).filled(0.5, np.inf)
    found = []
    for points, offsets in zip(*lines, strict=True):
        rings = [points[begin : end - 1] - 1 for begin, end in itertools.pairwise(offsets)]
        found.append(_without_idle_points(_joined(rings)))
    return found


def _joined(rings: list[Points]) -> Points:
    """One polygon of an outline and its holes."""
    holes = sorted(rings[1:], key=lambda ring: float(ring[:, 0].max()))
    whole = rings[0]
    while holes:
        # The rightmost hole's channel meets the outline, or a hole that is part of it already.
        hole = holes.pop()
        start = int(hole[:, 0].argmax())
        x, y = hole[start]
        ahead = np.flatnonzero((whole[:, 1] == y) & (whole[:, 0] > x))
        end = int(ahead[whole[ahead, 0].argmin()])
        around = np.concatenate([hole[start:], hole[: start + 1]])
        whole = np.concatenate([whole[: end + 1], around, whole[end:]])
    return whole


def _without_idle_points(ring: Points) -> Points:
    """A polygon without the points on straight lines between others."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    back = (before * after).sum(axis=1) < 0  # the end of a channel
    kept: Points = ring[turns | back]
    return kept
