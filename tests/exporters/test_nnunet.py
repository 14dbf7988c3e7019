"""Folders that nnU-Net trained: hand-made ones for every variant and mistake, real ones for equality with nnU-Net."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from segonnx import models
from segonnx.artifacts.verify import verify
from segonnx.errors import CheckpointError, InputError
from segonnx.exporters import manifest_entries, nnunet, pipeline
from segonnx.exporters.nnunet import PlansFrom, Selection, Trained
from segonnx.exporters.pipeline import Settings
from segonnx.predict.predictor import Artifact
from segonnx.sources.nnunet.folder import find_checkpoints, locate
from tests import handmade, nnunet_folders
from tests.conftest import ROOT, message, run

pytestmark = pytest.mark.usefixtures("steps_here")

TOTAL = "Dataset297_TotalSegmentator_total_3mm_1559subj"
TOTAL_TRAINER = "nnUNetTrainer_4000epochs_NoMirroring"
COMMON = handmade.plans()["configurations"]["3d_fullres"].keys()
"""What a configuration says; the plans say the rest."""


def _read(
    folder: Path, fold: str | None = None, configuration: str | None = None, plans_from: PlansFrom = "folder"
) -> list[Trained]:
    """``nnunet.trained`` without the start of a process."""
    model = locate(folder, configuration)
    checkpoints = find_checkpoints(model, fold, "final")
    selection = Selection(fold, configuration=configuration, plans_from=plans_from)
    return nnunet.read(model, checkpoints, selection, lambda _: None)


def _answer(artifact: Path, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(artifact / "model.onnx"), providers=["CPUExecutionProvider"])
    logits: np.ndarray = session.run(["logits"], {"input": x})[0]
    return logits


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained folder with two folds and one of all data; tests leave it as it is."""
    root = tmp_path_factory.mktemp("results")
    return handmade.write(root, handmade.plans(), handmade.dataset(), folds=("0", "1", "all"))


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A copy of the trained folder, to do with as one likes."""
    target = tmp_path / folder.parent.name / folder.name
    shutil.copytree(folder, target)
    return target


def test_a_folder_of_totalsegmentator_is_exported_with_its_classes_and_licence(tmp_path: Path) -> None:
    folder = handmade.write(
        tmp_path, handmade.plans(TOTAL, old=True), handmade.dataset(117), trainer=TOTAL_TRAINER, mirror_axes=None
    )
    out = tmp_path / "artifacts"
    result = run("export", "--nnunet", folder.parent, "--fold", 0, "--out", out, "--json", tmp_path / "done.json")
    assert result.returncode == 0, result.stderr
    assert "parameters as in the checkpoint" in result.stdout
    artifact = out / f"{TOTAL}-{TOTAL_TRAINER}__nnUNetPlans__3d_fullres-fold_0"
    manifest = verify(artifact).manifest
    assert manifest["weights"]["source"] == "file fold_0/checkpoint_final.pth"
    assert manifest["weights"]["licence"] == "apache-2.0"
    assert manifest["labels"][5] == {"name": "liver", "value": 5, "labels": [5]}
    assert len(manifest["labels"]) == 118
    assert manifest["inference"]["mirror_axes"] == []
    assert manifest["training"]["task"] == "total"
    card = (artifact / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "5 liver" in card
    _run_the_documents_example(artifact)
    # Counted once each, though the file names the encoder's twice.
    parameters = manifest["parameters"]
    state = torch.load(folder / "fold_0" / "checkpoint_final.pth", weights_only=False)["network_weights"]
    storages = {tensor.data_ptr(): tensor.numel() for tensor in state.values()}
    assert parameters["count"] == parameters["reference"] == sum(storages.values())
    assert parameters["count"] == parameters["used"] + parameters["unused"]
    assert parameters["unused_reasons"] == {models.nnunet.DEEP_SUPERVISION: 118 * 8 + 118}


def _run_the_documents_example(artifact: Path) -> None:
    """The Python in docs/nnunet.md, on this artifact."""
    text = (ROOT / "docs" / "nnunet.md").read_text("utf-8")
    code = text.split("```python\n")[1].split("```")[0]
    line = next(line for line in code.splitlines() if line.startswith("folder = "))
    names: dict[str, Any] = {}
    exec(code.replace(line, f"folder = {str(artifact)!r}"), names)
    assert names["labels"].shape == (8, 16, 24)


def test_the_manifest_holds_all_that_inference_needs(folder: Path) -> None:
    (one, *_) = _read(folder, "0")
    described = one.spec.described
    json.dumps(described)
    preprocessing = described["preprocessing"]
    assert preprocessing["image_reader_writer"] == "SimpleITKIO"
    assert preprocessing["transpose_forward"] == [2, 0, 1]
    assert preprocessing["transpose_backward"] == [1, 2, 0]
    assert preprocessing["crop"] == "nonzero"
    assert preprocessing["channels"] == [
        {
            "name": "CT",
            "normalization": "CTNormalization",
            "use_mask": False,
            "intensities": handmade.plans()["foreground_intensity_properties_per_channel"]["0"],
        }
    ]
    assert preprocessing["spacing"] == [3.0, 1.5, 1.5]
    assert preprocessing["resampling"]["data"]["arguments"] == {
        "is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None,
    }  # fmt: skip
    assert preprocessing["previous_stage"] is None
    assert described["inference"] == {
        "patch_size": [8, 16, 24],
        "tile_step_size": 0.5,
        "gaussian_sigma_scale": 0.125,
        "mirror_axes": [0, 1, 2],
        "nonlin": "softmax",
        "regions": False,
        "ignore_label": None,
    }
    assert described["training"] == {
        "framework": "nnU-Net", "dataset": "Dataset999_Hand", "trainer": "nnUNetTrainer",
        "plans": "nnUNetPlans", "configuration": "3d_fullres", "folds": ["0"], "checkpoint": "final", "task": None,
    }  # fmt: skip


def test_each_fold_is_an_artifact_of_its_own(folder: Path) -> None:
    every = nnunet.trained(folder)
    assert [one.checkpoints[0].parent.name for one in every] == ["fold_0", "fold_1", "fold_all"]
    assert len({one.spec.name for one in every}) == 3


@pytest.mark.slow
def test_an_ensemble_is_the_mean_of_its_folds(folder: Path, tmp_path: Path) -> None:
    every = nnunet.trained(folder)
    (ensemble,) = nnunet.trained(folder, Selection("ensemble"))
    assert [path.parent.name for path in ensemble.checkpoints] == ["fold_0", "fold_1"]
    exported = pipeline.export(ensemble.spec, Settings(tmp_path, checkpoints=ensemble.checkpoints))
    parameters = exported.manifest["parameters"]
    single = every[0].spec.reference
    assert single is not None
    assert parameters["count"] == parameters["reference"] == 2 * single.parameters
    assert exported.manifest["macs"] == 2 * single.macs
    assert exported.manifest["training"]["folds"] == ["0", "1"]
    assert exported.manifest["cpu_graph"]["rewrites"] == ["StableInstanceNormPass"]  # of so little work
    x = np.random.default_rng(1).standard_normal((1, 1, 8, 16, 24), dtype=np.float32)
    outputs = []
    for one in every[:2]:
        network = models.build(one.spec).module.eval()
        content = torch.load(one.checkpoints[0], weights_only=False)
        network.load_state_dict(content["network_weights"])
        with torch.inference_mode():
            outputs.append(network(torch.from_numpy(x)).numpy())
    expected = np.mean(outputs, axis=0)
    assert np.abs(outputs[0] - outputs[1]).max() > 0.5 * expected.std()
    assert np.abs(_answer(exported.folder, x) - expected).max() < 1e-4 * expected.std()


def test_sizes_are_multiples_of_the_strides_of_each_axis(folder: Path) -> None:
    (one,) = _read(folder, "0")
    assert one.spec.divisors == (2, 4, 4)
    with pytest.raises(InputError, match="multiples of 2,4,4 along the axes; --shape has 18"):
        pipeline.input_shape(one.spec, (6, 18, 24))
    with pytest.raises(InputError, match="more than one voxel at its deepest level"):
        pipeline.input_shape(one.spec, (2, 4, 4))
    assert pipeline.input_shape(one.spec, (6, 20, 24)) == (1, 1, 6, 20, 24)


@pytest.mark.slow
def test_open_sizes_run_at_other_sizes(folder: Path, tmp_path: Path) -> None:
    (one,) = _read(folder, "0")
    exported = pipeline.export(one.spec, Settings(tmp_path, checkpoints=one.checkpoints, dynamic=True))
    x = np.zeros((2, 1, 6, 20, 12), np.float32)
    assert _answer(exported.folder, x).shape == (2, 3, 6, 20, 12)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ResidualEncoderUNet", "ResidualUNet", "Primus", "PrimusV2", "PrimusV3"])
def test_every_network_that_a_plan_may_name_is_exported(name: str, tmp_path: Path) -> None:
    planned = handmade.plans()
    chosen = planned["configurations"]["3d_fullres"]
    chosen["patch_size"] = [16, 16, 32]
    chosen["architecture"]["network_class_name"] = f"dynamic_network_architectures.architectures.any.{name}"
    if name.startswith("Primus"):
        chosen["architecture"]["arch_kwargs"] = {
            "embed_dim": 72, "eva_depth": 2, "eva_numheads": 2, "patch_embed_size": [8, 8, 8],
            "input_shape": [16, 16, 32], "init_values": 0.1, "scale_attn_inner": True,
        }  # fmt: skip
    else:
        arguments = chosen["architecture"]["arch_kwargs"]
        arguments["n_blocks_per_stage"] = arguments.pop("n_conv_per_stage")
    folder = handmade.write(tmp_path, planned, handmade.dataset())
    (one,) = _read(folder)
    exported = pipeline.export(one.spec, Settings(tmp_path / "artifacts", checkpoints=one.checkpoints))
    parameters = exported.manifest["parameters"]
    assert parameters["count"] == parameters["reference"]


def test_a_changed_plan_makes_another_artifact(copy: Path) -> None:
    (before,) = _read(copy, "0")
    planned = handmade.plans()
    planned["configurations"]["3d_fullres"]["spacing"] = [2.0, 1.0, 1.0]
    (copy / "plans.json").write_text(json.dumps(planned))
    _strip(copy / "fold_0" / "checkpoint_final.pth")
    (after,) = _read(copy, "0")
    digests = [
        manifest_entries.arguments(
            network.spec,
            Settings(Path(), checkpoints=network.checkpoints),
            network.spec.input_shape,
            random_weights=False,
        )
        for network in (before, after)
    ]
    assert digests[0]["plans_sha256"] != digests[1]["plans_sha256"]


def _strip(path: Path, **changes: Any) -> None:
    """Take the plans out of a checkpoint, as some published ones have none."""
    content = torch.load(path, weights_only=False)
    del content["init_args"]["plans"]
    torch.save(content | changes, path)


def test_a_checkpoint_of_another_configuration_is_refused(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "Dataset001" / "nnUNetTrainer__nnUNetPlans__2d")
    with pytest.raises(InputError, match="was trained as 3d_fullres, but lies in a folder of 2d"):
        _read(other, "0")
    with pytest.raises(InputError, match="was trained as 3d_fullres, not 2d"):
        _read(folder, "0", "2d")


def _change(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | changes))


def test_a_mixed_up_folder_is_refused(copy: Path) -> None:
    checkpoint = copy / "fold_0" / "checkpoint_final.pth"
    saved = torch.load(checkpoint, weights_only=False)
    _change(copy / "dataset.json", labels={"background": 0, "kidney": 1})
    _strip(checkpoint)
    with pytest.raises(CheckpointError, match=r"isn't of the network .*seg_layers.*nnUNetTrainer trained it"):
        _read(copy, "0")
    _change(copy / "dataset.json", **handmade.dataset())
    torch.save(saved | {"inference_allowed_mirroring_axes": (3,)}, checkpoint)
    with pytest.raises(CheckpointError, match="aren't axes of a network"):
        _read(copy, "0")
    torch.save(saved | {"init_args": {}}, checkpoint)
    with pytest.raises(CheckpointError, match="it holds no init_args/configuration"):
        _read(copy, "0")
    torch.save({"state_dict": saved["network_weights"]}, checkpoint)
    with pytest.raises(CheckpointError, match="it holds no network_weights"):
        _read(copy, "0")
    torch.save(saved | {"trainer_name": "nnUNetTrainerNoMirroring"}, checkpoint)
    with pytest.raises(InputError, match="don't go together"):
        _read(copy, "ensemble")


def test_edited_plans_are_taken_as_nnunet_takes_them_and_told(copy: Path, tmp_path: Path) -> None:
    planned = handmade.plans()
    planned["configurations"]["3d_fullres"]["patch_size"] = [8, 16, 16]
    (copy / "plans.json").write_text(json.dumps(planned))
    _change(copy / "dataset.json", labels={"background": 0, "kidney": 1, "liver": 2})
    done = run("export", "--nnunet", copy, "--fold", "0", "--optimize", "none", "--out", tmp_path / "folder")
    assert done.returncode == 0, done.stderr
    line = (
        "segonnx: fold_0: plans.json or dataset.json was changed after the training: patch_size (trained with "
        "(8, 16, 24), now (8, 16, 16)), outputs; the changed files are taken, as nnU-Net does (--plans-from checkpoint "
        "takes the others)"
    )
    assert message(done).splitlines() == [line]
    (artifact,) = (tmp_path / "folder").iterdir()
    manifest = verify(artifact).manifest
    assert manifest["inference"]["patch_size"] == [8, 16, 16]
    assert [label["name"] for label in manifest["labels"]] == ["background", "kidney", "liver"]
    assert manifest["training"]["edited"] == ["patch_size", "outputs"]
    assert "> **Edited plans.** These were changed after the training" in (artifact / "README.md").read_text()

    (one,) = _read(copy, "0", plans_from="checkpoint")
    assert one.notes == () and "edited" not in one.spec.described["training"]
    assert one.spec.input_shape == (1, 1, 8, 16, 24)
    assert [label["name"] for label in one.spec.described["labels"]] == ["background", "organ_1", "organ_2"]
    (both,) = _read(copy, "ensemble")
    assert len(both.notes) == 2 and both.spec.described["training"]["edited"] == ["patch_size", "outputs"]

    planned["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["nonlin"] = "torch.nn.ReLU"
    (copy / "plans.json").write_text(json.dumps(planned))
    with pytest.raises(InputError, match="trained as another network than .*--plans-from checkpoint"):
        _read(copy, "0")
    assert _read(copy, "0", plans_from="checkpoint")
    _strip(copy / "fold_0" / "checkpoint_final.pth")
    with pytest.raises(InputError, match="holds no plans that can be read"):
        _read(copy, "0", plans_from="checkpoint")


@pytest.mark.parametrize("fold", ["ensemble", "0,1"])
def test_folds_that_were_trained_with_other_plans_are_not_averaged(fold: str, copy: Path) -> None:
    path = copy / "fold_1" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    checkpoint["init_args"]["plans"]["configurations"]["3d_fullres"]["patch_size"] = [8, 16, 16]
    torch.save(checkpoint, path)
    assert _read(copy, fold)  # by the folder's plans, which are one
    with pytest.raises(InputError, match="they differ in their plans"):
        _read(copy, fold, plans_from="checkpoint")


def _intensities(**changed: float) -> dict[str, Any]:
    key = "foreground_intensity_properties_per_channel"
    return {key: {"0": handmade.plans()[key]["0"] | changed}}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"preprocessor_name": "MyPreprocessor"},
            "the preprocessor is 'MyPreprocessor'; segonnx predict knows Default",
        ),
        ({"normalization_schemes": ["MyNormalization"]}, "the normalization is 'MyNormalization'"),
        ({"resampling_fn_data": "my_resampling"}, "the resampling of data is 'my_resampling'"),
        ({"resampling_fn_seg_kwargs": {"magic": 1}}, "resamples seg, takes no argument 'magic'"),
        ({"resampling_fn_probabilities_kwargs": {"order": 3}}, "order = 3; segonnx predict takes 0 or 1 for logits"),
        ({"resampling_fn_probabilities": "no_resampling_hack"}, "the logits aren't resampled back"),
        ({"image_reader_writer": "MyIO"}, "the image_reader_writer is 'MyIO'"),
        ({"foreground_intensity_properties_per_channel": {}}, "missing or no numbers are mean, std, percentile_00_5"),
        (
            {"foreground_intensity_properties_per_channel": {"0": {"mean": float("nan"), "std": 1}}},
            "missing or no numbers are mean, percentile_00_5, percentile_99_5",
        ),
        (_intensities(std=-1.0), "by std -1, from -700 to 250: no such intensities can be"),
        (_intensities(percentile_99_5=-701.0), "from -700 to -701: no such"),
    ],
)
def test_what_predict_would_refuse_is_refused_at_export(
    change: dict[str, Any], reason: str, copy: Path, tmp_path: Path
) -> None:
    planned = handmade.plans()
    planned["configurations"]["3d_fullres"] |= {key: value for key, value in change.items() if key in COMMON}
    planned |= {key: value for key, value in change.items() if key not in COMMON}
    (copy / "plans.json").write_text(json.dumps(planned))
    _strip(copy / "fold_0" / "checkpoint_final.pth")
    command = ["export", "--nnunet", copy, "--fold", "0", "--out", tmp_path / "out"]
    done = run(*command)
    assert done.returncode == 2, done.stderr
    assert reason in message(done) and "--allow-network-only" in message(done) and "\n" not in message(done)
    assert not (tmp_path / "out").exists()
    if not change.keys() & {"preprocessor_name", "foreground_intensity_properties_per_channel"}:
        return
    done = run(*command, "--allow-network-only", "--optimize", "none")
    assert done.returncode == 0, done.stderr
    (artifact,) = (tmp_path / "out").iterdir()
    assert reason in verify(artifact).manifest["network_only"]
    assert "> **The network alone.** `segonnx predict` can't prepare" in (artifact / "README.md").read_text()
    refused = run("predict", artifact, copy, tmp_path / "labels")
    assert refused.returncode == 2 and reason in message(refused)


def test_a_zip_file_of_nnunets_is_read_as_it_is(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.zip"
    _zip_as_nnunet(copy, path)
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    done = run("export", "--nnunet", path, "--fold", "0", "--optimize", "none", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    (artifact,) = (tmp_path / "out").iterdir()
    assert artifact.name == "Dataset999_Hand-nnUNetTrainer__nnUNetPlans__3d_fullres-fold_0"
    (from_folder,) = _read(copy, "0")
    manifest = verify(artifact).manifest
    assert all(manifest[key] == value for key, value in from_folder.spec.described.items())
    assert manifest["weights"]["source"] == "file fold_0/checkpoint_final.pth"
    done = run("export", "--nnunet", path, "--fold", "4", "--out", tmp_path / "none")
    assert done.returncode == 2
    assert f"{path}/Dataset999_Hand/nnUNetTrainer__nnUNetPlans__3d_fullres has no fold_4" in done.stderr
    assert not list((tmp_path / "scratch").glob("segonnx-*"))


def _zip_as_nnunet(folder: Path, path: Path) -> None:
    """By nnU-Net's own function."""
    root = folder.parents[1]
    for fold in folder.glob("fold_*"):
        (fold / "progress.png").write_bytes(b"a picture")
        (fold / "validation").mkdir()
        (fold / "validation" / "summary.json").write_text("{}")
    (folder / "dataset_fingerprint.json").write_text("{}")
    (root / "raw" / folder.parent.name).mkdir(parents=True)
    code = (
        "import sys\nfrom nnunetv2.model_sharing.model_export import export_pretrained_model\n"
        "export_pretrained_model(sys.argv[1], sys.argv[2], configurations=('3d_fullres',), folds=(0, 1, 'all'))"
    )
    env = {**os.environ, "nnUNet_results": str(root), "nnUNet_raw": str(root / "raw"), "nnUNet_preprocessed": str(root)}
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, folder.parent.name, str(path)],
        check=True, capture_output=True, env=env,
    )  # fmt: skip


# STU-Net's own trainer, which lies in its repository: the facts are its network's names and strides.


@pytest.mark.parametrize(
    ("trainer", "old", "strides", "expected"),
    [
        pytest.param("STUNetTrainer_small_ft", False, [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
                     [[1, 2, 2], [2, 2, 2], [1, 1, 1], [1, 1, 1], [1, 1, 1]], marks=pytest.mark.slow),
        ("STUNetTrainer", True, [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 1], [2, 1, 1], [2, 2, 2]],
         [[1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 1], [2, 1, 1]]),
    ],
)  # fmt: skip
def test_a_folder_of_stunets_trainer_is_exported_with_its_whole_inference(
    trainer: str, old: bool, strides: list[list[int]], expected: list[list[int]], tmp_path: Path
) -> None:
    planned = handmade.plans(old=old)
    configuration = planned["configurations"]["3d_fullres"]
    stages = len(strides)
    if old:
        configuration |= {
            "pool_op_kernel_sizes": strides, "conv_kernel_sizes": [[3, 3, 3]] * stages,
            "n_conv_per_stage_encoder": [2] * stages, "n_conv_per_stage_decoder": [2] * (stages - 1),
        }  # fmt: skip
    else:
        configuration["architecture"]["arch_kwargs"]["strides"] = strides
    configuration["patch_size"] = [16, 32, 16]
    torch.manual_seed(0)
    network = models.stunet.STUNet(depth=1, width=4, num_classes=3, strides=expected).eval()
    folder = tmp_path / "Dataset999_Hand" / f"{trainer}__nnUNetPlans__3d_fullres"
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(planned))
    (folder / "dataset.json").write_text(json.dumps(handmade.dataset()))
    content = {
        "network_weights": network.state_dict(),
        "trainer_name": trainer,
        "inference_allowed_mirroring_axes": (0, 1, 2),
        "init_args": {"plans": planned, "dataset_json": handmade.dataset(), "configuration": "3d_fullres"},
    }
    torch.save(content, folder / "fold_0" / "checkpoint_final.pth")
    done = run("export", "--nnunet", folder, "--out", tmp_path / "out", *(["--optimize", "none"] if old else []))
    assert done.returncode == 0, done.stderr
    (artifact,) = (tmp_path / "out").iterdir()
    manifest = verify(artifact).manifest
    assert manifest["source"] == "nnU-Net STU-Net, 3d_fullres of Dataset999_Hand"
    assert manifest["parameters"]["unused"] == sum(
        tensor.numel() for name, tensor in network.state_dict().items() if re.match(r"seg_outputs\.[0-3]", name)
    )
    x = np.random.default_rng(0).standard_normal((1, 1, 16, 32, 16), dtype=np.float32)
    with torch.inference_mode():
        wanted = network(torch.from_numpy(x)).numpy()
    assert np.abs(_answer(artifact, x) - wanted).max() < 1e-3 * wanted.std()
    labels = Artifact(artifact).predict(np.random.default_rng(1).normal(0, 200, (18, 34, 20)), (3.0, 1.5, 1.5))
    assert labels.shape == (18, 34, 20)


def test_a_checkpoint_of_another_network_than_stunets_is_refused(copy: Path) -> None:
    checkpoint = copy / "fold_0" / "checkpoint_final.pth"
    content = torch.load(checkpoint, weights_only=False)
    content["network_weights"] = models.stunet.STUNet(depth=1, width=4, num_classes=3).state_dict()
    torch.save({**content, "trainer_name": "nnUNetTrainer"}, checkpoint)
    with pytest.raises(CheckpointError, match="isn't of the network that the plans describe"):
        _read(copy, "0")
    del content["network_weights"]["conv_blocks_context.3.0.conv1.bias"]
    torch.save({**content, "trainer_name": "STUNetTrainer_base"}, checkpoint)
    with pytest.raises(CheckpointError, match="conv_blocks_context.3.0.conv1.bias: missing"):
        _read(copy, "0")


def test_tensors_that_are_one_must_not_differ(copy: Path) -> None:
    checkpoint = copy / "fold_0" / "checkpoint_final.pth"
    content = torch.load(checkpoint, weights_only=False)
    weights = {name: tensor.clone() for name, tensor in content["network_weights"].items()}
    torch.save(content | {"network_weights": weights}, checkpoint)
    (apart,) = _read(copy, "0")  # stored apart, alike
    assert apart.spec.reference is not None
    name = next(name for name in weights if name.startswith("decoder.encoder.") and name.endswith(".weight"))
    weights[name] += 1
    torch.save(content | {"network_weights": weights}, checkpoint)
    with pytest.raises(CheckpointError, match="are one tensor of the network, and differ"):
        _read(copy, "0")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fold", "5"], "has no fold_5"),
        (["--fold", "first"], "--fold takes a number, all or ensemble"),
        (["--configuration", "2d"], "was trained as 3d_fullres, not 2d"),
        (["stunet-s"], "--nnunet FOLDER says which network it is"),
        (["--shape", "8,16,17"], "multiples of 2,4,4"),
    ],
)
def test_wrong_use_is_one_line(folder: Path, arguments: list[str], message: str, tmp_path: Path) -> None:
    result = run("export", "--nnunet", folder, *arguments, "--out", tmp_path / "out")
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_options_of_a_folder_need_one(tmp_path: Path) -> None:
    result = run("export", "stunet-s", "--fold", "0", "--out", tmp_path / "out")
    assert result.returncode == 2
    assert "--fold goes with --nnunet FOLDER" in result.stderr
    result = run("export", "stunet-s", "--plans-from", "folder", "--allow-network-only", "--out", tmp_path / "out")
    assert result.returncode == 2
    assert "--plans-from and --allow-network-only go with --nnunet FOLDER" in result.stderr


def test_a_plan_that_names_code_runs_none(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trap.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'it ran')!r})\nTrap = object\n")
    planned = handmade.plans()
    planned["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["norm_op"] = "trap.Trap"
    (copy / "plans.json").write_text(json.dumps(planned))
    monkeypatch.syspath_prepend(tmp_path)
    result = run("export", "--nnunet", copy, "--out", tmp_path / "out")
    assert result.returncode == 2
    assert "norm_op: 'trap.Trap' is not one of" in result.stderr
    assert not (tmp_path / "it ran").exists()
    importlib.import_module("trap")  # which can be imported
    del sys.modules["trap"]
    assert (tmp_path / "it ran").exists()


# Real folders: nnU-Net plans, preprocesses and trains; its own predictor is what the artifact is held against. It is so
# in predict/test_as_nnunet.py, too, for folders that nobody trained: those are made in no time.

needs_nnunet = pytest.mark.skipif(
    importlib.util.find_spec("nnunetv2") is None, reason="nnunetv2 isn't installed: pip install 'segonnx[dev]'"
)


@needs_nnunet
@pytest.mark.parametrize(
    ("kind", "folds"),
    [
        pytest.param("plain", ("ensemble",), marks=pytest.mark.slow),
        pytest.param("regions", (), marks=pytest.mark.slow),
        pytest.param("plain", (), marks=pytest.mark.slow),
        pytest.param("flat", (), marks=pytest.mark.slow),
        pytest.param("residual", (), marks=pytest.mark.slow),
        pytest.param("batchnorm", (), marks=pytest.mark.slow),
        pytest.param("cascade", (), marks=pytest.mark.slow),
    ],
)
def test_artifacts_agree_with_nnunets_own_predictor(kind: str, folds: tuple[str, ...], tmp_path: Path) -> None:
    rows = nnunet_folders.agree(kind, tmp_path, folds)
    assert len(rows) == (1 if folds else {"plain": 2, "cascade": 2}.get(kind, 1))
    for found in rows:
        assert found["labels"] > 1, "nnU-Net predicts one label: nothing is compared"
        assert found["max_error"] < 1e-3
        assert found["agreement_float32"] > 0.9999
        # nnU-Net rounds each fold's windows to float16; the mean in one graph is rounded once.
        assert found["agreement"] > (0.99 if found["fold"] == "ensemble" else 0.999)
        assert found["dice"] > 0.99
    manifest = json.loads(Path(rows[-1]["artifact"], "manifest.json").read_text())
    _require_described(kind, manifest)


def _require_described(kind: str, manifest: dict[str, Any]) -> None:
    """What nnU-Net itself wrote is in the manifest."""
    one = nnunet_folders.KINDS[kind]
    preprocessing, inference = manifest["preprocessing"], manifest["inference"]
    channels = preprocessing["channels"]
    assert [channel["name"] for channel in channels] == list(one.channels)
    schemes = {"CT": "CTNormalization", "noNorm": "NoNormalization", "rgb_to_0_1": "RGBTo01Normalization"}
    expected = [schemes.get(channel, "ZScoreNormalization") for channel in one.channels]
    assert [channel["normalization"] for channel in channels] == expected
    assert all(
        {"mean", "std", "percentile_00_5", "percentile_99_5"} <= channel["intensities"].keys() for channel in channels
    )
    assert manifest["training"]["trainer"] == one.trainer
    assert manifest["training"]["dataset"] == nnunet_folders.name(kind)
    if kind == "plain":
        assert manifest["training"]["folds"] == ["0", "1"]
        assert inference["mirror_axes"] == [0, 1, 2]
        assert "StableInstanceNormPass" in manifest["cpu_graph"]["rewrites"]
    if kind == "regions":
        assert manifest["labels"] == [
            {"name": "whole", "value": 1, "labels": [1, 2]},
            {"name": "core", "value": 2, "labels": [2]},
        ]
        assert (inference["nonlin"], inference["regions"], inference["ignore_label"]) == ("sigmoid", True, 3)
        assert inference["mirror_axes"] == []
        assert len(inference["patch_size"]) == 2
    if kind == "cascade":
        assert manifest["inputs"][0]["shape"][1] == 3  # CT, organ, lesion
        assert preprocessing["previous_stage"] == {"configuration": "3d_lowres", "labels": [1, 2]}
