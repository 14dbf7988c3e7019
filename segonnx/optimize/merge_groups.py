"""Grouped convolutions with groups of 16 channels.

ONNX Runtime's blocked kernels take a grouped convolution only if each group fills a block: 16 channels with AVX-512 and
on Arm. With other groups the convolution runs several times slower: ONNX Runtime lays out anew each group, and the
values before and after it. Two groups of 8 channels are one of 16 whose weight is zero across the two. That takes
twice the multiplications, in the fast kernel.

Where the channels aren't a multiple of 16, the convolutions before and after get channels of zeros.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from segonnx.optimize.base import Rewrite
from segonnx.optimize.builder import Builder
from segonnx.optimize.reading import bias, group, is_convolution2d, is_operator, is_used_once, shape

BLOCK = 16
GROUP = 8
"""Channels of a group. With smaller groups the additional multiplications would take longer than the kernel saves."""
ACTIVATIONS = frozenset({"Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish"})


class MergeGroupsPass(Rewrite):
    """Merge the groups of 2D convolutions in twos, where a group has 8 input and 8 output channels.

    requires: constant weights; where the channels aren't a multiple of 16, that convolutions without
        groups make the input and alone take the output, activations between them. What doesn't match stays.
    """

    blocks = "avx512"  # with AVX2 a group of 8 fills a block, and the zeros are work for nothing

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph):
            if _matches(node):
                modified = _merge(node) or modified
        return ir.passes.PassResult(model, modified)


def _matches(node: ir.Node) -> bool:
    if not is_convolution2d(node):
        return False
    outputs, inputs, *_ = shape(node.inputs[1])
    return group(node) > 1 and inputs == GROUP and outputs == GROUP * group(node)


def _merge(node: ir.Node) -> bool:
    """Merge the groups of a convolution; whether the channels around it allow that."""
    graph, weight = node.graph, node.inputs[1]
    assert isinstance(graph, ir.Graph) and weight is not None
    channels, _, *kernel = shape(weight)
    more = -channels % BLOCK
    if more:
        makers, takers = _before(node), _after(node)
        if makers is None or takers is None:
            return False
        _give_more(graph, makers[0], more)
        _take_more(graph, takers[-1], more)
        for widened in (*makers, node, *takers[:-1]):
            _widen(widened.outputs[0], more)
        _give_more(graph, node, more)
        weight = node.inputs[1]
        assert weight is not None
    build = Builder(graph)
    blocks = (channels + more) // BLOCK
    times = BLOCK // GROUP
    eye = build.constant("groups_of_8_in_16", np.eye(times, dtype=np.float32).reshape(times, 1, times, 1))
    square = build("Expand", eye, build.integers(times, GROUP, times, GROUP))
    mask = build.reshape(square, 1, BLOCK, BLOCK, *[1] * len(kernel))
    repeated = build.reshape(build.concat([weight] * times, 1), blocks, BLOCK, BLOCK, *kernel)
    merged = build("Mul", repeated, mask)
    node.replace_input_with(1, build.reshape(merged, channels + more, BLOCK, *kernel))
    node.attributes["group"] = ir.AttrInt64("group", blocks)
    build.insert_before(node)
    return True


def _before(node: ir.Node) -> list[ir.Node] | None:
    """The convolution without groups that makes the node's input, and the activations after it."""
    chain: list[ir.Node] = []
    value = node.inputs[0]
    while value is not None and is_used_once(value):
        maker = value.producer()
        if maker is None:
            return None
        chain.insert(0, maker)
        if is_convolution2d(maker):
            return chain if group(maker) == 1 else None
        if not _is_activation(maker):
            return None
        value = maker.inputs[0]
    return None


def _after(node: ir.Node) -> list[ir.Node] | None:
    """The convolution without groups that takes the node's output, and the activations before it."""
    chain: list[ir.Node] = []
    value = node.outputs[0]
    while is_used_once(value):
        (use,) = value.uses()
        chain.append(use.node)
        if is_convolution2d(use.node):
            return chain if group(use.node) == 1 and use.idx == 0 else None
        if not _is_activation(use.node):
            return None
        value = use.node.outputs[0]
    return None


def _is_activation(node: ir.Node) -> bool:
    return is_operator(node, *ACTIVATIONS) and len(node.inputs) == 1


def _give_more(graph: ir.Graph, node: ir.Node, more: int) -> None:
    """Add output channels of zeros."""
    build = Builder(graph)
    sizes = shape(node.inputs[1])
    for index, value, zeros in ((1, node.inputs[1], (more, *sizes[1:])), (2, bias(node), (more,))):
        if value is not None:
            node.replace_input_with(index, build.concat([value, build.filled(0.0, *zeros)], 0))
    build.insert_before(node)


def _take_more(graph: ir.Graph, node: ir.Node, more: int) -> None:
    """Add input channels whose weights are zeros."""
    build = Builder(graph)
    outputs, _, *kernel = shape(node.inputs[1])
    weight = node.inputs[1]
    assert weight is not None
    node.replace_input_with(1, build.concat([weight, build.filled(0.0, outputs, more, *kernel)], 1))
    build.insert_before(node)


def _widen(value: ir.Value, more: int) -> None:
    """Let the value's shape tell of more channels."""
    batch, channels, *sizes = value.shape  # type: ignore[misc]
    value.shape = ir.Shape([batch, channels + more, *sizes])
