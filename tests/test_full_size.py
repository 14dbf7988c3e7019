"""All fourteen systems at full size: exported, verified, within the bound of memory, and timed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from segonnx.sources import catalog
from tests.conftest import run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("full")


@pytest.mark.parametrize("name", catalog.names())
def test_a_system_exports_verifies_and_runs(name: str, out: Path) -> None:
    exported = run("export", name, "--out", out, "--json", out / "done.json")
    assert exported.returncode == 0, exported.stderr
    stages = json.loads((out / "done.json").read_text())[0]["stages"]
    weights = 4 * catalog.find(name).reference.parameters  # type: ignore[union-attr]
    assert stages["convert"]["peak_rss_bytes"] <= 1.25 * weights + 10**9
    assert (out / name / "model.onnx.data").exists() == (name in ("stunet-l", "stunet-h"))
    verified = run("verify", out / name)
    assert verified.returncode == 0, verified.stderr
    benched = run("bench", name, "--artifacts", out, "--backend", "ort", "--rounds", 1)
    assert benched.returncode == 0, benched.stderr
    assert f"{name} ort:" in benched.stdout


@pytest.mark.parametrize("name", ["smp:unet:resnet34", "smp:segformer:mit_b0", "smp:deeplabv3plus:resnet18"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_smp_networks_export(name: str, dynamic: bool, out: Path) -> None:
    options = ["--shape", "128,160", *(["--dynamic"] if dynamic else [])]
    exported = run("export", name, "--out", out / str(dynamic), *options)
    assert exported.returncode == 0, exported.stderr
