"""PyTorch through torch.compile."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from segonnx.runtimes.eager import EagerRuntime

if TYPE_CHECKING:
    from torch import nn


class CompileRuntime(EagerRuntime):
    """The network compiled by TorchInductor, in its default mode."""

    name = "compile"

    @classmethod
    def missing(cls) -> str | None:
        if (why := super().missing()) is not None:
            return why
        found = any(shutil.which(compiler) for compiler in ("g++", "clang++", "c++"))
        return None if found else "torch.compile needs a C++ compiler on the PATH: install g++ or clang++"

    def _prepare(self, module: nn.Module) -> nn.Module:
        import torch

        return torch.compile(module)  # type: ignore[return-value]
