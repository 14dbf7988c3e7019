"""Any network of smp: other channels, shallower encoders, encoders of one size, all architectures on five families."""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnxruntime
import pytest
import torch

from segonnx import models
from segonnx.artifacts.verify import verify
from segonnx.errors import InputError
from segonnx.exporters import pipeline
from segonnx.exporters.pipeline import Settings
from segonnx.exporters.prepare import Weights, adapt
from segonnx.models import smp, unreached
from segonnx.sources import catalog
from tests.conftest import message, run

pytestmark = pytest.mark.usefixtures("steps_here")


def _trained(folder: Path, architecture: str, encoder: str, **options: Any) -> torch.nn.Module:
    """A folder that smp wrote, of a network whose BatchNorms and biases aren't those of the beginning."""
    import segmentation_models_pytorch as library

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = library.create_model(architecture, encoder, encoder_weights=None, **{"classes": 2, **options})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith((".bias", "running_mean")):
                tensor.normal_(0, 0.1, generator=generator)
            elif tensor.ndim == 1 and tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5, generator=generator)
    model.save_pretrained(folder)
    return model.eval()


def _agree(artifact: Path, model: torch.nn.Module, x: torch.Tensor) -> None:
    session = onnxruntime.InferenceSession(artifact / "model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input": x.numpy()})
    with torch.inference_mode():
        expected = model(x).numpy()
    assert np.abs(found - expected).max() <= 1e-3 * expected.std()


SHALLOW = {"encoder_depth": 3, "decoder_channels": (32, 16, 8)}


@pytest.mark.parametrize(("architecture", "encoder", "channels"), [
    ("unet", "resnet18", 1), pytest.param("unet", "mobilenet_v2", 5, marks=pytest.mark.slow),
    pytest.param("fpn", "tu-convnext_atto", 2, marks=pytest.mark.slow),
    pytest.param("linknet", "efficientnet-b0", 4, marks=pytest.mark.slow),
])  # fmt: skip
def test_other_channels(architecture: str, encoder: str, channels: int, tmp_path: Path) -> None:
    options = SHALLOW if encoder == "resnet18" else {}
    model = _trained(tmp_path / "given" / "net", architecture, encoder, in_channels=channels, **options)
    done = run("export", "--smp", tmp_path / "given" / "net", "--shape", "64,96", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "nothing tells mean and standard deviation" in done.stderr
    content = verify(tmp_path / "net", replay=False).manifest
    assert content["inputs"][0]["shape"] == [1, channels, 64, 96]
    assert "mean" not in content["preprocessing"]
    _agree(tmp_path / "net", model, torch.randn(1, channels, 64, 96))


@pytest.mark.parametrize("encoder", ["resnet18", "mobilenet_v2", "efficientnet-b0", "tu-convnext_atto", "densenet121"])
def test_no_part_of_a_network_is_left_on_the_cpu(encoder: str) -> None:
    spec = replace(catalog.find(f"smp:unet:{encoder}"), options={
        "architecture": "unet", "encoder": encoder, "in_channels": 7,
    })  # fmt: skip
    module = models.build_meta(spec).module
    assert {one.device.type for one in (*module.parameters(), *module.buffers())} == {"meta"}
    assert module(torch.empty(1, 7, 64, 64, device="meta")).shape == (1, 117, 64, 64)


@pytest.mark.parametrize(("architecture", "encoder", "options"), [
    ("pspnet", "resnet18", {}),
    # It runs one stage more than it uses.
    pytest.param("unet", "mobilenet_v2", {"encoder_depth": 3, "decoder_channels": (32, 16, 8)}, marks=pytest.mark.slow),
    pytest.param("fpn", "efficientnet-b0", {"encoder_depth": 4}, marks=pytest.mark.slow),
    pytest.param("unet", "mit_b0", {"encoder_depth": 4, "decoder_channels": (32, 16, 8, 8)}, marks=pytest.mark.slow),
])  # fmt: skip
def test_layers_that_nothing_runs(architecture: str, encoder: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = _trained(tmp_path / "given" / "net", architecture, encoder, **options)
    done = run("export", "--smp", tmp_path / "given" / "net", "--shape", "64,64", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    counted = verify(tmp_path / "net", replay=False).manifest["parameters"]
    x = torch.randn(1, 3, 64, 64)
    model(x).sum().backward()
    unused = sum(one.numel() for one in model.parameters() if one.grad is None)
    assert counted["unused_reasons"] == {unreached.REASON: unused}
    assert unused > 0
    _agree(tmp_path / "net", model, x)


@pytest.mark.parametrize(("name", "size", "divisor"), [
    ("smp:unet:tu-swin_tiny_patch4_window7_224", 224, 32), ("smp:unet:tu-swinv2_tiny_window8_256", 256, 32),
    ("smp:dpt:tu-vit_tiny_patch16_224", 224, 16), ("smp:unet:tu-convnext_atto", 512, 32),
])  # fmt: skip
def test_an_encoder_of_one_size_has_that(name: str, size: int, divisor: int) -> None:
    spec = adapt(catalog.find(name), Weights(), lambda _: None)
    assert spec.input_shape == (1, 3, size, size)
    assert spec.divisors == (divisor, divisor)


@pytest.mark.slow  # a vision transformer
def test_the_size_of_an_export_holds_for_its_random_weights(tmp_path: Path) -> None:
    """A vision transformer takes 224 x 224 alone, and is given nothing else. Four of its blocks are used."""
    spec = catalog.find("smp:dpt:tu-vit_tiny_patch16_224")
    small = {
        "encoder_output_indices": [0, 1, 2, 3], "decoder_intermediate_channels": [8, 8, 16, 16],
        "decoder_fusion_channels": 8,
    }  # fmt: skip
    spec = replace(spec, options={**spec.options, "arguments": small}, num_classes=3)
    done = pipeline.export(spec, Settings(tmp_path))
    assert done.manifest["inputs"][0]["shape"] == [1, 3, 224, 224]
    assert done.manifest["parity"]["label_agreement"] > 0.999


@pytest.mark.parametrize(("name", "shape", "said"), [
    ("smp:unet:tu-swin_tiny_patch4_window7_224", "256,256", "takes no input of 1x3x256x256: "),
    ("smp:pan:resnet18", "64,64", "takes no input of 1x3x64x64: "),
    ("smp:dpt:resnet18", "64,64", "smp can't build dpt on resnet18: Only Timm encoders"),
    ("smp:unetplusplus:mit_b0", "64,64", "smp can't build unetplusplus on mit_b0"),
    ("smp:unet:tu-vit_tiny_patch16_224", "224,224", "Unsupported model downsampling pattern"),
    ("smp:unet:tu-nothing_at_all", "64,64", "smp can't build unet on tu-nothing_at_all: "),
    ("smp:unet:resnet19", "64,64", "has no encoder 'resnet19'; did you mean resnet18?"),
    ("smp:dpt:tu-vit_tiny_patch16_224", "225,224", "positive multiples of 16; --shape has 225"),
])  # fmt: skip
def test_what_smp_refuses_is_one_line(name: str, shape: str, said: str, tmp_path: Path) -> None:
    done = run("export", name, "--shape", shape, "--out", tmp_path)
    assert done.returncode == 2
    assert said in message(done) and len(message(done).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("encoder", "pretrained", "mean"), [
    ("resnet18", None, 0.485), ("dpn92", "imagenet+5k", 124 / 255), ("xception", None, 0.5), ("mit_b2", None, 0.485),
    ("efficientnet-b0", "advprop", 0.5), ("efficientnet-b0", "imagenet", 0.485), ("tu-vit_tiny_patch16_224", None, 0.5),
    ("tu-mobilevit_s", None, 0.0), ("timm-regnetx_002", None, 0.485),
    ("timm-tf_efficientnet_lite0", None, 0.5),
])  # fmt: skip
def test_mean_and_deviation_need_no_network(encoder: str, pretrained: str | None, mean: float) -> None:
    with mock.patch("socket.socket.connect", side_effect=AssertionError("a network was asked")):
        found = smp.normalisation(encoder, pretrained)
    assert found is not None
    assert found["mean"][0] == pytest.approx(mean, abs=1e-3)
    assert len(found["std"]) == 3


def test_vgg_is_as_smp_lists_it() -> None:
    """smp has these numbers still, for some."""
    from segmentation_models_pytorch.encoders.vgg import pretrained_settings

    for name, (weights, told) in ((name, pair) for name, one in pretrained_settings.items() for pair in one.items()):
        found = smp.normalisation(name, weights)
        assert found is not None and (found["mean"], found["std"]) == (told["mean"], told["std"]), name


def test_what_ran_behind_the_network_is_on_its_card(tmp_path: Path) -> None:
    model: Any = _trained(tmp_path / "given" / "net", "unet", "resnet18", classes=1, activation="sigmoid", **SHALLOW)
    x = np.random.default_rng(0).standard_normal((1, 3, 64, 64), np.float32)
    head, activation = model.segmentation_head, model.segmentation_head[2]
    with torch.no_grad():  # so that half of the pixels are of the class
        head[2] = torch.nn.Identity()
        head[0].bias -= model(torch.from_numpy(x)).median()
        head[2] = activation
    model.save_pretrained(tmp_path / "given" / "net")
    (tmp_path / "names.txt").write_text("polyp\n")
    done = run(
        "export", "--smp", tmp_path / "given" / "net", "--shape", "64,64", "--out", tmp_path,
        "--labels", tmp_path / "names.txt",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "net" / "manifest.json").read_text())
    assert content["labels"] == [{"name": "polyp", "value": 1, "labels": [1]}]
    assert content["preprocessing"]["mean"] == [0.485, 0.456, 0.406]
    card = (tmp_path / "net" / "README.md").read_text()
    assert "the network was saved with sigmoid behind it, which the file leaves out" in card
    (model_file,) = re.findall(r'InferenceSession\("([^"]+)"', card)
    code = card.split("```python\n")[1].split("\n```")[0]
    code = code.replace(f'"{model_file}"', repr(str(tmp_path / "net" / model_file)))
    code = re.sub(r"^x = .*$", "x = given", code, flags=re.MULTILINE)
    names: dict[str, Any] = {"given": x}
    exec(code, names)
    with torch.inference_mode():
        expected = model(torch.from_numpy(x)).numpy()[:, 0] > 0.5
    assert 0 < expected.mean() < 1
    assert (names["labels"] == expected).mean() > 0.999


def test_a_network_that_cannot_be_built_is_bad_input() -> None:
    with pytest.raises(InputError, match="smp can't build"):
        models.build(catalog.find("smp:deeplabv3:tu-vit_tiny_patch16_224"))
