"""When the rounds stop, and what the statistics then say, on simulated runtimes: no process, no clock."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from segonnx.bench import rounds, stats
from segonnx.bench.rounds import Rule
from tests.bench import simulate

Rounds = dict[str, list[list[float]]]

FAST = Rule(precision=0.03, max_time_s=1e9)


class Clock:
    """Time that passes only when a block is run."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def blocks(clock: Clock, seconds: dict[str, float], log: list[str] | None = None) -> Callable[[str], list[float]]:
    def run_block(name: str) -> list[float]:
        clock.now += seconds[name]
        if log is not None:
            log.append(name)
        return [seconds[name]]

    return run_block


def test_a_quiet_bench_ends_as_soon_as_an_interval_can_be_had() -> None:
    clock, done = Clock(), Rounds()
    assert rounds.collect("ab", blocks(clock, {"a": 1, "b": 2}), FAST, clock, done) == "precision"
    assert done == {"a": [[1]] * stats.MIN_ROUNDS, "b": [[2]] * stats.MIN_ROUNDS}


def test_a_noisy_bench_goes_on() -> None:
    quiet, _ = simulate.bench(1.0, 0.005, 0, FAST)
    noisy, counts = simulate.bench(1.0, 0.08, 0, FAST)
    assert len(noisy["a"]) > 3 * len(quiet["a"])
    one = {name: its[: counts[0]] for name, its in noisy.items()}
    limit = FAST.share(0, simulate.PROCESSES).precision
    assert (
        max(rounds.half_widths(one).values())
        <= limit
        < max(rounds.half_widths({k: v[:7] for k, v in one.items()}).values())
    )


def test_no_round_is_begun_that_would_end_late() -> None:
    clock, done = Clock(), Rounds()
    rule = Rule(precision=1e-9, max_time_s=10)
    rng = np.random.default_rng(0)
    assert rounds.collect("ab", lambda _: _spend(clock, rng.uniform(1, 1.2)), rule, clock, done) == "max-time"
    assert [len(its) for its in done.values()] == [4, 4]
    assert clock.now <= 10


def test_one_round_is_always_run() -> None:
    clock, done = Clock(), Rounds()
    assert rounds.collect("a", blocks(clock, {"a": 50}), Rule(max_time_s=0), clock, done) == "max-time"
    assert done == {"a": [[50]]}


def test_rounds_asked_for_are_run() -> None:
    clock, done = Clock(), Rounds()
    assert rounds.collect("a", blocks(clock, {"a": 50}), Rule(max_time_s=0, rounds=3), clock, done) == "rounds"
    assert len(done["a"]) == 3


def test_processes_share_time_and_rounds() -> None:
    rule = Rule(precision=0.03, max_time_s=300, rounds=8, seed=5)
    shares = [rule.share(number, 3) for number in range(3)]
    assert [one.rounds for one in shares] == [3, 3, 2]
    assert [one.max_time_s for one in shares] == [100] * 3
    assert shares[0].precision == pytest.approx(0.03 * 3**0.5)  # what three of them mean together is narrower by that
    assert len({one.seed for one in shares}) == 3
    assert rule.share(0, 1) == rule


def test_the_order_is_shuffled_by_seed_and_every_round_has_every_runtime() -> None:
    logs = []
    for seed in (0, 0, 1):
        clock = Clock()
        log: list[str] = []
        rounds.collect("abc", blocks(clock, dict.fromkeys("abc", 1.0), log), Rule(rounds=20, seed=seed), clock, {})
        assert all(sorted(log[i : i + 3]) == ["a", "b", "c"] for i in range(0, 60, 3))
        logs.append(log)
    assert logs[0] == logs[1] != logs[2]
    assert len({tuple(logs[0][i : i + 3]) for i in range(0, 60, 3)}) > 3


def test_a_runtime_that_fails_takes_no_further_part() -> None:
    clock, done = Clock(), Rounds()

    def run_block(name: str) -> list[float] | None:
        clock.now += 1
        return None if name == "b" and clock.now > 5 else [1.0]

    assert rounds.collect("ab", run_block, FAST, clock, done) == "precision"
    assert done.keys() == {"a"}
    assert len(done["a"]) >= stats.MIN_ROUNDS
    assert rounds.collect("a", lambda _: None, FAST, clock, done := {}) == "rounds"
    assert done == {}


@pytest.mark.parametrize("noise", [0.01, pytest.param(0.04, marks=pytest.mark.slow)])
def test_verdicts_are_right_about_as_often_as_they_say(noise: float) -> None:
    """``make bench-selftest`` has the whole measure; this is enough to see that a broken interval would be found."""
    same = [stats.verdict(simulate.speedup(1.0, noise, seed, FAST)[1]) for seed in range(40)]
    faster = [stats.verdict(simulate.speedup(1.05, noise, seed, FAST)[1]) for seed in range(40)]
    assert same.count("no difference") >= 36
    assert faster.count("faster") >= 35


def test_what_a_process_draws_is_in_the_interval() -> None:
    """Rounds agree within each process, and processes don't: many rounds must not make the interval narrow."""
    found = [simulate.bench(1.0, 0.01, seed, FAST, between=0.05) for seed in range(40)]
    with_them = [stats.speedup(done["a"], done["b"], counts)[1] for done, counts in found]
    without = [stats.speedup(done["a"], done["b"])[1] for done, _ in found]
    inside = [sum(one is not None and one[0] <= 1 <= one[1] for one in its) for its in (with_them, without)]
    assert inside[0] >= 36
    assert inside[1] < 30
    times = [stats.ci95(done["a"], counts) for done, counts in found]
    assert sum(low <= 1.01 and high >= 0.99 for low, high in times) >= 36


def test_runs_are_compared_by_their_processes() -> None:
    rng = np.random.default_rng(3)
    inside = [0, 0]
    for _ in range(60):
        old, new = (
            [[float(t)] for pace in rng.normal(0, 0.05, 4) for t in np.exp(pace + rng.normal(0, 0.005, 8))]
            for _ in range(2)
        )
        for number, counts in enumerate(([8] * 4, [])):
            low, high = stats.ratio_of_runs(old, new, counts, counts)[1]  # type: ignore[misc]
            inside[number] += low <= 1 <= high
    assert inside[0] >= 54
    assert inside[1] < 45


def test_few_rounds_of_enough_processes_have_an_interval() -> None:
    slow, fast = [[2.0], [2.1], [1.9]], [[1.0], [1.0], [1.0]]
    value, interval = stats.speedup(slow, fast, [1, 1, 1])
    assert value == 2
    assert interval == pytest.approx((1.765, 2.262), abs=0.001)
    assert stats.speedup(slow, fast, [2, 1])[1] is None


def test_intervals_hold_the_truth() -> None:
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(100):
        low, high = stats.ci95([[one] for one in rng.lognormal(0, 0.2, 25)])
        inside += low <= 1 <= high
    assert inside >= 88


def test_passes_of_one_round_do_not_count_as_independent() -> None:
    """Rounds differ, passes within one hardly do: many passes must not make the interval narrow."""
    rng = np.random.default_rng(2)
    inside = 0
    for _ in range(100):
        low, high = stats.ci95([(rng.lognormal(0, 0.1) * rng.lognormal(0, 0.001, 30)).tolist() for _ in range(15)])
        inside += low <= 1 <= high
    assert inside >= 88


def test_rounds_of_different_length_are_pooled() -> None:
    low, high = stats.ci95([[1.0, 1.0], [1.0], [1.0, 2.0, 3.0]])
    assert 1.0 == low <= high <= 3.0
    assert stats.ci95([[1.0, 2.0]] * 7) == (1.5, 1.5)


def test_a_drift_that_both_share_leaves_the_ratio_as_it_is() -> None:
    slower = np.linspace(1, 2, 9)
    speedup, interval = stats.speedup([[2 * d] for d in slower], [[d] for d in slower])
    assert speedup == pytest.approx(2)
    assert interval == (2, 2)


def test_too_few_rounds_have_no_interval() -> None:
    few = [[1.0]] * (stats.MIN_ROUNDS - 1)
    assert stats.speedup(few, few) == (1, None)
    assert stats.ratio_of_runs(few, few) == (1, None)
    assert stats.verdict(None) is None
    enough = [[1.0]] * stats.MIN_ROUNDS
    assert stats.speedup(enough, enough) == (1, (1, 1))
    assert stats.ratio_of_runs(enough, [[0.5]] * 9) == (2, (2, 2))


@pytest.mark.parametrize(
    ("interval", "says"),
    [((1.01, 1.2), "faster"), ((0.8, 0.99), "slower"), ((0.9, 1.1), "no difference"), ((1.0, 1.1), "no difference")],
)
def test_verdict(interval: tuple[float, float], says: str) -> None:
    assert stats.verdict(interval) == says


@pytest.mark.parametrize(
    ("passes", "warm"), [([1.0], False), ([9.0, 1.0], False), ([9, 1.0, 1.04], True), ([1.0, 1.2], False)]
)
def test_warmed_up(passes: list[float], warm: bool) -> None:
    assert stats.warmed_up(passes) == warm


def test_drift_is_a_trend_and_not_noise() -> None:
    rng = np.random.default_rng(0)
    assert stats.drift([[t] for t in np.linspace(1, 1.3, 12)]) == pytest.approx(0.2, abs=0.05)
    assert sum(stats.drift([[t] for t in rng.lognormal(0, 0.1, 12)]) is not None for _ in range(100)) <= 5
    assert stats.drift([[1.0]] * 12) is None
    assert stats.drift([[1.0], [2.0]]) is None


def _spend(clock: Clock, seconds: float) -> list[float]:
    clock.now += seconds
    return [seconds]
