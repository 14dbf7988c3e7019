"""Numbers that a module computes from shapes alone are no hidden weights; weights that are hidden in code are found."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (as everybody calls it)
from torch import nn

import segonnx
from segonnx.errors import ParityError
from segonnx.exporters import provenance
from tests.exporters.modules import Fn, X, run, torch_gives

pytestmark = pytest.mark.usefixtures("steps_here")

SECRET = [float(value) for value in np.random.default_rng(0).standard_normal(48)]


def _coordinates(module: Fn, x: torch.Tensor) -> torch.Tensor:
    n, _, h, w = x.shape
    y, x_ = torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij")
    return module.conv(torch.cat([x, torch.stack([x_, y])[None].expand(n, -1, -1, -1)], 1))


def _sinusoids(module: Fn, x: torch.Tensor) -> torch.Tensor:
    y = module.conv(x)
    h, w = y.shape[2:]
    rate = torch.exp(torch.arange(0, 2) * (-math.log(10000.0) / 4))
    angle = torch.arange(h * w)[:, None] * rate
    return y + torch.stack([angle.sin(), angle.cos()], -1).flatten(1).T.reshape(1, 4, h, w)


def _pooled(module: Fn, x: torch.Tensor) -> torch.Tensor:
    tables = F.interpolate(F.adaptive_avg_pool2d(x, (5, 7)), x.shape[2:], mode="bilinear", align_corners=True)
    return module.conv(x) + tables[:, :1]


def _resized(module: Fn, x: torch.Tensor) -> torch.Tensor:
    larger = F.interpolate(module.conv(x), scale_factor=1.7, mode="bicubic")
    return F.interpolate(larger, x.shape[2:], mode="bilinear", antialias=True)


def _turned(module: Fn, x: torch.Tensor) -> torch.Tensor:
    by = torch.tensor([[[1.0, 0.1, 0.0], [-0.1, 1.0, 0.0]]]).expand(x.shape[0], -1, -1)
    return module.conv(F.grid_sample(x, F.affine_grid(by, list(x.shape), align_corners=False), align_corners=False))


def _causal(module: Fn, x: torch.Tensor) -> torch.Tensor:
    y = module.conv(F.avg_pool2d(x, 2))
    tokens = y.flatten(2)
    scores = tokens.transpose(1, 2) @ tokens
    mask = torch.tril(torch.ones(scores.shape[-2:])).bool()
    weights = scores.masked_fill(~mask, -1e4).softmax(-1)
    return F.interpolate((tokens @ weights.transpose(1, 2)).reshape(y.shape), scale_factor=2)


def _windows(module: Fn, x: torch.Tensor) -> torch.Tensor:
    y = module.conv(x)
    h, w = y.shape[2:]
    parts = torch.zeros((1, h, w, 1))
    for number, (rows, columns) in enumerate(
        (rows, columns)
        for rows in (slice(0, -8), slice(-8, -4), slice(-4, None))
        for columns in (slice(0, -8), slice(-8, -4), slice(-4, None))
    ):
        parts[:, rows, columns, :] = number
    windows = parts.view(1, h // 8, 8, w // 8, 8, 1).permute(0, 1, 3, 2, 4, 5).reshape(-1, 64)
    apart = windows[:, None] - windows[:, :, None]
    mask = apart.masked_fill(apart != 0, -100.0)
    return y + mask.reshape(-1)[: h * w].reshape(1, 1, h, w) / 100


def _blurred(module: Fn, x: torch.Tensor) -> torch.Tensor:
    line = torch.exp(-((torch.arange(7).float() - 3) ** 2) / 8)
    line = line / line.sum()
    kernel = (line[:, None] * line[None])[None, None].expand(3, 1, 7, 7)
    return module.conv(F.conv2d(x, kernel, padding=3, groups=3))


@pytest.mark.parametrize(
    ("forward", "channels"),
    [
        (_coordinates, 5), (_sinusoids, 3), (_pooled, 3), (_resized, 3), (_turned, 3), (_causal, 3), (_windows, 3),
        (_blurred, 3), (lambda module, x: module.conv(x) @ torch.eye(48) + torch.hann_window(48), 3),
    ],
    ids=["coordinates", "sinusoids", "pooled", "resized", "turned", "causal", "windows", "blurred", "eye"],
)  # fmt: skip
def test_what_is_computed_from_shapes_alone_is_no_weight(forward: Any, channels: int, tmp_path: Path) -> None:
    module = Fn(forward, (channels, 4))
    done = segonnx.export(module, X, tmp_path / "it")
    counted = done.manifest["parameters"]
    assert counted["used"] + counted["folded"] == counted["count"] == sum(p.numel() for p in module.parameters())
    x = torch.randn(1, 3, 32, 48)
    assert np.allclose(run(done.folder, x)[0], torch_gives(module, x).numpy(), atol=1e-3)


@pytest.mark.parametrize(
    "forward",
    [
        lambda module, x: module.conv(x) + torch.tensor(SECRET),
        lambda module, x: module.conv(x) + module.kept[0],
        lambda module, x: module.conv(x) + torch.from_numpy(module.numbers),
        lambda module, x: module.conv(x) + torch.stack([torch.tensor(value) for value in SECRET]),
        lambda module, x: module.conv(x) + torch.cat([torch.full((1,), value) for value in SECRET]),
        lambda module, x: module.conv(x) + torch.tensor([int(value * 100) for value in SECRET]).float() / 100,
        lambda module, x: module.conv(x) + torch.linspace(-1, 1, 48) * torch.tensor(SECRET),
        lambda module, x: module.conv(x) + sum((torch.arange(48) == i) * value for i, value in enumerate(SECRET)),
    ],
    ids=["tensor", "in a list", "of numpy", "stacked", "joined", "whole numbers", "times a grid", "one by one"],
)
def test_weights_that_the_code_holds_are_found(forward: Any, tmp_path: Path) -> None:
    module = Fn(forward, (3, 2), kept=[torch.tensor(SECRET)], numbers=np.array(SECRET, np.float32))
    with pytest.raises(ParityError, match="whose values the network doesn't explain"):
        segonnx.export(module, X, tmp_path / "it")
    assert list(tmp_path.iterdir()) == []


def test_a_constant_that_is_not_what_the_graph_computes_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    computed = provenance.computed

    def wrong(model: ir.Model, found: provenance.Trace) -> Any:
        values = computed(model, found)
        assert any(array.size > 16 for array in values.values())
        return {name: array + array.dtype.type(1) for name, array in values.items()}

    monkeypatch.setattr(provenance, "computed", wrong)
    with pytest.raises(ParityError, match="isn't what PyTorch's graph computes there"):
        segonnx.export(Fn(_coordinates, (5, 4)), X, tmp_path / "it")


def _pruned(conv: nn.Conv2d) -> nn.Module:
    from torch.nn.utils import prune

    prune.l1_unstructured(conv, "weight", 0.5)
    return conv


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize(
    "normed",
    [torch.nn.utils.weight_norm, torch.nn.utils.spectral_norm, torch.nn.utils.parametrizations.weight_norm, _pruned],
    ids=["weight_norm", "spectral_norm", "parametrized", "pruned"],
)
def test_weights_that_are_computed_from_parameters_are_folded(normed: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(normed(nn.Conv2d(3, 4, 3, padding=1)), nn.Conv2d(4, 2, 1))
    done = segonnx.export(module, X, tmp_path / "it")
    assert done.manifest["parameters"]["folded"] >= 108
    x = torch.randn(1, 3, 32, 48)
    assert np.allclose(run(done.folder, x)[0], torch_gives(module, x).numpy(), atol=1e-4)
