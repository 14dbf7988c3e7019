"""Building the nodes that take the place of a graph's own."""

from __future__ import annotations

from collections.abc import Sequence
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
        """Add a node with one output, and return the output."""
        return self.op(operator, inputs, {name: _attribute(name, value) for name, value in attributes.items()})

    def once(self, operator: str, a: ir.Value, b: ir.Value) -> ir.Value:
        """The operator's value for two inputs: the first call adds the node, later calls return its value."""
        key = (operator, a, b)
        if key not in self._known:
            self._known[key] = self(operator, a, b)
        return self._known[key]

    def split(self, value: ir.Value, sizes: Sequence[int], axis: int) -> tuple[ir.Value, ...]:
        """The value in pieces of these sizes; the value itself if there is one piece."""
        if len(sizes) == 1:
            return (value,)
        pieces = self.op_multi_out("Split", [value, self.integers(*sizes)], {"axis": axis}, num_outputs=len(sizes))
        return tuple(pieces)

    def concat(self, values: Sequence[ir.Value], axis: int) -> ir.Value:
        """The values one after the other; the value itself if there is one."""
        return values[0] if len(values) == 1 else self("Concat", *values, axis=axis)

    def reshape(self, value: ir.Value, *shape: int) -> ir.Value:
        """The same numbers in another shape."""
        return self("Reshape", value, self.integers(*shape))

    def filled(self, number: float, *shape: int) -> ir.Value:
        """A value that holds one number everywhere. The file doesn't store it: Expand makes it from a scalar."""
        return self("Expand", self.number(number), self.integers(*shape))

    def integers(self, *values: int) -> ir.Value:
        """A one-dimensional constant of int64. All that need the same numbers share it."""
        return self.constant(f"int64_{'_'.join(map(str, values))}", np.array(values, np.int64))

    def scalar(self, value: int) -> ir.Value:
        """A scalar constant of int64."""
        return self.constant(f"int64_scalar_{value}", np.int64(value))

    def number(self, value: float) -> ir.Value:
        """A scalar constant of float32."""
        return self.constant(f"float32_{value!r}", np.float32(value))

    def constant(self, name: str, array: np.ndarray | np.generic) -> ir.Value:
        """A constant, shared by all that ask for the same.

        Args:
            name: of the initializer. It gets underscores appended where the graph has other numbers under this name.
            array: its numbers.
        """
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

    def replace(self, node: ir.Node, value: ir.Value) -> None:
        """Put the collected nodes into the graph in place of a node with one output.

        Args:
            node: leaves the graph.
            value: takes the name, the shape, the type and the users of the node's output.
        """
        ir.convenience.replace_nodes_and_values(self.graph, node, [node], self.nodes, node.outputs, [value])


def _holds(value: ir.Value, data: np.ndarray) -> bool:
    tensor = value.const_value
    if tensor is None or tuple(tensor.shape) != data.shape:
        return False
    numbers = tensor.numpy()
    return numbers.dtype == data.dtype and np.array_equal(numbers, data)


def _attribute(name: str, value: Any) -> Any:
    """The attribute of a value of a plain type. onnx_ir would try one type after another."""
    if type(value) is int:
        return ir.AttrInt64(name, value)
    if type(value) in (list, tuple) and value and all(type(number) is int for number in value):
        return ir.AttrInt64s(name, value)
    return value
