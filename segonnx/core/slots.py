"""Workers of a cluster that are asked one thing at a time, and whose death is told at once."""

from __future__ import annotations

import concurrent.futures
import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from segonnx.core import cluster, subprocesses
from segonnx.core.cluster import Member
from segonnx.errors import StageError

if TYPE_CHECKING:
    from distributed import Client

T = TypeVar("T")
LOOK_S = 1.0
"""How often it is looked whether a worker that hasn't answered is still there."""


class WorkerGoneError(StageError):
    """A worker died, or lost its scheduler, before it had answered."""


class StoppedError(Exception):
    """Nobody waits for an answer any more. It crosses threads, and no user sees it."""


class Slot:
    """A worker that is asked one thing at a time.

    Args:
        client: Connected to the worker's scheduler.
        member: The worker.
        stop: Once it is set, no answer is waited for.
        resources: What each question takes of the worker's resources, so that nobody else's runs beside it.
        there: Tells whether the worker is still there. None asks the scheduler.
    """

    def __init__(
        self,
        client: Client,
        member: Member,
        stop: threading.Event,
        resources: Mapping[str, float] | None = None,
        there: Callable[[], bool] | None = None,
    ) -> None:
        self.member = member
        self._client, self._stop, self._resources = client, stop, dict(resources or {})
        self._there = there or self._is_member

    def _is_member(self) -> bool:
        return any(member.address == self.member.address for member in cluster.members(self._client))

    def ask(self, function: Callable[..., T], *arguments: object) -> T:
        """What a function gives on the worker.

        Args:
            function: It must be importable there by its name.
            arguments: Of the function.

        Raises:
            SegonnxError: As the function raised it, or as what it raised translates.
            WorkerGoneError: The worker died.
            SchedulerGoneError: The scheduler is gone.
            StoppedError: ``stop`` was set.
        """
        from distributed import KilledWorker

        client, address = self._client, self.member.address
        with cluster.withdrawn(client) as futures, cluster.reached(client):
            future: Any = client.submit(
                function, *arguments, workers=[address], allow_other_workers=False, pure=False, retries=0,
                resources=self._resources,
            )  # fmt: skip
            futures.append(future)
            # The library would wait for ever for what a worker has done and took along when it died.
            answer: concurrent.futures.Future[T] = cluster.apart(future.result)
            while not concurrent.futures.wait([answer], LOOK_S).done:
                if self._stop.is_set():
                    raise StoppedError
                if not self._there():
                    raise WorkerGoneError(f"the worker {address} died")
            error = answer.exception()
            if error is not None and future.status != "error":
                raise error
            futures.clear()
        if error is None:
            return answer.result()
        if isinstance(error, KilledWorker):
            raise WorkerGoneError(f"the worker {address} died, more than once") from None
        raise subprocesses.translate(error) from error


class Crew:
    """Threads that each ask a worker. What they have to say is said in the thread that runs them, which can be stopped.

    Attributes:
        stop: Tells the threads that nobody waits for them.
    """

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._said: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._errors: list[BaseException] = []

    def say(self, act: Callable[[], object]) -> None:
        """Let the thread that runs the crew do something. Called by one of the crew."""
        self._said.put(act)

    def run(self, jobs: Iterable[Callable[[], object]]) -> None:
        """Run each job in a thread of its own, until all have ended. A crew runs once.

        Whatever a job raises, and an interrupt from the keyboard, stops the others.

        Raises:
            BaseException: What the first job raised that raised anything.
        """
        threads = [threading.Thread(target=self._run, args=(job,), daemon=True) for job in jobs]
        for thread in threads:
            thread.start()
        try:
            while any(thread.is_alive() for thread in threads):
                self._hear(0.1)
        finally:
            self.stop.set()
            for thread in threads:
                thread.join()
            while not self._said.empty():
                self._hear(0)
        if self._errors:
            raise self._errors[0]

    def _run(self, job: Callable[[], object]) -> None:
        try:
            job()
        except StoppedError:
            pass
        except BaseException as error:  # noqa: BLE001 (another thread raises it)
            self._errors.append(error)
            self.stop.set()

    def _hear(self, seconds: float) -> None:
        with contextlib.suppress(queue.Empty):
            self._said.get(timeout=seconds)()


def while_wanted(_: str, /) -> None:
    """A ``Progress`` that ends the task which it is called in, where nobody waits for that any more.

    Raises:
        StoppedError: Nobody does.
    """
    if cluster.unwanted():
        raise StoppedError
