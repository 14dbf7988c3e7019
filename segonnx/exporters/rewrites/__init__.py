"""Graph rewrites in standard ONNX, one pass per file."""

from __future__ import annotations

import onnx_ir as ir

from segonnx.exporters.rewrites.stable_instance_norm import StableInstanceNormPass

PASSES: tuple[type[ir.passes.InPlacePass], ...] = (StableInstanceNormPass,)
"""The passes of every export, in the order in which they run."""


def apply(model: ir.Model) -> tuple[str, ...]:
    """Run the passes on the model, in place; the names of those that changed it."""
    return tuple(one.__name__ for one in PASSES if one()(model).modified)
