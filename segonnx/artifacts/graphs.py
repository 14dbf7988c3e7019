"""What is read off a model's graph without running it: its operators, and the files of its weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    import onnx

STANDARD = frozenset({"", "ai.onnx", "ai.onnx.ml"})
"""The domains of ONNX's own operators."""


def foreign_operators(model: onnx.ModelProto) -> list[str]:
    """The operators that are neither ONNX's own nor written out in the file, as DOMAIN.NAME, each once."""
    written_out = {(function.domain, function.name) for function in model.functions}
    found = {
        f"{node.domain}.{node.op_type}"
        for node in _nodes(model)
        if node.domain not in STANDARD and (node.domain, node.op_type) not in written_out
    }
    return sorted(found)


def external_files(model: onnx.ModelProto) -> list[str]:
    """The files that hold the model's tensors, beside its own: their places as the file names them, each once."""
    from onnx import TensorProto

    found = set()
    for tensor in _tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            found.add(next((entry.value for entry in tensor.external_data if entry.key == "location"), ""))
    return sorted(found)


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node: of the graph, of the graphs in its nodes, and of the functions."""
    yield from _below(model.graph.node)
    for function in model.functions:
        yield from _below(function.node)


def _below(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for graph in _inner(node):
            yield from _below(graph.node)


def _inner(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor: the initializers, and those in attributes of nodes."""
    yield from _initializers(model.graph)
    for node in _nodes(model):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("sparse_tensor"):
                yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
            for sparse in attribute.sparse_tensors:
                yield from (sparse.values, sparse.indices)
        for graph in _inner(node):
            yield from _initializers(graph)


def _initializers(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
