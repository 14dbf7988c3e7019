"""What a trained folder of nnU-Net's says of its network: pure functions of its files and of a checkpoint's notes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from segonnx.errors import CheckpointError, InputError
from segonnx.sources import totalsegmentator
from segonnx.sources.catalog import ModelSpec
from segonnx.sources.nnunet import plans
from segonnx.sources.nnunet.folder import Which
from segonnx.sources.nnunet.plans import Plan
from segonnx.sources.nnunet.trainers import STUNET, trained_architecture

TILE_STEP = 0.5
SIGMA_SCALE = 0.125
"""nnU-Net's defaults: windows overlap by half, and weigh as a Gaussian with sigma = an eighth of the window."""


_TITLES = {STUNET: "STU-Net"}
"""What the card calls a network, where that isn't the name of its class."""


@dataclass(frozen=True)
class CheckpointMeta:
    """What a checkpoint says beside its weights.

    Attributes:
        path: the checkpoint.
        configuration: the configuration that was trained, such as ``3d_fullres``.
        trainer: nnU-Net's class that trained it.
        mirror_axes: the spatial axes along which inference may mirror.
        plans: the plans.json that it was trained with; None where the checkpoint has none.
        dataset: the dataset.json that it was trained with; None where the checkpoint has none.
        shapes: the shapes of its tensors, by name.
    """

    path: Path
    configuration: str
    trainer: str
    mirror_axes: tuple[int, ...]
    plans: Mapping[str, Any] | None
    dataset: Mapping[str, Any] | None
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @property
    def shared(self) -> tuple[str, str, tuple[int, ...]]:
        """What all folds of an ensemble must share."""
        return self.configuration, self.trainer, self.mirror_axes


def require_belongs(meta: CheckpointMeta, plan: Plan, model: Path) -> None:
    """See to it that a checkpoint is of the same folder as the files beside it.

    Args:
        meta: what the checkpoint says.
        plan: what the files say.
        model: the folder.

    Raises:
        InputError: it is of another folder.
        CheckpointError: it fits no network of the plan's dimensions.
    """
    named = model.resolve().name.split("__")
    if len(named) == 3 and named[2] != meta.configuration:
        raise InputError(
            f"{meta.path} was trained as {meta.configuration}, but lies in a folder of {named[2]}: {model}"
        )
    if max(meta.mirror_axes, default=0) >= len(plan.patch_size):
        raise CheckpointError(f"{meta.path}: mirrors axis {max(meta.mirror_axes)} of a {len(plan.patch_size)}D network")


def own_plan(meta: CheckpointMeta, model: Path) -> Plan | None:
    """What a checkpoint's notes say of its configuration; None where it has none, or in a layout that isn't read.

    Args:
        meta: what the checkpoint says.
        model: the folder.
    """
    if meta.plans is None or meta.dataset is None:
        return None
    try:
        return plans.plan(plans.named(meta.plans, model), meta.dataset, meta.configuration, meta.path)
    except InputError:
        return None


@dataclass(frozen=True)
class Edit:
    """What differs between the plans that a checkpoint was trained with and those beside it.

    Attributes:
        what: the attribute of ``Plan``.
        before: what the checkpoint has.
        after: what the folder has.
    """

    what: str
    before: Any
    after: Any

    def __str__(self) -> str:
        told = f"{self.what} (trained with {self.before}, now {self.after})"
        return told if len(told) < 120 and told.isprintable() else self.what


def edits(own: Plan | None, plan: Plan) -> list[Edit]:
    """What was changed after the training.

    Args:
        own: what the checkpoint says of its plans; None where it says nothing.
        plan: what the folder says.
    """
    if own is None:
        return []
    every = (Edit(entry.name, getattr(own, entry.name), getattr(plan, entry.name)) for entry in fields(Plan))
    return [edit for edit in every if edit.before != edit.after]


def model_spec(
    plan: Plan, meta: CheckpointMeta, folds: list[str], which: Which, edited: Sequence[str] = ()
) -> ModelSpec:
    """The network of a trained folder, without the counts of its parameters.

    Args:
        plan: what the folder's files say.
        meta: what the checkpoint says; that of the first fold for an ensemble.
        folds: the folds whose mean the network gives; mostly one.
        which: which of the checkpoints it is.
        edited: what of the plan isn't what the checkpoint was trained with.
    """
    architecture = trained_architecture(plan.architecture, meta.trainer, plan.patch_size, meta.shapes)
    described = describe(plan, meta.trainer, meta.mirror_axes, folds, which)
    if edited:
        described["training"]["edited"] = list(edited)
    task = totalsegmentator.folder(plan.dataset, meta.trainer)
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
        modality=_modality(plan),
        source=f"nnU-Net {_TITLES.get(architecture.name, architecture.name)}, {plan.configuration} of {plan.dataset}"
        + ("" if len(folds) == 1 else f", the mean of folds {', '.join(folds)}"),
        divisors=plans.divisors(architecture, len(plan.patch_size)),
        licence="unknown" if task is None else task.licence,
        described=described,
    )


def describe(plan: Plan, trainer: str, mirror_axes: tuple[int, ...], folds: list[str], which: Which) -> dict[str, Any]:
    """What goes into the manifest, so that inference needs nothing else; see docs/artifact.md for the keys."""
    task = totalsegmentator.folder(plan.dataset, trainer)
    names = ", ".join(f"{channel.name} ({channel.normalization})" for channel in plan.channels)
    spacing = " x ".join(f"{size:g}" for size in plan.spacing)
    previous = f", then the labels of {plan.previous_stage} one-hot" if plan.previous_stage is not None else ""
    return {
        "preprocessing": {
            "modality": _modality(plan),
            "note": f"preprocessed as by nnU-Net at {spacing} mm: {names}{previous}",
            "preprocessor": plan.preprocessor,
            "image_reader_writer": plan.image_reader_writer,
            "file_ending": plan.file_ending,
            "transpose_forward": list(plan.transpose_forward),
            "transpose_backward": list(plan.transpose_backward),
            **({"crop": "nonzero"} if plan.preprocessor == "DefaultPreprocessor" else {}),
            "channels": [
                {
                    "name": channel.name,
                    "normalization": channel.normalization,
                    "use_mask": channel.use_mask,
                    "intensities": dict(channel.intensities),
                }
                for channel in plan.channels
            ],
            "spacing": list(plan.spacing),
            "resampling": {
                kind: {"function": resampling.function, "arguments": dict(resampling.arguments)}
                for kind, resampling in plan.resampling.items()
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
            "task": None if task is None else task.task,
        },
    }


def _label_names(plan: Plan, task: totalsegmentator.Folder | None) -> list[dict[str, Any]]:
    """What each output is, in order; a task of TotalSegmentator has the names that its users know."""
    names = [output.name for output in plan.outputs]
    if task is not None and not plan.regions and len(names) == len(task.classes) + 1:
        names = [names[0], *task.classes]
    return [
        {
            "name": name,
            "value": output.value,
            "labels": list(output.labels),
            **({"listed": True} if output.listed else {}),
        }
        for name, output in zip(names, plan.outputs, strict=True)
    ]


def _modality(plan: Plan) -> str:
    return "CT" if all(channel.normalization == "CTNormalization" for channel in plan.channels) else "other"


def _slug(name: str) -> str:
    """The name as a folder's name; where that changes it, with a digest, so that no two names become one."""
    plain = re.sub(r"[^A-Za-z0-9._+-]", "-", name).lstrip(".")[:200]
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
