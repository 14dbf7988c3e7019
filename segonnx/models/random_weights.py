"""Random weights that make a numeric check mean something.

Untrained networks compute nonsense of nonsensical size: logits of 1e-13 in one, of 1e9 in another, biases that are all
zero and scales that are all one, so that swapping two channels changes nothing. Here every parameter gets a value of
its own from a seed; then one forward pass on data sets each layer's scale, and each BatchNorm's statistics, so that
every layer's output has about unit variance (layer-sequential unit variance, Mishkin and Matas, arXiv 1511.06422).
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

LAYERS = (_ConvNd, nn.Linear)
NORMS = (_BatchNorm, _InstanceNorm, nn.LayerNorm, nn.GroupNorm)


@torch.no_grad()
def randomize(module: nn.Module, seed: int) -> None:
    """Give every parameter of the convolutions, linear layers and norms a value that depends on seed and name alone.

    Weights are normal with standard deviation 1 / sqrt(fan-in); a norm's scale is normal around 1; biases are normal
    around 0. Parameters of other layers (embeddings, layer scales) keep what their constructor gave them.
    """
    for path, layer in module.named_modules():
        if not isinstance(layer, (*LAYERS, *NORMS)):
            continue
        for name, parameter in layer.named_parameters(recurse=False):
            generator = torch.Generator().manual_seed(_seed(seed, f"{path}.{name}"))
            if parameter.ndim > 1:
                fan_in = parameter[0].numel()
                if isinstance(layer, _ConvNd) and layer.transposed:
                    fan_in = parameter.shape[0]
                parameter.normal_(0, 1 / math.sqrt(fan_in), generator=generator)
            else:
                centre = 1.0 if isinstance(layer, NORMS) and name == "weight" else 0.0
                parameter.normal_(centre, 0.2, generator=generator)
        if isinstance(layer, (_BatchNorm, _InstanceNorm)):
            layer.reset_running_stats()


@torch.no_grad()
def initialise(module: nn.Module, x: torch.Tensor) -> None:
    """Scale every convolution and linear layer to unit variance on ``x``, and set BatchNorm statistics from it.

    Args:
        module: the training form; it is left in eval mode.
        x: inputs, (N, C, spatial...).
    """
    done: set[nn.Module] = set()

    def scale(layer: nn.Module, _: object, output: torch.Tensor) -> torch.Tensor | None:
        if layer in done:
            return None
        done.add(layer)
        std = output.std().item()
        if not std > 1e-6:  # a layer whose input happens to be constant has no scale to set
            return None
        for parameter in layer.parameters(recurse=False):
            parameter.div_(std)
        return output.div_(std)

    norms = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    hooks = [layer.register_forward_hook(scale) for layer in module.modules() if isinstance(layer, LAYERS)]
    module.eval()
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    try:
        module(x)
    finally:
        for hook in hooks:
            hook.remove()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        module.eval()


def _seed(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7], "big")
