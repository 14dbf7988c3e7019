from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper

from segonnx import optimize
from segonnx.optimize.stable_instance_norm import StableInstanceNormPass
from tests.optimize.graphs import weight_of

RNG = np.random.default_rng(0)


def _model(shape: list[int | str], channels: int, opset: int = 20, epsilon: float = 1e-5) -> ir.Model:
    scale, bias = RNG.normal(1, 0.2, channels), RNG.normal(0, 0.2, channels)
    graph = helper.make_graph(
        [helper.make_node("InstanceNormalization", ["x", "scale", "bias"], ["y"], epsilon=epsilon)],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [
            onnx.numpy_helper.from_array(scale.astype(np.float32), "scale"),
            onnx.numpy_helper.from_array(bias.astype(np.float32), "bias"),
        ],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10))


def _exact(model: ir.Model, x: np.ndarray, epsilon: float = 1e-5) -> np.ndarray:
    x = x.astype(np.float64)
    axes = tuple(range(2, x.ndim))
    y = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + epsilon)
    column = (1, -1, *[1] * (x.ndim - 2))
    scale, bias = (weight_of(model, name).reshape(column) for name in ("scale", "bias"))
    return y * scale + bias


def _run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize(
    ("declared", "shape"),
    [
        ([1, 4, 32, 32, 32], (1, 4, 32, 32, 32)),
        ([1, 4, 16, 48, 33], (1, 4, 16, 48, 33)),
        ([1, 3, 128, 128], (1, 3, 128, 128)),
        ([1, 3, 4096], (1, 3, 4096)),
        ([2, 3, 4099], (2, 3, 4099)),
        ([2, 2, 5000], (2, 2, 5000)),
        ([1, 2, 5, 1100], (1, 2, 5, 1100)),
        ([2, 4, 16, 32, 32], (2, 4, 16, 32, 32)),
        (["n", 4, "d", "h", "w"], (3, 4, 8, 16, 24)),
        (["n", 4, "d", "h", "w"], (1, 4, 1, 2, 3)),
    ],
)
@pytest.mark.parametrize("epsilon", [1e-5, 1e-2])
def test_the_rewrite_is_exact(declared: list[int | str], shape: tuple[int, ...], epsilon: float) -> None:
    model = _model(declared, shape[1], epsilon=epsilon)
    assert optimize.apply(model) == ("StableInstanceNormPass",)
    assert "InstanceNormalization" not in Counter(node.op_type for node in model.graph)
    x = RNG.normal(3, 0.5, shape).astype(np.float32)
    exact = _exact(model, x, epsilon)
    assert np.abs(_run(model, x) - exact).max() < 2e-5


@pytest.mark.parametrize("shape", [(1, 4, 64, 128, 128), (1, 4, 64 * 128 * 128)])
def test_it_keeps_the_digits_that_the_operator_loses(shape: tuple[int, ...]) -> None:
    """The reason for the rewrite: a large volume whose mean is ten times its spread, as it is and as one long axis."""
    stock, stable = _model([*shape], 4), _model([*shape], 4)
    for name in ("scale", "bias"):
        stable.graph.initializers[name].const_value = stock.graph.initializers[name].const_value
    optimize.apply(stable)
    x = RNG.normal(10, 0.1, shape).astype(np.float32)
    exact = _exact(stock, x)
    errors = [np.abs(_run(model, x) - exact).max() for model in (stock, stable)]
    assert errors[1] < 2e-5
    assert errors[0] > 10 * errors[1]


def test_a_constant_channel_gives_the_bias() -> None:
    model = _model([1, 4, 32, 32, 32], 4)
    optimize.apply(model)
    y = _run(model, np.full((1, 4, 32, 32, 32), 7.3, np.float32))
    bias = weight_of(model, "bias")
    assert np.abs(y - bias.reshape(1, 4, 1, 1, 1)).max() < 1e-3


def test_small_channels_keep_the_operator() -> None:
    model = _model([1, 4, 8, 8, 16], 4)
    assert optimize.apply(model) == ()


def test_the_value_keeps_its_name_and_shape() -> None:
    model = _model([1, 4, 32, 32, 32], 4)
    optimize.apply(model)
    assert [value.name for value in model.graph.outputs] == ["y"]
    assert model.graph.outputs[0].shape == ir.Shape([1, 4, 32, 32, 32])


def test_an_opset_without_axes_as_inputs_is_refused() -> None:
    with pytest.raises(ir.passes.PreconditionError, match="opset 18"):
        StableInstanceNormPass()(_model([1, 4, 32, 32, 32], 4, opset=17))
