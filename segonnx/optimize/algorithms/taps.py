"""One 2D convolution per tap in depth: for every kernel, stride and padding.

Where a large kernel meets an image of one channel, as at the entrance of a network, all taps are one 2D convolution:
the slices that they meet are its channels. A sum over seven convolutions would write its slice seven times.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from segonnx.optimize.algorithms.convolution import Algorithm, Convolution
from segonnx.optimize.builder import Builder
from segonnx.optimize.slices import Slices

FEW = 8
"""Input channels of which ONNX Runtime's blocked kernels take any number; of more they take whole blocks."""
LARGE = 5
"""Taps from which on they are made together. With three, the copies cost what the sums did."""


def _build(build: Builder, conv: Convolution, sources: Sequence[Slices]) -> list[ir.Value]:
    kernels = conv.taps(build, sources)
    depth, *_ = conv.sizes(sources[0])
    if conv.groups == 1 and conv.kernel[0] >= LARGE and conv.kernel[0] * sum(part.channels for part in sources) <= FEW:
        return _together(build, conv, sources, kernels, depth)
    return [conv.sum_of_taps(build, sources, kernels, index) for index in range(depth)]


def _together(
    build: Builder, conv: Convolution, sources: Sequence[Slices], kernels: Sequence[Sequence[ir.Value]], depth: int
) -> list[ir.Value]:
    weight = build.concat([kernel for taps in kernels for kernel in taps], 1)
    zeros = [source.zeros(build) for source in sources]
    values = []
    for index in range(depth):
        slices = [
            source.get(conv.index(index, tap)) or zero
            for source, zero in zip(sources, zeros, strict=True)
            for tap in range(conv.kernel[0])
        ]
        values.append(conv.conv2d(build, build.concat(slices, 1), weight, conv.bias))
    return values


TAPS = Algorithm(_build, lambda _, __: True)
