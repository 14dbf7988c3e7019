"""Products of matrices, each on the thread that asks for it.

NumPy's own take all processors, whatever a user allowed. ONNX Runtime has as good ones, and a session of one thread
computes on its caller's.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from segonnx.core.ort_session import SessionSettings, open_session
from segonnx.predict.interpolation import AnyArray

if TYPE_CHECKING:
    import onnx
    import onnxruntime


def product(left: AnyArray, right: AnyArray) -> AnyArray:
    """The product of two matrices of float32."""
    result: AnyArray = _session().run(None, {"left": left, "right": right})[0]
    return result


@functools.lru_cache(maxsize=1)
def _session() -> onnxruntime.InferenceSession:
    from onnx import TensorProto, helper

    def value(name: str, shape: list[str]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        [helper.make_node("MatMul", ["left", "right"], ["product"])],
        "product",
        [value("left", ["rows", "inner"]), value("right", ["inner", "columns"])],
        [value("product", ["rows", "columns"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    # Its memory is that of its results; an arena would keep the largest one.
    return open_session(model.SerializeToString(), SessionSettings(threads=1, arena=False))
