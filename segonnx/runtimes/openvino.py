"""OpenVINO's CPU plugin."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from segonnx.core.synthetic_inputs import Array
from segonnx.runtimes.base import Needs, Operator, Options, Runnable, Runtime, by_type

if TYPE_CHECKING:
    import openvino


class OpenVinoRuntime(Runtime):
    """The artifact's graph for CPUs in OpenVINO, in float32, as one stream; it hands out its own output, if it may.

    OpenVINO's InstanceNormalization loses digits, so that of large volumes the plain graph may give other logits.
    """

    name = "openvino"
    needs: ClassVar[Needs] = "artifact"

    def __init__(self) -> None:
        self._options = Options(1)
        self._model: openvino.Model | None = None
        self._compiled: openvino.CompiledModel | None = None
        self._request: openvino.InferRequest | None = None

    @classmethod
    def missing(cls) -> str | None:
        found = importlib.util.find_spec("openvino")
        return None if found else "OpenVINO isn't installed: pip install 'segonnx[openvino]'"

    def load(self, runnable: Runnable, options: Options) -> None:
        import openvino

        model = runnable.cpu_model or runnable.model
        assert model is not None
        self._options = options
        self._model = openvino.Core().read_model(model)

    def prepare(self, example: Array) -> None:  # noqa: ARG002 (the file has its shapes)
        import openvino

        assert self._model is not None
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",  # where the processor has bfloat16 it would take that
            "INFERENCE_NUM_THREADS": self._options.threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # the process is bound already
            "ENABLE_HYPER_THREADING": True,  # the number of threads is given
            "PERF_COUNT": self._options.profile,
        }
        self._compiled = openvino.Core().compile_model(self._model, "CPU", settings)
        self._model = None
        self._request = self._compiled.create_infer_request()

    def run(self, x: Array) -> Array:
        assert self._compiled is not None and self._request is not None
        shared = self._options.outputs == "bound"
        results = self._request.infer([x], share_inputs=True, share_outputs=shared)
        logits: Array = results[self._compiled.output(0)]
        return logits

    def profile(self, x: Array, passes: int) -> list[Operator]:
        assert self._request is not None
        timed = []
        for _ in range(passes):
            self.run(x)
            nodes = self._request.get_profiling_info()
            timed += [(node.node_type, 1, node.real_time.total_seconds()) for node in nodes]
        return by_type((entry for entry in timed if entry[2] > 0), passes)

    def close(self) -> None:
        self._request = self._compiled = None

    def describe(self) -> dict[str, str]:
        import openvino

        assert self._compiled is not None
        precision = self._compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        return {
            "dtype": {"f32": "float32"}.get(precision, precision),
            "outputs": "bound once and reused" if self._options.outputs == "bound" else "fresh for every run",
            "streams": str(self._compiled.get_property("NUM_STREAMS")),
            "threads": str(self._compiled.get_property("INFERENCE_NUM_THREADS")),
            "spinning": "the runtime's own",
            "version": str(openvino.__version__),
        }


class OpenVinoStockRuntime(OpenVinoRuntime):
    """The graph as PyTorch wrote it, in OpenVINO."""

    name = "openvino-stock"

    def load(self, runnable: Runnable, options: Options) -> None:
        super().load(replace(runnable, cpu_model=None), options)
