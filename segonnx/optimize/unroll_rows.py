"""2D networks on rows: 3x3 convolutions by Winograd's F(4, 3) along the height, and what stands between them.

An image (1, C, H, W) is a volume (1, C, H, 1, W) whose slices are rows. So the nodes of a region (see ``row_regions``)
become nodes of such volumes, and those become 2D ones again by the rules for volumes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Self

import numpy as np
import onnx_ir as ir

from segonnx.optimize import algorithms, row_regions
from segonnx.optimize.algorithms.convolution import Convolution
from segonnx.optimize.base import Rewrite
from segonnx.optimize.builder import Builder
from segonnx.optimize.choices import DEPTH_CHUNKS, Choices
from segonnx.optimize.reading import is_constant, shape
from segonnx.optimize.rows import Rows
from segonnx.optimize.unroll_depth import Unrolling

HEIGHT = 3
"""The axis that an image gets to be a volume."""
ALONG_HEIGHT = {"kernel_shape": 1, "strides": 1, "dilations": 1, "pads": 0, "output_padding": 0}
"""What windows have along that axis."""


class UnrollRowsPass(Rewrite):
    """Replace 3x3 convolutions of images, and what stands between them, by operators on every fourth row.

    requires: float32 images (1, C, H, W) of static shape, H a multiple of four; constant weights; convolutions that
        save more than laying out images anew takes, see ``row_regions``. What isn't so stays.

    Args:
        parts: that images are divided into, where they have rows enough.
    """

    weight_growth = algorithms.ALGORITHMS["winograd4"].weight_growth
    min_opset = 18  # reductions take their axes as inputs

    def __init__(self, parts: int = DEPTH_CHUNKS) -> None:
        super().__init__()
        self._parts = parts

    @classmethod
    def with_choices(cls, choices: Choices) -> Self:
        return cls(choices.depth_chunks)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = list(model.graph)
        able = {index for index, node in enumerate(nodes) if row_regions.can_be_rows(node)}
        while chosen := row_regions.worthwhile(model.graph, {nodes[index] for index in able}):
            places = [index for index, node in enumerate(nodes) if node in chosen]
            # Tried on a copy first: a node can look as if a rule took it, and the rule declines it.
            left = self._unroll(model.clone().graph, places)
            if not left:
                self._unroll(model.graph, places)
                break
            able -= left
        return ir.passes.PassResult(model, bool(chosen))

    def _unroll(self, graph: ir.Graph, places: Sequence[int]) -> set[int]:
        """Rewrite the nodes in these places; the places of those that no rule took."""
        nodes = list(graph)
        volumes = _as_volumes(graph, [nodes[place] for place in places])
        Unrolling(graph, Rows(graph, self._parts), {}, sys.maxsize, _algorithm, set(volumes)).run()
        return {place for place, node in zip(places, volumes, strict=True) if node.graph is not None}


def _algorithm(conv: Convolution, names: Sequence[str]) -> str:
    """F(4, 3) where it can make a convolution of more than a few channels."""
    few = shape(conv.weight)[1] <= row_regions.FEW
    return "taps" if few or "winograd4" not in names else "winograd4"


def _as_volumes(graph: ir.Graph, nodes: Sequence[ir.Node]) -> list[ir.Node]:
    """Put nodes of volumes of height 1 in the place of nodes of images."""
    volumes: dict[ir.Value, ir.Value] = {}
    made: list[ir.Node] = []
    squeezed: list[ir.Value] = []
    for node in nodes:
        build = Builder(graph)
        inputs = [None if value is None else _as_volume(build, node, value, volumes) for value in node.inputs]
        attributes = {name: _with_height(attribute) for name, attribute in node.attributes.items()}
        image = node.outputs[0]
        volume = _shaped_as(build.op(node.op_type, inputs, attributes), image)
        made.append(build.nodes[-1])
        replacement = build("Squeeze", volume, build.integers(HEIGHT))
        build.replace(node, replacement)
        volumes[replacement] = volume
        squeezed.append(replacement)
    for replacement in squeezed:
        if not replacement.uses() and not replacement.is_graph_output():
            graph.remove(replacement.producer(), safe=True)  # type: ignore[arg-type]
    return made


def _as_volume(build: Builder, node: ir.Node, value: ir.Value, volumes: dict[ir.Value, ir.Value]) -> ir.Value:
    """What a node of volumes takes in the place of an input of the node of images."""
    if not is_constant(value):
        if value not in volumes:
            volumes[value] = _shaped_as(build("Unsqueeze", value, build.integers(HEIGHT)), value)
        return volumes[value]
    if node.op_type == "Resize" and value.const_value is not None and value.const_value.size:
        factors = value.const_value.numpy()
        return build.constant(f"{value.name}_of_rows", np.insert(factors, HEIGHT, 1).astype(factors.dtype))
    if value.shape is not None and value.shape.rank() == 4:  # a weight, or numbers of channels
        return _shaped_as(build("Unsqueeze", value, build.integers(HEIGHT)), value)
    return value


def _shaped_as(volume: ir.Value, image: ir.Value) -> ir.Value:
    """The volume, with the image's type, and its shape at a height of 1."""
    sizes = shape(image)
    volume.shape, volume.type = ir.Shape([*sizes[:HEIGHT], 1, *sizes[HEIGHT:]]), image.type
    return volume


def _with_height(attribute: ir.Attr) -> ir.Attr:
    """An attribute of an image's windows as one of a volume's."""
    if attribute.name not in ALONG_HEIGHT:
        return attribute
    numbers, height = list(attribute.as_ints()), ALONG_HEIGHT[attribute.name]
    pairs = (numbers[i : i + 2] for i in range(0, len(numbers), 2))
    return ir.AttrInt64s(attribute.name, [number for rows, columns in pairs for number in (rows, height, columns)])
