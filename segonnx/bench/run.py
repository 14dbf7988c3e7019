"""Runs a bench: every runtime of a case in processes of its own, whose blocks alternate in rounds."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from segonnx import runtimes
from segonnx.bench import conclusions, outputs, plan, roofline, rounds
from segonnx.bench.plan import Case, Settings, Target
from segonnx.bench.recorder import Recorder
from segonnx.bench.result import Result, Row
from segonnx.bench.rounds import Rule
from segonnx.bench.session import Session
from segonnx.core import hardware, subprocesses, synthetic_inputs
from segonnx.core.subprocesses import Progress
from segonnx.runtimes.base import Runtime

OnRows = Callable[[list[Row]], None]


def _known() -> Mapping[str, type[Runtime]]:
    return {name: runtimes.get(name) for name in runtimes.NAMES}


def bench(
    targets: list[Target],
    settings: Settings,
    x: synthetic_inputs.Array | None,
    on_rows: OnRows,
    progress: Progress = subprocesses.silent,
    known: Mapping[str, type[Runtime]] | None = None,
) -> Result:
    """Time the targets one after another.

    An interrupt from the keyboard ends the bench, and what was measured until then is in the result.

    Args:
        targets: what to time.
        settings: how.
        x: the input for all; None makes noise of each target's shape.
        on_rows: called with the rows of each case as they come.
        progress: progress callback.
        known: the runtimes by name; None takes those of the package.
    """
    bf16, sentence = plan.resolve_autocast(settings.autocast)
    result = Result(
        machine=hardware.describe(),
        autocast=sentence,
        settings=settings.as_dict(),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    if result.machine["governor"] not in (None, "performance"):
        result.warnings.append(f"the frequency governor is {result.machine['governor']!r}: clock rates may vary")
    began, cpu = time.perf_counter(), time.process_time()
    try:
        for threads in settings.threads if settings.roofline else ():
            result.roofline_peaks.append(roofline.measure(threads, hardware.choose_cpus(threads), progress))
        for target, threads in itertools.product(targets, settings.threads):
            cpus = tuple(hardware.choose_cpus(threads))
            own = settings if target.backends is None else replace(settings, backends=target.backends)
            case = Case(target, threads, own, bf16, _known() if known is None else known, cpus)
            _run_case(case, x, result, began, on_rows, progress)
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


def _run_case(
    case: Case, x: synthetic_inputs.Array | None, result: Result, began: float, on_rows: OnRows, progress: Progress
) -> None:
    """Measure a case and put its rows into the result; what an interrupt leaves is in them, too."""
    target, settings = case.target, case.settings
    if x is None:
        x = synthetic_inputs.make("noise", target.input_shape, target.modality, settings.seed)
    recorder = Recorder(case, x, began)
    try:
        with tempfile.TemporaryDirectory(prefix="segonnx-") as name:
            np.save(Path(name) / "input.npy", x)
            _measure(case, Path(name), recorder, progress)
    except KeyboardInterrupt:
        recorder.interrupted()
        raise
    finally:
        recorder.observed()
        found = conclusions.conclude(
            recorder.rows, recorder.groups, recorder.reasons, settings.rule.precision, derives=target.derives
        )
        result.rows += found.rows
        result.ratios += found.ratios
        on_rows(found.rows)


def _measure(case: Case, folder: Path, recorder: Recorder, progress: Progress) -> None:
    """All rounds of all processes, then the outputs' comparison, then the profiles."""
    with Session(case, folder, recorder, progress) as session:
        needed = {row.backend: plan.memory_needed(case.target, row.backend) for row in recorder.ready()}
        recorder.groups = plan.resident_groups(needed, hardware.available_memory())
        for rule in case.rules():
            for group in recorder.groups:
                _run_group(session, recorder.of(group), rule)
        outputs.check(case, recorder.ready(), session.output, progress)
        for row in recorder.ready() if case.settings.profile else ():
            session.profile(row)


def _run_group(session: Session, rows: list[Row], rule: Rule) -> None:
    """Start the rows' workers, run the rounds of one process each, and end them all, whatever happens.

    A worker is paused but for its blocks, so that even one whose threads never rest takes nothing from the others.
    """
    recorder = session.recorder
    with contextlib.ExitStack() as stack:
        started = {row.backend: session.start(row, stack) for row in rows}
        slots = {name: slot for name, slot in started.items() if slot is not None}
        if len(slots) > 1:
            session.wake(slots)
        done: dict[str, list[list[float]]] = {}
        try:
            run_block = session.timed_block(slots, done)
            recorder.reasons.add(rounds.collect(slots, run_block, rule, time.perf_counter, done))
        finally:
            recorder.rounds(slots, done)
        for name in done:
            session.end(slots[name])
