"""The statistics of a bench.

Passes within a round follow each other and aren't independent: the round is the unit. Rounds of one process share what
that process drew (where its memory lies, say): an interval is as wide as its rounds ask for, and as its processes do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, overload

import numpy as np
import numpy.typing as npt

Rounds = Sequence[Sequence[float]]
"""Seconds of every pass, by round."""
Counts = Sequence[int]
"""How many rounds each process ran, in their order; empty where all are of one."""
Interval = tuple[float, float]
Verdict = Literal["faster", "slower", "no difference"]

LEVEL = 0.95
NOMINAL = 0.99
MIN_ROUNDS = 8
"""The fewest rounds from which an interval of a ratio can be had at ``NOMINAL``."""
MIN_PROCESSES = 3
"""The fewest processes from which something can be said of how they differ."""
RESAMPLES = 1000
ALIKE = 0.05
"""The warm-up is over when this many per cent of a pass separate it from the pass before it."""


def median(samples: Sequence[float]) -> float:
    """The median."""
    return float(np.median(samples))


def ci95(rounds: Rounds, processes: Counts = (), seed: int = 0) -> Interval:
    """A 95 % confidence interval of the median of all samples.

    By the percentile bootstrap over whole rounds, and by Student's t over the processes' medians: from the lower of the
    two lower ends to the higher of the upper ones.
    """
    low, high = np.percentile(_medians(rounds, np.random.default_rng(seed)), _TAILS)
    return _hull((float(low), float(high)), _between([median(_pool(its)) for its in split(rounds, processes)]))


def split(rounds: Rounds, processes: Counts) -> list[Rounds]:
    """The rounds of each process that ran any."""
    ends = np.cumsum(processes or [len(rounds)])
    return [rounds[end - count : end] for end, count in zip(ends, processes or [len(rounds)], strict=True) if count]


def half_width(value: float, interval: Interval) -> float:
    """The relative half-width: how far the interval reaches from its value at most, as a fraction of the value."""
    return max(value - interval[0], interval[1] - value) / value


def speedup(baseline: Rounds, other: Rounds, processes: Counts = ()) -> tuple[float, Interval | None]:
    """How many times faster ``other`` is than ``baseline``, and the 95 % confidence interval of that.

    Both ran in every round, one after the other, so what slowed a round slowed both: the speed-up is the median of the
    rounds' ratios. Its interval lies between two of the ratios in their order, chosen by the binomial distribution:
    exact, whatever the noise looks like. It is made at ``NOMINAL``, because a bench that ends when its intervals are
    narrow misses the truth more often than a nominal 95 % says. Fewer than ``MIN_ROUNDS`` have none.

    Both ran in as many processes, and the speed-ups of these give an interval of their own, by Student's t; fewer than
    ``MIN_PROCESSES`` have none. The interval reaches from the lower of the two lower ends to the higher upper one.
    """
    from scipy import stats

    ratios = [median(a) / median(b) for a, b in zip(baseline, other, strict=False)]
    value = median(ratios)
    found = stats.quantile_test(ratios, p=0.5).confidence_interval(NOMINAL)
    within = None if math.isnan(found.low) else (float(found.low), float(found.high))
    between = _between([median(_pool(its)) for its in split([[ratio] for ratio in ratios], processes)])
    return value, _hull(within, between, value)


def ratio_of_runs(
    old: Rounds, new: Rounds, old_processes: Counts = (), new_processes: Counts = (), seed: int = 0
) -> tuple[float, Interval | None]:
    """How many times faster a ``new`` run is than an ``old`` one at another time, and the 95 % interval of that.

    By the percentile bootstrap over the rounds of both, and by Welch's t over the medians of their processes, like the
    interval of ``speedup``. What changed on the machine between the runs is in the ratio, and the interval doesn't know
    of it. Fewer than ``MIN_ROUNDS`` and ``MIN_PROCESSES`` have none.
    """
    from scipy import stats

    value = median(_pool(old)) / median(_pool(new))
    within = between = None
    if min(len(old), len(new)) >= MIN_ROUNDS:
        rng = np.random.default_rng(seed)
        low, high = np.percentile(_medians(old, rng) / _medians(new, rng), _TAILS)
        within = float(low), float(high)
    before = [math.log(median(_pool(one))) for one in split(old, old_processes)]
    after = [math.log(median(_pool(one))) for one in split(new, new_processes)]
    if min(len(before), len(after)) >= MIN_PROCESSES and np.ptp(before) + np.ptp(after) > 0:
        found = stats.ttest_ind(before, after, equal_var=False).confidence_interval(LEVEL)
        between = _exp(found.low), _exp(found.high)
    return value, _hull(within, between, value)


def verdict(interval: Interval | None) -> Verdict | None:
    """What the interval of a speed-up says: ``no difference`` where it holds 1; None without an interval."""
    if interval is None:
        return None
    low, high = interval
    return "faster" if low > 1 else "slower" if high < 1 else "no difference"


def warmed_up(passes: Sequence[float]) -> bool:
    """Whether the last two passes took the same time, within 5 % of the shorter one."""
    return len(passes) > 1 and abs(passes[-1] - passes[-2]) <= ALIKE * min(passes[-2:])


def drift(rounds: Rounds) -> float | None:
    """How much slower the last third of the rounds is than the first one: 0.1 is 10 %.

    None where that is no trend: fewer than six rounds, or a rank correlation with time that chance gives in more than
    1 of 100 benches.
    """
    from scipy import stats

    times = [median(block) for block in rounds]
    if len(times) < 6 or np.ptp(times) == 0 or stats.kendalltau(range(len(times)), times).pvalue > 0.01:
        return None
    third = len(times) // 3
    return median(times[-third:]) / median(times[:third]) - 1


_LARGEST = 700.0
"""About the logarithm of the largest float."""
_DRAWN = 2**24
"""Numbers that are drawn at a time."""
_TAILS = (50 * (1 - LEVEL), 50 * (1 + LEVEL))


def _between(values: Sequence[float]) -> Interval | None:
    """The 95 % interval of the geometric mean of values of several processes; None where they are too few."""
    from scipy import stats

    if len(values) < MIN_PROCESSES:
        return None
    if np.ptp(values) == 0:
        return values[0], values[0]
    found = stats.ttest_1samp(np.log(values), 0).confidence_interval(LEVEL)
    return _exp(found.low), _exp(found.high)


def _exp(value: float) -> float:
    """The exponential of the end of an interval, no larger or smaller than a float can be."""
    return math.exp(min(max(value, -_LARGEST), _LARGEST))


@overload
def _hull(first: Interval, other: Interval | None) -> Interval: ...
@overload
def _hull(first: Interval | None, other: Interval | None, value: float) -> Interval | None: ...
def _hull(first: Interval | None, other: Interval | None, value: float | None = None) -> Interval | None:
    """The shortest interval that holds those there are, and the value; None where there is none."""
    ends = [end for interval in (first, other) if interval is not None for end in interval]
    if not ends:
        return None
    ends += [] if value is None else [value]
    return min(ends), max(ends)


def _pool(rounds: Rounds) -> list[float]:
    return [seconds for block in rounds for seconds in block]


def _medians(rounds: Rounds, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """The medians of ``RESAMPLES`` benches of as many rounds, each drawn from these with replacement."""
    several = max(1, min(RESAMPLES, _DRAWN // max(1, sum(map(len, rounds)))))
    parts = [_some_medians(rounds, min(several, RESAMPLES - done), rng) for done in range(0, RESAMPLES, several)]
    return np.concatenate(parts)


def _some_medians(rounds: Rounds, count: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """The medians of ``count`` of the benches."""
    drawn = rng.integers(len(rounds), size=(count, len(rounds)))
    if len({len(block) for block in rounds}) == 1:
        samples = np.asarray(rounds)[drawn].reshape(count, -1)
        result: npt.NDArray[np.float64] = np.median(samples, axis=1)
        return result
    arrays = [np.asarray(block) for block in rounds]
    return np.array([np.median(np.concatenate([arrays[i] for i in row])) for row in drawn])
