"""The rewrite of 3D operators, over random networks of a few layers, against the graph as it was."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from segonnx.optimize import unroll_depth
from segonnx.optimize.algorithms import winograd4
from segonnx.optimize.choices import Choices
from segonnx.optimize.pointwise_head import PointwiseHeadPass
from segonnx.optimize.unroll_depth import UnrollDepthPass
from segonnx.optimize.volumes import chunks_of
from tests.optimize.graphs import RNG, Graph, check, few, input_of, operators, producer_of, run, weight_of


class Always(dict[str, str]):
    """One algorithm for every layer that it can make."""

    def __init__(self, algorithm: str) -> None:
        super().__init__()
        self.algorithm = algorithm

    def get(self, key: str, default: str = "") -> str:  # type: ignore[override]
        return self.algorithm


def no_conv3d(model: ir.Model) -> bool:
    kernels = [node.inputs[1] for node in model.graph if node.op_type == "Conv"]
    inferred = onnx.shape_inference.infer_shapes(ir.to_proto(model)).graph
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in inferred.value_info}
    ranks |= {value.name: len(value.dims) for value in inferred.initializer}
    return all(ranks[kernel.name] == 4 for kernel in kernels if kernel is not None)


def shape_of(value: ir.Value | None) -> tuple[int, ...]:
    """The shape that a rewritten value's numbers have, as ONNX Runtime would infer it."""
    assert value is not None
    return (0,) * 4 if value.shape is None else tuple(int(size) for size in value.shape)  # type: ignore[arg-type]


sizes = st.integers(1, 9)
depths = st.integers(1, 24)
chunks = st.sampled_from([1, 2, 3])
algorithms = st.sampled_from(["winograd", "winograd4"])


@few
@given(
    st.tuples(depths, sizes, sizes), st.tuples(st.integers(1, 5), st.integers(1, 20), st.integers(1, 3)),
    st.tuples(*[st.sampled_from([1, 2, 3])] * 3), st.tuples(*[st.sampled_from([1, 2, 3])] * 3),
    st.tuples(*[st.integers(0, 1)] * 6), st.booleans(), chunks, st.tuples(*[st.sampled_from([1, 1, 2])] * 3),
)  # fmt: skip
def test_any_convolution(
    size: tuple[int, int, int],
    channels: tuple[int, int, int],
    kernel: tuple[int, int, int],
    strides: tuple[int, int, int],
    pads: tuple[int, ...],
    bias: bool,
    chunks: int,
    dilations: tuple[int, int, int],
) -> None:
    inputs, outputs, groups = channels
    extents = [(taps - 1) * apart + 1 for taps, apart in zip(kernel, dilations, strict=True)]
    if any(n + pads[i] + pads[i + 3] < extents[i] for i, n in enumerate(size)):
        return
    graph = Graph([1, inputs * groups, *size])
    weights = [graph.weight(outputs * groups, inputs, *kernel)] + ([graph.weight(outputs * groups)] if bias else [])
    graph.add("Conv", "x", *weights, strides=strides, pads=pads, dilations=dilations, group=groups)
    model = check(graph, UnrollDepthPass(Always("taps"), chunks))
    of_zeros = any(
        not any(0 <= first + k * dilations[0] < size[0] for k in range(kernel[0]))
        for first in range(-pads[0], size[0] + pads[3] - extents[0] + 1, strides[0])
    )
    assert of_zeros or kernel == (1, 1, 1) or no_conv3d(model)


@pytest.mark.parametrize(("channels", "taps", "together"), [(1, 7, True), (1, 5, True), (1, 3, False), (2, 7, False)])
@pytest.mark.parametrize("chunks", [1, 2])
def test_the_taps_of_a_large_kernel_on_few_channels_are_made_together(
    channels: int, taps: int, together: bool, chunks: int
) -> None:
    graph = Graph([1, channels, 8, 9, 10])
    weights = graph.weight(6, channels, taps, 7, 7), graph.weight(6)
    graph.add("Conv", "x", *weights, strides=[2, 2, 2], pads=[taps // 2, 3, 3] * 2)
    model = check(graph, UnrollDepthPass(depth_chunks=chunks))
    assert (operators(model)["Conv"] <= 4) is together


@few
@given(
    st.tuples(st.integers(2, 24), sizes, sizes), st.integers(1, 6), st.integers(1, 20), st.integers(0, 4),
    st.sampled_from([1, 3]), algorithms, chunks,
)  # fmt: skip
def test_the_algorithms_that_take_several_slices_at_a_time(
    size: tuple[int, int, int], inputs: int, outputs: int, skip: int, kernel: int, algorithm: str, chunks: int
) -> None:
    graph = Graph([1, inputs, *size])
    if skip:
        other = graph.add("Conv", "x", graph.weight(skip, inputs, 3, 1, 1), pads=[1, 0, 0, 1, 0, 0])
        graph.add("Concat", "x", other, axis=1)
    weights = graph.weight(outputs, inputs + skip, 3, kernel, kernel), graph.weight(outputs)
    pad = kernel // 2
    graph.add("Conv", graph.last, *weights, pads=[1, pad, pad] * 2)
    model = check(graph, UnrollDepthPass(Always(algorithm), chunks))
    assert no_conv3d(model)


@few
@given(st.integers(1, 8), st.integers(1, 3), st.integers(1, 20), algorithms, chunks)
def test_slices_that_upsampling_repeats_are_computed_once(
    depth: int, factor: int, outputs: int, algorithm: str, chunks: int
) -> None:
    graph = Graph([1, 3, depth, 4, 5])
    skip = graph.add("Conv", "x", graph.weight(3, 3, 3, 3, 3), pads=[1] * 6)
    graph.weights.append(numpy_helper.from_array(np.array([1, 1, factor, 1, 1], np.float32), "scales"))
    large = graph.add("Resize", skip, "", "scales", mode="nearest")
    graph.add("Concat", large, graph.add("Mul", large, large), axis=1)
    graph.add("Conv", graph.last, graph.weight(outputs, 6, 3, 3, 3), graph.weight(outputs), pads=[1] * 6)
    model = check(graph, UnrollDepthPass(Always(algorithm), chunks))
    assert operators(model)["Resize"] == depth / chunks_of(depth, chunks)


@few
@given(
    st.tuples(depths, st.integers(1, 4), st.integers(1, 4)), st.tuples(*[st.integers(1, 3)] * 3), st.integers(1, 4),
    chunks,
)  # fmt: skip
def test_norms_activations_sums_and_upsampling(
    size: tuple[int, int, int], factors: tuple[int, int, int], channels: int, chunks: int
) -> None:
    graph = Graph([1, 2, *size])
    a = graph.add("Conv", "x", graph.weight(channels, 2, 3, 3, 3), pads=[1] * 6)
    if np.prod(size) > 1:  # one voxel has no variance
        graph.add("InstanceNormalization", graph.last, graph.weight(channels), graph.weight(channels), epsilon=1e-3)
    b = graph.add("LeakyRelu", graph.last, alpha=0.1)
    graph.add("Add", a, b)
    weights = graph.weight(channels, 3, *factors), graph.weight(3)
    graph.add("ConvTranspose", graph.last, *weights, strides=factors)
    scales = numpy_helper.from_array(np.array([1, 1, *factors], np.float32), "scales")
    graph.weights.append(scales)
    graph.add("Resize", graph.last, "", "scales", mode="nearest")
    graph.add("Conv", graph.last, graph.weight(4, 3, 1, 1, 1))
    model = check(graph, UnrollDepthPass(depth_chunks=chunks), 2e-4)
    assert operators(model)["InstanceNormalization"] == 0


@pytest.mark.parametrize(
    ("depth", "chunks", "found"),
    [
        (64, 2, 2),
        (8, 2, 2),
        (6, 2, 1),
        (9, 2, 1),
        (12, 2, 1),
        (10, 2, 2),
        (20, 2, 1),
        (24, 3, 3),
        (16, 4, 4),
        (64, 1, 1),
    ],
)
def test_deep_volumes_are_divided_into_chunks(depth: int, chunks: int, found: int) -> None:
    """But not where a chunk would be short, or more slices would be left over by windows of four."""
    graph = Graph([1, 2, depth, 4, 4])
    graph.add("Conv", "x", graph.weight(4, 2, 3, 3, 3), pads=[1] * 6)
    a = graph.add("Relu", graph.last)
    graph.add("Add", graph.add("Conv", a, graph.weight(4, 4, 3, 3, 3), pads=[1] * 6), a)
    model = check(graph, UnrollDepthPass(depth_chunks=chunks))
    assert operators(model)["Relu"] == depth / found


@pytest.mark.parametrize(
    "attributes",
    [{"pads": [3, 0, 0, 0, 0, 0]}, {"auto_pad": "SAME_UPPER"}],
)
def test_other_convolutions_stay(attributes: dict[str, Any]) -> None:
    graph = Graph([1, 4, 8, 8, 8])
    graph.add("Conv", "x", graph.weight(4, 4, 3, 3, 3), **attributes)
    model = check(graph, UnrollDepthPass(), 0)
    assert operators(model) == Counter(["Conv"])


@few
@given(
    st.tuples(st.integers(2, 16), st.integers(1, 5), st.integers(1, 5)), st.integers(0, 8),
    st.tuples(*[st.integers(1, 4)] * 3), st.tuples(*[st.integers(1, 3)] * 3), st.tuples(*[st.integers(0, 2)] * 6),
    st.booleans(), st.booleans(), chunks,
)  # fmt: skip
def test_transposed_convolutions_that_overlap(
    size: tuple[int, int, int],
    channels: int,
    kernel: tuple[int, int, int],
    strides: tuple[int, int, int],
    pads: tuple[int, ...],
    more: bool,
    bias: bool,
    chunks: int,
) -> None:
    channels, groups = channels % 3 + 1, 1 + channels // 3
    pads = tuple(min(pad, kernel[axis % 3] - 1) for axis, pad in enumerate(pads))
    padding = [stride - 1 if more else 0 for stride in strides]
    sizes = [
        (size[i] - 1) * strides[i] + kernel[i] + padding[i] - pads[i] - pads[i + 3] for i in range(3)
    ]  # fmt: skip
    if min(sizes) < 1:
        return
    graph = Graph([1, 2, *size])
    graph.add("Conv", "x", graph.weight(channels * groups, 2, 3, 3, 3), pads=[1] * 6)
    weights = [graph.weight(channels * groups, 3, *kernel), *([graph.weight(3 * groups)] if bias else [])]
    attributes = {"strides": strides, "pads": pads, "output_padding": padding, "group": groups}
    graph.add("ConvTranspose", graph.last, *weights, **attributes)
    graph.add("Relu", graph.last)
    model = check(graph, UnrollDepthPass(depth_chunks=chunks))
    made = {len(shape_of(node.inputs[0])) for node in model.graph if node.op_type == "ConvTranspose"}
    holes = any(
        not any((index + pads[0] - k) in range(0, size[0] * strides[0], strides[0]) for k in range(kernel[0]))
        for index in range(sizes[0])
    )
    assert made == {4} or holes


@few
@given(
    st.tuples(depths, st.integers(1, 4), st.integers(2, 4)), st.integers(1, 3), st.integers(1, 3), chunks,
    st.sampled_from([(), ("Mul",), ("Add",), ("Mul", "Add")]),
)  # fmt: skip
def test_norms_over_groups(
    size: tuple[int, int, int], groups: int, of_each: int, chunks: int, then: tuple[str, ...]
) -> None:
    graph, channels = Graph([1, 2, *size]), groups * of_each
    graph.add("Conv", "x", graph.weight(channels, 2, 3, 3, 3), pads=[1] * 6)
    graph.weights += [
        numpy_helper.from_array(np.array(shape, np.int64), name)
        for name, shape in (("joined", [1, groups, -1]), ("apart", [1, channels, *size]))
    ]
    graph.add("Reshape", graph.last, "joined")
    graph.add("InstanceNormalization", graph.last, graph.weight(groups), graph.weight(groups), epsilon=1e-3)
    graph.add("Reshape", graph.last, "apart")
    for operator in then:
        graph.add(operator, graph.last, graph.weight(channels, 1, 1, 1))
    graph.add("Relu", graph.last)
    model = check(graph, UnrollDepthPass(depth_chunks=chunks), 2e-4)
    assert operators(model)["InstanceNormalization"] == operators(model)["ReduceMin"] == 0
    assert no_conv3d(model)


def test_a_norm_over_groups_of_what_is_no_volume_stays() -> None:
    graph = Graph([1, 4, 6, 5, 5])
    graph.weights += [
        numpy_helper.from_array(np.array(shape, np.int64), name)
        for name, shape in (("joined", [1, 2, -1]), ("apart", [1, 4, 6, 5, 5]))
    ]
    graph.add("InstanceNormalization", graph.add("Reshape", "x", "joined"), graph.weight(2), graph.weight(2))
    graph.add("Reshape", graph.last, "apart")
    graph.add("Conv", graph.last, graph.weight(3, 4, 3, 3, 3), pads=[1] * 6)
    assert operators(check(graph, UnrollDepthPass(), 2e-4))["InstanceNormalization"] == 1


@few
@given(
    st.tuples(depths, st.integers(1, 5), st.integers(1, 5)), st.tuples(*[st.integers(1, 3)] * 3),
    st.sampled_from(["half_pixel", "pytorch_half_pixel"]), chunks,
)  # fmt: skip
def test_linear_upsampling(
    size: tuple[int, int, int], factors: tuple[int, int, int], coordinates: str, chunks: int
) -> None:
    graph = Graph([1, 2, *size])
    graph.add("Conv", "x", graph.weight(3, 2, 3, 3, 3), pads=[1] * 6)
    graph.weights.append(numpy_helper.from_array(np.array([1, 1, *factors], np.float32), "scales"))
    graph.add("Resize", graph.last, "", "scales", mode="linear", coordinate_transformation_mode=coordinates)
    graph.add("Conv", graph.last, graph.weight(3, 3, 3, 3, 3), pads=[1] * 6)
    model = check(graph, UnrollDepthPass(depth_chunks=chunks))
    assert {len(shape_of(node.inputs[0])) for node in model.graph if node.op_type == "Resize"} <= {4}
    assert no_conv3d(model)


@pytest.mark.parametrize("coordinates", ["align_corners", "asymmetric"])
def test_other_linear_upsampling_stays(coordinates: str) -> None:
    graph = Graph([1, 2, 4, 4, 4])
    graph.add("Conv", "x", graph.weight(3, 2, 3, 3, 3), pads=[1] * 6)
    graph.weights.append(numpy_helper.from_array(np.array([1, 1, 2, 2, 2], np.float32), "scales"))
    graph.add("Resize", graph.last, "", "scales", mode="linear", coordinate_transformation_mode=coordinates)
    assert operators(check(graph, UnrollDepthPass()))["Resize"] == 1


@few
@given(
    st.tuples(depths, st.integers(1, 5), st.integers(1, 5)), st.integers(1, 3), chunks, st.booleans(),
    st.sampled_from(["Add", "Sub", "Mul", "Div", "PRelu"]),
    st.sampled_from([(), (1,), (1, 1, 1), ("C", 1, 1, 1), (1, "C", 1, 1, 1), (1, 1, 1, 1, 1)]),
)  # fmt: skip
def test_numbers_of_channels(
    size: tuple[int, int, int], channels: int, chunks: int, first: bool, operator: str, shape: tuple[int | str, ...]
) -> None:
    graph = Graph([1, 2, *size])
    x = graph.add("Relu", graph.add("Conv", "x", graph.weight(channels, 2, 3, 3, 3), pads=[1] * 6))
    sizes = [channels if size == "C" else int(size) for size in shape]
    graph.weights.append(numpy_helper.from_array(RNG.uniform(0.5, 1, sizes).astype(np.float32), "w9"))
    x = graph.add("Exp", x)
    graph.add(operator, *(("w9", x) if first and operator != "PRelu" else (x, "w9")))
    graph.weights += [
        numpy_helper.from_array(np.array(bound, np.float32), name) for name, bound in (("low", 0.1), ("high", 2))
    ]
    graph.add("Clip", graph.last, "low", "high")
    model = check(graph, UnrollDepthPass(depth_chunks=chunks))
    assert operators(model)["Clip"] == size[0] / chunks_of(size[0], chunks)


@few
@given(st.tuples(depths, st.integers(1, 5), st.integers(1, 5)), st.integers(1, 3), chunks, st.booleans())
def test_channels_are_weighed_by_their_means(
    size: tuple[int, int, int], channels: int, chunks: int, pooled: bool
) -> None:
    """Squeeze and excitation: the mean of each channel decides how much of it goes on."""
    graph = Graph([1, 2, *size])
    x = graph.add("Conv", "x", graph.weight(channels, 2, 3, 3, 3), pads=[1] * 6)
    graph.weights.append(numpy_helper.from_array(np.array([2, 3, 4], np.int64), "axes"))
    mean = graph.add("GlobalAveragePool", x) if pooled else graph.add("ReduceMean", x, "axes")
    graph.add("Conv", mean, graph.weight(channels, channels, 1, 1, 1), graph.weight(channels))
    graph.add("Mul", x, graph.add("Sigmoid", graph.last))
    graph.add("BatchNormalization", graph.last, *[graph.weight(channels) for _ in range(3)], _positive(graph, channels))
    model = check(graph, UnrollDepthPass(depth_chunks=chunks), 2e-4)
    assert operators(model)["Sigmoid"] == 1
    assert operators(model)["BatchNormalization"] == size[0] / chunks_of(size[0], chunks)


@pytest.mark.parametrize("axes", [[1], [2], [2, 3], [1, 2, 3, 4]])
def test_other_means_stay(axes: list[int]) -> None:
    graph = Graph([1, 2, 4, 5, 6])
    graph.add("Conv", "x", graph.weight(3, 2, 3, 3, 3), pads=[1] * 6)
    graph.weights.append(numpy_helper.from_array(np.array(axes, np.int64), "axes"))
    graph.add("Relu", graph.add("ReduceMean", graph.last, "axes"))
    assert operators(check(graph, UnrollDepthPass()))["ReduceMean"] == 1


def _positive(graph: Graph, channels: int) -> str:
    graph.weights.append(numpy_helper.from_array(RNG.uniform(0.5, 1, channels).astype(np.float32), "variances"))
    return "variances"


def test_an_operator_without_a_rule_gets_its_volume() -> None:
    graph = Graph([1, 2, 6, 8, 8])
    graph.add("Conv", "x", graph.weight(4, 2, 3, 3, 3), pads=[1] * 6)
    a = graph.add("LpPool", graph.last, kernel_shape=[2, 2, 2], strides=[2, 2, 2])
    graph.add("Conv", a, graph.weight(4, 4, 3, 3, 3), pads=[1] * 6)
    graph.add("Mul", graph.last, a)
    assert operators(check(graph, UnrollDepthPass()))["LpPool"] == 1


@few
@given(
    st.tuples(st.integers(3, 24), st.integers(3, 7), st.integers(3, 7)), st.integers(1, 4),
    st.tuples(*[st.integers(1, 3)] * 3), st.tuples(*[st.integers(1, 3)] * 3), st.tuples(*[st.integers(0, 2)] * 6),
    st.sampled_from(["AveragePool", "MaxPool"]), chunks,
)  # fmt: skip
def test_pooling_takes_slices(
    size: tuple[int, int, int],
    channels: int,
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    pads: tuple[int, ...],
    operator: str,
    chunks: int,
) -> None:
    graph = Graph([1, 2, *size])
    graph.add("Conv", "x", graph.weight(channels, 2, 3, 3, 3), pads=[1] * 6)
    pads = tuple(min(pad, kernel[axis % 3] - 1) for axis, pad in enumerate(pads))
    more = {"count_include_pad": 1} if operator == "AveragePool" else {}
    graph.add(operator, graph.last, kernel_shape=kernel, strides=strides, pads=pads, **more)
    graph.add("Conv", graph.last, graph.weight(5, channels, 1, 1, 1), graph.weight(5))
    graph.add("Relu", graph.last)
    model = check(graph, UnrollDepthPass(depth_chunks=chunks))
    assert no_conv3d(model)
    assert operators(model)["AveragePool"] == 0
    assert all(len(node.attributes["kernel_shape"].as_ints()) == 2 for node in model.graph if "Pool" in node.op_type)


@pytest.mark.parametrize(
    ("operator", "attributes"),
    [
        ("AveragePool", {"pads": [0, 0, 0, 1, 0, 0]}),
        ("AveragePool", {"ceil_mode": 1}),
        ("AveragePool", {"dilations": [1, 2, 1]}),
        ("MaxPool", {"ceil_mode": 1}),
        ("MaxPool", {"dilations": [1, 2, 1]}),
    ],
)
def test_other_poolings_stay(operator: str, attributes: dict[str, Any]) -> None:
    graph = Graph([1, 2, 5, 5, 5])
    graph.add("Conv", "x", graph.weight(4, 2, 3, 3, 3), pads=[1] * 6)
    graph.add(operator, graph.last, kernel_shape=[2, 2, 2], strides=[2, 2, 2], **attributes)
    assert operators(check(graph, UnrollDepthPass()))[operator] == 1


def test_a_volume_is_taken_with_no_other_or_several() -> None:
    graph = Graph([1, 2, 4, 4, 4])
    a = graph.add("Conv", "x", graph.weight(2, 2, 3, 3, 3), pads=[1] * 6)
    graph.add("Max", graph.add("Max", a), a, "x")
    check(graph, UnrollDepthPass())


@pytest.mark.parametrize(("scale", "size"), [(3.2, 4), (2.1, 5)])
def test_upsampling_by_a_broken_factor_stays(scale: float, size: int) -> None:
    """Its output has whole times as many voxels, but not each of them repeated that often."""
    graph = Graph([1, 2, 3, size, size])
    graph.add("Conv", "x", graph.weight(2, 2, 3, 3, 3), pads=[1] * 6)
    graph.weights.append(numpy_helper.from_array(np.array([1, 1, 1, scale, scale], np.float32), "scales"))
    modes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    graph.add("Resize", graph.last, "", "scales", **modes)
    graph.add("Conv", graph.last, graph.weight(3, 2, 3, 3, 3), pads=[1] * 6)
    model = check(graph, UnrollDepthPass())
    (resize,) = (node for node in model.graph if node.op_type == "Resize")
    shape = input_of(resize).shape
    assert shape is not None and shape.rank() == 5


@pytest.mark.parametrize("shape", [(2, 2, 4, 4, 4), (1, 3, 16, 16)])
def test_batches_and_images_stay(shape: tuple[int, ...]) -> None:
    graph = Graph(shape)
    graph.add("Conv", "x", graph.weight(4, shape[1], *[3] * (len(shape) - 2)), pads=[1] * 2 * (len(shape) - 2))
    model = graph.model()
    assert not UnrollDepthPass()(model).modified


def test_large_weights_of_networks_that_would_fill_the_memory_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = Graph([1, 2, 4, 4, 4])
    a = graph.add("Conv", "x", graph.weight(4, 2, 3, 3, 3), pads=[1] * 6)
    b = graph.add("Relu", graph.add("Conv", a, graph.weight(4, 4, 3, 3, 3), pads=[1] * 6))
    graph.add("Add", a, b)
    graph.add("ConvTranspose", graph.last, graph.weight(4, 9, 2, 2, 2), strides=[2, 2, 2])
    small, large, largest = 4 * 4 * 2 * 27, 4 * 4 * 4 * 27, 4 * 4 * 9 * 8
    monkeypatch.setattr(unroll_depth, "MAX_BYTES", small + large + largest - 1)
    monkeypatch.setattr(unroll_depth, "LARGE_WEIGHT", large)
    assert no_conv3d(check(graph, UnrollDepthPass()))
    monkeypatch.setattr(unroll_depth, "LARGE_WEIGHT", large - 1)
    model = check(graph, UnrollDepthPass())
    weights = [input_of(node, 1) for node in model.graph if node.op_type == "Conv"]
    assert [weight.name for weight in weights if weight.is_initializer()] == ["w1"]
    monkeypatch.setattr(unroll_depth, "MAX_BYTES", small + large + largest)
    assert no_conv3d(check(graph, UnrollDepthPass()))


def test_open_sizes_stay() -> None:
    graph = Graph([1, 2, "d", "h", "w"])
    graph.add("Conv", "x", graph.weight(4, 2, 3, 3, 3), pads=[1] * 6)
    assert not UnrollDepthPass()(graph.model()).modified


def convolved(algorithm: str, shape: tuple[int, ...], *, relu: bool) -> np.ndarray:
    """Errors of a convolution of as many channels as it gives against float64, relative to the output's std."""
    channels = shape[1]
    graph = Graph(shape)
    graph.add("Conv", "x", graph.weight(channels, channels, 3, 3, 3), pads=[1] * 6)
    model = graph.model()
    weight = weight_of(model, "w0").astype(np.float64)
    x = RNG.normal(0, 1, shape).astype(np.float32)
    x = np.maximum(x, np.float32(0.01) * x) if relu else x
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3, 3), axis=(2, 3, 4))
    exact = np.einsum("ncdhwijk,ocijk->nodhw", windows, weight, optimize=True)
    unroll = UnrollDepthPass(Always(algorithm))
    unroll(model)
    assert [layer.algorithm for layer in unroll.layers.values()] == [algorithm]
    errors: np.ndarray = (run(model, x) - exact) / exact.std()
    return errors


@pytest.mark.parametrize(("algorithm", "bound"), [("taps", 2e-5), ("winograd", 2e-5), ("winograd4", 3e-5)])
def test_winograd_keeps_its_digits(algorithm: str, bound: float) -> None:
    """Against float64, on as many channels as the largest networks have: the bound in docs/performance.md."""
    assert np.abs(convolved(algorithm, (1, 256, 4, 8, 8), relu=False)).max() < bound


@pytest.mark.parametrize("relu", [False, True])
def test_winograds_points_round_little(relu: bool) -> None:
    """At the points 0, ±1 and ±2 the RMS is three times that of taps and more."""
    rms = {
        algorithm: np.sqrt(np.square(convolved(algorithm, (1, 64, 16, 8, 8), relu=relu)).mean())
        for algorithm in ("taps", "winograd4")
    }
    assert rms["winograd4"] < 2.5 * rms["taps"]


def test_the_transforms_of_winograd_are_exact() -> None:
    """Each factor of a slice is a number of float32, and the transforms with the taps' give the convolution."""
    into, out_of = np.array(winograd4.input_transform()), np.array(winograd4.output_transform())
    assert (into.astype(np.float32) == into).all()
    assert (out_of.astype(np.float32) == out_of).all()
    points = np.array([0, winograd4.NEAR, -winograd4.NEAR, winograd4.FAR, -winograd4.FAR])
    taps = np.vstack([points[:, None] ** np.arange(3), [[0, 0, 1]]])
    scale = np.array([np.prod([p - q for q in points if q != p]) for p in points] + [1.0])
    window, kernel = np.random.default_rng(0).normal(size=6), np.random.default_rng(1).normal(size=3)
    found = out_of @ ((into @ window) * (taps @ kernel) / scale)
    assert np.allclose(found, np.convolve(window, kernel[::-1], "valid"), atol=1e-12)
    assert np.allclose(out_of @ winograd4.bias_factors(), 1)


@few
@given(st.integers(1, 2), st.integers(1, 4), st.integers(1, 8), st.sampled_from([1, 2, 3]))
def test_heads_have_their_bias_in_the_weight(batch: int, inputs: int, more: int, axes: int) -> None:
    graph = Graph([batch, inputs, *[3, 4, 5][:axes]])
    graph.add("Conv", "x", graph.weight(inputs + more, inputs, *[1] * axes), graph.weight(inputs + more))
    model = check(graph, PointwiseHeadPass(), 1e-5)
    assert [len(node.inputs) for node in model.graph if node.op_type == "Conv"] == [2]


def test_a_transposed_convolution_makes_the_ones() -> None:
    graph = Graph([1, 4, 6, 8])
    graph.add("ConvTranspose", "x", graph.weight(4, 3, 2, 2), graph.weight(3), strides=[2, 2])
    graph.add("Conv", graph.last, graph.weight(9, 3, 1, 1), graph.weight(9))
    model = check(graph, PointwiseHeadPass(), 1e-5)
    heavy = [node.op_type for node in model.graph if input_of(node).name == "x" or node.outputs[0].is_graph_output()]
    assert heavy == ["ConvTranspose", "Conv"]


def test_slices_get_their_ones_before_they_are_put_together() -> None:
    graph = Graph([1, 2, 4, 4, 5])
    graph.add("Conv", "x", graph.weight(3, 2, 3, 3, 3), pads=[1] * 6)
    graph.add("Conv", graph.last, graph.weight(9, 3, 1, 1, 1), graph.weight(9))
    model = graph.model()
    x = RNG.normal(0, 1, graph.sizes).astype(np.float32)
    expected = run(model, x)
    UnrollDepthPass()(model)
    before = operators(model)["Concat"]
    PointwiseHeadPass()(model)
    assert np.abs(run(model, x) - expected).max() < 1e-5 * expected.std()
    (joined,) = (node for node in model.graph if node.op_type == "Conv" and node.outputs[0].is_graph_output())
    parts = producer_of(input_of(joined))
    assert [producer_of(input_of(parts, i)).op_type for i in range(len(parts.inputs))] == ["Concat"] * 4
    assert operators(model)["Concat"] == before + 4 + 1  # one a slice, and the weight's


def test_parts_of_several_rows_get_their_ones_together() -> None:
    graph = Graph([1, 3, 4, 5])
    graph.add("Concat", graph.add("Relu", "x"), graph.add("Neg", "x"), axis=2)
    graph.add("Conv", graph.last, graph.weight(9, 3, 1, 1), graph.weight(9))
    model = check(graph, PointwiseHeadPass(), 1e-5)
    assert operators(model)["Concat"] == 3  # the parts, the ones and the weight's


@pytest.mark.parametrize(
    ("kernel", "outputs", "bias", "attributes"),
    [
        (1, 3, True, {}),
        (1, 8, False, {}),
        (3, 8, True, {}),
        (1, 8, True, {"strides": [2, 2]}),
        (1, 8, True, {"pads": [1, 1, 1, 1]}),
        (1, 8, True, {"auto_pad": "SAME_UPPER"}),
    ],
)
def test_other_heads_stay(kernel: int, outputs: int, bias: bool, attributes: dict[str, Any]) -> None:
    graph = Graph([1, 4, 6, 6])
    weights = [graph.weight(outputs, 4, kernel, kernel)] + ([graph.weight(outputs)] if bias else [])
    graph.add("Conv", "x", *weights, **attributes)
    assert operators(check(graph, PointwiseHeadPass(), 0)) == Counter(["Conv"])


@pytest.mark.parametrize(("channels", "size", "kept"), [(4, (8, 16, 16), True), (64, (8, 48, 48), False)])
def test_a_network_of_little_work_stays_as_it_is(channels: int, size: tuple[int, int, int], kept: bool) -> None:
    graph = Graph([1, channels, *size])
    graph.add("Conv", "x", graph.weight(channels, channels, 3, 3, 3), pads=(1,) * 6)
    graph.add("LeakyRelu", graph.last)
    graph.add("Conv", graph.last, graph.weight(channels, channels, 3, 3, 3), pads=(1,) * 6)
    model = graph.model()
    changed = UnrollDepthPass.with_choices(Choices())(model).modified
    assert changed is not kept
    assert UnrollDepthPass()(graph.model()).modified  # it could be rewritten
