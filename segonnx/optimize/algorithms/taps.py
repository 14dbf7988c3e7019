"""One 2D convolution per tap in depth: for every kernel, stride and padding."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from segonnx.optimize.algorithms.convolution import Algorithm, Convolution
from segonnx.optimize.builder import Builder
from segonnx.optimize.slices import Slices


def _build(build: Builder, conv: Convolution, sources: Sequence[Slices]) -> list[ir.Value]:
    kernels = conv.taps(build, sources)
    depth, *_ = conv.sizes(sources[0])
    return [conv.sum_of_taps(build, sources, kernels, index) for index in range(depth)]


TAPS = Algorithm(_build, lambda _, __: True)
