from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nnunetv2.preprocessing.resampling import default_resampling, resample_torch
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg, resample_data_or_seg_to_shape
from skimage.transform import resize

from segonnx.errors import InputError
from segonnx.predict import config, resampling
from segonnx.predict.config import InterpolationModes, SplineOrders
from segonnx.predict.interpolation import LinearInterpolation

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
@given(old=st.tuples(SIZES, SIZES, SIZES), new=st.tuples(SIZES, SIZES, SIZES), order=st.integers(0, 5))
def test_images_are_resampled_as_by_skimage(old: tuple[int, int, int], new: tuple[int, int, int], order: int) -> None:
    image = np.random.default_rng(0).standard_normal((2, *old)).astype(np.float32)
    found = resampling.resample(image, new, SplineOrders(resamples=True, order=order, order_z=0, separate_z=None), None)
    for channel, target in zip(image, found, strict=True):
        expected = resize(channel.astype(np.float64), new, order, mode="edge", anti_aliasing=False)
        np.testing.assert_allclose(target, expected, rtol=0, atol=1e-5)


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


# What a plan may say of resampling, and nnU-Net's own function with these arguments as the judge.

SHAPES = st.tuples(SIZES, SIZES, SIZES)
SPACINGS = st.tuples(*[st.sampled_from([0.4, 0.7, 1.0, 2.5, 6.0])] * 3)
COMMON = {
    "force_separate_z": st.sampled_from([None, True, False]),
    "separate_z_anisotropy_threshold": st.sampled_from([1, 2.4, 20]),
}
SPLINES = st.fixed_dictionaries(
    {}, optional={**COMMON, "is_seg": st.just(False), "order": st.integers(0, 5), "order_z": st.integers(0, 5)}
)
INTERPOLATION = st.fixed_dictionaries(
    {},
    optional={
        **COMMON,
        "is_seg": st.just(False),
        "mode": st.sampled_from(config.PLANE_MODES),
        "aniso_axis_mode": st.sampled_from(config.AXIS_MODES),
        "memefficient_seg_resampling": st.booleans(),
        "num_threads": st.just(1),
        "device": st.just("cpu"),
    },
)
OF_LABELS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    config.SPLINES: {
        **COMMON, "is_seg": st.booleans(), "order": st.integers(0, 3), "order_z": st.integers(0, 3),
    },
    config.INTERPOLATION: {
        **COMMON, "is_seg": st.booleans(), "mode": st.sampled_from(config.PLANE_MODES),
        "aniso_axis_mode": st.sampled_from(config.AXIS_MODES), "memefficient_seg_resampling": st.booleans(),
    },
}  # fmt: skip


def _how(what: str, function: str, arguments: dict[str, Any]) -> config.Resampling:
    return config._resampling({what: {"function": function, "arguments": arguments}}, what, "here")


def _ours(array: Any, new: Any, how: config.Resampling, current: Any, wanted: Any) -> Any:
    axis = resampling.low_resolution_axis(how, current, wanted)
    if array.ndim == 4:
        return resampling.resample(array, new, how, axis)
    return resampling.resample_labels(array, new, how, axis)


@settings(max_examples=80, deadline=None)
@given(old=SHAPES, new=SHAPES, current=SPACINGS, wanted=SPACINGS, arguments=SPLINES)
def test_images_are_resampled_with_every_argument_of_nnunets_splines(
    old: Any, new: Any, current: Any, wanted: Any, arguments: dict[str, Any]
) -> None:
    image = np.random.default_rng(0).standard_normal((2, *old)).astype(np.float32)
    expected = resample_data_or_seg_to_shape(image, new, current, wanted, **arguments)
    found = _ours(image, new, _how("data", config.SPLINES, arguments), current, wanted)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(image).max())  # means can be small


@settings(max_examples=120, deadline=None)
@given(old=SHAPES, new=SHAPES, current=SPACINGS, wanted=SPACINGS, arguments=INTERPOLATION)
def test_images_are_interpolated_with_every_argument_of_nnunets_torch_function(
    old: Any, new: Any, current: Any, wanted: Any, arguments: dict[str, Any]
) -> None:
    image = np.random.default_rng(0).standard_normal((2, *old)).astype(np.float32)
    expected = resample_torch.resample_torch_fornnunet(image, new, current, wanted, **{"num_threads": 1} | arguments)
    found = _ours(image, new, _how("data", config.INTERPOLATION, arguments), current, wanted)
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    # Logits go the same way, axis by axis.
    how = _how("probabilities", config.INTERPOLATION, arguments)
    for axis, one in enumerate(
        resampling.interpolations(how, old, new, resampling.low_resolution_axis(how, current, wanted))
    ):
        image = one.apply(image, axis + 1)
    np.testing.assert_allclose(image, expected, rtol=0, atol=1e-5)


def _undecided(labels: Any, new: Any, how: config.Resampling, axis: int | None = None) -> Any:
    """The voxels whose label hangs on the last digit of what they have of two labels: nnU-Net adds up in another order.

    It compares in float16 where no majority is asked for. Planes are decided before the axis that is apart.
    """
    assert isinstance(how, InterpolationModes)
    every = dict(enumerate(resampling.interpolations(how, labels.shape, new, axis)))
    if axis is None:
        return _ties(labels, every, by_majority=how.by_majority)
    planes = {other: one for other, one in every.items() if other != axis}
    between = [size if other == axis else new[other] for other, size in enumerate(labels.shape)]
    columns = _ties(labels, planes, by_majority=how.by_majority).any(axis, keepdims=True)
    decided = _ours(labels, between, how, (1, 1, 1), [9 if other == axis else 1 for other in range(3)])
    return columns | _ties(decided, {axis: every[axis]}, by_majority=how.by_majority)


def _ties(labels: Any, every: dict[int, LinearInterpolation], *, by_majority: bool) -> Any:
    shares = np.stack([labels == value for value in np.unique(labels)]).astype(np.float64)
    for axis, one in every.items():
        shares = np.moveaxis(
            np.tensordot(shares, one.matrix(labels.shape[axis]).astype(np.float64), (axis + 1, 1)), -1, axis + 1
        )
    if by_majority:
        return np.any(np.abs(shares - 0.5) < 1e-6, axis=0)
    largest = np.sort(shares, axis=0)
    return (np.diff(largest[-2:], axis=0).min(axis=0, initial=1) < 1e-3) | np.any(np.abs(shares - 0.7) < 1e-3, axis=0)


@settings(max_examples=60, deadline=None)
@given(
    old=SHAPES, new=SHAPES, spacing=SPACINGS, mode=st.sampled_from(config.AXIS_MODES), labels=st.booleans(),
    majority=st.booleans(),
)  # fmt: skip
def test_all_axes_together_are_interpolated_as_by_nnunets_simple_function(
    old: Any, new: Any, spacing: Any, mode: str, labels: bool, majority: bool
) -> None:
    arguments = {"mode": mode, "memefficient_seg_resampling": majority, "num_threads": 1, "device": "cpu"}
    rng = np.random.default_rng(0)
    if labels:
        array = rng.integers(-1, 4, old).astype(np.int16)
        expected = resample_torch.resample_torch_simple(array[None], new, is_seg=True, **arguments)
        how = _how("seg", config.TOGETHER, {**arguments, "is_seg": True})
        found = _ours(array, new, how, spacing, spacing)
        differ = found != expected[0].astype(np.int16)
        assert not np.any(differ & ~_undecided(array, new, how))
        return
    image = rng.standard_normal((2, *old)).astype(np.float32)
    expected = resample_torch.resample_torch_simple(image, new, **arguments)
    found = _ours(image, new, _how("data", config.TOGETHER, arguments), spacing, spacing)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(old=SHAPES, new=SHAPES, current=SPACINGS, wanted=SPACINGS, arguments=SPLINES)
def test_logits_are_resampled_with_every_argument_of_splines_that_go_by_slices(
    old: Any, new: Any, current: Any, wanted: Any, arguments: dict[str, Any]
) -> None:
    arguments = {"order": 1, **arguments}
    arguments["order"] %= 2
    arguments["order_z"] = arguments.get("order_z", 0) % 2
    logits = np.random.default_rng(0).standard_normal((2, *old)).astype(np.float32)
    expected = resample_data_or_seg_to_shape(logits, new, current, wanted, **arguments)
    how = _how("probabilities", config.SPLINES, arguments)
    axis = resampling.low_resolution_axis(how, current, wanted)
    for number, one in enumerate(resampling.interpolations(how, old, new, axis)):
        logits = one.apply(logits, number + 1)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)


@settings(max_examples=120, deadline=None)
@example(
    old=(1, 1, 2), new=(1, 1, 7), current=(0.4, 0.4, 0.4), wanted=(0.4, 2.5, 0.4), seed=0,
    chosen=("resample_torch_fornnunet", {"is_seg": True, "memefficient_seg_resampling": True}),
)  # fmt: skip
@given(
    old=SHAPES, new=SHAPES, current=SPACINGS, wanted=SPACINGS, seed=st.integers(0, 9),
    chosen=st.one_of([
        st.tuples(st.just(name), st.fixed_dictionaries({}, optional=options)) for name, options in OF_LABELS.items()
    ]),
)  # fmt: skip
def test_label_maps_are_resampled_with_every_argument_of_both_functions(
    old: Any, new: Any, current: Any, wanted: Any, seed: int, chosen: tuple[str, dict[str, Any]]
) -> None:
    function, arguments = chosen
    labels = np.random.default_rng(seed).integers(-1, 4, old).astype(np.int16)
    if function == config.SPLINES:
        expected = resample_data_or_seg_to_shape(labels[None], new, current, wanted, **arguments)
    else:
        expected = resample_torch.resample_torch_fornnunet(
            labels[None], new, current, wanted, num_threads=1, **arguments
        ).astype(np.int16)
    how = _how("seg", function, arguments)
    found = _ours(labels, new, how, current, wanted)
    assert found.dtype == labels.dtype
    if function == config.SPLINES and arguments.get("is_seg"):
        np.testing.assert_array_equal(found, expected[0])
    elif arguments.get("is_seg"):
        undecided = _undecided(labels, new, how, resampling.low_resolution_axis(how, current, wanted))
        assert not np.any((found != expected[0]) & ~undecided)
        return
    # As numbers, labels that are rounded to either side of a whole number differ by one.
    assert np.abs(found - expected[0]).max(initial=0) <= 1


@pytest.mark.parametrize(("mode", "size"), [("linear", []), ("bilinear", [3]), ("trilinear", [2, 3])])
def test_weights_are_pytorchs_to_the_last_digit(mode: str, size: list[int]) -> None:
    if torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        pytest.skip("PyTorch rounds twice in two axes, too, on a processor without AVX2")
    for old, new in ((2, 7), (3, 7), (5, 13), (17, 40), (31, 29)):
        voxels = torch.eye(old).reshape(1, old, *[1] * len(size), old).expand(1, old, *size, old)
        expected = torch.nn.functional.interpolate(voxels.contiguous(), size=(*size, new), mode=mode)
        found = LinearInterpolation.torch(mode, old, new).matrix(old)
        np.testing.assert_array_equal(found, expected.reshape(old, -1, new)[:, 0].T)


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "linear", "area"])
def test_interpolation_of_long_axes_takes_the_voxels_that_torch_takes(mode: str) -> None:
    rng = np.random.default_rng(0)
    for old, new in [*rng.integers(1, 700, (60, 2)), (512, 1024), (1024, 512), (7, 700), (700, 7)]:
        x = rng.standard_normal((1, 1, int(old))).astype(np.float32)
        expected = torch.nn.functional.interpolate(torch.from_numpy(x), int(new), mode=mode).numpy()
        found = LinearInterpolation.torch(mode, int(old), int(new)).apply(x, 2)
        if mode.startswith("nearest"):
            np.testing.assert_array_equal(found, expected)
        else:
            np.testing.assert_allclose(found, expected, atol=5e-4)


def test_arguments_that_nnunet_does_not_take_are_refused() -> None:
    for what, function, arguments, text in (
        ("data", config.SPLINES, {"orders": 3}, "takes no argument 'orders'"),
        ("seg", config.INTERPOLATION, {"order": 1}, "takes no argument 'order'"),
        ("data", "no_resampling_hack", {"mode": "linear"}, "takes no argument 'mode'"),
        ("data", "resample_data_or_seg", {}, "is 'resample_data_or_seg'; segonnx predict knows"),
        ("data", config.TOGETHER, {"force_separate_z": True}, "takes no argument 'force_separate_z'"),
        ("data", config.TOGETHER, {"mode": "bicubic"}, "mode = 'bicubic'"),
        ("data", config.SPLINES, {"order": 6}, "order = 6; segonnx predict takes a whole number from 0 to 5"),
        ("data", config.SPLINES, {"order": "3"}, "order = '3'"),
        ("data", config.SPLINES, {"order_z": -1}, "order_z = -1"),
        ("data", config.SPLINES, {"order": None}, "order = None"),
        ("data", config.SPLINES, {"force_separate_z": "no"}, "true, false or null"),
        ("data", config.SPLINES, {"separate_z_anisotropy_threshold": None}, "takes a number"),
        ("data", config.SPLINES, {"separate_z_anisotropy_threshold": "NaN"}, "takes a number"),
        ("data", config.SPLINES, {"is_seg": True}, "neither images nor logits are labels"),
        ("probabilities", config.INTERPOLATION, {"is_seg": True}, "neither images nor logits are labels"),
        ("probabilities", config.SPLINES, {"order": 3}, "order = 3; segonnx predict takes 0 or 1 for logits"),
        ("probabilities", config.SPLINES, {"order": 1, "order_z": 3, "force_separate_z": None}, "order_z = 3"),
        ("data", config.INTERPOLATION, {"mode": "trilinear"}, "mode = 'trilinear'"),
        ("data", config.INTERPOLATION, {"aniso_axis_mode": "bicubic"}, "aniso_axis_mode = 'bicubic'"),
    ):
        with pytest.raises(InputError, match=text) as caught:
            _how(what, function, arguments)
        assert "\n" not in str(caught.value)
    # What decides on nothing is taken.
    how = _how("probabilities", config.SPLINES, {"order": 1, "order_z": 3, "force_separate_z": False})
    assert how == SplineOrders(True, 1, 3, False, as_labels=False)
    how = _how("data", config.INTERPOLATION, {"num_threads": 4, "device": "cuda"})
    assert how == InterpolationModes("linear", "nearest-exact", None, as_labels=False)


def test_the_axis_apart_is_that_of_nnunet() -> None:
    sizes = (0.4, 1.0, 1.0, 2.5, 6.0)
    rng = np.random.default_rng(0)
    for force in (None, True, False):
        for threshold in (1, 2.4, 3, 20):
            how = SplineOrders(True, 3, 0, force, threshold)
            for current, wanted in rng.choice(sizes, (60, 2, 3)):
                _, axis = default_resampling.determine_do_sep_z_and_axis(force, current, wanted, threshold)
                assert resampling.low_resolution_axis(how, current, wanted) == axis


@pytest.mark.parametrize("size", [1, 2, 7])
def test_an_axis_that_stays_is_left_alone(size: int) -> None:
    array = np.random.default_rng(0).standard_normal((3, size)).astype(np.float32)
    for one in (LinearInterpolation.between(size, size), LinearInterpolation.torch("linear", size, size)):
        assert one.identity and one.apply(array, 1) is array


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
