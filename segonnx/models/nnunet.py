"""nnU-Net v2's networks, as a plan describes them (``sources.nnunet.plans``).

They are those of dynamic-network-architectures, and STU-Net, which has a trainer for nnU-Net.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from segonnx.errors import InputError, first_line
from segonnx.models import stunet
from segonnx.models.base import BuiltModel
from segonnx.sources.nnunet.plans import CLASSES
from segonnx.sources.nnunet.trainers import STUNET

DEEP_SUPERVISION = "deep-supervision head; inference uses the last head alone"


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


def build(
    *, architecture: str, arguments: Mapping[str, Any], in_channels: int, num_classes: int, folds: int = 1
) -> BuiltModel:
    """Build a network, or the mean of ``folds`` of them.

    Args:
        architecture: the name of the class.
        arguments: the constructor's; classes stand there by their names in ``plans.CLASSES``.
        in_channels: input channels.
        num_classes: output channels.
        folds: how many networks.

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
    if architecture == STUNET:
        unused = {rf"(folds\.\d+\.)?{stunet.UNUSED}": DEEP_SUPERVISION}
    if folds == 1:
        return BuiltModel(members[0], unused)
    return BuiltModel(Ensemble(members), unused, members=tuple(members))


def _member(architecture: str, arguments: Mapping[str, Any], in_channels: int, num_classes: int) -> nn.Module:
    if architecture == STUNET:
        return stunet.STUNet(in_channels=in_channels, num_classes=num_classes, **arguments)
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
