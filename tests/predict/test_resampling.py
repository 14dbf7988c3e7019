from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg
from skimage.transform import resize

from segonnx.predict import resampling
from segonnx.predict.config import SplineOrders
from segonnx.predict.resampling import LinearInterpolation

LINEAR = SplineOrders(resamples=True, order=1, order_z=0, separate_z=None)
SIZES = st.integers(1, 9)


@settings(max_examples=60, deadline=None)
@given(old=st.tuples(SIZES, SIZES, SIZES), new=st.tuples(SIZES, SIZES, SIZES), seed=st.integers(0, 9))
def test_linear_interpolation_is_skimages_linear_resize(
    old: tuple[int, int, int], new: tuple[int, int, int], seed: int
) -> None:
    image = np.random.default_rng(seed).standard_normal(old).astype(np.float32)
    found = image
    for axis, (before, after) in enumerate(zip(old, new, strict=True)):
        found = LinearInterpolation.between(before, after).apply(found, axis)
    expected = resize(image.astype(np.float64), new, 1, mode="edge", anti_aliasing=False)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(old=st.tuples(SIZES, SIZES, SIZES), new=st.tuples(SIZES, SIZES, SIZES), order=st.integers(0, 3))
def test_images_are_resampled_as_by_skimage(old: tuple[int, int, int], new: tuple[int, int, int], order: int) -> None:
    image = np.random.default_rng(0).standard_normal((2, *old)).astype(np.float32)
    found = resampling.resample(image, new, SplineOrders(resamples=True, order=order, order_z=0, separate_z=None), None)
    for channel, target in zip(image, found, strict=True):
        expected = resize(channel.astype(np.float64), new, order, mode="edge", anti_aliasing=False)
        np.testing.assert_array_equal(target, expected.astype(np.float32))


@settings(max_examples=40, deadline=None)
@given(
    old=st.tuples(SIZES, SIZES, SIZES), new=st.tuples(SIZES, SIZES, SIZES), order=st.integers(0, 3),
    axis=st.sampled_from([None, 0, 1, 2]), seed=st.integers(0, 9),
)  # fmt: skip
def test_label_maps_are_resampled_as_by_nnunet(
    old: tuple[int, int, int], new: tuple[int, int, int], order: int, axis: int | None, seed: int
) -> None:
    labels = np.random.default_rng(seed).integers(-1, 4, old).astype(np.int16)
    for order_z in (0, 1):
        orders = SplineOrders(resamples=True, order=order, order_z=order_z, separate_z=None)
        expected = resample_data_or_seg(
            labels[None], new, is_seg=True, axis=axis, order=order, do_separate_z=axis is not None, order_z=order_z
        )
        np.testing.assert_array_equal(resampling.resample_labels(labels, new, orders, axis), expected[0])


@pytest.mark.parametrize(("old", "new"), [(5, 12), (12, 5), (7, 7), (1, 4), (4, 1)])
def test_nearest_interpolation_takes_the_nearest_voxel(old: int, new: int) -> None:
    found = LinearInterpolation.between(old, new, nearest=True).apply(np.arange(old, dtype=np.float32), 0)
    expected = np.clip(np.floor((np.arange(new) + 0.5) * old / new - 0.5 + 0.5), 0, old - 1)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("current", "wanted", "separate", "axis"),
    [
        ((5.0, 1.0, 1.0), (5.0, 1.0, 1.0), None, 0),
        ((1.0, 1.0, 1.0), (1.0, 1.0, 4.0), None, 2),
        ((1.0, 1.0, 1.0), (3.0, 1.0, 1.0), None, None),
        ((5.0, 5.0, 1.0), (1.0, 1.0, 1.0), None, None),
        ((5.0, 1.0, 1.0), (5.0, 1.0, 1.0), False, None),
        ((2.0, 1.0, 1.0), (1.0, 1.0, 1.0), True, 0),
        ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), True, None),
    ],
)
def test_an_axis_of_low_resolution_is_found(
    current: tuple[float, ...], wanted: tuple[float, ...], separate: bool | None, axis: int | None
) -> None:
    assert resampling.low_resolution_axis(SplineOrders(True, 3, 0, separate), current, wanted) == axis


def test_the_box_of_nonzero_voxels_holds_their_holes() -> None:
    image = np.zeros((2, 5, 6, 7))
    image[0, 1:4, 1:4, 2:5] = 1
    image[0, 2, 2, 3] = 0
    image[1, 3, 4, 5] = 2
    mask, box = resampling.nonzero(image)
    assert box == (slice(1, 4), slice(1, 5), slice(2, 6))
    assert not mask[2, 2, 3]
    filled = resampling.filled(mask)
    assert filled[2, 2, 3]
    assert filled.sum() == 27 + 1
    mask, box = resampling.nonzero(np.zeros((1, 2, 3, 4)))
    assert box == (slice(0, 2), slice(0, 3), slice(0, 4))


def test_an_image_of_the_wanted_shape_is_left_alone() -> None:
    image = np.random.default_rng(0).standard_normal((1, 3, 4, 5)).astype(np.float32)
    assert resampling.resample(image, (3, 4, 5), LINEAR, None) is image
    kept = SplineOrders(resamples=False, order=3, order_z=0, separate_z=None)
    assert resampling.resample(image, (9, 9, 9), kept, None) is image
