"""ONNX Runtime's CPU provider."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from segonnx.inputs import Array
from segonnx.runtimes.base import Options, Runtime, Subject

if TYPE_CHECKING:
    import onnxruntime


class OrtRuntime(Runtime):
    """The artifact in ONNX Runtime; outputs of known shape are bound once and reused."""

    name = "ort"
    needs = "artifact"

    def __init__(self) -> None:
        self._session: onnxruntime.InferenceSession | None = None
        self._output: Array | None = None

    @classmethod
    def missing(cls) -> str | None:
        return None  # part of the base install

    def load(self, subject: Subject, options: Options, example: Array) -> None:
        import onnxruntime

        assert subject.model is not None
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = options.threads
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(subject.model), settings, providers=["CPUExecutionProvider"])
        shape = self._session.get_outputs()[0].shape
        self._output = np.empty(shape, np.float32) if all(isinstance(size, int) for size in shape) else None
        self.run(example)

    def run(self, x: Array) -> Array:
        assert self._session is not None
        name = self._session.get_outputs()[0].name
        if self._output is None:
            result: Array = self._session.run([name], {self._session.get_inputs()[0].name: x})[0]
            return result
        binding = self._session.io_binding()
        binding.bind_cpu_input(self._session.get_inputs()[0].name, x)
        out = self._output
        binding.bind_output(name, "cpu", 0, np.float32, out.shape, out.ctypes.data)
        self._session.run_with_iobinding(binding)
        return out

    def close(self) -> None:
        self._session = None
        self._output = None

    def describe(self) -> dict[str, str]:
        outputs = "fresh for every run" if self._output is None else "bound once and reused"
        return {"dtype": "float32", "outputs": outputs, "graph_optimization": "all", "spinning": "on"}
