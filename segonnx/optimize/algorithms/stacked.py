"""The slices that an output needs, as channels of one 2D convolution: for very few input channels."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from segonnx.optimize.algorithms.convolution import Algorithm, Convolution
from segonnx.optimize.builder import Builder
from segonnx.optimize.slices import Slices


def _build(build: Builder, conv: Convolution, sources: Sequence[Slices]) -> list[ir.Value]:
    (source,) = sources
    (kernels,) = conv.taps(build, sources)
    weight = build.concat(kernels, 1)
    zeros = source.zeros(build)
    depth, *_ = conv.sizes(source)
    values = []
    for index in range(depth):
        begin = index * conv.strides[0] - conv.pads[0]
        window = [source.get(begin + k) or zeros for k in range(conv.kernel[0])]
        values.append(conv.conv2d(build, build.concat(window, 1), weight, conv.bias))
    return values


def _applies(conv: Convolution, sources: Sequence[Slices]) -> bool:
    return len(sources) == 1 and conv.kernel[0] > 1


STACKED = Algorithm(_build, _applies)
