"""The statistics of a bench."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000


def median(samples: Sequence[float]) -> float:
    """The median."""
    return float(np.median(samples))


def ci95(samples: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """A 95 % confidence interval of the median, by the percentile bootstrap."""
    drawn = np.random.default_rng(seed).choice(np.asarray(samples), (RESAMPLES, len(samples)))
    low, high = np.percentile(np.median(drawn, axis=1), (2.5, 97.5))
    return float(low), float(high)


def ratio(numerator: Sequence[Sequence[float]], denominator: Sequence[Sequence[float]]) -> float:
    """The median over rounds of the ratio of two runtimes' medians within a round.

    Both ran in every round one after the other, so what slowed a round slowed both.
    """
    return median([median(a) / median(b) for a, b in zip(numerator, denominator, strict=False)])
