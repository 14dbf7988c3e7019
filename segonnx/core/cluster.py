"""A cluster of Dask: its scheduler, its workers, and work on it that leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from segonnx.errors import InputError, ResourceError, first_line

if TYPE_CHECKING:
    from distributed import Client, Future

CONNECT_S = 10.0
"""How long a scheduler may take to answer."""
ALIKE = ("segonnx", "distributed")
"""The packages that must have one version at both ends: functions are sent by their names."""


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
    with reached(client):
        found: Any = client.get_versions(packages=[*ALIKE])
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
        where = client.scheduler.address if client.scheduler is not None else "its address"
        raise ResourceError(f"the scheduler at {where} is gone: {first_line(error)}") from error


def members(client: Client) -> list[Member]:
    """The workers that are there, by their addresses.

    Raises:
        ResourceError: The scheduler is gone.
    """
    with reached(client):
        known: Any = client.scheduler_info(n_workers=-1).get("workers")
        if known is None:
            raise ConnectionError("the connection was lost")
    return [
        Member(
            address,
            told["host"],
            str(told["name"]),
            told["nthreads"],
            int(told["memory_limit"] or 0),
            dict(told["resources"]),
        )
        for address, told in sorted(known.items())
    ]


def one_per_host(found: list[Member]) -> list[Member]:
    """Of each machine the first worker, by address."""
    first: dict[str, Member] = {}
    for member in sorted(found, key=lambda member: member.address):
        first.setdefault(member.host, member)
    return list(first.values())


@contextlib.contextmanager
def withdrawn(client: Client) -> Iterator[list[Future]]:
    """A list for futures. What of them hasn't ended is cancelled when the block ends, by Ctrl-C or however else.

    A task that runs isn't interrupted by that: it asks ``unwanted`` now and then, and ends by itself.
    """
    futures: list[Future] = []
    try:
        yield futures
    finally:
        left = [future for future in futures if not future.done()]
        if left and client.status == "running":
            with contextlib.suppress(Exception):  # the scheduler may be what is gone
                client.cancel(left, force=True)


def unwanted() -> bool:
    """Whether nobody waits any more for the task that calls this: it was cancelled, or its client is gone."""
    from distributed import get_worker

    worker = get_worker()
    state = worker.state.tasks.get(worker.get_current_task())
    return state is None or state.state != "executing"
