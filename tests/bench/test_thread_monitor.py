"""Warnings that a quiet machine doesn't give by itself."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from segonnx.bench import run
from segonnx.bench.plan import Settings
from segonnx.bench.rounds import Rule
from segonnx.bench.thread_monitor import ThreadMonitor
from segonnx.core import hardware
from tests.bench import fakes


class Clock:
    """The machine's counters, as the test moves them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.user, self.steal = 0.0, 0.0, 0.0
        self.threads = {1: 0.0}
        monkeypatch.setattr("segonnx.bench.thread_monitor.time.perf_counter", lambda: self.now)
        monkeypatch.setattr(
            psutil, "cpu_times", lambda **_: [SimpleNamespace(user=self.user, system=0.0, steal=self.steal)]
        )
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})

    def process(self, _pid: int) -> Any:
        def threads() -> list[Any]:
            return [SimpleNamespace(id=tid, user_time=spent, system_time=0.0) for tid, spent in self.threads.items()]

        return SimpleNamespace(threads=threads)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock(monkeypatch)
    monkeypatch.setattr(psutil, "Process", made.process)
    return made


@pytest.mark.parametrize(
    ("worker", "user", "steal", "warning"),
    [
        ({1: 10.0}, 10.0, 0.0, None),
        ({1: 10.0}, 10.3, 0.05, None),
        ({1: 8.0}, 10.0, 0.0, "other programs took 20 % of the processors"),
        ({1: 9.5}, 9.5, 0.5, "the host took 5 % of the processors' time away (steal)"),
        ({1: 5.0, 2: 5.0}, 10.0, 0.0, "2 of its threads worked, 1 were asked for"),
        ({1: 9.9, 2: 0.1}, 10.0, 0.0, None),
    ],
)
def test_what_disturbs_a_block_is_told(
    clock: Clock, worker: dict[int, float], user: float, steal: float, warning: str | None
) -> None:
    monitor = ThreadMonitor([0])
    monitor.follow(1)
    monitor.begin()
    clock.now, clock.user, clock.steal, clock.threads = 10.0, user, steal, worker
    monitor.end()
    # Between blocks anything may happen.
    clock.now, clock.user, clock.steal = 99.0, 99.0, 50.0
    found = monitor.warnings(1)
    assert found == [] if warning is None else len(found) == 1 and warning in found[0]


def test_a_runtime_that_leaves_its_processors_is_told(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = ThreadMonitor([0])
    monitor.follow(1)
    monitor.begin()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3})
    monitor.end()
    assert monitor.warnings(1) == ["it ran on processors [0, 3], not only on [0]"]


def test_the_threads_of_a_second_worker_are_not_added_to_those_of_the_first(clock: Clock) -> None:
    monitor = ThreadMonitor([0])
    for pid, threads in enumerate(({1: 5.0}, {7: 2.0, 8: 2.0}, {9: 5.0})):
        clock.threads = dict.fromkeys(threads, 0.0)
        monitor.follow(pid)
        monitor.begin()
        clock.threads = threads
        monitor.end()
    assert monitor.busy == monitor.total == 2


@pytest.mark.usefixtures("copied_workers")
def test_a_governor_that_changes_clock_rates_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    described = hardware.describe()
    for governor, warned in (("powersave", True), ("performance", False), (None, False)):
        monkeypatch.setattr(hardware, "describe", lambda governor=governor: {**described, "governor": governor})
        settings = Settings(("steady",), (1,), Rule(rounds=1))
        done = run.bench([fakes.target(tmp_path)], settings, None, lambda _: None, known=fakes.KNOWN)
        assert any("governor" in warning for warning in done.warnings) == warned
