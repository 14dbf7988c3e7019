"""Weights: read from files that nobody trusts, and kept between the steps of an export."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from segonnx import models
from segonnx.catalog import System
from segonnx.errors import CheckpointError
from segonnx.models.base import Network

WRAPPERS = ("state_dict", "network_weights", "model_state_dict", "model")
"""Keys under which checkpoints keep their weights: STU-Net v1, nnU-Net and STU-Net v2, and common trainers."""


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer of the module once, by its first name; also buffers that a state dict leaves out."""
    return {name: tensor.detach() for name, tensor in (*module.named_parameters(), *module.named_buffers())}


def names(module: nn.Module) -> dict[str, str]:
    """Every name of the module's parameters and buffers, and the first name of the same tensor, as in ``state``."""
    every = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    first = {id(tensor): name for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    return {name: first[id(tensor)] for name, tensor in every}


def save(module: nn.Module, path: Path) -> None:
    """Write the module's state as safetensors."""
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in state(module).items()}, path)


def restore(system: System, path: Path) -> Network:
    """The system's network in its inference form, with the state that ``save`` wrote, mapped from the file.

    The weights take no memory of their own: their pages belong to the file, and are shared by all that map it.
    """
    from safetensors.torch import load_file

    network = models.build_without_weights(system).finalized()
    module = network.module
    tensors = load_file(path)
    module.load_state_dict(tensors, strict=False, assign=True)
    for name, _ in list(module.named_buffers()):
        parent, _, leaf = name.rpartition(".")
        if leaf in module.get_submodule(parent)._non_persistent_buffers_set:  # a state dict leaves these out
            setattr(module.get_submodule(parent), leaf, tensors[name])
    return network


def load(network: Network, path: Path) -> None:
    """Load a checkpoint into the network's training form.

    Files of safetensors are preferred. Anything else is read by torch with ``weights_only``: no code of the file runs.

    Args:
        network: the network, built.
        path: a ``.safetensors`` file, or a torch file that holds the weights at its top or under one of ``WRAPPERS``.

    Raises:
        CheckpointError: the file is missing, unreadable or unsafe, or doesn't fit the network to the last tensor.
    """
    tensors = read(path)
    wanted = network.module.state_dict()
    missing = [name for name in wanted if name not in tensors]
    extra = [name for name in tensors if name not in wanted]
    wrong = [name for name in wanted if name in tensors and tensors[name].shape != wanted[name].shape]
    for what, found in (("misses", missing), ("has unknown", extra), ("has other shapes for", wrong)):
        if found:
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            raise CheckpointError(f"{path} isn't of this network: it {what} {', '.join(found[:3])}{more}")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{path}: {name} holds NaN or infinite values")
    network.module.load_state_dict(tensors)


def read(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint by name.

    Raises:
        CheckpointError: see ``load``.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: object = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise CheckpointError(
            f"{path} can't be read safely: {reason[0] if reason else type(error).__name__}"
        ) from error
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path} holds no weights by name")
    other = [name for name, tensor in content.items() if not isinstance(tensor, torch.Tensor)]
    if other:
        raise CheckpointError(f"{path} holds things that aren't tensors: {', '.join(map(str, other[:3]))}")
    return {str(name): tensor for name, tensor in content.items()}


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"
