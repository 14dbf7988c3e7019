"""PyTorch, operator by operator."""

from __future__ import annotations

import importlib.util
import os
import re
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, ClassVar

from segonnx.core.synthetic_inputs import Array
from segonnx.runtimes.base import Operator, Options, Runnable, Runtime, by_type

if TYPE_CHECKING:
    import torch
    from torch import nn

_SPINNING = {"passive": "off", "active": "on"}
"""What OpenMP's OMP_WAIT_POLICY means; users may have set it."""


class EagerRuntime(Runtime):
    """The network in inference mode."""

    name = "eager"
    needs = "network"
    autocasts = True
    channels_last: ClassVar[bool] = False

    def __init__(self) -> None:
        self._module: nn.Module | None = None
        self._options = Options(1)

    @classmethod
    def missing(cls) -> str | None:
        return None if importlib.util.find_spec("torch") else "PyTorch isn't installed: pip install 'segonnx[export]'"

    def load(self, runnable: Runnable, options: Options) -> None:
        if not options.spinning:
            os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # read when torch loads OpenMP
        import torch

        assert runnable.build is not None and runnable.weights is not None
        torch.set_num_threads(options.threads)
        torch.set_num_interop_threads(1)
        self._options = options
        self._module = runnable.build(runnable.weights)
        if self.channels_last:
            self._module.to(memory_format=self._format(len(runnable.input_shape)))

    def run(self, x: Array) -> Array:
        import torch

        assert self._module is not None
        tensor = torch.from_numpy(x)
        if self.channels_last:
            tensor = tensor.contiguous(memory_format=self._format(x.ndim))
        with torch.inference_mode(), self._autocast():
            logits: torch.Tensor = self._module(tensor)
        result: Array = logits.float().contiguous().numpy()
        return result

    def profile(self, x: Array, passes: int) -> list[Operator]:
        import torch

        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            for _ in range(passes):
                self.run(x)
        timed = ((event.key, event.count, event.self_cpu_time_total / 1e6) for event in profiler.key_averages())
        return by_type(((_short(name), count, seconds) for name, count, seconds in timed), passes)

    @staticmethod
    def _format(dimensions: int) -> torch.memory_format:
        import torch

        return torch.channels_last_3d if dimensions == 5 else torch.channels_last

    def _autocast(self) -> AbstractContextManager[object]:
        import torch

        return torch.autocast("cpu", torch.bfloat16) if self._options.bf16 else nullcontext()

    def close(self) -> None:
        self._module = None

    def describe(self) -> dict[str, str]:
        import torch

        layout = "channels last; converting the input and the logits is part of a pass"
        return {
            "dtype": "bfloat16 autocast" if self._options.bf16 else "float32",
            "outputs": "fresh for every run",
            "memory_format": layout if self.channels_last else "contiguous",
            "spinning": _SPINNING.get(os.environ.get("OMP_WAIT_POLICY", "").lower(), "OpenMP's default"),
            "version": str(torch.__version__),  # it is of a class of torch's own
        }


class EagerChannelsLastRuntime(EagerRuntime):
    """The same with the channels innermost in memory."""

    name = "eager-channels-last"
    channels_last = True


def _short(event: str) -> str:
    """An event's name without what is another for each graph and place: numbers, and a compiled graph's hash."""
    if "CompiledFxGraph" in event:
        return "CompiledFxGraph"
    return re.sub(r"^graph_\d+_(cpp_fused_.+)_\d+$", r"\1", event)
