"""Weights: read from files that nobody trusts, and kept between the steps of an export."""

from __future__ import annotations

import argparse
import copy
import io
import math
import re
import struct
import warnings
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import torch
from torch import nn

from segonnx import models
from segonnx.core import hardware, subprocesses
from segonnx.core.subprocesses import STEP_S, Bounds
from segonnx.errors import CheckpointError, first_line
from segonnx.models import pickles, weight_names
from segonnx.models.base import BuiltModel
from segonnx.models.weight_names import Named
from segonnx.sources.catalog import ModelSpec

WRAPPERS = (
    "state_dict_ema", "model_ema", "ema_state_dict", "ema", "state_dict", "network_weights", "model_state_dict",
    "model", "network", "net", "module", "weights",
)  # fmt: skip
"""Keys under which checkpoints keep their weights, or the module that has them, in the order in which they are looked
for: averaged weights (timm's first), STU-Net v1 and timm, nnU-Net and STU-Net v2, and common trainers."""

MAX_DIRECTORY_BYTES = 2**24
"""The most that a zip file's directory may take: some hundred thousand tensors."""

LEGACY_PICKLES = 5
"""What stands before the numbers in files of older torches: a magic number, version, system, objects, storages."""

READ_S = 20.0
READ_BYTES = 2**29
"""What reading a file may take at least, however small it is. Libraries are imported on the way."""

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer of the module once, by its first name; also buffers that a state dict leaves out."""
    return {name: tensor.detach() for name, tensor in (*module.named_parameters(), *module.named_buffers())}


def names(module: nn.Module) -> dict[str, str]:
    """Every name of the module's parameters and buffers, and the first name of the same tensor, as in ``state``."""
    every = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    first = {id(tensor): name for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    return {name: first[id(tensor)] for name, tensor in every}


def save(module: nn.Module, path: Path) -> None:
    """Write the module's state as safetensors; tensors that share their numbers each get their own."""
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in state(module).items():
        storage = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone().contiguous() if storage in seen else tensor.contiguous()
        seen.add(storage)
    save_file(tensors, path)


def restore(spec: ModelSpec, path: Path) -> BuiltModel:
    """The spec's network in its inference form, with the state that ``save`` wrote, mapped from the file.

    The weights take no memory of their own: their pages belong to the file, and are shared by all that map it.
    """
    from safetensors.torch import load_file

    built = models.build_without_weights(spec).finalized()
    module = built.module
    tensors = load_file(path)
    module.load_state_dict(tensors, strict=False, assign=True)
    for name, _ in list(module.named_buffers()):
        parent, _, leaf = name.rpartition(".")
        if leaf in module.get_submodule(parent)._non_persistent_buffers_set:  # a state dict leaves these out
            setattr(module.get_submodule(parent), leaf, tensors[name])
    return built


def load(
    built: BuiltModel, path: Path, trust: bool = False, bounds: Bounds | None = None, prefix: str | None = None
) -> BuiltModel:
    """Load a checkpoint into the network.

    Args:
        built: the network in its training form.
        path: the checkpoint, of a kind that ``content`` reads.
        trust: run the code that the file brings; see ``content``.
        bounds: what reading may take; see ``content``.
        prefix: what the names of the network's tensors begin with; None finds it.

    Returns:
        The network in the form that the checkpoint is of: the training form, or else the inference form.

    Raises:
        CheckpointError: the file can't be read, or doesn't fit the network to the last tensor.
    """
    every = read(path, trust, bounds, prefix).values
    forms = [built.module.state_dict().keys()]
    if built.finalize is not BuiltModel.finalize:
        twin = replace(built, module=copy.deepcopy(built.module).to("meta")).finalized()
        forms.append(twin.module.state_dict().keys())
    tensors = weight_names.of_network(every, forms, path).values
    if tensors.keys() != forms[0] and tensors.keys() == forms[-1]:
        built = built.finalized()
    wanted = built.module.state_dict()
    missing = [name for name in wanted if name not in tensors]
    extra = [name for name in tensors if name not in wanted]
    wrong = [name for name in wanted if name in tensors and tensors[name].shape != wanted[name].shape]
    for what, found in (("misses", missing), ("has unknown", extra), ("has other shapes for", wrong)):
        if found:
            hint = _prefix_hint(tensors, wanted) if missing and prefix is None else ""
            raise CheckpointError(f"{path} isn't of this network: it {what} {weight_names.few(found)}{hint}")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{path}: {name} holds NaN or infinite values")
    built.module.load_state_dict(tensors)
    return built


def _prefix_hint(found: Collection[str], wanted: Collection[str]) -> str:
    """What to say of a file in which most names begin otherwise than the network's."""
    strange = {name.partition(".")[0] for name in found} - {name.partition(".")[0] for name in wanted}
    if 2 * sum(name.partition(".")[0] in strange for name in found) < len(found):
        return ""
    return f"; {weight_names.begin(found)}: --weights-prefix takes those of one"


def read(
    path: Path, trust: bool = False, bounds: Bounds | None = None, prefix: str | None = None
) -> Named[torch.Tensor]:
    """The tensors of a checkpoint by name, without wrappers around them and prefixes before their names.

    Args:
        path: the checkpoint, of a kind that ``content`` reads.
        trust: run the code that the file brings; see ``content``.
        bounds: what reading may take; see ``content``.
        prefix: take only those whose names begin so; what is outside may be anything.

    Raises:
        CheckpointError: see ``content`` and ``tensors``; no name begins so.
    """
    values = _state(content(path, trust, bounds), path)
    if prefix is None:
        return Named(weight_names.unwrapped(_plain(values, path)))
    named = weight_names.under(values, prefix, path)
    return replace(named, values=_plain(named.values, path))


def content(path: Path, trust: bool = False, bounds: Bounds | None = None) -> Any:
    """All that a checkpoint holds: weights, and what its trainer kept beside them.

    Safetensors and zip files of torch are mapped: what isn't looked at takes no memory. Besides tensors and plain data,
    a torch file may hold NumPy's numbers and arrays, which training logs have.

    Args:
        path: a file of safetensors or of torch.
        trust: run the code that the file brings, where it brings any. Otherwise none of it runs, ever.
        bounds: the most memory that reading may take beside what the process has, and the most seconds. None, or
            what they leave open, lets the file's size decide; of a trusted file, the machine.

    Raises:
        CheckpointError: the file is missing, damaged or of another kind, needs code, or takes more memory.
    """
    kind = _kind(path)
    bounds, size = bounds or Bounds(), path.stat().st_size
    seconds, memory = READ_S + size / 2e6, READ_BYTES + 4 * size
    if trust:  # its code may do anything, such as import libraries
        seconds, memory = STEP_S, hardware.available_memory()
    seconds = seconds if bounds.timeout is None else bounds.timeout
    memory = memory if bounds.memory is None else bounds.memory
    try:
        # A pickle of a few bytes may ask for any memory and time; one that is honest holds what it takes.
        with subprocesses.limited(seconds, f"reading {path.name}"), subprocesses.room(memory):
            return _content(path, kind, trust)
    except CheckpointError:
        raise
    except Exception as error:
        reason = _reason(error)
        if subprocesses.ran_out_of_memory(error):
            reason = f"it takes more than {memory / 1e9:.2g} GB of memory: --max-memory allows more"
        raise CheckpointError(f"{path} can't be read{'' if trust else ' safely'}: {reason}") from error


def _content(path: Path, kind: str, trust: bool) -> Any:
    if kind == "safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    _check_zip(path) if kind == "zip" else _check_pickles(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.serialization.safe_globals(_INERT):
            return torch.load(path, map_location="cpu", weights_only=not trust, mmap=kind == "zip")


def tensors(content: object, path: Path) -> dict[str, torch.Tensor]:
    """The tensors among ``content``, by name: at its top, or under one of ``WRAPPERS``.

    Args:
        content: what a checkpoint holds.
        path: the file, for messages.

    Raises:
        CheckpointError: it holds none, other things among them, or tensors that are larger than their data.
    """
    return weight_names.unwrapped(_plain(_state(content, path), path))


def _state(content: object, path: Path) -> dict[str, Any]:
    """What ``content`` holds by name: itself, what a key of it holds, or the state of a module that trusted code made.

    Raises:
        CheckpointError: it holds nothing by name.
    """
    if isinstance(content, Mapping):
        modules = [value for value in content.values() if isinstance(value, nn.Module)]
        wrapped = [content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping | nn.Module)]
        wrapped.sort(key=lambda one: not _holds_tensors(one))  # an average's own record may have such a key, too
        content = wrapped[0] if wrapped else modules[0] if len(modules) == 1 else content
    if isinstance(content, nn.Module):
        content = content.state_dict()
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path} holds no weights by name")
    return {str(name): value for name, value in content.items()}


def _holds_tensors(value: Mapping[str, Any] | nn.Module) -> bool:
    return isinstance(value, nn.Module) or any(isinstance(one, torch.Tensor) for one in value.values())


def _plain(values: Mapping[str, Any], path: Path) -> dict[str, torch.Tensor]:
    """The values, if all are plain tensors that hold their data.

    Raises:
        CheckpointError: one isn't.
    """
    other = [name for name, tensor in values.items() if not isinstance(tensor, torch.Tensor)]
    if other:
        hint = ""
        if len(other) < len(values):
            hint = f"; {weight_names.begin(values)}: --weights-prefix takes those of one"
        raise CheckpointError(f"{path} holds things that aren't tensors: {', '.join(other[:3])}{hint}")
    # Detached they have no attributes but torch's own.
    found = {name: torch.Tensor.detach(tensor) for name, tensor in values.items()}
    for name, tensor in found.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise CheckpointError(f"{path}: {name} isn't a plain tensor of numbers")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise CheckpointError(f"{path}: {name} {tuple(tensor.shape)} is larger than the data that the file holds")
    return found


def _kind(path: Path) -> str:
    """``safetensors``, ``zip`` or ``pickle``: what the file's first bytes say that it is.

    Raises:
        CheckpointError: it's none of them.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file")
    with path.open("rb") as file:
        start = file.read(64)
    # It begins with the length of its header, whose bytes may be those that a pickle begins with.
    header = int.from_bytes(start[:8], "little")
    if start[8:9] == b"{" and 8 + header <= path.stat().st_size:
        return "safetensors"
    if start.startswith(_ZIP):
        return "zip"
    if start.startswith(_PICKLE):
        return "pickle"
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        return "safetensors"
    if not start:
        raise CheckpointError(f"{path} is empty")
    text = start.decode("ascii", "ignore")
    said = ""
    if len(text) == len(start) and text.replace("\n", " ").isprintable():
        said = f": it is a text that begins with {text.splitlines()[0][:40]!r}"
    raise CheckpointError(f"{path} is neither a torch file nor safetensors{said}")


def _check_zip(path: Path) -> None:
    """Stop at a zip file that torch didn't write: its entries are compressed, overlap, or are far too many.

    Raises:
        CheckpointError: it is one.
        ValueError, IndexError, KeyError: see ``pickles.check``.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if _directory_bytes(file, size) > MAX_DIRECTORY_BYTES:
            raise CheckpointError(f"{path} isn't a file of torch: its directory has too many entries")
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            _check_entries(entries, path, size)
            for entry in entries:
                if entry.filename.endswith(".pkl"):
                    with archive.open(entry) as pickle:
                        pickles.check(io.BytesIO(pickle.read()))


def _check_entries(entries: list[zipfile.ZipInfo], path: Path, size: int) -> None:
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise CheckpointError(f"{path} is TorchScript, which holds code: save the network's state_dict() instead")
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size for entry in entries):
        raise CheckpointError(f"{path} isn't a file of torch: its entries are compressed")
    if sum(entry.file_size for entry in entries) > size:
        raise CheckpointError(f"{path} isn't a file of torch: its entries are larger than the file")


def _check_pickles(path: Path) -> None:
    """Look at the pickles of a file as torch wrote it before it used zip files.

    Raises:
        ValueError, IndexError, KeyError: see ``pickles.check``.
    """
    with path.open("rb") as file:
        for _ in range(LEGACY_PICKLES):
            pickles.check(file)


def _directory_bytes(file: Any, size: int) -> int:
    """The size of a zip file's directory, as the record at its end says; 0 where there is none."""
    file.seek(max(0, size - 2**16))
    tail = file.read()
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) < end + 22:
        return 0
    found: int = struct.unpack_from("<I", tail, end + 12)[0]
    if found == 2**32 - 1 and (large := tail.rfind(b"PK\x06\x06", 0, end)) >= 0:
        found = struct.unpack_from("<Q", tail, large + 40)[0]
    return found


def _reason(error: Exception) -> str:
    """Why torch or safetensors refused a file, in one line."""
    text = str(error).strip()
    if (needed := re.search(r"GLOBAL (\S+)", text)) is not None:
        return (
            f"it needs {needed[1]}, which may be any code. If you trust whoever made the file, --trust-checkpoint "
            "loads it, and runs that code"
        )
    if isinstance(error, ImportError) or text.startswith("Can't get attribute"):
        return f"{first_line(error)}; it holds a module whose code must be importable: PYTHONPATH names its folder"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].startswith("Weights only load failed"):
        lines = [line.partition("WeightsUnpickler error: ")[2] for line in lines if "WeightsUnpickler error: " in line]
    return lines[0][:300] if lines and lines[0] else type(error).__name__


class _DType:
    """Stands in for NumPy's types of numbers in a pickle; types of anything else are refused."""

    def __init__(self, name: str, _align: bool = False, _copy: bool = False) -> None:
        self.value = np.dtype(str(name))
        if self.value.kind not in "biufc":
            raise ValueError(f"an array of {self.value} isn't one of numbers")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.value = self.value.newbyteorder(state[1])


class _Array(np.ndarray[Any, Any]):
    """Stands in for NumPy's arrays in a pickle: takes numbers alone, as many as there are."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, shape, dtype, fortran, data = state
        if math.prod(shape) * dtype.value.itemsize != len(data):
            raise ValueError(f"an array of {shape} doesn't fit its {len(data)} bytes")
        super().__setstate__((1, tuple(shape), dtype.value, bool(fortran), bytes(data)))  # type: ignore[arg-type]


def _reconstruct(_cls: object, _shape: tuple[SupportsIndex, ...], _typecode: object) -> _Array:
    """Stands in for NumPy's function that makes the empty array of a pickle."""
    return np.ndarray.__new__(_Array, (0,), np.uint8)


def _scalar(dtype: _DType, data: bytes) -> Any:
    """Stands in for NumPy's function that makes one number of a pickle."""
    (value,) = np.frombuffer(data, dtype.value)
    return value


# NumPy's own functions would make objects of any type and size.
_INERT: list[Any] = [
    argparse.Namespace,  # the arguments of a training, in timm's checkpoints
    (_DType, "numpy.dtype"),
    (_Array, "numpy.ndarray"),
    *((function, f"numpy.{core}.multiarray.{name}")
      for core in ("core", "_core") for function, name in ((_reconstruct, "_reconstruct"), (_scalar, "scalar"))),
]  # fmt: skip
