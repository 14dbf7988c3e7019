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
from segonnx.optimize.group_norm import GroupNorm
from segonnx.optimize.reading import enlarges_linearly, is_static, joins_channels, pads_by_rule, repeats, shape
from segonnx.optimize.slices import Outside, Slices, Volume
from segonnx.optimize.volumes import Volumes

UNARY = (
    "Abs", "BatchNormalization", "Celu", "Clip", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu",
    "Log", "Mish", "Neg", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt", "Tanh", "ThresholdedRelu",
)  # fmt: skip
"""Operators on each voxel of one volume. What else they take are numbers: bounds, or one for each channel."""
SHORT = 1024
"""Voxels of a slice that one sum may run over."""
BINARY = ("Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "PRelu")

Rule = Callable[[Volumes, Builder, ir.Node], Volume | None]


def _resizing(volumes: Volumes, build: Builder, node: ir.Node) -> Volume | None:
    """Nearest neighbour or linear, by whole factors."""
    x = node.inputs[0]
    if x not in volumes:
        return None
    return _nearest(volumes, build, node) if repeats(node) is not None else _linear(volumes, build, node)


def _nearest(volumes: Volumes, build: Builder, node: ir.Node) -> Volume | None:
    """A slice is made once, and stands for as many as the factor in depth."""
    factors = repeats(node)
    if factors is None or factors[:2] != [1, 1] or node.inputs[0] is None:
        return None
    times, *scale = factors[2:]
    source = volumes.with_all_channels(build, node.inputs[0])
    scales = build.constant(f"scales_{scale[0]}_{scale[1]}", np.array([1, 1, *scale], np.float32))
    modes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    values: list[ir.Value] = []
    for value in source.values:
        values += [build("Resize", value, None, scales, **modes)] * times
    return (source.like(values, height=source.height * scale[0], width=source.width * scale[1]),)


def _linear(volumes: Volumes, build: Builder, node: ir.Node) -> Volume | None:
    """A slice between two is their weighted sum, which is made while they are small, and then enlarged as an image."""
    factors = enlarges_linearly(node)
    if factors is None or factors[:2] != [1, 1] or node.inputs[0] is None:
        return None
    times, *scale = factors[2:]
    source = volumes.with_all_channels(build, node.inputs[0])
    source = volumes.with_neighbours(build, source, (-1, source.count), "edge")
    scales = build.constant(f"scales_{scale[0]}_{scale[1]}", np.array([1, 1, *scale], np.float32))
    parts: dict[tuple[ir.Value, float], ir.Value] = {}

    def part(index: int, weight: float) -> ir.Value:
        value = source.get(index)
        if value is None:
            value = source.values[0 if index < 0 else -1]
        if (value, weight) not in parts:
            parts[value, weight] = build("Mul", value, build.number(weight))
        return parts[value, weight]

    values: list[ir.Value] = []
    for index in range(source.count * times):
        below, rest = divmod(2 * index + 1 - times, 2 * times)
        above = rest / (2 * times)
        small = build("Add", part(below, 1 - above), part(below + 1, above)) if rest else source.get(below)
        assert small is not None
        if set(scale) != {1}:
            small = build("Resize", small, None, scales, mode="linear")
        values.append(small)
    return (source.like(values, height=source.height * scale[0], width=source.width * scale[1]),)


def _pooling(volumes: Volumes, build: Builder, node: ir.Node) -> Volume | None:
    """Pooling: the slices of a window are pooled one by one, and then taken together.

    A mean is a depthwise convolution with equal weights: ONNX Runtime adds the slices of a window in its kernel.
    """
    x = node.inputs[0]
    assert x is not None
    if x not in volumes or not _pools_alike_everywhere(node):
        return None
    kernel = node.attributes.get_ints("kernel_shape", ())
    strides = node.attributes.get_ints("strides", (1, 1, 1))
    pads = node.attributes.get_ints("pads", (0,) * 6)
    along = kernel[0], strides[0], (pads[0], pads[3])
    outside: Outside = "least" if node.op_type == "MaxPool" else "zeros"
    source = volumes.with_halo(build, volumes.with_all_channels(build, x), *along, outside)
    _, channels, depth, height, width = shape(node.outputs[0])
    plane: dict[str, Any] = {
        "kernel_shape": kernel[1:], "strides": strides[1:], "pads": (*pads[1:3], *pads[4:6])
    }  # fmt: skip
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
    for first in range(-pads[0], depth // source.chunks * strides[0] - pads[0], strides[0]):
        total: ir.Value | None = None
        for value in map(source.get, range(first, first + kernel[0])):
            if value is None:
                continue
            total = pooled(value) if total is None else build(together, pooled(value), total)
        assert total is not None  # the padding is smaller than the window
        values.append(total)
    return (source.like(values, height=height, width=width),)


def _pools_alike_everywhere(node: ir.Node) -> bool:
    """Whether a pooling gives nothing but the mean or maximum of neighbours, at the edges, too."""
    counts = node.op_type == "MaxPool" or node.attributes.get_int("count_include_pad", 0) == 1
    pads = node.attributes.get_ints("pads", (0,) * 6)
    kernel = node.attributes.get_ints("kernel_shape", ())
    return (
        len(node.outputs) == 1
        and (counts or not any(pads))
        and all(max(pads[axis], pads[axis + 3]) < kernel[axis] for axis in range(3))
        and set(node.attributes.get_ints("dilations", ())) <= {1}
        and not pads_by_rule(node)
        and not node.attributes.get_int("ceil_mode", 0)
    )


def _mean(volumes: Volumes, build: Builder, node: ir.Node) -> Volume | None:
    """The mean of all voxels of a channel, as one slice of one voxel."""
    x = node.inputs[0]
    assert x is not None
    if x not in volumes or shape(node.outputs[0]) != [1, shape(x)[1], 1, 1, 1]:
        return None
    source = volumes.with_all_channels(build, x)
    rows, columns, first = (build.integers(axis) for axis in (3, 2, 0))
    means = {
        value: build("ReduceMean", build("ReduceMean", value, rows), columns) for value in dict.fromkeys(source.values)
    }
    mean = build("ReduceMean", build.concat([means[value] for value in source.values], 0), first)
    return (Slices((mean,), source.channels, 1, 1),)


def _norm(volumes: Volumes, build: Builder, node: ir.Node) -> Volume | None:
    """Instance normalization."""
    x, scale, bias = node.inputs
    assert x is not None and scale is not None and bias is not None
    if x not in volumes:
        return None
    channels = shape(x)[1]
    column = (1, channels, 1, 1)
    factors, shifts = build.reshape(scale, *column), build.reshape(bias, *column)
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    return normalized(volumes.with_all_channels(build, x), build, channels, factors, shifts, epsilon)


def group_norm(volumes: Volumes, build: Builder, norm: GroupNorm) -> Volume:
    """A norm over groups of channels, of a value that exists as slices."""
    source = volumes.with_all_channels(build, norm.x)
    column = (1, source.channels, 1, 1)

    def of_channels(value: ir.Value) -> ir.Value:
        return build.reshape(_repeated(build, value, norm.groups, source.channels), *column)

    factors, shifts = of_channels(norm.scale), of_channels(norm.bias)
    if norm.factors is not None:
        own = build.reshape(norm.factors, *column)
        factors, shifts = build("Mul", factors, own), build("Mul", shifts, own)
    if norm.shifts is not None:
        shifts = build("Add", shifts, build.reshape(norm.shifts, *column))
    return normalized(source, build, norm.groups, factors, shifts, norm.epsilon)


def _repeated(build: Builder, value: ir.Value, groups: int, channels: int) -> ir.Value:
    """A number of each group for each of its channels: (groups, channels of a group)."""
    return build("Expand", build.reshape(value, groups, 1), build.integers(groups, channels // groups))


def normalized(
    source: Slices, build: Builder, groups: int, factors: ir.Value, shifts: ir.Value, epsilon: float
) -> Volume:
    """Slices by the mean and the variance of each group of channels, times factors and plus shifts (1, C, 1, 1).

    Statistics are of each slice while it is in the cache, put together exactly for the volume. With a value's mean m
    and the mean q of (x - m)^2 in each slice, over all slices: mean = mean(m) and
    variance = mean(q) + mean((m - mean)^2). No sum runs over more than a row, a column, or a slice of ``SHORT`` voxels.
    What is left is one pass over each slice, as a depthwise convolution: ONNX Runtime adds the activation to it.
    """
    rows, columns, first = (build.integers(axis) for axis in (3, 2, 0))
    channels = source.channels
    short = source.rows * source.width <= SHORT
    plane = build.integers(2, 3)

    def over_slice(value: ir.Value, operator: str = "ReduceMean") -> ir.Value:
        """The mean of each channel, or the sum of squares over a row, or a short slice, and then the mean of those."""
        return build(operator, value, plane) if short else build("ReduceMean", build(operator, value, rows), columns)

    def over_groups(value: ir.Value) -> ir.Value:
        """The mean of each group of the channels (1, C, 1, 1), for each of them."""
        if groups == channels:
            return value
        mean = build("ReduceMean", build.reshape(value, groups, channels // groups), build.integers(1))
        return build.reshape(_repeated(build, mean, groups, channels), 1, channels, 1, 1)

    centred, means, squares = [], [], []
    for value in source.values:
        mean = over_slice(value)
        if source.batch > 1:  # they share the weights below
            mean = build("ReduceMean", mean, first)
        centre = build("Sub", value, mean)
        centred.append(centre)
        means.append(mean)
        squares.append(over_slice(centre, "ReduceSumSquare"))
    all_means = build.concat(means, 0)
    off = build("Sub", all_means, over_groups(build("ReduceMean", all_means, first)))
    mean_square = over_groups(build("ReduceMean", build.concat(squares, 0), first))
    within = build("Mul", mean_square, build.number(1 / (source.width * (source.rows if short else 1))))
    between = over_groups(build("ReduceMean", build("Mul", off, off), first))
    variance = build("Add", build("Add", within, between), build.number(epsilon))
    factor = build("Div", factors, build("Sqrt", variance))
    shift = build("Add", build("Mul", off, factor), shifts)
    weight = build.reshape(factor, channels, 1, 1, 1)
    each = build.split(build.reshape(shift, source.count * channels), [channels] * source.count, 0)
    values = [
        build("Conv", centre, weight, its_shift, kernel_shape=[1, 1], group=channels)
        for centre, its_shift in zip(centred, each, strict=True)
    ]
    return (source.like(values),)


def _unary(volumes: Volumes, build: Builder, node: ir.Node) -> Volume | None:
    """An operator on each voxel of one volume."""
    x, *numbers = node.inputs
    assert x is not None
    if x not in volumes or len(node.outputs) != 1 or any(number in volumes for number in numbers):
        return None
    source = volumes.with_all_channels(build, x)
    return (source.like(build(node.op_type, value, *numbers, **dict(node.attributes)) for value in source.values),)


def _binary(volumes: Volumes, build: Builder, node: ir.Node) -> Volume | None:
    """An operator on each pair of voxels of two volumes of the same shape, or of one with a number."""
    if len(node.inputs) != 2 or not all(map(is_static, node.inputs)):
        return None
    a, b = node.inputs
    assert a is not None and b is not None
    sizes, attributes = shape(node.outputs[0]), dict(node.attributes)
    if shape(a) == shape(b) == sizes:
        if a not in volumes and b not in volumes:
            return None
        left, right = volumes.with_all_channels(build, a), volumes.with_all_channels(build, b)
        values = (build(node.op_type, *pair, **attributes) for pair in zip(left.values, right.values, strict=True))
        return (left.like(values),)
    x, other = (a, b) if shape(a) == sizes else (b, a)
    if x not in volumes or shape(x) != sizes:
        return None
    number = _of_channels(volumes, build, other, sizes[1])
    if number is None:
        return None
    source = volumes.with_all_channels(build, x)
    pairs = ((value, number) if x is a else (number, value) for value in source.values)
    return (source.like(build(node.op_type, *pair, **attributes) for pair in pairs),)


def _of_channels(volumes: Volumes, build: Builder, value: ir.Value, channels: int) -> ir.Value | None:
    """A number, or one of each channel of a volume, as an operator on images takes it; None where it's neither."""
    sizes = shape(value)
    if not sizes:
        return value
    own = sizes[-4] if len(sizes) >= 4 else 1
    if len(sizes) > 5 or math.prod(sizes) != own or own not in (1, channels):
        return None
    if value in volumes:
        return volumes.with_all_channels(build, value).values[0]
    return build.reshape(value, 1, own, 1, 1)


def _concat(volumes: Volumes, build: Builder, node: ir.Node) -> Volume | None:
    """A concatenation of channels: the parts stay apart, and no node is added."""
    values = [value for value in node.inputs if value is not None]
    if not joins_channels(node, rank=5) or not any(value in volumes for value in values):
        return None
    return tuple(part for value in values for part in volumes.get(build, value))


RULES: Mapping[str, Rule] = {
    "InstanceNormalization": _norm,
    "Resize": _resizing,
    "Concat": _concat,
    "AveragePool": _pooling,
    "MaxPool": _pooling,
    "GlobalAveragePool": _mean,
    "ReduceMean": _mean,
    **dict.fromkeys(UNARY, _unary),
    **dict.fromkeys(BINARY, _binary),
}
"""The rules, by operator."""
