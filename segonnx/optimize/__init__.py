"""Graph rewrites in standard ONNX, one pass per file."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Literal

import onnx_ir as ir

from segonnx.errors import InputError
from segonnx.optimize import unroll_depth, winograd_phases
from segonnx.optimize.choices import Choices
from segonnx.optimize.commute_upsampling import CommuteUpsamplingPass
from segonnx.optimize.merge_groups import MergeGroupsPass
from segonnx.optimize.pointwise_head import PointwiseHeadPass
from segonnx.optimize.split_concat import SplitConcatPass
from segonnx.optimize.stable_instance_norm import StableInstanceNormPass
from segonnx.optimize.unroll_depth import Found, UnrollDepthPass
from segonnx.optimize.winograd_phases import WinogradPhasesPass

_LOGGER = logging.getLogger(__name__)

Optimize = Literal["cpu", "none"]
"""What ``segonnx export --optimize`` takes: a graph for ONNX Runtime's CPU provider, or the graph as torch wrote it."""


def apply(model: ir.Model, optimize: Optimize = "cpu", choices: Choices | None = None) -> tuple[str, ...]:
    """Rewrite the model in place; the names of the passes that changed it.

    Raises:
        InputError: the choices are another network's.
    """
    if optimize == "none":
        return ()
    return run(model, choices or Choices())[0]


def run(model: ir.Model, choices: Choices) -> tuple[tuple[str, ...], dict[str, Found]]:
    """Rewrite the model in place; the names of the passes that changed it, and the layers that it has.

    Raises:
        InputError: the choices are another network's.
    """
    forms, without = choices.forms, choices.without
    if choices.max_weight_growth is not None:
        _, found = run(model.clone(), replace(choices, max_weight_growth=None))
        forms = unroll_depth.bounded(found, choices.max_weight_growth)
        if choices.max_weight_growth < winograd_phases.WEIGHT_GROWTH:
            without = (*without, WinogradPhasesPass.__name__)
    unroll = UnrollDepthPass(forms, choices.lanes)
    passes = (
        CommuteUpsamplingPass(),
        MergeGroupsPass(),
        WinogradPhasesPass(),
        SplitConcatPass(),
        unroll,
        PointwiseHeadPass(),
        StableInstanceNormPass(),
    )
    changed = []
    for one in passes:
        name, before = type(one).__name__, len(model.graph)
        if name not in without and one(model).modified:
            changed.append(name)
            _LOGGER.info("%s changed the graph: %d nodes, then %d", name, before, len(model.graph))
    for layer, form in choices.forms.items():
        if layer not in unroll.found:
            raise InputError(f"the tuning is another network's: there is no convolution {layer}")
        if form not in unroll.found[layer].forms:
            raise InputError(f"the tuning asks for {form}, which can't make the convolution {layer}")
    return tuple(changed), unroll.found
