"""nnU-Net v2's networks, from dynamic-network-architectures, as a plan describes them (``sources.nnunet.plans``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from segonnx.errors import InputError, first_line
from segonnx.models.base import BuiltModel
from segonnx.sources.nnunet.plans import CLASSES, Architecture

DEEP_SUPERVISION = "deep-supervision head; inference uses the last head alone"

_PRIMUS = {
    "S": {"embed_dim": 396, "eva_depth": 12, "eva_numheads": 6},
    "B": {"embed_dim": 792, "eva_depth": 12, "eva_numheads": 12},
    "M": {"embed_dim": 864, "eva_depth": 16, "eva_numheads": 12},
    "L": {"embed_dim": 1056, "eva_depth": 24, "eva_numheads": 16},
}
_PRIMUS_TRAINERS = {
    **{f"nnUNet_Primus_{size}_Trainer": ("Primus", size) for size in _PRIMUS},
    **{f"nnUNet_Primus_M_Trainer_BS8{rate}": ("Primus", "M") for rate in ("", "_2e4")},
    **{f"_Primus_{size}_{patch}_BS1": ("Primus", size) for size, patch in zip("SBML", (96, 96, 96, 48), strict=True)},
    **{
        f"nnUNet_Primus{version}{size}_Trainer": (f"Primus{version}", size)
        for version in ("V2", "V3")
        for size in _PRIMUS
    },
}
"""nnU-Net's trainers that build one network whatever the plan says, with its class and its size."""


class Ensemble(nn.Module):
    """The mean of the logits of several networks, one after another, so that one at a time holds its features."""

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.folds = nn.ModuleList(members)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, spatial...) to logits (N, classes, spatial...)."""
        first, *others = self.folds
        total: torch.Tensor = first(x)
        for member in others:
            total = total + member(x)
        return total / len(self.folds)


def trained_architecture(planned: Architecture, trainer: str, patch_size: tuple[int, ...]) -> Architecture:
    """The network that a trainer of nnU-Net builds from a plan; most build what is planned."""
    if trainer == "nnUNetTrainerBN" and "conv_op" in planned.arguments:
        axes = planned.arguments["conv_op"].removeprefix("Conv")
        norm = {"norm_op": f"BatchNorm{axes}", "norm_op_kwargs": {"eps": 1e-5, "affine": True}}
        return Architecture(planned.name, {**planned.arguments, **norm})
    if trainer in _PRIMUS_TRAINERS:
        name, size = _PRIMUS_TRAINERS[trainer]
        return Architecture(
            name,
            {
                **_PRIMUS[size],
                "patch_embed_size": [8, 8, 8],
                "input_shape": list(patch_size),
                "scale_attn_inner": True,
                "init_values": 0.1,
            },
        )
    return planned


def build(
    *, architecture: str, arguments: Mapping[str, Any], in_channels: int, num_classes: int, folds: int = 1
) -> BuiltModel:
    """Build a network, or the mean of ``folds`` of them.

    Args:
        architecture: name of the class.
        arguments: of its constructor; classes by their names in ``plans.CLASSES``.
        in_channels: of the input.
        num_classes: of the output.
        folds: how many.

    Raises:
        InputError: the constructor doesn't take these.
    """
    try:
        members = [_member(architecture, arguments, in_channels, num_classes) for _ in range(folds)]
    except (AssertionError, TypeError, ValueError) as error:
        reason = first_line(error)
        raise InputError(f"dynamic-network-architectures can't build this {architecture}: {reason}") from error
    stages = arguments.get("n_stages", 2)
    heads = "|".join(map(str, range(stages - 2)))
    unused = {rf"(folds\.\d+\.)?decoder\.seg_layers\.({heads})\..*": DEEP_SUPERVISION} if heads else {}
    if folds == 1:
        return BuiltModel(members[0], unused)
    return BuiltModel(Ensemble(members), unused, members=tuple(members))


def _member(architecture: str, arguments: Mapping[str, Any], in_channels: int, num_classes: int) -> nn.Module:
    from dynamic_network_architectures.architectures import primus, unet
    from dynamic_network_architectures.building_blocks import residual

    networks = {
        "PlainConvUNet": unet.PlainConvUNet,
        "ResidualEncoderUNet": unet.ResidualEncoderUNet,
        "ResidualUNet": unet.ResidualUNet,
        "Primus": primus.Primus,
        "PrimusV2": primus.PrimusV2,
        "PrimusV3": primus.PrimusV3,
    }
    blocks = {"BasicBlockD": residual.BasicBlockD, "BottleneckD": residual.BottleneckD}
    classes = {name: blocks[name] if name in blocks else getattr(nn, name) for name in set(CLASSES.values())}
    known = {
        key: classes[value] if isinstance(value, str) and key in _CLASS_ARGUMENTS else value
        for key, value in arguments.items()
    }
    module: nn.Module = networks[architecture](input_channels=in_channels, num_classes=num_classes, **known)
    return module


_CLASS_ARGUMENTS = ("conv_op", "norm_op", "dropout_op", "nonlin", "block")
