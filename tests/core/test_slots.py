"""Against a real cluster: what a worker answers, and what is told where it can't."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from distributed import Client

from segonnx.core import cluster, slots
from segonnx.core.slots import Crew, Slot, StoppedError, WorkerGoneError
from segonnx.errors import InputError, ResourceError, StageError, VerifyError
from tests import clusters


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with clusters.cluster(tmp_path_factory.mktemp("cluster"), ["One", "Other"], {"bench": 1}) as found:
        yield found


@pytest.fixture
def client(address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setattr(slots, "LOOK_S", 0.1)
    with cluster.connect(address) as found:
        yield found


def slot_of(client: Client, number: int = 0, stop: threading.Event | None = None) -> Slot:
    return Slot(client, cluster.members(client)[number], stop or threading.Event(), {"bench": 1})


def _refuse(what: str) -> None:
    if what == "ours":
        raise VerifyError("it isn't intact")
    if what == "another's":
        raise KeyError("a key")
    raise MemoryError


def test_a_worker_answers_or_says_why_not(client: Client) -> None:
    first, second = slot_of(client, 0), slot_of(client, 1)
    assert first.ask(os.getpid) == first.ask(os.getpid) != second.ask(os.getpid)
    assert first.ask(divmod, 7, 2) == (3, 1)
    for what, error, said in (
        ("ours", VerifyError, "it isn't intact"),
        ("another's", StageError, "KeyError: 'a key'"),
        ("memory", ResourceError, "the memory ran out"),
    ):
        with pytest.raises(error, match=said):
            first.ask(_refuse, what)


def test_a_worker_that_dies_is_told(client: Client) -> None:
    slot = slot_of(client)
    pid = slot.ask(os.getpid)
    killer = threading.Timer(0.5, os.kill, (pid, signal.SIGKILL))
    killer.start()
    with pytest.raises(WorkerGoneError, match=f"the worker {slot.member.address} died"):
        slot.ask(time.sleep, 100)
    with pytest.raises(WorkerGoneError):  # and nobody waits for one that isn't there
        slot.ask(os.getpid)
    until = time.monotonic() + 60
    while len(cluster.members(client)) < 2:  # its nanny starts another
        assert time.monotonic() < until
        time.sleep(0.1)


class _DiesWhenItIsSent:
    """What a worker has done, and takes along: it dies before the value is fetched."""

    def __init__(self) -> None:
        self.home = os.getpid()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        if self.home == os.getpid():
            os.kill(os.getpid(), signal.SIGKILL)
        return _DiesWhenItIsSent, ()


def test_a_value_that_died_with_its_worker_is_not_waited_for(client: Client) -> None:
    with pytest.raises(WorkerGoneError):
        slot_of(client).ask(_DiesWhenItIsSent)
    until = time.monotonic() + 60
    while any(client.processing().values()) or len(cluster.members(client)) < 2:
        assert time.monotonic() < until
        time.sleep(0.1)


def test_one_question_at_a_time_takes_the_slot(client: Client, address: str, tmp_path: Path) -> None:
    with cluster.connect(address) as another:
        mine = slot_of(client)
        theirs = Slot(another, mine.member, threading.Event(), {"bench": 1})
        spans: list[tuple[float, float]] = []
        threads = [threading.Thread(target=lambda own=own: spans.append(own.ask(_span))) for own in (mine, theirs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    first, second = sorted(spans)
    assert first[1] <= second[0]


def _span() -> tuple[float, float]:
    began = time.monotonic()
    time.sleep(0.3)
    return began, time.monotonic()


def _wait(ended: Path) -> None:
    while not cluster.unwanted():
        time.sleep(0.01)
    ended.touch()


def test_what_is_stopped_leaves_no_task(client: Client, tmp_path: Path) -> None:
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    with pytest.raises(StoppedError):
        slot_of(client, 0, stop).ask(_wait, tmp_path / "ended")
    until = time.monotonic() + 60
    while not (tmp_path / "ended").exists() or any(client.processing().values()):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_crew_says_in_order_and_in_the_thread_that_runs_it() -> None:
    crew = Crew()
    heard: list[tuple[int, int, threading.Thread]] = []

    def hear(number: int, step: int) -> None:
        heard.append((number, step, threading.current_thread()))

    def job(number: int) -> None:
        for step in range(3):
            crew.say(partial(hear, number, step))
            time.sleep(0.01)

    crew.run([lambda: job(0), lambda: job(1)])
    assert {thread for *_, thread in heard} == {threading.current_thread()}
    for number in range(2):
        assert [step for own, step, _ in heard if own == number] == [0, 1, 2]


def _until_stopped(crew: Crew) -> None:
    assert crew.stop.wait(60)
    raise StoppedError


def _raise(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("error", [InputError("wrong"), KeyboardInterrupt(), ZeroDivisionError()])
def test_what_one_raises_stops_the_others(error: BaseException) -> None:
    crew = Crew()
    with pytest.raises(type(error)):
        crew.run([lambda: _until_stopped(crew), lambda: _raise(error)])
    crew = Crew()
    said: Callable[[], object] = lambda: crew.say(lambda: _raise(error))  # noqa: E731
    with pytest.raises(type(error)):  # in this thread, as an interrupt is
        crew.run([lambda: _until_stopped(crew), said])
