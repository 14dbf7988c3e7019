"""What nodes and values say, with ONNX's defaults where they say nothing."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

REPEATING = {("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"), ("half_pixel", "round_prefer_ceil")}
"""The modes of Resize in which nearest neighbours by whole factors are each voxel repeated."""


def shape(value: ir.Value | None) -> list[int]:
    """The sizes of a value that has them all."""
    assert value is not None and value.shape is not None
    return [int(size) for size in value.shape]  # type: ignore[arg-type]


def text(node: ir.Node, name: str, default: str) -> str:
    """An attribute that is a string."""
    return node.attributes[name].as_string() if name in node.attributes else default


def integers(node: ir.Node, name: str, default: Sequence[int]) -> tuple[int, ...]:
    """An attribute that is a list of integers."""
    return tuple(node.attributes[name].as_ints()) if name in node.attributes else tuple(default)


def group(node: ir.Node) -> int:
    """A convolution's number of groups."""
    return node.attributes["group"].as_int() if "group" in node.attributes else 1


def is_convolution2d(node: ir.Node | None) -> bool:
    """Whether the node is a convolution of images whose weight is an initializer."""
    if node is None or node.domain != "" or node.op_type != "Conv":
        return False
    weight = node.inputs[1]
    return weight is not None and weight.const_value is not None and weight.shape is not None and len(weight.shape) == 4


def repeats(node: ir.Node) -> list[int] | None:
    """How many times a Resize repeats its input along each axis; None where it does anything else.

    A scale of 3.2 makes 12 voxels of 4, as 3 does, but takes others: where scales are given they count, not the sizes.
    """
    before, after = node.inputs[0], node.outputs[0]
    for value in (before, after):
        if value is None or value.shape is None or not all(isinstance(size, int) for size in value.shape):
            return None
    modes = (
        text(node, "coordinate_transformation_mode", "half_pixel"),
        text(node, "nearest_mode", "round_prefer_floor"),
    )
    if text(node, "mode", "nearest") != "nearest" or modes not in REPEATING or "axes" in node.attributes:
        return None
    if any(large % small for small, large in zip(shape(before), shape(after), strict=True)):
        return None
    factors = [large // small for small, large in zip(shape(before), shape(after), strict=True)]
    scales = node.inputs[2] if len(node.inputs) > 2 else None
    if scales is None:
        return factors
    given = scales.const_value
    return factors if given is not None and given.numpy().tolist() == factors else None
