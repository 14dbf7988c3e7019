"""Winograd's F(4, 3) along the depth: four slices of the output from six 2D convolutions instead of twelve.

At the points 0, 1, -1, 2, -2 and infinity, with the input slices d0 to d5 and the taps g0 to g2:

    m0 = (4 d0 - 5 d2 + d4) * g0 / 4                            y0 = m0 + m1 + m2 + m3 + m4
    m1 = (d4 - 4 d2 + d3 - 4 d1) * (g0 + g1 + g2) / -6          y1 = m1 - m2 + 2 (m3 - m4)
    m2 = (d4 - 4 d2 - d3 + 4 d1) * (g0 - g1 + g2) / -6          y2 = m1 + m2 + 4 (m3 + m4)
    m3 = (d4 - d2 + 2 (d3 - d1)) * (g0 + 2 g1 + 4 g2) / 24      y3 = m1 - m2 + 8 (m3 - m4) + m5
    m4 = (d4 - d2 - 2 (d3 - d1)) * (g0 - 2 g1 + 4 g2) / 24
    m5 = (4 d1 - 5 d3 + d5) * g2

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

INPUT_TRANSFORM = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
"""The factors of the input slices d0 to d5 in the input of each of the six convolutions."""

OUTPUT_TRANSFORM = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)
"""The factors of m0 to m5 in each of the four slices of the output."""


def _build(build: Builder, conv: Convolution, sources: Sequence[Slices]) -> list[ir.Value]:
    kernels = conv.taps(build, sources)
    weights = [build.concat(_weights(build, *taps), 0) for taps in kernels]
    bias = None
    if conv.bias is not None:  # m1 takes it
        before, after = (build.filled(0.0, count * conv.outputs) for count in (1, 4))
        bias = build.concat([before, conv.bias, after], 0)
    chunks = sources[0].chunks
    into, out_of = _matrix(build, INPUT_TRANSFORM), _matrix(build, OUTPUT_TRANSFORM)
    zeros = [source.zeros(build) for source in sources]
    values: list[ir.Value] = []
    depth, height, width = conv.sizes(sources[0])
    whole = depth - depth % 4
    for start in range(0, whole, 4):
        total: ir.Value | None = None
        for source, weight, zero in zip(sources, weights, zeros, strict=True):
            window = build.concat([source.get(start + i) or zero for i in range(-1, 5)], 1)
            rows = build.reshape(window, chunks, 6, source.channels * source.height * source.width)
            x = build.reshape(build("MatMul", into, rows), chunks, 6 * source.channels, source.height, source.width)
            y = conv.conv2d(build, x, weight, bias if total is None else None, groups=6)
            total = y if total is None else build("Add", y, total)
        assert total is not None
        y = build("MatMul", out_of, build.reshape(total, chunks, 6, conv.outputs * height * width))
        values += build.split(build.reshape(y, chunks, 4 * conv.outputs, height, width), [conv.outputs] * 4, 1)
    return values + [conv.sum_of_taps(build, sources, kernels, index) for index in range(whole, depth)]


def _matrix(build: Builder, rows: Sequence[Sequence[int]]) -> ir.Value:
    """A matrix, from constants too small to hide weights in."""
    return build.concat(
        [build.constant(f"row_{'_'.join(map(str, row))}", np.array([row], np.float32)) for row in rows], 0
    )


def _weights(build: Builder, g0: ir.Value, g1: ir.Value, g2: ir.Value) -> list[ir.Value]:
    """The six kernels of F(4, 3)."""
    outer = build("Add", g0, g2)
    far = build("Add", g0, build("Mul", g2, build.number(4.0)))
    twice = build("Mul", g1, build.number(2.0))
    sixth, part = build.number(-1 / 6), build.number(1 / 24)
    return [
        build("Mul", g0, build.number(0.25)),
        build("Mul", build("Add", outer, g1), sixth),
        build("Mul", build("Sub", outer, g1), sixth),
        build("Mul", build("Add", far, twice), part),
        build("Mul", build("Sub", far, twice), part),
        g2,
    ]


WINOGRAD4 = Algorithm(_build, lambda conv, sources: is_sliding(conv) and sources[0].count >= 4, weight_growth=2.0)
