"""A plan on a cluster whose two workers, real processes, pretend to be two kinds of machine."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
import pytest
from distributed import Client

from segonnx.artifacts import manifest
from segonnx.bench import machines, plan_file
from segonnx.commands import bench_machines, bench_plan
from segonnx.commands.bench_machines import Found, Machine
from segonnx.commands.bench_plan import Work
from segonnx.core import cluster, slots, subprocesses, synthetic_inputs
from tests import clusters
from tests.conftest import SMALL, message, run

T = TypeVar("T")
KINDS = ["Processor A", "Processor B"]
ROUNDS = ("--backend", "ort", "--threads", 1, "--rounds", 2, "--processes", 1, "--no-roofline")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cluster")


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """Of a scheduler with two workers of one kind and one of another, each with a slot."""
    with clusters.cluster(folder, [*KINDS, KINDS[0]], {"bench": 1}) as found:
        yield found


def wait_for(happens: Callable[[], T]) -> T:
    """What a function gives, once that is something."""
    until = time.monotonic() + 120
    while not (found := happens()):
        assert time.monotonic() < until
        time.sleep(0.05)
    return found


@pytest.fixture
def client(address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setattr(slots, "LOOK_S", 0.1)
    with cluster.connect(address) as found:
        wait_for(lambda: len(cluster.members(found)) == 3)  # what a test before killed is started anew
        yield found


@pytest.fixture
def work(exports: Path, tmp_path: Path) -> Work:
    """A short bench of the small system, and of a copy of it under another name."""
    path = tmp_path / "plan.json"
    done = run("bench", SMALL, "--artifacts", exports, *ROUNDS, "--plan-out", path)
    assert done.returncode == 0, done.stderr
    plan = plan_file.read(path)
    return bench_plan.planned(plan, plan_file.find(plan.networks, (), exports), None, subprocesses.silent)


def test_two_kinds_of_machine_make_one_table_and_keep_what_was_brought(
    address: str, exports: Path, folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "all.json"
    words = ("bench", SMALL, "--artifacts", exports, *ROUNDS, "--scheduler", address)
    done = run(*words, "--json", path)
    assert done.returncode == 0, done.stderr
    found = machines.read(path)
    assert [one.machine["cpu"] for one in found.results] == KINDS  # one of each kind, though A has two workers
    digest = manifest.read(exports / SMALL)["digest"]
    for one in found.results:
        (row,) = one.rows
        assert (row.model, row.backend, row.status, len(row.rounds)) == (SMALL, "ort", "ok", 2)
        assert row.artifact == digest
        assert row.compared_with == "recorded"
    assert found.warnings == []
    (header, *lines) = [line for line in done.stdout.splitlines() if line.startswith(("model", SMALL))]
    assert header.split()[:4] == ["model", "processor", "threads", "backend"]
    assert len(lines) == 2
    for line, title in zip(lines, found.titles, strict=True):
        assert title in line and " ms ±" in line
    (kept,) = (folder / "cache" / "segonnx" / "artifacts").iterdir()  # once for all workers of the machine
    assert kept.name == digest
    report = run("report", path, "--markdown", "--html", tmp_path / "page.html")
    assert report.returncode == 0, report.stderr
    assert report.stdout.count(f"| {SMALL} |") == 2
    compared = run("compare", path, path)
    assert compared.returncode == 0 and compared.stdout.count(SMALL) == 2


@pytest.mark.slow  # two more benches; other tests here run a plan, and bring artifacts
def test_a_plan_with_an_input_of_its_own_finds_what_was_brought(
    address: str, exports: Path, folder: Path, tmp_path: Path
) -> None:
    kept = folder / "cache" / "segonnx" / "artifacts" / manifest.read(exports / SMALL)["digest"]
    before = (kept / "model.onnx").stat().st_mtime_ns if kept.exists() else None
    x = synthetic_inputs.make("noise", (1, 3, 512, 512), "RGB", 7)
    np.save(tmp_path / "x.npy", x)
    given = ("--artifacts", exports, "--input", tmp_path / "x.npy")
    assert run("bench", SMALL, *ROUNDS, *given, "--plan-out", tmp_path / "plan.json").returncode == 0
    scheduled = ("--scheduler", address, "--json", tmp_path / "r.json")
    done = run("bench", "--plan", tmp_path / "plan.json", *given, *scheduled)
    assert done.returncode == 0, done.stderr
    rows = [row for one in machines.read(tmp_path / "r.json").results for row in one.rows]
    assert [row.input_sha256 for row in rows] == [synthetic_inputs.sha256(x)] * 2
    assert before in (None, (kept / "model.onnx").stat().st_mtime_ns)


def steps(client: Client, work: Work, act: Callable[[str, Machine], None]) -> Found:
    """Run the work, and do something at each step of the second machine."""
    timed = bench_machines.chosen(client, subprocesses.silent)
    assert [one.title.split(" of ")[1] for one in timed] == KINDS
    heard = []

    def progress(step: str, /) -> None:
        heard.append(step)
        if step.startswith(timed[1].title):
            act(step, timed[1])

    return bench_machines.bench(client, timed, work, lambda *_: None, progress)


def children(client: Client, address: str) -> list[int]:
    """The processes that a worker has started."""
    pids = client.run(_children, workers=[address])
    found: list[int] = pids[address]
    return found


def _children() -> list[int]:
    return [child.pid for child in psutil.Process().children(recursive=True)]


def _pid() -> int:
    return os.getpid()


@pytest.mark.slow  # an interrupt, below, ends what runs on a worker, too
def test_a_worker_that_dies_lacks_rows_and_the_rest_stand(client: Client, work: Work) -> None:
    killed: list[int] = []

    def act(step: str, machine: Machine) -> None:
        if step.endswith("timing") and not killed:
            (pid,) = client.run(_pid, workers=[machine.member.address]).values()
            killed.extend(wait_for(lambda: children(client, machine.member.address)))
            os.kill(pid, signal.SIGKILL)

    found = steps(client, work, act)
    (missing,) = found.missing
    assert f"of Processor B has no rows of {SMALL}: the worker tcp://" in missing
    assert missing.endswith(" died")
    whole = found.machines()
    assert [one.machine["cpu"] for one in whole.results] == KINDS[:1]
    assert [row.status for row in whole.results[0].rows] == ["ok"]
    assert whole.warnings == [missing]
    assert found.failed == [missing]
    wait_for(lambda: not any(map(psutil.pid_exists, killed)))  # what timed on it is gone, too


def test_an_interrupt_keeps_what_was_measured_and_leaves_nothing(client: Client, work: Work) -> None:
    measuring: list[int] = []

    def act(step: str, machine: Machine) -> None:
        if step.endswith("timing"):
            measuring.extend(wait_for(lambda: children(client, machine.member.address)))
            raise KeyboardInterrupt

    found = steps(client, work, act)
    assert found.interrupted
    assert [part.result.machine["cpu"] for part in found.parts] == KINDS[:1]
    assert found.machines().warnings == ["interrupted: what had been measured until then is here"]
    wait_for(lambda: not any(map(psutil.pid_exists, measuring)) and not any(client.processing().values()))


def test_what_fails_on_one_machine_is_told_and_exits_with_1(
    client: Client, work: Work, monkeypatch: pytest.MonkeyPatch, address: str, exports: Path, tmp_path: Path
) -> None:
    bring = bench_machines.Cargo.bring

    def refuse(own: Any, ask: Any, network: Any, progress: Any) -> Any:
        if ask.__self__.member.address == cluster.members(client)[1].address:
            ask(_refuse)
        return bring(own, ask, network, progress)

    monkeypatch.setattr(bench_machines.Cargo, "bring", refuse)
    monkeypatch.setattr(bench_machines, "chosen", lambda client, _: _both(client))
    words = ("bench", SMALL, "--artifacts", exports, *ROUNDS, "--scheduler", address)
    done = run(*words, "--json", tmp_path / "r.json")
    assert done.returncode == 1
    assert message(done) == (f"segonnx: 1 failed: the second has no rows of {SMALL}: no permission: the cache")
    assert machines.read(tmp_path / "r.json").warnings == [
        f"the second has no rows of {SMALL}: no permission: the cache"
    ]
    assert f"warning: the second has no rows of {SMALL}" in done.stdout


def _both(client: Client) -> list[Machine]:
    first, second, _ = cluster.members(client)
    return [Machine(first, {}, "host", "the first"), Machine(second, {}, "host", "the second")]


def _refuse() -> None:
    raise PermissionError(13, "Permission denied", "the cache")


def test_without_a_slot_or_a_scheduler_it_is_one_line(
    exports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("bench", SMALL, "--artifacts", exports, *ROUNDS)
    with clusters.cluster(tmp_path, KINDS[:1]) as address:
        done = run(*words, "--scheduler", address)
    assert done.returncode == 2
    assert "no worker of the scheduler has the resource bench: start one on each machine with" in message(done)
    assert message(done).count("\n") == 0
    monkeypatch.setattr(cluster, "CONNECT_S", 0.5)
    gone = run(*words, "--scheduler", address)
    assert gone.returncode == 2 and "no scheduler of Dask answers at" in message(gone)
    for other in (["--plan-out", tmp_path / "plan.json"], ["--pyperf", tmp_path / "pyperf"]):
        both = run(*words, "--scheduler", address, *other)
        assert both.returncode == 2
        assert message(both) == f"segonnx: {other[0]} doesn't go with --scheduler: its result is of several machines"
