"""A caller's own module as an artifact: what ``segonnx.export`` does.

The module stays in the caller's process, where it may be defined in a script or a notebook, or hold what can't be
pickled. That process prepares and converts it; the checks of the file run in processes of their own, as always.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segonnx.core import hardware, subprocesses
from segonnx.core.subprocesses import Progress
from segonnx.errors import InputError, first_line
from segonnx.exporters import pipeline
from segonnx.exporters.accounting import FEW
from segonnx.exporters.pipeline import Exported
from segonnx.exporters.settings import OutputKind, Settings
from segonnx.optimize import Optimize
from segonnx.sources.catalog import ModelSpec

if TYPE_CHECKING:
    import torch
    from torch import nn

AXES = {4: "images (N, C, H, W)", 5: "volumes (N, C, D, H, W)"}


@dataclass(frozen=True, kw_only=True)
class ModuleExport:
    """How to export a module; the keyword arguments of ``segonnx.export``, which says what each means."""

    name: str | None = None
    labels: Sequence[str] | None = None
    output: str | int | None = None
    result: OutputKind = "logits"
    unused: Mapping[str, str] = field(default_factory=dict)
    dynamic: bool = False
    divisor: int = 32
    optimize: Optimize = "cpu"
    overwrite: bool = False
    licence: str = "unknown"
    input_name: str = "input"
    output_name: str | None = None
    threads: int = field(default_factory=hardware.usable_cores)


def export(
    module: nn.Module, example: torch.Tensor, path: Path, how: ModuleExport, progress: Progress = subprocesses.silent
) -> Exported:
    """Export a module; see ``segonnx.export``."""
    from segonnx.models.base import BuiltModel

    _check_example(example)
    _check_module(module)
    path = path if path.name not in ("", "..") else path.resolve()
    with _inference(module, how.output):
        classes = _count_classes(module, example, how)
        unused = {**how.unused, **({} if how.output is None else {".*": f"output {how.output!r} doesn't need it"})}
        settings = Settings(
            out=path.parent,
            folder=path.name,
            batch=example.shape[0],
            dynamic=how.dynamic,
            optimize=how.optimize,
            output=how.result,
            overwrite=how.overwrite,
            threads=how.threads,
        )
        spec = _describe(module, example, path.name, classes, how)
        return pipeline.export(spec, settings, progress, BuiltModel(module, unused))


def _count_classes(module: nn.Module, example: torch.Tensor, how: ModuleExport) -> int:
    """How many classes the module gives.

    Raises:
        InputError: it gives something else, or not what was asked for.
    """
    logits = _try(module, example)
    classes = logits.shape[1]
    if how.labels is not None and len(how.labels) != classes:
        raise InputError(f"the module gives {classes} classes, labels= names {len(how.labels)}")
    if how.result == "labels" and logits.ndim < 3:
        raise InputError(f"the module gives {tuple(logits.shape)}, which is no logits of voxels: it has no labels")
    return classes


def _describe(module: nn.Module, example: torch.Tensor, name: str, classes: int, how: ModuleExport) -> ModelSpec:
    labels = how.labels
    return ModelSpec(
        name=how.name or name,
        family="module",
        builder="module",
        options={},
        input_shape=tuple(example.shape),
        num_classes=classes,
        modality="other",
        source=f"module {type(module).__qualname__}",
        divisors=(how.divisor,) * (example.ndim - 2),
        licence=how.licence,
        input=how.input_name,
        output=how.output_name,
        weights_source="the module's own, as it was in memory",
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        described={} if labels is None else {"labels": [_label(i, text) for i, text in enumerate(labels)]},
    )


def _label(value: int, name: str) -> dict[str, Any]:
    return {"name": str(name), "value": value, "labels": [value]}


def _check_example(example: object) -> None:
    import torch

    if not isinstance(example, torch.Tensor):
        raise InputError(f"the example input is a {type(example).__name__}; segonnx exports networks of one tensor")
    if example.ndim not in AXES or example.dtype != torch.float32:
        raise InputError(
            f"the example input is {tuple(example.shape)} of {example.dtype}; it must be float32, "
            + " or ".join(AXES.values())
        )


def _check_module(module: object) -> None:
    """Stop at what the artifact couldn't hold, or couldn't account for."""
    import torch
    from torch import nn
    from torch.nn.parameter import is_lazy

    if not isinstance(module, nn.Module):
        raise InputError(f"a {type(module).__name__} is no torch.nn.Module")
    if isinstance(module, torch.jit.ScriptModule):
        raise InputError("a TorchScript module can't be exported: give the module that it was made of")
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(tensor):
            raise InputError(f"{name} has no values yet: run the module once")
        if tensor.device.type != "cpu":
            raise InputError(f"{name} is on {tensor.device}: give module.cpu()")
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise InputError(f"{name} is of {tensor.dtype}; artifacts compute in float32: give module.float()")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{name} holds NaN or infinite values")
    for path, child in module.named_modules():
        for name, value in vars(child).items():
            if isinstance(value, torch.Tensor) and value.numel() > FEW:
                place = f"{path}.{name}" if path else name
                raise InputError(
                    f"{place} is a tensor that no state_dict holds: use register_buffer, so that it counts"
                )


@contextlib.contextmanager
def _inference(module: nn.Module, output: str | int | None) -> Iterator[None]:
    """The module in inference mode, giving one of its outputs; afterwards it is as it was."""
    training = {child: child.training for child in module.modules()}
    hook = None if output is None else module.register_forward_hook(lambda _module, _inputs, given: given[output])
    module.eval()
    for child in training:  # some keep parts of themselves from eval()
        child.training = False
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()
        for child, was in training.items():
            child.training = was


def _try(module: nn.Module, example: torch.Tensor) -> torch.Tensor:
    """What the module gives for the example: a tensor (N, classes, ...) of float32.

    Raises:
        InputError: it gives something else, or fails.
    """
    import torch

    try:
        with torch.inference_mode():
            given = module(example.detach().cpu())
    except Exception as error:
        raise InputError(f"the module fails on the example input: {first_line(error)}") from error
    if isinstance(given, dict):
        raise InputError(f"the module gives several outputs: choose one with output=, of {', '.join(map(repr, given))}")
    if isinstance(given, (list, tuple)):
        raise InputError(f"the module gives {len(given)} outputs: choose one with output=, from 0 to {len(given) - 1}")
    if not isinstance(given, torch.Tensor):
        raise InputError(f"the module gives a {type(given).__name__}, not a tensor")
    if given.ndim < 2 or given.shape[0] != example.shape[0] or given.dtype != torch.float32:
        raise InputError(
            f"the module gives {tuple(given.shape)} of {given.dtype}; it must be float32 (N, classes, spatial...)"
        )
    return given
