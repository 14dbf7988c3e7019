"""Exports a task of TotalSegmentator: an artifact for each of its networks, and task.json, which tells the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from segonnx.artifacts import card, compounds, layout, tasks
from segonnx.artifacts.tasks import TaskDocument
from segonnx.core import subprocesses
from segonnx.core.subprocesses import Progress
from segonnx.errors import InputError
from segonnx.exporters import compound, nnunet
from segonnx.exporters.compound import Compound, Part
from segonnx.exporters.nnunet import Selection, Trained
from segonnx.exporters.pipeline import Exported, Settings
from segonnx.sources import totalsegmentator
from segonnx.sources.nnunet.folder import every_fold
from segonnx.sources.totalsegmentator import Network, Task


@dataclass(frozen=True)
class Found:
    """A task, ready for ``export``.

    Attributes:
        name: the artifact's name.
        document: the content of task.json.
        networks: its networks, by their folders in the artifact.
        notes: what a user should know of it, a line each.
    """

    name: str
    document: TaskDocument
    networks: Mapping[str, Trained]
    notes: tuple[str, ...] = ()


def find(
    name: str, weights: Path | None = None, selection: Selection | None = None, progress: Progress = subprocesses.silent
) -> Found:
    """A task's networks, and how they go together.

    Args:
        name: the task; see ``totalsegmentator.tasks``.
        weights: the folder that holds the folders of the data sets; TotalSegmentator's own, if None.
        selection: how checkpoints are read. Folds and configurations are the task's.
        progress: callback that gets the name of each step.

    Raises:
        InputError: there is no such task, or weights of it are missing; the message says which, and where they were
            looked for.
    """
    wanted = totalsegmentator.find(name)
    weights = totalsegmentator.weights_dir() if weights is None else weights
    selection = selection or Selection()
    notes: list[str] = []
    rough = None if wanted.subset is None else totalsegmentator.find(wanted.subset["task"])
    if rough is not None and rough.name != name and (lacking := _lacking(rough, weights)) is not None:
        notes.append(f"{name} is exported without the network that --roi-subset needs: {lacking}")
        rough = None
    every = list(_stages(wanted, rough))
    for task in every:
        if (lacking := _lacking(task, weights)) is not None:
            raise InputError(lacking)
    networks: dict[str, Trained] = {}
    for task in every:
        for network in task.networks:
            folder = _folder(network)
            if folder in networks:
                continue
            path = weights / network.folder / network.trained
            networks[folder] = _trained(path, network, selection, progress)
            notes += networks[folder].notes
    document: TaskDocument = {
        "schema_version": tasks.SCHEMA_VERSION,
        "name": name,
        "source": f"TotalSegmentator {totalsegmentator.version()}",
        "modality": wanted.modality,
        "licence": wanted.licence,
        "stages": [_stage(task) for task in every],
        "subset": None
        if rough is None or wanted.subset is None
        else {"stage": every[0].name, "margin": wanted.subset["margin"]},
        "derived": [dict(mask) for mask in wanted.derived],
        "codes": totalsegmentator.codes([label["name"] for label in wanted.labels]),
    }
    described = {folder: network.spec.described for folder, network in networks.items()}
    if (wrong := tasks.misfit(document, described)) is not None:
        raise InputError(f"TotalSegmentator's {name}: {wrong}")
    return Found(f"totalsegmentator-{name}", document, networks, tuple(dict.fromkeys(notes)))


def _stages(wanted: Task, rough: Task | None) -> Iterator[Task]:
    """The tasks that are run, each behind those that it needs: the one asked for last.

    A task whose choice of classes is found by itself is there twice, the first time under another name.
    """
    if rough is not None:
        yield replace(rough, name=f"{rough.name}_rough") if rough.name == wanted.name else rough
    for other in (wanted.crop, wanted.entries["within"]):
        if other is not None:
            yield from _stages(totalsegmentator.find(other["task"]), None)
    yield wanted


def _stage(task: Task) -> dict[str, Any]:
    """A stage of task.json."""
    crop = None
    outside, within = task.entries["outside"], task.entries["within"]
    if task.crop is not None:
        crop = {"stage": task.crop["task"], "labels": task.crop["labels"], "margin": task.crop["margin"]}
        outside = None if outside is None else {"stage": task.crop["task"], **outside}
    return {
        "name": task.name,
        **task.entries,
        "networks": [{"folder": _folder(network), "labels": network.labels} for network in task.networks],
        "crop": crop,
        "outside": outside,
        "within": None if within is None else {"stage": within["task"], "labels": within["labels"], "mm": within["mm"]},
    }


def _folder(network: Network) -> str:
    """The folder of a network's artifact in the task's."""
    return f"{compounds.MEMBERS}/{network.folder}"


def _lacking(task: Task, weights: Path) -> str | None:
    """Which weights of a task aren't there; None if all are."""
    for network in task.networks:
        path = weights / network.folder
        if not path.is_dir():
            return f"the weights of {network.folder}, which {task.name} needs, aren't in {weights}"
        if not (path / network.trained).is_dir():
            return f"{path} holds no {network.trained}, which {task.name} needs"
    return None


def _trained(path: Path, network: Network, selection: Selection, progress: Progress) -> Trained:
    """The network of a trained folder, of the folds that the task takes."""
    fold = every_fold(path, selection.which) if network.folds is None else ",".join(map(str, network.folds))
    chosen = replace(selection, fold=fold, configuration=None, postprocessing="none")
    (found,) = nnunet.trained(path, chosen, progress)
    return replace(found, notes=tuple(f"{network.folder}: {note}" for note in found.notes))


def export(found: Found, settings: Settings, progress: Progress = subprocesses.silent) -> Exported:
    """Export a task to a folder in ``settings.out``; see ``compound.export``."""
    name = found.document["name"]
    made = Compound(
        name=found.name,
        source=f"{name} of {found.document['source']}",
        parts=tuple(Part({"folder": folder}, found.networks[folder]) for folder in tasks.folders(found.document)),
        entries={"task": name, "inference": {}},
        arguments={"task": found.document},
        documents={layout.TASK: tasks.dump(found.document, found.name)},
        card=lambda content, members: card.render_task(content, found.document, members),
    )
    return compound.export(made, settings, progress)
