"""Graphs of torch's lowest opset are written in the one before it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from segonnx.errors import ConversionError
from segonnx.optimize import opsets


def _model(*nodes: onnx.NodeProto, shape: tuple[Any, ...] = (2, 6)) -> ir.Model:
    value = onnx.helper.make_tensor_value_info
    axes = onnx.numpy_helper.from_array(np.array([1]), "axes")
    graph = onnx.helper.make_graph(list(nodes), "g", [value("x", 1, shape)], [value("y", 1, None)], [axes])
    return ir.from_proto(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)]))


def test_reductions_and_splits_are_written_as_they_were() -> None:
    node = onnx.helper.make_node
    model = _model(node("Split", ["x"], ["a", "b"], num_outputs=2, axis=1), node("ReduceMax", ["a", "axes"], ["y"]))
    opsets.lower(model, 17)
    split, reduction = model.graph
    assert split.inputs[1] is not None and split.inputs[1].const_value is not None
    assert split.inputs[1].const_value.numpy().tolist() == [3, 3]
    assert (len(reduction.inputs), [*reduction.attributes["axes"].as_ints()]) == (1, [1])
    onnx.checker.check_model(onnx.shape_inference.infer_shapes(ir.to_proto(model)))


@pytest.mark.parametrize(
    ("node", "shape", "message"),
    [
        (onnx.helper.make_node("Mish", ["x"], ["y"]), (2, 6), "needs Mish, which is of opset 18"),
        (onnx.helper.make_node("Split", ["x"], ["y"], num_outputs=1), ("n", 6), "of an axis whose size is open"),
        (onnx.helper.make_node("ReduceMax", ["x", "x"], ["y"]), (2, 6), "with axes that are computed"),
        (onnx.helper.make_node("ReduceMax", ["x"], ["y"], noop_with_empty_axes=1), (2, 6), "with no axes at all"),
        (onnx.helper.make_node("ScatterND", ["x", "x", "x"], ["y"], reduction="max"), (2, 6), "with reduction"),
        (onnx.helper.make_node("Pad", ["x", "axes", "", "axes"], ["y"]), (2, 6), "with axes, which are of opset 18"),
    ],
)
def test_what_cannot_be_lowered_is_refused(node: onnx.NodeProto, shape: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        opsets.lower(_model(node, shape=shape), 17)
