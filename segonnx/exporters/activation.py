"""What a graph ends in: whether a network gives logits or probabilities."""

from __future__ import annotations

from typing import Literal

import onnx_ir as ir

Activation = Literal["sigmoid", "softmax", "log-sigmoid"]

KEEPING = {
    "Cast", "Clip", "Concat", "Crop", "Flatten", "Gather", "Identity", "Reshape", "Resize", "Slice", "Split", "Squeeze",
    "Transpose", "Unsqueeze",
}  # fmt: skip
"""Operators behind an activation that leave its values what they are: probabilities stay probabilities."""
_ENDS: dict[str, Activation] = {"Sigmoid": "sigmoid", "Softmax": "softmax"}


def final(model: ir.Model) -> Activation | None:
    """The activation that the graph's first output ends in, seen through operators that only move values.

    Args:
        model: as torch wrote it, before any rewrite.

    Returns:
        None where it ends in none of those that make probabilities, or in several.
    """
    found: set[Activation | None] = set()
    waiting: list[ir.Value | None] = [model.graph.outputs[0]]
    seen: set[int] = set()
    while waiting:
        value = waiting.pop()
        node = None if value is None else value.producer()
        if node is None or id(node) in seen:
            found |= {None} if node is None else set()
            continue
        seen.add(id(node))
        if node.op_type in KEEPING:
            waiting += node.inputs if node.op_type == "Concat" else node.inputs[:1]
        else:
            found.add(_of(node))
    return found.pop() if len(found) == 1 else None


def _of(node: ir.Node) -> Activation | None:
    before = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
    if node.op_type == "Log" and before is not None and before.op_type == "Sigmoid":
        return "log-sigmoid"
    return _ENDS.get(node.op_type)
