"""A volume as its depth slices: the form in which a 3D network is made of 2D operators.

A value (1, C, D, H, W) becomes D values (1, C, H, W). Operators that mix slices, such as the taps of a convolution in
depth, then name the slices that they need, and nothing is copied, padded or laid out anew for it. A slice is small
enough to stay in the processor's caches from one operator to the next, which a whole volume isn't.

The depth may be divided into L chunks of D / L slices. Then a value (L, C, H, W) holds one slice of each chunk, as a
batch. ONNX Runtime hands work out by the batch first, so a thread has the same chunks in every operator, and reads what
it has written itself. At its ends each chunk needs a few slices of its neighbours: its halo.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import onnx_ir as ir

from segonnx.optimize.builder import Builder

Outside = Literal["zeros", "least", "edge"]
"""What lies outside of a volume: zeros, the least number of float32, or the slice at the edge."""


@dataclass(frozen=True)
class Slices:
    """Some channels of a volume.

    Attributes:
        values: D / L of them, each (L, C, H, W): the slices i, i + D / L, ... The same value may stand in several
            places, for slices that are alike.
        channels: C.
        height: H.
        width: W.
        chunks: L.
        halo: what lies before the first value and after the last, by its index, where chunks meet.
        images: B, where the slices are the rows of an image (see ``rows``): each value is (B, C, L / B, W), and H is 1.
    """

    values: tuple[ir.Value, ...]
    channels: int
    height: int
    width: int
    chunks: int = 1
    halo: Mapping[int, ir.Value] = field(default_factory=dict)
    images: int | None = None

    @property
    def count(self) -> int:
        """D / L."""
        return len(self.values)

    @property
    def depth(self) -> int:
        """D."""
        return self.count * self.chunks

    @property
    def batch(self) -> int:
        """First size of each value."""
        return self.chunks if self.images is None else self.images

    @property
    def rows(self) -> int:
        """Height of each value."""
        return self.height * self.chunks // self.batch

    @property
    def alike(self) -> int:
        """How many neighbouring slices each value stands for, where that's the same for all; 1 where it isn't."""
        times, rest = divmod(self.count, len(set(self.values)))
        regular = rest == 0 and all(self.values[i] is self.values[i - i % times] for i in range(self.count))
        return times if regular else 1

    def get(self, index: int) -> ir.Value | None:
        """A value by its index. None stands for zeros: neither a slice nor the halo is there."""
        return self.values[index] if 0 <= index < self.count else self.halo.get(index)

    def like(self, values: Iterable[ir.Value], **sizes: int) -> Slices:
        """Other values in as many chunks, of the same channels, height and width but for those given."""
        return replace(self, values=tuple(values), halo={}, **sizes)

    def zeros(self, build: Builder) -> ir.Value:
        """A value of zeros."""
        return build.filled(0.0, self.batch, self.channels, self.rows, self.width)


Volume = Sequence[Slices]
"""A value's channels, one ``Slices`` after the other. A concatenation is made where an operator needs the channels in
one value."""


def unstack(build: Builder, value: ir.Value, channels: int, depth: int, height: int, width: int) -> Slices:
    """The slices of a value (1, C, D, H, W), in one chunk."""
    if channels > 1 and depth > 1:
        value = build("Transpose", value, perm=[0, 2, 1, 3, 4])
    batch = build.reshape(value, depth, channels, height, width)
    return Slices(build.split(batch, [1] * depth, 0), channels, height, width)


def stack(build: Builder, slices: Slices) -> ir.Value:
    """The value (1, C, D, H, W) of the slices."""
    shape = (1, slices.channels, 1, slices.height, slices.width)
    return build.concat([build.reshape(value, *shape) for value in divide(build, slices, 1).values], 2)


def divide(build: Builder, slices: Slices, chunks: int) -> Slices:
    """The same volume, its depth divided into so many chunks, without a halo."""
    if chunks == slices.chunks:
        return slices
    parts = {value: build.split(value, [1] * slices.chunks, 0) for value in dict.fromkeys(slices.values)}
    single = [parts[value][chunk] for chunk in range(slices.chunks) for value in slices.values]
    count = len(single) // chunks
    groups = [tuple(single[i::count]) for i in range(count)]
    values = {group: build.concat(group, 0) for group in dict.fromkeys(groups)}
    return slices.like((values[group] for group in groups), chunks=chunks)


def halo(build: Builder, slices: Slices, index: int, outside: Outside) -> ir.Value:
    """What lies at an index before the first value or after the last: slices of other chunks.

    Args:
        build: takes the nodes.
        slices: the slices.
        index: in a chunk, below 0 or from the number of its values on.
        outside: what lies outside of the volume.
    """
    chunks = range(slices.chunks)

    def part(chunk: int) -> ir.Value:
        """A slice of a chunk by its index, which may lie in another one."""
        other, position = chunk + index // slices.count, index % slices.count
        if other not in chunks and outside != "edge":
            number = 0.0 if outside == "zeros" else float(np.finfo(np.float32).min)
            return build.filled(number, 1, slices.channels, slices.height, slices.width)
        if other not in chunks:
            other, position = (0, 0) if other < 0 else (slices.chunks - 1, slices.count - 1)
        value = slices.values[position]
        if value not in parts:
            parts[value] = build.split(value, [1] * slices.chunks, 0)
        return parts[value][other]

    parts: dict[ir.Value, tuple[ir.Value, ...]] = {}
    return build.concat([part(chunk) for chunk in chunks], 0)
