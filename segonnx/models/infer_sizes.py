"""What a checkpoint tells of the network that it is of: its classes, its input channels, and which network it is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from segonnx import models
from segonnx.errors import CheckpointError, InputError
from segonnx.models import weight_names
from segonnx.sources import catalog
from segonnx.sources.catalog import ModelSpec

BUILDERS = ("stunet", "plain_unet", "timm_unet", "timm_encoder", "smp")
"""The families whose classes and input channels are read off their checkpoints."""

Shapes = Mapping[str, tuple[int, ...]]


def infer(spec: ModelSpec, tensors: Mapping[str, torch.Tensor], path: Path) -> ModelSpec:
    """The spec with the classes and the input channels of a checkpoint.

    What was published of it stays where it holds for that many classes; the counted reference doesn't.

    Args:
        spec: what the checkpoint is said to be of.
        tensors: the checkpoint's, by name.
        path: the checkpoint's file, for messages.

    Raises:
        CheckpointError: it is of another reference system, or has the network twice; the message says which.
    """
    every = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    named = weight_names.of_network(every, _forms(spec), path)
    sized = _sized(spec, named.values)
    if not _is_of(sized, named.values):
        for other in catalog.systems():
            forms = _forms(other)
            shapes = weight_names.of_network(every, forms, path).values
            names = set().union(*forms)
            if other.name != spec.name and names >= shapes.keys() and _is_of(_sized(other, shapes), shapes):
                raise CheckpointError(f"{path} isn't of {spec.name}, it is of {other.name}: export that")
    return noted(sized, named.note, path)


def noted(spec: ModelSpec, note: str, path: Path) -> ModelSpec:
    """The spec with what there is to say of the file of its weights, if anything."""
    return replace(spec, weights_source=f"file {path.name}, {note}") if note else spec


def _sized(spec: ModelSpec, shapes: Shapes) -> ModelSpec:
    channels = spec.input_shape[1]
    num_classes = _differing(spec, shapes, "num_classes", spec.num_classes)
    in_channels = _differing(spec, shapes, "in_channels", channels)
    if (num_classes, in_channels) == (spec.num_classes, channels):
        return spec
    options: dict[str, Any] = dict(spec.options)
    if in_channels != channels:
        options["in_channels"] = in_channels
    holds = [f for f in spec.published if (f.num_classes or spec.num_classes) == num_classes]
    return replace(
        spec,
        options=options,
        input_shape=(spec.input_shape[0], in_channels, *spec.input_shape[2:]),
        num_classes=num_classes,
        published=tuple(replace(f, num_classes=None) for f in holds) if in_channels == channels else (),
        published_macs=(),
        reference=None,
        parameters=sum(math.prod(shape) for shape in shapes.values()),
    )


def _differing(spec: ModelSpec, shapes: Shapes, option: str, value: int) -> int:
    """The value of a builder's option that makes the network's shapes those of the checkpoint; else ``value``.

    Two networks that differ by one in that option tell which tensors it sets, along which axis.
    """
    try:
        here, grown = _forms(spec), _forms(spec, **{option: value + 1})
    except InputError:  # smp's mit_b0 takes three channels alone
        return value
    found = set()
    for own, other in zip(here, grown, strict=True):
        for name in own.keys() & shapes.keys():
            axes = [i for i, (a, b) in enumerate(zip(own[name], other[name], strict=True)) if a != b]
            if len(axes) == 1 and len(shapes[name]) == len(own[name]):
                found.add(shapes[name][axes[0]])
    return found.pop() if len(found) == 1 else value


def _is_of(spec: ModelSpec, shapes: Shapes) -> bool:
    return any(form == shapes for form in _forms(spec))


def _forms(spec: ModelSpec, **overrides: Any) -> tuple[Shapes, ...]:
    """The shapes of the network's tensors by name, in its training form and in its inference form."""
    built = models.build_meta(spec, **overrides)
    training = {name: tuple(tensor.shape) for name, tensor in built.module.state_dict().items()}
    module = built.finalized().module
    return training, {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
