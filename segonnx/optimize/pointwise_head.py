"""The head, a pointwise convolution, without its bias.

ONNX Runtime adds the bias of such a convolution in a pass of its own over the output. The head's output is the largest
value of a network by far (490 MB for 117 classes of a 64x128x128 patch), so that pass takes longer than the product.
With a channel of ones among the inputs, the bias is one more column of the weight:

    y = w x + b = [w b] [x; 1]

Where a transposed convolution comes before the head it makes the ones itself, from weights of 0 and a bias of 1.
"""

from __future__ import annotations

import onnx_ir as ir

from segonnx.optimize.base import Rewrite
from segonnx.optimize.builder import Builder
from segonnx.optimize.reading import bias, group, is_constant, is_operator, is_static, is_used_once, pads_by_rule, shape


class PointwiseHeadPass(Rewrite):
    """Replace the pointwise Conv with more outputs than inputs that gives the graph's output by one without bias.

    requires: nothing; open sizes and other heads stay.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for value in list(model.graph.outputs):
            node = value.producer()
            if node is not None and _matches(node):
                _replace(model.graph, node)
                modified = True
        return ir.passes.PassResult(model, modified)


def _matches(node: ir.Node) -> bool:
    if not is_operator(node, "Conv") or bias(node) is None:
        return False
    x, weight, y = node.inputs[0], node.inputs[1], node.outputs[0]
    if weight is None or weight.shape is None or not is_constant(weight):
        return False
    outputs, inputs, *kernel = shape(weight)
    strides, pads = node.attributes.get_ints("strides", ()), node.attributes.get_ints("pads", ())
    return (
        set(kernel) == {1}
        and outputs > inputs
        and set(strides) <= {1}
        and not any(pads)
        and group(node) == 1
        and not pads_by_rule(node)
        and not y.uses()
        and is_static(x)
        and is_static(y)
    )


def _replace(graph: ir.Graph, node: ir.Node) -> None:
    x, weight, offset = node.inputs
    assert x is not None and weight is not None and offset is not None
    batch, _, *spatial = shape(x)
    build = Builder(graph)
    column = build.reshape(offset, shape(weight)[0], 1, *[1] * len(spatial))
    before = x.producer()
    if before is not None and _can_make_ones(before):
        extended = _with_ones(build, before)
    elif before is not None and _stacks_slices(before):
        # A slice is still in the caches; the volume, copied once more, wouldn't be.
        ones = build.filled(1.0, batch, 1, 1, *spatial[1:])
        extended = build.concat([build.concat([value, ones], 1) for value in before.inputs if value is not None], 2)
    else:
        extended = build.concat([x, build.filled(1.0, batch, 1, *spatial)], 1)
    attributes = {name: attribute for name, attribute in node.attributes.items() if name != "kernel_shape"}
    build.replace(node, build("Conv", extended, build.concat([weight, column], 1), **attributes))
    if before is not None and not x.uses() and not x.is_graph_output():
        graph.remove(before, safe=True)


def _can_make_ones(node: ir.Node) -> bool:
    """Whether the node is a transposed convolution that the head alone uses."""
    if not is_operator(node, "ConvTranspose") or bias(node) is None or group(node) != 1:
        return False
    weight = node.inputs[1]
    return is_used_once(node.outputs[0]) and weight is not None and weight.shape is not None


def _stacks_slices(node: ir.Node) -> bool:
    """Whether the node concatenates depth slices, each of depth 1, for the head alone."""
    y = node.outputs[0]
    if not is_operator(node, "Concat") or node.attributes.get_int("axis") != 2:
        return False
    return is_used_once(y) and shape(y)[2] == len(node.inputs) > 1


def _with_ones(build: Builder, node: ir.Node) -> ir.Value:
    """The output of the transposed convolution with one more channel, of ones."""
    x, weight, offset = node.inputs
    assert weight is not None and offset is not None
    inputs, _, *kernel = shape(weight)
    zeros, ones = build.filled(0.0, inputs, 1, *kernel), build.filled(1.0, 1)
    weights, offsets = build.concat([weight, zeros], 1), build.concat([offset, ones], 0)
    return build("ConvTranspose", x, weights, offsets, **dict(node.attributes))
