"""Other runtimes are asked whether they compute what PyTorch does: ``--check-with`` and ``--backend``."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import segonnx
from segonnx import runtimes
from segonnx.artifacts import layout, manifest
from segonnx.commands import export, verify
from segonnx.core import file_runs
from segonnx.errors import InputError, ParityError, VerifyError
from tests.conftest import SMALL, message, run

pytestmark = [
    pytest.mark.usefixtures("steps_here"),
    pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="OpenVINO isn't installed"),
]

X = torch.zeros(1, 3, 32, 32)


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.InstanceNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 1))


class Antialiased(nn.Module):
    """OpenVINO passes over the attribute, and samples one pixel of four."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.interpolate(self.head(x), size=(8, 8), mode="bilinear", antialias=True)
        return nn.functional.interpolate(y, size=x.shape[2:], mode="bilinear")


class Two(nn.Module):
    """Two inputs, and an output beside the segmentation."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Conv2d(3, 4, 1)

    def forward(self, image: torch.Tensor, shift: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.head(image) + shift[:, :, None, None]
        return y, y.mean((2, 3))


@pytest.fixture(scope="module")
def antialiased(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return segonnx.export(Antialiased(), X, tmp_path_factory.mktemp("exports") / "antialiased").folder


@pytest.mark.parametrize("result", [None, "labels", "probabilities"])
def test_a_runtime_that_agrees_is_recorded(result: Any, tmp_path: Path) -> None:
    exported = segonnx.export(plain(), X, tmp_path / "net", result=result, dynamic=True, check_with=("openvino",))
    (found,) = exported.manifest["parity"]["also"]
    assert (found["runtime"], found["version"]) == ("openvino", file_runs.version("openvino"))
    assert found["label_agreement"] >= 0.999
    assert ("max_rel_error" in found, "rms_rel_error" in found) == ((result != "labels"),) * 2
    assert f"Also checked in OpenVINO {found['version']}: " in (exported.folder / layout.CARD).read_text()
    (again,) = segonnx.verify(exported.folder, backend="openvino").also
    assert again.runtime == "openvino" and again.difference.label_agreement >= 0.999


def test_every_input_and_output_is_compared(tmp_path: Path) -> None:
    module, given = Two(), (X, torch.zeros(1, 4))
    names = ("logits", "means")
    exported = segonnx.export(module, given, tmp_path / "two", output_names=names, output=0, check_with="openvino")
    assert exported.manifest["parity"]["also"][0]["max_rel_error"] < 1e-4
    assert len(segonnx.verify(exported.folder, backend=["ort", "openvino"]).also) == 1


def test_antialiased_resizing_is_said_at_the_export(tmp_path: Path) -> None:
    said = r"parity failed on noise .*: OpenVINO 20\S+ differs from PyTorch by max \d.*; allowed: max 2.0e-03"
    with pytest.raises(ParityError, match=said):
        segonnx.export(Antialiased(), X, tmp_path / "net", check_with=["openvino"])
    assert not list(tmp_path.iterdir())


def test_antialiased_resizing_is_said_at_the_receiver_s(antialiased: Path) -> None:
    assert run("verify", antialiased).returncode == 0
    done = run("verify", antialiased, "--backend", "openvino")
    assert done.returncode == 1 and "\n" not in message(done)
    assert "the replay in OpenVINO 20" in message(done) and "; allowed: max 2.0e-03" in message(done)
    with pytest.raises(VerifyError, match="OpenVINO"):
        segonnx.verify(antialiased, backend="openvino")


def test_the_command_line_tells_the_figures(exports: Path, tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    done = run("verify", exports / SMALL, "--backend", "openvino", "--backend", "ort", "--json", found)
    assert done.returncode == 0, done.stderr
    assert "; replay: max " in done.stdout and "; OpenVINO 20" in done.stdout
    (told,) = json.loads(found.read_text())[0]["also"]
    assert told["runtime"] == "openvino" and told["max_rel_error"] < 2e-3


@pytest.mark.slow
def test_an_export_of_the_command_line_is_checked(tmp_path: Path) -> None:
    asked = ("export", SMALL, "--check-with", "openvino", "--out", tmp_path)
    done = run(*asked)
    assert done.returncode == 0, done.stderr
    assert "; OpenVINO 20" in done.stdout
    assert "kept" in run(*asked).stdout
    other = run("export", SMALL, "--out", tmp_path)
    assert other.returncode == 2 and "made with other arguments (check_with)" in other.stderr


def test_what_isn_t_installed_is_one_line(exports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "openvino" else find(name, *more)
    )
    for words in (("verify", exports / SMALL, "--backend"), ("export", SMALL, "--out", tmp_path, "--check-with")):
        done = run(*words, "openvino")
        assert done.returncode == 2
        assert f"{words[-1]} openvino: OpenVINO isn't installed: pip install 'segonnx[openvino]'" in message(done)
        assert "\n" not in message(done)
    with pytest.raises(InputError, match="isn't installed"):
        segonnx.export(plain(), X, tmp_path / "net", check_with="openvino")
    with pytest.raises(InputError, match="isn't installed"):
        segonnx.verify(exports / SMALL, backend="openvino")


def test_wrong_names_are_refused(exports: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="check_with= takes ort and openvino; found 'eager'"):
        segonnx.export(plain(), X, tmp_path / "net", check_with=["eager"])
    with pytest.raises(InputError, match="backend= says where"):
        segonnx.verify(exports / SMALL, backend="openvino", replay=False)
    assert run("verify", exports / SMALL, "--backend", "eager").returncode == 2


def test_a_record_beyond_the_tolerance_contradicts_the_manifest(exports: Path) -> None:
    content = json.loads((exports / SMALL / layout.MANIFEST).read_bytes())
    entry = {"runtime": "openvino", "version": "1", "max_rel_error": 1e-6, "rms_rel_error": 1e-6, "label_agreement": 1}
    for change, said in (
        ({"max_rel_error": 0.5}, "parity/also/0/max_rel_error"),
        ({"label_agreement": 0.5}, "parity/also/0/l"),
    ):
        content["parity"]["also"] = [entry]
        manifest.validate(content)
        content["parity"]["also"] = [{**entry, **change}]
        with pytest.raises(VerifyError, match=said):
            manifest.validate(content)


def test_both_computed_in_float32(exports: Path) -> None:
    x = np.random.default_rng(0).standard_normal((1, 3, 512, 512), np.float32)
    model = exports / SMALL / layout.MODEL
    (ort,), (openvino,) = (file_runs.opened(name, model, 1)({"input": x, "other": x}) for name in file_runs.NAMES)
    assert np.abs(ort - openvino).max() < 1e-3 * ort.std()


def test_the_names_are_those_of_the_runtimes_that_take_an_artifact() -> None:
    takes = [name for name in runtimes.NAMES if runtimes.get(name).needs == "artifact"]
    takes = [name for name in takes if not name.endswith("-stock")]  # these are no other runtimes
    assert list(file_runs.NAMES) == list(verify.BACKENDS) == list(export.BACKENDS) == takes
    assert {name: runtimes.get(name).missing() for name in takes} == dict.fromkeys(takes)
