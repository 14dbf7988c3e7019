"""Artifacts with weights in 16 bits and in int8 go where others go: signed, packed, tuned, predicted, as tasks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import segonnx
from segonnx.artifacts import layout
from segonnx.exporters import pipeline
from segonnx.exporters.pipeline import Settings
from segonnx.predict import images
from segonnx.quantization import run as quantization
from segonnx.quantization.run import Request
from tests import handmade, signing_keys
from tests.conftest import export, message, tiny_system
from tests.conftest import run as command
from tests.predict.conftest import save, volume

pytestmark = pytest.mark.usefixtures("steps_here")

KINDS = {"float16": "float16 storage", "bfloat16": "bfloat16 storage", "int8": "int8"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The artifacts of a folder in nnU-Net's layout, by what they hold their weights in; and images."""
    from tests.conftest import steps_in_process

    root = tmp_path_factory.mktemp("ways")
    folder = handmade.write(root / "results", handmade.plans(), handmade.dataset(4))
    found = {}
    for dtype in ("float32", "float16", "bfloat16"):
        export("--nnunet", folder, "--out", root / dtype, "--weights-dtype", dtype)
        (found[dtype],) = (root / dtype).iterdir()
    found["images"] = root / "images"
    found["images"].mkdir()
    for i in range(2):
        save(volume(i, (14, 30, 40)), found["images"] / f"c{i}_0000.nii.gz")
    with steps_in_process():
        request = Request(found["float32"], found["images"], root / "int8", min_dice=0.0, threads=2)
        found["int8"] = quantization.quantize(request).folder
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_card_bill_and_manifest_name_the_precision(kind: str, made: dict[str, Path]) -> None:
    artifact = made[kind]
    component = json.loads((artifact / layout.SBOM).read_text())["metadata"]["component"]
    assert component["properties"] == [{"name": "segonnx:precision", "value": KINDS[kind]}]
    card = (artifact / layout.CARD).read_text()
    assert ("**Computes in int8:**" if kind == "int8" else f"**Stored in:** {kind}, ") in card
    assert segonnx.verify(artifact, replay=True).manifest["name"]


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_signed_packed_unpacked_and_predicts_the_same(kind: str, made: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("model_signing", reason="model-signing isn't installed: pip install 'segonnx[sign]'")
    image = made["images"] / "c0_0000.nii.gz"
    before, after = tmp_path / "before.nii.gz", tmp_path / "after.nii.gz"
    assert command("predict", made[kind], image, before).returncode == 0
    private, public = signing_keys.make(tmp_path, "sender")
    packed = tmp_path / "a.zip"
    assert command("pack", made[kind], "--format", "zip", "--out", packed).returncode == 0
    again = tmp_path / "again"
    assert command("unpack", packed, "--out", again).returncode == 0
    artifact = next(path.parent for path in again.rglob(layout.MANIFEST))
    signed = command("sign", artifact, "--key", private)
    assert signed.returncode == 0, signed.stderr
    verified = command("verify", artifact, "--key", public)
    assert verified.returncode == 0, verified.stderr
    assert "signed by the owner of" in verified.stdout
    assert command("predict", artifact, image, after).returncode == 0
    one, other = (images.read([path], "SimpleITKIO").array for path in (before, after))
    assert np.array_equal(one, other)


@pytest.mark.slow  # tuning, quantizing and rounding are each tested
def test_a_tuned_network_is_stored_in_16_bits_and_quantized(tmp_path: Path) -> None:
    spec = replace(tiny_system(), options={"depth": 1, "width": 8}, name="volumes")
    how = Settings(tmp_path / "a", shape=(32, 32, 64), weights_dtype="bfloat16", tune=True, tune_time=1.0)
    made = pipeline.export(spec, how)
    content = segonnx.verify(made.folder).manifest
    assert (content["weights"]["storage"]["dtype"], "tuning" in content) == ("bfloat16", True)
    (tmp_path / "x").mkdir()
    random = np.random.default_rng(0)
    for i in range(2):
        np.save(tmp_path / "x" / f"{i}.npy", random.standard_normal((1, 1, 32, 32, 64)).astype(np.float32))
    done = quantization.quantize(Request(made.folder, tmp_path / "x", tmp_path / "q", min_dice=0.0, threads=2))
    assert "tuning" not in segonnx.verify(done.folder).manifest


@pytest.mark.slow  # two tasks; exporters/test_rounding.py has a trained folder in 16 bits
def test_a_task_of_totalsegmentator_in_16_bits(tmp_path: Path) -> None:
    from tests import totalsegmentator_folders as folders

    folders.write(tmp_path / "results", ["body_fast"])
    for dtype in ("float32", "float16"):
        export(
            "--totalsegmentator", "body_fast", "--weights-dir", tmp_path / "results", "--out", tmp_path / dtype,
            "--weights-dtype", dtype,
        )  # fmt: skip
    tasks: dict[str, Any] = {}
    for dtype in ("float32", "float16"):
        (tasks[dtype],) = (tmp_path / dtype).iterdir()
    members = [path for path in tasks["float16"].rglob(layout.MANIFEST) if path.parent != tasks["float16"]]
    assert members
    for path in members:
        assert json.loads(path.read_text())["weights"]["storage"]["dtype"] == "float16"
    sizes = {
        dtype: sum(path.stat().st_size for path in task.rglob("*.onnx*") if path.is_file())
        for dtype, task in tasks.items()
    }
    assert sizes["float16"] < sizes["float32"]  # the networks are tiny: their nodes are most of it
    picture = folders.phantom((60, 52, 44)).transpose(2, 1, 0)[None].astype(np.float32)
    found = {dtype: segonnx.Artifact(task).predict(picture, (2.6, 1.7, 1.9)) for dtype, task in tasks.items()}
    assert found["float32"].any()
    assert (found["float32"] == found["float16"]).mean() > 0.999
    refused = command("quantize", tasks["float16"], "--calibration", tmp_path, "--out", tmp_path / "q")
    assert refused.returncode == 2
    assert message(refused).count("\n") == 0
    assert not (tmp_path / "q").exists()
