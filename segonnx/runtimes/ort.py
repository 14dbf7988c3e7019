"""ONNX Runtime's CPU provider."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import numpy as np

from segonnx.core.ort_session import GraphOptimization, SessionSettings, open_session
from segonnx.core.synthetic_inputs import Array
from segonnx.errors import InputError
from segonnx.runtimes.base import Needs, Operator, Options, Outputs, Runnable, Runtime, by_type

if TYPE_CHECKING:
    import onnxruntime

_CHOICES: dict[str, dict[str, Any]] = {
    "graph_optimization": {level: level for level in get_args(GraphOptimization)},
    "spinning": {"on": True, "off": False},
    "arena": {"on": True, "off": False},
    "outputs": {kind: kind for kind in get_args(Outputs)},
}

_TYPES = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(uint16)": np.uint16}


def parse_options(texts: Iterable[str]) -> dict[str, Any]:
    """Fields of ``Options`` from texts such as ``spinning=off``.

    Raises:
        InputError: no such key or value.
    """
    result = {}
    for text in texts:
        key, _, value = text.partition("=")
        if key not in _CHOICES:
            raise InputError(f"--ort-option {text!r}: the keys are {', '.join(_CHOICES)}, as in spinning=off")
        if value not in _CHOICES[key]:
            raise InputError(f"--ort-option {text!r}: {key} takes {', '.join(_CHOICES[key])}")
        result[key] = _CHOICES[key][value]
    return result


class OrtRuntime(Runtime):
    """The artifact's graph for CPUs in ONNX Runtime; outputs of known shape are bound once and reused, if allowed."""

    name = "ort"
    needs: ClassVar[Needs] = "artifact"

    def __init__(self) -> None:
        self._model = Path()
        self._options = Options(1)
        self._session: onnxruntime.InferenceSession | None = None
        self._output: Array | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    @classmethod
    def missing(cls) -> str | None:
        return None  # part of the base install

    def load(self, runnable: Runnable, options: Options) -> None:
        import onnxruntime  # noqa: F401 (loading it is part of this)

        model = runnable.cpu_model or runnable.model
        assert model is not None
        self._model, self._options = model, options

    def prepare(self, example: Array) -> None:  # noqa: ARG002 (the file has its shapes)
        options, prefix = self._options, None
        if options.profile:
            self._folder = tempfile.TemporaryDirectory(prefix="segonnx-")
            prefix = os.path.join(self._folder.name, "profile")  # noqa: PTH118 (ORT's prefix)
        self._session = open_session(
            self._model,
            SessionSettings(
                threads=options.threads,
                arena=options.arena,
                spinning="on" if options.spinning else "off",
                graph_optimization=options.graph_optimization,
                profile=prefix,
            ),
        )
        output = self._session.get_outputs()[0]
        if self._options.outputs == "bound" and all(isinstance(size, int) for size in output.shape):
            self._output = np.empty(output.shape, _TYPES[output.type])

    def run(self, x: Array) -> Array:
        assert self._session is not None
        name = self._session.get_outputs()[0].name
        if self._output is None:
            result: Array = self._session.run([name], {self._session.get_inputs()[0].name: x})[0]
            return result
        binding = self._session.io_binding()
        binding.bind_cpu_input(self._session.get_inputs()[0].name, x)
        out = self._output
        binding.bind_output(name, "cpu", 0, out.dtype.type, out.shape, out.ctypes.data)
        self._session.run_with_iobinding(binding)
        return out

    def profile(self, x: Array, passes: int) -> list[Operator]:
        assert self._session is not None and self._folder is not None
        for _ in range(passes):
            self.run(x)
        events = json.loads(Path(self._session.end_profiling()).read_text("utf-8"))
        self._folder.cleanup()
        # The file has every run since the session was made; of those the last ones count.
        runs = [event for event in events if event["name"] == "model_run"][-passes:]
        began = min(event["ts"] for event in runs)
        nodes = (
            (event["args"]["op_name"], 1, event["dur"] / 1e6)
            for event in events
            if event["cat"] == "Node" and event["name"].endswith("_kernel_time") and event["ts"] >= began
        )
        return by_type(nodes, passes)

    def close(self) -> None:
        self._session = None
        self._output = None
        if self._folder is not None:
            self._folder.cleanup()  # where nobody asked for the profile

    def describe(self) -> dict[str, str]:
        import onnxruntime

        assert self._session is not None
        settings = self._session.get_session_options()  # what ONNX Runtime took, rather than what it was told
        spins = settings.get_session_config_entry("session.intra_op.allow_spinning")
        return {
            "dtype": "float32",
            "outputs": "fresh for every run" if self._output is None else "bound once and reused",
            "graph_optimization": self._options.graph_optimization,
            "spinning": "on" if spins == "1" else "off",
            "arena": "on" if settings.enable_cpu_mem_arena else "off",
            "version": onnxruntime.__version__,
        }


class OrtStockRuntime(OrtRuntime):
    """The graph as PyTorch wrote it, in ONNX Runtime."""

    name = "ort-stock"

    def load(self, runnable: Runnable, options: Options) -> None:
        super().load(replace(runnable, cpu_model=None), options)
