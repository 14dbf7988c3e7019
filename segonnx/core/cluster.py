"""A cluster of Dask: its scheduler, its workers, and work on it that leaves nothing behind."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from segonnx.errors import InputError, ResourceError, first_line

if TYPE_CHECKING:
    from distributed import Client, Future

T = TypeVar("T")
CONNECT_S = 10.0
"""How long a scheduler may take to answer at first."""
ANSWER_S = 30.0
"""How long a scheduler that answered before may take, before it is gone."""
CANCEL_S = 5.0
"""How long it may take to withdraw work."""
ALIKE = ("segonnx", "distributed")
"""The packages that must have one version at both ends: functions are sent by their names."""


class SchedulerGoneError(ResourceError):
    """The scheduler is gone, or says nothing any more."""


@dataclass(frozen=True)
class Member:
    """A worker of a cluster: a process that takes tasks.

    Attributes:
        address: Where it is reached; the ``workers=`` of ``Client.submit`` takes it.
        host: The machine, as the scheduler sees it: all of one machine's workers have the same.
        name: What its user calls it.
        threads: The tasks that it runs at the same time.
        memory: The bytes that its user lets it take; 0 where there is no bound.
        resources: What it has of resources, by their names.
    """

    address: str
    host: str
    name: str
    threads: int
    memory: int
    resources: dict[str, float]


def connect(address: str) -> Client:
    """Connect to a scheduler. The client is a context manager that closes the connection.

    Args:
        address: As ``tcp://HOST:8786``.

    Raises:
        InputError: Dask isn't installed, nothing answers as a scheduler, or the scheduler or a worker has other
            versions of Python, Dask or segonnx.
    """
    try:
        from distributed import Client
        from distributed.versions import VersionMismatchWarning
    except ImportError as error:
        raise InputError(f"{error.name} isn't installed: pip install 'segonnx[cluster]'") from None
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what goes wrong is told by our lines
    try:
        found = asyncio.run(asyncio.wait_for(_identity(address), CONNECT_S))
        if found["type"] != "Scheduler":
            raise TypeError(f"it is a {found['type'].lower()}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", VersionMismatchWarning)  # require_alike says it in a line
            client = Client(address, timeout=CONNECT_S, set_as_default=False)
    except Exception as error:  # the library's classes are many
        said = f"nothing in {CONNECT_S:g} s" if isinstance(error, TimeoutError) else first_line(error)
        raise InputError(f"no scheduler of Dask answers at {address}: {said}") from error
    try:
        require_alike(client)
    except BaseException:
        client.close()
        raise
    return client


async def _identity(address: str) -> dict[str, Any]:
    """What a process of Dask says that it is. The library's client waits for ever for one that says nothing."""
    from distributed import rpc

    async with rpc(address) as asked:
        found: dict[str, Any] = await asked.identity()
        return found


def require_alike(client: Client) -> None:
    """See to it that the scheduler and the workers that are there have the versions that this process has.

    Raises:
        InputError: They haven't. The message names the first that differs.
        ResourceError: The scheduler is gone.
    """
    found: Any = _answered(client, lambda: client.get_versions(packages=[*ALIKE]))
    ours = _versions(found["client"])
    others = {"the scheduler": found["scheduler"]}
    others |= {f"the worker {address}": told for address, told in sorted(found["workers"].items())}
    for where, told in others.items():
        for package, version in _versions(told).items():
            if version != ours[package]:
                there = "has none" if version is None else f"has {version}"
                raise InputError(f"{where} {there} of {package}, and here is {ours[package]}: install the same")


def _versions(told: dict[str, Any]) -> dict[str, str | None]:
    """The versions that must agree, of what ``get_versions`` says of one process."""
    packages = told["packages"]
    python = ".".join(packages["python"].split(".")[:2])
    return {"Python": python, **{package: packages.get(package) for package in ALIKE}}


@contextlib.contextmanager
def reached(client: Client) -> Iterator[None]:
    """Raise what the library raises in the block, where the scheduler is gone, as an error of ours.

    Raises:
        ResourceError: The scheduler is gone.
    """
    from distributed import CancelledError
    from distributed.comm import CommClosedError

    try:
        yield
    except (CommClosedError, CancelledError, ConnectionError, TimeoutError) as error:
        raise SchedulerGoneError(f"the scheduler at {address_of(client)} is gone: {first_line(error)}") from error


def address_of(client: Client) -> str:
    """Where the scheduler of a client is, or was."""
    return client.scheduler.address if client.scheduler is not None else "its address"


def apart(function: Callable[[], T]) -> concurrent.futures.Future[T]:
    """What a function gives that may wait for ever, in a thread that the end of the process doesn't wait for."""
    given: concurrent.futures.Future[T] = concurrent.futures.Future()

    def run() -> None:
        try:
            given.set_result(function())
        except BaseException as error:  # noqa: BLE001 (whoever waits must hear of it)
            given.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return given


def _answered(client: Client, asks: Callable[[], T]) -> T:
    """What the scheduler answers. The library waits for ever for one that stands still.

    Raises:
        SchedulerGoneError: It is gone, or says nothing.
    """
    answer = apart(asks)
    if not concurrent.futures.wait([answer], ANSWER_S).done:
        raise SchedulerGoneError(f"the scheduler at {address_of(client)} hasn't answered for {ANSWER_S:g} s")
    with reached(client):
        return answer.result()


def members(client: Client) -> list[Member]:
    """The workers that are there, by their addresses.

    Raises:
        ResourceError: The scheduler is gone.
    """
    # Not by scheduler_info(): every two seconds the library keeps an answer without workers in the place that it reads.
    scheduler: Any = client.scheduler
    told: Any = {} if scheduler is None else _answered(client, lambda: client.sync(scheduler.identity, n_workers=-1))
    known = told.get("workers")
    if known is None or client.status != "running":
        raise SchedulerGoneError(f"the scheduler at {address_of(client)} is gone: the connection was lost")
    return [
        Member(
            address,
            worker["host"],
            str(worker["name"]),
            worker["nthreads"],
            int(worker["memory_limit"] or 0),
            dict(worker["resources"]),
        )
        for address, worker in sorted(known.items())
    ]


def one_per_host(found: list[Member]) -> list[Member]:
    """Of each machine the first worker, by address."""
    first: dict[str, Member] = {}
    for member in sorted(found, key=lambda member: member.address):
        first.setdefault(member.host, member)
    return list(first.values())


@contextlib.contextmanager
def withdrawn(client: Client) -> Iterator[list[Future]]:
    """A list for futures. What is in it when the block ends, by Ctrl-C or however else, is cancelled.

    A task that runs isn't interrupted by that: it asks ``unwanted`` now and then, and ends by itself.
    """
    futures: list[Future] = []
    try:
        yield futures
    finally:
        if futures and client.status == "running":
            with contextlib.suppress(Exception):  # the scheduler may be what is gone
                apart(lambda: client.cancel(futures, force=True)).result(CANCEL_S)


def unwanted() -> bool:
    """Whether nobody waits any more for the task that calls this: it was cancelled, or its client is gone."""
    from distributed import get_worker

    worker = get_worker()
    state = worker.state.tasks.get(worker.get_current_task())
    return state is None or state.state != "executing"
