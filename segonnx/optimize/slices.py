"""A volume as its depth slices: the form in which a 3D network is made of 2D operators.

A value (1, C, D, H, W) becomes D values (1, C, H, W). Operators that mix slices, such as the taps of a convolution in
depth, then name the slices that they need, and nothing is copied, padded or laid out anew for it. A slice is small
enough to stay in the processor's caches from one operator to the next, which a whole volume isn't.

Slices of L stretches of the depth, its lanes, may go together as a batch (L, C, H, W). ONNX Runtime hands work out by
the batch first, so a thread has the same lanes in every operator, and reads what it has written itself. Where lanes
meet, each needs a few slices of its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir import tape


class Builder(tape.Tape):
    """Collects the nodes that replace one node of a graph.

    Args:
        graph: whose initializers hold the constants.
    """

    def __init__(self, graph: ir.Graph) -> None:
        super().__init__()
        self.graph = graph
        self._known: dict[tuple[str, ir.Value, ir.Value], ir.Value] = {}

    def __call__(self, operator: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """Add a node with one output."""
        return self.op(operator, inputs, attributes)

    def once(self, operator: str, a: ir.Value, b: ir.Value) -> ir.Value:
        """The operator's value for two inputs, made when it is first asked for."""
        key = (operator, a, b)
        if key not in self._known:
            self._known[key] = self(operator, a, b)
        return self._known[key]

    def split(self, value: ir.Value, sizes: Sequence[int], axis: int) -> tuple[ir.Value, ...]:
        """The value in pieces of these sizes; itself if it's one."""
        if len(sizes) == 1:
            return (value,)
        pieces = self.op_multi_out("Split", [value, self.integers(*sizes)], {"axis": axis}, num_outputs=len(sizes))
        return tuple(pieces)

    def concat(self, values: Sequence[ir.Value], axis: int) -> ir.Value:
        """The values one after the other; the value itself if it's one."""
        return values[0] if len(values) == 1 else self("Concat", *values, axis=axis)

    def reshape(self, value: ir.Value, *shape: int) -> ir.Value:
        """The same numbers in another shape."""
        return self("Reshape", value, self.integers(*shape))

    def filled(self, number: float, *shape: int) -> ir.Value:
        """A value that holds one number everywhere; the file needn't store it."""
        return self("Expand", self.number(number), self.integers(*shape))

    def integers(self, *values: int) -> ir.Value:
        """A constant of int64, shared by all that need the same."""
        return self.constant(f"int64_{'_'.join(map(str, values))}", np.array(values, np.int64))

    def scalar(self, value: int) -> ir.Value:
        """A scalar constant of int64."""
        return self.constant(f"int64_scalar_{value}", np.int64(value))

    def number(self, value: float) -> ir.Value:
        """A scalar constant of float32."""
        return self.constant(f"float32_{value!r}", np.float32(value))

    def constant(self, name: str, array: np.ndarray | np.generic) -> ir.Value:
        """A constant, shared by all that ask for the same; under another name where other numbers have this one."""
        data = np.asarray(array)
        while name in self.graph.initializers:
            if _holds(self.graph.initializers[name], data):
                return self.graph.initializers[name]
            name += "_"
        tensor = ir.tensor(data, name=name)
        value = ir.Value(name=name, shape=ir.Shape(data.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def insert_before(self, node: ir.Node) -> None:
        """Put the collected nodes into the graph."""
        self.graph.insert_before(node, self.nodes)


def _holds(value: ir.Value, data: np.ndarray) -> bool:
    tensor = value.const_value
    if tensor is None or tuple(tensor.shape) != data.shape:
        return False
    numbers = tensor.numpy()
    return numbers.dtype == data.dtype and np.array_equal(numbers, data)


@dataclass(frozen=True)
class Slices:
    """A volume.

    Attributes:
        values: D / L of them, each (L, C, H, W): the slices i, i + D / L, ... A value may stand for several slices that
            are alike.
        channels: C.
        height: H.
        width: W.
        lanes: L.
        borders: what lies before the first value and after the last, by its index, where lanes meet.
    """

    values: tuple[ir.Value, ...]
    channels: int
    height: int
    width: int
    lanes: int = 1
    borders: Mapping[int, ir.Value] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """D / L."""
        return len(self.values)

    @property
    def depth(self) -> int:
        """D."""
        return self.count * self.lanes

    @property
    def alike(self) -> int:
        """How many neighbouring slices each value stands for, where that's the same for all; 1 where it isn't."""
        times, rest = divmod(self.count, len(set(self.values)))
        whole = rest == 0 and all(self.values[i] is self.values[i - i % times] for i in range(self.count))
        return times if whole else 1

    def get(self, index: int) -> ir.Value | None:
        """A value; None, for zeros, where neither a slice nor a border is."""
        return self.values[index] if 0 <= index < self.count else self.borders.get(index)

    def like(self, values: Iterable[ir.Value], **sizes: int) -> Slices:
        """Other values in as many lanes, of the same channels, height and width but for those given."""
        return replace(self, values=tuple(values), borders={}, **sizes)


def cut(build: Builder, value: ir.Value, channels: int, depth: int, height: int, width: int) -> Slices:
    """The slices of a value (1, C, D, H, W), in one lane."""
    if channels > 1 and depth > 1:
        value = build("Transpose", value, perm=[0, 2, 1, 3, 4])
    stacked = build.reshape(value, depth, channels, height, width)
    return Slices(build.split(stacked, [1] * depth, 0), channels, height, width)


def relane(build: Builder, slices: Slices, lanes: int) -> Slices:
    """The same volume in so many lanes; its borders are left behind."""
    if lanes == slices.lanes:
        return slices
    parts = {value: build.split(value, [1] * slices.lanes, 0) for value in dict.fromkeys(slices.values)}
    single = [parts[value][lane] for lane in range(slices.lanes) for value in slices.values]
    count = len(single) // lanes
    groups = [tuple(single[i::count]) for i in range(count)]
    values = {group: build.concat(group, 0) for group in dict.fromkeys(groups)}
    return slices.like((values[group] for group in groups), lanes=lanes)


def border(build: Builder, slices: Slices, index: int) -> ir.Value:
    """What lies at an index before the first value or after the last: slices of other lanes, and zeros at the ends."""
    parts = build.split(slices.values[index % slices.count], [1] * slices.lanes, 0)
    zeros = build.filled(0.0, 1, slices.channels, slices.height, slices.width)
    lanes = range(slices.lanes)
    there = [lane + index // slices.count for lane in lanes]
    return build.concat([parts[lane] if lane in lanes else zeros for lane in there], 0)


def join(build: Builder, slices: Slices) -> ir.Value:
    """The value (1, C, D, H, W) of the slices."""
    shape = (1, slices.channels, 1, slices.height, slices.width)
    return build.concat([build.reshape(value, *shape) for value in relane(build, slices, 1).values], 2)
