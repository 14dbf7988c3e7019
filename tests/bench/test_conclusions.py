"""What rows say together, on rows that nobody measured: no process, no clock."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from segonnx.bench import conclusions, stats
from segonnx.bench.result import Row

ROUNDS = stats.MIN_ROUNDS
TOGETHER = [["eager", "ort", "openvino"]]


def row(backend: str, seconds: float = 1.0, rounds: int = ROUNDS, **fields: Any) -> Row:
    """A row whose every pass took the same time, in three processes."""
    counts = [len(range(number, rounds, 3)) for number in range(3)]
    return Row(
        "net", "2d", backend, 10, 10, (1, 3, 8, 8), "", 1.0,
        **{"rounds": [[seconds]] * rounds, "rounds_per_process": counts, "warmed_up": True, **fields},
    )  # fmt: skip


def concluded(*rows: Row, **fields: Any) -> conclusions.Conclusions:
    settings = {"groups": TOGETHER, "reasons": {"precision"}, "precision": 0.03, **fields}
    return conclusions.conclude(rows, **settings)


def test_every_pair_has_a_ratio_and_eager_is_the_first_baseline() -> None:
    found = concluded(row("ort", 1.0), row("eager", 2.0), row("openvino", 4.0))
    assert [(ratio.baseline, ratio.backend, ratio.speedup, ratio.verdict) for ratio in found.ratios] == [
        ("eager", "ort", 2, "faster"), ("eager", "openvino", 0.5, "slower"), ("ort", "openvino", 0.25, "slower"),
    ]  # fmt: skip
    ort, eager, openvino = found.rows
    assert (ort.speedup_over_eager, ort.verdict) == (2, "faster")
    assert (openvino.speedup_over_eager, openvino.speedup_ci95) == (0.5, (0.5, 0.5))
    assert (eager.speedup_over_eager, eager.verdict) == (1.0, None)


def test_the_rows_that_were_given_stay_as_they_are() -> None:
    given = [row("eager"), row("ort", rounds=3)]
    before = [replace(each, warnings=list(each.warnings)) for each in given]
    assert concluded(*given).rows != before
    assert given == before


def test_a_row_without_rounds_says_nothing() -> None:
    found = concluded(row("eager"), row("ort", rounds=0, rounds_per_process=[], status="it crashed"))
    assert found.ratios == []
    assert found.rows[1].status == "it crashed"
    assert found.rows[1].stopped is None
    assert found.rows[1].warnings == []


def test_runtimes_of_two_groups_are_not_interleaved() -> None:
    found = concluded(row("eager"), row("ort"), row("openvino"), groups=[["eager", "ort"], ["openvino"]])
    assert [ratio.interleaved for ratio in found.ratios] == [True, False, False]
    assert all(any("not interleaved" in warning for warning in each.warnings) for each in found.rows)
    assert not any("not interleaved" in warning for warning in concluded(row("eager"), row("ort")).rows[0].warnings)


@pytest.mark.parametrize(
    ("spoiled", "reasons", "expected"),
    [
        (False, {"precision"}, "precision"),
        (False, {"precision", "max-time"}, "precision"),
        (True, {"precision", "max-time"}, "max-time"),
        (True, {"precision"}, "processes"),
        (True, {"rounds", "precision"}, "rounds"),
    ],
)
def test_why_the_rounds_stopped(spoiled: bool, reasons: set[Any], expected: str) -> None:
    paces = [1.0, 1.5, 2.0] if spoiled else [1.0, 1.0, 1.0]
    rounds = [[pace] for pace in paces for _ in range(4)]
    made = replace(row("ort"), rounds=rounds, rounds_per_process=[4, 4, 4])
    (found,) = concluded(made, reasons=reasons).rows
    assert found.stopped == expected
    assert conclusions.stop_reason([], set(), 0.03) == "rounds"


def test_an_interrupt_is_kept_as_the_reason() -> None:
    assert concluded(row("ort", stopped="interrupted")).rows[0].stopped == "interrupted"


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({}, None),
        ({"warmed_up": False}, "its passes still changed by more than 5 %"),
        ({"rounds": [[1.0]], "rounds_per_process": [1, 0, 0]}, "only 1 round"),
        ({"rounds_per_process": [ROUNDS]}, "1 process: how much processes differ"),
        ({"rounds_per_process": [4, 4]}, "2 processes: how much processes differ"),
        ({"interleaved": False}, "they don't fit into memory together"),
        ({"rounds": [[1 + 0.1 * number] for number in range(ROUNDS)]}, "drifted by +"),
        (
            {"core_latency_ns": [90.0] * 4 + [165.0] * 4},
            "the core-to-core latency was 90 ns at times, and 165 ns at others",
        ),
        ({"core_latency_ns": [90.0] * 8}, None),
    ],
)
def test_each_warning_has_its_cause(changes: dict[str, Any], warning: str | None) -> None:
    found = conclusions.warnings(replace(row("ort"), **changes))
    assert found == [] if warning is None else len(found) == 1 and warning in found[0]


def test_openvino_is_warned_of_a_graph_for_onnx_runtime() -> None:
    assert conclusions.warnings(row("openvino"), derives=True)
    assert not conclusions.warnings(row("openvino"), derives=False)
    assert not conclusions.warnings(row("ort"), derives=True)


def test_latencies_of_some_rounds_alone_are_dropped() -> None:
    assert concluded(row("ort", core_latency_ns=[90.0] * 3)).rows[0].core_latency_ns == []
    assert concluded(row("ort", core_latency_ns=[90.0] * ROUNDS)).rows[0].core_latency_ns == [90.0] * ROUNDS
