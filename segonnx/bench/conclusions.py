"""What the rows of a case say together: ratios, warnings, why the rounds stopped. No process, no clock, no file."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from segonnx.bench import core_latency, rounds, stats
from segonnx.bench.result import Ratio, Row
from segonnx.bench.rounds import Stopped

DRIFT = 0.05
"""From this trend between the first and the last third of the rounds on, a reader is warned."""


@dataclass(frozen=True)
class Conclusions:
    """The rows of a case with what is concluded from them, and every pair's ratio."""

    rows: list[Row]
    ratios: list[Ratio]


def conclude(
    rows: Sequence[Row],
    groups: Sequence[Collection[str]],
    reasons: Collection[Stopped],
    precision: float,
    *,
    derives: bool = False,
) -> Conclusions:
    """Conclude from what was measured.

    Args:
        rows: of one case, in the order of the table.
        groups: the runtimes that were resident together, whose blocks alternated.
        reasons: why the rounds of each process stopped.
        precision: the relative half-width that was asked for.
        derives: whether runtimes compute other weights from the artifact's.

    Returns:
        Copies of the rows: the given ones stay as they are.
    """
    timed = sorted((row for row in rows if row.rounds), key=lambda row: row.backend != "eager")
    found = [ratio(first, second, groups) for first, second in itertools.combinations(timed, 2)]
    reason = stop_reason(timed, reasons, precision)
    return Conclusions([_concluded(row, found, reason, derives=derives) for row in rows], found)


def ratio(first: Row, second: Row, groups: Iterable[Collection[str]]) -> Ratio:
    """How many times faster the second row is than the first.

    Args:
        first: the row whose time is the numerator.
        second: the row whose time is the denominator.
        groups: the runtimes that were resident together.
    """
    together = any(first.backend in group and second.backend in group for group in groups)
    if together:
        counts = zip(first.rounds_per_process, second.rounds_per_process, strict=False)
        value, interval = stats.speedup(first.rounds, second.rounds, [min(pair) for pair in counts])
    else:
        value, interval = stats.ratio_of_runs(
            first.rounds, second.rounds, first.rounds_per_process, second.rounds_per_process
        )
    return Ratio(
        model=first.model,
        input_shape=first.input_shape,
        threads=first.threads,
        baseline=first.backend,
        backend=second.backend,
        speedup=value,
        ci95=interval,
        verdict=stats.verdict(interval),
        rounds=min(len(first.rounds), len(second.rounds)),
        interleaved=together,
    )


def stop_reason(rows: Sequence[Row], reasons: Collection[Stopped], precision: float) -> Stopped:
    """Why no more rounds were run.

    Args:
        rows: those with rounds.
        reasons: why the rounds of each process stopped.
        precision: the relative half-width that was asked for.
    """
    if not rows or "rounds" in reasons:
        return "rounds"
    widths = rounds.half_widths(
        {row.backend: row.rounds for row in rows}, {row.backend: row.rounds_per_process for row in rows}
    )
    if max(widths.values()) <= precision:
        return "precision"
    return "max-time" if "max-time" in reasons else "processes"


def warnings(row: Row, *, derives: bool = False) -> list[str]:
    """What a reader should know of a row with rounds.

    Args:
        row: the row, its ``interleaved`` set.
        derives: whether runtimes compute other weights from the artifact's.
    """
    found = []
    if derives and row.backend == "openvino":
        found.append("its graph is laid out for ONNX Runtime: openvino-stock times the plain one")
    if not row.interleaved:
        found.append("not interleaved with all others: they don't fit into memory together")
    if len(row.rounds) < stats.MIN_ROUNDS:
        found.append(f"only {len(row.rounds)} round{'s' * (len(row.rounds) > 1)}")
    if row.warmed_up is False:
        found.append("its passes still changed by more than 5 % when the warm-up ended")
    if (levels := core_latency.levels(row.core_latency_ns)) is not None:
        found.append(
            "its processors were moved between caches: the core-to-core latency was "
            f"{levels[0]:.0f} ns at times, and {levels[1]:.0f} ns at others"
        )
    if (count := len(row.rounds_per_process)) < stats.MIN_PROCESSES:
        processes = "1 process" if count == 1 else f"{count} processes"
        found.append(f"{processes}: how much processes differ isn't in its intervals")
    if abs(drift := stats.drift(row.rounds) or 0.0) > DRIFT:
        found.append(f"drifted by {100 * drift:+.0f} % between its first and its last rounds")
    return found


def _concluded(row: Row, ratios: Sequence[Ratio], reason: Stopped, *, derives: bool) -> Row:
    """A copy of the row with its speed-up over eager, why its rounds stopped, and its warnings."""
    mine = [ratio for ratio in ratios if row.backend in (ratio.baseline, ratio.backend)]
    row = replace(row, interleaved=all(ratio.interleaved for ratio in mine))
    if not row.rounds:
        return row
    if row.backend == "eager":
        row.speedup_over_eager = 1.0
    for ratio in mine:
        if ratio.baseline == "eager" != row.backend:
            row.speedup_over_eager, row.speedup_ci95, row.verdict = ratio.speedup, ratio.ci95, ratio.verdict
    row.stopped = row.stopped or reason
    if len(row.core_latency_ns) != len(row.rounds):
        row.core_latency_ns = []
    row.warnings = row.warnings + warnings(row, derives=derives)
    return row
