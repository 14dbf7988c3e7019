"""The report of a cohort: whole lines, whatever was killed; and strangers' ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from segonnx.errors import InputError, ResourceError
from segonnx.predict import records
from segonnx.predict.records import Record, Report
from tests.conftest import ROOT

RECIPE = {"artifact": "0" * 64, "previous": None, "options": {"step": 0.5}}


def done(case: str) -> Record:
    return records.new(case, "done", RECIPE, seconds={"network": 1.0}, labels={"liver": 3})


def test_lines_are_appended_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    report = Report(path)
    for case in ("a", "ü\n", "c"):
        report.append(done(case), 9)
    assert len(path.read_text("utf-8").splitlines()) == 3
    found = records.load([path])
    assert found.records.keys() == {"a", "ü\n", "c"} and found.cut == 0
    assert Report(path).known.keys() == {"a", "ü\n", "c"}


@pytest.mark.parametrize("cut", [1, 5, 17, 18, 40, 200])
def test_a_line_that_a_kill_cut_is_taken_away(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    Report(path).append(done("a"), 9)
    whole = path.read_bytes()
    with path.open("ab") as file:
        file.write(json.dumps(done("b")).encode()[:cut])
    assert records.load([path]).records.keys() == {"a"} and records.load([path]).cut == 1
    Report(path).append(done("c"), 9)
    assert path.read_bytes().startswith(whole) and records.load([path]).cut == 0
    assert records.load([path]).records.keys() == {"a", "c"}
    path.write_bytes(json.dumps(done("b")).encode()[:cut])  # and the first one
    Report(path).append(done("d"), 9)
    assert records.load([path]).records.keys() == {"d"}


def test_a_line_that_a_kill_cut_may_be_long(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    Report(path).append(done("a"), 9)
    with path.open("ab") as file:
        file.write(b'{"schema_version": 1, "case": "' + b"x" * 200_000)
    Report(path).append(done("c"), 9)
    assert records.load([path]).records.keys() == {"a", "c"}


def test_processes_append_whole_lines_side_by_side(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    script = (
        "import sys\nfrom pathlib import Path\nfrom tests.predict.test_records import done, Report\n"
        "report = Report(Path(sys.argv[1]))\n"
        "for number in range(100):\n    report.append(done(f'{sys.argv[2]} {number}'), 9)\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", script, str(path), str(n)], cwd=ROOT) for n in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert len(records.load([path]).records) == 300


def test_the_last_word_on_a_case_counts_but_done_is_done(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    report = Report(path)
    report.append(records.new("a", "failed", RECIPE, error="no"), 9)
    report.append(records.new("b", "failed", RECIPE, error="no"), 9)
    report.append(done("a"), 9)
    report.append(records.new("a", "refused", RECIPE, error="it exists"), 9)
    report.append(records.new("b", "left", RECIPE, error="twice"), 9)
    assert {case: own["status"] for case, own in records.load([path]).records.items()} == {"a": "done", "b": "left"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a text\n", "isn't JSON"),
        (b"a text", "isn't JSON"),
        (b"[]\n", "is no line of a report of a cohort"),
        (b'{"case": "a"}\n', "is no line of a report of a cohort"),
        (b"\x00" * 50, "isn't JSON"),
        (b'{"schema_version": 1, "case": ' + b"[" * 100_000 + b"\n", "isn't JSON"),
        (json.dumps(done("a") | {"seconds": {"network": -1}}).encode() + b"\n", "seconds/network"),
        (json.dumps(done("a") | {"seconds": {"network": 1e10}}).encode() + b"\n", "seconds/network"),
        (json.dumps(done("a") | {"shape": [1, 2, 3.5]}).encode() + b"\n", "shape/2"),
        (json.dumps(done("a") | {"more": 1}).encode() + b"\n", "more"),
    ],
)
def test_what_is_no_report_is_refused_and_kept(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said) as refused:
        Report(path)
    assert "\n" not in str(refused.value)
    assert path.read_bytes() == content


def test_a_report_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="it is a folder"):
        Report(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ResourceError, match="isn't a plain file"):
        Report(tmp_path / "pipe")


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    records.write(tmp_path, done("a"))
    assert records.read(tmp_path, "a") == done("a") | {"ended": records.read(tmp_path, "a")["ended"]}  # type: ignore[index]
    assert records.read(tmp_path, "b") is None
    records.path_of(tmp_path, "a").write_text(json.dumps(records.new("a", "failed", RECIPE)))
    assert records.read(tmp_path, "a") is None


def test_a_name_as_long_as_a_files_may_be(tmp_path: Path) -> None:
    name = "x" * (255 - len(".nii.gz"))
    records.write(tmp_path, done(name))
    assert records.read(tmp_path, name) is not None
