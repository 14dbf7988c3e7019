"""Exports several networks of nnU-Net's as one artifact: an artifact for each, and a manifest that binds them."""

from __future__ import annotations

import datetime
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from segonnx._version import __version__
from segonnx.artifacts import compounds, layout, manifest
from segonnx.artifacts.manifest import Manifest
from segonnx.artifacts.replacing import require_artifact
from segonnx.core import files, hardware, subprocesses
from segonnx.core.subprocesses import Progress
from segonnx.errors import ResourceError
from segonnx.exporters import manifest_entries, pipeline
from segonnx.exporters.nnunet import Trained
from segonnx.exporters.pipeline import Exported, Settings
from segonnx.exporters.settings import input_shape
from segonnx.exporters.steps import SpecSteps, Stage

Card = Callable[[Manifest, Mapping[str, Manifest]], str]
"""Renders the card, from the manifest and those of the members by their folders."""


@dataclass(frozen=True)
class Part:
    """A network of a compound artifact.

    Attributes:
        entry: its entry of the manifest; ``folder`` is that of its artifact, in the compound one.
        network: the network.
    """

    entry: Mapping[str, Any]
    network: Trained

    @property
    def folder(self) -> str:
        """The folder of its artifact, in the compound one."""
        return str(self.entry["folder"])


@dataclass(frozen=True)
class Compound:
    """Networks that make one artifact.

    Attributes:
        name: its name.
        source: what it is, in a line.
        parts: its networks, in the order in which they are run.
        entries: what the manifest says beside what every compound artifact's does.
        arguments: what the export was asked for, beside the networks.
        documents: the bytes of further files, by their names.
        card: renders the card.
    """

    name: str
    source: str
    parts: tuple[Part, ...]
    entries: Mapping[str, Any]
    arguments: Mapping[str, Any]
    documents: Mapping[str, bytes]
    card: Card


def export(found: Compound, settings: Settings, progress: Progress = subprocesses.silent) -> Exported:
    """Export a compound artifact to a folder in ``settings.out``.

    Args:
        found: its networks.
        settings: how to export each of them.
        progress: callback that gets the name of each step as it begins.

    Raises:
        InputError: an argument is wrong, an artifact with other arguments is there, or the machine lacks something.
        ParityError: a network's ONNX file computes something else. Nothing is written.
    """
    started = time.perf_counter()
    arguments = {
        "members": [
            {
                **part.entry,
                **manifest_entries.arguments(
                    part.network.spec, own, input_shape(part.network.spec, None), random_weights=False
                ),
            }
            for part, own in _jobs(found, settings)
        ],
        **found.arguments,
    }
    target = settings.out / re.sub(r"[^A-Za-z0-9._+-]", "-", found.name)[:200]
    if os.path.lexists(target):
        if not settings.overwrite:
            kept = SpecSteps(settings.weights, settings.threads, progress).existing(target, arguments)
            return Exported(target, kept, True, {}, time.perf_counter() - started)
        require_artifact(target)
    files.require_apart(target, *(path for part in found.parts for path in part.network.checkpoints))
    _require_writable(found, settings, arguments)
    stages: dict[str, Stage] = {}
    with files.staging(target) as work:
        folder = work / "compound"
        folder.mkdir()
        for part, own in _jobs(found, settings):
            words = _Words(progress, Path(part.folder).name)
            made = pipeline.export(part.network.spec, replace(own, out=folder / compounds.MEMBERS), words)
            stages |= {f"{Path(part.folder).name}: {name}": stage for name, stage in made.stages.items()}
        progress("writing the artifact")
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


def _jobs(found: Compound, settings: Settings) -> Iterator[tuple[Part, Settings]]:
    """Each network, and how it is exported."""
    for part in found.parts:
        folder = Path(part.folder).name
        yield part, replace(settings, checkpoints=part.network.checkpoints, folder=folder, tuning=None)


def _require_writable(found: Compound, settings: Settings, arguments: dict[str, Any]) -> None:
    """See to it that every manifest can be written, before the work.

    Raises:
        InputError: some text or number can't be written, or doesn't fit its schema; the message names it.
    """
    for part, own in _jobs(found, settings):
        spec = part.network.spec
        shape = input_shape(spec, None)
        made_with = manifest_entries.arguments(spec, own, shape, random_weights=False)
        manifest_entries.require_writable(spec, own, made_with, shape, random_weights=False)
    content = _compose(found, arguments)
    content["files"] = {layout.CARD: {"sha256": "0" * 64, "bytes": 0}}
    manifest.sealed(content, found.name)


def _compose(found: Compound, arguments: dict[str, Any]) -> Manifest:
    """The manifest, but for its files."""
    licences = sorted({part.network.spec.licence for part in found.parts})
    return {
        "schema_version": manifest.SCHEMA_VERSION,
        "name": found.name,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "source": found.source,
        "weights": {"source": "see the members' manifests", "licence": " and ".join(licences)},
        "members": [dict(part.entry) for part in found.parts],
        **found.entries,
        "files": {},
        "producer": hardware.versions() | {"segonnx": __version__},
        "arguments": arguments,
    }


def _write(folder: Path, found: Compound, arguments: dict[str, Any]) -> Manifest:
    """Write the documents and the card, and the manifest last."""
    content = _compose(found, arguments)
    for name, data in found.documents.items():
        (folder / name).write_bytes(data)
    members = {part.folder: manifest.read(folder / part.folder) for part in found.parts}
    (folder / layout.CARD).write_text(found.card(content, members), encoding="utf-8")
    content["files"] = manifest_entries.files(folder)
    (folder / layout.MANIFEST).write_bytes(manifest.sealed(content, found.name))
    return content
