"""The network families, and how a system's network is built.

To add a family: one file here with a ``build`` function that returns a ``Network``, and one line in ``BUILDERS``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from segonnx.errors import InputError
from segonnx.models import nnunet, plain_unet, random_weights, smp, stunet, timm_encoder, timm_unet
from segonnx.models.base import Network
from segonnx.sources.catalog import System

BUILDERS: dict[str, Callable[..., Network]] = {
    "stunet": stunet.build,
    "plain_unet": plain_unet.build,
    "timm_unet": timm_unet.build,
    "timm_encoder": timm_encoder.build,
    "smp": smp.build,
    "nnunet": nnunet.build,
}


def build(system: System, **overrides: Any) -> Network:
    """Build the system's network on the CPU with its library's initial weights.

    ``overrides`` replace the system's options, for example ``num_classes=105``.
    """
    options = {**system.options, "num_classes": system.num_classes, **overrides}
    return BUILDERS[system.builder](**options)


def pretrained(system: System) -> System:
    """The system with what its library says of the weights that it publishes.

    Raises:
        InputError: it publishes none of the whole network.
    """
    if system.builder == "timm_encoder":
        return timm_encoder.published(system)
    if system.builder in ("timm_unet", "smp"):
        raise InputError(
            f"only the encoder of {system.name} has published weights, and a random decoder predicts nothing: give a "
            "trained network with --weights FILE or --smp FOLDER"
        )
    raise InputError(f"timm publishes no weights of {system.name}: give a file with --weights")


def build_meta(system: System, **overrides: Any) -> Network:
    """Build the system's network on the meta device: shapes and names, no memory for weights."""
    try:
        with torch.device("meta"):
            return build(system, **overrides)
    except (NotImplementedError, RuntimeError, InputError):
        # Some constructors compute with tensors (RegNet its widths, mit_b0 its drop rates). What is truly wrong fails
        # again on the CPU.
        network = build(system, **overrides)
        network.module.to("meta")
        return network


def build_without_weights(system: System) -> Network:
    """Build the system's network for a caller that sets every parameter and buffer: on the meta device where it can be.

    Networks that keep tensors as plain attributes, which no file of weights holds, are built in full.
    """
    network = build_meta(system)
    attributes = (value for child in network.module.modules() for value in vars(child).values())
    return build(system) if any(isinstance(value, torch.Tensor) for value in attributes) else network


def build_empty(system: System) -> Network:
    """Build the system's network for ``seeded.randomize``, which sets the parameters of all layers that it knows.

    Large networks take no time for random numbers that are thrown away; networks that hold anything else are built in
    full.
    """
    network = build_without_weights(system)
    module = network.module
    known = (*random_weights.LAYERS, *random_weights.NORMS)
    for child in module.modules():
        own = (*child.parameters(recurse=False), *child.buffers(recurse=False))
        if own and not isinstance(child, known):
            return build(system)
    if any(tensor.is_meta for tensor in module.parameters()):
        module.to_empty(device="cpu")
    return network
