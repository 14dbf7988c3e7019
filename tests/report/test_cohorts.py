"""What a page and a table say of a cohort."""

from __future__ import annotations

import json
import random
import re
from datetime import UTC, datetime, timedelta
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from segonnx.predict import records
from segonnx.predict.records import Record
from segonnx.report import cohorts
from tests.conftest import message, run

RECIPE = {"artifact": "ab" * 32, "previous": None, "options": {"step": 0.5, "mirror": True, "nan_as_zero": False}}
HOSTILE = "</script><script>document.title='owned'</script>"


def record(case: str, status: Any = "done", number: int = 0, **more: Any) -> Record:
    ended = datetime(2026, 1, 2, tzinfo=UTC) + timedelta(minutes=number)
    return {**records.new(case, status, RECIPE, **more), "ended": ended.isoformat(timespec="seconds")}


def write(path: Path, found: list[Record], cases: int = 0) -> Path:
    more = {"cases": cases} if cases else {}
    path.write_text("".join(json.dumps(one | more) + "\n" for one in found), "utf-8")
    return path


@pytest.fixture
def report(tmp_path: Path) -> Path:
    rng = random.Random(0)
    found = [
        record(
            f"case {number:03}", number=number, seconds={"read": 0.5, "network": rng.uniform(1, 100), "write": 0.25},
            peak_memory_bytes=2 * 10**9 + number, shape=[number + 1, 20, 30], labels={"liver": 5} if number else {},
            warnings=[] if number else ["no label was found"],
        )
        for number in range(120)
    ]  # fmt: skip
    found += [
        record("bad", "failed", 130, error=f"it can't be read: {HOSTILE}"),
        record("old", "refused", 131, error="x"),
    ]
    found += [record("deadly", "left", 132, error="two processes died with it alone in hand")]
    return write(tmp_path / "a.jsonl", found, 200)


def words(page: str) -> str:
    return " ".join(
        unescape(re.sub(r"<script.*?</script>|<style.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL)).split()
    )


def test_a_page_tells_how_far_a_cohort_is(report: Path) -> None:
    pytest.importorskip("vl_convert")
    page = cohorts.render(records.load([report]))
    shown = words(page)
    for text in (
        "120 of 200 cases are done (60.0 %)", "1 failed", "1 refused", "1 left after two processes died with it",
        "77 haven't ended yet", "2.00 GB", "1 cases have no label but the background", "it can't be read: " + HOSTILE,
        "ab" * 32, "the last one ended 2026-01-02 02:12 UTC",
    ):  # fmt: skip
        assert text in shown, text
    assert HOSTILE not in page
    slowest = [float(found) for found in re.findall(r'<td data-value="([\d.]+)" class="number">[\d.,]+ s</td>', page)][
        ::5
    ]
    assert len(slowest) == cohorts.SLOWEST and slowest == sorted(slowest, reverse=True)
    charts = json.loads(re.search(r'id="charts">(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index]
    assert [chart["mark"]["type"] for chart in charts] == ["bar", "bar", "line"]
    assert sum(bar["cases"] for bar in charts[0]["data"]["values"]) == 120
    assert charts[2]["data"]["values"][-1]["cases"] == 123
    assert page.index("Content-Security-Policy") < page.index("<style>")


@pytest.mark.parametrize("seconds", [[], [0.0], [0.0, 0.0], [1.0], [1.0, 1.0], [1e-6, 1e9], [0.0, 5.0]])
def test_times_of_any_kind_are_drawn(seconds: list[float], tmp_path: Path) -> None:
    pytest.importorskip("vl_convert")
    found = [record(str(number), seconds={"network": one}) for number, one in enumerate(seconds)]
    found += [] if found else [record("a", "failed", error="no")]
    cohort = records.load([write(tmp_path / "r.jsonl", found)])
    page = cohorts.render(cohort)
    charts = json.loads(re.search(r'id="charts">(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index]
    assert not charts or sum(bar["cases"] for bar in charts[0]["data"]["values"]) == len(seconds)
    assert cohorts.text(cohort)


def test_parts_are_shown_together(report: Path, tmp_path: Path) -> None:
    other = {**RECIPE, "artifact": "cd" * 32}
    more = write(tmp_path / "b.jsonl", [record("bad"), {**record("new"), "recipe": other}])
    done = run("report", report, more, "--markdown", "--json", tmp_path / "all.json")
    assert done.returncode == 0, done.stderr
    assert "- 122 of 200 cases are done" in done.stdout
    assert "the cases were made by 2 different artifacts" in done.stdout
    assert "| bad |" not in done.stdout and "| old | refused |" in done.stdout
    assert len(json.loads((tmp_path / "all.json").read_text())) == 124


def test_the_command_writes_a_page(report: Path, tmp_path: Path) -> None:
    pytest.importorskip("vl_convert")
    done = run("report", report, "--html", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    assert "120 of 200 cases are done" in (tmp_path / "page.html").read_text("utf-8")


def test_what_is_no_report_is_refused_in_one_line(report: Path, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text("{}")
    (tmp_path / "no.jsonl").write_text("no\n")
    strange = write(tmp_path / "strange.jsonl", [record("a") | {"ended": "2026-99-99T00:00:00+00:00"}])
    for words, said in (
        ((report, tmp_path / "r.json", "--markdown"), "is no report of a cohort"),
        ((report, "--svg", tmp_path / "a.svg"), "--svg draws the speed-ups of a bench"),
        ((tmp_path / "no.jsonl", "--markdown"), "isn't JSON"),
        ((tmp_path / "none.jsonl", "--markdown"), "can't be read"),
        ((strange, "--markdown"), "is no time"),
        ((report, "--html", report), "which is read"),
    ):
        done = run("report", *words)
        assert done.returncode == 2, done.stderr
        assert said in message(done) and "\n" not in message(done)


def test_a_cut_line_is_told(report: Path) -> None:
    with report.open("a") as file:
        file.write('{"schema_version": 1, "ca')
    done = run("report", report, "--markdown")
    assert "1 lines were cut by processes that died" in done.stdout
