"""A caller's own module as an artifact: what ``segonnx.export`` does.

The module stays in the caller's process, where it may be defined in a script or a notebook, or hold what can't be
pickled. That process prepares and converts it; the checks of the file run in processes of their own, as always.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segonnx.core import hardware, subprocesses
from segonnx.core.decisions import Kind
from segonnx.core.subprocesses import Progress
from segonnx.errors import InputError, first_line
from segonnx.exporters import module_checks, module_inputs, module_outputs, naming, pipeline, pixels
from segonnx.exporters.module_inputs import MORE_TYPES, Call, dtype_of
from segonnx.exporters.module_outputs import Key, OutputAxes
from segonnx.exporters.pipeline import Exported
from segonnx.exporters.rounding import WEIGHTS_DTYPES, WeightsDtype
from segonnx.exporters.settings import Cpu, InputKind, OutputKind, Settings
from segonnx.optimize import Optimize
from segonnx.optimize.opsets import OPSET
from segonnx.sources.catalog import ModelSpec, MoreInput

if TYPE_CHECKING:
    import torch
    from torch import nn

SUFFIXES = (".onnx", ".zip", ".pt", ".pth", ".tar", ".ckpt", ".safetensors")
"""Endings of files, which the folder of an artifact hardly was meant to have."""
WORDS = ("mean=", "std=")
"""What the numbers of ``naming.normalised`` are here."""


@dataclass(frozen=True, kw_only=True)
class ModuleExport:
    """How to export a module; the keyword arguments of ``segonnx.export``, which says what each means."""

    name: str | None = None
    labels: Sequence[str] | None = None
    output: Key | Sequence[Key] | None = None
    output_axes: OutputAxes | None = None
    output_kind: Kind | None = None
    overlapping: bool | None = None
    result: OutputKind | None = None
    test_inputs: Sequence[Any] = ()
    unused: Mapping[str, str] = field(default_factory=dict)
    dynamic: bool = False
    divisor: int = 32
    optimize: Optimize = "cpu"
    cpu: Cpu = "avx512"
    opset: int = OPSET
    ir_version: int | None = None
    overwrite: bool = False
    licence: str = "unknown"
    check_with: tuple[str, ...] = ()
    input_names: Sequence[str] = ()
    output_names: Sequence[str] = ()
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    input_kind: InputKind = "float"
    weights_dtype: WeightsDtype = "float32"
    threads: int = field(default_factory=hardware.usable_cores)


def export(
    module: nn.Module, example: Any, path: Path, how: ModuleExport, progress: Progress = subprocesses.silent
) -> Exported:
    """Export a module; see ``segonnx.export``."""
    from segonnx.models.base import BuiltModel

    module_checks.require_exportable(module)
    call = module_inputs.call_of(module, example, "example input")
    path = path if path.name not in ("", "..") else path.resolve()
    _check_arguments(call, path, how)
    divisor = how.divisor if how.dynamic else None
    tests = [module_inputs.test_input(module, given, call, divisor) for given in how.test_inputs]
    with _inference(module, how) as answers, tempfile.TemporaryDirectory() as scratch:
        given = _try(module, call, how, answers)
        spec = _describe(module, call, given, path.name, how)
        unused = _unused(module, call, how)
        files = [
            module_inputs.write(one, spec, Path(scratch) / f"{number}.safetensors")
            for number, one in enumerate([call, *tests])
        ]
        settings = Settings(
            out=path.parent,
            folder=path.name,
            batch=call.image.shape[0],
            dynamic=how.dynamic,
            optimize=how.optimize,
            cpu=how.cpu,
            opset=how.opset,
            ir_version=how.ir_version,
            output=how.result,
            input=how.input_kind,
            overwrite=how.overwrite,
            threads=how.threads,
            check_with=how.check_with,
            weights_dtype=how.weights_dtype,
        )
        return pipeline.export(spec, settings, progress, BuiltModel(module, unused, inputs=tuple(files)))


def _check_arguments(call: Call, path: Path, how: ModuleExport) -> None:
    """Refuse arguments that are wrong by themselves, before any work.

    Raises:
        InputError: which.
    """
    if path.suffix.lower() in SUFFIXES:
        folder = str(path.with_suffix(""))
        raise InputError(f"path={str(path)!r} names a file; an artifact is a folder, such as {folder!r}")
    if how.weights_dtype not in WEIGHTS_DTYPES:
        raise InputError(f"weights_dtype={how.weights_dtype!r} is none of {', '.join(WEIGHTS_DTYPES)}")
    if how.divisor < 1:
        raise InputError(f"divisor={how.divisor}: spatial sizes are multiples of a whole number from 1")
    image = tuple(call.image.shape)
    if how.dynamic and any(size % how.divisor for size in image[2:]):
        raise InputError(
            f"the example input is {image}, and with dynamic=True its spatial sizes must be multiples of "
            f"divisor={how.divisor}"
        )
    _check_names(call, how)
    naming.require_normalisation(how.mean, how.std, WORDS)


def _check_names(call: Call, how: ModuleExport) -> None:
    if how.input_names and len(how.input_names) != len(call.tensors):
        raise InputError(f"input_names= has {len(how.input_names)} names for {len(call.tensors)} inputs")
    for argument, names in (("input", how.input_names), ("output", how.output_names)):
        if not all(isinstance(name, str) and name.strip() for name in names):
            raise InputError(f"an {argument} needs a name of one letter or more: {argument}_names={list(names)}")
    names = [*module_inputs.input_names(call, how.input_names), *how.output_names]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"{twice!r} is the name of two inputs or outputs: give each a name of its own")


class _Answers:
    """A hook that gives what the artifact will give, of all that a module gives."""

    def __init__(self, how: ModuleExport) -> None:
        self._path = module_outputs.path_of(how.output)
        self._how = how
        self.arranged = True
        """Whether the segmentation's axes are put in order; False gives it as the module does."""

    def __call__(self, _module: object, _inputs: object, given: Any) -> Any:
        many = len(self._how.output_names) > 1
        if many:
            first, *others = module_outputs.every(given, self._path, self._how.output_names)
        else:
            first, others = module_outputs.select(given, self._path), []
        if self.arranged:
            first = module_outputs.arranged(first, self._how.output_axes)
        return (first, *others) if many else first


@contextlib.contextmanager
def _inference(module: nn.Module, how: ModuleExport) -> Iterator[_Answers]:
    """The module in inference mode, giving what the artifact will give; afterwards it is as it was."""
    training = {child: child.training for child in module.modules()}
    answers = _Answers(how)
    hook = module.register_forward_hook(answers)
    module.eval()
    for child in training:  # some keep parts of themselves from eval()
        child.training = False
    try:
        yield answers
    finally:
        hook.remove()
        for child, was in training.items():
            child.training = was


def _try(module: nn.Module, call: Call, how: ModuleExport, answers: _Answers) -> tuple[torch.Tensor, ...]:
    """What the module gives for the example: the segmentation (N, classes, ...) of float32, then its other outputs.

    Raises:
        InputError: it gives something else, or fails.
    """
    import torch

    answers.arranged = False
    try:
        with torch.inference_mode():
            answer = call.run(module)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"the module fails on the example input: {first_line(error)}") from error
    finally:
        answers.arranged = True
    first, *others = answer if isinstance(answer, tuple) else (answer,)
    shape = tuple(first.shape)
    if not first.is_floating_point():
        raise InputError(
            f"the module gives labels itself, {shape} of {first.dtype}; it must be float32 (N, classes, spatial...): "
            "leave the argmax or threshold out of the module, and say result='labels'"
        )
    if first.dtype != torch.float32:
        raise InputError(f"the module gives {shape} of {first.dtype}; it must be float32 (N, classes, spatial...)")
    module_outputs.require_axes(first, call.image, how.output_axes)
    first = module_outputs.arranged(first, how.output_axes)
    for name, other in zip(how.output_names[1:], others, strict=True):
        if dtype_of(other) not in MORE_TYPES:
            raise InputError(f"the output {name} is of {other.dtype}; there may be {', '.join(MORE_TYPES)}")
    if how.result == "labels" and first.ndim < 3:
        raise InputError(f"the module gives {shape}, which is no logits of voxels: it has no labels")
    return (first, *others)


def _unused(module: nn.Module, call: Call, how: ModuleExport) -> dict[str, str]:
    """Why parameters may be missing from the file, by patterns of their names.

    A parameter that the chosen output doesn't depend on, and others may, is said to be those others'.

    Raises:
        InputError: a part of the module never runs, and no reason is given.
    """
    needed = module_checks.needed(module, call)
    if needed is None:
        return dict(how.unused)
    rest = [name for name, _ in module.named_parameters() if name not in needed]
    if how.output is not None:
        return {**how.unused, **{re.escape(name): f"output {how.output!r} doesn't need it" for name in rest}}
    unexplained = [name for name in rest if not any(re.fullmatch(pattern, name) for pattern in how.unused)]
    idle = module_checks.never_run(module, call) if unexplained else set()
    if found := [name for name in unexplained if name.rpartition(".")[0] in idle]:
        part = found[0].rpartition(".")[0]
        raise InputError(
            f"the module never runs {part}, whose parameters would be missing: say why, with "
            f"unused={{{re.escape(part) + '.*'!r}: 'why inference needs none of it'}}"
        )
    return dict(how.unused)


def _describe(
    module: nn.Module, call: Call, given: tuple[torch.Tensor, ...], name: str, how: ModuleExport
) -> ModelSpec:
    classes = given[0].shape[1]
    first, *others = module_inputs.input_names(call, how.input_names)
    more = zip(others, call.tensors[1:], call.arguments[1:], strict=True)
    spec = ModelSpec(
        name=how.name or name,
        family="module",
        builder="module",
        options={},
        input_shape=tuple(call.image.shape),
        num_classes=classes,
        modality="other",
        source=f"module {type(module).__qualname__}",
        divisors=(how.divisor,) * (call.image.ndim - 2),
        licence=how.licence,
        input=first,
        output=how.output_names[0] if how.output_names else None,
        gives=how.output_kind,
        overlapping=how.overlapping,
        argument=call.arguments[0],
        more_inputs=tuple(MoreInput(key, tuple(one.shape), dtype_of(one), argument) for key, one, argument in more),
        more_outputs=tuple(how.output_names[1:]),
        weights_source="the module's own, as it was in memory",
        parameters=sum(parameter.numel() for parameter in module.parameters()),
    )
    labels = (
        None if how.labels is None else dict(enumerate([how.labels] if isinstance(how.labels, str) else how.labels))
    )
    spec = naming.named(naming.normalised(spec, how.mean, how.std, WORDS), labels, "labels=")
    return pixels.taken(spec, how.input_kind, "input_kind=", WORDS)
