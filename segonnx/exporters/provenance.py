"""Where each initializer of an ONNX graph comes from.

torch writes every parameter under its own name. Passes then fold some into others; what was folded is read off the
graph as it was before, so that the file can be held against the network, tensor by tensor (see ``accounting``).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

if TYPE_CHECKING:
    import onnx

Kind = Literal["parameter", "batch_norm_weight", "batch_norm_bias", "folded", "computed", "constant"]

SHAPING = {
    "Expand": (1,), "Pad": (1, 3), "Reshape": (1,), "Resize": (1, 2, 3), "Slice": (1, 2, 3, 4), "Split": (1,),
    "Squeeze": (1,), "Tile": (1,), "TopK": (1,), "Unsqueeze": (1,), "ConstantOfShape": (0,),
    "ReduceMax": (1,), "ReduceMean": (1,), "ReduceMin": (1,), "ReduceProd": (1,), "ReduceSum": (1,),
}  # fmt: skip
"""The inputs of operators that say where numbers go, and not which they are."""

CONSTANTS = "constants.safetensors"
"""The file of what is ``computed``, beside the converted graph."""
SEEDS = 16
"""Arithmetic on more numbers than this, and than a part of its result, could hide weights."""
PART = 8
"""That part: of as many numbers of a result, one may be given."""


@dataclass(frozen=True)
class Origin:
    """What an initializer is made of.

    Attributes:
        kind: ``parameter`` (one tensor of the network, bit by bit), ``batch_norm_weight`` and ``batch_norm_bias`` (a
            convolution with a BatchNorm folded in), ``folded`` (computed from parameters alone), ``computed``
            (arithmetic of torch's graph on a few numbers: coordinates, positions, masks) or ``constant`` (of the graph
            itself: shapes, axes, zeros).
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
    seeds: dict[str, dict[str, int]] = field(default_factory=dict)
    """For what no parameter and no input is behind: the constants that it is computed from, and their sizes."""
    nodes: dict[str, onnx.NodeProto] = field(default_factory=dict)
    """Of these, the nodes that give them."""
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)
    """Of these, the initializers."""


def trace(model: ir.Model, tensors: Mapping[str, str]) -> Trace:
    """Read the origins off the graph as torch wrote it.

    Args:
        model: before any pass.
        tensors: every name of the network's parameters and buffers, and the name that stands for each.
    """
    found = Trace()
    for name, value in model.graph.initializers.items():
        found.derived[name] = (tensors[name],) if name in tensors else ()
        if name not in tensors and value.const_value is not None:
            found.seeds[name] = {name: value.const_value.size}
            found.constants[name] = ir.serde.serialize_tensor(value.const_value)
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
            if not sources:
                _trace_seeds(node, found)
        if node.op_type == "BatchNormalization":
            _trace_norm(node, found)
    return found


def _trace_seeds(node: ir.Node, found: Trace) -> None:
    """Note which constants the outputs of a node are computed from, and keep the node."""
    shaping = SHAPING.get(node.op_type, ())
    seeds: dict[str, int] = {}
    if node.op_type in ("Shape", "Size"):
        constant = _constant_shape(node)
        if constant is None:
            return
        node = constant
    elif node.op_type == "Constant":
        tensor = node.outputs[0].const_value
        size = tensor.size if tensor is not None else _length(next(iter(node.attributes.values()), None))
        seeds = {node.outputs[0].name or "": size}
    elif any(value is not None and value.name not in found.seeds for value in node.inputs):
        return
    else:
        for number, value in enumerate(node.inputs):
            if value is not None and number not in shaping:
                seeds |= found.seeds[value.name or ""]
    proto = ir.serde.serialize_node(node)
    for value in node.outputs:
        found.seeds[value.name or ""] = seeds
        found.nodes[value.name or ""] = proto


def _constant_shape(node: ir.Node) -> ir.Node | None:
    """A constant in place of a node that gives a shape; None where that is open."""
    shape = None if node.inputs[0] is None else node.inputs[0].shape
    sizes = [] if shape is None else [size for size in shape if isinstance(size, int)]
    if shape is None or len(sizes) != len(shape):
        return None
    if node.op_type == "Size":
        array = np.array(math.prod(sizes), np.int64)
    else:
        start = node.attributes["start"].as_int() if "start" in node.attributes else 0
        end = node.attributes["end"].as_int() if "end" in node.attributes else len(sizes)
        array = np.array(sizes[start:end], np.int64)
    made = ir.node("Constant", [], {"value": ir.tensor(array)})
    made.outputs[0].name = node.outputs[0].name
    return made


def _length(attribute: ir.Attr | None) -> int:
    """How many numbers an attribute holds."""
    value = None if attribute is None else attribute.value
    if isinstance(value, ir.TensorProtocol):
        return value.size
    return len(value) if isinstance(value, list | tuple) else 1


def computed(model: ir.Model, found: Trace) -> dict[str, npt.NDArray[Any]]:
    """The initializers that torch's graph computes from a few numbers, as ONNX Runtime computes them.

    Args:
        model: after its passes.
        found: its trace before them.

    Returns:
        By their names: coordinates, positions, masks. What is computed from more numbers than arithmetic needs isn't
        among them: those may be weights.
    """
    held = {
        name: value
        for name, value in model.graph.initializers.items()
        if name in found.nodes
        and found.nodes[name].op_type != "Constant"
        and value.const_value is not None
        and sum(found.seeds[name].values()) <= max(SEEDS, value.const_value.size // PART)
    }
    return _evaluate(found, held, model) if held else {}


def save(constants: Mapping[str, npt.NDArray[Any]], path: Path) -> None:
    """Write what is ``computed``, for ``accounting`` to hold the file against."""
    from safetensors.numpy import save_file

    save_file({name: np.array(array, order="C") for name, array in constants.items()}, path)


def _evaluate(found: Trace, held: Mapping[str, ir.Value], model: ir.Model) -> dict[str, npt.NDArray[Any]]:
    """What a part of torch's graph gives that has no inputs."""
    import onnx

    from segonnx.core.ort_session import SessionSettings, open_session

    needed: set[str] = set()
    waiting = [*held]
    while waiting:
        if (name := waiting.pop()) not in needed:
            needed.add(name)
            waiting += [before for before in found.nodes[name].input if before] if name in found.nodes else []
    nodes = {id(node): node for name, node in found.nodes.items() if name in needed}
    outputs = [onnx.helper.make_tensor_value_info(name, int(value.dtype or 0), None) for name, value in held.items()]
    constants = [found.constants[name] for name in needed - found.nodes.keys()]
    graph = onnx.helper.make_graph([*nodes.values()], "constants", [], outputs, constants)
    functions = [ir.serde.serialize_function(function) for function in model.functions.values()]
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in model.graph.opset_imports.items()]
    part = onnx.helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=model.ir_version)
    arrays = open_session(part.SerializeToString(), SessionSettings(threads=1)).run(None, {})
    return dict(zip(held, arrays, strict=True))


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


def explain(
    model: ir.Model, traced: Trace, tensors: Mapping[str, str], known: Collection[str] = ()
) -> dict[str, Origin]:
    """The origin of every initializer of the graph after its passes.

    Args:
        model: after its passes.
        traced: its trace before them.
        tensors: see ``trace``.
        known: the names of what was ``computed``.

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
            kind: Kind = "folded" if sources else "computed" if name in known else "constant"
            origins[name] = Origin(kind, sources)
    return origins
