"""Small modules for tests of what ``segonnx.export`` takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

X = torch.zeros(1, 3, 32, 48)


class Fn(nn.Module):
    """A convolution, or several, and a function that says what is done with them."""

    def __init__(self, forward: Callable[..., Any], *sizes: tuple[int, int], **attributes: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convs = nn.ModuleList(nn.Conv2d(*size, 3, padding=1) for size in sizes)
        self.function = forward
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self, x)

    def conv(self, x: torch.Tensor, number: int = 0) -> torch.Tensor:
        """What one of the convolutions gives."""
        given: torch.Tensor = self.convs[number](x)
        return given


def run(folder: Path, *inputs: torch.Tensor) -> list[np.ndarray[Any, Any]]:
    """What the model of an artifact gives."""
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return list(session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)}))


def torch_gives(module: nn.Module, *inputs: torch.Tensor) -> Any:
    """What a module gives in inference mode."""
    with torch.inference_mode():
        return module.eval()(*inputs)
