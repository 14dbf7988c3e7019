"""Small graphs made by hand, for the tests of rewrites: run as they were, and rewritten."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from hypothesis import HealthCheck, settings
from onnx import TensorProto, helper, numpy_helper

from segonnx.optimize.base import Rewrite

TOLERANCE = 2e-5
"""Of the largest error, relative to the standard deviation of the values."""
RNG = np.random.default_rng(0)

few = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


class Graph:
    """A graph under construction. Its weights, and the input of its check, are the same whatever was drawn before."""

    def __init__(self, shape: Sequence[int | str]) -> None:
        RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.shape = shape
        self.last = "x"

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape of the input, none of whose sizes is open."""
        sizes = tuple(size for size in self.shape if isinstance(size, int))
        assert len(sizes) == len(self.shape)
        return sizes

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.weights)}"
        values = RNG.normal(0, 1 / math.sqrt(max(1, math.prod(shape[1:]))), shape)
        self.weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        self.last = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [self.last], **attributes))
        return self.last

    def model(self) -> ir.Model:
        graph = helper.make_graph(
            self.nodes, "test", [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info(self.last, TensorProto.FLOAT, None)], self.weights,
        )  # fmt: skip
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True))


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {"x": x})[0]
    return result


def input_of(node: ir.Node, index: int = 0) -> ir.Value:
    """An input of a node that has it."""
    value = node.inputs[index]
    assert value is not None
    return value


def producer_of(value: ir.Value) -> ir.Node:
    """The node that a value comes from."""
    node = value.producer()
    assert node is not None
    return node


def weight_of(model: ir.Model, name: str) -> np.ndarray:
    """The numbers of an initializer."""
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def check(graph: Graph, rewrite: Rewrite, tolerance: float = TOLERANCE) -> ir.Model:
    """Run the pass; values, name, shape and type must stay. Gives the rewritten model."""
    model = graph.model()
    x = RNG.normal(0.3, 1, graph.sizes).astype(np.float32)
    expected = run(model, x)
    before = model.graph.outputs[0]
    name, shape, weights = before.name, before.shape, set(model.graph.initializers)
    rewrite(model)
    after = model.graph.outputs[0]
    assert (after.name, after.shape, after.dtype) == (name, shape, ir.DataType.FLOAT)
    assert {name for name in weights if name.startswith("w")} <= set(model.graph.initializers)
    found = run(model, x)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * max(expected.std(), 1e-3)
    return model
