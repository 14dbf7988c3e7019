"""PyTorch, operator by operator."""

from __future__ import annotations

import importlib.util
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from segonnx.inputs import Array
from segonnx.runtimes.base import Options, Runtime, Subject

if TYPE_CHECKING:
    import torch
    from torch import nn


class EagerRuntime(Runtime):
    """The network in inference mode."""

    name = "eager"
    needs = "network"
    autocasts = True

    def __init__(self) -> None:
        self._module: nn.Module | None = None
        self._bf16 = False

    @classmethod
    def missing(cls) -> str | None:
        return None if importlib.util.find_spec("torch") else "PyTorch isn't installed: pip install 'segonnx[export]'"

    def load(self, subject: Subject, options: Options, example: Array) -> None:
        import torch

        from segonnx.models import weights

        assert subject.system is not None and subject.weights is not None
        torch.set_num_threads(options.threads)
        torch.set_num_interop_threads(1)
        self._bf16 = options.bf16
        self._module = self._prepare(weights.restore(subject.system, subject.weights).module)
        self.run(example)

    def _prepare(self, module: nn.Module) -> nn.Module:
        return module

    def run(self, x: Array) -> Array:
        import torch

        assert self._module is not None
        with torch.inference_mode(), self._autocast():
            logits: torch.Tensor = self._module(torch.from_numpy(x))
        result: Array = logits.float().numpy()
        return result

    def _autocast(self) -> AbstractContextManager[object]:
        import torch

        return torch.autocast("cpu", torch.bfloat16) if self._bf16 else nullcontext()

    def close(self) -> None:
        self._module = None

    def describe(self) -> dict[str, str]:
        return {"dtype": "bfloat16 autocast" if self._bf16 else "float32", "outputs": "fresh for every run"}
