"""Cohorts on the workers of real clusters: that do cases, die with them, and lose their client."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
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


def test_what_a_cluster_cannot_do_is_one_line(
    hand: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusters_of_dask, "CONNECT_S", 0.5)
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


@pytest.mark.parametrize(
    "how", [signal.SIGINT, *(pytest.param(how, marks=pytest.mark.slow) for how in (signal.SIGTERM, signal.SIGKILL))]
)
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


HOOK = """
import os, sys

def hook(event, args):
    if event == "open" and str(args[0]).endswith("_0000.nii.gz"):
        name = os.path.basename(str(args[0])).split("_")[0]
        if name in ("crash", "unlucky"):
            folder = os.environ["DEATHS"]
            deaths = len([died for died in os.listdir(folder) if died.startswith(name)])
            if name == "crash" or not deaths:
                open(os.path.join(folder, f"{name}.{deaths}"), "x").close()
                os.kill(os.getppid(), 9)
                os.kill(os.getpid(), 9)

sys.addaudithook(hook)
"""


@pytest.mark.slow  # half a minute of workers that start
def test_a_case_that_kills_two_workers_alone_is_left_and_one_that_had_bad_luck_is_not(
    hand: Path, whole: Path, tmp_path: Path
) -> None:
    source, out, report = shutil.copytree(whole / "in", tmp_path / "in"), tmp_path / "out", tmp_path / "r.jsonl"
    make(source, "crash", "unlucky")
    (tmp_path / "site2").mkdir()
    (tmp_path / "site2" / "sitecustomize.py").write_text(HOOK)
    (tmp_path / "deaths").mkdir()
    env = {"PYTHONPATH": str(tmp_path / "site2"), "DEATHS": str(tmp_path / "deaths")}
    with cluster(tmp_path, ["one", "two"], threads=2, env=env) as address:
        words = ("predict", hand, source, out, "--scheduler", address, "--report", report)
        done = run(*words)
        assert done.returncode == 1
        said = f"segonnx: crash: two processes died with it alone in hand: to have it tried again, remove {out}"
        assert said in message(done)
        deaths = [path.stem for path in (tmp_path / "deaths").iterdir()]
        assert deaths.count("unlucky") == 1 and 2 <= deaths.count("crash") <= 3
        assert {name: made(out)[name] for name in made(whole / "out")} == made(whole / "out")
        assert statuses(report) == dict.fromkeys(
            [*(f"case {number:02}" for number in range(10)), "unlucky"], "done"
        ) | {"crash": "left"}
        again = run(*words)
        assert again.returncode == 1 and "two processes died with it alone in hand" in message(again)


@contextlib.contextmanager
def dask(*words: object, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of Dask, started as a user starts it, and without a nanny that would start it anew."""
    env = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", f"distributed.cli.dask_{words[0]}", *map(str, words[1:]), "--no-dashboard"]
    with subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=folder) as own:
        try:
            yield own
        finally:
            own.kill()


@contextlib.contextmanager
def bare_scheduler(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A scheduler that has no worker, and its address."""
    file = folder / "scheduler.json"
    with dask("scheduler", "--port", 0, "--scheduler-file", file, folder=folder) as own:
        wait_for(lambda: file.exists() and file.read_text().endswith("}"))
        yield json.loads(file.read_text())["address"], own


def test_a_run_without_workers_ends_and_says_what_is_not_done(hand: Path, larger: Path, tmp_path: Path) -> None:
    with bare_scheduler(tmp_path) as (address, _):
        words = (hand, larger / "in", tmp_path / "out", "--scheduler", address, "--worker-wait", 2, "--threads", 1)
        nobody = run("predict", *words)
        assert nobody.returncode == 2
        assert message(nobody).splitlines() == [
            f"no worker is there at {address}: waiting 2 s for one",
            f"segonnx: no worker was there at {address} for 2 s: start one, and run this again",
        ]
        assert nobody.stdout.splitlines()[-1] == "0 of 60 cases are done, 60 aren't"


@pytest.mark.slow  # two workers; core/test_cluster.py has one that dies, and a run without any is above
def test_a_run_whose_workers_are_gone_ends_and_goes_on_later(hand: Path, larger: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with bare_scheduler(tmp_path) as (address, _):
        words = (hand, larger / "in", out, "--scheduler", address, "--worker-wait", 2, "--threads", 1)
        with contextlib.ExitStack() as stack:
            worker = stack.enter_context(dask("worker", address, "--no-nanny", "--nthreads", 2, folder=tmp_path))
            with clusters_of_dask.connect(address) as own:
                wait_for(lambda: clusters_of_dask.members(own))
            client = stack.enter_context(_start(*words))
            assert client.stdout is not None and client.stderr is not None
            while not client.stdout.readline().startswith("case"):
                assert client.poll() is None, client.stderr.read()
            worker.kill()
            said = client.stderr.readline()
            assert said == f"no worker is left at {address}: waiting 2 s for one\n"
            (last,) = client.stderr.read().splitlines()
            counts = client.stdout.read().splitlines()[-1]
        assert client.returncode == 2
        assert last == f"segonnx: no worker was there at {address} for 2 s: start one, and run this again"
        done = made(out)
        assert 0 < len(done) < 60 and done.items() <= made(larger / "out").items()
        assert counts.endswith("cases are done, " + f"{60 - int(counts.split()[0])} aren't")
        claims = [json.loads(path.read_text()) for path in (out / ".segonnx" / "claims").glob("*.[0-9]")]
        assert {claim["death"] for claim in claims} <= {"none"}
        with dask("worker", address, "--no-nanny", "--nthreads", 2, folder=tmp_path):
            again = run("predict", *words[:-4])
        assert again.returncode == 0, again.stderr
        assert made(out) == made(larger / "out")


@pytest.mark.slow  # core/test_cluster.py has one that dies, and a run without workers is above
def test_a_scheduler_that_stands_still_is_gone(
    hand: Path, larger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusters_of_dask, "ANSWER_S", 3.0)
    out = tmp_path / "out"
    with bare_scheduler(tmp_path) as (address, scheduler), dask("worker", address, "--no-nanny", folder=tmp_path):

        def stop() -> None:
            wait_for(lambda: made(out))
            scheduler.send_signal(signal.SIGSTOP)

        stopper = threading.Thread(target=stop, daemon=True)
        stopper.start()
        done = run("predict", hand, larger / "in", out, "--scheduler", address, "--threads", 1)
        stopper.join()
    assert done.returncode == 2
    assert message(done).splitlines()[-1] == f"segonnx: the scheduler at {address} hasn't answered for 3 s"
    assert "Traceback" not in done.stderr


@pytest.mark.slow  # a run without workers, above, waits and goes on, too
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


@pytest.mark.slow  # core/test_cluster.py has one that dies, without a cohort
def test_a_scheduler_that_dies_ends_the_run(hand: Path, larger: Path, tmp_path: Path) -> None:
    with cluster(tmp_path, ["one"]) as address:
        running = _start(hand, larger / "in", tmp_path / "out", "--scheduler", address)
        assert running.stdout is not None and running.stderr is not None
        while not running.stdout.readline().startswith("case"):
            assert running.poll() is None
    with running:
        said = running.stderr.read()
    assert running.returncode == 2
    assert said.splitlines()[-1].startswith("segonnx: the scheduler ")
    assert "Traceback" not in said
    claims = [json.loads(path.read_text()) for path in (tmp_path / "out" / ".segonnx" / "claims").glob("*.[0-9]")]
    assert {claim["death"] for claim in claims} <= {"none"}
