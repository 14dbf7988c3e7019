"""segmentation-models-pytorch: any of its architectures on any of its encoders."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from segonnx.core import subprocesses
from segonnx.errors import InputError, first_line
from segonnx.models.base import BuiltModel
from segonnx.sources import smp as folders
from segonnx.sources.catalog import ModelSpec


def build(
    *,
    architecture: str,
    encoder: str,
    num_classes: int,
    in_channels: int = 3,
    arguments: Mapping[str, Any] | None = None,
    auxiliary: Mapping[str, Any] | None = None,
) -> BuiltModel:
    """Build ``architecture`` (unet, segformer, ...) on ``encoder`` (resnet34, mit_b0, tu-*, ...), without weights.

    Args:
        architecture: a name of smp's.
        encoder: a name of smp's.
        num_classes: output channels.
        in_channels: input channels.
        arguments: more for the architecture.
        auxiliary: smp's ``aux_params``, of a second head that classifies the image.

    Raises:
        InputError: smp knows no such architecture or encoder, or the two don't go together.
    """
    import segmentation_models_pytorch as smp
    from segmentation_models_pytorch.encoders import encoders, is_equivalent_to_timm_universal

    architectures = sorted(name.lower() for name in smp.MODEL_ARCHITECTURES_MAPPING)
    _known(architecture.lower(), architectures, "architecture")
    # tu- opens timm's encoders, which smp resolves itself, and so are some that begin with timm-.
    if not encoder.startswith(folders.TIMM) and not is_equivalent_to_timm_universal(encoder):
        _known(encoder, sorted(encoders), "encoder")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on encoders that have other names now
            module = smp.create_model(
                architecture,
                encoder_name=encoder,
                encoder_weights=None,
                in_channels=in_channels,
                classes=num_classes,
                aux_params=None if auxiliary is None else dict(auxiliary),
                **(arguments or {}),
            )
    except Exception as error:  # of any kind, smp's or timm's: which of both refuses an encoder is theirs to say
        if subprocesses.ran_out_of_memory(error):
            raise
        raise InputError(f"smp can't build {architecture} on {encoder}: {first_line(error)}") from error
    unused = {}
    if auxiliary is not None:
        module.register_forward_hook(_mask)
        unused[r"classification_head\..*"] = "second head, which classifies the image"
    return BuiltModel(module, unused)


def _mask(_module: object, _inputs: object, outputs: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """What the network gives for each pixel, without what it gives for the image."""
    return outputs[0]


def sized(spec: ModelSpec) -> ModelSpec:
    """The spec with the size that its encoder takes, where timm says that it takes one alone, and what sizes divide by.

    Raises:
        InputError: smp can't build it.
    """
    from segonnx import models  # which imports this module

    if not spec.options["encoder"].startswith(folders.TIMM):
        return spec
    encoder: Any = models.build_meta(spec).module.encoder
    arguments = spec.options.get("arguments", {})
    known = getattr(encoder.model, "pretrained_cfg", None) or {}
    size: Any = arguments.get("img_size")
    if size is None and known.get("fixed_input_size") and not arguments.get("dynamic_img_size"):
        size = known["input_size"][1:]
    if isinstance(size, int):
        size = (size, size)
    if size is not None:
        spec = replace(spec, input_shape=(*spec.input_shape[:2], *size))
    # Only encoders for DPT have patches of any size; of others, smp asks for multiples of powers of two.
    return replace(spec, divisors=(encoder.output_stride,) * 2) if spec.options["architecture"] == "dpt" else spec


def describe(spec: ModelSpec, pretrained: str | None = None) -> ModelSpec:
    """The spec with the preprocessing that its encoder was pretrained with, where that is known.

    Nothing tells with what a network of smp was trained; it's most often that.

    Args:
        spec: of a network with weights of its own.
        pretrained: which weights its encoder began with, by smp's name; None takes the usual ones.
    """
    encoder = spec.options["encoder"]
    found = normalisation(encoder, pretrained)
    if found is None or len(found["mean"]) != spec.input_shape[1]:
        note = "as the network was trained; nothing tells how"
        return replace(spec, described={**spec.described, "preprocessing": _note(spec, note)})
    note = (
        f"scaled to {found['input_range']}, then normalised per channel with mean and standard deviation as for "
        f"{encoder}'s {pretrained or 'imagenet'} weights, if the network was trained so: nothing tells"
    )
    return replace(spec, described={**spec.described, "preprocessing": {**_note(spec, note), **found}})


def folder_weights(path: Path) -> str | None:
    """Which weights the encoder of smp's folder began with, as its configuration says; ``path`` is its weights'."""
    named = folders.config(path.parent / folders.CONFIG).get("encoder_weights")
    return None if named is None else str(named)


def normalisation(encoder: str, pretrained: str | None = None) -> dict[str, Any] | None:
    """Mean and standard deviation that an encoder's published weights were trained with; None where timm says none.

    timm carries those of its encoders. Those of smp's own are as smp 0.4 listed them for each; later it left that to
    the hub, which isn't asked: an export gives the same with a network and without.
    """
    import timm
    from segmentation_models_pytorch.encoders import is_equivalent_to_timm_universal
    from timm.data import constants

    mean: Sequence[float] = constants.IMAGENET_DEFAULT_MEAN
    std: Sequence[float] = constants.IMAGENET_DEFAULT_STD
    if encoder.startswith(folders.TIMM) or is_equivalent_to_timm_universal(encoder):
        name = encoder.removeprefix(folders.TIMM).removeprefix("timm-")
        if "mobilenetv3" in name and encoder.startswith("timm-"):  # as smp names it for timm
            name = f"tf_{name}"
        told = timm.get_pretrained_cfg(name)
        if told is None:
            return None
        mean, std = told.mean, told.std
    elif encoder.startswith("dpn"):
        mean, std = constants.IMAGENET_DPN_MEAN, constants.IMAGENET_DPN_STD
    elif encoder.startswith(("inception", "xception", "timm-tf_efficientnet_lite")) or pretrained == "advprop":
        mean, std = constants.IMAGENET_INCEPTION_MEAN, constants.IMAGENET_INCEPTION_STD
    return {"input_space": "RGB", "input_range": [0, 1], "mean": list(mean), "std": list(std)}


def _note(spec: ModelSpec, note: str) -> dict[str, Any]:
    return {"modality": spec.modality, "note": note}


def _known(name: str, names: list[str], what: str) -> None:
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"segmentation-models-pytorch has no {what} {name!r}{hint}")
