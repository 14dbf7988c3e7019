"""Exports an ensemble of nnU-Net's configurations: an artifact for each network, and a manifest that binds them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from segonnx.artifacts import card, compounds, ensembles
from segonnx.core import subprocesses
from segonnx.core.subprocesses import Progress
from segonnx.errors import InputError
from segonnx.exporters import compound, nnunet, postprocessing
from segonnx.exporters.compound import Compound, Part
from segonnx.exporters.nnunet import Selection, Trained
from segonnx.exporters.pipeline import Exported, Settings
from segonnx.sources.nnunet import ensemble
from segonnx.sources.nnunet.ensemble import Choice
from segonnx.sources.nnunet.folder import every_fold

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
    fold = selection.fold or choice.folds or every_fold(model, selection.which)
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
    found[model] = Member(f"{compounds.MEMBERS}/{len(found)}-{configuration}", False, previous, network)
    return found[model]


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
    """Export an ensemble to a folder in ``settings.out``; see ``compound.export``."""
    averaged = [member.network.spec for member in found.members if member.averaged]
    source = f"the mean of {' and '.join(spec.source for spec in averaged)}"
    made = Compound(
        name=found.name,
        source=source if len(source) <= MAX_SOURCE else f"the mean of {len(averaged)} networks",
        parts=tuple(Part(member.entry, member.network) for member in found.members),
        entries={"inference": {} if found.steps is None else {"postprocessing": found.steps}},
        arguments={"postprocessing": found.steps},
        documents={},
        card=card.render_ensemble,
    )
    return compound.export(made, settings, progress)
