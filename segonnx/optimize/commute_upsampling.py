"""A 1x1x1 convolution before nearest upsampling, instead of after it.

Upsampling repeats voxels, and such a convolution treats each voxel alone, so the two commute exactly. With the
convolution first, every repeated voxel is computed once: at a factor of 2 in 3D, an eighth of the multiplications.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from segonnx.optimize.base import Rewrite
from segonnx.optimize.builder import Builder
from segonnx.optimize.reading import is_operator, is_used_once, pads_by_rule


class CommuteUpsamplingPass(Rewrite):
    """Swap Resize (nearest, by scales) and the pointwise Conv that alone uses its result.

    requires: nothing; what doesn't match stays.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for conv in list(model.graph):
            resize = conv.inputs[0].producer() if conv.inputs and conv.inputs[0] is not None else None
            if resize is not None and _is_pointwise(conv) and _is_nearest(resize):
                _swap(model.graph, resize, conv)
                modified = True
        return ir.passes.PassResult(model, modified)


def _is_pointwise(node: ir.Node) -> bool:
    if not is_operator(node, "Conv"):
        return False
    weight = node.inputs[1]
    if weight is None or weight.shape is None or any(size != 1 for size in weight.shape[2:]):
        return False
    strides, pads = node.attributes.get_ints("strides", ()), node.attributes.get_ints("pads", ())
    return all(stride == 1 for stride in strides) and not any(pads) and not pads_by_rule(node)


def _is_nearest(node: ir.Node) -> bool:
    if not is_operator(node, "Resize") or not is_used_once(node.outputs[0]):
        return False
    if len(node.inputs) < 3 or "axes" in node.attributes:
        return False
    scales = node.inputs[2].const_value if node.inputs[2] is not None else None
    if node.attributes.get_string("mode", "nearest") != "nearest" or scales is None:
        return False
    # Batch and channels must be left alone: the convolution changes the number of channels.
    factors = scales.numpy()
    return bool(np.all(factors[:2] == 1) and np.all(factors >= 1))


def _swap(graph: ir.Graph, resize: ir.Node, conv: ir.Node) -> None:
    x, y = resize.inputs[0], conv.outputs[0]
    assert x is not None
    build = Builder(graph)
    small = build("Conv", x, *conv.inputs[1:], **dict(conv.attributes))
    if x.shape is not None and y.shape is not None:
        small.shape = ir.Shape([*x.shape[:1], y.shape[1], *x.shape[2:]])
    small.type = y.type
    build.replace(conv, build("Resize", small, *resize.inputs[1:], **dict(resize.attributes)))
    graph.remove(resize, safe=True)
