"""Two pointwise layers in a row as one.

Without an activation between them, the second's weights times the first's are those of one layer:

    w2 (w1 x + b1) + b2 = (w2 w1) x + (w2 b1 + b2)

ONNX Runtime multiplies the weights once, when it loads the file. The first may be a linear layer of tokens, between the
flattening of an image and its return: that is a pointwise convolution, too. SegFormer's decoder has such pairs once its
convolution comes before its upsamplings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir

from segonnx.optimize.base import Rewrite
from segonnx.optimize.builder import Builder
from segonnx.optimize.reading import bias, group, is_constant, is_operator, is_pointwise, is_static, is_used_once, shape

LEAST_SAVED = 2
"""How many times what one layer multiplies the two must; with less, two small layers are the faster ones where cores
share no last cache. See docs/decisions/0142."""


class MergePointwisePass(Rewrite):
    """Replace a pointwise layer, and the pointwise convolution that alone uses its result, by one convolution.

    requires: constant weights; sizes that are known; one layer that multiplies at most half of what the two do. What
        doesn't match stays.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for conv in list(model.graph):
            if _is_dense(conv):
                first = _convolution(conv.inputs[0]) or _linear_of_tokens(conv.inputs[0])
                if first is not None and _saves(first, conv):
                    _merge(model.graph, first, conv)
                    modified = True
        return ir.passes.PassResult(model, modified)


@dataclass(frozen=True)
class _Layer:
    """A pointwise layer whose result has one user.

    Attributes:
        x: the image that it takes (N, C, ...).
        weight: (outputs, inputs, 1, ...) of a convolution, (inputs, outputs) of a linear layer.
        offset: its bias (outputs,); None where it has none.
        nodes: what makes it, the last first. Nobody else takes their values.
    """

    x: ir.Value
    weight: ir.Value
    offset: ir.Value | None
    nodes: list[ir.Node]


def _is_dense(node: ir.Node) -> bool:
    """Whether the node is a pointwise convolution in one group, of an image of known size."""
    return (
        is_pointwise(node)
        and group(node) == 1
        and all(map(is_static, (*node.inputs[:2], *node.outputs)))
        and all(value is None or is_constant(value) for value in node.inputs[1:])
    )


def _makers(value: ir.Value | None, *operators: str) -> list[ir.Node] | None:
    """The nodes that make a value one after another, the last first, each for the next alone; None if others do.

    Args:
        value: what they make.
        operators: theirs, the last first.
    """
    nodes: list[ir.Node] = []
    for operator in operators:
        node = value.producer() if value is not None and is_used_once(value) else None
        if node is None or not is_operator(node, operator):
            return None
        nodes.append(node)
        value = next((given for given in node.inputs if given is not None and not is_constant(given)), None)
    return nodes


def _convolution(y: ir.Value | None) -> _Layer | None:
    """The pointwise convolution that gives a value; None where it comes from anything else, or has other users."""
    nodes = _makers(y, "Conv")
    if nodes is None or not _is_dense(nodes[0]):
        return None
    x, weight = nodes[0].inputs[:2]
    assert x is not None and weight is not None
    return _Layer(x, weight, bias(nodes[0]), nodes)


def _linear_of_tokens(y: ir.Value | None) -> _Layer | None:
    """The linear layer of an image's pixels as tokens (N, pixels, C) that gives an image; None for anything else."""
    head, tail = ("Reshape", "Transpose"), ("MatMul", "Transpose", "Reshape")
    nodes = _makers(y, *head, "Add", *tail) or _makers(y, *head, *tail)
    if nodes is None or y is None:
        return None
    back, (product, there, flatten) = nodes[1], nodes[-3:]
    x, weight, tokens = flatten.inputs[0], product.inputs[1], flatten.outputs[0]
    added = nodes[2].inputs if nodes[2] is not product else ()
    offset = next((value for value in added if value is not None and is_constant(value)), None)
    if x is None or weight is None or not is_constant(weight):
        return None
    if not all(map(is_static, (x, weight, y, tokens, *([offset] if offset else [])))) or len(shape(weight)) != 2:
        return None
    (batch, _, *pixels), (inputs, outputs) = shape(x), shape(weight)
    fits = (
        all(list(node.attributes.get_ints("perm", ())) == [0, 2, 1] for node in (there, back))
        and shape(tokens) == [batch, inputs, math.prod(pixels)]
        and shape(y) == [batch, outputs, *pixels]
        and (offset is None or shape(offset) == [outputs])
    )
    return _Layer(x, weight, offset, nodes) if fits else None


def _saves(first: _Layer, conv: ir.Node) -> bool:
    """Whether one layer multiplies as much less for each voxel than the two as ``LEAST_SAVED`` asks."""
    outputs, between = shape(conv.inputs[1])[:2]
    inputs = shape(first.x)[1]
    return LEAST_SAVED * inputs * outputs <= between * (inputs + outputs)


def _merge(graph: ir.Graph, first: _Layer, conv: ir.Node) -> None:
    weight = conv.inputs[1]
    assert weight is not None
    build = Builder(graph)
    outputs, between, *ones = shape(weight)
    inputs = shape(first.x)[1]
    second = build.reshape(weight, outputs, between)
    matrix = (
        build("Transpose", first.weight, perm=[1, 0])
        if len(shape(first.weight)) == 2
        else build.reshape(first.weight, between, inputs)
    )
    weights = build.reshape(build("MatMul", second, matrix), outputs, inputs, *ones)
    weights.shape, weights.type = ir.Shape([outputs, inputs, *ones]), weight.type
    offset = bias(conv)
    if first.offset is not None:
        shifted = build.reshape(build("MatMul", second, build.reshape(first.offset, between, 1)), outputs)
        offset = shifted if offset is None else build("Add", shifted, offset)
    build.replace(conv, build("Conv", first.x, weights, *([offset] if offset else []), **dict(conv.attributes)))
    for node in first.nodes:
        graph.remove(node, safe=True)
