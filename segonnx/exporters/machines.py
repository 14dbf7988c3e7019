"""``segonnx export --scheduler``: each network on a worker of a cluster; the artifacts come back whole and verified."""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from segonnx.artifacts import manifest, transfer
from segonnx.artifacts.replacing import require_artifact
from segonnx.core import cluster, files, hardware, slots, subprocesses
from segonnx.core.cluster import Member
from segonnx.core.slots import Crew, Slot, WorkerGoneError
from segonnx.core.subprocesses import Progress
from segonnx.errors import InputError, SegonnxError, StageError
from segonnx.exporters import pipeline
from segonnx.exporters.pipeline import Exported, Settings
from segonnx.sources.catalog import ModelSpec

if TYPE_CHECKING:
    from distributed import Client

Job = tuple[ModelSpec, Settings]
OnEnd = Callable[[ModelSpec, Exported | SegonnxError], object]
"""Called with each network as it ends, and what was exported of it, or why it wasn't."""
TRIES = 2
"""The most workers that die while they export a network before it is given up."""
PATIENCE_S = 30.0
"""How long a worker is waited for that takes the place of one that died."""


def export(client: Client, jobs: Sequence[Job], threads: int | None, on_end: OnEnd, progress: Progress) -> None:
    """Export networks, at most one on each worker at a time. What is here already is verified and kept.

    Args:
        client: connected to the scheduler.
        jobs: the networks, with their settings here.
        threads: for the checks; None takes the cores of each worker's machine.
        on_end: gets what comes, as it comes.
        progress: progress callback.

    Raises:
        InputError: there is no worker.
        ResourceError: the scheduler is gone.
    """
    members = cluster.members(client)
    if not members:
        raise InputError("the scheduler has no worker: start one on each machine with `dask worker ADDRESS`")
    left = []
    for spec, settings in jobs:
        target = _target(spec, settings)
        try:
            files.require_name(target)
            if os.path.lexists(target):
                if not settings.overwrite:
                    on_end(spec, pipeline.export(spec, settings, progress))
                    continue
                require_artifact(target)
        except SegonnxError as error:
            on_end(spec, error)
        else:
            left.append((spec, settings))
    _Workers(client, left, threads, on_end, progress).run(members)


class _Workers:
    """The workers of a cluster that export networks until none is left."""

    def __init__(
        self, client: Client, jobs: Sequence[Job], threads: int | None, on_end: OnEnd, progress: Progress
    ) -> None:
        self._client, self._threads, self._on_end, self._progress = client, threads, on_end, progress
        self._left: queue.SimpleQueue[Job] = queue.SimpleQueue()
        for job in jobs:
            self._left.put(job)
        self._open = len(jobs)
        self._deaths: Counter[str] = Counter()
        self._taken: set[str] = set()
        self._lock = threading.Lock()
        self._crew = Crew()

    def run(self, members: Sequence[Member]) -> None:
        """Export on these workers, and on those that take their places; what no worker is left for has failed."""
        self._taken |= {member.address for member in members}
        self._crew.run(partial(self._work, member) for member in members)
        while not self._left.empty():
            self._on_end(self._left.get()[0], StageError("no worker is left for it"))

    def _work(self, first: Member) -> None:
        member: Member | None = first
        while member is not None and (job := self._next()) is not None:
            spec, settings = job
            try:
                ended: Exported | SegonnxError = self._export(member, spec, settings)
            except WorkerGoneError as error:
                self._deaths[spec.name] += 1
                if self._deaths[spec.name] < TRIES:
                    self._left.put(job)
                else:
                    self._end(spec, StageError(f"{TRIES} workers died while they exported it, at last {error}"))
                member = self._another()
            except SegonnxError as error:
                if self._client.status != "running":
                    raise
                self._end(spec, error)
            else:
                self._end(spec, ended)

    def _next(self) -> Job | None:
        """The next network; None once all have ended: until then one may come back from a worker that dies."""
        while self._open and not self._crew.stop.is_set():
            with contextlib.suppress(queue.Empty):
                return self._left.get(timeout=0.1)
        return None

    def _end(self, spec: ModelSpec, ended: Exported | SegonnxError) -> None:
        self._crew.say(partial(self._on_end, spec, ended))
        with self._lock:
            self._open -= 1

    def _export(self, member: Member, spec: ModelSpec, settings: Settings) -> Exported:
        def step(text: str, /) -> None:
            self._crew.say(partial(self._progress, f"{spec.name} on {member.address}: {text}"))

        slot = Slot(self._client, member, self._crew.stop)
        step("exporting")
        there = slot.ask(export_here, spec, settings, self._threads)
        try:
            out = transfer.fetch(
                slot.ask, there.folder, _target(spec, settings), overwrite=settings.overwrite, progress=step
            )
        finally:
            slot.ask(discard, there.folder)
        return replace(there, folder=out, manifest=manifest.read(out))

    def _another(self) -> Member | None:
        """A worker that nobody asks, such as one that was started in place of one that died."""
        until = time.monotonic() + PATIENCE_S
        while self._open and time.monotonic() < until and not self._crew.stop.wait(slots.LOOK_S):
            with self._lock:
                for member in cluster.members(self._client):
                    if member.address not in self._taken:
                        self._taken.add(member.address)
                        return member
        return None


def _target(spec: ModelSpec, settings: Settings) -> Path:
    return settings.out / (settings.folder or pipeline.folder_name(spec))


def export_here(spec: ModelSpec, settings: Settings, threads: int | None) -> Exported:
    """Export a network here, on a worker of a cluster, into a folder that goes with the worker.

    Args:
        spec: the network.
        settings: of its export, on another machine.
        threads: for the checks; None takes all cores.
    """
    from distributed import get_worker

    folder = Path(tempfile.mkdtemp(prefix="segonnx-", dir=get_worker().local_directory))
    here = replace(settings, out=folder, overwrite=False, threads=threads or hardware.usable_cores())
    try:
        return subprocesses.call(_export_network, spec, here, progress=slots.while_wanted).value
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _export_network(spec: ModelSpec, settings: Settings, progress: Progress) -> Exported:
    return pipeline.export(spec, settings, progress)


def discard(artifact: Path) -> None:
    """Remove the folder that ``export_here`` made an artifact in."""
    shutil.rmtree(artifact.parent, ignore_errors=True)
