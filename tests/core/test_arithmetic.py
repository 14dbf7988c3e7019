"""How a thread computes, and what sessions of ONNX Runtime change of that."""

from __future__ import annotations

import platform
import sys

import numpy as np
import pytest
from onnx import TensorProto, helper

from segonnx.core.arithmetic import denormals_as_zero
from segonnx.core.ort_session import SessionSettings, open_session


def _multiplication() -> bytes:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Mul", ["a", "b"], ["c"])], "g",
        [value("a", TensorProto.FLOAT, [4]), value("b", TensorProto.FLOAT, [4])], [value("c", TensorProto.FLOAT, [4])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


def _small() -> float:
    return float(np.float32(1e-38) * np.float32(0.1))


@pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="denormals stay there")
def test_denormals_are_zero_in_a_run_and_nowhere_else() -> None:
    assert _small() != 0
    session = open_session(_multiplication(), SessionSettings(threads=1, denormals_as_zero=True))
    assert _small() != 0
    given = {"a": np.full(4, 1e-38, np.float32), "b": np.full(4, 0.1, np.float32)}
    with denormals_as_zero():
        assert _small() == 0
        assert not session.run(None, given)[0].any()
    assert _small() != 0
    assert session.run(None, given)[0].all()
    with pytest.raises(ValueError, match="within"), denormals_as_zero():
        raise ValueError("within")
    assert _small() != 0
