"""Folders of segmentation-models-pytorch, whose configuration nobody trusts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from segonnx.errors import InputError
from segonnx.sources import smp

CONFIG: dict[str, Any] = {
    "_model_class": "Unet", "activation": None, "aux_params": None, "classes": 4, "decoder_attention_type": None,
    "decoder_channels": [64, 32, 16, 8, 8], "decoder_interpolation": "nearest", "decoder_use_norm": "batchnorm",
    "encoder_depth": 5, "encoder_name": "resnet18", "encoder_weights": "imagenet", "in_channels": 3, "kwargs": {},
}  # fmt: skip


def _folder(path: Path, config: object, weights: str = "model.safetensors") -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    (path / weights).write_bytes(b"")
    return path


@pytest.mark.parametrize("weights", smp.WEIGHTS)
def test_a_folder_tells_its_network(weights: str, tmp_path: Path) -> None:
    spec, path = smp.find(str(_folder(tmp_path / "liver", {**CONFIG, "in_channels": 1}, weights)))
    assert path == tmp_path / "liver" / weights
    assert (spec.name, spec.family, spec.builder) == ("liver", "smp", "smp")
    assert spec.input_shape == (1, 1, 512, 512)
    assert (spec.num_classes, spec.modality) == (4, "other")
    assert spec.options["architecture"] == "unet"
    assert spec.options["arguments"]["decoder_channels"] == [64, 32, 16, 8, 8]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"_model_class": "os.system"}, "_model_class is 'os.system'; segonnx knows Unet, "),
        ({"_model_class": None}, "_model_class is None"),
        ({"_model_class": ["Unet"]}, "_model_class is"),
        ({"encoder_name": "tu-hf-hub:someone/evil"}, "which isn't an encoder of smp"),
        ({"encoder_name": "tu-local-dir:/etc"}, "which isn't an encoder of smp"),
        ({"encoder_name": 7}, "which isn't an encoder of smp"),
        # timm's create_model would unpickle it, with its code
        ({"checkpoint_path": "evil.pth"}, "has checkpoint_path, which segonnx doesn't know"),
        ({"pretrained_cfg": {"file": "evil.pth"}}, "has pretrained_cfg"),
        ({"encoder_checkpoint_path": "evil.pth"}, "has encoder_checkpoint_path"),
        ({"decoder_channels": [10**9] * 5}, "at decoder_channels/0: 1000000000 is greater than the maximum of 16384"),
        ({"decoder_channels": [[1], [2]]}, "at decoder_channels"),
        ({"decoder_channels": [1] * 1000}, "at decoder_channels"),
        ({"encoder_depth": 1e300}, "at encoder_depth: 1e\\+300 is greater than the maximum"),
        ({"classes": 10**9}, "at classes: 1000000000 is greater than the maximum of 16384"),
        ({"classes": 0}, "at classes: 0 is less than the minimum of 1"),
        ({"classes": True}, "at classes: True is not of type"),
        ({"in_channels": "3"}, "at in_channels: '3' is not of type"),
        ({"aux_params": {"classes": 10**9}}, "at aux_params/classes: 1000000000"),
        ({"aux_params": "text"}, "at aux_params: 'text'"),
    ],
)
def test_configurations_of_strangers_are_refused_in_one_line(
    changed: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        smp.find(str(_folder(tmp_path, {**CONFIG, **changed})))
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        smp.find(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        smp.find(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"config\.json is missing"):
        smp.find(str(tmp_path))
    for text in ("{", "[" * 100_000, "", "\0"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(InputError, match="isn't JSON"):
            smp.find(str(tmp_path))
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InputError, match="doesn't hold names and values"):
        smp.find(str(tmp_path))
    (tmp_path / "config.json").write_text(" " * (smp.MAX_BYTES + 1))
    with pytest.raises(InputError, match="is larger than"):
        smp.find(str(tmp_path))
