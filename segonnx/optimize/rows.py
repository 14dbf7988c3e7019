"""An image as a volume whose slices are its rows.

What makes 3D operators of depth slices then makes 2D ones of rows, F(4, 3) among it. A row is little work, so the depth
chunks are as short as F(4, 3)'s windows, four rows, and lie below each other in a value instead of in a batch: a value
(B, C, D / 4 / B, W) holds every fourth row of B equal parts of the image, and four of them are the whole image. Two
parts are a batch for two threads, as chunks are (see ``slices``).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from segonnx.optimize.builder import Builder
from segonnx.optimize.reading import shape
from segonnx.optimize.slices import Outside, Slices
from segonnx.optimize.volumes import Volumes

COUNT = 4
"""Values of an image: as many as F(4, 3) makes at once."""


class Rows(Volumes):
    """The images (1, C, D, 1, W) of a graph that exist as rows.

    Args:
        graph: the graph.
        parts: that images are divided into, where their rows allow it.
    """

    def __init__(self, graph: ir.Graph, parts: int) -> None:
        super().__init__(graph, 1)
        self._parts = parts

    def _unstacked(self, build: Builder, value: ir.Value) -> Slices:
        _, channels, depth, _, width = shape(value)
        parts = self._parts_of(depth)
        rows = depth // COUNT // parts
        if parts > 1 and channels > 1:
            apart = build("Transpose", build.reshape(value, channels, parts, rows, COUNT * width), perm=[1, 0, 2, 3])
        else:
            apart = build.reshape(value, parts, channels, rows, COUNT * width)
        values = build.split(apart, [width] * COUNT, 3)
        return Slices(values, channels, 1, width, depth // COUNT, images=parts)

    def _whole(self, build: Builder, source: Slices) -> ir.Value:
        image = build.concat(source.values, 3)
        if source.batch > 1 and source.channels > 1:
            image = build("Transpose", image, perm=[1, 0, 2, 3])
        return build.reshape(image, 1, source.channels, source.depth, 1, source.width)

    def _divided(self, build: Builder, source: Slices) -> Slices:
        parts = self._parts_of(source.depth)
        if parts < source.batch:
            source = self._in_parts(build, source, 0, 2)
        source = _apart(build, source) if source.count < COUNT else _together(build, source)
        if parts > source.batch:
            source = self._in_parts(build, source, 2, 0)
        return source

    def _in_parts(self, build: Builder, source: Slices, of: int, to: int) -> Slices:
        """The same rows with the parts of the image taken from one axis to another."""
        size = 1 if of == 0 else source.rows // self._parts
        made = {
            value: build.concat(build.split(value, [size] * self._parts, of), to)
            for value in dict.fromkeys(source.values)
        }
        values = tuple(made[value] for value in source.values)
        return replace(source, values=values, images=1 if of == 0 else self._parts, halo={})

    def _beyond(self, build: Builder, source: Slices, index: int, outside: Outside) -> ir.Value:
        shift, position = divmod(index, source.count)
        assert abs(shift) == 1, "row_regions takes no windows that reach further"
        value, rows = source.values[position], source.rows
        if source.batch == 1 and outside == "zeros":
            along = (1, -1) if shift < 0 else (-1, 1)
            return build("Pad", value, build.integers(0, 0, along[0], 0, 0, 0, along[1], 0))
        sizes = [rows - 1, 1] if shift < 0 else [1, rows - 1]
        body, border = build.split(value, sizes, 2)[:: 1 if shift < 0 else -1]
        borders = build.split(border, [1] * source.batch, 0)
        beyond = self._outside(build, source, shift, outside)
        border = build.concat([beyond, *borders[:-1]] if shift < 0 else [*borders[1:], beyond], 0)
        return build.concat([border, body] if shift < 0 else [body, border], 2)

    def _outside(self, build: Builder, source: Slices, shift: int, outside: Outside) -> ir.Value:
        """The row (1, C, 1, W) above the image, or below it."""
        if outside != "edge":
            number = 0.0 if outside == "zeros" else float(np.finfo(np.float32).min)
            return build.filled(number, 1, source.channels, 1, source.width)
        first = shift < 0
        value = source.values[0 if first else -1]
        image = build.split(value, [1] * source.batch, 0)[0 if first else -1]
        return build.split(image, [1, source.rows - 1] if first else [source.rows - 1, 1], 2)[0 if first else -1]

    def _parts_of(self, depth: int) -> int:
        return self._parts if depth // COUNT % self._parts == 0 else 1


def _apart(build: Builder, source: Slices) -> Slices:
    """The same rows as more values of less height."""
    times = COUNT // source.count
    sizes = (source.batch, source.channels, source.rows // times, times * source.width)
    parts = {
        value: build.split(build.reshape(value, *sizes), [source.width] * times, 3)
        for value in dict.fromkeys(source.values)
    }
    values = tuple(parts[value][row] for row in range(times) for value in source.values)
    return replace(source, values=values, chunks=source.chunks // times, halo={})


def _together(build: Builder, source: Slices) -> Slices:
    """The same rows as fewer values of more height."""
    times = source.count // COUNT
    if times == 1:
        return source
    sizes = (source.batch, source.channels, source.rows * times, source.width)
    groups = [source.values[row::COUNT] for row in range(COUNT)]
    made = {group: build.reshape(build.concat(group, 3), *sizes) for group in dict.fromkeys(groups)}
    return replace(source, values=tuple(made[group] for group in groups), chunks=source.chunks * times, halo={})
