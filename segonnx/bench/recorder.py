"""Turns what the workers of a case gave into its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from segonnx.bench.plan import Case
from segonnx.bench.result import OK, Row
from segonnx.bench.rounds import Stopped
from segonnx.bench.thread_monitor import ThreadMonitor
from segonnx.bench.worker import Loaded, Passes
from segonnx.core import synthetic_inputs
from segonnx.core.subprocesses import Worker


@dataclass
class WorkerSlot:
    """A row's place among the workers that are resident together.

    Attributes:
        row: what its blocks are recorded in.
        worker: the process.
        monitor: counts the process's threads, and what else ran beside them.
        wake_passes: passes at the start of a block that aren't counted: they wake threads and caches.
        passes: passes of a block that count.
        cpu_s: processor seconds of the passes that counted.
    """

    row: Row
    worker: Worker
    monitor: ThreadMonitor
    wake_passes: int = 0
    passes: int = 1
    cpu_s: float = 0.0


class Recorder:
    """The rows of a case, filled as its workers answer.

    Args:
        case: what is timed.
        x: the input.
        began: when the bench began, by ``time.perf_counter``.
    """

    def __init__(self, case: Case, x: synthetic_inputs.Array, began: float) -> None:
        target = case.target
        self.rows = [
            Row(
                model=target.name,
                family=target.family,
                backend=backend,
                parameters=target.parameters,
                macs=target.macs,
                input_shape=x.shape,
                input_sha256=synthetic_inputs.sha256(x),
                images=target.images,
                weights=target.weights,
                artifact=target.digest,
                published=target.published if x.shape == target.input_shape else None,
                precision=target.precision if case.known[backend].needs == "artifact" else None,
                threads=case.threads,
                status=case.known[backend].missing() or OK,
            )
            for backend in case.settings.backends
        ]
        self.groups: list[list[str]] = []
        """The runtimes that are resident together."""
        self.reasons: set[Stopped] = set()
        """Why the rounds of each process stopped."""
        self.monitors = {backend: ThreadMonitor(case.cpus) for backend in case.settings.backends}
        self._threads = case.threads
        self._began = began

    def of(self, backends: Sequence[str]) -> list[Row]:
        """The rows of these runtimes."""
        return [row for row in self.rows if row.backend in backends]

    def ready(self) -> list[Row]:
        """The rows that nothing has stopped so far."""
        return [row for row in self.rows if row.status == OK]

    def loaded(self, row: Row, loaded: Loaded) -> None:
        """A process has loaded the model and run a first pass."""
        if row.load_s is None:  # later processes find files in the system's cache, and kernels compiled
            row.load_s, row.compile_s = loaded.load_s, loaded.compile_s
            row.first_result_s = loaded.load_s + loaded.first_pass_s
        row.settings = loaded.settings
        row.memory_bytes = 4 * row.parameters + 4 * int(np.prod(row.input_shape)) + loaded.logits_bytes

    def warmed_up(self, row: Row, seconds: Sequence[float], *, alike: bool) -> None:
        """A process is warm, or its time for that is up; ``alike`` says whether its last passes took the same time."""
        row.warmup_s += seconds
        row.warmed_up = alike and row.warmed_up is not False

    def block(self, slot: WorkerSlot, began: float, passes: Passes, core_latency_ns: float | None) -> list[float]:
        """A block has run. Returns the seconds of the passes that count.

        Args:
            slot: whose block it was.
            began: when, by ``time.perf_counter``.
            passes: all passes of the block.
            core_latency_ns: measured before it, or None.
        """
        row = slot.row
        row.started_s.append(began - self._began)
        if core_latency_ns is not None:
            row.core_latency_ns.append(core_latency_ns)
        counted = passes.seconds[slot.wake_passes :]
        slot.cpu_s += passes.cpu_s * len(counted) / len(passes.seconds)
        return counted

    def rounds(self, slots: Mapping[str, WorkerSlot], done: Mapping[str, list[list[float]]]) -> None:
        """The rounds of a group's processes are over, or were interrupted: the rows keep those that are complete."""
        for name, its in done.items():
            if not its:
                continue
            slot = slots[name]
            row, before = slot.row, len(slot.row.samples_s)
            row.rounds = row.rounds + its
            row.rounds_per_process.append(len(its))
            row.started_s = row.started_s[: len(row.rounds)]
            row.core_latency_ns = row.core_latency_ns[: len(row.rounds)]
            row.cpu_s = ((row.cpu_s or 0.0) * before + slot.cpu_s) / len(row.samples_s)
            row.threads_seen = {"total": slot.monitor.total, "busy": slot.monitor.busy}
            row.cpus = sorted(slot.monitor.cpus)

    def ended(self, row: Row, peak_rss_bytes: int | None) -> None:
        """A process has ended; None where it failed to tell its peak of memory."""
        if peak_rss_bytes is not None:
            row.peak_rss_bytes = max(peak_rss_bytes, row.peak_rss_bytes or 0)

    def failed(self, row: Row, why: object) -> None:
        """A runtime failed: its row says why and has no times."""
        row.status = str(why)
        row.rounds, row.rounds_per_process, row.started_s, row.core_latency_ns = [], [], [], []

    def interrupted(self) -> None:
        """The user stopped the bench during this case."""
        for row in self.rows:
            if row.rounds:
                row.stopped = "interrupted"
                if row.compared_with is None:
                    row.warnings.append("its logits were not compared: interrupted")
            elif row.status == OK:
                row.status = "interrupted"

    def observed(self) -> None:
        """Put what the monitors saw into the warnings of the rows with rounds."""
        for row in self.rows:
            if row.rounds:
                row.warnings += self.monitors[row.backend].warnings(self._threads)

    def progress_of(self, done: Mapping[str, list[list[float]]]) -> tuple[int, int]:
        """Which process and which round runs now, from 1.

        Args:
            done: rounds of the process so far, by runtime.
        """
        process = max((len(row.rounds_per_process) for row in self.rows if row.backend in done), default=0)
        return 1 + process, 1 + max(map(len, done.values()), default=0)
