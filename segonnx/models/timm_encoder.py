"""timm image classifiers, with their head."""

from __future__ import annotations

import torch
from torch import nn

from segonnx.models.base import Network


def reparameterize(module: nn.Module) -> nn.Module:
    """Merge the training branches of MobileOne-like blocks into one convolution each; the function stays the same."""
    from timm.utils.model import reparameterize_model

    with torch.device(next(module.parameters()).device):  # the merged convolutions are made where the branches are
        return reparameterize_model(module, inplace=True)


def build(*, encoder: str, num_classes: int, in_channels: int = 3) -> Network:
    """Build the timm classifier ``encoder``."""
    import timm

    module = timm.create_model(encoder, pretrained=False, num_classes=num_classes, in_chans=in_channels)
    return Network(module, finalize=reparameterize)
