"""Measures the bench itself, and writes what it found to docs/bench-selftest.md. Run by ``make bench-selftest``.

Each claim has a limit; the exit code is 1 where one is missed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest import mock

from benchmarks.docs import put_block
from segonnx import runtimes
from segonnx.bench import run, stats
from segonnx.bench.plan import Settings, Target
from segonnx.bench.result import Result
from segonnx.bench.rounds import Rule
from segonnx.commands import bench_targets
from segonnx.core import hardware, subprocesses
from tests.bench import fakes, simulate

PAGE = Path(__file__).parents[1] / "docs" / "bench-selftest.md"
BLOCK_VERSION = 1
"""Raised when what this program writes, or measures, changes."""
NAME = "encoder-lcnet-100"
SIMULATIONS = 100
LOADED_BENCHES = 3
SIMULATED: tuple[tuple[float, float, float, stats.Verdict, int], ...] = (
    (0.01, 0.0, 1.0, "no difference", 95),
    (0.01, 0.0, 1.05, "faster", 90),
    (0.03, 0.0, 1.0, "no difference", 95),
    (0.03, 0.0, 1.05, "faster", 90),
    (0.01, 0.05, 1.0, "no difference", 90),
)
"""Noise of a block and of a process, the true speed-up, the right verdict, and in how many of 100 benches at least.

Where processes differ the interval is Student's exact one at 95 %, which gives 90 to 99 of 100 by chance.
"""


@dataclass(frozen=True)
class Claim:
    """What was claimed, what was found, and whether that is within the limit; None where it's said, not claimed."""

    claim: str
    found: str
    holds: bool | None

    @property
    def verdict(self) -> str:
        """``holds`` in a word."""
        return {True: "yes", False: "**no**", None: "not claimed"}[self.holds]


def main() -> None:
    """Measure, print, and write the page."""
    claims = []
    for measure in (sleeping, simulated, spinning, loaded):
        for claim in measure():
            print(f"{claim.verdict:3} {claim.claim}: {claim.found}", flush=True)
            claims.append(claim)
    put_block(PAGE, "selftest", page(claims), "benchmarks.bench_selftest")
    sys.exit(any(claim.holds is False for claim in claims))


def page(claims: list[Claim]) -> str:
    """What was found, as it stands in docs/bench-selftest.md."""
    described = hardware.describe()
    rows = "\n".join(f"| {claim.claim} | {claim.found} | {claim.verdict} |" for claim in claims)
    return f"""Written by `make bench-selftest` on {described["usable_cores"]} cores of {described["cpu"]}, Python
{described["python"]}, onnxruntime {described["versions"]["onnxruntime"]}. How the bench works: [bench.md](bench.md).

| claim | found | holds |
|---|---|---|
{rows}

The simulations run the real rule for stopping and the real intervals on seeded random times: the machine's pace
wanders for both runtimes alike, each turn has noise of its own (the standard deviation given), each pass half of that
besides, and a twentieth of the passes takes half as long again. Each runtime runs in
{simulate.PROCESSES} processes, one after another, which may have a pace of their own."""


def sleeping() -> Iterator[Claim]:
    """Runtimes that take a known time."""
    done = _fakes(("quick", "steady", "slow"))
    for row in done.rows:
        truth = fakes.KNOWN[row.backend].seconds  # type: ignore[attr-defined]
        assert row.median_s is not None
        error = row.median_s / truth - 1
        yield Claim(
            f"a runtime that takes {1e3 * truth:g} ms is measured within 2 %",
            f"{1e3 * row.median_s:.3f} ms, {100 * error:+.2f} %, {len(row.rounds)} rounds",
            abs(error) < 0.02,
        )


def simulated() -> Iterator[Claim]:
    """Verdicts on runtimes whose ratio is known."""
    with ProcessPoolExecutor() as pool:
        for noise, between, truth, right, least in SIMULATED:
            simulated_bench = partial(_simulate, truth, noise, between)
            benches = list(pool.map(simulated_bench, range(SIMULATIONS)))
            found = [stats.verdict(interval) for interval, _ in benches].count(right)
            rounds = stats.median([count for _, count in benches])
            own = f" and {100 * between:g} % between processes" if between else ""
            yield Claim(
                f"a speed-up of {truth:g} at {100 * noise:g} % noise{own} is “{right}” in at least {least} of 100",
                f"{found} of {SIMULATIONS}, median of {rounds:g} rounds",
                found >= least * SIMULATIONS / 100,
            )


def _simulate(truth: float, noise: float, between: float, seed: int) -> tuple[stats.Interval | None, int]:
    """The interval that a simulated bench finds, and its rounds."""
    _, interval, rounds = simulate.speedup(truth, noise, seed, Rule(max_time_s=1e9), between)
    return interval, rounds


def spinning() -> Iterator[Claim]:
    """A runtime whose threads never rest, beside one that works."""
    alone = _fakes(("working",)).rows[0]
    beside = _fakes(("working", "spinning")).rows[0]
    with mock.patch.object(subprocesses.Worker, "pause", return_value=None):
        unpaused = _fakes(("working", "spinning")).rows[0]
    assert alone.median_s and beside.median_s and unpaused.median_s
    slower = beside.median_s / alone.median_s
    yield Claim(
        "a runtime that spins in the background slows the other one by less than 5 %",
        f"{slower:.3f}x its time alone; without the pause it would be {unpaused.median_s / alone.median_s:.2f}x",
        slower < 1.05,
    )


def loaded() -> Iterator[Claim]:
    """Two busy processes beside a bench of real runtimes, with one thread and with all; and at high priority."""
    names = [name for name in ("eager", "ort") if runtimes.get(name).missing() is None]
    cores = hardware.usable_cores()
    with tempfile.TemporaryDirectory() as name:
        from segonnx.sources import catalog

        settings = Settings((*names,), (1, cores), Rule(rounds=stats.MIN_ROUNDS))
        model = bench_targets.from_system(catalog.find(NAME), Path(name), settings, lambda _: None, subprocesses.silent)
        quiet, busy, preferred = [], [], []
        # In turns, so that the machine's own wandering falls on all of them alike.
        for _ in range(LOADED_BENCHES):
            quiet.append(_bench(model, settings))
            with _busy(cores):
                busy.append(_bench(model, settings))
                with _niceness(-20) as allowed:
                    preferred += [_bench(model, settings)] if allowed else []
    for what, results, expected in (
        ("two busy processes beside it are", busy, True),
        ("a quiet machine is not", quiet, False),
    ):
        rows = [row for result in results for row in result.rows]
        warned = sum(any("other programs" in warning for warning in row.warnings) for row in rows)
        yield Claim(f"{what} warned of", f"in {warned} of {len(rows)} rows", warned == expected * len(rows))
    yield from _moved("beside them", settings.threads, quiet, busy, claimed=False)
    if preferred:
        yield from _moved("beside them, by `nice -n -20`", settings.threads, quiet, preferred, claimed=True)
    else:
        yield Claim("the same by `nice -n -20`", "the priority can't be raised here", None)


def _moved(
    where: str, threads: tuple[int, ...], before: list[Result], after: list[Result], *, claimed: bool
) -> Iterator[Claim]:
    """How far a load moved the ratio at each number of threads."""
    for number in threads:
        (was, _), (became, _) = (_pooled(results, number) for results in (before, after))
        moved = became / was - 1
        yield Claim(
            f"ort's speed-up over eager ({NAME}, threads: {number}) {where} moves by less than 10 %",
            f"{was:.2f}x became {became:.2f}x ({100 * moved:+.1f} %)",
            abs(moved) < 0.1 if claimed else None,
        )


def _pooled(results: list[Result], threads: int) -> tuple[float, tuple[float, float] | None]:
    rows = [row for result in results for row in result.rows if row.threads == threads]
    eager, ort = ([its for row in rows if row.backend == name for its in row.rounds] for name in ("eager", "ort"))
    return stats.speedup(eager, ort)


@contextmanager
def _niceness(value: int) -> Iterator[bool]:
    """Run at another niceness, where the system allows it."""
    former = os.getpriority(os.PRIO_PROCESS, 0)
    try:
        os.setpriority(os.PRIO_PROCESS, 0, value)
    except PermissionError:
        yield False
        return
    try:
        yield True
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, former)


@contextmanager
def _busy(count: int) -> Iterator[None]:
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def _bench(model: Target, settings: Settings) -> Result:
    return run.bench([model], settings, None, lambda _: None)


def _fakes(names: tuple[str, ...]) -> Result:
    settings = Settings(names, (1,), Rule(precision=0.02))
    with tempfile.TemporaryDirectory() as name:
        return run.bench([fakes.target(Path(name))], settings, None, lambda _: None, known=fakes.KNOWN)


if __name__ == "__main__":
    main()
