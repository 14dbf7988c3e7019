"""A simulated bench of two runtimes on a noisy machine, through the real rule for stopping."""

from __future__ import annotations

import numpy as np

from segonnx.bench import rounds
from segonnx.bench.rounds import Rule

PASSES = 3
DRIFT = 0.02
"""The machine's pace wanders by about this much from round to round, for both alike."""
OUTLIERS = 0.05
"""Such a part of the passes takes half as long again."""


def bench(truth: float, noise: float, seed: int, rule: Rule) -> dict[str, list[list[float]]]:
    """The rounds of runtimes ``a`` and ``b``, of which b is ``truth`` times faster.

    Args:
        truth: the speed-up.
        noise: standard deviation of a turn's own pace, as a fraction; a pass within it has half of that besides.
        seed: of the noise.
        rule: when to stop.
    """
    rng = np.random.default_rng(seed)
    pace = 0.0
    clock = 0.0
    done: dict[str, list[list[float]]] = {}

    def turn(name: str) -> list[float]:
        nonlocal pace, clock
        pace = 0.95 * pace + rng.normal(0, DRIFT / 2**0.5)
        times = np.exp(pace + rng.normal(0, noise) + rng.normal(0, noise / 2, PASSES))
        times *= np.where(rng.random(PASSES) < OUTLIERS, 1.5, 1) / (truth if name == "b" else 1)
        clock += times.sum()
        return [float(time) for time in times]

    rounds.collect("ab", turn, rule, lambda: clock, done)
    return done
