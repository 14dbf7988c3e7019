"""The flag that tells whether processors share a cache."""

from __future__ import annotations

import os
from collections.abc import Callable
from multiprocessing import shared_memory
from pathlib import Path
from typing import TypeVar

import pytest

from segonnx.bench import core_latency, result, run
from segonnx.bench.core_latency import CoreLatency, levels
from segonnx.bench.plan import Settings
from segonnx.bench.rounds import Rule
from tests.bench import fakes

pytestmark = pytest.mark.usefixtures("copied_workers")
T = TypeVar("T", bound=Callable[..., None])


def several(test: T) -> T:
    """Mark a test that needs two processors: those that run side by side have one each."""
    few = not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2
    return pytest.mark.serial(pytest.mark.skipif(few, reason="needs two processors of Linux")(test))


@several
def test_the_flag_comes_back_as_often_as_it_is_asked() -> None:
    cpus = sorted(os.sched_getaffinity(0))
    with CoreLatency(cpus) as latency:
        first, second = latency.measure(), latency.measure()
        assert first is not None and second is not None
        assert min(first, second) > 1
        assert sorted(os.sched_getaffinity(0)) == cpus
        assert latency._peer.is_alive()
    assert not latency._peer.is_alive()


@several
def test_a_flag_that_nobody_answers_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_latency, "PATIENCE", 1000)
    with CoreLatency(sorted(os.sched_getaffinity(0))) as latency:
        latency._peer.kill()
        latency._peer.join()
        assert latency.measure() is None


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([], None),
        ([90.0], None),
        ([90.0, 95.0, 88.0, 110.0], None),
        ([90.0, 95.0, 88.0, 300.0], None),
        ([90.0, 300.0, 95.0, 88.0, 170.0, 160.0], (90.0, 170.0)),
        ([160.0, 165.0, 170.0, 209.0, 210.0], None),
        ([90.0] * 50 + [160.0] * 40 + [425.0, 430.0], (90.0, 160.0)),
    ],
)
def test_a_slow_measurement_is_no_level(times: list[float], expected: tuple[float, float] | None) -> None:
    assert levels(times) == expected


@several
@pytest.mark.parametrize("moved", [False, True])
def test_a_bench_tells_that_its_processors_moved(moved: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([90.0, 90.0, *([165.0, 165.0] if moved else [90.0, 90.0])])
    monkeypatch.setattr(CoreLatency, "measure", lambda _: next(times))
    settings = Settings(("steady",), (2,), Rule(rounds=4), processes=1, diagnose=True)
    (row,) = run.bench([fakes.target(tmp_path)], settings, None, lambda _: None, known=fakes.KNOWN).rows
    assert len(row.core_latency_ns) == len(row.rounds) == 4
    assert any("moved between caches" in warning for warning in row.warnings) == moved
    assert result.Row.from_dict(row.as_dict()).core_latency_ns == row.core_latency_ns


@several
def test_a_bench_whose_flag_is_lost_keeps_no_times_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([90.0, None])
    monkeypatch.setattr(CoreLatency, "measure", lambda _: next(times))
    settings = Settings(("steady",), (2,), Rule(rounds=4), processes=1, diagnose=True)
    (row,) = run.bench([fakes.target(tmp_path)], settings, None, lambda _: None, known=fakes.KNOWN).rows
    assert len(row.rounds) == 4
    assert row.core_latency_ns == []


@several
def test_a_bench_does_without_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(**_: object) -> None:
        raise FileNotFoundError("/dev/shm")

    monkeypatch.setattr(shared_memory, "SharedMemory", missing)
    settings = Settings(("steady",), (2,), Rule(rounds=2), diagnose=True)
    (row,) = run.bench([fakes.target(tmp_path)], settings, None, lambda _: None, known=fakes.KNOWN).rows
    assert len(row.rounds) == 2
    assert row.core_latency_ns == []


@several
def test_nothing_is_measured_unless_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CoreLatency, "__init__", lambda *_: pytest.fail("it was measured"))
    settings = Settings(("steady",), (2,), Rule(rounds=2))
    (row,) = run.bench([fakes.target(tmp_path)], settings, None, lambda _: None, known=fakes.KNOWN).rows
    assert row.core_latency_ns == []
    assert row.as_dict()["exchange_ns"] == []
