"""What all rewrites have in common: where they get their choices from, and what they promise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import onnx_ir as ir

from segonnx.core.hardware import Blocks
from segonnx.optimize.choices import Choices
from segonnx.optimize.layers import RewrittenLayer


class Rewrite(ir.passes.InPlacePass):
    """A pass that makes a graph faster or more exact, and changes nothing that its users see.

    A subclass writes ``call``. It lists what it needs of a graph under "requires" in its docstring, and leaves alone
    what doesn't match. It keeps this promise, which ``ensures`` checks after each run: the graph's inputs and outputs
    keep their names, types and shapes; every initializer stays under its name, with the same numbers; the graph
    stays valid; and no operator comes from a domain that the graph didn't use before, but ONNX's own.

    Attributes:
        for_speed: the rewrite is there for speed alone, so tuning may leave it out.
        weight_growth: how many times the bytes of a weight the runtime computes with, where the rewrite can't adapt to
            ``Choices.max_weight_growth``. It is left out where the bound is lower.
        blocks: the processors that it gains on, where it doesn't on all.
        min_opset: the lowest opset whose operators the rewrite can use.
        layers: the layers whose algorithm can be chosen, as the last call found them, by their text.
    """

    for_speed: ClassVar[bool] = True
    weight_growth: ClassVar[float] = 1.0
    blocks: ClassVar[Blocks | None] = None
    min_opset: ClassVar[int] = 1

    def __init__(self) -> None:
        super().__init__()
        self.layers: Mapping[str, RewrittenLayer] = {}
        self._before: _Promised | None = None

    @classmethod
    def with_choices(cls, choices: Choices) -> Self:
        """The rewrite as these choices want it. Most have nothing to choose."""
        del choices
        return cls()

    def requires(self, model: ir.Model) -> None:
        """Note what the rewrite must keep.

        Raises:
            PreconditionError: the graph's opset is too old.
        """
        version = model.graph.opset_imports.get("", 0)
        if version < self.min_opset:
            raise ir.passes.PreconditionError(
                f"{type(self).__name__} writes operators of opset {self.min_opset}, the graph has opset {version}"
            )
        self._before = _promised(model.graph)

    def ensures(self, model: ir.Model) -> None:
        """Hold the rewritten graph against the promise. No tensor is read.

        Raises:
            PostconditionError: the rewrite broke it.
        """
        assert self._before is not None
        before, self._before = self._before, None
        after = _promised(model.graph)
        broken = _difference(before, after) or invalid(model.graph)
        if broken is not None:
            raise ir.passes.PostconditionError(f"{type(self).__name__} broke the graph: {broken}")


@dataclass(frozen=True)
class _Promised:
    """What a rewrite must keep of a graph.

    Attributes:
        inputs: name, type and shape of each.
        outputs: name, type and shape of each.
        tensors: the initializers' tensors, by name. They are compared by identity.
        domains: of the operators.
    """

    inputs: tuple[object, ...]
    outputs: tuple[object, ...]
    tensors: Mapping[str, ir.TensorProtocol | None]
    domains: frozenset[str]


def _promised(graph: ir.Graph) -> _Promised:
    def described(values: Iterator[ir.Value]) -> tuple[object, ...]:
        return tuple((value.name, str(value.type), str(value.shape)) for value in values)

    return _Promised(
        described(iter(graph.inputs)),
        described(iter(graph.outputs)),
        {name: value.const_value for name, value in graph.initializers.items()},
        frozenset(node.domain for node in graph),
    )


def _difference(before: _Promised, after: _Promised) -> str | None:
    if before.inputs != after.inputs:
        return f"its inputs were {before.inputs}, and are {after.inputs}"
    if before.outputs != after.outputs:
        return f"its outputs were {before.outputs}, and are {after.outputs}"
    for name, tensor in before.tensors.items():
        if name not in after.tensors or after.tensors[name] is not tensor:
            return f"the initializer {name} isn't what it was"
    if foreign := after.domains - before.domains - {""}:
        return f"it has operators of the domain {min(foreign)}"
    return None


def invalid(graph: ir.Graph) -> str | None:
    """Why a graph isn't valid; None if it is.

    Each node may take the graph's inputs, its initializers, and what nodes before it give. No two values have the same
    name. The insides of nodes that hold graphs aren't looked into.
    """
    known: dict[str, ir.Value] = {}
    for value in (*graph.inputs, *graph.initializers.values()):
        if known.setdefault(value.name or "", value) is not value:
            return f"two values have the name {value.name!r}"
    for node in graph:
        for taken in node.inputs:
            if taken is not None and known.get(taken.name or "") is not taken:
                return f"{node.op_type} {node.name!r} takes the value {taken.name!r} before it is there"
        for value in node.outputs:
            if value.name and known.setdefault(value.name, value) is not value:  # an output without a name is unused
                return f"two values have the name {value.name!r}"
    for value in graph.outputs:
        if known.get(value.name or "") is not value:
            return f"nothing gives the output {value.name!r}"
    return None
