"""What every network family gives: a module, and what is special about its parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn


def _as_it_is(module: nn.Module) -> nn.Module:
    return module


@dataclass(frozen=True)
class BuiltModel:
    """A network as it was trained, and how it is made ready for inference.

    Attributes:
        module: the network in its training form, which checkpoints are loaded into.
        unused: regular expressions of the names of parameters that inference doesn't use, with the reason.
        finalize: turns the training form, weights loaded, into the inference form (MobileOne's branches become one
            convolution); most networks have one form only.
        training_forward: runs every head that holds parameters, where inference runs fewer.
        members: the parts that each have a checkpoint of their own; empty where one checkpoint holds all.
        inputs: files of the caller's own test inputs, the example first: see ``parity_inputs.ModuleInput``.
    """

    module: nn.Module
    unused: Mapping[str, str] = field(default_factory=dict)
    finalize: Callable[[nn.Module], nn.Module] = _as_it_is
    training_forward: Callable[[torch.Tensor], object] | None = None
    members: tuple[nn.Module, ...] = ()
    inputs: tuple[Path, ...] = ()

    def finalized(self) -> BuiltModel:
        """The same network in its inference form, in eval mode."""
        return replace(self, module=self.finalize(self.module).eval(), finalize=_as_it_is)
