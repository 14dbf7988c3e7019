"""The head, a pointwise convolution, without its bias.

ONNX Runtime adds the bias of such a convolution in a pass of its own over the output. The head's output is the largest
value of a network by far (490 MB for 117 classes of a 64x128x128 patch), so that pass takes longer than the product.
With a channel of ones among the inputs, the bias is one more column of the weight:

    y = w x + b = [w b] [x; 1]

Where a transposed convolution comes before the head it makes the ones itself, from weights of 0 and a bias of 1.
"""

from __future__ import annotations

import onnx_ir as ir

from segonnx.optimize.slices import Builder


class PointwiseHeadPass(ir.passes.InPlacePass):
    """Replace the pointwise Conv with more outputs than inputs that gives the graph's output by one without bias.

    requires: nothing; open sizes and other heads stay.
    ensures: the output keeps its name, shape and type; every initializer stays as it is.
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
    if node.domain != "" or node.op_type != "Conv" or len(node.inputs) < 3 or node.inputs[2] is None:
        return False
    x, weight, y = node.inputs[0], node.inputs[1], node.outputs[0]
    if x is None or weight is None or weight.shape is None or weight.const_value is None:
        return False
    if any(size != 1 for size in weight.shape[2:]) or weight.shape[0] <= weight.shape[1]:  # type: ignore[operator]
        return False
    for name, neutral in (("strides", 1), ("pads", 0), ("group", 1)):
        if name in node.attributes:
            found = node.attributes[name].value
            if any(number != neutral for number in (found if isinstance(found, (list, tuple)) else (found,))):
                return False
    if "auto_pad" in node.attributes and node.attributes["auto_pad"].as_string() != "NOTSET":
        return False
    return not y.uses() and all(
        value.shape is not None and all(isinstance(size, int) for size in value.shape) for value in (x, y)
    )


def _replace(graph: ir.Graph, node: ir.Node) -> None:
    x, weight, bias = node.inputs
    y = node.outputs[0]
    assert x is not None and weight is not None and bias is not None and x.shape is not None and y.shape is not None
    batch, _, *spatial = (int(size) for size in x.shape)  # type: ignore[arg-type]
    build = Builder(graph)
    column = build.reshape(bias, int(y.shape[1]), 1, *[1] * len(spatial))  # type: ignore[arg-type]
    before = x.producer()
    if before is not None and _can_make_ones(before):
        extended = _with_ones(build, before)
    elif before is not None and _joins_slices(before):
        # A slice is still in the caches; the volume, copied once more, wouldn't be.
        one = build.filled(1.0, batch, 1, 1, *spatial[1:])
        extended = build.concat([build.concat([value, one], 1) for value in before.inputs if value is not None], 2)
    else:
        ones = build.filled(1.0, batch, 1, *spatial)
        extended = build.concat([x, ones], 1)
    weights = build.concat([weight, column], 1)
    attributes = [one for one in node.attributes.values() if one.name != "kernel_shape"]
    head = ir.Node("", "Conv", (extended, weights), attributes=attributes)
    build.insert_before(node)
    graph.insert_before(node, head)
    value = head.outputs[0]
    value.shape, value.type = y.shape, y.type
    name, y.name = y.name, None
    y.replace_all_uses_with(value, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    if before is not None and not x.uses() and not x.is_graph_output():
        graph.remove(before, safe=True)
    value.name = name


def _can_make_ones(node: ir.Node) -> bool:
    """Whether the node is a transposed convolution that the head alone uses."""
    if node.domain != "" or node.op_type != "ConvTranspose" or len(node.inputs) < 3 or node.inputs[2] is None:
        return False
    group = node.attributes["group"].as_int() if "group" in node.attributes else 1
    out, weight = node.outputs[0], node.inputs[1]
    only = len(out.uses()) == 1 and not out.is_graph_output()
    return only and group == 1 and weight is not None and weight.shape is not None


def _joins_slices(node: ir.Node) -> bool:
    """Whether the node puts depth slices, one by one, together for the head alone."""
    y = node.outputs[0]
    if node.domain != "" or node.op_type != "Concat" or node.attributes["axis"].as_int() != 2:
        return False
    assert y.shape is not None
    return len(y.uses()) == 1 and not y.is_graph_output() and y.shape[2] == len(node.inputs) > 1


def _with_ones(build: Builder, node: ir.Node) -> ir.Value:
    """The transposed convolution with one more channel, of ones."""
    x, weight, bias = node.inputs
    assert weight is not None and bias is not None and weight.shape is not None
    inputs, _, *kernel = (int(size) for size in weight.shape)  # type: ignore[arg-type]
    zeros = build.filled(0.0, inputs, 1, *kernel)
    one = build.filled(1.0, 1)
    inputs_ = (x, build.concat([weight, zeros], 1), build.concat([bias, one], 0))
    return build("ConvTranspose", *inputs_, **dict(node.attributes))
