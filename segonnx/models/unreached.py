"""Parameters that a network holds and its output doesn't depend on: found by running it, not by a table."""

from __future__ import annotations

import re
from dataclasses import replace

import torch
from torch import nn

from segonnx.models.base import BuiltModel

REASON = "of layers that the output doesn't depend on: with NaN in them the network gives the same"


def explain(built: BuiltModel, twin: nn.Module, x: torch.Tensor) -> BuiltModel:
    """The network with the parameters that its output doesn't depend on among its unused ones.

    Args:
        built: the network in its inference form, with its weights.
        twin: the same on the meta device, where a pass takes no time.
        x: an input, (N, C, spatial...).
    """
    found = without_gradient(twin, x.to("meta"))
    if found is None:  # it computes with tensors of its own, which are on the CPU
        found = without_gradient(built.module, x) or []
    names = [name for name in found if not any(re.fullmatch(pattern, name) for pattern in built.unused)]
    if not names or not same_with_nan(built.module, names, x):
        return built
    return replace(built, unused={**built.unused, "|".join(map(re.escape, names)): REASON})


def without_gradient(module: nn.Module, x: torch.Tensor) -> list[str] | None:
    """The parameters that no gradient of the output reaches; None where that can't be told.

    Args:
        module: in inference form; every one of its parameters gets to want a gradient.
        x: an input on the module's device.
    """
    parameters = {name: one for name, one in module.named_parameters() if one.is_floating_point()}
    try:
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        output = module.eval()(x)
        gradients = torch.autograd.grad(output.sum(), [*parameters.values()], allow_unused=True)
    except Exception:  # noqa: BLE001 (whatever fails there, such as computing in place, tells nothing)
        return None
    return [name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None]


@torch.inference_mode()
def same_with_nan(module: nn.Module, names: list[str], x: torch.Tensor) -> bool:
    """Whether the module gives the same to the last bit where these parameters are NaN."""
    parameters = dict(module.named_parameters())
    poisoned = {name: torch.full_like(parameters[name], torch.nan) for name in names}
    return torch.equal(module(x), torch.func.functional_call(module, poisoned, (x,)))
