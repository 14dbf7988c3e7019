"""Which operators of a graph of images are worth making on rows.

A region is a stretch of the graph in which images travel as rows. Its 3x3 convolutions save multiplications. Its
borders, where images are laid out anew, and the operators between its convolutions, which ONNX Runtime would run in its
blocked layout, take time. All of that is counted in multiply-adds of a convolution; see docs/decisions/0143.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from itertools import combinations_with_replacement

import onnx_ir as ir

from segonnx.optimize import reading, rows
from segonnx.optimize.depth_rules import BINARY, UNARY
from segonnx.optimize.reading import (
    enlarges_linearly,
    group,
    is_constant,
    is_operator,
    is_static,
    pads_by_rule,
    repeats,
    shape,
)

LEAST_ROWS = 16
"""Of lower images, values have so few rows that their operators take longer to start and join than they save."""
FEW = 8
"""Input channels with which F(4, 3)'s transforms take longer than its products save."""
TRANSFORM = 120
"""For each number that a 3x3 convolution takes or gives, or that crosses a border."""
TRANSFORM_FOR_NORM = 60
"""The same with a norm behind the convolution, for which ONNX Runtime lays its output out anew in any case."""
LAYOUT = 50
"""For each number that another convolution takes or gives, unless a norm is behind it."""
PASS = 25
"""For each number that an activation or a sum gives, which ONNX Runtime would make inside a convolution in the blocked
layout, and makes inside a norm on rows."""
NODE = 1_000_000
"""For the operators of a convolution to start and join."""
WITHIN = ("Concat", "InstanceNormalization", "ConvTranspose")
"""Operators that take as long on rows as on images."""
ENTRY = 4
"""How many times the channels that it takes a convolution gives at least, for a region to begin with it."""


def worthwhile(graph: ir.Graph, able: AbstractSet[ir.Node]) -> set[ir.Node]:
    """The nodes to be made on rows: those that save most, on images from one height to another.

    Args:
        graph: of images.
        able: the nodes that can be.
    """
    heights = sorted({height for node in able for height in _heights(node)})
    most: tuple[int, set[ir.Node]] = (0, set())
    for least, greatest in combinations_with_replacement(heights, 2):
        some = {node for node in able if least <= min(_heights(node)) and max(_heights(node)) <= greatest}
        paying = [(_saved(region), region) for region in _regions(graph, _between(graph, some))]
        paying = [(saved, region) for saved, region in paying if saved > 0]
        found = sum(saved for saved, _ in paying), {node for _, region in paying for node in region}
        most = max(most, found, key=lambda choice: choice[0])
    return most[1]


def can_be_rows(node: ir.Node) -> bool:
    """Whether there is a rule for the node, and its images have rows enough, and as many as its windows ask for."""
    if node.domain != "" or len(node.outputs) != 1 or not node.inputs or node.inputs[0] is None:
        return False
    images = _images(node)
    if not images or not all(map(_is_image, (*images, node.outputs[0]))):
        return False
    before, after = shape(images[0]), shape(node.outputs[0])
    match node.op_type:
        case "InstanceNormalization":
            return True
        case "Concat":
            return reading.joins_channels(node, rank=4)
        case "Resize":
            factors = repeats(node) or enlarges_linearly(node)
            return factors is not None and factors[:2] == [1, 1]
        case "Conv" | "ConvTranspose" | "MaxPool" | "AveragePool":
            stride = node.attributes.get_ints("strides", (1, 1))[0]
            large, small = (after, before) if node.op_type == "ConvTranspose" else (before, after)
            return large[2] == small[2] * stride and not pads_by_rule(node) and _has_small_windows(node)
        case kind if kind in BINARY:
            return all(shape(image) == after for image in images)
        case kind:
            return kind in UNARY


def _is_image(value: ir.Value | None) -> bool:
    """Whether the value is (1, C, H, W) of float32, all sizes known, and divides into values of rows."""
    if value is None or not is_static(value) or value.dtype != ir.DataType.FLOAT:
        return False
    sizes = shape(value)
    return len(sizes) == 4 and sizes[0] == 1 and sizes[2] % rows.COUNT == 0 and sizes[2] >= LEAST_ROWS


def _has_small_windows(node: ir.Node) -> bool:
    """Whether a convolution or a pooling reaches no more rows than a value's neighbours hold, and has no groups."""
    if node.op_type.endswith("Pool"):
        kernel = node.attributes.get_ints("kernel_shape", ())
    else:
        weight = node.inputs[1]
        if weight is None or not is_constant(weight) or not is_static(weight) or group(node) != 1:
            return False
        kernel = shape(weight)[2:]
    apart = node.attributes.get_ints("dilations", (1, 1))[0]
    pads = node.attributes.get_ints("pads", (0,) * 4)
    return (kernel[0] - 1) * apart < rows.COUNT and max(pads) < rows.COUNT


def _images(node: ir.Node) -> list[ir.Value]:
    """The images that a node takes."""
    return [value for value in node.inputs if value is not None and not is_constant(value)]


def _heights(node: ir.Node) -> set[int]:
    return {shape(value)[2] for value in (*_images(node), node.outputs[0])}


def _sources(node: ir.Node) -> Iterator[ir.Node | None]:
    return (value.producer() for value in _images(node))


def _users(value: ir.Value) -> Iterator[ir.Node]:
    return (use.node for use in value.uses())


def _is_normalized(node: ir.Node) -> bool:
    return any(is_operator(user, "InstanceNormalization") for user in _users(node.outputs[0]))


def _slides(node: ir.Node) -> bool:
    """Whether the node is a convolution that F(4, 3) makes."""
    if not is_operator(node, "Conv") or group(node) != 1:
        return False
    _, inputs, *kernel = shape(node.inputs[1])
    steps = *node.attributes.get_ints("dilations", (1, 1)), *node.attributes.get_ints("strides", (1, 1))
    pads = node.attributes.get_ints("pads", (0,) * 4)
    return inputs > FEW and kernel == [3, 3] and set(steps) == {1} and set(pads) == {1}


def _gain(node: ir.Node) -> int:
    """Multiply-adds that a node saves on rows; less than 0 where it takes more."""
    taken, given = (sum(math.prod(shape(value)) for value in values) for values in (_images(node), node.outputs))
    if _slides(node):
        transform = TRANSFORM_FOR_NORM if _is_normalized(node) else TRANSFORM
        return given * math.prod(shape(node.inputs[1])[1:]) // 2 - transform * (taken + given) - NODE
    if node.op_type == "Conv":
        return 0 if _is_normalized(node) else -LAYOUT * (taken + given) - NODE
    inside = node.op_type in WITHIN or any(is_operator(source, "InstanceNormalization") for source in _sources(node))
    return 0 if inside else -PASS * given


def _between(graph: ir.Graph, able: AbstractSet[ir.Node]) -> set[ir.Node]:
    """The convolutions that save, what stands between two of them, and what follows the last and gives no more."""
    layers = {node for node in able if _slides(node) and _gain(node) > 0}
    after: set[ir.Node | None] = set()
    for node in graph:
        if node in able and (node in layers or _enters(node) or any(source in after for source in _sources(node))):
            after.add(node)
    before: set[ir.Node] = set()
    for node in reversed(graph):
        if node in able and (node in layers or any(user in before for user in _users(node.outputs[0]))):
            before.add(node)
    found = layers | {node for node in before if node in after}
    for node in graph:
        if node in able and _follows(node) and all(source in found for source in _sources(node)):
            found.add(node)
    return found


def _enters(node: ir.Node) -> bool:
    """Whether a convolution takes so much less than it gives that its input is laid out, and not its output."""
    return is_operator(node, "Conv") and shape(node.inputs[0])[1] * ENTRY <= shape(node.outputs[0])[1]


def _follows(node: ir.Node) -> bool:
    fewer = math.prod(shape(node.outputs[0])) <= math.prod(shape(node.inputs[0]))
    return fewer and node.op_type in (*UNARY, *BINARY, "InstanceNormalization", "Conv")


def _regions(graph: ir.Graph, nodes: AbstractSet[ir.Node]) -> list[list[ir.Node]]:
    """The nodes, by what hangs together: one takes what another gives, or both take the same."""
    region: dict[ir.Node, list[ir.Node]] = {}
    for node in graph:
        if node not in nodes:
            continue
        near = [*_sources(node), *(user for value in _images(node) for user in _users(value))]
        mine = [node]
        for other in {id(region[one]): region[one] for one in near if one in region}.values():
            mine += other
        for member in mine:
            region[member] = mine
    return list({id(members): members for members in region.values()}.values())


def _saved(region: list[ir.Node]) -> int:
    """What the nodes of a region save, less what its borders take."""
    members = set(region)
    entering = {value for node in region for value in _images(node) if value.producer() not in members}
    leaving = {
        value
        for node in region
        for value in node.outputs
        if value.is_graph_output() or any(user not in members for user in _users(value))
    }
    crossing = sum(math.prod(shape(value)) for value in entering | leaving)
    return sum(map(_gain, region)) - TRANSFORM * crossing
