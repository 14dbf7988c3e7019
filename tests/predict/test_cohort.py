"""Cohorts: resumed, with bad cases, killed, dealt into parts, and shared by processes."""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK

from segonnx.errors import ResourceError
from segonnx.predict import cohort, files, images, pipelined, records
from segonnx.predict.predictor import Artifact
from tests.conftest import ROOT, message, run, steps_in_process
from tests.predict.conftest import SPACING, save, volume

SMALL_SHAPE = (8, 12, 14)


@pytest.fixture
def here() -> Iterator[None]:
    with steps_in_process():
        yield


def make(folder: Path, *cases: str) -> Path:
    """A folder of small images, which differ from case to case."""
    for case in cases:
        save(volume(sum(map(ord, case)), SMALL_SHAPE), folder / f"{case}_0000.nii.gz")
    return folder


def made(folder: Path) -> dict[str, bytes]:
    """What a reader of NIfTI sees in a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.nii.gz"))}


@pytest.mark.parametrize("kind", [("--preview", ".png"), ("--statistics", ".csv")])
def test_pictures_and_numbers_are_part_of_what_is_done(
    hand: Path, kind: tuple[str, str], tmp_path: Path, here: None
) -> None:
    option, ending = kind
    source, out, looks = make(tmp_path / "in", "a", "b"), tmp_path / "out", tmp_path / "looks"
    first = run("predict", hand, source, out)
    assert first.returncode == 0, first.stderr
    more = (option, looks)
    refused = run("predict", hand, source, out, *more)
    assert refused.returncode == 2 and f"made without a{ending}: --overwrite replaces it" in message(refused)
    done = run("predict", hand, source, out, *more, "--overwrite")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in looks.iterdir()) == [f"a{ending}", f"b{ending}"]
    for words in (more, ()):  # who wants less is content with more
        assert "2 of 2 cases are done, 2 of them before" in run("predict", hand, source, out, *words).stdout
    (looks / f"a{ending}").unlink()
    again = run("predict", hand, source, out, *more, "--overwrite")
    assert "1 of them before" in again.stdout and (looks / f"a{ending}").exists()


def test_a_folder_of_cases_is_no_dicom_series_and_sends_no_pictures(hand: Path, tmp_path: Path, here: None) -> None:
    source = make(tmp_path / "in", "a")
    for words, said in (
        (("--format", "dicom-seg"), "--format dicom-seg is made of a DICOM series, and"),
        (("--scheduler", "tcp://127.0.0.1:1", "--transfer", "--preview", tmp_path / "p"), "--preview isn't sent back"),
        (("--scheduler", "tcp://127.0.0.1:1", "--transfer", "--codes", tmp_path / "c"), "--codes isn't sent back"),
    ):
        done = run("predict", hand, source, tmp_path / "out", *words)
        assert done.returncode == 2 and said in message(done) and "\n" not in message(done)


def test_a_record_names_files_and_no_device(tmp_path: Path) -> None:
    for name in ("/dev/zero", str(tmp_path), "../gone"):
        entry = {"file": name, "bytes": Path(name).stat().st_size if Path(name).exists() else 0, "modified_ns": 0}
        assert records.changed({"outputs": [entry | {"sha256": "0" * 64}]}, tmp_path, {}) == f"{name} was changed since"


def lines(report: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in report.read_text("utf-8").splitlines()]


def statuses(report: Path) -> dict[str, str]:
    return {case: record["status"] for case, record in records.load([report]).records.items()}


@pytest.fixture
def killer(tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """An environment in which the process that opens the image of a case called "crash" is killed; or its parent."""

    def environment(whom: str) -> dict[str, str]:
        folder = tmp_path / "killer"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(
            "import os, sys\n"
            "def hook(event, args):\n"
            "    if event == 'open' and 'crash_0000' in str(args[0]):\n"
            f"        os.kill(os.{whom}(), 9)\n"
            "        os.kill(os.getpid(), 9)\n"
            "sys.addaudithook(hook)\n"
        )
        return {**os.environ, "PYTHONPATH": str(folder)}

    return environment


def test_what_is_done_is_skipped_and_counted(hand: Path, loaded: Artifact, tmp_path: Path, here: None) -> None:
    source, out, report = make(tmp_path / "in", "a", "b"), tmp_path / "out", tmp_path / "report.jsonl"
    first = run("predict", hand, source, out, "--report", report)
    assert first.returncode == 0, first.stderr
    assert [line.partition(":")[0] for line in first.stdout.splitlines()] == ["a", "b"]
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.nii.gz")}
    assert len(before) == 2
    make(source, "c")
    again = run("predict", hand, source, out, "--report", report, "--json", tmp_path / "r.json")
    assert again.returncode == 0, again.stderr
    assert [line.partition(":")[0] for line in again.stdout.splitlines()] == [
        "c",
        "3 of 3 cases are done, 2 of them before",
    ]
    assert [row["case"] for row in json.loads((tmp_path / "r.json").read_text())] == ["c"]
    assert all(path.stat().st_mtime_ns == was for path, was in before.items())
    found = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(out / "c.nii.gz")))
    np.testing.assert_array_equal(found, loaded.predict(volume(ord("c"), SMALL_SHAPE), SPACING))
    assert [line["case"] for line in lines(report)] == ["a", "b", "c"]


def test_a_line_of_the_report_tells_what_was_done(hand: Path, tmp_path: Path, here: None) -> None:
    source, out, report = make(tmp_path / "in", "a"), tmp_path / "out", tmp_path / "report.jsonl"
    assert run("predict", hand, source, out, "--report", report, "--step", "1").returncode == 0
    (line,) = lines(report)
    assert line["status"] == "done" and line["shape"] == list(SMALL_SHAPE)
    assert line["spacing"] == pytest.approx(SPACING)
    assert line["recipe"]["options"]["step"] == 1
    assert line["seconds"].keys() >= {"read", "prepare", "network", "write"}
    assert line["peak_memory_bytes"] > 10**7
    labels = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(out / "a.nii.gz")))
    content = json.loads((hand / "manifest.json").read_bytes())
    names = {entry["value"]: entry["name"] for entry in content["labels"]}
    assert line["labels"] == {names[value]: int((labels == value).sum()) for value in np.unique(labels) if value}
    for key, path in (("inputs", source / "a_0000.nii.gz"), ("outputs", out / "a.nii.gz")):
        (entry,) = line[key]
        assert entry["file"] == path.name and entry["bytes"] == path.stat().st_size
    assert line.pop("cases") == 1
    assert records.read(out, "a") == line


def test_a_case_that_fails_ends_no_run(hand: Path, tmp_path: Path, here: None) -> None:
    source, out, report = make(tmp_path / "in", "a", "c"), tmp_path / "out", tmp_path / "report.jsonl"
    (source / "b_0000.nii.gz").write_text("no image")
    done = run("predict", hand, source, out, "--report", report)
    assert done.returncode == 1
    said = message(done).splitlines()
    assert len(said) == 2
    assert said[0].startswith("segonnx: b: ") and "b_0000.nii.gz" in said[0]
    assert said[1] == "segonnx: 1 of 3 cases aren't done: b"
    assert made(out).keys() == {"a.nii.gz", "c.nii.gz"}
    assert statuses(report) == {"a": "done", "b": "failed", "c": "done"}
    assert records.load([report]).records["b"]["error"] in said[0]
    make(source, "b")
    again = run("predict", hand, source, out, "--report", report)
    assert again.returncode == 0, again.stderr
    assert "3 of 3 cases are done, 2 of them before" in again.stdout
    assert statuses(report) == {"a": "done", "b": "done", "c": "done"}
    assert not list((out / records.FOLDER / "claims").glob("*.1"))


def test_fail_fast_ends_it(hand: Path, tmp_path: Path, here: None) -> None:
    source, out, report = make(tmp_path / "in", "b", "c", "d", "e", "f"), tmp_path / "out", tmp_path / "report.jsonl"
    (source / "a_0000.nii.gz").write_text("no image")
    done = run("predict", hand, source, out, "--fail-fast", "--report", report)
    assert done.returncode == 2
    assert message(done).startswith("segonnx: ") and "a_0000.nii.gz" in message(done) and "\n" not in message(done)
    assert statuses(report)["a"] == "failed"
    assert len(made(out)) < 5
    make(source, "a")
    assert run("predict", hand, source, out, "--fail-fast", "--report", report).returncode == 0
    assert set(statuses(report).values()) == {"done"}


def test_cases_that_are_wrong_in_the_folder_are_named_and_the_others_done(
    hand: Path, tmp_path: Path, here: None
) -> None:
    source, out = make(tmp_path / "in", "good", "twice"), tmp_path / "out"
    save(volume(1, SMALL_SHAPE), source / "twice_0000.mha")
    save(volume(1, SMALL_SHAPE), source / "other_0000.mha")
    save(volume(1, SMALL_SHAPE), source / "late_0001.nii.gz")
    save(volume(1, SMALL_SHAPE), source / "many_0000.nii.gz")
    save(volume(1, SMALL_SHAPE), source / "many_0001.nii.gz")
    done = run("predict", hand, source, out)
    assert done.returncode == 1
    assert made(out).keys() == {"good.nii.gz"}
    said = message(done)
    for case, what in (
        ("twice", "an image must be there once"),
        ("other", "beside images of another kind"),
        ("late", "lacks late_0000"),
        ("many", "has 2 channels"),
    ):
        assert any(line.startswith(f"segonnx: {case}: ") and what in line for line in said.splitlines()), case
    assert said.endswith("4 of 5 cases aren't done: late, many, other, twice")


def test_what_was_made_otherwise_is_refused_case_by_case(hand: Path, tmp_path: Path, here: None) -> None:
    source, out = make(tmp_path / "in", "a", "b"), tmp_path / "out"
    assert run("predict", hand, source, out).returncode == 0
    before = made(out)
    make(source, "c")
    done = run("predict", hand, source, out, "--step", "1")
    assert done.returncode == 1
    for case in ("a", "b"):
        assert (
            f"segonnx: {case}: {out / case}.nii.gz exists, made with other options (step): --overwrite replaces it"
            in message(done).splitlines()
        )
    assert made(out).items() >= before.items() and "c.nii.gz" in made(out)
    (source / "c_0000.nii.gz").unlink()
    all_refused = run("predict", hand, source, out, "--step", "1")
    assert all_refused.returncode == 2
    assert message(all_refused).splitlines()[-1].endswith("--overwrite replaces it (1 more cases are refused)")
    assert run("predict", hand, source, out, "--step", "1", "--overwrite").returncode == 0
    assert records.read(out, "a")["recipe"]["options"]["step"] == 1  # type: ignore[index]
    again = run("predict", hand, source, out, "--step", "1", "--overwrite")
    assert again.stdout == "2 of 2 cases are done, 2 of them before\n"


@pytest.mark.parametrize("what", ["another artifact", "another version", "image", "edited", "deleted", "no record"])
def test_what_is_done_is_done_by_this_artifact_of_this_image(
    what: str, hand: Path, tmp_path: Path, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = make(tmp_path / "in", "a", "b"), tmp_path / "out"
    assert run("predict", hand, source, out).returncode == 0
    path, record = out / "a.nii.gz", records.read(out, "a")
    assert record is not None
    if what == "another artifact":
        records.write(out, {**record, "recipe": {**record["recipe"], "artifact": "0" * 64}})
    elif what == "another version":
        records.write(out, {**record, "segonnx": "0.0.1"})
        assert run("predict", hand, source, out).returncode == 0
    elif what == "image":
        save(volume(7, SMALL_SHAPE), source / "a_0000.nii.gz")
    elif what == "edited":
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    elif what == "deleted":
        path.unlink()
    else:
        records.path_of(out, "a").write_text("{")
    left = path.read_bytes() if path.exists() else None
    done = run("predict", hand, source, out)
    if what in ("deleted", "another version"):
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode == 1
        assert f"segonnx: a: {path} exists" in message(done) and "--overwrite replaces it" in message(done)
        assert path.read_bytes() == left
    over = run("predict", hand, source, out, "--overwrite")
    assert over.returncode == 0, over.stderr
    assert [line.partition(":")[0] for line in over.stdout.splitlines()][:-1] == ([] if what == "deleted" else ["a"])
    assert records.changed(records.read(out, "a") or {}, out, {"a_0000.nii.gz": source / "a_0000.nii.gz"}) is None


def test_an_image_that_was_copied_anew_is_the_same(hand: Path, tmp_path: Path, here: None) -> None:
    source, out = make(tmp_path / "in", "a"), tmp_path / "out"
    assert run("predict", hand, source, out).returncode == 0
    os.utime(source / "a_0000.nii.gz", (1, 1))
    shutil.copytree(out, tmp_path / "copy", copy_function=shutil.copy)
    assert run("predict", hand, source, tmp_path / "copy").stdout == "1 of 1 cases are done, 1 of them before\n"


def test_what_is_noted_is_hidden_from_readers(hand: Path, tmp_path: Path, here: None) -> None:
    source, out = make(tmp_path / "in", "a", "b"), tmp_path / "out"
    assert run("predict", hand, source, out).returncode == 0
    shown = sorted(name for name in os.listdir(out) if not name.startswith("."))
    assert shown == ["a.nii.gz", "b.nii.gz"]
    for case in shown:
        (out / case).rename(out / case.replace(".nii", "_0000.nii"))
    assert images.cases(out, 1, ".nii.gz").keys() == {"a", "b"}


def test_label_maps_of_a_done_cohort_are_compared_without_the_network(
    hand: Path, tmp_path: Path, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = make(tmp_path / "in", "a", "b"), tmp_path / "out"
    for case in ("a", "b"):
        labels = np.random.default_rng(1).integers(0, 2, SMALL_SHAPE).astype(np.uint8)
        save(labels, tmp_path / "drawn" / f"{case}.nii.gz")
    at_once = run("predict", hand, source, tmp_path / "other", "--evaluate", tmp_path / "drawn")
    assert at_once.returncode == 0, at_once.stderr
    part = run("predict", hand, source, out, "--part", "1/2", "--evaluate", tmp_path / "drawn")
    assert part.returncode == 2 and "--evaluate compares all cases" in message(part)
    assert run("predict", hand, source, out).returncode == 0
    monkeypatch.setattr(files, "compute", None)
    done = run("predict", hand, source, out, "--evaluate", tmp_path / "drawn")
    assert done.returncode == 0, done.stderr
    assert "mean Dice " in done.stdout and "of 2 cases" in done.stdout
    ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (out, tmp_path / "other"))
    assert [case["metrics"] for case in ours["metric_per_case"]] == [
        case["metrics"] for case in theirs["metric_per_case"]
    ]
    save(np.zeros((1, 2, 3), np.uint8), tmp_path / "drawn" / "b.nii.gz")
    wrong = run("predict", hand, source, out, "--evaluate", tmp_path / "drawn", "--overwrite")
    assert wrong.returncode == 1 and "segonnx: b: " in message(wrong)


def test_parts_hold_each_case_once_and_take_alike_long() -> None:
    rng = random.Random(0)
    for _ in range(100):
        sizes = [rng.choice((0, 1, rng.randrange(10**9))) for _ in range(rng.randrange(1, 60))]
        parts = rng.randrange(1, 20)
        dealt = [cohort.deal(sizes, part, parts) for part in range(1, parts + 1)]
        assert sorted(case for own in dealt for case in own) == list(range(len(sizes)))
        loads = [sum(sizes[case] for case in own) for own in dealt]
        assert max(loads) <= sum(sizes) / parts + max(sizes) + len(sizes)
    assert cohort.deal([5, 5, 5, 5], 2, 2) == [1, 3]
    assert cohort.deal([9, 1, 1, 1], 1, 2) == [0]


def test_parts_say_that_they_are_parts(hand: Path, tmp_path: Path, here: None) -> None:
    source, out = make(tmp_path / "in", "a", "b", "c"), tmp_path / "out"
    found: set[str] = set()
    for part in (1, 2):
        done = run("predict", hand, source, out, "--part", f"{part}/2")
        assert done.returncode == 0, done.stderr
        first = done.stdout.splitlines()[0]
        assert first in [f"part {part} of 2: {n} of 3 cases; the others are other processes'" for n in (1, 2)]
        now = set(made(out)) - found
        assert len(now) == int(first.split()[4])
        found |= now
    assert len(found) == 3
    for wrong in ("0/2", "3/2", "1", "a/b", "1/0"):
        refused = run("predict", hand, source, out, "--part", wrong)
        assert refused.returncode == 2 and "--part takes a part of so many" in message(refused)
    refused = run("predict", hand, source / "a_0000.nii.gz", tmp_path / "o.nii.gz", "--part", "1/2")
    assert refused.returncode == 2 and "--part is for a folder of cases" in message(refused)


def test_the_next_case_is_read_and_the_last_one_written_meanwhile(
    hand: Path, tmp_path: Path, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no more than that: memory holds two images as they were read, and two label maps."""
    source, out = make(tmp_path / "in", *"abcde"), tmp_path / "out"
    read, compute, write = files.read, files.compute, files.write
    events: list[tuple[str, str]] = []
    changed = threading.Condition()

    def note(what: str, case: str) -> None:
        with changed:
            events.append((what, case))
            changed.notify_all()

    def slow_compute(artifact: Any, case: files.Case, *more: Any) -> Any:
        name = case.job.case
        with changed:
            follows = {"a": "b", "b": "c", "c": "d", "d": "e"}.get(name)
            before = {"b": "a", "c": "b", "d": "c", "e": "d"}.get(name)
            assert changed.wait_for(lambda: follows is None or ("read", follows) in events, 30)
            assert changed.wait_for(lambda: before is None or ("written", before) in events, 30)
            assert ("read", {"a": "c", "b": "d", "c": "e"}.get(name, "")) not in events
        return compute(artifact, case, *more)

    def noted_read(artifact: Any, job: files.Job, options: Any) -> files.Case:
        found = read(artifact, job, options)
        note("read", job.case)
        return found

    def noted_write(artifact: Any, case: files.Case, *more: Any) -> files.Predicted:
        assert case.image.array.size == 0  # what isn't needed any more isn't held
        found = write(artifact, case, *more)
        note("written", case.job.case)
        return found

    monkeypatch.setattr(files, "compute", slow_compute)
    monkeypatch.setattr(files, "read", noted_read)
    monkeypatch.setattr(files, "write", noted_write)
    done = run("predict", hand, source, out)
    assert done.returncode == 0, done.stderr
    assert len(made(out)) == 5


def test_a_case_that_finds_no_memory_beside_others_is_tried_alone(
    hand: Path, tmp_path: Path, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out, report = make(tmp_path / "in", *"abcd"), tmp_path / "out", tmp_path / "report.jsonl"
    compute = files.compute
    asked: list[str] = []

    def short(artifact: Any, case: files.Case, *more: Any) -> Any:
        asked.append(case.job.case)
        if case.job.case == "d" or (case.job.case == "b" and asked.count("b") == 1):
            raise ResourceError("the memory ran out")
        return compute(artifact, case, *more)

    monkeypatch.setattr(files, "compute", short)
    done = run("predict", hand, source, out, "--report", report)
    assert done.returncode == 1
    assert asked == ["a", "b", "c", "d", "b", "d"]
    assert statuses(report) == {"a": "done", "b": "done", "c": "done", "d": "failed"}
    assert "tried again alone: the memory ran out" in records.load([report]).records["b"]["warnings"]


def test_a_full_disk_ends_the_run(hand: Path, tmp_path: Path, here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = make(tmp_path / "in", *"abcd"), tmp_path / "out"

    def full(labels: Any, like: Any, path: Path) -> None:
        raise ResourceError(f"can't write {path}: No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(images, "write", full)
        done = run("predict", hand, source, out)
    assert done.returncode == 2
    assert message(done) == f"segonnx: can't write {out / 'a.nii.gz'}: No space left on device"
    assert run("predict", hand, source, out).returncode == 0
    assert len(made(out)) == 4


def test_what_fails_while_it_is_written_leaves_nothing_of_itself(
    hand: Path, tmp_path: Path, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = make(tmp_path / "in", *"ab"), tmp_path / "out"
    write = images.write

    def fails(labels: Any, like: Any, path: Path) -> None:
        if path.name == "a.nii.gz":
            raise ResourceError(f"can't write {path}: such a file doesn't keep the labels")
        write(labels, like, path)

    with monkeypatch.context() as patched:
        patched.setattr(images, "write", fails)
        done = run("predict", hand, source, out, "--probabilities")
    assert done.returncode == 1
    shown = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
    assert [name for name in shown if name.startswith("a")] == []
    assert {"b.nii.gz", "b.npz", "b.pkl"} <= set(shown)
    again = run("predict", hand, source, out, "--probabilities")
    assert again.returncode == 0, again.stderr
    assert {"a.nii.gz", "a.npz", "a.pkl"} <= {path.name for path in out.iterdir()}


def test_what_a_killed_run_left_is_no_obstacle(hand: Path, tmp_path: Path, here: None) -> None:
    source, out = make(tmp_path / "in", *"ab"), tmp_path / "out"
    (out / records.FOLDER / "claims").mkdir(parents=True)
    (out / records.FOLDER / "claims" / "a.1").write_text(json.dumps({"run": "gone", "death": "among others"}))
    (out / "a.npz").write_bytes(b"half of it")
    (out / "b.npz").write_bytes(b"somebody's")
    done = run("predict", hand, source, out, "--probabilities")
    assert done.returncode == 1
    assert f"segonnx: b: {out / 'b.npz'} exists: --overwrite replaces it" in message(done)
    assert (out / "b.npz").read_bytes() == b"somebody's"
    assert np.load(out / "a.npz")["probabilities"].shape[1:] == SMALL_SHAPE
    record = records.read(out, "a")
    assert record is not None and record["warnings"][0] == "a process died with it before"


def test_nothing_is_taken_away_of_a_case_that_is_left(hand: Path, tmp_path: Path, here: None) -> None:
    """What stands there was not noted: a dead process made it, or a user put it there since."""
    source, out = make(tmp_path / "in", *"abc"), tmp_path / "out"
    assert run("predict", hand, source, out).returncode == 0
    claims = out / records.FOLDER / "claims"
    for case in "ab":
        for number in (1, 2):
            (claims / f"{case}.{number}").write_text(json.dumps({"run": "gone", "death": "alone"}))
    (out / records.FOLDER / "done" / "a.json").unlink()
    (out / "a.nii.gz").write_bytes(b"a user's own")
    for _ in range(2):
        done = run("predict", hand, source, out)
        assert done.returncode == 1
        assert f"remove {claims / 'a'}.* and {out / 'a.nii.gz'}" in message(done)
        assert "segonnx: 1 of 3 cases aren't done: a" in message(done)
        assert (out / "a.nii.gz").read_bytes() == b"a user's own"
    for path in (*claims.glob("a.*"), out / "a.nii.gz"):
        path.unlink()
    again = run("predict", hand, source, out)
    assert again.returncode == 0, again.stderr
    assert made(out).keys() == {"a.nii.gz", "b.nii.gz", "c.nii.gz"}


def _start(*arguments: object, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "segonnx", "predict", *map(str, arguments)]
    # A shell starts its background jobs deaf to Ctrl-C, and so would be what these tests start.
    hear = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=pipe, stderr=pipe, text=True, preexec_fn=hear)  # noqa: PLW1509


def test_a_killed_run_goes_on_where_it_was(hand: Path, tmp_path: Path) -> None:
    cases = [f"case {number:02}" for number in range(12)]
    source, report = make(tmp_path / "in", *cases), tmp_path / "report.jsonl"
    with steps_in_process():
        assert run("predict", hand, source, tmp_path / "whole").returncode == 0
    for kill_after in (1, 4):
        with _start(hand, source, tmp_path / "out", "--threads", 1, "--report", report) as running:
            assert running.stdout is not None
            told = 0
            while told < kill_after:
                told += running.stdout.readline().startswith("case")
            running.send_signal(signal.SIGKILL)
        assert not (tmp_path / "out" / "summary.json").exists()
    with steps_in_process():
        done = run("predict", hand, source, tmp_path / "out", "--report", report)
    assert done.returncode == 0, done.stderr
    assert made(tmp_path / "out") == made(tmp_path / "whole")
    assert statuses(report) == dict.fromkeys(cases, "done")
    again = [line["case"] for line in lines(report)]
    assert len(again) == len(set(again)) == 12
    hidden = [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]
    assert [path.name for path in hidden] == [records.FOLDER]
    assert not [path for path in (tmp_path / "out" / records.FOLDER / "claims").iterdir() if path.is_file()]


def test_a_case_that_kills_the_networks_process_fails_alone(
    hand: Path, tmp_path: Path, killer: Callable[[str], dict[str, str]]
) -> None:
    source, out, report = make(tmp_path / "in", *"ab", "crash", *"de"), tmp_path / "out", tmp_path / "report.jsonl"
    done = run("predict", hand, source, out, "--report", report, env=killer("getpid"))
    assert done.returncode == 1
    said = message(done).splitlines()
    assert len(said) == 2 and said[0].startswith("segonnx: crash: the process for serve was killed by SIGKILL")
    assert made(out).keys() == {f"{case}.nii.gz" for case in "abde"}
    assert statuses(report) == dict.fromkeys("abde", "done") | {"crash": "failed"}


def test_a_case_that_kills_the_whole_run_is_left_after_two_that_had_it_alone(
    hand: Path, tmp_path: Path, killer: Callable[[str], dict[str, str]]
) -> None:
    source, out, report = make(tmp_path / "in", "crash", *"tuvw"), tmp_path / "out", tmp_path / "report.jsonl"
    words, env = ("predict", hand, source, out, "--report", report), killer("getppid")
    assert run(*words, env=env).returncode == -signal.SIGKILL
    assert run(*words, env=env).returncode == -signal.SIGKILL
    assert made(out).keys() == {
        "v.nii.gz",
        "w.nii.gz",
    }  # the second run did them first, and the others had been in hand
    assert run(*words, env=env).returncode == -signal.SIGKILL
    last = run(*words, env=env)
    assert last.returncode == 1
    assert made(out).keys() == {f"{case}.nii.gz" for case in "tuvw"}
    claim = out / records.FOLDER / "claims" / "crash"
    said = f"segonnx: crash: two processes died with it alone in hand: to have it tried again, remove {claim}.*"
    assert said in message(last)
    assert statuses(report) == dict.fromkeys("tuvw", "done") | {"crash": "left"}
    for path in claim.parent.glob("crash.*"):
        path.unlink()
    healed = run(*words)
    assert healed.returncode == 0, healed.stderr
    assert statuses(report)["crash"] == "done"


def test_sigterm_gives_up_what_is_in_hand(hand: Path, tmp_path: Path) -> None:
    cases = [f"case {number:02}" for number in range(40)]
    source, out = make(tmp_path / "in", *cases), tmp_path / "out"
    for _ in range(2):
        with _start(hand, source, out) as running:
            assert running.stdout is not None and running.stderr is not None
            while not running.stdout.readline().startswith("case"):
                assert running.poll() is None
            running.send_signal(signal.SIGTERM)
            assert "Traceback" not in running.stderr.read()
        assert running.returncode == 143
        found = [json.loads(path.read_text()) for path in (out / records.FOLDER / "claims").glob("*.[0-9]")]
        assert {claim["death"] for claim in found} == {"none"}
        assert not list((out / records.FOLDER / "claims" / "runs").iterdir())
    with steps_in_process():
        done = run("predict", hand, source, out)
    assert done.returncode == 0, done.stderr
    assert len(made(out)) == 40


def test_processes_share_a_folder_and_do_no_case_twice(hand: Path, tmp_path: Path) -> None:
    cases = [f"case {number:02}" for number in range(20)]
    source, out = make(tmp_path / "in", *cases), tmp_path / "out"
    reports = [tmp_path / f"{number}.jsonl" for number in range(3)]
    running = [_start(hand, source, out, "--threads", 1, "--report", report) for report in reports]
    told = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], told
    done = [line.partition(":")[0] for output, _ in told for line in output.splitlines() if line.startswith("case")]
    assert sorted(done) == cases
    assert len(made(out)) == 20


def test_a_second_stages_recipe_names_the_first(hand: Path, tmp_path: Path) -> None:
    from segonnx.core.subprocesses import Bounds
    from segonnx.predict import bounded

    checked = bounded.check(hand, Bounds(), lambda _: None)
    alone, after = (cohort.recipe((checked, first), files.FileOptions()) for first in (None, checked))
    assert alone["previous"] is None and after["previous"] == alone["artifact"]
    record = records.new("a", "done", alone)
    assert records.differs(record, alone) is None
    assert records.differs(record, after) == "made with another first stage"


def test_what_is_left_is_estimated_by_size(hand: Path, tmp_path: Path, here: None) -> None:
    from segonnx.core.subprocesses import Bounds
    from segonnx.predict import bounded
    from segonnx.predict.executors import Local

    source = make(tmp_path / "in", *"abcd")
    checked = bounded.check(hand, Bounds(), lambda _: None)
    own = cohort.Cohort((checked, None), source, tmp_path / "out", files.FileOptions(), cohort.CohortOptions())
    assert (own.cases, own.mine, own.remaining_s()) == (4, 4, None)
    executor = Local(
        (checked, None), files.FileOptions(), own.recipe, threads=1, bounds=Bounds(), progress=lambda _: None
    )
    began = time.monotonic()
    left = [own.remaining_s() for _ in own.predict(executor)]
    passed = time.monotonic() - began
    assert left[-1] == 0
    assert all(one is not None and one < 20 * passed for one in left)
    assert pipelined.DEPTH == 3
