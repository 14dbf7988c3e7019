"""Equal parameters are stored once, and values that are cast like others are their own: each is accounted for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import segonnx
from segonnx.exporters import accounting


class Block(nn.Module):
    """A convolution whose output is scaled by channel, as a ConvNeXt's."""

    def __init__(self, gamma: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.gamma = nn.Parameter(torch.full((8,), gamma))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x) * self.gamma.reshape(1, -1, 1, 1)


def _network(*gammas: float) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 1), *map(Block, gammas), nn.Conv2d(8, 2, 1))


@pytest.mark.parametrize("gammas", [(1e-6, 1e-6), (1e-6, 2e-6, 1e-6)])
def test_equal_layer_scales_are_folded_each(gammas: tuple[float, ...], tmp_path: Path) -> None:
    module = _network(*gammas)
    done = segonnx.export(module, torch.zeros(1, 3, 32, 32), tmp_path / "it")
    counted = done.manifest["parameters"]
    assert counted["folded"] == 8 * len(gammas)
    assert counted["used"] + counted["folded"] == counted["count"]
    assert counted["unused"] == 0


def test_a_group_norm_behind_a_layer_is_accounted_for(tmp_path: Path) -> None:
    norm = nn.GroupNorm(8, 32)
    module = nn.Sequential(nn.Conv2d(3, 32, 1), norm, nn.Conv2d(32, 2, 1))
    with torch.no_grad():
        norm.weight.normal_(1, 0.2)
        norm.bias.normal_(0, 0.2)
    counted = segonnx.export(module, torch.zeros(1, 3, 32, 32), tmp_path / "it").manifest["parameters"]
    assert (counted["used"] + counted["folded"], counted["unused"]) == (counted["count"], 0)


ARRAYS = {
    "there": np.array([1.0, 2.0, 0.0], np.float32),
    "same": np.array([1.0, 2.0, -0.0], np.float32),
    "other": np.array([1.0, 2.0, 3.0], np.float32),
    "of another shape": np.array([[1.0, 2.0, 0.0]], np.float32),
}


@pytest.mark.parametrize(("missing", "found"), [
    (["same"], {"same": {"there"}}), (["other"], {}), (["of another shape"], {}), ([], {}),
    (["same", "other"], {"same": {"there"}}),
])  # fmt: skip
def test_only_equal_tensors_of_one_shape_stand_for_each_other(missing: list[str], found: dict[str, set[str]]) -> None:
    read: Callable[[str], np.ndarray] = ARRAYS.__getitem__
    sizes = {name: array.size for name, array in ARRAYS.items()}
    assert accounting._shared(missing, sizes, {"there"}, read) == found
