"""Results of strangers: report and compare show them, or refuse them in one line."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segonnx.bench import result, stats
from tests.conftest import message, run
from tests.report import results

Content = dict[str, Any]


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Content:
    path = tmp_path_factory.mktemp("result") / "result.json"
    results.make(names=("encoder-lcnet-100",)).write(path)
    found: Content = json.loads(path.read_text())
    return found


def machine(**values: Any) -> Callable[[Content], object]:
    return lambda content: content["machine"].update(values)


def row(**values: Any) -> Callable[[Content], object]:
    return lambda content: content["rows"][0].update(values)


def ratio(**values: Any) -> Callable[[Content], object]:
    return lambda content: content["ratios"][0].update(values)


CHANGES: dict[str, Callable[[Content], object]] = {
    "versions a list": machine(versions=[1]),
    "versions of numbers": machine(versions={"torch": 2}),
    "memory a text": machine(memory_bytes="x"),
    "no versions": lambda content: content["machine"].pop("versions"),
    "flags a number": machine(flags=7),
    "a deep fact": machine(load={"a": {"b": 1}}),
    "threads a number": lambda content: content["settings"].update(threads=5),
    "overhead of other keys": lambda content: content.update(overhead={"x": 1}),
    "overhead a text": lambda content: content["overhead"].update(wall_s="long"),
    "NaN": lambda content: row(samples_s=[float("nan")] * len(content["rows"][0]["samples_s"]))(content),
    "infinity": lambda content: row(samples_s=[float("inf")] * len(content["rows"][0]["samples_s"]))(content),
    "too few samples": row(samples_per_round=[10**4]),
    "too many samples": lambda content: content["rows"][0]["samples_s"].append(1.0),
    "rounds without a beginning": lambda content: content["rows"][0]["started_s"].pop(),
    "rounds of no process": row(rounds_per_process=[5, 5]),
    "a latency too many": row(exchange_ns=[50.0]),
    "multiply-adds of 400 digits": row(macs=10**400),
    "multiply-adds of 64 bits": row(macs=2**63),
    "parameters of a broken number": row(parameters=1.0),
    "half a character": row(model="\ud800"),
    "a name of megabytes": row(model="x" * 5_000_000),
    "a profile without end": row(profile=[{"operator": "Conv", "kind": "x", "calls": 1e300, "seconds": 1e300}]),
    "an interval backwards": row(speedup_ci95=[2.0, 1.0]),
    "a row twice": lambda content: content["rows"].append(content["rows"][0]),
    "a ratio of one runtime": ratio(backend="eager", baseline="eager"),
    "a ratio's interval backwards": ratio(ci95=[2.0, 1.0]),
    "a ceiling of nothing": lambda content: content["ceilings"][0].update(bandwidth_gb_s=1e-300),
    "sizes that are floats": row(input_shape=[1, 3, 512.0, 512]),
    "a version that is a float": lambda content: content.update(schema_version=3.0),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_strange_result_is_refused_in_one_line(what: str, content: Content, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps(content))
    strange = copy.deepcopy(content)
    CHANGES[what](strange)
    bad.write_text(json.dumps(strange))
    page = tmp_path / "page.html"
    for command in (["report", bad, "--html", page], ["compare", good, bad, "--force"], ["compare", bad, good]):
        done = run(*command)
        assert done.returncode == 2, done.stdout
        assert "\n" not in message(done) and len(message(done)) < 1100
        assert str(bad) in message(done)
    assert not page.exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(overhead={}),
        lambda content: content.update(rows=[], ratios=[]),
        lambda content: [row.update(samples_s=[], samples_per_round=[], started_s=[]) for row in content["rows"]],
        lambda content: content["machine"].update(versions={}, flags=[], memory_bytes=0),
        lambda content: content["rows"][0].update(samples_s=[1e-12] * 9, samples_per_round=[1] * 9),
        lambda content: content["rows"][0].update(macs=2**63 - 1, parameters=1, memory_bytes=1),
        lambda content: content["rows"][0].update(profile=[], warnings=["|`<b>"], model="<script>|`"),
    ],
)
def test_what_a_reader_may_meet_is_shown(change: Callable[[Content], object], content: Content, tmp_path: Path) -> None:
    strange = copy.deepcopy(content)
    change(strange)
    path = tmp_path / "strange.json"
    path.write_text(json.dumps(strange))
    done = run("report", path, "--html", tmp_path / "page.html", "--json", tmp_path / "again.json", "--markdown")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "page.html").stat().st_size > 10_000
    assert len(result.read(tmp_path / "again.json").rows) == len(strange["rows"])


def test_processes_that_differ_by_more_than_floats_hold_have_an_interval() -> None:
    old = [[1e-12], [1e12], [1e-12]] * 3
    low, high = stats.ci95(old, [3, 3, 3])
    assert 0 < low <= high < float("inf")
    ends = stats.ci95([[1e-12], [1e12], [1e-3]], [1, 1, 1])
    assert 0 <= ends[0] <= ends[1] < float("inf")
    _, interval = stats.ratio_of_runs([[1e-12], [1e12], [1.0]], [[1e12], [1e-12], [1.0]], [1, 1, 1], [1, 1, 1])
    assert interval is not None and interval[1] < float("inf")


def test_intervals_of_many_samples_are_those_of_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = [[1.0 + 0.01 * i, 1.1 + 0.02 * i] for i in range(20)]
    whole = stats.ci95(rounds)
    monkeypatch.setattr(stats, "_DRAWN", 100)
    assert stats.ci95(rounds) == whole


def test_a_result_is_written_whatever_text_a_row_got(content: Content, tmp_path: Path) -> None:
    made = results.make(names=("encoder-lcnet-100",))
    made.rows[0].status = "\udcff.onnx doesn't load"
    made.write(tmp_path / "result.json")
    assert result.read(tmp_path / "result.json").rows[0].status == "?.onnx doesn't load"
