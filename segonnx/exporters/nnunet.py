"""From a folder that nnU-Net trained to networks that the export takes: reads the checkpoints, and counts them."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from segonnx.core import subprocesses
from segonnx.core.subprocesses import Bounds, Progress
from segonnx.errors import CheckpointError, InputError, first_line
from segonnx.exporters import postprocessing
from segonnx.sources.catalog import ModelSpec, Reference
from segonnx.sources.nnunet import archive, plans
from segonnx.sources.nnunet.folder import Which, find_checkpoints, locate
from segonnx.sources.nnunet.model_spec import CheckpointMeta, edits, model_spec, own_plan, require_belongs
from segonnx.sources.nnunet.plans import DATASET, PLANS, Plan

if TYPE_CHECKING:
    import torch


PlansFrom = Literal["folder", "checkpoint"]
"""Whose plans.json and dataset.json count: those beside the folds, or those that a checkpoint was trained with."""


@dataclass(frozen=True)
class Trained:
    """A network of a trained folder, ready for ``pipeline.export``.

    Attributes:
        spec: the network, with all that its inference needs.
        checkpoints: the files of its weights; several for the mean of several folds.
        notes: what a user should know of it, a line each.
    """

    spec: ModelSpec
    checkpoints: tuple[Path, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Selection:
    """Which networks of a trained folder to take.

    Attributes:
        fold: a number, ``all`` (nnU-Net's fold_all), ``ensemble`` (the mean of the numbered folds), numbers with
            commas between them (the mean of these), or None for each fold that is there.
        which: which of the checkpoints.
        configuration: the configuration that they must be of; None takes any.
        trust: read checkpoints that need code to run.
        plans_from: whose plans count, where they differ.
        postprocessing: a file of nnU-Net's, ``none``, or None for what the folder holds.
        reading: what reading a checkpoint may take.
    """

    fold: str | None = None
    which: Which = "final"
    configuration: str | None = None
    trust: bool = False
    plans_from: PlansFrom = "folder"
    postprocessing: str | None = None
    reading: Bounds = field(default_factory=Bounds)

    @property
    def mean(self) -> bool:
        """Whether the mean of several folds is one network."""
        return self.fold == "ensemble" or (self.fold is not None and "," in self.fold)


@dataclass(frozen=True)
class _Fold:
    """One checkpoint as it was read.

    Attributes:
        name: the fold's.
        meta: what the checkpoint says beside its weights.
        plan: what the plans say of its configuration.
        counts: the sizes of its parameters by name.
        edited: what of the plan isn't what it was trained with.
        notes: what a user should know of it.
    """

    name: str
    meta: CheckpointMeta
    plan: Plan
    counts: dict[str, int]
    edited: tuple[str, ...]
    notes: tuple[str, ...]


@contextmanager
def opened(path: Path) -> Iterator[Path]:
    """The folder that a user named; of a zip file, the folder in it, as long as the block runs.

    Raises:
        InputError: it is a file, and no zip file that nnU-Net wrote.
    """
    if path.is_file():
        with archive.unpacked(path) as folder:
            yield folder
    else:
        yield path


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
    if selection.fold is not None and not re.fullmatch(r"\d{1,3}(,\d{1,3})*|all|ensemble", selection.fold):
        raise InputError(
            f"--fold takes a number, all or ensemble, or several numbers as 0,1,2; found {selection.fold!r}"
        )
    try:
        model = locate(folder, selection.configuration)
        checkpoints = find_checkpoints(model, selection.fold, selection.which)
    except OSError as error:
        raise InputError(f"{error.filename or folder} can't be read: {error.strerror}") from error
    groups = [list(checkpoints)] if selection.mean else [[name] for name in checkpoints]
    steps = [_postprocessing(model, folds, selection) for folds in groups]
    found = subprocesses.call(read, model, checkpoints, selection, progress=progress).value
    return [_with_postprocessing(network, own) for network, own in zip(found, steps, strict=True)]


def _postprocessing(model: Path, folds: list[str], selection: Selection) -> postprocessing.Steps | None:
    """The postprocessing that goes with these folds, if any."""
    path = postprocessing.find(model, folds) if selection.postprocessing is None else Path(selection.postprocessing)
    return None if path is None or selection.postprocessing == "none" else postprocessing.read(path)


def _with_postprocessing(network: Trained, steps: postprocessing.Steps | None) -> Trained:
    if steps is None:
        return network
    described = dict(network.spec.described)
    described["inference"] = {**described["inference"], "postprocessing": steps}
    return replace(network, spec=replace(network.spec, described=described))


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
    planned, data = plans.named(plans.read_json(model / PLANS), model), plans.read_json(model / DATASET)
    folds: list[_Fold] = []
    for name, path in checkpoints.items():
        progress(f"reading {path.parent.name}/{path.name}")
        meta, tensors = _read_checkpoint(path, selection)
        if selection.configuration is not None and meta.configuration != selection.configuration:
            raise InputError(f"{path} was trained as {meta.configuration}, not {selection.configuration}")
        plan, edited, notes = _plan(meta, planned, data, model, selection.plans_from)
        require_belongs(meta, plan, model)
        if selection.mean and folds and meta.shared != folds[0].meta.shared:
            raise InputError(
                f"{path} and {folds[0].meta.path} don't go together: they differ in configuration, trainer or mirroring"
            )
        if selection.mean and folds and plan != folds[0].plan:
            raise InputError(f"{path} and {folds[0].meta.path} don't go together: they differ in their plans")
        spec = model_spec(plan, meta, [name], selection.which)
        folds.append(_Fold(name, meta, plan, _parameters(spec, tensors, meta), edited, notes))
    if len(folds) > 1 and selection.mean:
        counts = {f"folds.{i}.{name}": size for i, fold in enumerate(folds) for name, size in fold.counts.items()}
        names, changed = [fold.name for fold in folds], dict.fromkeys(what for fold in folds for what in fold.edited)
        spec = model_spec(folds[0].plan, folds[0].meta, names, selection.which, list(changed))
        notes = tuple(dict.fromkeys(note for fold in folds for note in fold.notes))
        return [Trained(_counted(spec, counts), tuple(fold.meta.path for fold in folds), notes)]
    return [
        Trained(
            _counted(model_spec(fold.plan, fold.meta, [fold.name], selection.which, fold.edited), fold.counts),
            (fold.meta.path,),
            fold.notes,
        )
        for fold in folds
    ]


def _plan(
    meta: CheckpointMeta, planned: Mapping[str, Any], data: Mapping[str, Any], model: Path, plans_from: PlansFrom
) -> tuple[Plan, tuple[str, ...], tuple[str, ...]]:
    """The plan to take for a checkpoint; what of it isn't what it was trained with; and what to tell of that.

    Raises:
        InputError: there is none, or it is of another network than the checkpoint's.
    """
    own = own_plan(meta, model)
    if plans_from == "checkpoint":
        if own is None:
            raise InputError(f"{meta.path} holds no plans that can be read: leave --plans-from checkpoint out")
        return own, (), _told_of_gaps(own)
    plan = plans.plan(planned, data, meta.configuration, model)
    found = edits(own, plan)
    if any(edit.what == "architecture" for edit in found):
        raise InputError(
            f"{meta.path} was trained as another network than the one in {model / PLANS}: undo what was changed in its "
            "architecture, or take the checkpoint's plans with --plans-from checkpoint"
        )
    if not found:
        return plan, (), _told_of_gaps(plan)
    note = (
        f"{meta.path.parent.name}: {PLANS} or {DATASET} was changed after the training: {', '.join(map(str, found))}; "
        "the changed files are taken, as nnU-Net does (--plans-from checkpoint takes the others)"
    )
    return plan, tuple(edit.what for edit in found), (note, *_told_of_gaps(plan))


def _told_of_gaps(plan: Plan) -> tuple[str, ...]:
    """What to tell of labels that aren't what their label maps hold."""
    moved = [f"{output.name} {output.labels[0]} is {output.value}" for output in plan.moved]
    if not moved:
        return ()
    told = ", ".join(moved[:4] + ["..."] * (len(moved) > 4))
    return (f"the labels in {DATASET} have gaps, and label maps have none, as nnU-Net writes them: {told}",)


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
    try:
        axes = tuple(sorted({operator.index(axis) for axis in axes}))
    except TypeError:
        axes = (-1,)
    if not all(0 <= axis <= 2 for axis in axes):
        raise CheckpointError(f"{path}: inference_allowed_mirroring_axes aren't axes of a network")
    return CheckpointMeta(
        path=path,
        configuration=str(configuration),
        trainer=str(trainer),
        mirror_axes=axes,
        plans=plans.as_json(arguments.get("plans")),
        dataset=plans.as_json(arguments.get("dataset_json")),
        shapes={name: tuple(tensor.shape) for name, tensor in tensors.items()},
    ), tensors


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

    # Networks that can't be built without memory are built in full: not if the file can't hold them.
    holds = sum(tensor.numel() for tensor in tensors.values())
    if (least := plans.least_parameters(spec.options["arguments"])) > holds:
        raise CheckpointError(
            f"{meta.path} isn't of the network that the plans describe: it holds {holds:,} numbers, and that has "
            f"{least:,} at least"
        )
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
    """The spec with the counts of its checkpoints as what its network must have.

    Raises:
        InputError: the network can't run on its input's shape.
    """
    from segonnx import models
    from segonnx.models import counting

    try:
        macs = counting.macs(models.build_meta(spec).finalized(), spec.input_shape, all_heads=False)
    except (RuntimeError, ValueError) as error:
        shape = "x".join(map(str, spec.input_shape))
        raise InputError(
            f"the network that the plans describe doesn't run on their patch, {shape}: {first_line(error)}"
        ) from error
    modules = counting.per_module(sizes.items())
    total = sum(sizes.values())
    return replace(spec, reference=Reference(total, total, modules, macs, macs))
