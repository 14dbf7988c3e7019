"""When to stop: rounds in a shuffled order until every interval is narrow, or the time is up. No process, no clock."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from segonnx.bench import stats

RunBlock = Callable[[str], list[float] | None]
"""Runs one runtime's block: seconds of each pass, or None where the runtime has failed and takes no further part."""
Stopped = Literal["precision", "processes", "max-time", "rounds"]

GROWTH = 1.2
"""The rounds grow by this factor from look to look: looks after every round would stop by chance."""


@dataclass(frozen=True)
class Rule:
    """When the rounds end.

    Attributes:
        precision: the largest relative half-width that the 95 % intervals may have.
        max_time_s: no round is begun that would probably end after this many seconds; the first one is always run.
        rounds: run exactly this many instead; neither of the other two counts then.
        seed: of the order within the rounds.
    """

    precision: float = 0.03
    max_time_s: float = 300
    rounds: int | None = None
    seed: int = 0

    def share(self, number: int, of: int) -> Rule:
        """The rule for one of the processes that follow each other, so that all together keep this one.

        Args:
            number: of the process, from 0.
            of: how many there are.
        """
        return replace(
            self,
            precision=self.precision * of**0.5,
            max_time_s=self.max_time_s / of,
            rounds=None if self.rounds is None else len(range(number, self.rounds, of)),
            seed=self.seed + number,
        )


def collect(
    names: Iterable[str],
    run_block: RunBlock,
    rule: Rule,
    clock: Callable[[], float],
    done: dict[str, list[list[float]]],
) -> Stopped:
    """Run rounds until the rule says stop.

    Args:
        names: the runtimes; each runs one block in every round.
        run_block: runs a block.
        rule: when to stop.
        clock: seconds.
        done: filled with the rounds of every runtime, so that what was measured is there if this is interrupted.

    Returns:
        Why it stopped: every interval is narrow, the time is up, or the rounds asked for are run.
    """
    order = random.Random(rule.seed)  # noqa: S311 (an order, not a secret)
    active = list(names)
    for name in active:
        done[name] = []
    started = clock()
    look = stats.MIN_ROUNDS
    number = 0
    while True:
        began = clock()
        shuffled = list(active)
        order.shuffle(shuffled)
        for name in shuffled:
            seconds = run_block(name)
            if seconds is None:
                active.remove(name)
                del done[name]
            else:
                done[name].append(seconds)
        number += 1
        if rule.rounds is not None or not active:
            if number == rule.rounds or not active:
                return "rounds"
            continue
        if number >= look:
            if max(half_widths(done).values()) <= rule.precision:
                return "precision"
            look = max(number + 1, round(number * GROWTH))
        now = clock()
        if now - started + (now - began) > rule.max_time_s:
            return "max-time"


def half_widths(
    done: Mapping[str, list[list[float]]], processes: Mapping[str, stats.Counts] | None = None
) -> dict[str, float]:
    """Relative half-widths of the intervals: of every runtime's median, and of every speed-up over the first.

    Args:
        done: rounds by runtime.
        processes: how many of them each process ran; None where they are all of one.
    """
    counts = processes or dict.fromkeys(done, ())
    result = {}
    names = list(done)
    for name in names:
        median = stats.median([seconds for block in done[name] for seconds in block])
        result[name] = stats.half_width(median, stats.ci95(done[name], counts[name]))
    for name in names[1:]:
        value, interval = stats.speedup(done[names[0]], done[name], counts[name])
        result[f"{names[0]} / {name}"] = float("inf") if interval is None else stats.half_width(value, interval)
    return result
