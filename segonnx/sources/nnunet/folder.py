"""From a folder that nnU-Net trained to systems that the export takes: what is there, and what it says.

nnU-Net leaves ``DATASET/TRAINER__PLANS__CONFIGURATION/`` with ``plans.json``, ``dataset.json`` and, for each fold,
``fold_X/checkpoint_final.pth``. The checkpoint says which configuration it is of, which trainer made it, and along
which axes inference may mirror.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from segonnx.core import subprocesses
from segonnx.core.subprocesses import Progress
from segonnx.errors import CheckpointError, InputError
from segonnx.sources.catalog import ModelSpec, Reference
from segonnx.sources.nnunet import plans, totalsegmentator
from segonnx.sources.nnunet.plans import DATASET, PLANS, Plan

if TYPE_CHECKING:
    import torch

Which = Literal["final", "best"]

TILE_STEP = 0.5
SIGMA_SCALE = 0.125
"""nnU-Net's defaults: windows overlap by half, and weigh as a Gaussian with sigma = an eighth of the window."""


@dataclass(frozen=True)
class Trained:
    """A network of a folder, ready for ``pipeline.export``.

    Attributes:
        spec: the network, with all that its inference needs.
        checkpoints: the files of its weights; several for the mean of several folds.
    """

    spec: ModelSpec
    checkpoints: tuple[Path, ...]


@dataclass(frozen=True)
class _Meta:
    """What a checkpoint says beside its weights."""

    path: Path
    configuration: str
    trainer: str
    mirror_axes: tuple[int, ...]
    plans: Mapping[str, Any] | None
    dataset: Mapping[str, Any] | None

    @property
    def alike(self) -> tuple[str, str, tuple[int, ...]]:
        """What all folds of an ensemble must share."""
        return self.configuration, self.trainer, self.mirror_axes


def trained(
    folder: Path,
    *,
    fold: str | None = None,
    which: Which = "final",
    configuration: str | None = None,
    trust: bool = False,
    progress: Progress = subprocesses.silent,
) -> list[Trained]:
    """The networks of a folder that nnU-Net trained.

    Args:
        folder: of one trainer and configuration, or of a data set that has one such, or one of that configuration.
        fold: a number, ``all`` (nnU-Net's fold_all), ``ensemble`` (the mean of the numbered folds), or None for each
            fold that is there.
        which: of the checkpoints.
        configuration: what it must be of.
        trust: read checkpoints that need code to run.
        progress: told of each step.

    Raises:
        InputError: something is missing or doesn't go together; the message says what, and where it looked.
    """
    if fold is not None and not re.fullmatch(r"\d{1,3}|all|ensemble", fold):
        raise InputError(f"--fold takes a number, all or ensemble; found {fold!r}")
    try:
        model = locate(folder, configuration)
        checkpoints = find_checkpoints(model, fold, which)
    except OSError as error:
        raise InputError(f"{error.filename or folder} can't be read: {error.strerror}") from error
    return subprocesses.call(_read, model, checkpoints, fold, which, configuration, trust, progress=progress).value


def locate(folder: Path, configuration: str | None = None) -> Path:
    """The folder of one trainer and configuration: ``folder``, or the only one in it that fits.

    Raises:
        InputError: there is none, or there are several.
    """
    if folder.is_file():
        raise InputError(f"{folder} is a file: unpack it, and give the folder that holds {PLANS} and fold_0")
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    if _is_model(folder):
        return folder
    if re.fullmatch(r"fold_(\d+|all)", folder.name):
        raise InputError(f"{folder} is one fold: give {folder.resolve().parent} with --fold {folder.name[5:]}")
    children = sorted(child for child in folder.iterdir() if child.is_dir())
    models = [child for child in children if _is_model(child)]
    chosen = [m for m in models if configuration is None or m.name.rpartition("__")[2] == configuration]
    if len(chosen) == 1:
        return chosen[0]
    names = ", ".join(child.name for child in models)
    if len(chosen) > 1:
        hint = "" if configuration is not None else ", or the configuration with --configuration"
        raise InputError(f"{folder} holds {len(chosen)} trained folders; name one{hint}: {names}")
    if models:
        raise InputError(f"{folder} holds no trained folder of {configuration!r}; it has {names}")
    sets = [child.name for child in children if any(_is_model(inner) for inner in child.iterdir() if inner.is_dir())]
    if sets:
        raise InputError(f"{folder} holds the results of {len(sets)} data sets; name one: {', '.join(sets)}")
    raise InputError(
        f"{folder} is no folder that nnU-Net trained: neither it nor a folder in it holds {PLANS} and fold_0, fold_1, "
        "... (nnU-Net writes them to nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION)"
    )


def _is_model(folder: Path) -> bool:
    return (folder / PLANS).is_file() or any(folder.glob("fold_*/"))


def find_checkpoints(model: Path, fold: str | None, which: Which) -> dict[str, Path]:
    """The checkpoints to take, by fold, in order.

    Raises:
        InputError: there are none, or too few for an ensemble; the message says which there are.
    """
    for name in (PLANS, DATASET):
        if not (model / name).is_file():
            raise InputError(f"{model} lacks {name}, which nnU-Net writes beside its folds")
    names = sorted(
        (
            path.name.removeprefix("fold_")
            for path in model.glob("fold_*/")
            if re.fullmatch(r"fold_(\d+|all)", path.name)
        ),
        key=lambda name: (name == "all", int(name) if name.isdecimal() else 0),
    )
    file = f"checkpoint_{which}.pth"
    found = {name: model / f"fold_{name}" / file for name in names if (model / f"fold_{name}" / file).is_file()}
    if fold == "ensemble":
        numbered = {name: path for name, path in found.items() if name != "all"}
        if len(numbered) < 2:
            have = ", ".join(f"fold_{name}" for name in numbered) or "none"
            raise InputError(f"--fold ensemble needs {file} in at least two numbered folds of {model}; found {have}")
        return numbered
    if fold is not None:
        name = str(int(fold)) if fold.isdecimal() else fold
        if name in found:
            return {name: found[name]}
        if name not in names:
            raise InputError(
                f"{model} has no fold_{name}; it has {', '.join(f'fold_{n}' for n in names) or 'no folds'}"
            )
        names = [name]
    elif found:
        return found
    if not names:
        raise InputError(f"{model} has no folds: it holds no fold_0, fold_1, ... or fold_all")
    there = sorted({path.name for name in names for path in (model / f"fold_{name}").glob("checkpoint_*.pth")})
    where = f"{model}/fold_{names[0]}" if len(names) == 1 else f"{model}/fold_*"
    other = "best" if which == "final" else "final"
    hint = ": the training has not ended" if there else ""
    if f"checkpoint_{other}.pth" in there:
        hint = f"; --checkpoint {other} takes the other"
    raise InputError(f"{where} lacks {file}; it has {', '.join(there) or 'no checkpoint'}{hint}")


def _read(
    model: Path,
    checkpoints: Mapping[str, Path],
    fold: str | None,
    which: Which,
    configuration: str | None,
    trust: bool,
    progress: Progress,
) -> list[Trained]:
    """``trained``, in a process that has torch."""
    progress(f"reading {PLANS}")
    planned, data = plans.read_json(model / PLANS), plans.read_json(model / DATASET)
    found: list[tuple[_Meta, Plan, dict[str, int]]] = []
    for name, path in checkpoints.items():
        progress(f"reading {path.parent.name}/{path.name}")
        meta, tensors = _read_checkpoint(path, trust)
        if configuration is not None and meta.configuration != configuration:
            raise InputError(f"{path} was trained as {meta.configuration}, not {configuration}")
        plan = plans.plan(planned, data, meta.configuration, model)
        _check_belongs(meta, plan, model)
        if fold == "ensemble" and found and meta.alike != found[0][0].alike:
            raise InputError(
                f"{path} and {found[0][0].path} don't go together: they differ in configuration, trainer or mirroring"
            )
        found.append((meta, plan, _parameters(_system(plan, meta, [name], which), tensors, meta)))
    if fold == "ensemble":
        meta, plan, _ = found[0]
        counts = {f"folds.{i}.{name}": n for i, one in enumerate(found) for name, n in one[2].items()}
        return [Trained(_counted(_system(plan, meta, list(checkpoints), which), counts), tuple(checkpoints.values()))]
    return [
        Trained(_counted(_system(plan, meta, [name], which), counts), (path,))
        for (name, path), (meta, plan, counts) in zip(checkpoints.items(), found, strict=True)
    ]


def _read_checkpoint(path: Path, trust: bool) -> tuple[_Meta, dict[str, torch.Tensor]]:
    from segonnx.models import checkpoints

    content = checkpoints.content(path, trust)
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
    return _Meta(
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


def _check_belongs(meta: _Meta, plan: Plan, model: Path) -> None:
    """Raise where a checkpoint is of another folder than the files beside it."""
    named = model.resolve().name.split("__")
    if len(named) == 3 and named[2] != meta.configuration:
        raise InputError(
            f"{meta.path} was trained as {meta.configuration}, but lies in a folder of {named[2]}: {model}"
        )
    if max(meta.mirror_axes, default=0) >= len(plan.patch_size):
        raise CheckpointError(f"{meta.path}: mirrors axis {max(meta.mirror_axes)} of a {len(plan.patch_size)}D network")
    if meta.plans is None or meta.dataset is None:
        return
    try:
        own = plans.plan(meta.plans, meta.dataset, meta.configuration, meta.path)
    except InputError:
        return  # an older layout: what the folder says counts, as it does for nnU-Net
    differing = [one.name for one in fields(Plan) if getattr(own, one.name) != getattr(plan, one.name)]
    if differing:
        raise InputError(
            f"{meta.path} was trained with other plans than {model / PLANS} and {DATASET}: they differ in "
            + ", ".join(differing)
        )


def _system(plan: Plan, meta: _Meta, folds: list[str], which: Which) -> ModelSpec:
    from segonnx.models import nnunet

    architecture = nnunet.trained_architecture(plan.architecture, meta.trainer, plan.patch_size)
    task = totalsegmentator.task(plan.dataset, meta.trainer)
    tail = f"fold_{folds[0]}" if len(folds) == 1 else "ensemble"
    name = f"{plan.dataset}-{meta.trainer}__{plan.plans}__{plan.configuration}-{tail}"
    return ModelSpec(
        name=_slug(name if which == "final" else f"{name}-{which}"),
        family="nnunet",
        builder="nnunet",
        options={
            "architecture": architecture.name,
            "arguments": dict(architecture.arguments),
            "in_channels": plan.input_channels,
            "folds": len(folds),
        },
        input_shape=(1, plan.input_channels, *plan.patch_size),
        num_classes=len(plan.outputs),
        modality="CT" if all(one.normalization == "CTNormalization" for one in plan.channels) else "other",
        source=f"nnU-Net {architecture.name}, {plan.configuration} of {plan.dataset}"
        + ("" if len(folds) == 1 else f", the mean of folds {', '.join(folds)}"),
        divisors=plans.divisors(architecture, len(plan.patch_size)),
        licence="unknown" if task is None else task.licence,
        described=describe(plan, meta.trainer, meta.mirror_axes, folds, which),
    )


def describe(plan: Plan, trainer: str, mirror_axes: tuple[int, ...], folds: list[str], which: Which) -> dict[str, Any]:
    """What goes into the manifest, so that inference needs nothing else; see docs/artifact.md for the keys."""
    task = totalsegmentator.task(plan.dataset, trainer)
    names = ", ".join(f"{one.name} ({one.normalization})" for one in plan.channels)
    spacing = " x ".join(f"{size:g}" for size in plan.spacing)
    previous = f", then the labels of {plan.previous_stage} one-hot" if plan.previous_stage is not None else ""
    return {
        "preprocessing": {
            "modality": "CT" if all(one.normalization == "CTNormalization" for one in plan.channels) else "other",
            "note": f"preprocessed as by nnU-Net at {spacing} mm: {names}{previous}",
            "preprocessor": plan.preprocessor,
            "image_reader_writer": plan.image_reader_writer,
            "file_ending": plan.file_ending,
            "transpose_forward": list(plan.transpose_forward),
            "transpose_backward": list(plan.transpose_backward),
            **({"crop": "nonzero"} if plan.preprocessor == "DefaultPreprocessor" else {}),
            "channels": [
                {
                    "name": one.name,
                    "normalization": one.normalization,
                    "use_mask": one.use_mask,
                    "intensities": dict(one.intensities),
                }
                for one in plan.channels
            ],
            "spacing": list(plan.spacing),
            "resampling": {
                what: {"function": one.function, "arguments": dict(one.arguments)}
                for what, one in plan.resampling.items()
            },
            "previous_stage": None
            if plan.previous_stage is None
            else {"configuration": plan.previous_stage, "labels": list(plan.foreground)},
        },
        "labels": _label_names(plan, task),
        "inference": {
            "patch_size": list(plan.patch_size),
            "tile_step_size": TILE_STEP,
            "gaussian_sigma_scale": SIGMA_SCALE,
            "mirror_axes": list(mirror_axes),
            "nonlin": "sigmoid" if plan.regions else "softmax",
            "regions": plan.regions,
            "ignore_label": plan.ignore_label,
        },
        "training": {
            "framework": "nnU-Net",
            "dataset": plan.dataset,
            "trainer": trainer,
            "plans": plan.plans,
            "configuration": plan.configuration,
            "folds": folds,
            "checkpoint": which,
            "task": None if task is None else task.name,
        },
    }


def _label_names(plan: Plan, task: totalsegmentator.Task | None) -> list[dict[str, Any]]:
    """What each output is, in order; a task of TotalSegmentator has the names that its users know."""
    names = [one.name for one in plan.outputs]
    if task is not None and not plan.regions and len(names) == len(task.classes) + 1:
        names = [names[0], *task.classes]
    return [
        {"name": name, "value": one.value, "labels": list(one.labels)}
        for name, one in zip(names, plan.outputs, strict=True)
    ]


def _parameters(spec: ModelSpec, tensors: Mapping[str, torch.Tensor], meta: _Meta) -> dict[str, int]:
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
    """The system with the counts of its checkpoints as what it must have."""
    from segonnx import models
    from segonnx.models import counting

    macs = counting.macs(models.build_meta(spec).finalized(), spec.input_shape, all_heads=False)
    modules = counting.per_module(sizes.items())
    total = sum(sizes.values())
    return replace(spec, reference=Reference(total, total, modules, macs, macs))


def _slug(name: str) -> str:
    """The name as a folder's name; where that changes it, with a digest, so that no two names become one."""
    plain = re.sub(r"[^A-Za-z0-9._+-]", "-", name).lstrip(".")[:200]
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
