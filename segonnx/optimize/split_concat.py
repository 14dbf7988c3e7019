"""A convolution of concatenated channels as a sum of convolutions of the parts, where the parts have different layouts.

A U-Net's skip comes from convolutions, in ONNX Runtime's blocked layout. What it is concatenated with comes from a
transposed convolution, which has no blocked kernel. For the concatenation, ONNX Runtime lays the skip out anew, copies
it, and lays it out anew again. With a convolution of each part it takes both as they are, and adds the second
convolution to the first inside its kernel.
"""

from __future__ import annotations

import onnx_ir as ir

from segonnx.optimize.base import Rewrite
from segonnx.optimize.builder import Builder
from segonnx.optimize.reading import group, is_convolution2d, is_used_once, joins_channels

BLOCK = 16
"""Channels of a block. A part that doesn't fill its blocks would be convolved with zeros."""


class SplitConcatPass(Rewrite):
    """Replace 2D convolutions of concatenated channels by sums of convolutions.

    requires: constant weights; a concatenation that nothing else takes, of parts of whole
        blocks of channels, some but not all from transposed convolutions. What doesn't match stays.
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
    if not joins_channels(node, rank=4) or not is_used_once(node.outputs[0]):
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
    for part, its_weight in zip(parts, weights, strict=True):
        bias = node.inputs[2:] if total is None else ()
        value = build("Conv", part, its_weight, *bias, **dict(node.attributes))
        value.shape, value.type = y.shape, y.type
        total = value if total is None else build("Add", value, total)
    assert total is not None
    build.replace(node, total)
    graph.remove(concat, safe=True)
