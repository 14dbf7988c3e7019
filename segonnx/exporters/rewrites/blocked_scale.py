"""Squeeze and excitation in ONNX Runtime's blocked layout.

Such a block takes the mean of each channel, computes a factor from it, and multiplies the channel by it. Neither the
mean as a reduction nor a product whose factor is spread over the plane has a blocked kernel, so the image was laid out
anew before and after. The mean as a pooling has one, and so has a product of two images of the same size, one of which
repeats the factor. Rows are pooled first, then the column of their means: GlobalAveragePool adds up a plane in one sum,
which loses digits.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from segonnx.exporters.rewrites.reading import shape
from segonnx.exporters.rewrites.slices import Builder

BLOCK = 16
"""Channels of a block: ONNX Runtime pools others in the plain layout, slower than it takes their mean."""


class BlockedScalePass(ir.passes.InPlacePass):
    """Replace means over the planes of images by AveragePool, and spread the factors of their channels by Resize.

    requires: static sizes; factors computed from such a mean of the image that they multiply. What doesn't match stays.
    ensures: every value keeps its shape and type; every weight stays as it is.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph):
            if (factor := _factor(node)) is None:
                continue
            image = node.inputs[1 - factor]
            assert image is not None
            mean = _mean_behind(node.inputs[factor], image)
            if mean is not None:
                _spread(model.graph, node, factor)
                _pool(model.graph, mean)
                modified = True
        return ir.passes.PassResult(model, modified)


def _factor(node: ir.Node) -> int | None:
    """Which input of a product is (N, C, 1, 1), where the other is (N, C, H, W)."""
    if node.domain != "" or node.op_type != "Mul":
        return None
    shapes = [value.shape if value is not None else None for value in node.inputs]
    if any(shape is None or len(shape) != 4 or not all(isinstance(size, int) for size in shape) for shape in shapes):
        return None
    for index, (mine, other) in enumerate(zip(shapes, reversed(shapes), strict=True)):
        if mine[:2] == other[:2] and tuple(mine[2:]) == (1, 1) and tuple(other[2:]) != (1, 1):  # type: ignore[index]
            return index
    return None


def _mean_behind(value: ir.Value | None, image: ir.Value) -> ir.Node | None:
    """The mean over the image's planes that the value is computed from, through convolutions and activations."""
    while value is not None and (node := value.producer()) is not None:
        if not node.inputs or value.shape is None or tuple(value.shape[2:]) != (1, 1):
            return None
        if node.inputs[0] is image and _is_mean(node):
            return node
        value = node.inputs[0]
    return None


def _is_mean(node: ir.Node) -> bool:
    if node.domain == "" and node.op_type == "GlobalAveragePool":
        return True
    if node.domain != "" or node.op_type != "ReduceMean" or len(node.inputs) < 2 or node.inputs[1] is None:
        return False
    axes = node.inputs[1].const_value
    kept = node.attributes["keepdims"].as_int() if "keepdims" in node.attributes else 1
    return kept == 1 and axes is not None and sorted(int(axis) % 4 for axis in np.ravel(axes.numpy())) == [2, 3]


def _spread(graph: ir.Graph, node: ir.Node, factor: int) -> None:
    image, value = node.inputs[1 - factor], node.inputs[factor]
    assert image is not None and image.shape is not None and value is not None
    height, width = (int(size) for size in image.shape[2:])  # type: ignore[arg-type]
    build = Builder(graph)
    scales = build.constant(f"scales_{height}_{width}", np.array([1, 1, height, width], np.float32))
    spread = build(
        "Resize", value, None, scales, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"
    )
    build.insert_before(node)
    node.replace_input_with(factor, spread)


def _pool(graph: ir.Graph, node: ir.Node) -> None:
    x = node.inputs[0]
    assert x is not None and x.shape is not None
    _, channels, height, width = shape(x)
    build = Builder(graph)
    if channels % BLOCK:
        pooled = build("ReduceMean", build("ReduceMean", x, build.integers(3)), build.integers(2))
    else:
        pooled = build("AveragePool", build("AveragePool", x, kernel_shape=[1, width]), kernel_shape=[height, 1])
    build.insert_before(node)
    y = node.outputs[0]
    pooled.shape, pooled.type = y.shape, y.type
    name, y.name = y.name, None
    y.replace_all_uses_with(pooled)
    pooled.name = name
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    graph.remove(node, safe=True)
    if axes is not None and axes.is_initializer() and not axes.uses() and axes.name is not None:
        del graph.initializers[axes.name]
