"""The worker processes of a case: loaded, warmed up, paused between their blocks, asked."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from segonnx.artifacts.layout import MODEL
from segonnx.bench import stats
from segonnx.bench.core_latency import CoreLatency
from segonnx.bench.plan import Case
from segonnx.bench.recorder import Recorder, WorkerSlot
from segonnx.bench.result import OK, Row
from segonnx.bench.worker import Job, Loaded, Passes, serve
from segonnx.core import subprocesses
from segonnx.core.ort_session import model_bytes
from segonnx.core.subprocesses import Bounds, Progress, Worker
from segonnx.errors import SegonnxError
from segonnx.runtimes.base import Runnable

BLOCK_SECONDS = 0.5
"""A runtime's block lasts about this long, or one pass where that takes longer."""
MAX_PASSES = 50
WAKE_SECONDS = 2.0
"""A block begins with a pass that isn't counted, which wakes threads and caches, where a pass takes less than this."""
WARMUP_SECONDS = 20.0
"""No more blocks are spent on warming up after this long."""
PROFILE_SECONDS = 3.0
WEIGHTS = "weights.safetensors"
PRELOADED = ("segonnx.models.preloaded",)
"""What writing weights imports."""
_LOGGER = logging.getLogger(__name__)


class Session(contextlib.AbstractContextManager["Session"]):
    """Runs the workers of a case and tells the recorder what they gave.

    Args:
        case: what is timed.
        folder: where input, weights and outputs are kept; ``input.npy`` is there.
        recorder: gets what the workers answer.
        progress: progress callback.
    """

    def __init__(self, case: Case, folder: Path, recorder: Recorder, progress: Progress) -> None:
        self.case, self.folder, self.recorder, self.progress = case, folder, recorder, progress
        self._runnable = Runnable(case.target.input_shape)
        self._latency: CoreLatency | None = None
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Session:
        self._runnable = make_runnable(self.case, self.folder, self.recorder, self.progress)
        cpus = self.case.cpus
        if self.case.settings.diagnose and len(cpus) > 1 and hasattr(os, "sched_setaffinity"):
            with contextlib.suppress(OSError):  # no shared memory: the rows have no latencies
                self._latency = self._open.enter_context(CoreLatency(cpus))
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def output(self, backend: str) -> Path:
        """The file that a runtime's logits, or labels, are saved to."""
        return self.folder / f"{backend}.npy"

    def start(self, row: Row, stack: contextlib.ExitStack) -> WorkerSlot | None:
        """Start a row's worker, run it until it is warm, and pause it; None where it failed.

        Args:
            row: the row.
            stack: ends the worker.
        """
        if row.status != OK:
            return None
        self.progress(f"{self.case.name}: loading {row.backend}")
        worker = stack.enter_context(Worker(serve, self._job(row.backend)))
        loaded: Loaded | None = self._ask(worker, row)
        if loaded is None:
            return None
        _LOGGER.info("%s: %s loaded in %.2f s, process %d", self.case.name, row.backend, loaded.load_s, worker.pid)
        self.recorder.loaded(row, loaded)
        slot = WorkerSlot(row, worker, self.recorder.monitors[row.backend])
        slot.monitor.follow(worker.pid)
        self.progress(f"{self.case.name}: warming up {row.backend}")
        if not self._warm_up(slot, loaded.first_pass_s):
            return None
        worker.pause()
        return slot

    def wake(self, slots: dict[str, WorkerSlot]) -> None:
        """Run a block of each that isn't counted; those that fail are taken out.

        While the others were loaded the system took its memory back: the round that finds out isn't counted.
        """
        for name, slot in list(slots.items()):
            self.progress(f"{self.case.name}: waking {name}")
            if (passes := self.run_block(slot)) is None:
                del slots[name]
            else:
                slot.row.warmup_s += passes.seconds

    def timed_block(
        self, slots: Mapping[str, WorkerSlot], done: Mapping[str, list[list[float]]]
    ) -> Callable[[str], list[float] | None]:
        """What runs one runtime's block and records it; see ``rounds.collect``.

        Args:
            slots: the workers that are resident together.
            done: their rounds so far.
        """

        def run(name: str) -> list[float] | None:
            slot = slots[name]
            self._tell_progress(done)
            latency = self._measure_latency()
            began = time.perf_counter()
            slot.monitor.begin()
            passes = self.run_block(slot)
            if passes is None:
                return None
            slot.monitor.end()
            return self.recorder.block(slot, began, passes, latency)

        return run

    def run_block(self, slot: WorkerSlot) -> Passes | None:
        """Run one block of a worker that is paused before and after it; None where it failed."""
        slot.worker.resume()
        passes: Passes | None = self._ask(slot.worker, slot.row, "run", slot.wake_passes + slot.passes)
        if passes is not None:
            slot.worker.pause()
        return passes

    def end(self, slot: WorkerSlot) -> None:
        """End a worker, and record its peak of memory."""
        slot.worker.resume()
        self.recorder.ended(slot.row, self._ask(slot.worker, slot.row, "end"))

    def profile(self, row: Row) -> None:
        """Time by operator, in a new process: a profiler slows what it looks at."""
        if row.median_s is None:
            return
        self.progress(f"{self.case.name}: profiling {row.backend}")
        with Worker(serve, self._job(row.backend, profile=True)) as worker:
            copy = replace(row)  # a profiler that fails takes no times away
            if self._ask(worker, copy) is not None:
                row.profile = self._ask(worker, copy, "profile", max(1, int(PROFILE_SECONDS / row.median_s)))
                self._ask(worker, copy, "end")
            if row.profile is None:
                row.warnings.append(f"no profile: {copy.status}")

    def _warm_up(self, slot: WorkerSlot, first_pass_s: float) -> bool:
        """Run blocks like those of the rounds until the last two are alike; False where the runtime failed."""
        seconds, medians = [first_pass_s], [first_pass_s]
        spent = 0.0
        while not stats.warmed_up(medians) and spent < WARMUP_SECONDS:
            passes: Passes | None = self._ask(slot.worker, slot.row, "run", _passes(min(seconds)))
            if passes is None:
                return False
            seconds += passes.seconds
            medians.append(stats.median(passes.seconds))
            spent += sum(passes.seconds)
        self.recorder.warmed_up(slot.row, seconds, alike=stats.warmed_up(medians))
        slot.passes = _passes(medians[-1])
        slot.wake_passes = 1 if medians[-1] < WAKE_SECONDS else 0
        return True

    def _measure_latency(self) -> float | None:
        latency = self._latency.measure() if self._latency is not None else None
        if latency is None:
            self._latency = None  # and no row keeps those that were measured
        return latency

    def _tell_progress(self, done: Mapping[str, list[list[float]]]) -> None:
        process, number = self.recorder.progress_of(done)
        place = f"process {process}, round {number}" if self.case.settings.processes > 1 else f"round {number}"
        self.progress(f"{self.case.name}: {place}, {', '.join(done) or 'starting'}")

    def _job(self, backend: str, *, profile: bool = False) -> Job:
        case, runtime = self.case, self.case.known[backend]
        options = replace(
            case.settings.options, threads=case.threads, bf16=case.bf16 and runtime.autocasts, profile=profile
        )
        runnable = self._runnable
        bounds = None
        if runtime.needs == "artifact" and runnable.model is not None:
            bounds = Bounds(memory=case.settings.max_memory, mapped=model_bytes(runnable.model))
        if runtime.needs != "network":  # what makes the network would be imported with it
            runnable = replace(runnable, build=None, weights=None)
        return Job(
            runtime, runnable, options, case.cpus, self.folder / "input.npy", self.output(backend),
            self.folder / f"{backend}-cache", bounds,
        )  # fmt: skip

    def _ask(self, worker: Worker, row: Row, *command: Any) -> Any:
        """The worker's answer to the command, or to being started; where it failed, None, and the row says why."""
        try:
            if command:
                with contextlib.suppress(BrokenPipeError):  # it died; receive tells how
                    worker.channel.send(command)
            kind, value = worker.receive(f"{row.model} in {row.backend}", self.case.settings.timeout_s)
        except SegonnxError as error:
            kind, value = "error", error
        if kind == "ok":
            return value
        self.recorder.failed(row, value)
        worker.kill()
        return None


def make_runnable(case: Case, folder: Path, recorder: Recorder, progress: Progress) -> Runnable:
    """What the runtimes run; rows of runtimes that can't have what they need get a status that says so."""
    target = case.target
    needs = {row.backend: case.known[row.backend].needs for row in recorder.ready()}
    users = recorder.of([backend for backend, need in needs.items() if need == "network"])
    weights = None
    if users and target.network is None:
        for row in users:
            row.status = "needs the network: the artifact's weights came from a file"
    elif users and target.network is not None:
        try:
            weights = folder / WEIGHTS
            write = target.network.write_weights
            digest = subprocesses.call(write_weights, write, weights, progress=progress, preload=PRELOADED).value
        except SegonnxError as error:
            for row in users:
                row.status = str(error)
        else:
            for row in users if target.weights_sha256 not in (None, digest) else ():
                row.warnings.append("random weights, made again here, differ in rounding from the artifact's")
    for row in recorder.of([backend for backend in needs if needs[backend] == "artifact"]):
        if target.artifact is None:
            row.status = f"no artifact: segonnx export {target.name}"
        elif target.rewritten and row.backend.endswith("-stock"):
            row.status = "the artifact's one graph is rewritten: export it anew for a plain one, too"
    return Runnable(
        input_shape=target.input_shape,
        build=None if target.network is None else target.network.build,
        weights=weights,
        model=None if target.artifact is None else target.artifact / MODEL,
        cpu_model=None if target.artifact is None else target.artifact / target.cpu_model,
    )


def write_weights(write: Callable[[Path, Progress], str], path: Path, progress: Progress) -> str:
    """Write the weights, in a process of its own; returns the file's SHA-256."""
    return write(path, progress)


def _passes(seconds: float) -> int:
    """How many passes of so many seconds make a block."""
    return min(MAX_PASSES, max(1, int(BLOCK_SECONDS / seconds)))
