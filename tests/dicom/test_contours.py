"""Contours hold the centres of a mask's pixels and no other, whatever its holes are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage
from skimage.draw import polygon2mask

from segonnx.dicom.contours import polygons


def inside(ring: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The pixels whose centres a polygon holds, by counting crossings."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    found = np.zeros(shape, bool)
    for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        if y0 != y1:
            crossed = ((y0 <= y) & (y < y1)) | ((y1 <= y) & (y < y0))
            found ^= crossed & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return found


def area(ring: np.ndarray) -> float:
    x, y = ring.T
    return abs(float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y))) / 2


masks = arrays.arrays(bool, st.tuples(st.integers(1, 14), st.integers(1, 14)))


@settings(max_examples=200, deadline=None)
@given(masks)
def test_every_centre_is_in_one_polygon_or_in_none(mask: np.ndarray) -> None:
    counts = sum((inside(ring, mask.shape).astype(int) for ring in polygons(mask)), np.zeros(mask.shape, int))
    np.testing.assert_array_equal(counts, mask.astype(int))


@settings(max_examples=100, deadline=None)
@given(masks)
def test_the_area_is_that_of_the_pixels_but_half_a_pixel_for_each_outline(mask: np.ndarray) -> None:
    rings = polygons(mask)
    # A pixel that meets another at a corner alone is apart from it; so is a hole from the outside.
    outlines = ndimage.label(mask)[1]
    around = np.pad(~mask, 1, constant_values=True)
    holes = ndimage.label(around, np.ones((3, 3)))[1] - 1
    assert len(rings) == outlines
    assert sum(map(area, rings)) == pytest.approx(mask.sum() - 0.5 * outlines + 0.5 * holes)


def test_rings_in_rings_are_keyholes() -> None:
    y, x = np.mgrid[:61, :61]
    far = np.hypot(y - 30, x - 30)
    mask = ((far // 5) % 2 == 0) & (far < 30)
    mask[30, 20:40] ^= True
    rings = polygons(mask)
    assert len(rings) == ndimage.label(mask)[1]
    drawn = np.zeros(mask.shape, bool)
    for ring in rings:
        assert not drawn[polygon2mask(mask.shape, ring[:, ::-1])].any()
        drawn |= polygon2mask(mask.shape, ring[:, ::-1])
    np.testing.assert_array_equal(drawn, mask)


def test_straight_lines_have_no_idle_points() -> None:
    mask = np.zeros((20, 30), bool)
    mask[3:15, 4:26] = True
    (ring,) = polygons(mask)
    assert len(ring) == 8
    assert polygons(np.zeros((4, 5), bool)) == []
