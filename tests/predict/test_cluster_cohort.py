"""Cohorts on the workers of real clusters: that do cases, die with them, and lose their client."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from segonnx.core import cluster as clusters_of_dask
from segonnx.predict import cohort, remote
from tests.clusters import cluster
from tests.conftest import ROOT, message, run, steps_in_process
from tests.predict.test_cohort import lines, made, make, statuses


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cluster")


@pytest.fixture(scope="module")
def scheduler(place: Path) -> Iterator[str]:
    """Two workers of this machine, each of which takes two cases at a time."""
    (place / "tmp").mkdir()
    with cluster(place, ["one", "two"], threads=2, env={"TMPDIR": str(place / "tmp")}) as address:
        yield address


def predicted(folder: Path, artifact: Path, cases: int) -> Path:
    """A folder with a cohort in ``in``, and in ``out`` what is right for it."""
    make(folder / "in", *(f"case {number:02}" for number in range(cases)))
    with steps_in_process():
        assert run("predict", artifact, folder / "in", folder / "out").returncode == 0
    return folder


@pytest.fixture(scope="module")
def whole(hand: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return predicted(tmp_path_factory.mktemp("whole"), hand, 10)


@pytest.fixture(scope="module")
def larger(hand: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort that isn't done before a signal comes."""
    return predicted(tmp_path_factory.mktemp("larger"), hand, 60)


def wait_for(happens: Callable[[], object], seconds: float = 90) -> None:
    until = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < until
        time.sleep(0.05)


def children_of_workers() -> list[psutil.Process]:
    """The processes that run networks for workers: those of processes that workers, and not tests, have started."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = " ".join(process.info["cmdline"] or [])
        parent = process.parent()
        if "spawn_main" in command and parent is not None and "spawn_main" in " ".join(parent.cmdline()):
            found.append(process)
    return found


def test_workers_do_what_one_process_does(hand: Path, whole: Path, scheduler: str, place: Path, tmp_path: Path) -> None:
    report = tmp_path / "r.jsonl"
    done = run("predict", hand, whole / "in", tmp_path / "out", "--scheduler", scheduler, "--report", report)
    assert done.returncode == 0, done.stderr
    assert message(done) == ""
    assert made(tmp_path / "out") == made(whole / "out")
    assert set(statuses(report).values()) == {"done"} and len(lines(report)) == 10
    assert len(list((place / "cache" / "segonnx" / "artifacts").iterdir())) == 1
    again = run("predict", hand, whole / "in", tmp_path / "out", "--scheduler", scheduler)
    assert again.stdout == "10 of 10 cases are done, 10 of them before\n"


def test_images_are_sent_where_nothing_is_shared(
    hand: Path, whole: Path, scheduler: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out, report = shutil.copytree(whole / "in", tmp_path / "in"), tmp_path / "out", tmp_path / "r.jsonl"
    (source / "bad_0000.nii.gz").write_text("no image")
    shutil.copytree(whole / "out", tmp_path / "drawn", ignore=shutil.ignore_patterns(".*"))
    (tmp_path / "drawn" / "bad.nii.gz").write_bytes((whole / "out" / "case 00.nii.gz").read_bytes())
    words = ("predict", hand, source, out, "--scheduler", scheduler, "--transfer", "--probabilities")
    done = run(*words, "--evaluate", tmp_path / "drawn", "--report", report)
    assert done.returncode == 1
    assert message(done).splitlines()[-1] == "segonnx: 1 of 11 cases aren't done: bad"
    assert made(out) == made(whole / "out")
    assert "mean Dice 1.0000 of 10 cases" in done.stdout
    assert len(list(out.glob("*.npz"))) == len(list(out.glob("*.pkl"))) == 10
    assert statuses(report)["bad"] == "failed"
    wait_for(lambda: not list((place / "tmp").glob("segonnx-*/made")))
    assert not list((place / "cache" / "segonnx" / "files").iterdir())
    (source / "bad_0000.nii.gz").unlink()
    again = run(*words)  # what was sent is done as if it had been done here
    assert again.stdout == "10 of 10 cases are done, 10 of them before\n"
    compared = run(*words, "--evaluate", tmp_path / "drawn", "--overwrite")
    assert "mean Dice 1.0000 of 10 cases" in compared.stdout, compared.stderr


def test_a_worker_that_does_not_see_the_folder_says_so(
    hand: Path, whole: Path, scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cohort, "RUNS", "elsewhere")
    done = run("predict", hand, whole / "in", tmp_path / "out", "--scheduler", scheduler)
    assert done.returncode == 2
    assert "no worker can be used; tcp://" in message(done)
    assert "share the storage, or send images with --transfer" in message(done)


def test_a_worker_of_another_version_is_not_used(
    hand: Path, whole: Path, scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote.Run, "__init__", _of_another_version(remote.Run.__init__))
    done = run("predict", hand, whole / "in", tmp_path / "out", "--scheduler", scheduler)
    assert done.returncode == 2 and "and the run 0.0.1: install the same" in message(done)


def _of_another_version(init: Callable[..., None]) -> Callable[..., None]:
    def changed(self: remote.Run, *arguments: object) -> None:
        init(self, *arguments, segonnx="0.0.1")

    return changed


def test_what_a_cluster_cannot_do_is_one_line(hand: Path, whole: Path, tmp_path: Path) -> None:
    image = whole / "in" / "case 00_0000.nii.gz"
    for words, said in (
        ((whole / "in", tmp_path / "o", "--transfer"), "--transfer sends images to workers"),
        ((image, tmp_path / "o.nii.gz", "--scheduler", "tcp://127.0.0.1:1"), "--scheduler is for a folder of cases"),
        ((whole / "in", tmp_path / "o", "--scheduler", "tcp://127.0.0.1:1"), "no scheduler of Dask answers at"),
    ):
        done = run("predict", hand, *words)
        assert done.returncode == 2 and said in message(done) and "\n" not in message(done)
    assert not list(tmp_path.iterdir())


def _start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "segonnx", "predict", *map(str, arguments)]
    # A shell starts its background jobs deaf to Ctrl-C, and so would be what these tests start.
    hear = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, preexec_fn=hear)  # noqa: PLW1509


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_client_that_ends_leaves_finished_cases_and_no_stray_task(
    how: signal.Signals, hand: Path, larger: Path, scheduler: str, tmp_path: Path
) -> None:
    out, report = tmp_path / "out", tmp_path / "r.jsonl"
    words = (hand, larger / "in", out, "--scheduler", scheduler, "--report", report)
    with _start(*words, "--threads", "1") as running:
        assert running.stdout is not None and running.stderr is not None
        while not running.stdout.readline().startswith("case"):
            assert running.poll() is None, running.stderr.read()
        running.send_signal(how)
        said = running.stderr.read()
    assert running.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[how]
    assert "Traceback" not in said
    with clusters_of_dask.connect(scheduler) as client:
        wait_for(lambda: not any(client.processing().values()))
        wait_for(lambda: not any(client.run(lambda: bool(remote._tasks())).values()))
    before = made(out)
    assert before.items() <= made(larger / "out").items()
    done = run("predict", *words)
    assert done.returncode == 0, done.stderr
    assert made(out) == made(larger / "out")
    assert set(statuses(report).values()) == {"done"}


def test_a_case_that_kills_two_workers_is_left(hand: Path, whole: Path, tmp_path: Path) -> None:
    source, out, report = shutil.copytree(whole / "in", tmp_path / "in"), tmp_path / "out", tmp_path / "r.jsonl"
    make(source, "crash")
    (tmp_path / "site2").mkdir()
    (tmp_path / "site2" / "sitecustomize.py").write_text(
        "import os, sys\n"
        "def hook(event, args):\n"
        "    if event == 'open' and 'crash_0000' in str(args[0]):\n"
        "        os.kill(os.getppid(), 9)\n"
        "sys.addaudithook(hook)\n"
    )
    env = {"PYTHONPATH": str(tmp_path / "site2")}
    with cluster(tmp_path, ["one", "two"], threads=2, env=env) as address:
        words = ("predict", hand, source, out, "--scheduler", address, "--report", report)
        done = run(*words)
        assert done.returncode == 1
        assert f"segonnx: crash: two processes died with it: to have it tried again, remove {out}" in message(done)
        assert made(out) == made(whole / "out")
        assert statuses(report) == dict.fromkeys((f"case {number:02}" for number in range(10)), "done") | {
            "crash": "left"
        }
        again = run(*words)
        assert again.returncode == 1 and "two processes died with it" in message(again)


def test_workers_may_come_later(hand: Path, whole: Path, tmp_path: Path) -> None:
    with cluster(tmp_path, []) as address:
        with _start(hand, whole / "in", tmp_path / "out", "--scheduler", address) as running:
            time.sleep(3)
            assert running.poll() is None
            env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache2"), "PYTHONPATH": str(ROOT)}
            worker = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "3", "--no-dashboard"]
            with subprocess.Popen(worker, env=env, stderr=subprocess.DEVNULL, cwd=tmp_path) as late:
                output, errors = running.communicate(timeout=120)
                late.terminate()
        assert running.returncode == 0, errors
        assert len(output.splitlines()) == 10
        assert made(tmp_path / "out") == made(whole / "out")


def test_a_scheduler_that_dies_ends_the_run(hand: Path, whole: Path, tmp_path: Path) -> None:
    with cluster(tmp_path, ["one"]) as address:
        running = _start(hand, whole / "in", tmp_path / "out", "--scheduler", address)
        assert running.stdout is not None and running.stderr is not None
        while not running.stdout.readline().startswith("case"):
            assert running.poll() is None
    with running:
        said = running.stderr.read()
    assert running.returncode == 2
    assert said.splitlines()[-1].startswith("segonnx: the scheduler ")
    assert "Traceback" not in said
    claims = [json.loads(path.read_text()) for path in (tmp_path / "out" / ".segonnx" / "claims").glob("*.[0-9]")]
    assert not any(claim["counts"] for claim in claims)
