"""A transposed 3D convolution over depth slices, of 2D ones.

The taps of its kernel bring slices of the input to each slice of the output: those k with ``index + pad - k`` a
multiple of the stride. Of a kernel that is as large as the stride that is one slice; of a larger one they are several,
whose channels one 2D convolution takes together.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from segonnx.optimize import slices
from segonnx.optimize.algorithms.convolution import Convolution
from segonnx.optimize.builder import Builder
from segonnx.optimize.reading import shape
from segonnx.optimize.slices import Volume
from segonnx.optimize.volumes import Volumes


def transposed(volumes: Volumes, build: Builder, node: ir.Node, conv: Convolution) -> Volume | None:
    """The slices of a transposed convolution whose input exists as slices.

    Args:
        volumes: the values that exist as slices.
        build: takes the nodes.
        node: the convolution, of static shape.
        conv: what it computes, without dilations.

    Returns:
        None where a slice of the output gets nothing from the input.
    """
    x = node.inputs[0]
    assert x is not None
    _, channels, depth, height, width = shape(node.outputs[0])
    taps = [_taps(conv, index) for index in range(depth)]
    if not all(any(0 <= position < shape(x)[2] for position, _ in some) for some in taps):
        return None
    source = volumes.with_all_channels(build, x)
    if depth != source.depth * conv.strides[0]:
        source = slices.divide(build, source, 1)
    taps = taps[: depth // source.chunks]
    source = volumes.with_neighbours(build, source, {position for some in taps for position, _ in some})
    plane: dict[str, Any] = {
        "kernel_shape": conv.kernel[1:], "strides": conv.strides[1:], "pads": (*conv.pads[1:3], *conv.pads[4:6]),
        "output_padding": node.attributes.get_ints("output_padding", (0, 0, 0))[1:], "group": conv.groups,
    }  # fmt: skip
    weights = [build("Gather", conv.weight, build.scalar(k), axis=2) for k in range(conv.kernel[0])]
    offset = () if conv.bias is None else (conv.bias,)
    joined: dict[tuple[int, ...], ir.Value] = {}
    values = []
    for some in taps:
        found = {k: value for position, k in some if (value := source.get(position)) is not None}
        if conv.groups == 1:
            key = tuple(found)
            if key not in joined:
                joined[key] = build.concat([weights[k] for k in key], 0)
            values.append(build("ConvTranspose", build.concat([*found.values()], 1), joined[key], *offset, **plane))
            continue
        total: ir.Value | None = None
        for k, value in found.items():
            part = build("ConvTranspose", value, weights[k], *(() if total is not None else offset), **plane)
            total = part if total is None else build("Add", total, part)
        assert total is not None
        values.append(total)
    return (source.like(values, channels=channels, height=height, width=width),)


def _taps(conv: Convolution, index: int) -> list[tuple[int, int]]:
    """For a slice of the output: slices of the input, each with the tap that brings it there."""
    reached = ((index + conv.pads[0] - tap, tap) for tap in range(conv.kernel[0]))
    return [(position // conv.strides[0], tap) for position, tap in reached if position % conv.strides[0] == 0]
