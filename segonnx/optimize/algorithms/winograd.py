"""Winograd's F(2, 3) along the depth: two slices of the output from four 2D convolutions instead of six.

With the input slices d0 to d3 and the taps g0 to g2:

    m0 = (d0 - d2) * g0                  y0 = m0 + m1 + m2
    m1 = (d1 + d2) * (g0 + g1 + g2) / 2  y1 = m1 - m2 - m3
    m2 = (d2 - d1) * (g0 - g1 + g2) / 2
    m3 = (d1 - d3) * g2

Where d1 and d2 are the same slice, after upsampling by two, m2 vanishes: three convolutions instead of six. It makes
kernels of 3, stride 1 and padding 1 in depth.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from segonnx.optimize.algorithms.convolution import Algorithm, Convolution, is_sliding
from segonnx.optimize.builder import Builder
from segonnx.optimize.slices import Slices


def _build(build: Builder, conv: Convolution, sources: Sequence[Slices]) -> list[ir.Value]:
    kernels = conv.taps(build, sources)
    half = build.number(0.5)
    weights = []
    for g0, g1, g2 in kernels:
        outer = build("Add", g0, g2)
        weights.append(
            (
                g0,
                build("Mul", build("Add", outer, g1), half),
                build("Mul", build("Sub", outer, g1), half),
                g2,
                build("Add", outer, g1),  # twice the second one: for d1 + d1
            )
        )
    values: list[ir.Value] = []
    depth = sources[0].count
    for start in range(0, depth - 1, 2):
        products: dict[int, ir.Value] = {}

        def add(number: int, y: ir.Value, products: dict[int, ir.Value] = products) -> None:
            products[number] = build("Add", y, products[number]) if number in products else y

        for source, (u0, u1, u2, u3, u1_twice) in zip(sources, weights, strict=True):
            d0, d1, d2, d3 = (source.get(start + i) for i in (-1, 0, 1, 2))
            assert d1 is not None and d2 is not None
            bias = None if 1 in products else conv.bias
            if d1 is d2:
                add(1, conv.conv2d(build, d1, u1_twice, bias))
            else:
                add(1, conv.conv2d(build, build("Add", d1, d2), u1, bias))
                add(2, conv.conv2d(build, build("Sub", d2, d1), u2))
            add(0, conv.conv2d(build, build("Neg", d2) if d0 is None else build.once("Sub", d0, d2), u0))
            add(3, conv.conv2d(build, d1 if d3 is None else build.once("Sub", d1, d3), u3))
        if 2 in products:
            # Into the sums of the other two first: ONNX Runtime adds there for nothing.
            add(0, products[2])
            add(3, products[2])
        values.append(build("Add", products[0], products[1]))
        values.append(build("Sub", products[1], products[3]))
    if depth % 2:
        values.append(conv.sum_of_taps(build, sources, kernels, depth - 1))
    return values


WINOGRAD = Algorithm(_build, lambda conv, sources: is_sliding(conv) and sources[0].count >= 2, weight_growth=4 / 3)
