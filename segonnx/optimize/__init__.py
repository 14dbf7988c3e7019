"""Graph rewrites in standard ONNX.

A rewrite is one file with a subclass of ``base.Rewrite``, and one line in ``PASSES``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from segonnx.core.hardware import Blocks
from segonnx.errors import InputError
from segonnx.optimize.base import Rewrite
from segonnx.optimize.choices import Choices
from segonnx.optimize.commute_upsampling import CommuteUpsamplingPass
from segonnx.optimize.layers import RewrittenLayer
from segonnx.optimize.merge_groups import MergeGroupsPass
from segonnx.optimize.merge_pointwise import MergePointwisePass
from segonnx.optimize.pointwise_head import PointwiseHeadPass
from segonnx.optimize.split_concat import SplitConcatPass
from segonnx.optimize.stable_instance_norm import StableInstanceNormPass
from segonnx.optimize.unroll_depth import UnrollDepthPass
from segonnx.optimize.unroll_rows import UnrollRowsPass

_LOGGER = logging.getLogger(__name__)

PASSES: tuple[type[Rewrite], ...] = (
    CommuteUpsamplingPass,
    MergePointwisePass,
    MergeGroupsPass,
    UnrollRowsPass,
    SplitConcatPass,
    UnrollDepthPass,
    PointwiseHeadPass,
    StableInstanceNormPass,
)
"""Every rewrite, in the order in which they run. Manifests and tunings name them by their classes."""

FOR_BLOCKS: Mapping[str, Blocks] = {
    rewrite.__name__: rewrite.blocks for rewrite in PASSES if rewrite.blocks is not None
}
"""Names of the rewrites that gain on some processors, and lose on others."""

OPTIONAL = tuple(rewrite.__name__ for rewrite in PASSES if rewrite.for_speed)
"""Names of the rewrites that a tuning may leave out."""

BASELINE = Choices(without=OPTIONAL)
"""Nothing is rewritten for speed."""

Optimize = Literal["cpu", "none"]
"""What ``segonnx export --optimize`` takes: a graph for ONNX Runtime's CPU provider, or the graph as torch wrote it."""


@dataclass(frozen=True)
class Rewritten:
    """What was done to a graph.

    Attributes:
        passes: names of the rewrites that changed it.
        layers: those whose algorithm can be chosen, by their text.
    """

    passes: tuple[str, ...]
    layers: Mapping[str, RewrittenLayer]


def apply(model: ir.Model, optimize: Optimize = "cpu", choices: Choices | None = None) -> tuple[str, ...]:
    """Rewrite the model in place; the names of the rewrites that changed it.

    Raises:
        InputError: the choices are another network's.
    """
    return () if optimize == "none" else run(model, choices or Choices()).passes


def run(model: ir.Model, choices: Choices) -> Rewritten:
    """Rewrite the model in place.

    Raises:
        InputError: the choices are another network's.
    """
    changed: list[str] = []
    layers: dict[str, RewrittenLayer] = {}
    for kind in PASSES:
        if _is_wanted(kind, choices):
            rewrite = kind.with_choices(choices)
            before = len(model.graph)
            if rewrite(model).modified:
                changed.append(kind.__name__)
                _LOGGER.info("%s changed the graph: %d nodes, then %d", kind.__name__, before, len(model.graph))
            layers |= rewrite.layers
    _require_own(choices, layers)
    return Rewritten(tuple(changed), layers)


def _is_wanted(kind: type[Rewrite], choices: Choices) -> bool:
    if kind.__name__ in choices.without or kind.blocks not in (None, choices.blocks):
        return False
    return choices.max_weight_growth is None or kind.weight_growth <= choices.max_weight_growth


def _require_own(choices: Choices, layers: Mapping[str, RewrittenLayer]) -> None:
    """Check that the algorithms were chosen for layers of this network.

    Raises:
        InputError: they weren't.
    """
    for layer, algorithm in choices.algorithms.items():
        if layer not in layers:
            raise InputError(f"the tuning is another network's: there is no convolution {layer}")
        if algorithm not in layers[layer].algorithms:
            raise InputError(f"the tuning asks for {algorithm}, which can't make the convolution {layer}")
