"""The versions of an ONNX file: of its operators (opset) and of its format (IR), and what older runtimes need.

What changed between versions is told by ONNX's own changelog of operators (docs/Changelog.md in onnx/onnx).
"""

from __future__ import annotations

import math

import onnx_ir as ir

from segonnx.errors import ConversionError, InputError

OPSET = 20
"""The opset where nobody asks for another."""
OPSETS = range(17, 24)
"""Those that may be asked for."""
TORCH_LEAST = 18
"""The lowest opset that torch's exporter writes."""
LEAST_IR = {17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11}
"""The version of the file's format that came with each opset."""
HIGHEST_IR = 11

_REDUCTIONS = {
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSumSquare",
}  # fmt: skip
_NEW_IN_18 = {
    "BitwiseAnd",
    "BitwiseNot",
    "BitwiseOr",
    "BitwiseXor",
    "CenterCropPad",
    "Col2Im",
    "GroupNormalization",
    "Mish",
}
_DEFAULTS: dict[str, dict[str, int | str]] = {
    "Resize": {"antialias": 0, "keep_aspect_ratio_policy": "stretch"},
    "ScatterElements": {"reduction": "none"},
    "ScatterND": {"reduction": "none"},
}
"""Attributes that opset 18 has and 17 lacks, or has with fewer values, and the value that both take."""


def require(opset: int, ir_version: int | None) -> None:
    """Refuse versions that no file can have.

    Raises:
        InputError: which.
    """
    if opset not in OPSETS:
        raise InputError(f"--opset {opset} isn't one that can be written: there are {OPSETS[0]} to {OPSETS[-1]}")
    if ir_version is not None and not LEAST_IR[opset] <= ir_version <= HIGHEST_IR:
        raise InputError(
            f"opset {opset} takes an --ir-version from {LEAST_IR[opset]} to {HIGHEST_IR}, not {ir_version}"
        )


def lower(model: ir.Model, opset: int) -> None:
    """Write a graph of torch's lowest opset in the one before it.

    Args:
        model: changed in place.
        opset: what is asked for; nothing is done where the graph has no later one.

    Raises:
        ConversionError: an operator of it can't be expressed there.
    """
    if opset >= model.graph.opset_imports[""]:
        return
    assert (opset, model.graph.opset_imports[""]) == (OPSETS[0], TORCH_LEAST)
    for node in model.graph.all_nodes():
        if node.op_type in _NEW_IN_18 and node.domain == "":
            raise _impossible(node, "which is of opset 18")
        if node.op_type in _REDUCTIONS:
            _axes_as_attribute(node)
        elif node.op_type == "Split":
            _sizes_as_input(node, model.graph)
        elif node.op_type == "Pad" and len(node.inputs) > 3 and node.inputs[3] is not None:
            raise _impossible(node, "with axes, which are of opset 18")
        for name, value in _DEFAULTS.get(node.op_type, {}).items():
            given = node.attributes.pop(name, None)
            if given is not None and given.value not in (value, str(value).encode()):
                raise _impossible(node, f"with {name} {given.value!r}, which is of opset 18")
    model.graph.opset_imports[""] = opset


def _impossible(node: ir.Node, why: str) -> ConversionError:
    return ConversionError(f"the graph needs {node.op_type}, {why}: leave --opset out, or ask for 18")


def _axes_as_attribute(node: ir.Node) -> None:
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    if axes is None:
        if "noop_with_empty_axes" in node.attributes and node.attributes.pop("noop_with_empty_axes").as_int():
            raise _impossible(node, "with no axes at all")
        return
    constant = ir.convenience.get_const_tensor(axes)
    if constant is None:
        raise _impossible(node, "with axes that are computed")
    node.attributes.pop("noop_with_empty_axes", None)
    node.attributes["axes"] = ir.AttrInt64s("axes", [int(axis) for axis in constant.numpy().ravel()])
    node.resize_inputs(1)


def _sizes_as_input(node: ir.Node, graph: ir.Graph) -> None:
    """Give a Split that only has a number of pieces the sizes of those."""
    count = node.attributes.pop("num_outputs", None)
    if count is None:
        return
    value, axis = node.inputs[0], node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    size = None if value is None or value.shape is None else value.shape[axis]
    if not isinstance(size, int):
        raise _impossible(node, "of an axis whose size is open")
    piece = math.ceil(size / count.as_int())
    sizes = [min(piece, size - start) for start in range(0, size, piece)]
    named = ir.Value(name=f"{node.outputs[0].name}_sizes", const_value=ir.tensor(sizes, dtype=ir.DataType.INT64))
    graph.register_initializer(named)
    node.resize_inputs(2)
    node.replace_input_with(1, named)
