"""Exports an ensemble of nnU-Net's configurations: an artifact for each network, and a manifest that binds them."""

from __future__ import annotations

import datetime
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from segonnx._version import __version__
from segonnx.artifacts import card, ensembles, layout, manifest
from segonnx.artifacts.manifest import Manifest
from segonnx.artifacts.replacing import require_artifact
from segonnx.core import files, hardware, subprocesses
from segonnx.core.subprocesses import Progress
from segonnx.errors import InputError, ResourceError
from segonnx.exporters import manifest_entries, nnunet, pipeline, postprocessing
from segonnx.exporters.nnunet import Selection, Trained
from segonnx.exporters.pipeline import Exported, Settings
from segonnx.exporters.settings import input_shape
from segonnx.exporters.steps import SpecSteps, Stage
from segonnx.sources.nnunet import ensemble
from segonnx.sources.nnunet.ensemble import Choice
from segonnx.sources.nnunet.folder import Which, find_checkpoints

MAX_SOURCE = 4000
"""The longest line that says what is averaged; a longer one gives their number."""


@dataclass(frozen=True)
class Member:
    """A network of an ensemble.

    Attributes:
        folder: of its artifact, in the ensemble's.
        averaged: whether its probabilities count in the mean.
        previous: the folder of the first stage whose label map it takes; None if it takes none.
        network: the network.
    """

    folder: str
    averaged: bool
    previous: str | None
    network: Trained

    @property
    def entry(self) -> dict[str, Any]:
        """The entry of the ensemble's manifest."""
        return {"folder": self.folder, "averaged": self.averaged, "previous": self.previous}


@dataclass(frozen=True)
class Ensemble:
    """An ensemble, ready for ``export``.

    Attributes:
        name: its name.
        members: its networks, each behind its first stage.
        steps: the entry ``postprocessing`` of its manifest; None where nothing was determined.
    """

    name: str
    members: tuple[Member, ...]
    steps: postprocessing.Steps | None


def find(
    dataset: Path, wanted: Sequence[str], selection: Selection, progress: Progress = subprocesses.silent
) -> Ensemble:
    """The ensemble of a data set that nnU-Net found best, or that a user names.

    Args:
        dataset: the folder of a data set's results.
        wanted: configurations, or the names of trained folders; without any, nnU-Net's best ones.
        selection: which folds and checkpoints to take. Without ``fold``, those that nnU-Net names, or else the mean of
            the numbered ones that are there. Its ``postprocessing`` is the ensemble's.
        progress: callback that gets the name of each step.

    Raises:
        InputError: something is missing, or the networks don't go together.
    """
    choice = ensemble.choose(dataset, wanted)
    found: dict[Path, Member] = {}
    for model in choice.models:
        _add(model, choice, selection, found, progress)
    averaged = {model: replace(found[model], averaged=model in choice.models) for model in found}
    members = tuple(averaged.values())
    if wrong := ensembles.misfit([m.entry for m in members], {m.folder: m.network.spec.described for m in members}):
        raise InputError(f"{dataset}: the configurations don't go together: {wrong}")
    networks = [averaged[model].network for model in choice.models]
    path = _postprocessing(choice, networks, selection)
    steps = None if path is None else postprocessing.read(path)
    return Ensemble(_name(networks), members, steps)


def _add(model: Path, choice: Choice, selection: Selection, found: dict[Path, Member], progress: Progress) -> Member:
    """Find a trained folder's network, behind that of its first stage."""
    if model in found:
        return found[model]
    fold = selection.fold or choice.folds or _folds(model, selection.which)
    networks = nnunet.trained(model, replace(selection, fold=fold, configuration=None, postprocessing="none"), progress)
    (network,) = networks
    # Its notes speak of a fold, and there are several folders that have one of the name.
    network = replace(network, notes=tuple(f"{model.name}: {note}" for note in network.notes))
    stage = network.spec.described["preprocessing"]["previous_stage"]
    previous = None
    if stage is not None:
        before = ensemble.first_stage(choice, model, stage["configuration"])
        if before == model:
            raise InputError(f"{model} names itself as its first stage")
        previous = _add(before, choice, selection, found, progress).folder
    configuration = re.sub(r"[^A-Za-z0-9_.+-]", "-", network.spec.described["training"]["configuration"])[:80]
    found[model] = Member(f"{ensembles.MEMBERS}/{len(found)}-{configuration}", False, previous, network)
    return found[model]


def _folds(model: Path, which: Which) -> str:
    """The mean of the numbered folds that are there; the only one, or fold_all, where there are no several."""
    there = list(find_checkpoints(model, None, which))
    numbered = [name for name in there if name != "all"]
    return ",".join(numbered) or there[0]


def _postprocessing(choice: Choice, networks: Sequence[Trained], selection: Selection) -> Path | None:
    if selection.postprocessing is not None:
        return None if selection.postprocessing == "none" else Path(selection.postprocessing)
    folds = networks[0].spec.described["training"]["folds"]
    if len(choice.models) == 1:
        return postprocessing.find(choice.models[0], folds)
    return postprocessing.find_for_ensemble(choice.dataset, [model.name for model in choice.models], folds)


def _name(networks: Sequence[Trained]) -> str:
    """The data set's, and what is averaged: the configurations, with trainer and plans where these differ."""
    trainings = [network.spec.described["training"] for network in networks]
    alike = len({(one["trainer"], one["plans"]) for one in trainings}) == 1
    full = [f"{one['trainer']}__{one['plans']}__{one['configuration']}" for one in trainings]
    words = [one["configuration"] for one in trainings] if alike else full
    prefix = f"{trainings[0]['trainer']}__{trainings[0]['plans']}-" if alike else ""
    return f"{trainings[0]['dataset']}-{prefix}ensemble-{'+'.join(words)}"


def export(found: Ensemble, settings: Settings, progress: Progress = subprocesses.silent) -> Exported:
    """Export an ensemble to a folder in ``settings.out``.

    Args:
        found: the ensemble.
        settings: how to export each of its networks.
        progress: callback that gets the name of each step as it begins.

    Raises:
        InputError: an argument is wrong, an ensemble with other arguments is there, or the machine lacks something.
        ParityError: a network's ONNX file computes something else. Nothing is written.
    """
    started = time.perf_counter()
    jobs = [
        (
            member,
            replace(settings, checkpoints=member.network.checkpoints, folder=Path(member.folder).name, tuning=None),
        )
        for member in found.members
    ]
    arguments = {
        "members": [
            {
                **member.entry,
                **manifest_entries.arguments(
                    member.network.spec, own, input_shape(member.network.spec, None), random_weights=False
                ),
            }
            for member, own in jobs
        ],
        "postprocessing": found.steps,
    }
    target = settings.out / re.sub(r"[^A-Za-z0-9._+-]", "-", found.name)[:200]
    if os.path.lexists(target):
        if not settings.overwrite:
            kept = SpecSteps(settings.weights, settings.threads, progress).existing(target, arguments)
            return Exported(target, kept, True, {}, time.perf_counter() - started)
        require_artifact(target)
    files.require_apart(target, *(path for member in found.members for path in member.network.checkpoints))
    _require_writable(found, jobs, arguments)
    stages: dict[str, Stage] = {}
    with files.staging(target) as work:
        folder = work / "ensemble"
        folder.mkdir()
        for member, own in jobs:
            words = _Words(progress, Path(member.folder).name)
            made = pipeline.export(member.network.spec, replace(own, out=folder / ensembles.MEMBERS), words)
            stages |= {f"{Path(member.folder).name}: {name}": stage for name, stage in made.stages.items()}
        progress("writing the ensemble")
        content = _write(folder, found, arguments)
        try:
            files.publish(folder, target, replace=settings.overwrite, check=require_artifact)
        except OSError as error:
            raise ResourceError(f"can't write {target}: {error.strerror}") from error
    return Exported(target, content, False, stages, time.perf_counter() - started)


@dataclass(frozen=True)
class _Words:
    """A progress callback that says which member a step is of."""

    progress: Progress
    member: str

    def __call__(self, step: str, /) -> None:
        self.progress(f"{self.member}: {step}")


def _require_writable(found: Ensemble, jobs: Sequence[tuple[Member, Settings]], arguments: dict[str, Any]) -> None:
    """See to it that every manifest can be written, before the work.

    Raises:
        InputError: some text or number can't be written, or doesn't fit its schema; the message names it.
    """
    for member, own in jobs:
        spec = member.network.spec
        shape = input_shape(spec, None)
        made_with = manifest_entries.arguments(spec, own, shape, random_weights=False)
        manifest_entries.require_writable(spec, own, made_with, shape, random_weights=False)
    content = _compose(found, arguments)
    content["files"] = {layout.CARD: {"sha256": "0" * 64, "bytes": 0}}
    manifest.sealed(content, found.name)


def _compose(found: Ensemble, arguments: dict[str, Any]) -> Manifest:
    """The manifest, but for its files."""
    averaged = [member.network.spec for member in found.members if member.averaged]
    source = f"the mean of {' and '.join(spec.source for spec in averaged)}"
    licences = sorted({member.network.spec.licence for member in found.members})
    return {
        "schema_version": manifest.SCHEMA_VERSION,
        "name": found.name,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "source": source if len(source) <= MAX_SOURCE else f"the mean of {len(averaged)} networks",
        "weights": {"source": "see the members' manifests", "licence": " and ".join(licences)},
        "members": [member.entry for member in found.members],
        "inference": {} if found.steps is None else {"postprocessing": found.steps},
        "files": {},
        "producer": hardware.versions() | {"segonnx": __version__},
        "arguments": arguments,
    }


def _write(folder: Path, found: Ensemble, arguments: dict[str, Any]) -> Manifest:
    """Write the card, and the manifest last."""
    content = _compose(found, arguments)
    members = {member.folder: manifest.read(folder / member.folder) for member in found.members}
    (folder / layout.CARD).write_text(card.render_ensemble(content, members), encoding="utf-8")
    content["files"] = manifest_entries.files(folder)
    (folder / layout.MANIFEST).write_bytes(manifest.sealed(content, found.name))
    return content
