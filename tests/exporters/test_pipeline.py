"""Whole exports, in the processes that users get."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import save_file

from segonnx.artifacts.verify import verify
from segonnx.core.subprocesses import Progress
from segonnx.errors import CheckpointError, InputError, ParityError, ResourceError
from segonnx.exporters import pipeline, resources, steps
from segonnx.exporters.assemble import Converted
from segonnx.exporters.convert import Conversion, convert
from segonnx.exporters.pipeline import Settings
from segonnx.models import unreached
from segonnx.sources import catalog
from segonnx.sources.catalog import ModelSpec
from tests.conftest import ROOT, SMALL, run

pytestmark = pytest.mark.usefixtures("steps_here")


@pytest.fixture(scope="module")
def tiny_artifact(tiny: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pipeline.export(tiny, Settings(tmp_path_factory.mktemp("tiny"))).folder


@pytest.fixture(scope="module")
def little_artifact(little: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pipeline.export(little, Settings(tmp_path_factory.mktemp("little"))).folder


def test_the_manifest_tells_what_was_done(exports: Path) -> None:
    folder = exports / SMALL
    manifest = json.loads((folder / "manifest.json").read_text())
    reference = catalog.find(SMALL).reference
    assert reference is not None
    parameters = manifest["parameters"]
    assert parameters["count"] == parameters["reference"] == reference.parameters
    assert parameters["used"] + parameters["folded"] + parameters["unused"] == reference.parameters
    assert parameters["folded"] > 0  # its BatchNorms
    assert manifest["macs"] == reference.inference_macs
    assert manifest["inputs"] == [{"name": "input", "shape": [1, 3, 512, 512], "dtype": "float32"}]
    assert manifest["outputs"] == [{"name": "logits", "shape": [1, 1000], "dtype": "float32"}]
    assert [one["kind"] for one in manifest["parity"]["inputs"]] == ["noise", "phantom", "constant"]
    assert all(0.3 < one["spread"] < 3 for one in manifest["parity"]["inputs"])
    assert "random" in manifest["weights"]["source"]
    model = onnx.load(folder / "model.onnx")
    assert [o.version for o in model.opset_import if o.domain == ""] == [manifest["opset"]]
    assert {o.domain for o in model.opset_import} == {""}
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "data.json", "manifest.json", "model.onnx", "sbom.cdx.json", "test_data_set_0",
    ]  # fmt: skip


def test_an_export_gives_the_same_bytes_each_time(little: ModelSpec, little_artifact: Path, tmp_path: Path) -> None:
    again = pipeline.export(little, Settings(tmp_path)).folder
    data = ("data.json", "test_data_set_0/input_0.pb", "test_data_set_0/output_0.pb")
    for name in ("model.onnx", "model.cpu.onnx", *data):
        assert (again / name).read_bytes() == (little_artifact / name).read_bytes(), name


def test_no_path_of_this_machine_is_in_the_artifact(exports: Path) -> None:
    for path in (exports / SMALL).rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for secret in (str(ROOT), str(Path.home()), "site-packages"):
                assert secret.encode() not in content, path


def test_a_3d_network_keeps_its_spare_heads_out_of_the_graph(tiny_artifact: Path) -> None:
    manifest = verify(tiny_artifact).manifest
    assert manifest["rewrites"] == []
    rewritten = manifest["cpu_graph"]
    assert rewritten["rewrites"] == ["CommuteUpsamplingPass", "UnrollDepthPass", "PointwiseHeadPass"]
    assert sum(rewritten["operators"].values()) > 2 * sum(manifest["operators"].values())
    assert manifest["outputs"][0]["shape"] == [1, 5, 32, 64, 64]
    # Four heads of 5 classes on 64, 32, 16 and 8 channels, with biases.
    assert manifest["parameters"]["unused"] == 5 * (64 + 32 + 16 + 8) + 4 * 5
    assert list(manifest["parameters"]["unused_reasons"]) == [
        "deep-supervision head; inference uses the last head alone"
    ]
    assert manifest["parameters"]["folded"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["efficientnet-b0", "timm-efficientnet-b0"])
def test_an_efficientnet_leaves_the_layer_before_its_classifier_out(encoder: str, tmp_path: Path) -> None:
    done = pipeline.export(catalog.find(f"smp:unet:{encoder}"), Settings(tmp_path, shape=(64, 64)))
    layer = 320 * 1280 + 2 * 1280
    assert done.manifest["parameters"]["unused_reasons"] == {unreached.REASON: layer}


def test_an_export_with_the_same_arguments_is_kept(exports: Path) -> None:
    before = (exports / SMALL / "manifest.json").stat()
    result = run("export", SMALL, "--out", exports)
    assert result.returncode == 0
    assert "kept" in result.stdout
    assert (exports / SMALL / "manifest.json").stat() == before


def test_other_arguments_and_damage_need_overwrite(little: ModelSpec, little_artifact: Path, tmp_path: Path) -> None:
    target = shutil.copytree(little_artifact, tmp_path / little.name)
    with pytest.raises(InputError, match=r"other arguments \(seed\): --overwrite"):
        pipeline.export(little, Settings(tmp_path, seed=1))
    (target / "README.md").write_text("changed")
    with pytest.raises(InputError, match="isn't an intact artifact.*--overwrite"):
        pipeline.export(little, Settings(tmp_path))
    assert (target / "README.md").read_text() == "changed"
    exported = pipeline.export(little, Settings(tmp_path, seed=1, overwrite=True))
    assert not exported.kept
    assert verify(target).manifest["weights"]["seed"] == 1
    assert os.listdir(tmp_path) == [little.name]


def test_a_mismatch_of_parameters_stops_the_export(tiny: ModelSpec, tmp_path: Path) -> None:
    reference = catalog.find("stunet-s").reference
    with pytest.raises(ParityError, match="parameter parity failed"):
        pipeline.export(replace(tiny, reference=reference), Settings(tmp_path))
    assert os.listdir(tmp_path) == []


def test_a_failed_numeric_check_writes_nothing(
    little: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The whole pipeline, with a converter that damages the graph on its way out.
    monkeypatch.setattr(steps, "convert", convert_and_damage)
    with pytest.raises(ParityError, match="numeric parity failed"):
        pipeline.export(little, Settings(tmp_path))
    assert os.listdir(tmp_path) == []


def convert_and_damage(conversion: Conversion, progress: Progress) -> Converted:
    converted = convert(conversion, progress)
    path = conversion.path
    model = onnx.load(str(path))
    leaky = next(node for node in model.graph.node if node.op_type == "LeakyRelu")
    leaky.attribute[0].f *= 2
    onnx.save(model, str(path), save_as_external_data=True, location=f"{path.name}.data")
    return converted


@pytest.mark.parametrize("name", ["little", pytest.param("tiny", marks=pytest.mark.slow)])
def test_dynamic_sizes_run_at_other_sizes(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    import onnxruntime

    exported = pipeline.export(request.getfixturevalue(name), Settings(tmp_path, dynamic=True))
    shape = exported.manifest["inputs"][0]["shape"]
    assert [isinstance(size, str) for size in shape] == [True, False, True, True, True]
    assert len({tuple(one["shape"]) for one in exported.manifest["parity"]["inputs"]}) == 2
    session = onnxruntime.InferenceSession(str(exported.folder / "model.onnx"), providers=["CPUExecutionProvider"])
    x = np.zeros((3, 1, 32, 96, 64), np.float32)
    assert session.run(None, {"input": x})[0].shape == (3, 5, 32, 96, 64)


def test_another_shape_is_exported(little: ModelSpec, tmp_path: Path) -> None:
    exported = pipeline.export(little, Settings(tmp_path, shape=(6, 20, 12)))
    assert exported.manifest["inputs"][0]["shape"] == [1, 1, 6, 20, 12]
    assert exported.manifest["outputs"][0]["shape"] == [1, 5, 6, 20, 12]


@pytest.mark.parametrize("spatial", [(32, 32, 32), (64, 64), (64, 64, 33), (0, 64, 64), (-32, 64, 64)])
def test_shapes_that_the_network_cannot_take_are_refused(tiny: ModelSpec, spatial: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="--shape"):
        pipeline.input_shape(tiny, spatial)


def test_a_checkpoint_is_exported_with_its_own_numbers(tiny: ModelSpec, tmp_path: Path) -> None:
    import torch

    from segonnx import models
    from segonnx.models import random_weights

    module = models.build_empty(tiny).module.eval()
    random_weights.randomize(module, 3)
    torch.save({"state_dict": module.state_dict()}, tmp_path / "tiny.model")
    exported = pipeline.export(tiny, Settings(tmp_path / "out", checkpoints=(tmp_path / "tiny.model",)))
    assert exported.manifest["weights"]["source"] == "file tiny.model"
    assert exported.manifest["weights"]["seed"] is None
    initializers = {i.name: i for i in onnx.load(exported.folder / "model.onnx").graph.initializer}
    for name, tensor in module.state_dict().items():
        if name in initializers:
            assert np.array_equal(onnx.numpy_helper.to_array(initializers[name]), tensor.numpy()), name
    assert "seg_outputs.4.weight" in initializers
    assert "seg_outputs.3.weight" not in initializers


@pytest.fixture
def small_disk(tmp_path: Path):  # type: ignore[no-untyped-def]
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", folder], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_said_before_the_work(small_disk: Path) -> None:
    result = run("export", SMALL, "--out", small_disk / "out")
    assert result.returncode == 2
    assert "GB of disk" in result.stderr
    assert os.listdir(small_disk / "out") == []


def test_a_disk_that_fills_up_during_the_work_leaves_nothing(
    tiny: ModelSpec, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "require_disk", lambda *_: None)
    with pytest.raises(ResourceError, match="the disk is full"):
        pipeline.export(tiny, Settings(small_disk / "out"))
    assert os.listdir(small_disk / "out") == []


@pytest.mark.parametrize(
    "step",
    [
        pytest.param("weights.safetensors", marks=pytest.mark.slow),
        pytest.param("model.onnx.data", marks=pytest.mark.slow),
        "artifact/model.onnx",
    ],
)
def test_a_killed_export_leaves_no_artifact_or_a_whole_one(step: str, tmp_path: Path) -> None:
    words = ["export", "encoder-lcnet-100", "--shape", "64,64", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "segonnx", *words]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=ROOT) as export:
        while not list(tmp_path.glob(f".*.partial/{step}")):
            assert export.poll() is None, "the export ended before it could be killed"
            time.sleep(0.01)
        export.send_signal(signal.SIGKILL)
    target = tmp_path / "encoder-lcnet-100"
    assert not target.exists() or verify(target, replay=False)
    # The next export clears away what was left.
    leftovers = [path for path in tmp_path.iterdir() if path != target]
    assert leftovers
    save_file({"of.another.network": np.zeros(1, np.float32)}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError):
        pipeline.export(catalog.find(SMALL), Settings(tmp_path, checkpoints=(tmp_path / "w.safetensors",)))
    assert not any(path.exists() for path in leftovers)


def test_several_exports_go_on_after_a_failure(exports: Path, tmp_path: Path) -> None:
    (tmp_path / "encoder-lcnet-100").mkdir()
    shutil.copytree(exports / SMALL, tmp_path / SMALL)
    result = run("export", "encoder-lcnet-100", SMALL, "--out", tmp_path, "--json", tmp_path / "done.json")
    assert result.returncode == 1
    assert "encoder-lcnet-100: FAILED" in result.stderr
    assert "1 of 2 failed: encoder-lcnet-100" in result.stderr
    assert f"{SMALL}: kept" in result.stdout
    assert [one["name"] for one in json.loads((tmp_path / "done.json").read_text())] == [SMALL]
