"""The volumes of a graph that is being rewritten to depth slices: which values exist as slices, as a whole, or both."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import onnx_ir as ir

from segonnx.optimize import slices
from segonnx.optimize.builder import Builder
from segonnx.optimize.reading import shape
from segonnx.optimize.slices import Outside, Slices, Volume

SHORTEST = 4
"""Slices that a depth chunk has at least. Of a shorter one, too many slices would be halo."""


def chunks_of(depth: int, chunks: int) -> int:
    """How many chunks a depth is divided into.

    Args:
        depth: in slices.
        chunks: as many as that, if they are equally long, not too short, and leave over no more of F(4, 3)'s windows of
            four slices than one chunk does; otherwise one.
    """
    count, rest = divmod(depth, chunks)
    return chunks if rest == 0 and count >= SHORTEST and count % 4 * chunks <= depth % 4 else 1


class Volumes:
    """The values of a graph that exist as slices.

    Args:
        graph: the graph.
        chunks: that volumes are divided into, where they are deep enough.
    """

    def __init__(self, graph: ir.Graph, chunks: int) -> None:
        self._graph = graph
        self._chunks = chunks
        self._sliced: dict[ir.Value, Volume] = {}
        self._stacked: dict[ir.Value, ir.Value] = {}
        self._halos: dict[tuple[tuple[ir.Value, ...], int, Outside], ir.Value] = {}

    def __contains__(self, value: ir.Value | None) -> bool:
        return value in self._sliced

    def put(self, build: Builder, value: ir.Value, volume: Iterable[Slices]) -> None:
        """Let slices stand for a value, each part divided into as many chunks as its depth allows."""
        self._sliced[value] = tuple(self._divided(build, part) for part in volume)

    def get(self, build: Builder, value: ir.Value) -> Volume:
        """The slices of a value, made from the whole where there are none yet."""
        if value not in self._sliced:
            self.put(build, value, [self._unstacked(build, value)])
            self._stacked[value] = value
        return self._sliced[value]

    def with_all_channels(self, build: Builder, value: ir.Value) -> Slices:
        """The slices of a value, each with all channels."""
        volume = self.get(build, value)
        if len(volume) > 1:
            values = (build.concat(parts, 1) for parts in zip(*(part.values for part in volume), strict=True))
            volume = (volume[0].like(values, channels=sum(part.channels for part in volume)),)
            self._sliced[value] = volume
        return volume[0]

    def whole(self, build: Builder, value: ir.Value) -> ir.Value:
        """The value (1, C, D, H, W) of slices."""
        if value not in self._stacked:
            whole = build.concat([self._whole(build, part) for part in self._sliced[value]], 1)
            whole.shape, whole.type = value.shape, value.type
            self._stacked[value] = whole
        return self._stacked[value]

    def with_halo(
        self,
        build: Builder,
        source: Slices,
        kernel: int,
        stride: int,
        pads: tuple[int, int] = (0, 0),
        outside: Outside = "zeros",
    ) -> Slices:
        """A source with what windows along its depth take from other chunks.

        Args:
            build: takes the nodes.
            source: the slices.
            kernel: slices of a window.
            stride: slices from one window to the next.
            pads: slices before and after the depth.
            outside: what those hold.

        Returns:
            The source, in one chunk where the chunks of the output wouldn't follow from those of the source.
        """
        depth = (source.depth + sum(pads) - kernel) // stride + 1
        if source.chunks == 1 or depth * stride != source.depth or depth % source.chunks:
            return slices.divide(build, source, 1)
        taken = {d * stride - pads[0] + k for d in range(depth // source.chunks) for k in range(kernel)}
        return self.with_neighbours(build, source, taken, outside)

    def with_neighbours(
        self, build: Builder, source: Slices, taken: Iterable[int], outside: Outside = "zeros"
    ) -> Slices:
        """A source with those of the slices that are taken which lie in other chunks, by their indices."""
        if source.chunks == 1:
            return source
        others = sorted(set(taken) - set(range(source.count)))
        return replace(source, halo={index: self._halo(build, source, index, outside) for index in others})

    def stack_inputs(self, node: ir.Node) -> None:
        """Give a node that stays the whole values that it was written for."""
        for index, value in enumerate(node.inputs):
            if value is not None and value in self._sliced:
                build = Builder(self._graph)
                node.replace_input_with(index, self.whole(build, value))
                build.insert_before(node)

    def stack_outputs(self) -> None:
        """Let the graph give the whole of each output that exists as slices."""
        for index, value in enumerate(self._graph.outputs):
            if value in self._sliced and self._stacked.get(value) is not value:
                build = Builder(self._graph)
                whole = self.whole(build, value)
                self._graph.extend(build.nodes)
                whole.name, value.name = value.name, None
                self._graph.outputs[index] = whole

    def _unstacked(self, build: Builder, value: ir.Value) -> Slices:
        """The slices of a whole value."""
        _, channels, *sizes = shape(value)
        return slices.unstack(build, value, channels, *sizes)

    def _whole(self, build: Builder, source: Slices) -> ir.Value:
        """The value (1, C, D, H, W) of some channels' slices."""
        return slices.stack(build, source)

    def _divided(self, build: Builder, source: Slices) -> Slices:
        """Slices as they travel."""
        return slices.divide(build, source, chunks_of(source.depth, self._chunks))

    def _halo(self, build: Builder, source: Slices, index: int, outside: Outside) -> ir.Value:
        key = (source.values, index, outside)
        if key not in self._halos:
            self._halos[key] = self._beyond(build, source, index, outside)
        return self._halos[key]

    def _beyond(self, build: Builder, source: Slices, index: int, outside: Outside) -> ir.Value:
        """What lies at an index outside of a chunk."""
        return slices.halo(build, source, index, outside)
