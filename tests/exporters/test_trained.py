"""What users trained with timm, smp and STU-Net: exported, and held against the library that wrote it."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file

from segonnx import models
from segonnx.artifacts.verify import verify
from segonnx.exporters import pipeline
from segonnx.exporters.pipeline import Settings
from segonnx.exporters.prepare import Weights, adapt, network_with_weights
from segonnx.models import random_weights
from segonnx.sources import catalog
from segonnx.sources.catalog import ModelSpec
from tests.conftest import SMALL, message, run

pytestmark = pytest.mark.usefixtures("steps_here")

TIMM = [spec.name for spec in catalog.systems() if spec.builder == "timm_encoder"]
UNETS = [spec.name for spec in catalog.systems() if spec.builder == "timm_unet"]
OFFLINE = {"HF_HUB_OFFLINE": "1"}


@pytest.fixture(autouse=True)
def seed() -> None:
    """Inputs are the same each time: a tiny network at its deepest level may blow the rounding of some up."""
    torch.manual_seed(0)


def _scaled(module: torch.nn.Module, x: torch.Tensor) -> torch.nn.Module:
    """Weights as a training leaves them: no two alike, logits of a sensible size."""
    random_weights.randomize(module, 5)
    random_weights.initialise(module, x)
    for norm in module.modules():  # a channel that few pixels hardly moved would blow rounding up
        if isinstance(norm, torch.nn.BatchNorm2d) and norm.running_var is not None:
            norm.running_var.clamp_(min=0.25)
    return module.eval()


def _inputs(channels: int) -> torch.Tensor:
    """Noise and a flat image, so that statistics fit both."""
    return torch.cat((torch.randn(3, channels, 128, 96), torch.full((1, channels, 128, 96), 0.5)))


def _agree(folder: Path, module: torch.nn.Module, x: torch.Tensor) -> tuple[float, float]:
    """The largest error of the artifact's logits, relative to their spread, and the fraction of equal labels."""
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    with torch.inference_mode():
        expected = module(x).numpy()
    assert found.shape == expected.shape
    error = float(np.abs(found - expected).max() / expected.std())
    agreement = float((found.argmax(1) == expected.argmax(1)).mean())
    print(f"{folder.name}: max {error:.1e} of std, labels {100 * agreement:.4f} %")
    assert error < 2e-3
    assert agreement > 0.999
    return error, agreement


def _export(*arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    result = run("export", *arguments, env=None if env is None else {**os.environ, **env})
    assert result.returncode == 0, result.stderr
    return result


def _timm_checkpoint(name: str, path: Path, kind: str) -> torch.nn.Module:
    """A file as timm's training writes it, and the module that timm makes of it."""
    import timm

    encoder = catalog.find(name).options["encoder"]
    module = _scaled(timm.create_model(encoder, num_classes=10, in_chans=1), _inputs(1))
    state = module.state_dict()
    if kind == "safetensors":
        save_file(state, path)
    else:
        stale = {key: torch.zeros_like(tensor) for key, tensor in state.items()}
        parallel = {f"module.{key}": tensor for key, tensor in state.items()}
        arguments = argparse.Namespace(model=encoder, lr=0.1, mean=[0.5])
        torch.save(
            {"epoch": 3, "arch": encoder, "state_dict": stale, "state_dict_ema": parallel, "optimizer": {},
             "version": 2, "args": arguments, "metric": np.float64(0.7)}, path,
        )  # fmt: skip
    return timm.create_model(encoder, num_classes=10, in_chans=1, checkpoint_path=str(path)).eval()


def _check_timm(name: str, kind: str, folder: Path, *options: object) -> None:
    path = folder / ("w.safetensors" if kind == "safetensors" else "checkpoint.pth.tar")
    module = _timm_checkpoint(name, path, kind)
    _export(name, "--weights", path, "--out", folder, "--shape", "128,96", *options)
    manifest = verify(folder / name, replay=False).manifest
    assert manifest["outputs"][0]["shape"] == [1, 10]
    assert manifest["inputs"][0]["shape"] == [1, 1, 128, 96]
    assert manifest["parameters"]["reference"] is None
    assert manifest["weights"]["source"] == f"file {path.name}"
    assert "trusted" not in manifest["weights"]
    _agree(folder / name, module, torch.randn(1, 1, 128, 96))


@pytest.mark.parametrize("kind", ["training", "safetensors"])
def test_a_timm_checkpoint_loads_as_timm_loads_it(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"w.{kind}"
    module = _timm_checkpoint(SMALL, path, kind)
    weights = Weights((path,))
    spec = adapt(catalog.find(SMALL), weights, lambda _: None)
    network = network_with_weights(spec, weights, lambda _: None)
    x = torch.randn(1, 1, 64, 96)
    with torch.inference_mode():
        assert torch.equal(network.module(x), module(x))


@pytest.mark.slow  # the same for each of timm's systems
@pytest.mark.parametrize("kind", ["training", "safetensors"])
@pytest.mark.parametrize("name", TIMM)
def test_every_timm_checkpoint_agrees_with_timm(name: str, kind: str, tmp_path: Path) -> None:
    _check_timm(name, kind, tmp_path)


@pytest.mark.slow  # four exports
@pytest.mark.parametrize("name", UNETS)
def test_every_unet_checkpoint_agrees_with_its_network(name: str, tmp_path: Path) -> None:
    spec = catalog.find(name)
    module = _scaled(models.build(spec, num_classes=5).module, _inputs(3))
    torch.save({"model": module.state_dict()}, tmp_path / "w.pth")
    _export(name, "--weights", tmp_path / "w.pth", "--out", tmp_path, "--shape", "128,96")
    _agree(tmp_path / name, module, torch.randn(1, 3, 128, 96))


def test_a_module_under_a_prefix_beside_losses_is_exported(tmp_path: Path) -> None:
    """As Lightning saves it; and a whole module, where its code is trusted."""
    module = _scaled(models.build(catalog.find(SMALL), num_classes=4).module, _inputs(3))
    state = {f"net.{name}": tensor for name, tensor in module.state_dict().items()}
    torch.save({"state_dict": {**state, "criterion.weight": torch.ones(4)}, "epoch": 3}, tmp_path / "last.ckpt")
    _export(SMALL, "--weights", tmp_path / "last.ckpt", "--out", tmp_path / "found", "--shape", "128,96")
    source = verify(tmp_path / "found" / SMALL, replay=False).manifest["weights"]["source"]
    assert source == "file last.ckpt, the tensors under net., without criterion.weight"
    _agree(tmp_path / "found" / SMALL, module, torch.randn(1, 3, 128, 96))


@pytest.mark.slow  # two exports
def test_a_prefix_that_is_given_decides_what_is_kept(tmp_path: Path) -> None:
    module = _scaled(models.build(catalog.find(SMALL), num_classes=4).module, _inputs(3))
    torch.save(torch.nn.DataParallel(module), tmp_path / "best_model.pth")
    how = (SMALL, "--weights", tmp_path / "best_model.pth", "--out", tmp_path, "--shape", "128,96")
    refused = run("export", *how)
    assert (refused.returncode, len(message(refused).splitlines())) == (2, 1)
    assert "--trust-checkpoint" in refused.stderr
    _export(*how, "--trust-checkpoint")
    assert "kept" in _export(*how, "--trust-checkpoint").stdout
    other = run("export", *how, "--trust-checkpoint", "--weights-prefix", "module")
    assert "made with other arguments (weights_prefix)" in other.stderr
    done = _export(*how, "--trust-checkpoint", "--weights-prefix", "module", "--overwrite")
    assert "kept" not in done.stdout
    manifest = verify(tmp_path / SMALL, replay=False).manifest
    assert manifest["arguments"]["weights_prefix"] == "module"
    assert manifest["weights"]["trusted"] is True
    _agree(tmp_path / SMALL, module, torch.randn(1, 3, 128, 96))


def _hub_entry(home: Path, repository: str, files: dict[str, bytes]) -> None:
    """A cache as huggingface_hub lays it out."""
    repo = home / "hub" / f"models--{repository.replace('/', '--')}"
    snapshot = repo / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("a" * 40)
    (repo / "blobs").mkdir()
    for i, (name, data) in enumerate(files.items()):
        blob = repo / "blobs" / f"{i:064x}"
        blob.write_bytes(data)
        (snapshot / name).symlink_to(os.path.relpath(blob, snapshot))


def _pretrained(name: str, home: Path) -> torch.nn.Module:
    import timm

    encoder = catalog.find(name).options["encoder"]
    module = _scaled(timm.create_model(encoder), _inputs(3))
    save_file(module.state_dict(), home / "it.safetensors")
    told = timm.get_pretrained_cfg(encoder)
    assert told is not None and told.hf_hub_id is not None
    _hub_entry(home, told.hf_hub_id, {"model.safetensors": (home / "it.safetensors").read_bytes()})
    return module


def _check_pretrained(name: str, folder: Path) -> dict[str, Any]:
    from huggingface_hub import constants

    module = _pretrained(name, folder)
    with (
        mock.patch.multiple(constants, HF_HUB_CACHE=str(folder / "hub"), HF_HUB_OFFLINE=True),
        mock.patch("socket.socket.connect", side_effect=AssertionError("a network was asked")),
    ):
        _export(name, "--pretrained", "--out", folder, "--shape", "128,96")
    manifest = verify(folder / name, replay=False).manifest
    _agree(folder / name, module, torch.randn(1, 3, 128, 96))
    return manifest


def test_pretrained_weights_come_from_the_cache_without_a_network(tmp_path: Path) -> None:
    manifest = _check_pretrained(SMALL, tmp_path)
    assert manifest["weights"]["source"] == (
        "timm mobilenetv3_small_100.lamb_in1k, timm/mobilenetv3_small_100.lamb_in1k"
    )
    assert manifest["weights"]["licence"] == "apache-2.0"
    assert manifest["weights"]["seed"] is None
    assert manifest["preprocessing"]["mean"] == [0.485, 0.456, 0.406]
    assert manifest["arguments"]["pretrained"] is True
    assert "timm/mobilenetv3_small_100.lamb_in1k" in (tmp_path / SMALL / "README.md").read_text("utf-8").replace(
        "\\", ""
    )


@pytest.mark.slow  # it waits for nothing, but the fast tests have their budget
def test_pretrained_weights_that_cannot_be_had_are_one_line(tmp_path: Path) -> None:
    empty = run(
        "export", SMALL, "--pretrained", "--out", tmp_path / "other",
        env={**os.environ, **OFFLINE, "HF_HOME": str(tmp_path / "empty")},
    )  # fmt: skip
    assert empty.returncode == 2
    assert "timm's weights of mobilenetv3_small_100 can't be had" in empty.stderr
    assert len(empty.stderr.strip().splitlines()) == 1


@pytest.mark.slow  # the same for each of timm's systems
@pytest.mark.parametrize("name", TIMM)
def test_every_pretrained_encoder_agrees_with_timm(name: str, tmp_path: Path) -> None:
    _check_pretrained(name, tmp_path)


def _smp(folder: Path, name: str, **options: Any) -> torch.nn.Module:
    import segmentation_models_pytorch as smp

    options = {"encoder_weights": None, "classes": 3, **options}
    model: Any = _scaled(smp.create_model(name, **options), torch.randn(2, options.get("in_channels", 3), 128, 128))
    model.save_pretrained(folder)
    return smp.from_pretrained(folder).eval()


def _check_smp(folder: Path, name: str, **options: Any) -> dict[str, Any]:
    model = _smp(folder / "trained", name, **options)
    channels = options.get("in_channels", 3)
    with mock.patch("socket.socket.connect", side_effect=AssertionError("a network was asked")):
        _export("--smp", folder / "trained", "--out", folder / "out", "--shape", "128,128")
    manifest = verify(folder / "out" / "trained", replay=False).manifest
    assert manifest["inputs"][0]["shape"] == [1, channels, 128, 128]
    if "aux_params" in options:
        model.register_module("classification_head", None)
    _agree(folder / "out" / "trained", model, torch.randn(1, channels, 128, 128))
    return manifest


def test_a_folder_of_smp_agrees_with_smp(tmp_path: Path) -> None:
    manifest = _check_smp(
        tmp_path, "unet", encoder_name="tu-resnet10t", in_channels=3, decoder_channels=(32, 16, 16, 8, 8),
        aux_params={"classes": 2, "dropout": 0.5},
    )  # fmt: skip
    assert manifest["parameters"]["unused_reasons"].keys() == {"second head, which classifies the image"}
    assert manifest["source"] == "segmentation-models-pytorch Unet on tu-resnet10t"
    assert manifest["weights"]["source"] == "file trained/model.safetensors"
    assert manifest["preprocessing"]["mean"] == [0.485, 0.456, 0.406]
    assert manifest["preprocessing"]["input_range"] == [0, 1]


SMP = [
    ("unet", {"encoder_name": "resnet18", "in_channels": 1}),
    ("unetplusplus", {"encoder_name": "resnet18"}),
    ("manet", {"encoder_name": "resnet18"}),
    ("linknet", {"encoder_name": "resnet18"}),
    ("fpn", {"encoder_name": "resnet18"}),
    ("pspnet", {"encoder_name": "resnet18"}),
    ("deeplabv3", {"encoder_name": "resnet18"}),
    ("deeplabv3plus", {"encoder_name": "resnet18"}),
    ("pan", {"encoder_name": "resnet18"}),
    ("upernet", {"encoder_name": "resnet18"}),
    ("segformer", {"encoder_name": "mit_b0"}),
    ("unet", {"encoder_name": "mobileone_s0"}),
]


@pytest.mark.slow  # the same for every architecture of smp
@pytest.mark.parametrize(("name", "options"), SMP)
def test_every_architecture_of_smp_agrees_with_smp(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    _check_smp(tmp_path, name, **options)


@pytest.mark.slow  # the timm weights above come from the cache in the same way
def test_a_repository_of_the_hub_is_read_from_the_cache(tmp_path: Path) -> None:
    from segonnx.errors import InputError
    from segonnx.sources import smp

    _smp(tmp_path / "w", "fpn", encoder_name="resnet18")
    files = {name: (tmp_path / "w" / name).read_bytes() for name in ("config.json", "model.safetensors")}
    _hub_entry(tmp_path, "someone/fpn", files)
    code = "import sys; from segonnx.sources import smp; print(smp.find(sys.argv[1]))"
    env = {**os.environ, **OFFLINE, "HF_HOME": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, "-c", code, "someone/fpn"], env=env, capture_output=True, text=True, check=True
    ).stdout
    assert "name='fpn'" in found
    assert "someone/fpn of Hugging Face, model.safetensors" in found
    with pytest.raises(InputError, match="is not a folder"):
        smp.find("./someone/fpn")
    missing = run("export", "--smp", "someone/nothing", env=env)
    assert missing.returncode == 2
    assert "can't be had from Hugging Face's hub or its cache" in missing.stderr


@pytest.mark.parametrize("file", ["base_ep4k.model", pytest.param("base_ep4k.pth", marks=pytest.mark.slow)])
def test_a_stunet_file_of_other_classes_agrees_with_stunet(file: str, tiny: ModelSpec, tmp_path: Path) -> None:
    """The layouts of both versions of nnU-Net, with what they keep beside the weights."""
    module = _scaled(models.build(tiny, num_classes=7, in_channels=2).module, torch.randn(1, 2, 32, 32, 64))
    losses = [np.float64(0.5), np.float32(0.25)]
    if file.endswith(".model"):
        content: dict[str, Any] = {
            "epoch": 4000, "state_dict": module.state_dict(), "optimizer_state_dict": None,
            "lr_scheduler_state_dict": None, "plot_stuff": (losses, losses, [], [[np.float64(1)]]),
            "best_stuff": (1, np.float64(0.1), np.float64(0.9)), "amp_grad_scaler": {"scale": 65536.0},
        }  # fmt: skip
    else:
        content = {
            "network_weights": module.state_dict(), "optimizer_state": {}, "grad_scaler_state": {"scale": 65536.0},
            "logging": {"mean_fg_dice": losses, "lrs": [0.01]}, "_best_ema": np.float64(0.8), "current_epoch": 4000,
            "init_args": {"fold": 0, "device": torch.device("cuda")}, "trainer_name": "STUNetTrainer_base",
            "inference_allowed_mirroring_axes": (0, 1, 2),
        }  # fmt: skip
    torch.save(content, tmp_path / file)
    done = pipeline.export(tiny, Settings(tmp_path / "out", checkpoints=(tmp_path / file,), shape=(32, 32, 64)))
    assert done.manifest["inputs"][0]["shape"] == [1, 2, 32, 32, 64]
    assert done.manifest["outputs"][0]["shape"] == [1, 7, 32, 32, 64]
    assert list(done.manifest["parameters"]["unused_reasons"]) == [
        "deep-supervision head; inference uses the last head alone"
    ]
    _agree(done.folder, module, torch.randn(1, 2, 32, 32, 64))


@pytest.mark.slow  # a full-size network
def test_the_published_layout_of_stunet_s_is_exported(tmp_path: Path) -> None:
    spec = catalog.find("stunet-s")
    module = _scaled(models.build(spec, num_classes=105).module, torch.randn(1, 1, 32, 64, 64))
    torch.save({"state_dict": module.state_dict(), "epoch": 4000}, tmp_path / "small_ep4k.model")
    _export("stunet-s", "--weights", tmp_path / "small_ep4k.model", "--out", tmp_path, "--shape", "64,64,64")
    manifest = verify(tmp_path / "stunet-s").manifest
    assert manifest["parameters"]["count"] == 14_596_941
    assert manifest["parameters"]["published_figures"][0]["text"] == "14.6M"
    _agree(tmp_path / "stunet-s", module, torch.randn(1, 1, 64, 64, 64))


class Evil:
    """Its pickle makes a folder wherever it is run."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.proof),)


class Harmless:
    """Needs code, which does nothing."""

    def __reduce__(self) -> Any:
        return os.getpid, ()


def test_no_code_of_a_checkpoint_runs(tmp_path: Path) -> None:
    proof = tmp_path / "it ran"
    torch.save({"state_dict": {"w": torch.ones(1)}, "extra": Evil(proof)}, tmp_path / "w.pth")
    refused = run("export", SMALL, "--weights", tmp_path / "w.pth", "--out", tmp_path / "out")
    assert refused.returncode == 2
    assert "it needs posix.mkdir" in refused.stderr
    assert "--trust-checkpoint" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    assert not proof.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.slow  # a second export
def test_code_of_a_checkpoint_runs_where_it_is_trusted_and_the_card_says_so(tmp_path: Path) -> None:
    import timm

    module = _scaled(timm.create_model("mobilenetv3_small_100", num_classes=2), _inputs(3))
    torch.save({"state_dict": module.state_dict(), "extra": Harmless()}, tmp_path / "w.pth")
    arguments = (SMALL, "--weights", tmp_path / "w.pth", "--out", tmp_path, "--shape", "64,64")
    assert "it needs posix.getpid" in run("export", *arguments).stderr
    _export(*arguments, "--trust-checkpoint")
    manifest = json.loads((tmp_path / SMALL / "manifest.json").read_text())
    assert manifest["weights"]["trusted"] is True
    assert "The checkpoint was trusted" in (tmp_path / SMALL / "README.md").read_text()
    _agree(tmp_path / SMALL, module, torch.randn(1, 3, 64, 64))
    torch.save({"state_dict": module.state_dict(), "extra": Evil(Path("/proc/nowhere"))}, tmp_path / "failing.pth")
    failed = run(
        "export", SMALL, "--weights", tmp_path / "failing.pth", "--trust-checkpoint", "--out", tmp_path / "out"
    )
    assert failed.returncode == 2
    assert len(failed.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["unet-resnet18", "--pretrained"], "only the encoder of unet-resnet18 has published weights"),
        (["smp:unet:resnet18", "--pretrained"], "only the encoder of smp:unet:resnet18 has published weights"),
        (["stunet-s", "--pretrained"], "timm publishes no weights of stunet-s"),
        ([SMALL, "--pretrained", "--weights", "w.pth"], "give one"),
        ([SMALL, "--trust-checkpoint"], "--trust-checkpoint is for the file of --weights"),
        ([SMALL, "--smp", "docs"], "give no names or --all with it"),
        (["--smp", "docs"], "docs has no weights"),
        (["--smp", "nowhere"], "nowhere is not a folder"),
        ([SMALL, "--weights", "docs"], "docs"),
    ],
)
def test_wrong_use_is_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = run("export", *arguments, "--out", tmp_path)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
