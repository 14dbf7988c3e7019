"""timm image classifiers, with their head."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from segonnx.errors import CheckpointError, first_line
from segonnx.models.base import BuiltModel
from segonnx.sources.catalog import ModelSpec


def reparameterize(module: nn.Module) -> nn.Module:
    """Merge the training branches of MobileOne-like blocks into one convolution each; the function stays the same."""
    from timm.utils.model import reparameterize_model

    with torch.device(next(module.parameters()).device):  # the merged convolutions are made where the branches are
        return reparameterize_model(module, inplace=True)


def build(*, encoder: str, num_classes: int, in_channels: int = 3, pretrained: bool = False) -> BuiltModel:
    """Build the timm classifier ``encoder``.

    Args:
        encoder: timm's name.
        num_classes: the head's output channels.
        in_channels: input channels.
        pretrained: load the weights that timm publishes, from its cache or from the network.

    Raises:
        CheckpointError: they can't be had.
    """
    import timm

    try:
        module = timm.create_model(encoder, pretrained=pretrained, num_classes=num_classes, in_chans=in_channels)
    except Exception as error:
        if not pretrained:
            raise
        raise CheckpointError(
            f"timm's weights of {encoder} can't be had: {first_line(error, 200)}; without a network they must be in "
            "the cache of Hugging Face (HF_HOME)"
        ) from error
    return BuiltModel(module, finalize=reparameterize)


def published(spec: ModelSpec) -> ModelSpec:
    """The spec with what timm says of the weights that it publishes: origin, licence, normalisation."""
    import timm

    encoder = spec.options["encoder"]
    told = timm.get_pretrained_cfg(encoder)
    if told is None or not (told.hf_hub_id or told.url):
        raise CheckpointError(f"timm publishes no weights of {encoder}")
    preprocessing = {
        "modality": spec.modality,
        "note": f"RGB scaled to 0..1, then normalised per channel; trained at {told.input_size[-1]} pixels",
        "mean": list(told.mean),
        "std": list(told.std),
        "interpolation": told.interpolation,
        "crop_pct": told.crop_pct,
    }
    return replace(
        spec,
        licence=told.license or "unknown",
        weights_source=f"timm {encoder}.{told.tag}, {told.hf_hub_id or told.url}",
        described={"preprocessing": preprocessing},
    )
