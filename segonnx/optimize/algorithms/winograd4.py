"""Winograd's F(4, 3) along the depth: four slices of the output from six 2D convolutions instead of twelve.

At the points 0, a, -a, b, -b and infinity, with the input slices d0 to d5 and the taps g0 to g2:

    m0 = (a^2 b^2 d0 - (a^2 + b^2) d2 + d4) * g0 / (a^2 b^2)
    m1 = (d4 - b^2 d2 + a (d3 - b^2 d1)) * (g0 + a g1 + a^2 g2) / (2 a^2 (a^2 - b^2))
    m2 = (d4 - b^2 d2 - a (d3 - b^2 d1)) * (g0 - a g1 + a^2 g2) / (2 a^2 (a^2 - b^2))
    m3 = (d4 - a^2 d2 + b (d3 - a^2 d1)) * (g0 + b g1 + b^2 g2) / (2 b^2 (b^2 - a^2))
    m4 = (d4 - a^2 d2 - b (d3 - a^2 d1)) * (g0 - b g1 + b^2 g2) / (2 b^2 (b^2 - a^2))
    m5 = (a^2 b^2 d1 - (a^2 + b^2) d3 + d5) * g2

    y0 = m0 + m1 + m2 + m3 + m4             y2 = a^2 (m1 + m2) + b^2 (m3 + m4)
    y1 = a (m1 - m2) + b (m3 - m4)          y3 = a^3 (m1 - m2) + b^3 (m3 - m4) + m5

What is left at the end of the depth is made by taps. It makes kernels of 3, stride 1 and padding 1 in depth.

A window's six slices are the rows of a matrix, and so are its six products: the transforms are products of matrices,
and the six convolutions are one in six groups.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from segonnx.optimize.algorithms.convolution import Algorithm, Convolution, is_sliding
from segonnx.optimize.builder import Builder
from segonnx.optimize.slices import Slices

NEAR, FAR = 0.75, 1.5
"""The points a and b. With them four slices have two thirds of the rounding that 1 and 2 give; see docs/decisions/0135.
All factors of slices are exact in float32."""


def _build(build: Builder, conv: Convolution, sources: Sequence[Slices]) -> list[ir.Value]:
    kernels = conv.taps(build, sources)
    weights = [build.concat(_weights(build, *taps), 0) for taps in kernels]
    bias = None
    if conv.bias is not None:
        bias = build.concat([build("Mul", conv.bias, build.number(factor)) for factor in bias_factors()], 0)
    batch = sources[0].batch
    into, out_of = _matrix(build, input_transform()), _matrix(build, output_transform())
    zeros = [source.zeros(build) for source in sources]
    values: list[ir.Value] = []
    depth, height, width = conv.sizes(sources[0])
    height = height * sources[0].chunks // batch
    whole = depth - depth % 4
    for start in range(0, whole, 4):
        total: ir.Value | None = None
        for source, weight, zero in zip(sources, weights, zeros, strict=True):
            window = build.concat([source.get(start + i) or zero for i in range(-1, 5)], 1)
            rows = build.reshape(window, batch, 6, source.channels * source.rows * source.width)
            x = build.reshape(build("MatMul", into, rows), batch, 6 * source.channels, source.rows, source.width)
            y = conv.conv2d(build, x, weight, bias if total is None else None, groups=6)
            total = y if total is None else build("Add", y, total)
        assert total is not None
        y = build("MatMul", out_of, build.reshape(total, batch, 6, conv.outputs * height * width))
        values += build.split(build.reshape(y, batch, 4 * conv.outputs, height, width), [conv.outputs] * 4, 1)
    return values + [conv.sum_of_taps(build, sources, kernels, index) for index in range(whole, depth)]


def input_transform() -> list[list[float]]:
    """The factors of the input slices d0 to d5 in the input of each of the six convolutions."""
    near, far = NEAR**2, FAR**2
    return [
        [near * far, 0, -near - far, 0, 1, 0],
        [0, -NEAR * far, -far, NEAR, 1, 0],
        [0, NEAR * far, -far, -NEAR, 1, 0],
        [0, -FAR * near, -near, FAR, 1, 0],
        [0, FAR * near, -near, -FAR, 1, 0],
        [0, near * far, 0, -near - far, 0, 1],
    ]


def output_transform() -> list[list[float]]:
    """The factors of m0 to m5 in each of the four slices of the output."""
    return [
        [float(power == 0), *(point**power for point in (NEAR, -NEAR, FAR, -FAR)), float(power == 3)]
        for power in range(4)
    ]


def bias_factors() -> list[float]:
    """How many times the bias each of m0 to m5 takes, so that each slice of the output has it once."""
    near = NEAR**2
    return [1 - 1 / near, (1 / near + 1 / NEAR) / 2, (1 / near - 1 / NEAR) / 2, 0.0, 0.0, 1 - near]


def _matrix(build: Builder, rows: Sequence[Sequence[float]]) -> ir.Value:
    """A matrix, from constants too small to hide weights in."""
    return build.concat(
        [build.constant(f"row_{'_'.join(map(str, row))}", np.array([row], np.float32)) for row in rows], 0
    )


def _weights(build: Builder, g0: ir.Value, g1: ir.Value, g2: ir.Value) -> list[ir.Value]:
    """The six kernels of F(4, 3)."""
    near, far = NEAR**2, FAR**2
    weights = [build("Mul", g0, build.number(1 / (near * far)))]
    for point, square, other in ((NEAR, near, far), (FAR, far, near)):
        outer = build("Add", g0, build("Mul", g2, build.number(square)))
        inner, part = build("Mul", g1, build.number(point)), build.number(1 / (2 * square * (square - other)))
        weights += [build("Mul", build(operator, outer, inner), part) for operator in ("Add", "Sub")]
    return [*weights, g2]


WINOGRAD4 = Algorithm(_build, lambda conv, sources: is_sliding(conv) and sources[0].count >= 4, weight_growth=2.0)
