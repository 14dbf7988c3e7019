"""Graph rewrites in standard ONNX, one pass per file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import onnx_ir as ir

from segonnx.exporters.rewrites.commute_upsampling import CommuteUpsamplingPass
from segonnx.exporters.rewrites.pointwise_head import PointwiseHeadPass
from segonnx.exporters.rewrites.stable_instance_norm import StableInstanceNormPass
from segonnx.exporters.rewrites.unroll_depth import UnrollDepthPass

Optimize = Literal["cpu", "none"]
"""What ``segonnx export --optimize`` takes: a graph for ONNX Runtime's CPU provider, or the graph as torch wrote it."""

PASSES: dict[Optimize, tuple[Callable[[], ir.passes.InPlacePass], ...]] = {
    "cpu": (CommuteUpsamplingPass, UnrollDepthPass, PointwiseHeadPass, StableInstanceNormPass),
    "none": (),
}
"""The passes in the order in which they run."""


def apply(model: ir.Model, optimize: Optimize = "cpu") -> tuple[str, ...]:
    """Run the passes on the model, in place; the names of those that changed it."""
    changed = []
    for make in PASSES[optimize]:
        one = make()
        if one(model).modified:
            changed.append(type(one).__name__)
    return tuple(changed)
