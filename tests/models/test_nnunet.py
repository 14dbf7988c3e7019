"""The networks that nnU-Net's plans and trainers name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures import primus, unet
from torch import nn

from segonnx.errors import InputError
from segonnx.models import nnunet
from segonnx.sources.nnunet.plans import CLASSES, NETWORKS, Architecture
from segonnx.sources.nnunet.trainers import trained_architecture

COMMON: dict[str, Any] = {
    "n_stages": 3,
    "features_per_stage": [4, 6, 8],
    "conv_op": "Conv3d",
    "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
    "n_conv_per_stage_decoder": [1, 1],
    "conv_bias": True,
    "norm_op": "InstanceNorm3d",
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "dropout_op": None,
    "nonlin": "LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}
PRIMUS = {
    "embed_dim": 72,
    "eva_depth": 1,
    "eva_numheads": 2,
    "patch_embed_size": [8, 8, 8],
    "input_shape": [16, 16, 16],
}


def _arguments(name: str) -> dict[str, Any]:
    if name.startswith("Primus"):
        return PRIMUS
    return COMMON | {"n_conv_per_stage" if name == "PlainConvUNet" else "n_blocks_per_stage": [1, 1, 1]}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_that_a_plan_may_name_is_built_and_has_one_output(name: str) -> None:
    network = nnunet.build(architecture=name, arguments=_arguments(name), in_channels=2, num_classes=3)
    with torch.inference_mode():
        logits = network.module.eval()(torch.zeros(1, 2, 16, 16, 16))
    assert logits.shape == (1, 3, 16, 16, 16)


def test_every_class_that_a_plan_may_name_is_known() -> None:
    for name in set(CLASSES.values()) - {"Conv2d", "Conv3d"}:
        key = "norm_op" if "Norm" in name else "dropout_op" if "Drop" in name else "nonlin"
        changed: dict[str, Any]
        if name in ("BasicBlockD", "BottleneckD"):
            changed = {"block": name, "bottleneck_channels": 4 if name == "BottleneckD" else None}
            nnunet.build(
                architecture="ResidualEncoderUNet",
                arguments=_arguments("ResidualEncoderUNet") | changed,
                in_channels=1,
                num_classes=2,
            )
            continue
        changed = {key: name, f"{key}_kwargs": {}}
        made = nnunet.build(
            architecture="PlainConvUNet", arguments=_arguments("PlainConvUNet") | changed, in_channels=1, num_classes=2
        )
        assert any(type(layer) is getattr(nn, name) for layer in made.module.modules())


def test_what_the_library_refuses_is_bad_input() -> None:
    with pytest.raises(InputError, match="can't build this PlainConvUNet"):
        nnunet.build(architecture="PlainConvUNet", arguments={"n_stages": 2}, in_channels=1, num_classes=2)


@pytest.mark.parametrize("size", ["S", "B", "M", "L"])
@pytest.mark.parametrize("version", ["", "V2", "V3"])
def test_trainers_of_primus_build_the_published_networks(version: str, size: str) -> None:
    trainer = f"nnUNet_Primus{version or '_'}{size}_Trainer" if version else f"nnUNet_Primus_{size}_Trainer"
    planned = Architecture("PlainConvUNet", _arguments("PlainConvUNet"))
    architecture = trained_architecture(planned, trainer, (32, 16, 16))
    options = {"drop_path_rate": 0.2, "scale_attn_inner": True, "init_values": 0.1}
    with torch.device("meta"):
        ours = nnunet._member(architecture.name, architecture.arguments, 2, 3)
        theirs = getattr(primus, f"Primus{version}{size}")(
            2, 3, patch_embed_size=(8, 8, 8), input_shape=(32, 16, 16), **options
        )
    shapes = [{name: tensor.shape for name, tensor in network.state_dict().items()} for network in (ours, theirs)]
    assert shapes[0] == shapes[1]


def test_other_trainers_build_what_is_planned_and_one_puts_batch_norms_into_it() -> None:
    planned = Architecture("PlainConvUNet", _arguments("PlainConvUNet"))
    assert trained_architecture(planned, "nnUNetTrainerNoMirroring", (16, 16, 16)) == planned
    changed = trained_architecture(planned, "nnUNetTrainerBN", (16, 16, 16))
    network = nnunet.build(architecture=changed.name, arguments=changed.arguments, in_channels=1, num_classes=2)
    assert any(isinstance(layer, nn.BatchNorm3d) for layer in network.module.modules())
    assert isinstance(network.module, unet.PlainConvUNet)
