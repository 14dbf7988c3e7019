"""Files for older runtimes: their opset and their format, replayed by those very runtimes."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (as everybody calls it)
from torch import nn

import segonnx
from segonnx.artifacts import manifest
from segonnx.errors import ConversionError
from segonnx.optimize import opsets
from tests.conftest import ROOT, run
from tests.exporters.modules import Fn, X, torch_gives

pytestmark = pytest.mark.usefixtures("steps_here")

OLD = ROOT / ".venv-old/bin/python"
old = pytest.mark.skipif(not OLD.exists(), reason="the old runtimes aren't installed: make old-runtimes")


def replayed(runtime: str, model: Path, x: torch.Tensor, folder: Path, version: str) -> Any:
    """What a runtime of years ago gives."""
    np.save(folder / "x.npy", x.numpy())
    program = Path(__file__).with_name("old_runtimes.py")
    command: list[str | Path] = [OLD, program, runtime, model, folder / "x.npy", folder / "y.npy"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith(version)
    return np.load(folder / "y.npy")


class Mixed(nn.Module):
    """Reductions, a split, padding, two ways of resizing, a norm and attention."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.InstanceNorm2d(16, affine=True), nn.GELU())
        self.norm = nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x)
        n, c, h, w = y.shape
        tokens = self.norm(y.flatten(2).transpose(1, 2))
        y = y + self.attention(tokens, tokens, tokens)[0].transpose(1, 2).reshape(n, c, h, w)
        a, b = y.chunk(2, 1)
        y = torch.cat([a * b.mean((2, 3), keepdim=True), b * a.amax((2, 3), keepdim=True)], 1)
        y = F.pad(F.interpolate(y, scale_factor=2, mode="bilinear"), (1, 1, 1, 1), "reflect")[:, :, 1:-1, 1:-1]
        return self.head(y)


class Volume(nn.Module):
    """A convolution in 3D that the rewrites unroll, with its norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv3d(1, 16, 3, padding=1), nn.InstanceNorm3d(16, affine=True), nn.LeakyReLU(), nn.Conv3d(16, 2, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.body(x)
        return y


@old
@pytest.mark.parametrize("opset", [17, 18, 19])
@pytest.mark.parametrize(("module", "shape"), [(Mixed(), (1, 3, 32, 48)), (Volume(), (1, 1, 16, 32, 32))])
def test_onnxruntime_1_16_runs_a_file_of_its_opset(
    module: nn.Module, shape: tuple[int, ...], opset: int, tmp_path: Path
) -> None:
    done = segonnx.export(module, torch.zeros(shape), tmp_path / "it", opset=opset)
    content = done.manifest
    assert (content["opset"], content["ir_version"]) == (opset, {17: 8, 18: 8, 19: 9}[opset])
    segonnx.verify(done.folder)
    x = torch.randn(shape)
    expected = torch_gives(module, x).numpy()
    for model in manifest.models(content):
        found = replayed("onnxruntime", done.folder / model, x, tmp_path, "1.16.3")
        assert np.abs(found - expected).max() < 1e-3 * expected.std()


@old
def test_a_unet_at_opset_17_runs_in_onnxruntime_1_16_and_opencv_4_10(tmp_path: Path) -> None:
    asked = ("smp:unet:tu-regnetx_002", "--shape", "64,96", "--opset", 17, "--out", tmp_path)
    done = run("export", *asked)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "smp-unet-tu-regnetx_002"
    given = onnx.numpy_helper.to_array(onnx.load_tensor(folder / "test_data_set_0/input_0.pb"))
    x = torch.from_numpy(given.copy())
    expected = onnx.numpy_helper.to_array(onnx.load_tensor(folder / "test_data_set_0/output_0.pb"))
    ways = (
        ("onnxruntime", "1.16.3", "model.onnx"), ("onnxruntime", "1.16.3", "model.cpu.onnx"),
        ("opencv", "4.10.0", "model.onnx"),
    )  # fmt: skip
    for runtime, version, model in ways:
        found = replayed(runtime, folder / model, x, tmp_path, version)
        assert np.abs(found - expected).max() < 1e-3 * expected.std(), runtime
    assert "ONNX Runtime 1.13 or later" in (folder / "README.md").read_text("utf-8")


@old
@pytest.mark.parametrize("kind", ["uint8-nhwc", "uint8-nchw"])
def test_older_runtimes_take_pictures_of_8_bits(kind: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    done = segonnx.export(
        module, torch.zeros(1, 3, 32, 48), tmp_path / "it", mean=mean, std=std, input_kind=kind, opset=17
    )
    picture = torch.randint(0, 256, (1, 3, 32, 48), dtype=torch.uint8)
    given = picture.permute(0, 2, 3, 1).contiguous() if kind == "uint8-nhwc" else picture
    seen = (picture / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    expected = torch_gives(module, seen).numpy()
    for runtime, version in (("onnxruntime", "1.16.3"), ("opencv", "4.10.0")):
        found = replayed(runtime, done.folder / "model.onnx", given, tmp_path, version)
        assert np.abs(found - expected).max() < 1e-3 * expected.std(), runtime


@pytest.mark.parametrize("opset", [21, 23])
def test_later_opsets_are_written_too(opset: int, tmp_path: Path) -> None:
    done = segonnx.export(Mixed(), X, tmp_path / "it", opset=opset)
    assert onnx.load(done.folder / "model.onnx").opset_import[0].version == opset
    segonnx.verify(done.folder)


def test_a_file_has_the_least_format_of_its_opset_unless_one_is_named(tmp_path: Path) -> None:
    module = Fn(lambda m, x: m.conv(x), (3, 2))
    assert segonnx.export(module, X, tmp_path / "it").manifest["ir_version"] == 9
    done = segonnx.export(module, X, tmp_path / "later", ir_version=10)
    assert (done.manifest["ir_version"], onnx.load(done.folder / "model.onnx").ir_version) == (10, 10)
    assert {opset: onnx.helper.OP_SET_ID_VERSION_MAP["ai.onnx", opset] for opset in opsets.OPSETS} == opsets.LEAST_IR


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--opset", 16), "--opset 16 isn't one that can be written: there are 17 to 23"),
        (("--opset", 99), "--opset 99"),
        (("--ir-version", 8), "opset 20 takes an --ir-version from 9 to 11, not 8"),
        (("--opset", 17, "--ir-version", 7), "from 8 to 11, not 7"),
    ],
)
def test_versions_that_no_file_has_are_refused(arguments: tuple[Any, ...], message: str, tmp_path: Path) -> None:
    done = run("export", "unet-mobilenetv3-small", "--out", tmp_path, *arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_what_opset_17_lacks_is_said(tmp_path: Path) -> None:
    smaller = Fn(lambda m, x: m.conv(F.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True)), (3, 2))
    with pytest.raises(
        ConversionError, match="needs Resize, with antialias 1, which is of opset 18: leave --opset out"
    ):
        segonnx.export(smaller, X, tmp_path / "it", opset=17)
    assert list(tmp_path.iterdir()) == []
