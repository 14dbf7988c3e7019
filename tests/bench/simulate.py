"""A simulated bench of two runtimes on a noisy machine, through the real rule for stopping."""

from __future__ import annotations

import numpy as np

from segonnx.bench import rounds, stats
from segonnx.bench.rounds import Rule

PASSES = 3
PROCESSES = 3
DRIFT = 0.02
"""The machine's pace wanders by about this much from round to round, for both alike."""
OUTLIERS = 0.05
"""Such a part of the passes takes half as long again."""


def speedup(
    truth: float, noise: float, seed: int, rule: Rule, between: float = 0.0
) -> tuple[float, stats.Interval | None, int]:
    """What a simulated bench finds: the speed-up, its interval, and after how many rounds."""
    done, counts = bench(truth, noise, seed, rule, between)
    return *stats.speedup(done["a"], done["b"], counts), len(done["a"])


def bench(
    truth: float, noise: float, seed: int, rule: Rule, between: float = 0.0
) -> tuple[dict[str, list[list[float]]], list[int]]:
    """The rounds of runtimes ``a`` and ``b``, of which b is ``truth`` times faster, and how many each process ran.

    Args:
        truth: the speed-up.
        noise: standard deviation of a block's own pace, as a fraction; a pass within it has half of that besides.
        seed: of the noise.
        rule: when to stop.
        between: standard deviation of a process's own pace, as a fraction.
    """
    rng = np.random.default_rng(seed)
    pace = 0.0
    clock = 0.0
    drawn: dict[str, float] = {}

    def run_block(name: str) -> list[float]:
        nonlocal pace, clock
        pace = 0.95 * pace + rng.normal(0, DRIFT / 2**0.5)
        times = np.exp(pace + drawn[name] + rng.normal(0, noise) + rng.normal(0, noise / 2, PASSES))
        times *= np.where(rng.random(PASSES) < OUTLIERS, 1.5, 1) / (truth if name == "b" else 1)
        clock += times.sum()
        return [float(time) for time in times]

    found: dict[str, list[list[float]]] = {"a": [], "b": []}
    counts = []
    for number in range(PROCESSES):
        drawn = {name: rng.normal(0, between) for name in found}
        done: dict[str, list[list[float]]] = {}
        rounds.collect("ab", run_block, rule.share(number, PROCESSES), lambda: clock, done)
        for name in found:
            found[name] += done[name]
        counts.append(len(done["a"]))
    return found, counts
