"""A U-Net decoder on a timm encoder: the network whose parameter counts the 2D reference systems publish.

segmentation-models-pytorch's own ``Unet`` is another network (it has other counts); see ``smp.py`` for that one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from segonnx.models.base import BuiltModel
from segonnx.models.timm_encoder import reparameterize

DECODER_CHANNELS = (256, 128, 64, 32)
"""Channels of the decoder's stages, from the deepest up."""


def _conv_bn_relu(in_channels: int, out_channels: int) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]


class DecoderStage(nn.Module):
    """A 2x2 transposed convolution, concatenation with the skip, then twice conv3 - BatchNorm - ReLU."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)
        self.convs = nn.Sequential(
            *_conv_bn_relu(out_channels + skip_channels, out_channels), *_conv_bn_relu(out_channels, out_channels)
        )

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return self.convs(torch.cat((self.up(x), skip), dim=1))  # type: ignore[no-any-return]


class TimmUNet(nn.Module):
    """A timm encoder with five levels (reductions 2 to 32) and a U-Net decoder."""

    def __init__(self, *, encoder: str, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        import timm

        backbone: Any = timm.create_model(encoder, pretrained=False, features_only=True, in_chans=in_channels)
        *skips, deepest = backbone.feature_info.channels()
        self.encoder = backbone
        inputs = (deepest, *DECODER_CHANNELS[:-1])
        self.stages = nn.ModuleList(map(DecoderStage, inputs, reversed(skips), DECODER_CHANNELS))
        self.up = nn.ConvTranspose2d(DECODER_CHANNELS[-1], DECODER_CHANNELS[-1], 2, stride=2)
        self.head = nn.Conv2d(DECODER_CHANNELS[-1], num_classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, in_channels, H, W) to logits (N, num_classes, H, W); H and W divide by 32."""
        *skips, x = self.encoder(x)
        for stage in self.stages:
            x = stage(x, skips.pop())
        return self.head(self.up(x))  # type: ignore[no-any-return]


def build(*, encoder: str, num_classes: int, in_channels: int = 3) -> BuiltModel:
    """Build the U-Net on the timm encoder ``encoder``."""
    return BuiltModel(
        TimmUNet(encoder=encoder, num_classes=num_classes, in_channels=in_channels), finalize=reparameterize
    )
