"""The promise that all rewrites share: a rewrite that breaks it is caught."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from segonnx import optimize
from segonnx.optimize.base import Rewrite
from segonnx.optimize.builder import Builder
from segonnx.optimize.choices import Choices
from segonnx.optimize.labels import LabelsPass
from tests.optimize.graphs import Graph, operators, run


def graph() -> Graph:
    made = Graph([1, 2, 4, 4])
    made.add("Relu", made.add("Conv", "x", made.weight(2, 2, 3, 3), pads=[1] * 4))
    return made


def rename_the_input(made: ir.Graph) -> None:
    made.inputs[0].name = "image"


def rename_the_output(made: ir.Graph) -> None:
    made.outputs[0].name = "labels"


def reshape_the_output(made: ir.Graph) -> None:
    made.outputs[0].shape = ir.Shape([1, 2, 8, 8])


def change_the_output_s_type(made: ir.Graph) -> None:
    made.outputs[0].type = ir.TensorType(ir.DataType.FLOAT16)


def drop_a_weight(made: ir.Graph) -> None:
    build = Builder(made)
    (conv,) = (node for node in made if node.op_type == "Conv")
    conv.replace_input_with(1, build.filled(0.0, 2, 2, 3, 3))
    build.insert_before(conv)
    del made.initializers["w0"]


def change_a_weight(made: ir.Graph) -> None:
    made.initializers["w0"].const_value = ir.tensor(np.zeros((2, 2, 3, 3), np.float32), name="w0")


def use_another_domain(made: ir.Graph) -> None:
    for node in made:
        node.domain = "com.example"


def take_a_value_too_early(made: ir.Graph) -> None:
    conv, relu = made
    made.remove(relu)
    made.insert_before(conv, relu)


def take_a_value_of_nobody(made: ir.Graph) -> None:
    _, relu = made
    relu.replace_input_with(0, ir.Value(name="v0"))


def give_two_values_one_name(made: ir.Graph) -> None:
    conv, _ = made
    conv.outputs[0].name = "x"


def give_an_output_of_nobody(made: ir.Graph) -> None:
    output = made.outputs[0]
    made.outputs[0] = ir.Value(name=output.name, type=output.type, shape=output.shape)


def breaking(damage: Callable[[ir.Graph], None]) -> Rewrite:
    class Damaging(Rewrite):
        """Breaks its promise."""

        def call(self, model: ir.Model) -> ir.passes.PassResult:
            damage(model.graph)
            return ir.passes.PassResult(model, True)

    return Damaging()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (rename_the_input, "its inputs were"),
        (rename_the_output, "its outputs were"),
        (reshape_the_output, "its outputs were"),
        (change_the_output_s_type, "its outputs were"),
        (drop_a_weight, "the initializer w0 isn't what it was"),
        (change_a_weight, "the initializer w0 isn't what it was"),
        (use_another_domain, "operators of the domain com.example"),
        (take_a_value_too_early, "takes the value 'v0' before it is there"),
        (take_a_value_of_nobody, "takes the value 'v0' before it is there"),
        (give_two_values_one_name, "two values have the name 'x'"),
        (give_an_output_of_nobody, "nothing gives the output 'v1'"),
    ],
)
def test_a_rewrite_that_breaks_the_promise_is_caught(damage: Callable[[ir.Graph], None], message: str) -> None:
    with pytest.raises(ir.passes.PostconditionError, match=f"Damaging broke the graph: .*{message}"):
        breaking(damage)(graph().model())


def test_a_rewrite_that_keeps_the_promise_passes() -> None:
    assert breaking(lambda _: None)(graph().model()).modified


def test_what_was_there_before_is_no_fault() -> None:
    model = graph().model()
    for node in model.graph:
        node.domain = "com.example"
    assert breaking(lambda _: None)(model).modified


def test_labels_of_an_invalid_graph_are_caught() -> None:
    model = graph().model()
    take_a_value_too_early(model.graph)
    with pytest.raises(ir.passes.PostconditionError, match="takes the value 'v0' before it is there"):
        LabelsPass("labels")(model)


class MaxForReluPass(Rewrite):
    """Writes each Relu(x) as Max(x, 0)."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        relus = [node for node in model.graph if node.op_type == "Relu"]
        for node in relus:
            build = Builder(model.graph)
            build.replace(node, build("Max", node.inputs[0], build.number(0.0)))
        return ir.passes.PassResult(model, bool(relus))


def test_a_new_rewrite_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimize, "PASSES", (*optimize.PASSES, MaxForReluPass))
    x = np.random.default_rng(0).normal(0, 1, (1, 2, 4, 4)).astype(np.float32)
    model = graph().model()
    expected = run(model, x)
    assert optimize.apply(model) == ("MaxForReluPass",)
    assert operators(model) == {"Conv": 1, "Max": 1}
    assert np.array_equal(run(model, x), expected)
    assert optimize.run(graph().model(), Choices(without=("MaxForReluPass",))).passes == ()
