"""Exports on a cluster of two workers, which are real processes."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from distributed import Client, Worker

from segonnx.artifacts.verify import verify
from segonnx.core import cluster, slots
from segonnx.errors import InputError, SegonnxError, StageError
from segonnx.exporters import machines
from segonnx.exporters.pipeline import Exported, Settings
from segonnx.sources import catalog
from segonnx.sources.catalog import ModelSpec
from tests import clusters
from tests.conftest import message, run, steps_in_process

GOOD = "smp:unet:tu-resnet10t"
BAD = "smp:unet:nothing"
SHAPE = (64, 64)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with clusters.cluster(tmp_path_factory.mktemp("cluster"), ["One", "Other"]) as found:
        yield found


@pytest.fixture
def client(address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setattr(slots, "LOOK_S", 0.1)
    with cluster.connect(address) as found:
        until = time.monotonic() + 60
        while len(cluster.members(found)) < 2:  # what a test before killed is started anew
            assert time.monotonic() < until
            time.sleep(0.1)
        yield found


def test_artifacts_come_back_whole_and_failures_are_a_line_each(address: str, tmp_path: Path) -> None:
    out = tmp_path / "artifacts"
    words = ("export", GOOD, BAD, "--shape", "64,64", "--out", out, "--scheduler", address)
    done = run(*words, "--threads", 1, "--json", tmp_path / "e.json")
    assert done.returncode == 1
    said = message(done).splitlines()
    assert len(said) == 2
    assert f"{BAD}: FAILED: " in said[0] and "nothing" in said[0]
    assert said[1] == f"segonnx: 1 of 2 failed: {BAD}"
    (folder,) = out.iterdir()
    assert verify(folder).manifest["arguments"]["shape"] == [1, 3, 64, 64]
    assert f"-> {folder}" in done.stdout
    (row,) = json.loads((tmp_path / "e.json").read_text())
    assert row["folder"] == str(folder)
    assert row["stages"]["convert"]["seconds"] > 0
    with cluster.connect(address) as client:
        assert client.run(_left_over) == dict.fromkeys((one.address for one in cluster.members(client)), 0)
    with steps_in_process():  # nothing is exported any more
        again = run("export", GOOD, "--shape", "64,64", "--out", out, "--scheduler", address)
        other = run("export", GOOD, "--shape", "64,96", "--out", out, "--scheduler", address)
    assert again.returncode == 0 and f"{GOOD}: kept {folder}" in again.stdout
    assert other.returncode == 2 and "made with other arguments (shape)" in message(other)


def _left_over(dask_worker: Worker) -> int:
    return len(list(Path(dask_worker.local_directory).glob("segonnx-*")))


def exports(client: Client, out: Path, act: Callable[[str], None]) -> Exported | SegonnxError:
    """Export the small system, and do something at each step. Gives what came of it."""
    ended: list[Exported | SegonnxError] = []

    def end(spec: ModelSpec, found: Exported | SegonnxError) -> None:
        assert spec.name == GOOD
        ended.append(found)

    machines.export(client, [(catalog.find(GOOD), Settings(out, shape=SHAPE))], 1, end, act)
    (found,) = ended
    return found


def kill_of(client: Client, step: str) -> None:
    """Kill the worker that a step names."""
    address = step.partition(" on ")[2].partition(": ")[0]
    (pid,) = client.run(os.getpid, workers=[address]).values()
    os.kill(pid, signal.SIGKILL)


@pytest.mark.slow  # it takes a quarter of a minute; cases whose worker dies are the same code, in predict
def test_a_network_whose_worker_dies_is_exported_on_another(client: Client, tmp_path: Path) -> None:
    killed: list[str] = []

    def act(step: str, /) -> None:
        if step.endswith(": exporting") and not killed:
            killed.append(step)
            kill_of(client, step)

    found = exports(client, tmp_path, act)
    assert isinstance(found, Exported), found
    assert len(killed) == 1
    assert verify(found.folder, replay=False).manifest == found.manifest


@pytest.mark.slow  # workers that start
def test_a_network_that_kills_two_workers_is_left(client: Client, tmp_path: Path) -> None:
    killed: list[str] = []

    def act(step: str, /) -> None:
        if step.endswith(": exporting"):
            killed.append(step)
            kill_of(client, step)

    found = exports(client, tmp_path, act)
    assert isinstance(found, StageError)
    assert str(found).startswith("2 workers died while they exported it, at last the worker tcp://")
    assert len(killed) == 2
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_no_task(client: Client, tmp_path: Path) -> None:
    def act(step: str, /) -> None:
        if step.endswith(": exporting"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        exports(client, tmp_path, act)
    until = time.monotonic() + 60
    while any(client.processing().values()) or any(client.run(_left_over).values()):
        assert time.monotonic() < until
        time.sleep(0.1)
    assert list(tmp_path.iterdir()) == []


def test_what_stands_in_the_way_is_told_before_the_work(client: Client, tmp_path: Path) -> None:
    folder = tmp_path / GOOD.replace(":", "-")
    folder.mkdir()
    (folder / "thesis.txt").write_text("all of it")
    steps: list[str] = []
    ended: list[object] = []
    jobs = [(catalog.find(GOOD), Settings(tmp_path, shape=SHAPE, overwrite=True))]
    machines.export(client, jobs, 1, lambda _, found: ended.append(found), steps.append)
    (error,) = ended
    assert isinstance(error, InputError) and "thesis.txt" in str(error)
    assert not any(": exporting" in step for step in steps)


@pytest.mark.parametrize(
    "words",
    [
        ("--nnunet", "folder"), ("--smp", "folder"), ("--totalsegmentator", "total"), (GOOD, "--tune"),
        ("stunet-s", "--weights", "file"), (GOOD, "--tuning", "file"),
    ],
)  # fmt: skip
def test_what_is_on_this_machine_alone_is_refused(words: tuple[str, ...]) -> None:
    done = run("export", *words, "--scheduler", "tcp://127.0.0.1:9")
    assert done.returncode == 2
    named = next(word for word in words if word.startswith("--"))
    assert message(done).startswith(f"segonnx: {named} goes without --scheduler: ")
    assert "\n" not in message(done)


def test_without_a_worker_it_is_one_line(tmp_path: Path) -> None:
    with clusters.cluster(tmp_path, []) as address:
        done = run("export", GOOD, "--out", tmp_path / "out", "--scheduler", address)
    assert done.returncode == 2
    assert message(done).startswith("segonnx: the scheduler has no worker: start one")
