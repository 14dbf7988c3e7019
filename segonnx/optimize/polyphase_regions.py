"""Which convolutions of a graph are worth making on polyphase components.

A region is a stretch of the graph in which values travel as components. Where it ends, in an operator that needs the
image, the components are interleaved again. A region pays if it has enough convolutions for that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet

import onnx_ir as ir

from segonnx.optimize import reading
from segonnx.optimize.reading import group, is_constant, is_operator, is_static, pads_by_rule, repeats, shape

MIN_INPUTS = 64
MIN_OUTPUTS = 128
"""With fewer channels the transforms take longer than the products save; see docs/performance.md."""
MIN_WORK = 500_000_000
"""With fewer multiply-adds the operators of a layer take longer to start and join than its products save, where cores
share no last cache; see docs/decisions/0141."""
LAYERS_PER_IMAGE = 2
"""Convolutions for each image that must be interleaved again, which costs about what one convolution saves."""
ACTIVATIONS = ("Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Clip")

Inside = Mapping[ir.Value, list[ir.Value]]
"""The values that travel as components, each with those of its node's inputs that do."""


def worthwhile(graph: ir.Graph) -> set[ir.Node]:
    """The convolutions to be made on components."""
    layers = {node for node in graph if _is_layer(node)}
    while True:
        inside = values_inside(graph, layers)
        for region in _regions(inside):
            mine = {value.producer() for value in region} & layers
            images = sum(any(not reads(user, inside, layers) for user in users(value)) for value in region)
            if images * LAYERS_PER_IMAGE > len(mine):
                layers -= mine  # which can leave another region with an image to interleave
                break
        else:
            return layers


def values_inside(graph: ir.Graph, layers: AbstractSet[ir.Node]) -> Inside:
    """The values that travel as components if these convolutions are made on them."""
    inside: dict[ir.Value, list[ir.Value]] = {}
    for node in graph:
        known = [value for value in node.inputs if value is not None and value in inside]
        if node in layers or (known and _is_pixelwise(node)):
            inside[node.outputs[0]] = known
    return inside


def _regions(inside: Inside) -> list[list[ir.Value]]:
    """The values, by what hangs together without an image being interleaved."""
    region: dict[ir.Value, list[ir.Value]] = {}
    for value, sources in inside.items():
        mine = [value]
        for other in {id(region[source]): region[source] for source in sources}.values():
            mine += other
        for member in mine:
            region[member] = mine
    return list({id(values): values for values in region.values()}.values())


def reads(node: ir.Node | None, inside: Inside, layers: AbstractSet[ir.Node]) -> bool:
    """Whether the node takes components; None stands for the graph's output."""
    if node is None:
        return False
    if node.outputs[0] in inside or is_strided(node):
        return True
    return joins_channels(node) and all(user in layers for user in users(node.outputs[0]))


def users(value: ir.Value) -> Iterator[ir.Node | None]:
    """The nodes that take the value; None for the graph's output."""
    yield from (use.node for use in value.uses())
    if value.is_graph_output():
        yield None


def is_strided(node: ir.Node) -> bool:
    """Whether the node is a convolution by two that can read its input's components."""
    return _is_convolution(node, kernel=3, stride=2) or _is_convolution(node, kernel=1, stride=2)


def is_doubling(node: ir.Node | None) -> bool:
    """Whether the node is a transposed convolution whose kernel and stride are two."""
    if node is None or not is_operator(node, "ConvTranspose") or not _is_image(node.outputs[0]):
        return False
    return (
        _has_weight(node, (2, 2))
        and node.attributes.get_ints("strides", (1, 1)) == (2, 2)
        and not any(node.attributes.get_ints("pads", ()))
        and not any(node.attributes.get_ints("output_padding", ()))
        and "output_shape" not in node.attributes
        and _is_plain(node)
    )


def is_repeating(node: ir.Node | None) -> bool:
    """Whether the node repeats each pixel twice along both axes."""
    if node is None or not is_operator(node, "Resize") or not _is_image(node.outputs[0]):
        return False
    return repeats(node) == [1, 1, 2, 2]


def joins_channels(node: ir.Node | None) -> bool:
    """Whether the node concatenates the channels of images."""
    return node is not None and reading.joins_channels(node, rank=4) and all(map(_is_image, node.inputs))


def _is_layer(node: ir.Node) -> bool:
    if not (_is_convolution(node, kernel=3, stride=1) and _is_image(node.outputs[0])):
        return False
    outputs, inputs, *kernel = shape(node.inputs[1])
    work = math.prod(shape(node.outputs[0])) * inputs * math.prod(kernel)
    return inputs >= MIN_INPUTS and outputs >= MIN_OUTPUTS and work >= MIN_WORK


def _is_pixelwise(node: ir.Node) -> bool:
    """Whether the node treats each pixel alone, so that it can treat the components one by one."""
    if node.domain != "" or not _is_image(node.outputs[0]):
        return False
    if node.op_type in ACTIVATIONS:
        return all(value is None or value.const_value is not None for value in node.inputs[1:])
    if node.op_type == "Add":
        return all(value is not None and value.shape == node.outputs[0].shape for value in node.inputs)
    return _is_convolution(node, kernel=1, stride=1)


def _is_image(value: ir.Value | None) -> bool:
    """Whether the value is (N, C, H, W) of float32, all sizes known, height and width even."""
    if value is None or not is_static(value) or value.dtype != ir.DataType.FLOAT:
        return False
    sizes = shape(value)
    return len(sizes) == 4 and not any(size % 2 for size in sizes[2:])


def _is_convolution(node: ir.Node, *, kernel: int, stride: int) -> bool:
    """Whether the node is such a convolution of an image, padded to keep its size but for the stride."""
    if not is_operator(node, "Conv") or not _is_image(node.inputs[0]):
        return False
    return (
        _has_weight(node, (kernel, kernel))
        and node.attributes.get_ints("strides", (1, 1)) == (stride,) * 2
        and node.attributes.get_ints("pads", (0,) * 4) == (kernel // 2,) * 4
        and _is_plain(node)
    )


def _has_weight(node: ir.Node, kernel: tuple[int, int]) -> bool:
    weight = node.inputs[1]
    return (
        weight is not None
        and is_constant(weight)
        and weight.shape is not None
        and tuple(weight.shape[2:]) == kernel
        and weight.dtype == ir.DataType.FLOAT
    )


def _is_plain(node: ir.Node) -> bool:
    """Whether a convolution has neither groups nor dilations nor padding by a rule."""
    return group(node) == 1 and node.attributes.get_ints("dilations", (1, 1)) == (1, 1) and not pads_by_rule(node)
