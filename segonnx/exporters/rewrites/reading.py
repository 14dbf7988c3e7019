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


def repeats(node: ir.Node) -> bool:
    """Whether a Resize by whole factors repeats each voxel."""
    modes = (
        text(node, "coordinate_transformation_mode", "half_pixel"),
        text(node, "nearest_mode", "round_prefer_floor"),
    )
    return text(node, "mode", "nearest") == "nearest" and modes in REPEATING
