"""A pointwise convolution before upsampling, instead of after it.

Upsampling gives each voxel a mean of voxels of the same channel, and a pointwise convolution sums over the channels of
a voxel, so the two commute exactly; the weights of the mean sum to one, so the bias does, too. With the convolution
first, a voxel is multiplied once, and not once for each voxel that it becomes: at a factor of 2 in 3D, that is an
eighth of the multiplications.

A pointwise convolution of concatenated channels is a sum of convolutions of the parts, so parts that are upsampled are
convolved before that, each at its own size. SegFormer's decoder is such a convolution, and most of that network's work.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from segonnx.optimize.base import Rewrite
from segonnx.optimize.builder import Builder
from segonnx.optimize.reading import (
    group,
    is_operator,
    is_pointwise,
    is_static,
    is_used_once,
    joins_channels,
    shape,
)

MEANS = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric")
"""The coordinate modes of Resize in which every voxel that it gives is a mean of voxels: it takes none from outside."""


class CommuteUpsamplingPass(Rewrite):
    """Put pointwise convolutions before the upsamplings whose results they alone use.

    Where the result is concatenated with others first, the convolution is divided into those of the parts.

    requires: an upsampling by constant scales or sizes that leaves batch and channels alone. Other than nearest
        neighbours it must get no more channels by this. What doesn't match stays.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = _remove_idle(model.graph)
        for conv in list(model.graph):
            source = conv.inputs[0].producer() if conv.inputs and conv.inputs[0] is not None else None
            if source is None or not is_pointwise(conv):
                continue
            if _commutes(source, conv):
                _swap(model.graph, source, conv)
                modified = True
            elif _joins_upsampled(source, conv):
                for part in _divide(model.graph, source, conv):
                    _swap(model.graph, *part)
                modified = True
        return ir.passes.PassResult(model, modified)


def _remove_idle(graph: ir.Graph) -> bool:
    """Leave out every Resize to the size that its input has; whether there was one."""
    idle = [node for node in graph if is_operator(node, "Resize") and _is_idle(node)]
    for node in idle:
        assert node.inputs[0] is not None
        ir.convenience.replace_all_uses_with(node.outputs[0], node.inputs[0])
        graph.remove(node, safe=True)
    return bool(idle)


def _is_idle(resize: ir.Node) -> bool:
    """Whether a Resize gives what it takes, to other nodes than the graph's output."""
    x, y = resize.inputs[0], resize.outputs[0]
    if not is_static(x) or not is_static(y) or y.is_graph_output() or not _takes_means(resize):
        return False
    scales = resize.inputs[2] if len(resize.inputs) > 2 else None
    given = scales.const_value if scales is not None else None
    return shape(x) == shape(y) and (scales is None or (given is not None and bool(np.all(given.numpy() == 1))))


def _takes_means(resize: ir.Node) -> bool:
    """Whether every voxel that a Resize gives is a mean of voxels."""
    return resize.attributes.get_string("coordinate_transformation_mode", "half_pixel") in MEANS


def _commutes(resize: ir.Node, conv: ir.Node) -> bool:
    """Whether a convolution of the Resize's whole result, or of a part that has it, can and should come first."""
    if not is_operator(resize, "Resize") or not is_used_once(resize.outputs[0]) or "axes" in resize.attributes:
        return False
    if not _takes_means(resize) or not _enlarges(resize):
        return False
    x, y = resize.inputs[0], conv.outputs[0]
    if resize.attributes.get_string("mode", "nearest") == "nearest":
        return True
    return is_static(x) and is_static(y) and shape(y)[1] <= shape(x)[1]


def _enlarges(resize: ir.Node) -> bool:
    """Whether a Resize leaves batch and channels alone, and makes no axis smaller, whatever its input's size."""
    if len(resize.inputs) > 2 and resize.inputs[2] is not None:
        scales = resize.inputs[2].const_value
        if scales is None:
            return False
        factors = scales.numpy()
        return bool(np.all(factors[:2] == 1) and np.all(factors >= 1))
    x, y = resize.inputs[0], resize.outputs[0]
    if not is_static(x) or not is_static(y):
        return False
    before, after = shape(x), shape(y)
    return before[:2] == after[:2] and all(small <= large for small, large in zip(before, after, strict=True))


def _joins_upsampled(concat: ir.Node, conv: ir.Node) -> bool:
    """Whether a convolution takes a concatenation of channels that nothing else takes, with upsampled ones."""
    if not is_operator(concat, "Concat") or group(conv) != 1 or not all(map(is_static, concat.inputs)):
        return False
    if not joins_channels(concat, rank=len(shape(concat.inputs[0]))) or not is_used_once(concat.outputs[0]):
        return False
    makers = [value.producer() for value in concat.inputs if value is not None]
    return any(maker is not None and _saves(maker, conv) for maker in makers)


def _saves(resize: ir.Node, conv: ir.Node) -> bool:
    """Whether it pays to convolve a part before it is upsampled: it has at least the channels that come out."""
    if not _commutes(resize, conv):
        return False
    before, after = shape(resize.inputs[0]), shape(resize.outputs[0])
    return math.prod(before) < math.prod(after) and shape(conv.outputs[0])[1] <= before[1]


def _divide(graph: ir.Graph, concat: ir.Node, conv: ir.Node) -> list[tuple[ir.Node, ir.Node]]:
    """Replace a convolution of concatenated channels by a sum of those of its parts.

    Parts that aren't upsampled stay together. They come last: ONNX Runtime adds the sum inside their convolution.

    Returns:
        The upsamplings, each with the convolution of its result.
    """
    weight, y = conv.inputs[1], conv.outputs[0]
    assert weight is not None
    outputs, _, *kernel = shape(weight)
    build = Builder(graph)
    resizes: list[ir.Node] = []
    upsampled: list[tuple[ir.Value, ir.Value]] = []
    others: list[tuple[ir.Value, ir.Value]] = []
    parts = [value for value in concat.inputs if value is not None]
    for part, piece in zip(parts, build.split(weight, [shape(part)[1] for part in parts], 1), strict=True):
        piece.shape, piece.type = ir.Shape([outputs, shape(part)[1], *kernel]), weight.type
        maker = part.producer()
        if maker is not None and _saves(maker, conv):
            resizes.append(maker)
            upsampled.append((part, piece))
        else:
            others.append((part, piece))
    last = [tuple(build.concat(values, 1) for values in zip(*others, strict=True))] if others else []
    terms = [*upsampled, *last]
    products = [
        build("Conv", *term, *(conv.inputs[2:] if term is terms[-1] else ()), **dict(conv.attributes)) for term in terms
    ]
    total = products[0]
    for product in products[1:]:
        total = build("Add", product, total)
        total.shape, total.type = y.shape, y.type
    for product in products:
        product.shape, product.type = y.shape, y.type
    build.replace(conv, total)
    graph.remove(concat, safe=True)
    return [(resize, resize.outputs[0].consumers()[0]) for resize in resizes]


def _swap(graph: ir.Graph, resize: ir.Node, conv: ir.Node) -> None:
    x, y = resize.inputs[0], conv.outputs[0]
    assert x is not None
    build = Builder(graph)
    small = build("Conv", x, *conv.inputs[1:], **dict(conv.attributes))
    if x.shape is not None and y.shape is not None:
        small.shape = ir.Shape([*x.shape[:1], y.shape[1], *x.shape[2:]])
    small.type = y.type
    asked = list(resize.inputs[1:])
    if len(asked) > 2 and asked[2] is not None:
        asked[2] = build.integers(*shape(y))  # the sizes name the channels, too
    build.replace(conv, build("Resize", small, *asked, **dict(resize.attributes)))
    graph.remove(resize, safe=True)
