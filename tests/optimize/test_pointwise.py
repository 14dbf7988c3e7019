"""Pointwise convolutions: before upsamplings, and merged with the layer before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from segonnx import optimize
from segonnx.optimize import reading
from segonnx.optimize.choices import Choices
from segonnx.optimize.commute_upsampling import CommuteUpsamplingPass
from segonnx.optimize.merge_pointwise import MergePointwisePass
from tests.optimize.graphs import Graph, check, few, operators, run

LINEAR = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
EXACT = 1e-6
"""Of the largest error of sums in another order, relative to the standard deviation of the values."""


def enlarged(graph: Graph, value: str, shape: list[int], **attributes: Any) -> str:
    """A value as large as this: a Resize by sizes."""
    name = f"sizes{len(graph.nodes)}"
    graph.weights.append(numpy_helper.from_array(np.array(shape, np.int64), name))
    return graph.add("Resize", value, "", "", name, **(attributes or LINEAR))


def order(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@few
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.sampled_from([2, 3]), st.booleans())
def test_upsampling_commutes_with_pointwise_convolutions(
    batch: int, inputs: int, outputs: int, axes: int, bias: bool
) -> None:
    graph = Graph([batch, inputs, *[3, 4, 5][:axes]])
    graph.weights.append(numpy_helper.from_array(np.array([1, 1, *[2, 3, 2][:axes]], np.float32), "scales"))
    graph.add("Resize", "x", "", "scales", mode="nearest", nearest_mode="floor")
    weights = [graph.weight(outputs, inputs, *[1] * axes)] + ([graph.weight(outputs)] if bias else [])
    graph.add("Conv", graph.last, *weights)
    model = check(graph, CommuteUpsamplingPass(), 1e-6)
    assert [node.op_type for node in model.graph] == ["Conv", "Resize"]


def test_making_an_image_smaller_does_not_commute() -> None:
    graph = Graph([1, 2, 4, 4])
    graph.weights.append(numpy_helper.from_array(np.array([1, 1, 0.5, 0.5], np.float32), "scales"))
    graph.add("Conv", graph.add("Resize", "x", "", "scales", mode="nearest"), graph.weight(2, 2, 1, 1))
    model = check(graph, CommuteUpsamplingPass(), 0)
    assert [node.op_type for node in model.graph] == ["Resize", "Conv"]


def test_upsampling_that_others_use_stays() -> None:
    graph = Graph([1, 2, 4, 4])
    graph.weights.append(numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales"))
    large = graph.add("Resize", "x", "", "scales", mode="nearest")
    graph.add("Add", graph.add("Conv", large, graph.weight(2, 2, 1, 1)), large)
    model = check(graph, CommuteUpsamplingPass(), 0)
    assert [node.op_type for node in model.graph] == ["Resize", "Conv", "Add"]


@few
@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([2, 3]),
    st.lists(st.integers(0, 4), min_size=3, max_size=3),
    st.sampled_from(["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]),
    st.sampled_from(["linear", "cubic", "nearest"]),
)
def test_any_upsampling_commutes(
    outputs: int, more: int, axes: int, growth: list[int], coordinates: str, mode: str
) -> None:
    if mode == "cubic" and axes == 3:
        mode = "linear"  # ONNX Runtime has no cubic upsampling of volumes
    inputs, sizes = outputs + more - 1, [3, 4, 5][:axes]
    graph = Graph([2, inputs, *sizes])
    large = [size + grown for size, grown in zip(sizes, growth[:axes], strict=True)]
    large[0] += 1  # it isn't as large as before
    value = enlarged(graph, "x", [2, inputs, *large], mode=mode, coordinate_transformation_mode=coordinates)
    graph.add("Conv", value, graph.weight(outputs, inputs, *[1] * axes), graph.weight(outputs))
    assert order(check(graph, CommuteUpsamplingPass(), 1e-5)) == ["Conv", "Resize"]


@pytest.mark.parametrize(
    "attributes",
    [
        {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 7.0},
        {"mode": "nearest", "coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 7.0},
    ],
)
def test_upsampling_with_values_from_outside_stays(attributes: dict[str, Any]) -> None:
    graph = Graph([1, 2, 4, 4])
    graph.weights.append(numpy_helper.from_array(np.array([0, 0, -1, -1, 1, 1, 2, 2], np.float32), "region"))
    graph.weights.append(numpy_helper.from_array(np.array([1, 2, 8, 8], np.int64), "sizes"))
    value = graph.add("Resize", "x", "region", "", "sizes", **attributes)
    graph.add("Conv", value, graph.weight(2, 2, 1, 1), graph.weight(2))
    assert order(check(graph, CommuteUpsamplingPass(), 0)) == ["Resize", "Conv"]


def test_upsampling_of_more_channels_than_before_stays() -> None:
    graph = Graph([1, 2, 4, 4])
    graph.add("Conv", enlarged(graph, "x", [1, 2, 8, 8]), graph.weight(3, 2, 1, 1))
    assert order(check(graph, CommuteUpsamplingPass(), 0)) == ["Resize", "Conv"]


def test_upsampling_to_the_same_size_is_left_out() -> None:
    graph = Graph([1, 2, 4, 4])
    graph.add("Relu", enlarged(graph, "x", [1, 2, 4, 4]))
    assert order(check(graph, CommuteUpsamplingPass(), 0)) == ["Relu"]


def test_an_output_that_an_idle_upsampling_gives_keeps_its_name() -> None:
    graph = Graph([1, 2, 4, 4])
    enlarged(graph, graph.add("Relu", "x"), [1, 2, 4, 4])
    assert order(check(graph, CommuteUpsamplingPass(), 0)) == ["Relu", "Resize"]


def pyramid(graph: Graph, outputs: int, *, bias: bool = True, elsewhere: bool = False, group: int = 1) -> str:
    """A pointwise convolution of what convolutions by several strides give, enlarged to one size."""
    size, parts = graph.sizes[2], []
    for channels, stride in ((6, 1), (4, 2), (6, 4), (8, 1)):
        small = graph.add("Conv", "x", graph.weight(channels, 2, stride, stride), strides=[stride] * 2)
        parts.append(small if stride == 1 else enlarged(graph, small, [1, channels, size, size]))
    concat = graph.add("Concat", *parts, axis=1)
    weights = [graph.weight(outputs, 24 // group, 1, 1)] + ([graph.weight(outputs)] if bias else [])
    y = graph.add("Conv", concat, *weights, group=group)
    return graph.add("Add", y, graph.add("ReduceMean", concat)) if elsewhere else y


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("outputs", "resizes"),
    [
        (3, [3, 3]),  # both upsamplings come after their convolutions
        (5, [4, 5]),  # one would get more channels
    ],
)
def test_parts_are_convolved_at_their_own_size(outputs: int, resizes: list[int], bias: bool) -> None:
    graph = Graph([1, 2, 8, 8])
    pyramid(graph, outputs, bias=bias)
    model = check(graph, CommuteUpsamplingPass(), 1e-5)
    found = sorted(reading.shape(node.outputs[0])[1] for node in model.graph if node.op_type == "Resize")
    assert found == sorted(resizes)
    assert operators(model)["Add"] == resizes.count(outputs)
    # What isn't upsampled before is convolved by one convolution: the concatenation of its weights and its values.
    assert operators(model)["Conv"] == 4 + resizes.count(outputs) + 1


@pytest.mark.parametrize("arguments", [{"elsewhere": True}, {"group": 3}])
def test_other_concatenations_of_upsampled_parts_stay(arguments: dict[str, Any]) -> None:
    graph = Graph([1, 2, 8, 8])
    pyramid(graph, 3, **arguments)
    assert not CommuteUpsamplingPass()(graph.model()).modified


def test_parts_that_are_all_upsampled_leave_no_concatenation() -> None:
    graph = Graph([1, 4, 4, 4])
    parts = [enlarged(graph, graph.add("Relu", "x"), [1, 4, 8, 8]) for _ in range(2)]
    graph.add("Conv", graph.add("Concat", *parts, axis=1), graph.weight(3, 8, 1, 1), graph.weight(3))
    found = operators(check(graph, CommuteUpsamplingPass(), 1e-5))
    assert (found["Concat"], found["Conv"], found["Resize"], found["Add"]) == (0, 2, 2, 1)


@few
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5), st.booleans(), st.booleans(), st.sampled_from([2, 3]))
def test_pointwise_convolutions_in_a_row_are_one(
    inputs: int, between: int, outputs: int, first: bool, second: bool, axes: int
) -> None:
    graph, ones = Graph([2, inputs, *[3, 4, 5][:axes]]), [1] * axes
    value = graph.add("Conv", "x", graph.weight(between, inputs, *ones), *([graph.weight(between)] if first else []))
    graph.add("Conv", value, graph.weight(outputs, between, *ones), *([graph.weight(outputs)] if second else []))
    model = check(graph, MergePointwisePass(), 1e-5)
    assert operators(model)["Conv"] == (1 if 2 * inputs * outputs <= between * (inputs + outputs) else 2)


def tokens(graph: Graph, *, bias: bool, swapped: bool = False, turn: tuple[int, ...] = (0, 2, 1)) -> str:
    """A linear layer of an image's pixels, from 3 channels to 6, and a pointwise convolution of what it gives."""
    batch, channels, rows, columns = graph.sizes
    for name, numbers in (("flat", [batch, channels, -1]), ("image", [batch, 6, rows, columns])):
        graph.weights.append(numpy_helper.from_array(np.array(numbers, np.int64), name))
    flat = graph.add("Transpose", graph.add("Reshape", "x", "flat"), perm=turn)
    value = graph.add("MatMul", flat, graph.weight(channels, 6))
    if bias:
        value = graph.add("Add", *((graph.weight(6), value) if swapped else (value, graph.weight(6))))
    image = graph.add("Reshape", graph.add("Transpose", value, perm=[0, 2, 1]), "image")
    return graph.add("Conv", image, graph.weight(5, 6, 1, 1), graph.weight(5))


@pytest.mark.parametrize(("bias", "swapped"), [(True, False), (True, True), (False, False)])
def test_a_linear_layer_of_tokens_is_a_pointwise_convolution(bias: bool, swapped: bool) -> None:
    graph = Graph([2, 3, 4, 5])
    tokens(graph, bias=bias, swapped=swapped)
    found = operators(check(graph, MergePointwisePass(), 1e-5))
    assert found["Conv"] == 1
    assert {"MatMul": 1 + bias, "Transpose": 1} == {name: found[name] for name in ("MatMul", "Transpose")}  # of weights


def _wide(graph: Graph) -> None:
    """Two layers that multiply hardly more than the one that they make: a MobileNet's first, and the next expansion."""
    value = graph.add("Conv", "x", graph.weight(3, 3, 1, 1))
    graph.add("Conv", value, graph.weight(18, 3, 1, 1))


def _active(graph: Graph) -> None:
    value = graph.add("Relu", graph.add("Conv", "x", graph.weight(6, 3, 1, 1)))
    graph.add("Conv", value, graph.weight(3, 6, 1, 1))


def _grouped(graph: Graph) -> None:
    value = graph.add("Conv", "x", graph.weight(3, 1, 1, 1), group=3)
    graph.add("Conv", value, graph.weight(3, 3, 1, 1))


def _spatial(graph: Graph) -> None:
    value = graph.add("Conv", "x", graph.weight(6, 3, 3, 3), pads=[1] * 4)
    graph.add("Conv", value, graph.weight(3, 6, 1, 1))


def _padded(graph: Graph) -> None:
    value = graph.add("Conv", "x", graph.weight(6, 3, 1, 1), graph.weight(6))
    graph.add("Conv", value, graph.weight(3, 6, 1, 1), pads=[1] * 4)


def _shared(graph: Graph) -> None:
    value = graph.add("Conv", "x", graph.weight(3, 3, 1, 1))
    graph.add("Add", graph.add("Conv", value, graph.weight(3, 3, 1, 1)), value)


def _turned(graph: Graph) -> None:
    """Rows of the image take the place of its channels."""
    graph.weights.append(numpy_helper.from_array(np.array([1, 3, 3], np.int64), "flat"))
    graph.weights.append(numpy_helper.from_array(np.array([1, 6, 3, 1], np.int64), "image"))
    flat = graph.add("Transpose", graph.add("Reshape", "x", "flat"), perm=[0, 1, 2])
    value = graph.add("Transpose", graph.add("MatMul", flat, graph.weight(3, 6)), perm=[0, 2, 1])
    graph.add("Conv", graph.add("Reshape", value, "image"), graph.weight(3, 6, 1, 1))


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (_wide, (4, 5)),
        (_active, (4, 5)),
        (_grouped, (4, 5)),
        (_spatial, (4, 5)),
        (_padded, (4, 5)),
        (_shared, (4, 5)),
        (_turned, (3, 1)),
    ],
)
def test_other_layers_in_a_row_stay(make: Callable[[Graph], None], size: tuple[int, int]) -> None:
    graph = Graph([1, 3, *size])
    make(graph)
    model = graph.model()
    before = order(model)
    assert not MergePointwisePass()(model).modified
    assert order(model) == before


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_volumes_stay_slices_where_weights_were_divided_and_merged(mode: str) -> None:
    graph = Graph([1, 1, 8, 16, 16])
    skip = graph.add("Conv", "x", graph.weight(32, 1, 3, 3, 3), pads=[1] * 6)
    small = graph.add("Conv", skip, graph.weight(32, 32, 3, 3, 3), pads=[1] * 6, strides=[2] * 3)
    large = enlarged(graph, graph.add("Relu", small), [1, 32, 8, 16, 16], **(LINEAR | {"mode": mode}))
    weights = graph.weight(32, 64, 1, 1, 1), graph.weight(32)
    value = graph.add("Relu", graph.add("Conv", graph.add("Concat", large, skip, axis=1), *weights))
    for _ in range(2):
        value = graph.add("Conv", value, graph.weight(32, 32, 1, 1, 1))
    graph.add("Conv", value, graph.weight(32, 32, 3, 3, 3), pads=[1] * 6)
    model, x = graph.model(), np.random.default_rng(0).normal(0, 1, graph.sizes).astype(np.float32)
    expected = run(model, x)
    done = optimize.run(model, Choices())
    assert done.passes == ("CommuteUpsamplingPass", "MergePointwisePass", "UnrollDepthPass")
    whole = [node for node in model.graph if node.op_type == "Conv" and len(node.outputs[0].shape or ()) == 5]
    assert whole == []
    assert np.abs(run(model, x) - expected).max() <= 1e-5 * expected.std()
