"""Measures the bench itself, and writes what it found to docs/bench-selftest.md. Run by ``make bench-selftest``.

Each claim has a limit; the exit code is 1 where one is missed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from segonnx import machine, process, runtimes
from segonnx.artifacts import folder
from segonnx.bench import run, stats, subjects
from segonnx.bench.plan import Model, Settings
from segonnx.bench.result import Result
from segonnx.bench.rounds import Rule
from tests.bench import fakes, simulate

PAGE = Path(__file__).parents[2] / "docs" / "bench-selftest.md"
NAME = "encoder-lcnet-100"
SIMULATIONS = 100
NOISES = (0.01, 0.03)


@dataclass(frozen=True)
class Claim:
    """What was claimed, what was found, and whether that is within the limit."""

    claim: str
    found: str
    holds: bool


def main() -> None:
    """Measure, print, and write the page."""
    claims = []
    for measure in (sleeping, simulated, spinning, loaded):
        for claim in measure():
            print(f"{'ok  ' if claim.holds else 'FAIL'} {claim.claim}: {claim.found}", flush=True)
            claims.append(claim)
    described = machine.describe()
    rows = "\n".join(f"| {one.claim} | {one.found} | {'yes' if one.holds else '**no**'} |" for one in claims)
    folder.write(
        PAGE,
        f"""# The bench, measured

Written by `make bench-selftest` on {described["usable_cores"]} cores of {described["cpu"]}, Python
{described["python"]}, onnxruntime {described["versions"]["onnxruntime"]}. How the bench works: [bench.md](bench.md).

| claim | found | holds |
|---|---|---|
{rows}

The simulations run the real rule for stopping and the real intervals on seeded random times: the machine's pace
wanders for both runtimes alike, each turn has noise of its own (the standard deviation given), each pass half of that
besides, and a twentieth of the passes takes half as long again.
""",
    )
    sys.exit(not all(one.holds for one in claims))


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
    for noise in NOISES:
        for truth, right, least in ((1.0, "no difference", 95), (1.05, "faster", 90)):
            benches = [simulate.bench(truth, noise, seed, Rule(max_time_s=1e9)) for seed in range(SIMULATIONS)]
            found = [stats.verdict(stats.speedup(*one.values())[1]) for one in benches].count(right)
            rounds = stats.median([len(one["a"]) for one in benches])
            yield Claim(
                f"a speed-up of {truth:g} at {100 * noise:g} % noise is called “{right}” in at least {least} of 100",
                f"{found} of {SIMULATIONS}, median of {rounds:g} rounds",
                found >= least * SIMULATIONS / 100,
            )


def spinning() -> Iterator[Claim]:
    """A runtime whose threads never rest, beside one that works."""
    alone = _fakes(("working",)).rows[0]
    beside = _fakes(("working", "spinning")).rows[0]
    pause = process.Worker.pause
    process.Worker.pause = lambda _: None  # type: ignore[method-assign]
    try:
        unpaused = _fakes(("working", "spinning")).rows[0]
    finally:
        process.Worker.pause = pause  # type: ignore[method-assign]
    assert alone.median_s and beside.median_s and unpaused.median_s
    slower = beside.median_s / alone.median_s
    yield Claim(
        "a runtime that spins in the background slows the other one by less than 5 %",
        f"{slower:.3f}x its time alone; without the pause it would be {unpaused.median_s / alone.median_s:.2f}x",
        slower < 1.05,
    )


def loaded() -> Iterator[Claim]:
    """Two busy processes beside a bench of real runtimes."""
    names = [name for name in ("eager", "ort") if runtimes.get(name).missing() is None]
    with tempfile.TemporaryDirectory() as name:
        from segonnx import catalog

        settings = Settings((*names,), (machine.usable_cores(),), Rule(rounds=15))
        model = subjects.from_system(catalog.find(NAME), Path(name), settings, lambda _: None, process.silent)
        quiet = _ratio(model, settings)
        with _busy(2):
            busy = _ratio(model, settings)
    warnings = [warning for row in busy.rows for warning in row.warnings if "other programs" in warning]
    yield Claim(
        "two busy processes beside it are warned of in every row",
        f"{len(warnings)} of {len(busy.rows)} rows: {'; '.join(warnings) or 'nothing'}",
        len(warnings) == len(busy.rows),
    )
    yield Claim(
        "a quiet machine is not warned of",
        f"{sum('other programs' in w for row in quiet.rows for w in row.warnings)} of {len(quiet.rows)} rows",
        not any("other programs" in w for row in quiet.rows for w in row.warnings),
    )
    before, after = quiet.ratios[0], busy.ratios[0]
    moved = after.speedup / before.speedup - 1
    slower = (busy.rows[0].median_s or 0) / (quiet.rows[0].median_s or 1)
    yield Claim(
        f"their ratio ({NAME}, {before.backend} against {before.baseline}) moves by less than 10 %",
        f"{before.speedup:.2f}x became {after.speedup:.2f}x ({100 * moved:+.1f} %), while times grew {slower:.2f}x",
        abs(moved) < 0.1,
    )


@contextmanager
def _busy(count: int) -> Iterator[None]:
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def _ratio(model: Model, settings: Settings) -> Result:
    return run.bench([model], settings, None, lambda _: None)


def _fakes(names: tuple[str, ...]) -> Result:
    unrecorded: Callable[..., None] = lambda *_: None  # noqa: E731
    run._Case._recorded = unrecorded  # type: ignore[method-assign, assignment]
    settings = Settings(names, (1,), Rule(precision=0.02))
    with tempfile.TemporaryDirectory() as name:
        return run.bench([fakes.model(Path(name))], settings, None, lambda _: None, known=fakes.KNOWN)


if __name__ == "__main__":
    main()
