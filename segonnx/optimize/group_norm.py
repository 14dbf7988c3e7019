"""Norms over groups of channels, as PyTorch's exporter writes them: InstanceNormalization between two Reshapes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir

from segonnx.optimize.reading import is_operator, is_static, is_used_once, shape


@dataclass(frozen=True)
class GroupNorm:
    """A norm of a volume (1, C, D, H, W) over groups of channels.

    Attributes:
        x: what is normalized.
        groups: G.
        scale: of the groups, (G,).
        bias: of the groups, (G,).
        factors: of the channels, C numbers; None where there are none.
        shifts: of the channels, C numbers; None where there are none.
        epsilon: is added to the variance.
        nodes: all that belong to it. The last gives what it gives.
    """

    x: ir.Value
    groups: int
    scale: ir.Value
    bias: ir.Value
    factors: ir.Value | None
    shifts: ir.Value | None
    epsilon: float
    nodes: tuple[ir.Node, ...]


def find(graph: ir.Graph) -> list[GroupNorm]:
    """The norms over groups in a graph."""
    return [norm for node in graph if (norm := _read(node)) is not None]


def _read(node: ir.Node) -> GroupNorm | None:
    if not is_operator(node, "InstanceNormalization") or node.inputs[0] is None:
        return None
    before, (_, scale, bias) = node.inputs[0].producer(), node.inputs
    after = _only_user(node)
    if before is None or after is None or scale is None or bias is None:
        return None
    if not (is_operator(before, "Reshape") and is_operator(after, "Reshape") and is_used_once(before.outputs[0])):
        return None
    x, joined = before.inputs[0], before.outputs[0]
    if x is None or not all(map(is_static, (x, joined, after.outputs[0]))):
        return None
    sizes, groups = shape(x), shape(joined)[1]
    if len(sizes) != 5 or sizes[0] != 1 or shape(joined)[0] != 1 or len(shape(joined)) != 3 or sizes[1] % groups:
        return None
    if shape(after.outputs[0]) != sizes:
        return None
    nodes = [before, node, after]
    found: dict[str, ir.Value | None] = {"Mul": None, "Add": None}
    for operator in found:
        following = _only_user(nodes[-1])
        numbers = None if following is None else _of_channels(following, operator, nodes[-1].outputs[0], sizes[1])
        if following is not None and numbers is not None:
            found[operator] = numbers
            nodes.append(following)
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    return GroupNorm(x, groups, scale, bias, found["Mul"], found["Add"], epsilon, tuple(nodes))


def _only_user(node: ir.Node) -> ir.Node | None:
    """The node that takes a node's output; None where several do, or the graph gives it."""
    return next(iter(node.outputs[0].uses())).node if is_used_once(node.outputs[0]) else None


def _of_channels(node: ir.Node, operator: str, value: ir.Value, channels: int) -> ir.Value | None:
    """The other operand of a product or a sum with a number for each channel of a volume."""
    if not is_operator(node, operator):
        return None
    others = [operand for operand in node.inputs if operand is not value]
    if len(others) != 1 or others[0] is None or others[0].const_value is None:
        return None
    sizes = shape(others[0])
    fits = sizes[-4:] == [channels, 1, 1, 1] and math.prod(sizes) == channels
    return others[0] if fits else None
