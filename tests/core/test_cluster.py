"""Against real schedulers and workers, each a process."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dask
import pytest
from distributed import LocalCluster

from segonnx.core import cluster, subprocesses
from segonnx.errors import InputError, ResourceError


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=50) as local:
        yield local.scheduler_address


def wait_for(happens: Callable[[], object]) -> None:
    until = time.monotonic() + 60
    while not happens():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_client_knows_its_workers(scheduler: str) -> None:
    with cluster.connect(scheduler) as client:
        found = cluster.members(client)
        assert [member.threads for member in found] == [1, 1]
        assert len({member.address for member in found}) == 2
        assert len(cluster.one_per_host(found)) == 1
        pids = {client.submit(os.getpid, workers=member.address, pure=False).result() for member in found}
        assert len(pids) == 2 and os.getpid() not in pids


def test_all_workers_are_known_whatever_the_client_asks_meanwhile(scheduler: str) -> None:
    with dask.config.set({"distributed.client.scheduler-info-interval": "1ms"}), cluster.connect(scheduler) as client:
        known = {member.address for member in cluster.members(client)}
        assert known
        for _ in range(300):
            assert {member.address for member in cluster.members(client)} == known


def test_the_first_worker_of_each_host() -> None:
    found = [cluster.Member(f"tcp://{host}:{port}", host, "w", 1, 0, {}) for host, port in ("b2", "a3", "b1", "a4")]
    assert [member.address for member in cluster.one_per_host(found)] == ["tcp://a:3", "tcp://b:1"]


def test_nothing_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_S", 0.5)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{deaf.getsockname()[1]}"
        with pytest.raises(InputError, match=f"no scheduler of Dask answers at {address}: ") as refused:
            cluster.connect(address)
        assert "\n" not in str(refused.value)
        deaf.listen()  # it takes connections, and says nothing
        with pytest.raises(InputError, match=f"no scheduler of Dask answers at {address}: nothing in 0.5 s"):
            cluster.connect(address)
    with pytest.raises(InputError, match="no scheduler of Dask answers at nonsense"):
        cluster.connect("nonsense://")


def test_a_worker_is_no_scheduler(scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with cluster.connect(scheduler) as client:
        worker = cluster.members(client)[0].address
    monkeypatch.setattr(cluster, "CONNECT_S", 2.0)
    with pytest.raises(InputError, match="no scheduler of Dask answers at .*: it is a worker"):
        cluster.connect(worker)


def test_other_versions_are_refused(scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from distributed import Client

    asked = Client.get_versions

    def of_another(client: Client, package: str, where: str, **_: object) -> dict[str, object]:
        found = asked(client, packages=[*cluster.ALIKE])
        told = found["scheduler"] if where == "scheduler" else next(iter(found["workers"].values()))
        told["packages"][package] = None if package == "segonnx" else "3.7.1.final.0"
        return found

    for package, where, said in (
        ("python", "scheduler", r"the scheduler has 3\.7 of Python, and here is 3\.\d+: install the same"),
        ("segonnx", "worker", r"the worker tcp://[\d.:]+ has none of segonnx, and here is "),
    ):
        monkeypatch.setattr(
            Client, "get_versions", lambda self, package=package, where=where, **_: of_another(self, package, where)
        )
        with pytest.raises(InputError, match=said):
            cluster.connect(scheduler)


def _child() -> int:
    return subprocesses.call(_pid).value


def _pid(progress: subprocesses.Progress) -> int:
    progress("asking")
    return os.getpid()


def test_a_worker_may_have_processes_of_its_own(scheduler: str) -> None:
    with cluster.connect(scheduler) as client:
        child, worker = client.submit(_child, pure=False).result(), client.run(os.getpid)
        assert child not in worker.values()


def _until_unwanted(began: Path, ended: Path) -> None:
    began.touch()
    while not cluster.unwanted():
        time.sleep(0.01)
    ended.touch()


def test_tasks_end_that_nobody_waits_for(scheduler: str, tmp_path: Path) -> None:
    with cluster.connect(scheduler) as client:
        with pytest.raises(KeyboardInterrupt), cluster.withdrawn(client) as futures:
            paths = [(tmp_path / f"{number} began", tmp_path / f"{number} ended") for number in range(6)]
            futures += [client.submit(_until_unwanted, *own) for own in paths]
            wait_for(lambda: sum(began.exists() for began, _ in paths) == 2)
            raise KeyboardInterrupt
        wait_for(lambda: sum(ended.exists() for _, ended in paths) == 2)
        wait_for(lambda: not any(client.processing().values()))
        assert sum(began.exists() for began, _ in paths) == 2


def test_tasks_end_whose_client_is_gone(scheduler: str, tmp_path: Path) -> None:
    began, ended = tmp_path / "began", tmp_path / "ended"
    with cluster.connect(scheduler) as client:
        future = client.submit(_until_unwanted, began, ended)
        wait_for(began.exists)
        assert not ended.exists()
    wait_for(ended.exists)
    assert future.status == "cancelled"


def test_a_scheduler_that_dies_is_one_line() -> None:
    local = LocalCluster(n_workers=0, processes=False, dashboard_address=":0", silence_logs=50)
    with cluster.connect(local.scheduler_address) as client:
        threading.Thread(target=local.close).start()
        with pytest.raises(ResourceError, match="the scheduler at .* is gone: "):
            while True:
                cluster.members(client)
