"""The network families, and how a spec's network is built.

To add a family: one file here with a ``build`` function that returns a ``BuiltModel``, and one line in ``BUILDERS``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from segonnx.errors import InputError
from segonnx.models import nnunet, plain_unet, random_weights, smp, stunet, timm_encoder, timm_unet
from segonnx.models.base import BuiltModel
from segonnx.sources.catalog import ModelSpec

BUILDERS: dict[str, Callable[..., BuiltModel]] = {
    "stunet": stunet.build,
    "plain_unet": plain_unet.build,
    "timm_unet": timm_unet.build,
    "timm_encoder": timm_encoder.build,
    "smp": smp.build,
    "nnunet": nnunet.build,
}


def build(spec: ModelSpec, **overrides: Any) -> BuiltModel:
    """Build the spec's network on the CPU with its library's initial weights.

    ``overrides`` replace the spec's options, for example ``num_classes=105``.
    """
    options = {**spec.options, "num_classes": spec.num_classes, **overrides}
    return BUILDERS[spec.builder](**options)


def pretrained(spec: ModelSpec) -> ModelSpec:
    """The spec with what its library says of the weights that it publishes.

    Raises:
        InputError: it publishes none, or the encoder's alone.
    """
    if spec.builder == "timm_encoder":
        return timm_encoder.published(spec)
    if spec.builder in ("timm_unet", "smp"):
        raise InputError(
            f"only the encoder of {spec.name} has published weights, and a random decoder predicts nothing: give a "
            "trained network with --weights FILE or --smp FOLDER"
        )
    raise InputError(f"timm publishes no weights of {spec.name}: give a file with --weights")


def build_meta(spec: ModelSpec, **overrides: Any) -> BuiltModel:
    """Build the spec's network on the meta device: shapes and names, no memory for weights."""
    try:
        with torch.device("meta"):
            built = build(spec, **overrides)
    except (NotImplementedError, RuntimeError, InputError) as error:
        if isinstance(error, InputError) and spec.builder == "nnunet":
            raise  # a stranger's plan, which would be as wrong in full, and may ask for any memory
        # Some constructors compute with tensors (RegNet its widths, mit_b0 its drop rates). What is truly wrong fails
        # again on the CPU.
        built = build(spec, **overrides)
    # Others make layers anew on the CPU, whatever the device is (smp its first one, for other than three channels).
    built.module.to("meta")
    return built


def build_without_weights(spec: ModelSpec) -> BuiltModel:
    """Build the spec's network for a caller that sets every parameter and buffer: on the meta device where it can be.

    Networks that keep tensors as plain attributes, which no file of weights holds, are built in full.
    """
    built = build_meta(spec)
    attributes = (item for child in built.module.modules() for item in vars(child).items())
    return build(spec) if any(_holds_tensors(*item) for item in attributes) else built


def _holds_tensors(name: str, value: object) -> bool:
    """Whether a module's attribute is a tensor, or a list or dict of some, that is neither parameter nor buffer."""
    if name in ("_parameters", "_buffers"):
        return False
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else (value,)
    return any(isinstance(one, torch.Tensor) for one in values)


def build_empty(spec: ModelSpec) -> BuiltModel:
    """Build the spec's network for ``random_weights.randomize``, which sets the parameters of all layers that it knows.

    Large networks take no time for random numbers that are thrown away; networks that hold anything else are built in
    full.
    """
    built = build_without_weights(spec)
    module = built.module
    known = (*random_weights.LAYERS, *random_weights.NORMS)
    for child in module.modules():
        own = (*child.parameters(recurse=False), *child.buffers(recurse=False))
        if own and not isinstance(child, known):
            return build(spec)
    if any(tensor.is_meta for tensor in module.parameters()):
        module.to_empty(device="cpu")
    return built
