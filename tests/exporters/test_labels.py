"""``--output labels``: an artifact that ends in an ArgMax over the classes, from export to bench."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn

import segonnx
from benchmarks import label_output
from segonnx import models, runtimes
from segonnx.artifacts import layout, manifest, packing, testdata
from segonnx.artifacts.verify import verify
from segonnx.bench import run as bench
from segonnx.bench import targets
from segonnx.bench.plan import Settings as BenchSettings
from segonnx.bench.rounds import Rule
from segonnx.core.synthetic_inputs import ParityInput
from segonnx.core.tolerances import labels_of
from segonnx.errors import InputError, ParityError, VerifyError
from segonnx.exporters import outputs, parity, pipeline
from segonnx.exporters.assemble import Converted, Graph
from segonnx.exporters.parity import ParityCheck
from segonnx.exporters.pipeline import Settings
from segonnx.models import random_weights
from segonnx.optimize.labels import LabelsPass
from segonnx.report import rows as formatted
from segonnx.sources import catalog
from segonnx.sources.catalog import ModelSpec
from segonnx.sources.nnunet import model_spec, plans
from segonnx.sources.nnunet.trainers import trained_architecture
from tests import handmade
from tests.bench import fakes
from tests.conftest import message, run

pytestmark = pytest.mark.usefixtures("steps_here")

NAME = "unet-mobilenetv3-small"
CLASSES = 117


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reference system in 2D, by the function for modules."""
    network = models.build_empty(catalog.find(NAME)).finalized()
    random_weights.randomize(network.module, 0)
    torch.manual_seed(0)
    random_weights.initialise(network.module, torch.randn(2, 3, 64, 96))
    path = tmp_path_factory.mktemp("unet") / "unet"
    return segonnx.export(
        network.module, torch.zeros(1, 3, 64, 96), path, result="labels", unused=network.unused
    ).folder


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network of nnU-Net's, in 3D, of enough work to be cut into slices."""
    plan = plans.plan(handmade.plans(), handmade.dataset(4), "3d_fullres", Path("plans.json"))
    architecture = trained_architecture(plan.architecture, "nnUNetTrainer", plan.patch_size)
    network = models.BUILDERS["nnunet"](
        architecture=architecture.name,
        arguments={**architecture.arguments, "features_per_stage": [16, 24, 32]},
        in_channels=1,
        num_classes=5,
    ).finalized()
    random_weights.randomize(network.module, 0)
    x = torch.zeros(1, 1, 16, 48, 48)
    random_weights.initialise(
        network.module, torch.from_numpy(np.random.default_rng(0).standard_normal(x.shape, np.float32))
    )
    path = tmp_path_factory.mktemp("volume") / "volume"
    return segonnx.export(network.module, x, path, result="labels", unused=network.unused).folder


def give(model: onnx.ModelProto, x: np.ndarray, outputs: list[str] | None = None) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(outputs, {session.get_inputs()[0].name: x})


@pytest.mark.parametrize("name", ["unet", "volume"])
def test_the_labels_are_those_of_the_graphs_own_logits(name: str, request: pytest.FixtureRequest) -> None:
    artifact: Path = request.getfixturevalue(name)
    verified = verify(artifact)
    content = verified.manifest
    (x,), (y,) = content["inputs"], content["outputs"]
    classes = CLASSES if name == "unet" else 5
    shape = [x["shape"][0], *x["shape"][2:]]
    assert y == {
        "name": "labels",
        "shape": shape,
        "dtype": "uint8",
        "kind": "labels",
        "classes": classes,
        "decision": "argmax",
    }
    assert content["rewrites"] == ["LabelsPass"]
    before_it = {"unet": "PointwiseHeadPass", "volume": "UnrollDepthPass"}[name]
    assert content["cpu_graph"]["rewrites"][-2:] == [before_it, "LabelsPass"]
    assert content["operators"]["ArgMax"] == content["cpu_graph"]["operators"]["ArgMax"] == 1
    assert content["arguments"]["output"] == "labels"
    assert 0 < content["parity"]["max_rel_error"] < content["parity"]["tolerance"]["max_rel_error"]
    assert str(verified.difference).startswith("labels ")
    model = onnx.load(artifact / "model.onnx")
    logits = onnx.helper.make_tensor_value_info("labels_logits", onnx.TensorProto.FLOAT, None)
    model.graph.output.append(logits)
    for seed in range(3):
        noise = np.random.default_rng(seed).standard_normal(x["shape"], dtype=np.float32)
        found, its_logits = give(model, noise)
        assert its_logits.shape[1] == classes
        assert len(np.unique(found)) > 1
        assert np.array_equal(found, its_logits.argmax(axis=1).astype(np.uint8))
    expected = testdata.read(artifact / "test_data_set_0" / "output_0.pb")
    assert expected.dtype == np.uint8
    assert list(expected.shape) == shape


@pytest.mark.slow  # the parts are tested by fast ones
def test_a_trained_folder_gives_labels_by_the_command_line(tmp_path: Path) -> None:
    trained = handmade.write(tmp_path / "trained", handmade.plans(), handmade.dataset())
    done = run("export", "--nnunet", trained, "--output", "labels", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    (artifact,) = (tmp_path / "out").iterdir()
    content = verify(artifact).manifest
    assert (content["outputs"][0]["name"], content["outputs"][0]["classes"]) == ("labels", 3)
    assert "inference" not in content
    assert [label["name"] for label in content["labels"]] == ["background", "organ_1", "organ_2"]
    assert content["training"]["framework"] == "nnU-Net"


def test_images_are_not_predicted_by_labels(volume: Path, tmp_path: Path) -> None:
    result = run("predict", volume, tmp_path / "a.nii.gz", tmp_path / "b.nii.gz")
    assert result.returncode == 2
    assert "export it with --output logits" in result.stderr


def test_the_card_shows_lines_that_run(unet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = (unet / "README.md").read_text()
    assert "`labels`, uint8, 1 x 64 x 96: the class of each voxel, from 0 to 116" in card
    monkeypatch.chdir(unet)
    scope: dict[str, Any] = {}
    exec(card.split("```python\n")[1].split("```")[0], scope)
    assert (scope["labels"].shape, scope["labels"].dtype) == ((1, 64, 96), np.uint8)


def resealed(artifact: Path, change: Callable[[dict[str, Any]], object] = lambda _: None) -> None:
    """Give the manifest hashes and a digest that fit what is there."""
    content = json.loads((artifact / layout.MANIFEST).read_bytes())
    for name, entry in content["files"].items():
        data = (artifact / name).read_bytes()
        entry.update(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
    change(content)
    (artifact / layout.MANIFEST).write_bytes(manifest.seal(content))


def other_weights(model: onnx.ModelProto) -> None:
    weight = next(one for one in model.graph.initializer if one.name == "head.weight")
    array = np.roll(onnx.numpy_helper.to_array(weight), 1, axis=0)  # each class becomes the next
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))


def the_smallest(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if node.op_type == "ArgMax").op_type = "ArgMin"


@pytest.mark.parametrize("damage", [other_weights, the_smallest])
def test_a_changed_graph_fails_the_replay(
    damage: Callable[[onnx.ModelProto], None], unet: Path, tmp_path: Path
) -> None:
    artifact = shutil.copytree(unet, tmp_path / "unet")
    model = onnx.load(artifact / "model.onnx")
    damage(model)
    onnx.save(model, artifact / "model.onnx")
    resealed(artifact)
    verify(artifact, replay=False)
    with pytest.raises(VerifyError, match=r"the replay of model.onnx differs from the recorded labels: labels \d"):
        verify(artifact)


def test_a_manifest_that_calls_labels_logits_is_found(unet: Path, tmp_path: Path) -> None:
    artifact = shutil.copytree(unet, tmp_path / "unet")
    resealed(artifact, lambda content: [content["outputs"][0].pop(key) for key in ("kind", "classes")])
    with pytest.raises(VerifyError, match="gives uint8, the manifest says logits"):
        verify(artifact)
    resealed(artifact, lambda content: content["outputs"][0].update(kind="labels"))
    with pytest.raises(VerifyError, match="schema"):
        verify(artifact)


def test_logits_and_labels_are_other_arguments(unet: Path, tmp_path: Path) -> None:
    artifact = shutil.copytree(unet, tmp_path / NAME)
    resealed(artifact, lambda content: content["arguments"].update(name=NAME, seed=0))  # as if made by the command line
    command = ("export", NAME, "--shape", "64,96", "--out", tmp_path)
    kept = run(*command, "--output", "labels")
    assert kept.returncode == 0, kept.stderr
    assert "kept" in kept.stdout
    refused = run(*command)
    assert refused.returncode == 2
    assert "made with other arguments (output): --overwrite" in refused.stderr


def test_other_programs_are_told_the_type_and_the_shape(unet: Path, tmp_path: Path) -> None:
    packing.pack(unet, "triton", tmp_path / "triton")
    config = next((tmp_path / "triton").rglob("config.pbtxt")).read_text().split("output")[1]
    for line in ('name: "labels"', "data_type: TYPE_UINT8", "dims: [1, 64, 96]"):
        assert line in config
    packing.pack(unet, "bundle", tmp_path / "bundle")
    data = json.loads((tmp_path / "bundle" / "configs" / "metadata.json").read_bytes())["network_data_format"]
    pred = data["outputs"]["pred"]
    assert (pred["num_channels"], pred["spatial_shape"], pred["dtype"]) == (1, [64, 96], "uint8")
    assert pred["value_range"] == [0, CLASSES - 1]
    assert (data["inputs"]["image"]["num_channels"], data["inputs"]["image"]["spatial_shape"]) == (3, [64, 96])


@pytest.mark.slow  # the bench below compares labels, too, and none differs
@pytest.mark.usefixtures("copied_workers")
def test_a_bench_compares_labels(unet: Path) -> None:
    model = targets.from_artifact(unet, lambda _: None)
    backends = ("ort", "openvino", "mirrored")
    known = {name: runtimes.get(name) for name in backends[:2]} | fakes.KNOWN
    *rows, wrong = bench.bench(
        [model], BenchSettings(backends, (1,), Rule(rounds=1)), None, lambda _: None, known=known
    ).rows
    assert [(row.status, row.compared_with, row.max_abs_error) for row in rows] == [("ok", "recorded", None)] * 2
    assert all(row.label_agreement is not None and row.label_agreement > 0.999 for row in rows)
    assert formatted.error(rows[0]).startswith("labels ")
    assert wrong.status.startswith("its labels differ: labels ")


def test_a_bench_of_labels_beside_logits_is_refused(unet: Path) -> None:
    result = run("bench", "--artifact", unet, "--backend", "eager", "--backend", "compile", "--backend", "ort")
    assert result.returncode == 2
    assert "gives labels, and eager, compile would give logits: time it with --backend ort" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.usefixtures("copied_workers")
def test_a_bench_of_labels_leaves_out_what_would_give_logits(unet: Path) -> None:
    result = run("bench", "--artifact", unet, "--rounds", 1, "--processes", 1, "--no-ceilings")
    assert result.returncode == 0, result.stderr
    said = f"segonnx: {unet}: without eager and compile: it gives labels, and they would give logits"
    assert said in message(result).splitlines()


def test_networks_without_labels_are_refused(tmp_path: Path) -> None:
    result = run("export", "encoder-lcnet-100", "--output", "labels", "--out", tmp_path / "out")
    assert result.returncode == 2
    assert "gives no labels: it is an encoder, whose output isn't one of voxels; export it with" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_classes_that_overlap_are_refused(tiny: ModelSpec, tmp_path: Path) -> None:
    described = handmade.dataset()
    described["labels"] = {"background": 0, "whole": [1, 2], "core": 2}
    described["regions_class_order"] = [1, 2]
    plan = plans.plan(handmade.plans(), described, "3d_fullres", tmp_path)
    regions = replace(tiny, described=model_spec.describe(plan, "nnUNetTrainer", (), ["0"], "final"))
    with pytest.raises(InputError, match="its regions overlap") as caught:
        pipeline.export(regions, Settings(tmp_path / "out", output="labels"))
    assert caught.value.exit_code == 2
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="each with a sigmoid, overlap"):
        outputs.require(replace(tiny, overlapping=True), "labels")
    outputs.require(tiny, "labels")
    outputs.require(replace(tiny, overlapping=True, num_classes=1), "labels")


X = torch.zeros(1, 3, 64, 64)


class Tiny(nn.Module):
    def __init__(self, classes: int, *, pooled: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.pooled = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, classes, 1), pooled

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.head(self.body(x))
        return y.mean((2, 3)) if self.pooled else y


def test_a_module_of_one_class_gives_what_is_above_zero(tmp_path: Path) -> None:
    module = Tiny(1)
    done = segonnx.export(module, X, tmp_path / "binary", result="labels", dynamic=True, output_name="mask")
    (y,) = done.manifest["outputs"]
    assert (y["name"], y["dtype"], y["classes"], len(y["shape"])) == ("mask", "uint8", 2, 3)
    assert all(isinstance(size, str) for size in y["shape"])
    verify(done.folder)
    x = torch.randn(2, 3, 64, 32)
    with torch.inference_mode():
        logits = module(x)[:, 0].numpy()
    (found,) = give(onnx.load(done.folder / "model.onnx"), x.numpy(), ["mask"])
    assert found.shape == logits.shape
    assert np.array_equal(found[abs(logits) > 1e-4], logits[abs(logits) > 1e-4] > 0)
    with pytest.raises(InputError, match="no logits of voxels"):
        segonnx.export(Tiny(3, pooled=True), X, tmp_path / "pooled", result="labels")


@pytest.mark.parametrize(("classes", "dtype"), [(1, "uint8"), (2, "uint8"), (256, "uint8"), (257, "uint16")])
def test_the_pass_takes_the_first_of_the_largest(classes: int, dtype: str) -> None:
    x = np.random.default_rng(0).integers(-2, 3, (2, classes, 3, 4, 5)).astype(np.float32)  # many tie
    value = ir.Value(name="x", shape=ir.Shape(x.shape), type=ir.TensorType(ir.DataType.FLOAT))
    same = ir.node("Identity", [value])
    same.outputs[0].name, same.outputs[0].shape, same.outputs[0].type = "logits", value.shape, value.type
    graph = ir.Graph([value], [same.outputs[0]], nodes=[same], opset_imports={"": 20}, name="g")
    model = ir.Model(graph, ir_version=10)
    LabelsPass("labels")(model)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    (found,) = give(proto, x)
    expected = labels_of(x)
    assert found.dtype == expected.dtype == dtype
    assert np.array_equal(found, expected)
    assert expected.max() == (1 if classes == 1 else x.argmax(1).max())


def test_every_form_that_is_timed_decides_alike() -> None:
    found = label_output.measure((4, 1, 128, 128), 5, 1)
    assert found.keys() > label_output.FORMS.keys()


@pytest.fixture
def put(unet: Path, tmp_path: Path) -> Callable[[], Converted]:
    """The last step of an export, on a graph in ``tmp_path`` that gives logits and has its weights in another file."""
    model = onnx.load(unet / "model.onnx")
    for node in list(model.graph.node)[-2:]:
        model.graph.node.remove(node)
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("labels_logits", 1, [1, CLASSES, 64, 96]))
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    path = artifact / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="model.onnx.data")
    phantom = ParityInput("phantom", (1, 3, 64, 96))
    check = ParityCheck((phantom,), catalog.find(NAME), tmp_path, threads=1)
    (logits,) = parity.run(parity.open_runnable(path, 1)[0], {"input": phantom.make("RGB")})
    np.save(check.saved("model.onnx", 0), labels_of(logits))
    converted = Converted(20, 10, Graph({"Cast": 0}, {}, ("SomePass",)), (), {})
    return lambda: outputs.put(artifact, converted, "labels", "labels", check, lambda _: None)


def test_weights_in_a_file_of_their_own_stay_there(put: Callable[[], Converted], unet: Path, tmp_path: Path) -> None:
    artifact = tmp_path / "artifact"
    before = (artifact / "model.onnx.data").read_bytes()
    converted = put()
    assert (converted.plain.rewrites, converted.outputs) == (("SomePass", "LabelsPass"), ("labels",))
    assert converted.plain.operators == manifest.read(unet)["operators"]
    assert (artifact / "model.onnx.data").read_bytes() == before
    assert sorted(path.name for path in artifact.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert (artifact / "model.onnx").stat().st_size < len(before)
    x = np.random.default_rng(0).standard_normal((1, 3, 64, 96), dtype=np.float32)
    (found,) = give(onnx.load(artifact / "model.onnx"), x)
    assert np.array_equal(found, give(onnx.load(unet / "model.onnx"), x)[0])


def test_a_label_that_is_not_its_logits_is_a_parity_error(
    put: Callable[[], Converted], monkeypatch: pytest.MonkeyPatch
) -> None:
    call = LabelsPass.call

    def wrong(self: LabelsPass, model: ir.Model) -> ir.passes.PassResult:
        result = call(self, model)
        next(node for node in model.graph if node.op_type == "ArgMax").op_type = "ArgMin"
        return result

    monkeypatch.setattr(LabelsPass, "call", wrong)
    with pytest.raises(ParityError, match="other labels than those of its logits"):
        put()
