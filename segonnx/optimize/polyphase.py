"""An image as its four polyphase components, and Winograd's F(2x2, 3x3) on them.

The components of an image are its pixels in even or odd rows and even or odd columns, each a quarter of its size. On
them every product of Winograd's algorithm is a pointwise convolution, and every step of its transforms a sum, or a
depthwise convolution with taps of 1 and -1: operators that ONNX Runtime runs in its blocked layout, without laying out
anything anew. A convolution takes 16 products instead of 36. Along one axis, with the even rows e and the odd rows o:

    m0[h] = (o[h-1] - o[h]) * g0                  even[h] = m0[h] + m1[h] + m2[h]
    m1[h] = (e[h] + o[h]) * (g0 + g1 + g2) / 2    odd[h]  = m1[h] - m2[h] + m3[h]
    m2[h] = (o[h] - e[h]) * (g0 - g1 + g2) / 2
    m3[h] = (e[h] - e[h+1]) * -g2

A value of None is zero everywhere: it takes no node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from segonnx.optimize.builder import Builder


@dataclass(frozen=True)
class Components:
    """Some channels of an image of even height and width.

    Attributes:
        values: (N, C, H / 2, W / 2) of even rows and columns; even rows, odd columns; odd rows, even columns; odd both.
        channels: C.
    """

    values: tuple[ir.Value, ir.Value, ir.Value, ir.Value]
    channels: int


def components(values: Sequence[ir.Value | None], channels: int) -> Components:
    """The components with these four values, none of which is zero everywhere."""
    a, b, c, d = values
    assert a is not None and b is not None and c is not None and d is not None
    return Components((a, b, c, d), channels)


def decompose(build: Builder, image: ir.Value, channels: int) -> Components:
    """The components of an image (N, C, H, W), by strided depthwise convolutions of one tap."""
    taps = ([[1]], [[0, 1]], [[0], [1]], [[0, 0], [0, 1]])
    return components([depthwise(build, image, channels, tap, stride=2) for tap in taps], channels)


def interleave(build: Builder, parts: Components, batch: int, height: int, width: int) -> ir.Value:
    """The image (N, C, H, W) of components."""
    rows = []
    for even, odd in (parts.values[:2], parts.values[2:]):
        columns = [build.reshape(part, batch, parts.channels, height // 2, width // 2, 1) for part in (even, odd)]
        rows.append(build.reshape(build.concat(columns, 4), batch, parts.channels, height // 2, 1, width))
    return build.reshape(build.concat(rows, 3), batch, parts.channels, height, width)


def total(build: Builder, a: ir.Value | None, b: ir.Value | None) -> ir.Value | None:
    """The sum of two values."""
    return build("Add", a, b) if a is not None and b is not None else a or b


def difference(build: Builder, a: ir.Value | None, b: ir.Value | None, channels: int) -> ir.Value | None:
    """The first value less the second; Sub isn't for blocked layouts, but a convolution by -1 with a sum is."""
    return a if b is None else total(build, depthwise(build, b, channels, [[-1]]), a)


def pointwise(
    build: Builder,
    factors: Sequence[tuple[ir.Value | None, ir.Value]],
    bias: ir.Value | None,
    plus: ir.Value | None = None,
) -> ir.Value | None:
    """A sum of pointwise convolutions.

    Args:
        build: takes the nodes.
        factors: input (N, C, H, W) and weight (outputs, C, 1, 1) of each.
        bias: of the outputs.
        plus: is added to the sum.
    """
    result = plus
    for x, weight in factors:
        if x is not None:
            y = build("Conv", *((x, weight) if bias is None else (x, weight, bias)), kernel_shape=[1, 1])
            bias = None
            result = total(build, y, result)  # ONNX Runtime adds it in the convolution
    return result


def depthwise(
    build: Builder,
    x: ir.Value,
    channels: int,
    taps: list[list[int]],
    *,
    pads: Sequence[int] = (0, 0, 0, 0),
    stride: int = 1,
) -> ir.Value:
    """A convolution of each channel with the same few taps."""
    array = np.array([[taps]], np.float32)
    kernel = list(array.shape[2:])
    name = "taps_" + "_".join(",".join(map(str, row)) for row in taps)
    weight = build("Expand", build.constant(name, array), build.integers(channels, 1, *kernel))
    return build("Conv", x, weight, kernel_shape=kernel, group=channels, pads=list(pads), strides=[stride] * 2)


def winograd(
    build: Builder,
    sources: Sequence[Components],
    weights: Sequence[ir.Value],
    outputs: int,
    bias: ir.Value | None,
    plus: Components | None,
) -> Components:
    """A 3x3 convolution with padding 1, by Winograd's F(2x2, 3x3).

    Args:
        build: takes the nodes.
        sources: whose channels together are the input's.
        weights: of each source, (outputs, channels, 3, 3).
        outputs: output channels.
        bias: of the output channels, or None.
        plus: is added to the output.
    """
    inputs = [_transformed(build, source) for source in sources]
    kernels = [
        _kernels(build, weight, alike=source.values[0] is source.values[3])
        for weight, source in zip(weights, sources, strict=True)
    ]

    def product(row: int, column: int, plus: ir.Value | None = None) -> ir.Value | None:
        factors = [(v[row][column], u[row][column]) for v, u in zip(inputs, kernels, strict=True)]
        # The bias reaches every output once from the product in row 1 and column 1.
        return pointwise(build, factors, bias if (row, column) == (1, 1) else None, plus)

    even: list[ir.Value | None] = []
    odd: list[ir.Value | None] = []
    for row in range(4):
        first, second = product(row, 1), product(row, 2)
        even.append(total(build, first, second))
        odd.append(difference(build, first, second, outputs))
    for row in (1, 2):
        even[row], odd[row] = product(row, 0, even[row]), product(row, 3, odd[row])
    values: list[ir.Value | None] = []
    for index, (row, column, own) in enumerate([(0, 0, even), (0, 3, odd), (3, 0, even), (3, 3, odd)]):
        both = even if index % 2 == 0 else odd
        combined = total(build, both[1], both[2]) if row == 0 else difference(build, both[1], both[2], outputs)
        combined = total(build, combined, own[row])
        if plus is not None:
            combined = total(build, combined, plus.values[index])
        values.append(product(row, column, combined))
    return components(values, outputs)


def _transformed(build: Builder, source: Components) -> list[list[ir.Value | None]]:
    """The inputs of the 16 products, by row and column."""

    def along(even: ir.Value | None, odd: ir.Value | None, *, rows: bool) -> list[ir.Value | None]:
        if even is None or odd is None:
            return [None] * 4
        taps = [[1], [-1]] if rows else [[1, -1]]
        before, after = ((1, 0, 0, 0), (0, 0, 1, 0)) if rows else ((0, 1, 0, 0), (0, 0, 0, 1))
        first = depthwise(build, odd, source.channels, taps, pads=before)
        last = depthwise(build, even, source.channels, taps, pads=after)
        if even is odd:
            return [first, even, None, last]  # _kernels has the factor of 2
        minus = depthwise(build, even, source.channels, [[-1]])
        return [first, build("Add", even, odd), build("Add", minus, odd), last]

    even_even, even_odd, odd_even, odd_odd = source.values
    left = along(even_even, odd_even, rows=True)
    right = left if (even_even, odd_even) == (even_odd, odd_odd) else along(even_odd, odd_odd, rows=True)
    return [along(even, odd, rows=False) for even, odd in zip(left, right, strict=True)]


def _kernels(build: Builder, weight: ir.Value, *, alike: bool) -> list[list[ir.Value]]:
    """The weights (outputs, inputs, 1, 1) of the 16 products, by row and column.

    Args:
        build: takes the nodes.
        weight: (outputs, inputs, 3, 3).
        alike: the four components are the same image, so the sum of two is twice the one.
    """
    half = build.number(0.5)

    def along(weight: ir.Value) -> list[ir.Value]:
        g0, g1, g2 = (build("Gather", weight, build.scalar(k), axis=2) for k in range(3))
        outer = build("Add", g0, g2)
        plus, minus = build("Add", outer, g1), build("Sub", outer, g1)
        return [g0, plus if alike else build("Mul", plus, half), build("Mul", minus, half), build("Neg", g2)]

    axes = build.integers(2, 3)
    return [[build("Unsqueeze", kernel, axes) for kernel in along(rows)] for rows in along(weight)]
