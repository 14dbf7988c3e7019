"""How each 3D operator but the convolution is made of 2D ones on depth slices.

A rule adds the nodes that take a node's place, and gives the node's output as slices, or None where it can't.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from segonnx.optimize.builder import Builder
from segonnx.optimize.reading import joins_channels, pads_by_rule, repeats, shape
from segonnx.optimize.slices import Volume
from segonnx.optimize.volumes import Volumes

UNARY = ("LeakyRelu", "Relu", "Elu", "Sigmoid", "Tanh", "HardSwish", "Gelu", "Mish", "Selu", "Softplus")
BINARY = ("Add", "Sub", "Mul", "Div", "Max", "Min")

Rule = Callable[[Volumes, Builder, ir.Node], Volume | None]


def _upsampling(volumes: Volumes, build: Builder, node: ir.Node) -> Volume | None:
    """Nearest neighbour by whole factors: a slice is made once, and stands for as many as the factor in depth."""
    x = node.inputs[0]
    assert x is not None
    factors = repeats(node)
    if x not in volumes or factors is None or factors[:2] != [1, 1]:
        return None
    times, *scale = factors[2:]
    source = volumes.with_all_channels(build, x)
    scales = build.constant(f"scales_{scale[0]}_{scale[1]}", np.array([1, 1, *scale], np.float32))
    modes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    values: list[ir.Value] = []
    for value in source.values:
        values += [build("Resize", value, None, scales, **modes)] * times
    return (source.like(values, height=source.height * scale[0], width=source.width * scale[1]),)


def _pooling(volumes: Volumes, build: Builder, node: ir.Node) -> Volume | None:
    """Pooling without padding: the slices of a window are pooled one by one, and then taken together.

    A mean is a depthwise convolution with equal weights: ONNX Runtime adds the slices of a window in its kernel.
    """
    x = node.inputs[0]
    assert x is not None
    if x not in volumes or not _pools_whole_windows(node):
        return None
    kernel = node.attributes.get_ints("kernel_shape", ())
    strides = node.attributes.get_ints("strides", (1, 1, 1))
    source = volumes.with_halo(build, volumes.with_all_channels(build, x), kernel[0], strides[0])
    _, channels, depth, height, width = shape(node.outputs[0])
    plane: dict[str, Any] = {"kernel_shape": kernel[1:], "strides": strides[1:]}
    weight = build.filled(1 / math.prod(kernel), channels, 1, *kernel[1:])
    largest: dict[ir.Value, ir.Value] = {}

    def pooled(value: ir.Value) -> ir.Value:
        if node.op_type == "AveragePool":
            return build("Conv", value, weight, group=channels, **plane)
        if value not in largest:
            largest[value] = build("MaxPool", value, **plane)
        return largest[value]

    together = "Max" if node.op_type == "MaxPool" else "Add"
    values = []
    for first in range(0, depth // source.chunks * strides[0], strides[0]):
        total: ir.Value | None = None
        for index in range(first, first + kernel[0]):
            value = source.get(index)
            assert value is not None  # there are no pads
            total = pooled(value) if total is None else build(together, pooled(value), total)
        assert total is not None
        values.append(total)
    return (source.like(values, height=height, width=width),)


def _pools_whole_windows(node: ir.Node) -> bool:
    """Whether a pooling has whole windows of neighbours everywhere, and gives nothing but their mean or maximum."""
    return (
        len(node.outputs) == 1
        and not any(node.attributes.get_ints("pads", ()))
        and set(node.attributes.get_ints("dilations", ())) <= {1}
        and not pads_by_rule(node)
        and not node.attributes.get_int("ceil_mode", 0)
    )


def _norm(volumes: Volumes, build: Builder, node: ir.Node) -> Volume | None:
    """Instance normalization: statistics of each slice while it is in the cache, put together exactly for the volume.

    With a value's mean m and the mean q of (x - m)^2 in each slice, over all slices: mean = mean(m) and
    variance = mean(q) + mean((m - mean)^2). No sum runs over more voxels than a row or column has.
    What is left is one pass over each slice, as a depthwise convolution: ONNX Runtime adds the activation to it.
    """
    x, scale, bias = node.inputs
    assert x is not None and scale is not None and bias is not None
    if x not in volumes:
        return None
    source = volumes.with_all_channels(build, x)
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    rows, columns, first = (build.integers(axis) for axis in (3, 2, 0))
    centred, means, squares = [], [], []
    for value in source.values:
        mean = build("ReduceMean", build("ReduceMean", value, rows), columns)
        if source.chunks > 1:  # they share the weights below
            mean = build("ReduceMean", mean, first)
        centre = build("Sub", value, mean)
        centred.append(centre)
        means.append(mean)
        squares.append(build("ReduceMean", build("ReduceSumSquare", centre, rows), columns))
    all_means = build.concat(means, 0)
    off = build("Sub", all_means, build("ReduceMean", all_means, first))
    within = build("Mul", build("ReduceMean", build.concat(squares, 0), first), build.number(1 / source.width))
    between = build("ReduceMean", build("Mul", off, off), first)
    variance = build("Add", build("Add", within, between), build.number(epsilon))
    column = (1, source.channels, 1, 1)
    factor = build("Div", build.reshape(scale, *column), build("Sqrt", variance))
    shift = build("Add", build("Mul", off, factor), build.reshape(bias, *column))
    weight = build.reshape(factor, source.channels, 1, 1, 1)
    shifts = build.split(build.reshape(shift, source.count * source.channels), [source.channels] * source.count, 0)
    values = [
        build("Conv", centre, weight, its_shift, kernel_shape=[1, 1], group=source.channels)
        for centre, its_shift in zip(centred, shifts, strict=True)
    ]
    return (source.like(values),)


def _unary(volumes: Volumes, build: Builder, node: ir.Node) -> Volume | None:
    """An operator on each voxel of one volume."""
    x = node.inputs[0]
    assert x is not None
    if x not in volumes or len(node.inputs) != 1:
        return None
    source = volumes.with_all_channels(build, x)
    return (source.like(build(node.op_type, value, **dict(node.attributes)) for value in source.values),)


def _binary(volumes: Volumes, build: Builder, node: ir.Node) -> Volume | None:
    """An operator on each pair of voxels of two volumes of the same shape."""
    if len(node.inputs) != 2:
        return None
    a, b = node.inputs
    assert a is not None and b is not None
    if (a not in volumes and b not in volumes) or b.shape is None or a.shape != b.shape:
        return None
    left, right = volumes.with_all_channels(build, a), volumes.with_all_channels(build, b)
    return (left.like(build(node.op_type, *pair) for pair in zip(left.values, right.values, strict=True)),)


def _concat(volumes: Volumes, build: Builder, node: ir.Node) -> Volume | None:
    """A concatenation of channels: the parts stay apart, and no node is added."""
    values = [value for value in node.inputs if value is not None]
    if not joins_channels(node, rank=5) or not any(value in volumes for value in values):
        return None
    return tuple(part for value in values for part in volumes.get(build, value))


RULES: Mapping[str, Rule] = {
    "InstanceNormalization": _norm,
    "Resize": _upsampling,
    "Concat": _concat,
    "AveragePool": _pooling,
    "MaxPool": _pooling,
    **dict.fromkeys(UNARY, _unary),
    **dict.fromkeys(BINARY, _binary),
}
"""The rules, by operator."""
