"""The table of whole images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import docs, whole_images

MACHINE = "2 cores of a machine"


def measured(seconds: float) -> dict[str, object]:
    return {"seconds": seconds, "steps": {"network": seconds / 2}, "peak": 10**9, "same": 1.0}


def made(root: Path, cases: dict[str, object], machine: str = MACHINE) -> Path:
    root.mkdir()
    (root / "whole.json").write_text(json.dumps({**cases, "machine": machine}))
    return root


@pytest.mark.parametrize("machine", [MACHINE, "4 cores of another"])
def test_rows_of_other_cases_stay_where_they_are_of_the_same_machine(machine: str, tmp_path: Path) -> None:
    few, whole = "long, few classes", "totalsegmentator"
    before = whole_images.table(made(tmp_path / "a", {few: {"now": measured(8.0)}, whole: {"now": measured(2.0)}}))
    again = made(tmp_path / "b", {whole: {"nnunet": measured(4.0), "now": measured(1.0)}}, machine)
    rows = [line for line in whole_images.table(again, before).splitlines() if "segonnx" in line or "nnU-Net |" in line]
    told = [(row.split(" | ")[0].removeprefix("| "), row.split(" | ")[2]) for row in rows]
    assert told == [(few, "8.00")] * (machine == MACHINE) + [(whole, "4.00"), (whole, "1.00")]


def test_the_page_s_own_table_is_read_as_it_stands(tmp_path: Path) -> None:
    there = docs.content(whole_images.PAGE, "whole")
    machine = there.removeprefix("Seconds on ").split(". ")[0]
    kept = whole_images.table(made(tmp_path / "a", {}, machine), there)
    assert kept.strip() == there.strip()


@pytest.mark.parametrize(("named", "raced"), [(["now", "nnunet"], ["now", "nnunet"]), ([], list(whole_images.WAYS))])
def test_a_large_case_is_raced_in_the_ways_that_are_named(
    named: list[str], raced: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def race_large(_: Path, place: str, ways: list[str]) -> dict[str, object]:
        assert place == "the long one's"
        asked.append(ways)
        return {}

    monkeypatch.setattr(whole_images, "make", lambda _, cases: {case: f"the {case} one's" for case in cases})
    monkeypatch.setattr(whole_images, "race_large", race_large)
    whole_images.race(tmp_path, ["long", *named])
    assert asked == [raced]
