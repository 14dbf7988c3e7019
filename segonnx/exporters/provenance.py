"""Where each initializer of an ONNX graph comes from.

torch writes every parameter under its own name. Passes then fold some into others; what was folded is read off the
graph as it was before, so that the file can be held against the network, tensor by tensor (see ``accounting``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import onnx_ir as ir

Kind = Literal["parameter", "batch_norm_weight", "batch_norm_bias", "folded", "constant"]


@dataclass(frozen=True)
class Origin:
    """What an initializer is made of.

    Attributes:
        kind: ``parameter`` (one tensor of the network, bit by bit), ``batch_norm_weight`` and ``batch_norm_bias`` (a
            convolution with a BatchNorm folded in), ``folded`` (computed from parameters alone) or ``constant`` (of the
            graph itself: shapes, axes, zeros).
        sources: the network's tensors that it is made of. For the BatchNorm kinds: the layer's weight, its bias (or
            ``""``), then the norm's weight, bias, mean and variance.
        epsilon: the BatchNorm's.
        axis: the axis of the layer's output channels in its weight.
    """

    kind: Kind
    sources: tuple[str, ...] = ()
    epsilon: float = 0.0
    axis: int = 0


@dataclass
class Trace:
    """The origins of all values that don't depend on the input, read off a graph before its optimisation."""

    derived: dict[str, tuple[str, ...]] = field(default_factory=dict)
    norms: dict[str, Origin] = field(default_factory=dict)


def trace(model: ir.Model, tensors: Mapping[str, str]) -> Trace:
    """Read the origins off the graph as torch wrote it.

    Args:
        model: before any pass.
        tensors: every name of the network's parameters and buffers, and the name that stands for each.
    """
    found = Trace()
    for name in model.graph.initializers:
        found.derived[name] = (tensors[name],) if name in tensors else ()
    for node in model.graph:
        inputs = [value.name or "" for value in node.inputs if value is not None]
        # The shape of a parameter isn't made of its values.
        if node.op_type in ("Shape", "Size"):
            inputs = []
        # Whatever it's cast like, a value is made of itself (GroupNorm casts its weight like what it normalises).
        whole = node.inputs[:1] if node.op_type == "CastLike" else node.inputs
        if node.op_type == "CastLike":
            inputs = inputs[:1]
        if all(name in found.derived for name in inputs) and not any(v in model.graph.inputs for v in whole):
            sources = tuple(dict.fromkeys(source for name in inputs for source in found.derived[name]))
            for value in node.outputs:
                found.derived[value.name or ""] = sources
        if node.op_type == "BatchNormalization":
            _trace_norm(node, found)
    return found


def _trace_norm(norm: ir.Node, found: Trace) -> None:
    layer = norm.inputs[0].producer() if norm.inputs[0] is not None else None
    if layer is None or layer.op_type not in ("Conv", "ConvTranspose"):
        return
    weight = layer.inputs[1].name or "" if layer.inputs[1] is not None else ""
    bias = layer.inputs[2].name or "" if len(layer.inputs) > 2 and layer.inputs[2] is not None else ""
    affine = [value.name or "" for value in norm.inputs[1:] if value is not None]
    sources = tuple(next(iter(found.derived.get(name, ())), "") for name in (weight, bias, *affine))
    epsilon = norm.attributes["epsilon"].as_float() if "epsilon" in norm.attributes else 1e-5
    axis = 1 if layer.op_type == "ConvTranspose" else 0
    found.norms[weight] = Origin("batch_norm_weight", sources, epsilon, axis)
    for name in (bias, f"{weight}_bias"):
        if name:
            found.norms[name] = Origin("batch_norm_bias", sources, epsilon, axis)


def explain(model: ir.Model, traced: Trace, tensors: Mapping[str, str]) -> dict[str, Origin]:
    """The origin of every initializer of the graph after its passes.

    A layer is taken for folded where its BatchNorm is gone from the graph.
    """
    names = set(model.graph.initializers)
    norms = (node for node in model.graph if node.op_type == "BatchNormalization")
    kept = {tensors.get(value.name or "") for node in norms for value in node.inputs[1:] if value is not None}
    origins: dict[str, Origin] = {}
    for name in names:
        norm = traced.norms.get(name)
        if norm is not None and not set(norm.sources[2:]) & kept:
            origins[name] = norm
        elif name in tensors:
            origins[name] = Origin("parameter", (tensors[name],))
        else:
            sources = traced.derived.get(name, ())
            origins[name] = Origin("folded" if sources else "constant", sources)
    return origins
