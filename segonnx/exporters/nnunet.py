"""From a folder that nnU-Net trained to networks that the export takes: reads the checkpoints, and counts them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segonnx.core import subprocesses
from segonnx.core.subprocesses import Bounds, Progress
from segonnx.errors import CheckpointError, InputError
from segonnx.sources.catalog import ModelSpec, Reference
from segonnx.sources.nnunet import plans
from segonnx.sources.nnunet.folder import Which, find_checkpoints, locate
from segonnx.sources.nnunet.model_spec import CheckpointMeta, model_spec, require_belongs
from segonnx.sources.nnunet.plans import DATASET, PLANS, Plan

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Trained:
    """A network of a trained folder, ready for ``pipeline.export``.

    Attributes:
        spec: the network, with all that its inference needs.
        checkpoints: the files of its weights; several for the mean of several folds.
    """

    spec: ModelSpec
    checkpoints: tuple[Path, ...]


@dataclass(frozen=True)
class Selection:
    """Which networks of a trained folder to take.

    Attributes:
        fold: a number, ``all`` (nnU-Net's fold_all), ``ensemble`` (the mean of the numbered folds), or None for each
            fold that is there.
        which: which of the checkpoints.
        configuration: the configuration that they must be of; None takes any.
        trust: read checkpoints that need code to run.
        reading: what reading a checkpoint may take.
    """

    fold: str | None = None
    which: Which = "final"
    configuration: str | None = None
    trust: bool = False
    reading: Bounds = field(default_factory=Bounds)


@dataclass(frozen=True)
class _Fold:
    """One checkpoint as it was read.

    Attributes:
        name: the fold's.
        meta: what the checkpoint says beside its weights.
        plan: what the folder says of its configuration.
        counts: the sizes of its parameters by name.
    """

    name: str
    meta: CheckpointMeta
    plan: Plan
    counts: dict[str, int]


def trained(
    folder: Path, selection: Selection | None = None, progress: Progress = subprocesses.silent
) -> list[Trained]:
    """The networks of a folder that nnU-Net trained.

    Args:
        folder: the folder of one trainer and configuration, of a data set that has one such, or one of the selected
            configuration.
        selection: which networks to take; each fold's, if None.
        progress: callback that gets the name of each step.

    Raises:
        InputError: something is missing or doesn't go together; the message says what, and where it looked.
    """
    selection = selection or Selection()
    if selection.fold is not None and not re.fullmatch(r"\d{1,3}|all|ensemble", selection.fold):
        raise InputError(f"--fold takes a number, all or ensemble; found {selection.fold!r}")
    try:
        model = locate(folder, selection.configuration)
        checkpoints = find_checkpoints(model, selection.fold, selection.which)
    except OSError as error:
        raise InputError(f"{error.filename or folder} can't be read: {error.strerror}") from error
    return subprocesses.call(read, model, checkpoints, selection, progress=progress).value


def read(model: Path, checkpoints: Mapping[str, Path], selection: Selection, progress: Progress) -> list[Trained]:
    """``trained``, in a process that has torch.

    Args:
        model: the folder of one trainer and configuration.
        checkpoints: the files to read, by fold.
        selection: what they must be of.
        progress: callback that gets the name of each step.

    Raises:
        InputError: they don't go together.
        CheckpointError: a checkpoint can't be used.
    """
    progress(f"reading {PLANS}")
    planned, data = plans.read_json(model / PLANS), plans.read_json(model / DATASET)
    folds: list[_Fold] = []
    for name, path in checkpoints.items():
        progress(f"reading {path.parent.name}/{path.name}")
        meta, tensors = _read_checkpoint(path, selection)
        if selection.configuration is not None and meta.configuration != selection.configuration:
            raise InputError(f"{path} was trained as {meta.configuration}, not {selection.configuration}")
        plan = plans.plan(planned, data, meta.configuration, model)
        require_belongs(meta, plan, model)
        if selection.fold == "ensemble" and folds and meta.shared != folds[0].meta.shared:
            raise InputError(
                f"{path} and {folds[0].meta.path} don't go together: they differ in configuration, trainer or mirroring"
            )
        spec = model_spec(plan, meta, [name], selection.which)
        folds.append(_Fold(name, meta, plan, _parameters(spec, tensors, meta)))
    if selection.fold == "ensemble":
        counts = {f"folds.{i}.{name}": size for i, fold in enumerate(folds) for name, size in fold.counts.items()}
        spec = model_spec(folds[0].plan, folds[0].meta, [fold.name for fold in folds], selection.which)
        return [Trained(_counted(spec, counts), tuple(fold.meta.path for fold in folds))]
    return [
        Trained(
            _counted(model_spec(fold.plan, fold.meta, [fold.name], selection.which), fold.counts), (fold.meta.path,)
        )
        for fold in folds
    ]


def _read_checkpoint(path: Path, selection: Selection) -> tuple[CheckpointMeta, dict[str, torch.Tensor]]:
    from segonnx.models import checkpoints

    content = checkpoints.content(path, selection.trust, selection.reading)
    if not isinstance(content, Mapping) or not isinstance(content.get("network_weights"), Mapping):
        raise CheckpointError(f"{path} isn't nnU-Net's: it holds no network_weights")
    tensors = checkpoints.tensors(content["network_weights"], path)
    arguments = content.get("init_args")
    arguments = arguments if isinstance(arguments, Mapping) else {}
    configuration, trainer = arguments.get("configuration"), content.get("trainer_name")
    for what, value in (("init_args/configuration", configuration), ("trainer_name", trainer)):
        if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= 200:
            raise CheckpointError(f"{path} isn't nnU-Net's: it holds no {what}")
    axes = content.get("inference_allowed_mirroring_axes")
    axes = () if axes is None else axes
    if not isinstance(axes, Sequence) or not all(isinstance(axis, int) and 0 <= axis <= 2 for axis in axes):
        raise CheckpointError(f"{path}: inference_allowed_mirroring_axes aren't axes of a network")
    return CheckpointMeta(
        path=path,
        configuration=str(configuration),
        trainer=str(trainer),
        mirror_axes=tuple(sorted(set(axes))),
        plans=_as_json(arguments.get("plans")),
        dataset=_as_json(arguments.get("dataset_json")),
    ), tensors


def _as_json(value: object) -> Mapping[str, Any] | None:
    """What a checkpoint holds as it would stand in a JSON file; None if it couldn't."""
    try:
        result = json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        return None
    return result if isinstance(result, Mapping) else None


def _parameters(spec: ModelSpec, tensors: Mapping[str, torch.Tensor], meta: CheckpointMeta) -> dict[str, int]:
    """The sizes of the checkpoint's parameters, each once, under the first of its names.

    A decoder registers its encoder again, and a block its layers: what has several names in the network must be one
    tensor in the file, or hold the same numbers.

    Raises:
        CheckpointError: the checkpoint is of another network.
    """
    import torch

    from segonnx import models
    from segonnx.models import checkpoints

    module = models.build_meta(spec).module
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if wrong := [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]:
        raise CheckpointError(
            f"{meta.path} isn't of the network that the plans describe ({len(wrong)} tensors differ, first {wrong[0]}: "
            f"{found.get(wrong[0], 'missing')}, expected {wanted.get(wrong[0], 'none')}); {meta.trainer} trained it"
        )
    names = checkpoints.names(module)
    parameters = {name for name, _ in module.named_parameters()}
    sizes: dict[str, int] = {}
    for name, tensor in tensors.items():
        first = tensors[names[name]]
        if tensor.data_ptr() != first.data_ptr() and not torch.equal(tensor, first):
            raise CheckpointError(
                f"{meta.path}: {name} and {names[name]} are one tensor of the network, and differ in the file"
            )
        if names[name] in parameters:
            sizes[names[name]] = tensor.numel()
    return sizes


def _counted(spec: ModelSpec, sizes: Mapping[str, int]) -> ModelSpec:
    """The spec with the counts of its checkpoints as what its network must have."""
    from segonnx import models
    from segonnx.models import counting

    macs = counting.macs(models.build_meta(spec).finalized(), spec.input_shape, all_heads=False)
    modules = counting.per_module(sizes.items())
    total = sum(sizes.values())
    return replace(spec, reference=Reference(total, total, modules, macs, macs))
