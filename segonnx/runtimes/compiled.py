"""PyTorch through torch.compile."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from segonnx.core.synthetic_inputs import Array
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

    def prepare(self, example: Array) -> None:
        import torch

        assert self._module is not None
        compiled: nn.Module = torch.compile(  # type: ignore[assignment]
            self._module,
            options={"cpp.enable_kernel_profile": self._options.profile},  # without it all fused kernels are one event
        )
        self._module = compiled
        self.run(example)  # the compiler starts at the first pass


class CompileChannelsLastRuntime(CompileRuntime):
    """The same with the channels innermost in memory."""

    name = "compile-channels-last"
    channels_last = True
