"""Pairs of slices as twice the channels: for few output channels, which alone don't fill the kernel's registers.

Within a pair every slice of the input reaches every slice of the output, so the pair is one convolution without
waste. What comes from the neighbours is a second one, in two groups. A pair of the same slice, after upsampling by
two, needs its channels once. It makes kernels of 3, stride 1 and padding 1 in depth.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from segonnx.optimize.algorithms.convolution import Algorithm, Convolution, is_sliding
from segonnx.optimize.builder import Builder
from segonnx.optimize.slices import Slices


def _build(build: Builder, conv: Convolution, sources: Sequence[Slices]) -> list[ir.Value]:
    kernels = conv.taps(build, sources)
    weights = []
    for g0, g1, g2 in kernels:
        inner = build.concat([build.concat([g1, g2], 1), build.concat([g0, g1], 1)], 0)
        same = build.concat([build("Add", g1, g2), build("Add", g0, g1)], 0)
        weights.append((inner, same, build.concat([g0, g2], 0)))
    bias = None if conv.bias is None else build.concat([conv.bias] * 2, 0)
    values: list[ir.Value] = []
    depth = sources[0].count
    for start in range(0, depth - 1, 2):
        total: ir.Value | None = None
        for source, (inner, same, outer) in zip(sources, weights, strict=True):
            before, first, second, after = (source.get(start + i) for i in (-1, 0, 1, 2))
            assert first is not None and second is not None
            alike = first is second
            x = first if alike else build.concat([first, second], 1)
            y = conv.conv2d(build, x, same if alike else inner, bias if total is None else None)
            total = y if total is None else build("Add", y, total)
            zeros = source.zeros(build)
            around = build.concat([before or zeros, after or zeros], 1)
            total = build("Add", conv.conv2d(build, around, outer, groups=2), total)
        assert total is not None
        values += build.split(total, [conv.outputs] * 2, 1)
    if depth % 2:
        values.append(conv.sum_of_taps(build, sources, kernels, depth - 1))
    return values


PAIRS = Algorithm(_build, lambda conv, sources: is_sliding(conv) and sources[0].count >= 2)
