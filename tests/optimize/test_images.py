"""The rewrites of 2D networks, over random graphs, against the graph as it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from segonnx.optimize import PASSES, row_regions
from segonnx.optimize.base import Rewrite
from segonnx.optimize.builder import Builder
from segonnx.optimize.choices import Choices
from segonnx.optimize.merge_groups import MergeGroupsPass
from segonnx.optimize.reading import shape
from segonnx.optimize.split_concat import SplitConcatPass
from segonnx.optimize.unroll_rows import UnrollRowsPass
from tests.optimize.graphs import RNG, Graph, check, few, input_of, operators, run

LAYERS = ("layer", "residual")
ANY = ("Conv", "ConvTranspose", "InstanceNormalization", "MaxPool", "AveragePool", "Relu", "LeakyRelu", "PRelu")
STEPS = (
    *LAYERS, "pointwise", "by two", "pick", "transposed", "overlapping", "repeat", "linear", "skip", "relu", "leaky",
    "norm", "pool", "mean", "halve", "channels",
)  # fmt: skip


class Images(Graph):
    """A graph of images, with the channels and the size of what the last step gave."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__(shape)
        self.channels, *self.size = shape[1:]
        self.skips: dict[tuple[int, ...], tuple[str, int]] = {}

    def conv(self, outputs: int, kernel: int = 3, stride: int = 1, **attributes: Any) -> str:
        group = attributes.get("group", 1)
        weights = [self.weight(outputs, self.channels // group, kernel, kernel)]
        if outputs % 3:
            weights.append(self.weight(outputs))
        self.add(
            "Conv", self.last, *weights, kernel_shape=[kernel] * 2, pads=[kernel // 2] * 4, strides=[stride] * 2,
            **attributes,
        )  # fmt: skip
        self.channels = outputs
        self.size = [size // stride for size in self.size]
        return self.last

    def step(self, kind: str) -> None:
        x, c = self.last, self.channels
        match kind:
            case "layer":
                self.conv(c + 1)
            case "residual":
                self.conv(c)
                self.add("Relu", self.last)
                self.add("Relu", self.add("Add", self.conv(c), x))
            case "pointwise":
                self.conv(c + 2, 1)
            case "by two" | "pick" if all(size % 4 == 0 for size in self.size):
                self.conv(c, 3 if kind == "by two" else 1, 2)
            case "skip":
                other, more = self.skips.get(tuple(self.size), (x, c))
                self.add("Concat", x, other, axis=1)
                self.channels = c + more
            case "relu":
                self.add("Relu", x)
            case "leaky":
                self.add("LeakyRelu", x, alpha=0.1)
            case "norm":
                self.add("InstanceNormalization", x, self.weight(c), self.weight(c))
            case "mean":
                self.add("AveragePool", x, kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1)
            case "halve" if all(size % 4 == 0 for size in self.size):
                self.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
                self.size = [size // 2 for size in self.size]
            case "channels":
                self.add("PRelu", x, self.weight(c, 1, 1))
                self.add("Mul", self.last, self.weight(1, c, 1, 1))
            case "pool":
                self.add("MaxPool", x, kernel_shape=[3, 3], pads=[1] * 4)
            case _:
                self._enlarge(kind)
        self.skips[tuple(self.size)] = (self.last, self.channels)

    def _enlarge(self, kind: str) -> None:
        x, c = self.last, self.channels
        match kind:
            case "transposed":
                weights = (self.weight(c, c + 1, 2, 2), self.weight(c + 1))
                self.add("ConvTranspose", x, *weights, kernel_shape=[2, 2], strides=[2, 2])
                self.channels = c + 1
            case "repeat":
                self.add("Resize", x, "", self.constant(np.array([1, 1, 2, 2], np.float32)), mode="nearest")
            case "linear":
                scales = self.constant(np.array([1, 1, 2, 2], np.float32))
                self.add("Resize", x, "", scales, mode="linear", coordinate_transformation_mode="half_pixel")
            case "overlapping":
                weights = (self.weight(c, c + 1, 4, 4), self.weight(c + 1))
                self.add("ConvTranspose", x, *weights, kernel_shape=[4, 4], strides=[2, 2], pads=[1] * 4)
                self.channels = c + 1
            case _:
                return
        self.size = [2 * size for size in self.size]

    def constant(self, array: np.ndarray) -> str:
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name


def dense(model: ir.Model) -> list[list[int]]:
    """Sizes of the images that 3x3 convolutions without strides or groups take."""
    found = []
    for node in model.graph:
        weight = node.inputs[1] if node.op_type == "Conv" else None
        if weight is not None and weight.shape is not None and tuple(weight.shape[2:]) == (3, 3):
            strides = node.attributes["strides"].as_ints() if "strides" in node.attributes else [1, 1]
            if list(strides) == [1, 1] and "group" not in node.attributes:
                found.append(shape(input_of(node))[2:])
    return found


def on_rows(graph: Images, parts: int = 2, **costs: int) -> ir.Model:
    """The graph on rows, where operators take nothing but what is said."""
    free = dict.fromkeys(("TRANSFORM", "TRANSFORM_FOR_NORM", "LAYOUT", "PASS", "NODE", "FEW"), 0)
    with pytest.MonkeyPatch.context() as patch:
        for name, cost in (free | costs).items():
            patch.setattr(row_regions, name, cost)
        return check(graph, UnrollRowsPass(parts))


@few
@given(
    st.lists(st.sampled_from(STEPS), min_size=2, max_size=8), st.integers(4, 12), st.integers(1, 9), st.integers(1, 5),
    st.sampled_from([1, 2, 4]),
)  # fmt: skip
def test_any_network_of_images(steps: Sequence[str], rows: int, columns: int, channels: int, parts: int) -> None:
    graph = Images([1, channels, 4 * rows, 2 * columns])
    for kind in ("layer", *steps, "layer"):
        if max(graph.size) <= 96 and graph.channels <= 48:
            graph.step(kind)
    model = on_rows(graph, parts)
    assert all(size[0] % 4 or size[0] < 16 for size in dense(model))
    assert not any(len(value.shape or ()) == 5 for node in model.graph for value in node.outputs if node.op_type in ANY)


def test_a_u_net_is_laid_out_at_its_entrance_and_its_end() -> None:
    graph = Images([1, 4, 32, 32])
    for kind in ("layer", "norm", "leaky", "by two", "norm", "layer", "transposed", "skip", "layer", "norm", "leaky"):
        graph.step(kind)
    model = on_rows(graph)
    assert dense(model) == []
    # The input and the output alone go from images to rows or back, each in two parts of 16 rows.
    assert operators(model)["Transpose"] == 2
    assert operators(model)["InstanceNormalization"] == 0


@pytest.mark.parametrize(
    ("costs", "kept"),
    [
        ({}, 0),
        ({"TRANSFORM": 17}, 0),  # 9 * 12 * 12 / 2 for each pixel of a layer, and 3 * 24 numbers in all
        ({"TRANSFORM": 18}, 2),
        ({"NODE": 9 * 12 * 12 // 2 * 256 - 1}, 0),
        ({"NODE": 9 * 12 * 12 // 2 * 256}, 2),
        ({"FEW": 12}, 2),
    ],
)
def test_layers_that_save_too_little_stay(costs: dict[str, int], kept: int) -> None:
    graph = Images([1, 12, 16, 16])
    graph.conv(12)
    graph.conv(12)
    assert len(dense(on_rows(graph, **costs))) == kept


def test_what_stands_between_layers_counts() -> None:
    graph = Images([1, 12, 16, 16])
    for kind in ("residual", "residual"):
        graph.step(kind)
    saved, passes = 4 * 9 * 12 * 12 // 2, 6 * 12  # six activations and sums
    assert dense(on_rows(graph, PASS=saved // passes - 1)) == []
    assert len(dense(on_rows(graph, PASS=saved // passes + 1))) == 4
    graph = Images([1, 12, 16, 16])
    for _ in range(2):
        graph.conv(12)
        graph.conv(12, 1)
    saved, numbers = 2 * 9 * 12 * 12 // 2, 2 * 24
    assert dense(on_rows(graph, LAYOUT=saved // numbers - 1)) == []
    assert len(dense(on_rows(graph, LAYOUT=saved // numbers + 1))) == 2


def test_a_norm_makes_transforms_cheaper() -> None:
    for kinds, kept in ((("layer", "layer"), 2), (("layer", "norm", "layer", "norm"), 0)):
        graph = Images([1, 64, 16, 16])
        for kind in kinds:
            graph.step(kind)
        # 65 channels save 288 multiply-adds for each number, of which the borders take half.
        assert len(dense(on_rows(graph, TRANSFORM=150, TRANSFORM_FOR_NORM=60))) == kept


def test_sizes_that_lose_stay_and_others_do_not() -> None:
    graph = Images([1, 4, 64, 64])
    graph.conv(4)
    graph.conv(32, 3, 2)
    for _ in range(3):
        graph.conv(32)
    model = on_rows(graph, TRANSFORM=30)
    assert dense(model) == [[64, 64]]


@pytest.mark.parametrize(
    "attributes",
    [{"group": 2}, {"dilations": [2, 2], "pads": [2, 2, 2, 2]}, {"pads": [0, 1, 2, 1]}, {"auto_pad": "SAME_UPPER"}],
)
def test_other_convolutions_of_images_stay(attributes: dict[str, Any]) -> None:
    graph = Images([1, 4, 16, 16])
    attributes = {"pads": [1, 1, 1, 1]} | attributes if "auto_pad" not in attributes else attributes
    graph.add("Conv", "x", graph.weight(4, 4 // attributes.get("group", 1), 3, 3), kernel_shape=[3, 3], **attributes)
    assert operators(on_rows(graph)) == {"Conv": 1}


@pytest.mark.parametrize("shape", [(1, 4, 18, 16), (1, 4, 12, 16), (2, 4, 16, 16), (1, 4, 17, 16)])
def test_other_images_stay(shape: tuple[int, ...]) -> None:
    graph = Images(shape)
    graph.conv(5)
    graph.conv(5)
    assert operators(on_rows(graph)) == {"Conv": 2}


def test_open_batches_stay() -> None:
    graph = Images((1, 256, 16, 16))
    graph.conv(256)
    graph.conv(256)
    assert UnrollRowsPass()(graph.model()).modified
    graph.shape = ("n", 256, 16, 16)
    assert not UnrollRowsPass()(graph.model()).modified


def test_what_is_needed_whole_as_well_is_there_whole() -> None:
    graph = Images([1, 4, 16, 16])
    first = graph.conv(4)
    graph.conv(4)
    graph.add("Add", graph.add("Softmax", first, axis=1), graph.last)
    model = on_rows(graph)
    assert dense(model) == [] and operators(model)["Softmax"] == 1


def test_what_a_rule_declines_stays_an_operator_of_images() -> None:
    graph = Images([1, 4, 16, 16])
    graph.conv(4)
    graph.add("Mul", graph.last, graph.weight(16))  # a number for each column, for which there is no rule
    graph.conv(4)
    model = on_rows(graph)
    assert dense(model) == []
    assert [
        len(input_of(node).shape or ())
        for node in model.graph
        if node.op_type == "Mul" and node.outputs[0].name == "v1"
    ] == [4]


def test_volumes_beside_images_stay() -> None:
    graph = Images([1, 4, 16, 16])
    graph.conv(4)
    image = graph.conv(4)
    axis = graph.constant(np.array([4], np.int64))
    volume = graph.add("Unsqueeze", image, axis)
    graph.add("Conv", volume, graph.weight(4, 4, 3, 3, 1), pads=[1, 1, 0, 1, 1, 0])
    graph.add("Squeeze", graph.last, axis)
    model = on_rows(graph)
    assert [len(input_of(node).shape or ()) for node in model.graph if node.op_type == "Conv"].count(5) == 1


def test_f43_on_rows_keeps_its_digits() -> None:
    """Against float64, on as many channels as the largest networks have: the bound in docs/internals/rewrites.md."""
    channels, shape = 512, (1, 512, 16, 16)
    graph = Images(shape)
    graph.add("Conv", "x", graph.weight(channels, channels, 3, 3), pads=[1] * 4)
    weight = numpy_helper.to_array(graph.weights[0]).astype(np.float64)
    x = RNG.normal(0, 1, shape).astype(np.float32)
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    exact = np.einsum("nchwij,ocij->nohw", windows, weight, optimize=True)
    model = on_rows(graph)
    assert dense(model) == []
    assert np.abs(run(model, x) - exact).max() / exact.std() < 3e-5


def test_upsampling_by_a_broken_factor_stays() -> None:
    graph = Images([1, 4, 20, 20])
    graph.conv(4)
    scales = graph.constant(np.array([1, 1, 2.1, 2.1], np.float32))
    modes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    graph.add("Resize", graph.last, "", scales, **modes)
    graph.size = [42, 42]
    graph.conv(4)
    assert operators(on_rows(graph))["Resize"] == 1


@few
@given(st.integers(1, 6), st.integers(1, 3), st.integers(1, 9), st.sampled_from([1, 2]), st.booleans(), st.booleans())
def test_groups_are_merged(groups: int, kernel: int, size: int, stride: int, active: bool, bare: bool) -> None:
    graph = Images([2, 3 if not bare else 8 * groups, size + 2, size + 3])
    if not bare:
        graph.conv(8 * groups, 1)
        if active:
            graph.add("Relu", graph.last)
    graph.conv(8 * groups, kernel, stride, group=groups)
    if active:
        graph.add("Relu", graph.last)
    graph.conv(5, 1)
    model = check(graph, MergeGroupsPass())
    found = {node.attributes["group"].as_int() for node in model.graph if "group" in node.attributes}
    merges = groups > 1 and (groups % 2 == 0 or not bare)
    assert found == ({(groups + 1) // 2} if merges else {groups})


@pytest.mark.parametrize(
    "make",
    [
        lambda graph: graph.conv(12, group=3),
        lambda graph: graph.conv(24, group=24),
        lambda graph: graph.conv(48, group=3),
        lambda graph: [graph.conv(8, 1), graph.conv(8), graph.conv(5, 1)][-1],
    ],
)
def test_other_groups_stay(make: Callable[[Images], str]) -> None:
    graph = Images([1, 4, 6, 6])
    graph.conv(24, 1)
    make(graph)
    before = [node.attributes["group"].as_int() for node in graph.model().graph if "group" in node.attributes]
    model = check(graph, MergeGroupsPass())
    assert [node.attributes["group"].as_int() for node in model.graph if "group" in node.attributes] == before


@pytest.mark.parametrize("other", ["before", "after"])
def test_groups_whose_channels_others_take_too_stay(other: str) -> None:
    """Three groups of 8 would need channels that nobody else knows of."""
    graph = Images([1, 4, 6, 6])
    x = graph.conv(24, 1)
    y = graph.conv(24, group=3)
    z = graph.conv(24, 1)
    graph.add("Add", z, x if other == "before" else y)
    model = check(graph, MergeGroupsPass())
    assert 3 in {node.attributes["group"].as_int() for node in model.graph if "group" in node.attributes}


def test_a_constant_is_never_another_of_its_name() -> None:
    graph = Images([1, 16, 6, 4])
    graph.weights.append(numpy_helper.from_array(np.array([5, 6], np.int64), "int64_1_2"))
    build = Builder(graph.model().graph)
    value = build.integers(1, 2)
    assert value.const_value is not None and value.const_value.numpy().tolist() == [1, 2]
    assert build.integers(1, 2) is value


def skips(channels: Sequence[int], joined: str, *, elsewhere: bool = False) -> Images:
    """A convolution of what a transposed convolution gives, and skips from convolutions."""
    graph = Images((1, 16, 6, 8))
    graph.weights.append(numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales"))
    parts = []
    for count in channels[1:]:
        large = graph.add("Resize", "x", "", "scales", mode="nearest")
        parts.append(graph.add("Conv", large, graph.weight(count, 16, 3, 3), pads=[1] * 4))
    if joined == "ConvTranspose":
        graph.add("ConvTranspose", "x", graph.weight(16, channels[0], 2, 2), strides=[2, 2])
    else:
        graph.add("Resize", "x", "", "scales", mode="nearest")
    concat = graph.add("Concat", graph.last, *parts, axis=1)
    weights = graph.weight(7, sum(channels), 3, 3), graph.weight(7)
    y = graph.add("Conv", concat, *weights, pads=[1] * 4)
    if elsewhere:
        graph.add("Concat", y, concat, axis=1)
    return graph


@few
@given(st.sampled_from([[16, 16], [16, 32], [32, 16, 16]]))
def test_convolutions_of_parts_in_several_layouts_are_split(channels: list[int]) -> None:
    model = check(skips(channels, "ConvTranspose"), SplitConcatPass())
    found = operators(model)
    assert (found["Concat"], found["Conv"], found["Add"]) == (0, 2 * len(channels) - 1, len(channels) - 1)


def test_open_sizes_are_split_too() -> None:
    model = skips([16, 16], "ConvTranspose").model()
    for node in model.graph:
        for value in node.outputs:
            value.shape = ir.Shape(["n", value.shape[1], "h", "w"])  # type: ignore[index]
    assert SplitConcatPass()(model).modified
    assert operators(model)["Concat"] == 0


@pytest.mark.parametrize(
    ("channels", "joined", "elsewhere"),
    [
        ([16, 16], "Resize", False),  # all in the blocked layout
        ([16], "ConvTranspose", False),  # none in it
        ([16, 24], "ConvTranspose", False),  # half a block
        ([16, 16], "ConvTranspose", True),  # the concatenation is needed anyway
    ],
)
def test_other_convolutions_of_concatenations_stay(channels: list[int], joined: str, elsewhere: bool) -> None:
    graph = skips(channels, joined, elsewhere=elsewhere)
    assert not SplitConcatPass()(graph.model()).modified


@pytest.mark.parametrize("rewrite", PASSES)
def test_no_rewrite_walks_every_way_to_a_constant(rewrite: type[Rewrite]) -> None:
    """As Swin's networks have them: 2^60 ways lead from the mask to its first constant."""
    graph = Graph((1, 16, 32, 32))
    mask = graph.weight(1, 16, 1, 1)
    for _ in range(60):
        mask = graph.add("Max", mask, mask)
    graph.add("Conv", "x", graph.add("Mul", graph.weight(16, 16, 3, 3), mask), pads=[1] * 4)
    graph.add("Relu", graph.add("Add", graph.last, mask))
    graph.add("Conv", graph.last, graph.weight(16, 16, 3, 3), pads=[1] * 4)
    check(graph, rewrite.with_choices(Choices()))
