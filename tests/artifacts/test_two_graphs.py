"""An artifact of two graphs: both are checked, both are packed, and each goes where it belongs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from google.protobuf import text_format
from torch import nn

import segonnx
from segonnx.artifacts import layout, manifest, packing
from segonnx.artifacts.packing.serving import Serving
from segonnx.artifacts.verify import verify
from segonnx.core.ort_session import model_bytes
from segonnx.errors import VerifyError
from tests.artifacts.resealed import reseal
from tests.artifacts.test_packing import _tritons_own

pytestmark = pytest.mark.usefixtures("copied_workers")

PLAIN, REWRITTEN = layout.MODEL, layout.CPU_MODEL


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 3D network, whose convolution the rewrites unroll."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv3d(1, 16, 3, padding=1), nn.LeakyReLU(), nn.Conv3d(16, 2, 1))
    return segonnx.export(module, torch.zeros(1, 1, 8, 32, 32), tmp_path_factory.mktemp("two") / "net").folder


@pytest.fixture
def artifact(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "net")


def content(artifact: Path) -> manifest.Manifest:
    found: manifest.Manifest = json.loads((artifact / layout.MANIFEST).read_bytes())
    return found


def test_both_are_told_checked_and_replayed(artifact: Path) -> None:
    found = verify(artifact)
    told = found.manifest["cpu_graph"]
    assert manifest.models(found.manifest) == (PLAIN, REWRITTEN)
    assert (found.manifest["rewrites"], told["rewrites"]) == ([], ["UnrollDepthPass"])
    assert told["operators"].keys() != found.manifest["operators"].keys()
    assert 0 < told["parity"]["max_rel_error"] < found.manifest["parity"]["tolerance"]["max_rel_error"]
    assert found.weights == ()  # beside model.onnx there are none
    steps: list[str] = []
    verify(artifact, progress=steps.append)
    assert {f"replaying the test data in {name}" for name in (PLAIN, REWRITTEN)} <= set(steps)
    assert model_bytes(artifact / PLAIN) == sum((artifact / name).stat().st_size for name in (PLAIN, REWRITTEN))


def test_the_card_takes_the_one_for_cpus_and_tells_of_both(artifact: Path) -> None:
    card = (artifact / layout.CARD).read_text("utf-8")
    assert 'InferenceSession("model.cpu.onnx"' in card
    assert "`model.onnx` is the graph as PyTorch writes it, for every runtime" in card
    assert "| all, in `model.cpu.onnx` |" in card


def other_weights(artifact: Path) -> None:
    model = onnx.load(artifact / REWRITTEN)
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and array.size > 16:
            tensor.CopyFrom(onnx.numpy_helper.from_array(array * np.float32(1.1), tensor.name))
    onnx.save(model, artifact / REWRITTEN)


def other_place(artifact: Path) -> None:
    model = onnx.load(artifact / REWRITTEN, load_external_data=False)
    next(t for t in model.graph.initializer if t.external_data).external_data[1].value = "64"
    onnx.save(model, artifact / REWRITTEN)


def other_output(artifact: Path) -> None:
    model = onnx.load(artifact / REWRITTEN, load_external_data=False)
    model.graph.output[0].name = "else"
    model.graph.node.add(op_type="Identity", input=["logits"], output=["else"])
    onnx.save(model, artifact / REWRITTEN)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_weights, "the replay of model.cpu.onnx differs from the recorded logits"),
        (other_place, "the replay of model.cpu.onnx differs from the recorded logits"),
        (other_output, r"model.cpu.onnx has the outputs .*'else'"),
    ],
)
def test_a_graph_for_cpus_that_was_changed_is_found(change: Callable[[Path], None], said: str, artifact: Path) -> None:
    change(artifact)
    reseal(artifact, rehash=True)
    with pytest.raises(VerifyError, match=said):
        verify(artifact)


def test_the_manifest_and_the_folder_tell_the_same(artifact: Path) -> None:
    for change in (lambda its: its.pop("cpu_graph"), lambda its: its["files"].pop(REWRITTEN)):
        told = content(artifact)
        change(told)
        with pytest.raises(VerifyError, match="cpu_graph: it is there, and model.cpu.onnx isn't"):
            manifest.parse(manifest.seal(told), Path(layout.MANIFEST))
    told = content(artifact)
    told["cpu_graph"]["parity"]["rms_rel_error"] = 0.5
    with pytest.raises(VerifyError, match="cpu_graph/parity/rms_rel_error: 0.5 is more than the tolerance"):
        manifest.parse(manifest.seal(told), Path(layout.MANIFEST))


def test_an_artifact_of_one_graph_is_read(artifact: Path) -> None:
    told = content(artifact)
    del told["cpu_graph"], told["files"][REWRITTEN]
    (artifact / REWRITTEN).unlink()
    (artifact / layout.MANIFEST).write_bytes(manifest.seal(told))
    found = verify(artifact).manifest
    assert manifest.models(found) == (PLAIN,)
    assert manifest.cpu_model(found) == PLAIN


@pytest.mark.parametrize("kind", [None, "gpu", "cpu"])
def test_triton_gets_the_graph_of_its_devices(kind: str | None, artifact: Path, tmp_path: Path) -> None:
    out = packing.pack(artifact, "triton", tmp_path / "repository", serving=Serving(kind=kind))  # type: ignore[arg-type]
    judged = text_format.Parse((out / "net" / "config.pbtxt").read_text(), _tritons_own().ModelConfig())
    names = {PLAIN, REWRITTEN} if kind == "cpu" else {PLAIN}
    assert {path.name for path in (out / "net" / "1").iterdir()} == names
    assert judged.default_model_filename == (REWRITTEN if kind == "cpu" else "")
    session = onnxruntime.InferenceSession(out / "net" / "1" / (judged.default_model_filename or PLAIN))
    assert session.get_inputs()[0].shape == [1, 1, 8, 32, 32]
    again = packing.pack(artifact, "triton", out, overwrite=True)
    assert {path.name for path in (again / "net" / "1").iterdir()} == {PLAIN}


@pytest.mark.parametrize("form", ["zip", "oci"])
def test_both_travel(form: str, artifact: Path, tmp_path: Path) -> None:
    packed = packing.pack(artifact, form, tmp_path / "packed")
    verify(packing.unpack(packed, tmp_path / "received"))
    assert (tmp_path / "received" / REWRITTEN).read_bytes() == (artifact / REWRITTEN).read_bytes()


def test_a_bundle_holds_the_plain_one(artifact: Path, tmp_path: Path) -> None:
    out = packing.pack(artifact, "bundle", tmp_path / "bundle")
    assert {path.name for path in (out / "models").iterdir()} == {PLAIN}
