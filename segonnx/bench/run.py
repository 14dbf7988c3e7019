"""Runs a bench: every runtime of a case in processes of its own, taking turns in rounds."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from segonnx import runtimes
from segonnx.artifacts import layout, testdata
from segonnx.artifacts.layout import MODEL
from segonnx.bench import core_latency, plan, roofline, rounds, stats, targets
from segonnx.bench.core_latency import Exchange
from segonnx.bench.plan import Settings, Target
from segonnx.bench.result import OK, Ratio, Result, Row
from segonnx.bench.rounds import Rule
from segonnx.bench.thread_monitor import Watch
from segonnx.bench.worker import Job, Loaded, Passes, serve
from segonnx.core import hardware, subprocesses, synthetic_inputs
from segonnx.core.subprocesses import Progress, Worker
from segonnx.core.tolerances import TOLERANCES, Agreement, Difference, compare, compare_labels
from segonnx.errors import SegonnxError
from segonnx.runtimes.base import Runnable, Runtime

_LOGGER = logging.getLogger(__name__)

ROUND_SECONDS = 0.5
"""A runtime's turn in a round lasts about this long, or one pass where that takes longer."""
MAX_PASSES = 50
WAKE_SECONDS = 2.0
"""A turn begins with a pass that isn't counted, which wakes threads and caches, where a pass takes less than this."""
WARMUP_SECONDS = 20.0
"""No more turns are spent on warming up after this long."""
PROFILE_SECONDS = 3.0
_KNOWN = {name: runtimes.get(name) for name in runtimes.NAMES}
DRIFT = 0.05
"""From this trend between the first and the last third of the rounds on, a reader is warned."""


def bench(
    models: list[Target],
    settings: Settings,
    x: synthetic_inputs.Array | None,
    tell: Callable[[list[Row]], None],
    progress: Progress = subprocesses.silent,
    known: Mapping[str, type[Runtime]] = _KNOWN,
) -> Result:
    """Time the models one after another.

    An interrupt from the keyboard ends the bench, and what was measured until then is in the result.

    Args:
        models: what to time.
        settings: how.
        x: the input for all; None makes noise of each model's shape.
        tell: called with the rows of each case as they come.
        progress: told of each step.
        known: the runtimes by name.
    """
    bf16, sentence = plan.resolve_autocast(settings.autocast)
    result = Result(
        machine=hardware.describe(),
        autocast=sentence,
        settings=settings.as_dict(),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    began, cpu = time.perf_counter(), time.process_time()
    if result.machine["governor"] not in (None, "performance"):
        result.warnings.append(f"the frequency governor is {result.machine['governor']!r}: clock rates may vary")
    try:
        for threads in settings.threads if settings.ceilings else ():
            result.ceilings.append(roofline.measure(threads, hardware.choose_cpus(threads), progress))
        for model, threads in itertools.product(models, settings.threads):
            case = _Case(model, threads, settings, bf16, known, began, progress)
            try:
                case.run(x)
            finally:
                result.rows += case.rows
                result.ratios += case.ratios
                tell(case.rows)
    except KeyboardInterrupt:
        result.interrupted = True
        result.warnings.append("interrupted: what had been measured until then is here")
    result.overhead = {
        "wall_s": time.perf_counter() - began,
        "timed_s": sum(sum(row.samples_s) for row in result.rows),
        "parent_cpu_s": time.process_time() - cpu,
        "parent_peak_rss_bytes": subprocesses.peak_rss_bytes(),
    }
    return result


@dataclass
class _Seat:
    """A row, its worker, who watches that, and the passes of a turn: those that wake it up, and those that count."""

    row: Row
    worker: Worker
    watch: Watch
    wakes: int = 0
    passes: int = 1
    cpu_s: float = 0.0


class _Case:
    """One model with one number of threads, in all runtimes."""

    def __init__(
        self,
        model: Target,
        threads: int,
        settings: Settings,
        bf16: bool,
        known: Mapping[str, type[Runtime]],
        began: float,
        progress: Progress,
    ) -> None:
        self.model, self.threads, self.settings, self.bf16, self.known = model, threads, settings, bf16, known
        self.began, self.progress = began, progress
        self.cpus = tuple(hardware.choose_cpus(threads))
        self.rows: list[Row] = []
        self.ratios: list[Ratio] = []
        self._blocks: list[list[str]] = []
        self._watches = {backend: Watch(self.cpus) for backend in settings.backends}
        self._reasons: set[str] = set()
        self._folder = Path()
        self._runnable = Runnable()
        self._exchange: Exchange | None = None

    def run(self, x: synthetic_inputs.Array | None) -> None:
        """Fill ``rows`` and ``ratios``; an interrupt leaves what was measured in them."""
        model, settings = self.model, self.settings
        tensor = synthetic_inputs.make("noise", model.input_shape, model.modality, settings.seed) if x is None else x
        self.rows = [
            Row(
                model=model.name,
                family=model.family,
                backend=backend,
                parameters=model.parameters,
                macs=model.macs,
                input_shape=tensor.shape,
                input_sha256=synthetic_inputs.sha256(tensor),
                images=model.images,
                threads=self.threads,
                status=self.known[backend].missing() or OK,
            )
            for backend in settings.backends
        ]
        with tempfile.TemporaryDirectory(prefix="segonnx-") as name:
            self._folder = Path(name)
            np.save(self._folder / "input.npy", tensor)
            try:
                self._runnable = self._make_runnable()
                needed = {row.backend: plan.memory_needed(model, row.backend) for row in self.rows if row.status == OK}
                self._blocks = plan.blocks(needed, hardware.available_memory())
                with contextlib.ExitStack() as stack:
                    if len(self.cpus) > 1 and hasattr(os, "sched_setaffinity"):
                        with contextlib.suppress(OSError):  # no shared memory: nobody looks
                            self._exchange = stack.enter_context(Exchange(self.cpus))
                    for rule in self._rules():
                        for block in self._blocks:
                            self._run_block([row for row in self.rows if row.backend in block], rule)
                self._compare()
                if settings.profile:
                    self._profile()
            except KeyboardInterrupt:
                for row in self.rows:
                    if row.rounds:
                        row.stopped = "interrupted"
                        if row.compared_with is None:
                            row.warnings.append("its logits were not compared: interrupted")
                    elif row.status == OK:
                        row.status = "interrupted"
                raise
            finally:
                self._conclude()

    def _make_runnable(self) -> Runnable:
        """What the runtimes run; rows of runtimes that can't have what they need get a status that says so."""
        needs = {row.backend: self.known[row.backend].needs for row in self.rows if row.status == OK}
        weights = None
        if "network" in needs.values():
            users = [row for row in self.rows if needs.get(row.backend) == "network"]
            try:
                weights, same = self._weights()
            except SegonnxError as error:
                for row in users:
                    row.status = str(error)
            else:
                for row in users if not same else ():
                    row.warnings.append("random weights, made again here, differ in rounding from the artifact's")
        files: dict[str, Path | None] = {}
        stock = f" --optimize none --out {targets.STOCK}"
        for need, folder, how in (("artifact", self.model.artifact, ""), ("stock", self.model.stock, stock)):
            files[need] = None if folder is None else folder / MODEL
            if folder is None:
                for row in self.rows:
                    if needs.get(row.backend) == need:
                        row.status = f"no artifact: segonnx export {self.model.name}{how}"
        return Runnable(self.model.spec, weights, files["artifact"], files["stock"])

    def _weights(self) -> tuple[Path, bool]:
        """Safetensors of the weights, made as the export made them; whether they are the artifact's bit by bit."""
        from segonnx.exporters.prepare import STATE, write_weights

        model = self.model
        if model.spec is None or model.seed is None:
            raise SegonnxError("needs the network: the artifact's weights came from a file")
        path = self._folder / STATE
        digest = subprocesses.call(write_weights, model.spec, model.seed, path, progress=self.progress).value
        return path, model.weights_sha256 in (None, digest)

    def _rules(self) -> list[Rule]:
        """One for each process of a runtime: what a process draws, where its memory lies say, is drawn anew."""
        rule, count = self.settings.rule, self.settings.processes
        count = count if rule.rounds is None else min(count, rule.rounds)
        return [rule.share(number, count) for number in range(count)]

    def _run_block(self, rows: list[Row], rule: Rule) -> None:
        """Load the rows' runtimes, run the rounds of one process each, and end them all, whatever happens.

        A worker is paused but for its turns, so that even one whose threads never rest takes nothing from the others.
        """
        with contextlib.ExitStack() as stack:
            seats: dict[str, _Seat] = {}
            done: dict[str, list[list[float]]] = {}
            for row in rows:
                if (seat := self._load(row, stack)) is not None:
                    seats[row.backend] = seat
            if len(seats) > 1:
                # While the others were loaded the system took its memory back: the round that finds out isn't counted.
                for name, seat in list(seats.items()):
                    self.progress(f"{self._name}: waking {name}")
                    if (passes := self._turn(seat)) is None:
                        del seats[name]
                    else:
                        seat.row.warmup_s += passes.seconds
            try:
                self._reasons.add(
                    rounds.collect(
                        seats, lambda name: self._timed_turn(seats[name], done), rule, time.perf_counter, done
                    )
                )
            finally:
                for name, its in done.items():
                    if its:
                        self._keep(seats[name], its)
            for name in done:
                seat = seats[name]
                seat.worker.resume()
                if (peak := self._ask(seat.worker, seat.row, "end")) is not None:
                    seat.row.peak_rss_bytes = max(peak, seat.row.peak_rss_bytes or 0)

    def _keep(self, seat: _Seat, its: list[list[float]]) -> None:
        """Write into a row what the rounds of a process gave."""
        row = seat.row
        before = len(row.samples_s)
        row.rounds = row.rounds + its
        row.rounds_per_process.append(len(its))
        row.started_s = row.started_s[: len(row.rounds)]
        row.exchange_ns = row.exchange_ns[: len(row.rounds)]
        row.cpu_s = ((row.cpu_s or 0.0) * before + seat.cpu_s) / len(row.samples_s)
        row.threads_seen = {"total": seat.watch.total, "busy": seat.watch.busy}
        row.cpus = sorted(seat.watch.cpus)

    def _load(self, row: Row, stack: contextlib.ExitStack) -> _Seat | None:
        """Load a row's runtime and run it until it is warm; None where it failed."""
        if row.status != OK:
            return None
        self.progress(f"{self._name}: loading {row.backend}")
        worker = stack.enter_context(Worker(serve, self._job(row.backend)))
        loaded: Loaded | None = self._ask(worker, row)
        if loaded is None:
            return None
        _LOGGER.info("%s: %s loaded in %.2f s, process %d", self._name, row.backend, loaded.load_s, worker.pid)
        if row.load_s is None:  # later processes find files in the system's cache, and kernels compiled
            row.load_s, row.compile_s = loaded.load_s, loaded.compile_s
            row.first_result_s = loaded.load_s + loaded.first_pass_s
        row.settings = loaded.settings
        row.memory_bytes = 4 * row.parameters + 4 * int(np.prod(row.input_shape)) + loaded.logits_bytes
        seat = _Seat(row, worker, self._watches[row.backend])
        seat.watch.follow(worker.pid)
        self.progress(f"{self._name}: warming up {row.backend}")
        warmup = [loaded.first_pass_s]
        turns = [loaded.first_pass_s]
        spent = 0.0
        # After the first pass, turns like those of the rounds, until the last two are alike.
        while not stats.steady(turns) and spent < WARMUP_SECONDS:
            seat.passes = min(MAX_PASSES, max(1, int(ROUND_SECONDS / min(warmup))))
            passes: Passes | None = self._ask(worker, row, "run", seat.passes)
            if passes is None:
                return None
            warmup += passes.seconds
            turns.append(stats.median(passes.seconds))
            spent += sum(passes.seconds)
        row.warmup_s += warmup
        row.steady = stats.steady(turns) and row.steady is not False
        seat.passes = min(MAX_PASSES, max(1, int(ROUND_SECONDS / turns[-1])))
        seat.wakes = 1 if turns[-1] < WAKE_SECONDS else 0
        worker.pause()
        return seat

    def _timed_turn(self, seat: _Seat, done: dict[str, list[list[float]]]) -> list[float] | None:
        """Seconds of every counted pass of one turn; None where the runtime failed."""
        self._progress_of(done)
        seen_after = self._look_at_exchange()
        began = time.perf_counter() - self.began
        seat.watch.begin()
        passes = self._turn(seat)
        if passes is None:
            return None
        seat.watch.end()
        seat.row.started_s.append(began)
        if seen_after is not None:
            seat.row.exchange_ns.append(seen_after)
        seconds = passes.seconds[seat.wakes :]
        seat.cpu_s += passes.cpu_s * len(seconds) / len(passes.seconds)
        return seconds

    def _look_at_exchange(self) -> float | None:
        seen_after = self._exchange.measure() if self._exchange is not None else None
        if seen_after is None:
            self._exchange = None  # and no row keeps those that were seen
        return seen_after

    def _turn(self, seat: _Seat) -> Passes | None:
        """One turn of a runtime that is paused before and after it; None where it failed."""
        seat.worker.resume()
        passes: Passes | None = self._ask(seat.worker, seat.row, "run", seat.wakes + seat.passes)
        if passes is not None:
            seat.worker.pause()
        return passes

    def _progress_of(self, done: dict[str, list[list[float]]]) -> None:
        number = max(map(len, done.values()), default=0)
        process = 1 + max((len(row.rounds_per_process) for row in self.rows if row.backend in done), default=0)
        place = f"process {process}, round {number + 1}" if self.settings.processes > 1 else f"round {number + 1}"
        self.progress(f"{self._name}: {place}, {', '.join(done) or 'starting'}")

    @property
    def _name(self) -> str:
        swept = len(self.settings.threads) > 1
        return f"{self.model.name}, {self.threads} threads" if swept else self.model.name

    def _job(self, backend: str, *, profile: bool = False) -> Job:
        runtime = self.known[backend]
        options = replace(
            self.settings.options, threads=self.threads, bf16=self.bf16 and runtime.autocasts, profile=profile
        )
        return Job(
            runtime, self._runnable, options, self.cpus, self._folder / "input.npy", self._logits(backend),
            self._folder / f"{backend}-cache",
        )  # fmt: skip

    def _logits(self, backend: str) -> Path:
        return self._folder / f"{backend}.npy"

    def _ask(self, worker: Worker, row: Row, *command: Any) -> Any:
        """The worker's answer to the command, or to being started; where it failed, None, and the row says why."""
        try:
            if command:
                with contextlib.suppress(BrokenPipeError):  # it died; receive tells how
                    worker.channel.send(command)
            kind, value = worker.receive(f"{row.model} in {row.backend}", self.settings.timeout_s)
        except SegonnxError as error:
            kind, value = "error", error
        if kind == "ok":
            return value
        row.status = str(value)
        row.rounds, row.rounds_per_process, row.started_s, row.exchange_ns = [], [], [], []
        worker.kill()
        return None

    def _compare(self) -> None:
        """Hold every runtime's logits, or labels, against eager's, or against the artifact's recorded ones."""
        rows = [row for row in self.rows if row.status == OK]
        if any(row.backend == "eager" for row in rows):
            reference, name = np.load(self._logits("eager"), mmap_mode="r"), "eager"
        elif rows and (recorded := self._recorded(rows[0].input_sha256)) is not None:
            reference, name = recorded, "recorded"
        else:
            return
        what = "labels" if self.model.labels else "logits"
        for row in rows:
            self.progress(f"{self._name}: comparing the {what} of {row.backend}")
            found = np.load(self._logits(row.backend), mmap_mode="r")
            difference: Difference | Agreement
            try:
                difference = compare_labels(reference, found) if self.model.labels else compare(reference, found)
            except SegonnxError as error:
                row.status = f"its {error}"
                continue
            row.max_abs_error = difference.max_abs_error if isinstance(difference, Difference) else None
            row.label_agreement = difference.label_agreement
            row.compared_with = name
            dtype = "float32" if row.settings.get("dtype") == "float32" else "bfloat16"
            if not difference.within(TOLERANCES[dtype]):
                row.status = f"its {what} differ: {difference}"

    def _recorded(self, input_sha256: str) -> synthetic_inputs.Array | None:
        """PyTorch's logits, or labels, from the artifact's test data, if that has the bench's input."""
        if self.model.artifact is None:
            return None
        if synthetic_inputs.sha256(testdata.read(self.model.artifact / layout.INPUT)) != input_sha256:
            return None
        return testdata.read(self.model.artifact / layout.OUTPUT)

    def _profile(self) -> None:
        """Time by operator, in new processes: a profiler slows what it looks at."""
        for row in self.rows:
            if row.status != OK or row.median_s is None:
                continue
            self.progress(f"{self._name}: profiling {row.backend}")
            with Worker(serve, self._job(row.backend, profile=True)) as worker:
                copy = replace(row)  # a profiler that fails takes no times away
                if self._ask(worker, copy) is not None:
                    row.profile = self._ask(worker, copy, "profile", max(1, int(PROFILE_SECONDS / row.median_s)))
                    self._ask(worker, copy, "end")
                if row.profile is None:
                    row.warnings.append(f"no profile: {copy.status}")

    def _ratio(self, a: Row, b: Row) -> Ratio:
        together = any(a.backend in block and b.backend in block for block in self._blocks)
        if together:
            both = [min(counts) for counts in zip(a.rounds_per_process, b.rounds_per_process, strict=False)]
            value, interval = stats.speedup(a.rounds, b.rounds, both)
        else:
            value, interval = stats.ratio_of_runs(a.rounds, b.rounds, a.rounds_per_process, b.rounds_per_process)
        return Ratio(
            model=a.model,
            input_shape=a.input_shape,
            threads=a.threads,
            baseline=a.backend,
            backend=b.backend,
            speedup=value,
            ci95=interval,
            verdict=stats.verdict(interval),
            rounds=min(len(a.rounds), len(b.rounds)),
            interleaved=together,
        )

    def _conclude(self) -> None:
        """What the rows say together, and what a reader should know of each."""
        rows = sorted((row for row in self.rows if row.rounds), key=lambda row: row.backend != "eager")
        self.ratios = [self._ratio(a, b) for a, b in itertools.combinations(rows, 2)]
        stopped = self._stopped(rows)
        for row in self.rows:
            others = [ratio for ratio in self.ratios if row.backend in (ratio.baseline, ratio.backend)]
            row.interleaved = all(ratio.interleaved for ratio in others)
            if row.rounds and row.backend == "eager":
                row.speedup_over_eager = 1.0
        for ratio in self.ratios:
            if ratio.baseline == "eager":
                row = next(row for row in rows if row.backend == ratio.backend)
                row.speedup_over_eager, row.speedup_ci95, row.verdict = ratio.speedup, ratio.ci95, ratio.verdict
        for row in rows:
            row.stopped = row.stopped or stopped
            row.warnings += self._watches[row.backend].warnings(self.threads)
            if self.model.derives and row.backend == "openvino":
                row.warnings.append("its graph is laid out for ONNX Runtime: openvino-stock times the plain one")
            if not row.interleaved:
                row.warnings.append("not interleaved with all others: they don't fit into memory together")
            if len(row.rounds) < stats.MIN_ROUNDS:
                row.warnings.append(f"only {len(row.rounds)} round{'s' * (len(row.rounds) > 1)}")
            if row.steady is False:
                row.warnings.append("its passes still changed by more than 5 % when the warm-up ended")
            if len(row.exchange_ns) != len(row.rounds):
                row.exchange_ns = []
            if (found := core_latency.levels(row.exchange_ns)) is not None:
                row.warnings.append(
                    "its processors were moved between caches: one saw what another wrote "
                    f"after {found[0]:.0f} ns at times, and after {found[1]:.0f} ns at others"
                )
            if (count := len(row.rounds_per_process)) < stats.MIN_PROCESSES:
                processes = "1 process" if count == 1 else f"{count} processes"
                row.warnings.append(f"{processes}: how much processes differ isn't in its intervals")
            if abs(drift := stats.drift(row.rounds) or 0.0) > DRIFT:
                row.warnings.append(f"drifted by {100 * drift:+.0f} % between its first and its last rounds")

    def _stopped(self, rows: list[Row]) -> str | None:
        """Why no more rounds were run."""
        if not rows or "rounds" in self._reasons:
            return "rounds"
        reach = rounds.reach(
            {row.backend: row.rounds for row in rows}, {row.backend: row.rounds_per_process for row in rows}
        )
        if max(reach.values()) <= self.settings.rule.precision:
            return "precision"
        return "max-time" if "max-time" in self._reasons else "processes"
