"""A convolution of concatenated channels as a sum of convolutions of the parts, where the parts have different layouts.

A U-Net's skip comes from convolutions, in ONNX Runtime's blocked layout; what is joined to it comes from a transposed
convolution, which has no blocked kernel. To be joined, the skip was laid out anew, copied, and laid out anew again. Of
two convolutions each takes its part as it is, and ONNX Runtime adds the second to the first inside its kernel.
"""

from __future__ import annotations

import onnx_ir as ir

from segonnx.optimize.reading import group, is_convolution2d
from segonnx.optimize.slices import Builder

BLOCK = 16
"""Channels of a block; parts that don't fill theirs would be convolved with zeros."""


class SplitConcatPass(ir.passes.InPlacePass):
    """Replace 2D convolutions of concatenated channels by sums of convolutions.

    requires: weights that are initializers; a concatenation that nothing else takes, of parts of whole
        blocks of channels, some but not all from transposed convolutions. What doesn't match stays.
    ensures: the convolution's value keeps its name, shape and type; every initializer stays as it is.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph):
            concat = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
            if concat is not None and is_convolution2d(node) and group(node) == 1 and _joins_layouts(concat):
                _split(model.graph, node, concat)
                modified = True
        return ir.passes.PassResult(model, modified)


def _joins_layouts(node: ir.Node) -> bool:
    if node.domain != "" or node.op_type != "Concat" or node.attributes["axis"].as_int() not in (1, -3):
        return False
    y = node.outputs[0]
    if len(y.uses()) != 1 or y.is_graph_output():
        return False
    for value in node.inputs:
        if value is None or value.shape is None or not isinstance(value.shape[1], int) or value.shape[1] % BLOCK:
            return False
    makers = [value.producer() for value in node.inputs if value is not None]
    transposed = [maker is not None and maker.op_type == "ConvTranspose" for maker in makers]
    return any(transposed) and not all(transposed)


def _split(graph: ir.Graph, node: ir.Node, concat: ir.Node) -> None:
    weight, y = node.inputs[1], node.outputs[0]
    assert weight is not None
    build = Builder(graph)
    parts = [value for value in concat.inputs if value is not None]
    channels = [int(part.shape[1]) for part in parts if part.shape is not None]  # type: ignore[arg-type]
    weights = build.split(weight, channels, 1)
    total: ir.Value | None = None
    for part, one in zip(parts, weights, strict=True):
        more = node.inputs[2:] if total is None else ()
        value = build("Conv", part, one, *more, **dict(node.attributes))
        value.shape, value.type = y.shape, y.type
        total = value if total is None else build("Add", value, total)
    assert total is not None
    build.insert_before(node)
    total.shape, total.type = y.shape, y.type
    name, y.name = y.name, None
    y.replace_all_uses_with(total, replace_graph_outputs=True)
    total.name = name
    graph.remove((node, concat), safe=True)
