"""Counting what a network holds and what a pass through it costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import torch
from torch import nn

from segonnx.models.base import BuiltModel

MODULE_DEPTH = 3
"""How many parts of a parameter's name make the module that it's counted under."""


def parameters(module: nn.Module) -> int:
    """The number of parameters, shared ones counted once."""
    return sum(parameter.numel() for parameter in module.parameters())


def parameters_per_module(module: nn.Module) -> dict[str, int]:
    """Parameters per module, in the order of the network; they add up to ``parameters(module)``."""
    return per_module((name, parameter.numel()) for name, parameter in module.named_parameters())


def per_module(sizes: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Parameters per module, from their names and sizes."""
    counts: Counter[str] = Counter()
    for name, size in sizes:
        path = name.split(".")[:-1]
        counts[".".join(path[:MODULE_DEPTH]) or name] += size
    return dict(counts)


def macs(built: BuiltModel, shape: tuple[int, ...], *, all_heads: bool, run: Callable[[], object] | None = None) -> int:
    """Multiply-adds of one pass: convolutions, linear layers, matrix products and attention.

    Args:
        built: the network in its inference form; on the meta device the pass takes no time.
        shape: the input's, (N, C, spatial...).
        all_heads: count the heads that only training runs too, as papers do.
        run: runs the network in inference on an input that it takes; None gives it zeros.
    """
    from torch.nn.utils import parametrize
    from torch.utils.flop_counter import FlopCounterMode

    module = built.module.eval()
    forward = built.training_forward if all_heads and built.training_forward is not None else module
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), parametrize.cached():
        for child in module.modules():
            for name in getattr(child, "parametrizations", ()):
                getattr(child, name)  # computed now and kept: the counter fails on weight_norm
        with counter:
            if run is not None:
                run()
            else:
                forward(torch.zeros(shape, device=next((p.device for p in module.parameters()), None)))
    return int(counter.get_total_flops()) // 2
