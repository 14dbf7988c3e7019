"""The rewrites of 2D networks, over random graphs, against the graph as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from segonnx.optimize import polyphase_regions
from segonnx.optimize.builder import Builder
from segonnx.optimize.merge_groups import MergeGroupsPass
from segonnx.optimize.split_concat import SplitConcatPass
from segonnx.optimize.winograd_phases import WinogradPhasesPass
from tests.optimize.graphs import RNG, Graph, check, few, operators, run

LAYERS = ("layer", "residual")
STEPS = (*LAYERS, "pointwise", "by two", "pick", "transposed", "repeat", "skip", "relu", "leaky", "pool")


@pytest.fixture(scope="module", autouse=True)
def any_layer() -> Iterator[None]:
    """Few channels of small images suffice."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(polyphase_regions, "MIN_INPUTS", 1)
        patch.setattr(polyphase_regions, "MIN_OUTPUTS", 1)
        patch.setattr(polyphase_regions, "MIN_WORK", 1)
        yield


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
            case "transposed":
                weights = (self.weight(c, c + 1, 2, 2), self.weight(c + 1))
                self.add("ConvTranspose", x, *weights, kernel_shape=[2, 2], strides=[2, 2])
                self.channels, self.size = c + 1, [2 * size for size in self.size]
            case "repeat":
                self.add("Resize", x, "", self.constant(np.array([1, 1, 2, 2], np.float32)), mode="nearest")
                self.size = [2 * size for size in self.size]
            case "skip":
                other, more = self.skips.get(tuple(self.size), (x, c))
                self.add("Concat", x, other, axis=1)
                self.channels = c + more
            case "relu":
                self.add("Relu", x)
            case "leaky":
                self.add("LeakyRelu", x, alpha=0.1)
            case "pool":
                self.add("MaxPool", x, kernel_shape=[3, 3], pads=[1] * 4)
        self.skips[tuple(self.size)] = (self.last, self.channels)

    def constant(self, array: np.ndarray) -> str:
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name


def dense(model: ir.Model) -> int:
    """How many 3x3 convolutions without strides or groups there are."""
    found = 0
    for node in model.graph:
        weight = node.inputs[1] if node.op_type == "Conv" else None
        if weight is not None and weight.shape is not None and tuple(weight.shape[2:]) == (3, 3):
            strides = node.attributes["strides"].as_ints() if "strides" in node.attributes else [1, 1]
            found += list(strides) == [1, 1] and "group" not in node.attributes
    return found


def on_components(graph: Images, per_image: int = 0) -> ir.Model:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(polyphase_regions, "LAYERS_PER_IMAGE", per_image)
        return check(graph, WinogradPhasesPass())


@few
@given(
    st.lists(st.sampled_from(STEPS), min_size=2, max_size=8), st.integers(1, 6), st.integers(1, 6), st.integers(1, 5),
    st.integers(1, 2),
)  # fmt: skip
def test_any_network_of_images(steps: Sequence[str], rows: int, columns: int, channels: int, batch: int) -> None:
    graph = Images([batch, channels, 2 * rows, 2 * columns])
    for kind in (*steps, "layer"):
        if max(graph.size) <= 48 and graph.channels <= 48:
            graph.step(kind)
    assert dense(graph.model()) == 0 or dense(on_components(graph)) == 0


def test_a_residual_network_with_skips_is_interleaved_once_a_level() -> None:
    graph = Images([1, 4, 16, 16])
    for kind in (
        "residual",
        "by two",
        "relu",
        "residual",
        "transposed",
        "skip",
        "layer",
        "relu",
        "layer",
        "relu",
        "pool",
    ):
        graph.step(kind)
    model = on_components(graph, polyphase_regions.LAYERS_PER_IMAGE)
    assert dense(model) == 0
    assert operators(model)["ConvTranspose"] == 0
    # Two levels are left, by a transposed convolution and a pooling: two rows of pixels each, then the image.
    assert operators(model)["Concat"] == 2 * 3
    assert operators(model)["MaxPool"] == 1


def test_upsampling_saves_products() -> None:
    graph = Images([1, 4, 8, 8])
    for kind in ("repeat", "layer", "relu", "layer"):
        graph.step(kind)
    model = on_components(graph, polyphase_regions.LAYERS_PER_IMAGE)
    pointwise = [
        node for node in model.graph
        if node.op_type == "Conv" and list(node.attributes["kernel_shape"].as_ints()) == [1, 1]
        and "group" not in node.attributes
    ]  # fmt: skip
    assert operators(model)["Resize"] == 0
    assert len(pointwise) == 9 + 16


@pytest.mark.parametrize(
    ("steps", "kept"),
    [
        (["layer"], 1),
        (["layer", "pool", "layer"], 2),
        (["layer", "layer", "pool", "layer", "pool"], 1),
        (["layer", "pointwise", "layer"], 0),
        # The second region alone would pay, if the first were there to give it components.
        (["layer", "pool", "layer", "relu", "layer"], 1),
    ],
)
def test_what_would_be_interleaved_too_often_stays(steps: list[str], kept: int) -> None:
    graph = Images([1, 4, 8, 8])
    for kind in steps:
        graph.step(kind)
    assert dense(on_components(graph, polyphase_regions.LAYERS_PER_IMAGE)) == kept


def test_few_channels_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polyphase_regions, "MIN_OUTPUTS", 8)
    graph = Images([1, 4, 8, 8])
    graph.conv(7)
    graph.conv(7)
    model = on_components(graph)
    assert operators(model) == {"Conv": 2}


@pytest.mark.parametrize(("size", "kept"), [(16, 2), (20, 0)])
def test_layers_of_little_work_stay(size: int, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = Images((1, 8, size, size))
    graph.conv(8)
    graph.conv(8)
    monkeypatch.setattr(polyphase_regions, "MIN_WORK", 9 * 8 * 8 * 18 * 18)
    assert dense(on_components(graph)) == kept


@pytest.mark.parametrize(
    "attributes",
    [{"group": 2}, {"dilations": [2, 2], "pads": [2, 2, 2, 2]}, {"pads": [0, 1, 2, 1]}, {"auto_pad": "SAME_UPPER"}],
)
def test_other_convolutions_of_images_stay(attributes: dict[str, Any]) -> None:
    graph = Images([1, 4, 8, 8])
    attributes = {"pads": [1, 1, 1, 1]} | attributes if "auto_pad" not in attributes else attributes
    graph.add("Conv", "x", graph.weight(4, 4 // attributes.get("group", 1), 3, 3), kernel_shape=[3, 3], **attributes)
    assert operators(on_components(graph)) == {"Conv": 1}


@pytest.mark.parametrize("shape", [(1, 4, 7, 8), (1, 4, 8, 9), (1, 4, 5, 5)])
def test_odd_images_stay(shape: tuple[int, ...]) -> None:
    graph = Images(shape)
    graph.conv(5)
    graph.conv(5)
    assert operators(on_components(graph)) == {"Conv": 2}


def test_what_is_needed_whole_as_well_is_there_whole() -> None:
    graph = Images([1, 4, 8, 8])
    first = graph.conv(4)
    graph.conv(4)
    graph.add("Add", graph.add("MaxPool", first, kernel_shape=[3, 3], pads=[1] * 4), graph.last)
    assert dense(on_components(graph)) == 0


def test_an_interleaved_image_is_not_decomposed_again() -> None:
    graph = Images([1, 4, 8, 8])
    first, four = graph.conv(4), graph.channels
    pooled = graph.add("MaxPool", first, kernel_shape=[3, 3], pads=[1] * 4)
    both = graph.add("Concat", first, pooled, axis=1)
    graph.channels = 2 * four
    graph.add("Add", graph.conv(4), graph.add("Conv", both, graph.weight(4, 2 * four, 1, 1)))
    model = on_components(graph)
    cuts = [node for node in model.graph if list(node.attributes.get("strides", ir.AttrInt64s("", [])).value) == [2, 2]]
    assert dense(model) == 0
    assert len(cuts) == 4 * 3  # the graph's input, the pooled image and the projection, not the first layer's image


def test_winograd_on_components_keeps_its_digits() -> None:
    """Against float64, on as many channels as the largest networks have: the bound in docs/performance.md."""
    channels, shape = 512, (1, 512, 16, 16)
    graph = Images(shape)
    graph.add("Conv", "x", graph.weight(channels, channels, 3, 3), pads=[1] * 4)
    weight = numpy_helper.to_array(graph.weights[0]).astype(np.float64)
    x = RNG.normal(0, 1, shape).astype(np.float32)
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    exact = np.einsum("nchwij,ocij->nohw", windows, weight, optimize=True)
    model = on_components(graph)
    assert dense(model) == 0
    assert np.abs(run(model, x) - exact).max() / exact.std() < 2e-5


def test_upsampling_by_a_broken_factor_is_no_doubling() -> None:
    graph = Images([1, 4, 5, 5])
    scales = graph.constant(np.array([1, 1, 2.1, 2.1], np.float32))
    modes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    graph.add("Resize", "x", "", scales, **modes)
    graph.size = [10, 10]
    graph.conv(4)
    assert dense(on_components(graph)) == 0


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
