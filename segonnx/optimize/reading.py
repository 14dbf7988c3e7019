"""Questions about nodes and values that several rewrites ask."""

from __future__ import annotations

import onnx_ir as ir

REPEATING = {("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"), ("half_pixel", "round_prefer_ceil")}
"""The modes of Resize in which nearest neighbours by whole factors are each voxel repeated."""


def shape(value: ir.Value | None) -> list[int]:
    """The sizes of a value whose sizes are all known."""
    assert value is not None and value.shape is not None
    return [int(size) for size in value.shape]  # type: ignore[arg-type]


def is_static(value: ir.Value | None) -> bool:
    """Whether all sizes of the value are known."""
    return value is not None and value.shape is not None and all(isinstance(size, int) for size in value.shape)


def is_constant(value: ir.Value | None) -> bool:
    """Whether the value is an initializer, or made of such alone, which a runtime computes when it loads the graph."""
    seen, left = {value}, [value]
    while left:
        one = left.pop()
        if one is None:
            return False
        if one.const_value is not None:
            continue
        node = one.producer()
        if node is None or _has_bodies(node):
            return False
        given = [source for source in node.inputs if source is not None and source not in seen]
        seen.update(given)
        left += reversed(given)  # what a network computes with is the first input of most operators
    return True


def _has_bodies(node: ir.Node) -> bool:
    """Whether the node runs graphs of its own, which may take values that aren't among its inputs."""
    return any(
        attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attribute in node.attributes.values()
    )


def is_operator(node: ir.Node | None, *operators: str) -> bool:
    """Whether the node is one of these operators of ONNX's own domain."""
    return node is not None and node.domain == "" and node.op_type in operators


def is_used_once(value: ir.Value) -> bool:
    """Whether one node takes the value, once, and the graph doesn't give it."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def bias(node: ir.Node) -> ir.Value | None:
    """The bias of a convolution; None where it has none."""
    return node.inputs[2] if len(node.inputs) > 2 else None


def group(node: ir.Node) -> int:
    """A convolution's number of groups."""
    return node.attributes.get_int("group", 1)


def pads_by_rule(node: ir.Node) -> bool:
    """Whether a convolution's or a pooling's padding is computed from its sizes."""
    return node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET"


def is_convolution2d(node: ir.Node | None) -> bool:
    """Whether the node is a convolution of images whose weight is constant."""
    if node is None or not is_operator(node, "Conv"):
        return False
    weight = node.inputs[1]
    return weight is not None and is_constant(weight) and weight.shape is not None and len(weight.shape) == 4


def is_pointwise(node: ir.Node) -> bool:
    """Whether the node is a convolution that sums over the channels of each voxel alone."""
    if not is_operator(node, "Conv"):
        return False
    weight = node.inputs[1]
    if weight is None or weight.shape is None or any(size != 1 for size in weight.shape[2:]):
        return False
    strides, pads = node.attributes.get_ints("strides", ()), node.attributes.get_ints("pads", ())
    return all(stride == 1 for stride in strides) and not any(pads) and not pads_by_rule(node)


def joins_channels(node: ir.Node | None, *, rank: int) -> bool:
    """Whether the node concatenates the channels of values of this rank."""
    return node is not None and is_operator(node, "Concat") and node.attributes.get_int("axis") in (1, 1 - rank)


def repeats(node: ir.Node) -> list[int] | None:
    """How many times a Resize repeats its input along each axis; None where it does anything else.

    A scale of 3.2 makes 12 voxels of 4, as 3 does, but takes others: where scales are given they count, not the sizes.
    """
    before, after = node.inputs[0], node.outputs[0]
    if not is_static(before) or not is_static(after):
        return None
    modes = (
        node.attributes.get_string("coordinate_transformation_mode", "half_pixel"),
        node.attributes.get_string("nearest_mode", "round_prefer_floor"),
    )
    nearest = node.attributes.get_string("mode", "nearest") == "nearest"
    return _whole_factors(node) if nearest and modes in REPEATING else None


def enlarges_linearly(node: ir.Node) -> list[int] | None:
    """How many times as large a Resize makes each axis, linearly between the middles of voxels; None elsewhere."""
    if not is_static(node.inputs[0]) or not is_static(node.outputs[0]):
        return None
    middles = node.attributes.get_string("coordinate_transformation_mode", "half_pixel").endswith("half_pixel")
    linear = node.attributes.get_string("mode", "nearest") == "linear"
    smooth = node.attributes.get_int("antialias", 0) or node.attributes.get_int("exclude_outside", 0)
    return _whole_factors(node) if linear and middles and not smooth else None


def _whole_factors(node: ir.Node) -> list[int] | None:
    """The whole factors of a Resize of static shape; None where one isn't whole."""
    before, after = node.inputs[0], node.outputs[0]
    if "axes" in node.attributes or any(
        large % small for small, large in zip(shape(before), shape(after), strict=True)
    ):
        return None
    factors = [large // small for small, large in zip(shape(before), shape(after), strict=True)]
    scales = node.inputs[2] if len(node.inputs) > 2 else None
    if scales is None:
        return factors
    given = scales.const_value
    return factors if given is not None and given.numpy().tolist() == factors else None
