"""Tests of the questions that rewrites ask of a graph."""

from __future__ import annotations

import onnx_ir as ir
from onnx import TensorProto, helper

from segonnx.optimize.reading import is_constant
from tests.optimize.graphs import Graph

MANY = 5000
"""Operators one after the other: more than a function may call itself, and far too many for their ways to be walked."""


def test_what_initializers_alone_make_is_constant() -> None:
    graph = Graph((1, 3, 8, 8))
    weight = graph.add("Neg", graph.weight(3, 3, 1, 1))
    bias = graph.add("Add", graph.weight(3), graph.weight(3))
    graph.add("Conv", "x", weight, bias)
    values = _values(graph)
    assert is_constant(values["w0"]) and is_constant(values[weight]) and is_constant(values[bias])
    assert not is_constant(values["x"]) and not is_constant(values[graph.last])


def test_a_value_that_is_none_is_not_constant() -> None:
    assert not is_constant(None)


def test_constants_that_meet_again_and_again_are_read_once() -> None:
    """As Swin's attention masks are made: each step takes the last one twice, so 2^5000 ways lead to the first."""
    graph = Graph((1, 3, 8, 8))
    mask = graph.weight(8, 8)
    for _ in range(MANY):
        mask = graph.add("Max", mask, mask)
    graph.add("Add", "x", mask)
    values = _values(graph)
    assert is_constant(values[mask]) and not is_constant(values[graph.last])


def test_a_long_network_is_read_to_its_input() -> None:
    graph = Graph((1, 3, 8, 8))
    for _ in range(MANY):
        graph.add("Relu", graph.last)
    assert not is_constant(_values(graph)[graph.last])


def test_a_condition_whose_branches_take_the_image_is_not_constant() -> None:
    graph = Graph((1, 3, 8, 8))
    always = graph.add("Constant", value=helper.make_tensor("always", TensorProto.BOOL, [], [True]))
    kind = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    branches = [
        helper.make_graph([helper.make_node(operator, ["x"], [name])], name, [], [helper.make_value_info(name, kind)])
        for operator, name in (("Neg", "less"), ("Relu", "more"))
    ]
    graph.add("If", always, then_branch=branches[0], else_branch=branches[1])
    assert not is_constant(_values(graph)[graph.last])


def _values(graph: Graph) -> dict[str | None, ir.Value]:
    model = graph.model()
    inner = [value for node in model.graph for value in node.outputs]
    return {value.name: value for value in (*model.graph.inputs, *model.graph.initializers.values(), *inner)}
