"""What a worker of a cluster does of a cohort: it keeps the networks of a run loaded, and does cases as they come."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYetError
from dataclasses import dataclass, replace
from pathlib import Path

from segonnx._version import __version__
from segonnx.artifacts import transfer
from segonnx.core import cluster, hardware, subprocesses
from segonnx.core.slots import StoppedError
from segonnx.core.subprocesses import Bounds
from segonnx.errors import InputError, SegonnxError
from segonnx.predict import bounded
from segonnx.predict.executors import Local
from segonnx.predict.files import FileOptions
from segonnx.predict.pipelined import Answer, Request
from segonnx.predict.records import Recipe

LOOK_S = 0.2
"""How often a task looks whether somebody waits for it."""
IDLE_S = 300.0
"""How long the networks stay loaded that nobody asks for."""
_LOADED = ""
"""What an answer has instead of a case's name, once the networks are loaded."""


@dataclass(frozen=True)
class Run:
    """A run of a cohort, as workers know it.

    Attributes:
        name: No other run has it.
        digests: Of the artifacts: what to predict with, and of a cascade the first stage. They were brought.
        options: How the files are predicted.
        recipe: What of that is noted.
        threads: The number of ONNX Runtime's threads. None shares the machine's cores among its workers.
        bounds: Of the process that runs the networks.
        seen: A file of the run in the folder of the label maps, which workers must see. None if cases are sent.
        segonnx: The version that the run's client has.
    """

    name: str
    digests: tuple[str, str | None]
    options: FileOptions
    recipe: Recipe
    threads: int | None
    bounds: Bounds
    seen: Path | None
    segonnx: str = __version__


class _Server:
    """A process that does the cases of a run on this worker. It is started by the first one, and ends when idle."""

    def __init__(self, run: Run, share: int) -> None:
        self._held = contextlib.ExitStack()
        folders = [
            None if digest is None else self._held.enter_context(transfer.in_use(digest)) for digest in run.digests
        ]
        checked = [
            None if folder is None else bounded.check(folder, run.bounds, subprocesses.silent) for folder in folders
        ]
        artifact, previous = checked
        assert artifact is not None
        threads = run.threads or max(1, hardware.usable_cores() // share)
        self._local = Local(
            (artifact, previous),
            run.options,
            run.recipe,
            threads=threads,
            bounds=run.bounds,
            progress=subprocesses.silent,
        )
        self._asked = threading.Condition()
        self._waiting: dict[str, Future[Answer]] = {}
        self._thread: threading.Thread | None = None
        self._closed = False

    def do(self, request: Request, *, alone: bool) -> Answer:
        """Do a case.

        Raises:
            StoppedError: Nobody waits for it any more.
            SegonnxError: The networks can't be loaded.
        """
        return self._answer(request.job.case, lambda: self._local.submit(request, alone=alone))

    def load(self) -> None:
        """Load the networks, so that a case which comes is in hand no longer than it takes.

        Raises:
            StoppedError: Nobody waits for it any more.
            SegonnxError: They can't be loaded.
        """
        self._answer(_LOADED, lambda: None)

    def _answer(self, case: str, submit: Callable[[], object]) -> Answer:
        future: Future[Answer] = Future()
        with self._asked:
            self._waiting[case] = future
            submit()
            if self._thread is None:
                self._thread = threading.Thread(target=self._receive, daemon=True)
                self._thread.start()
            self._asked.notify()
        while True:
            try:
                return future.result(LOOK_S)
            except NotYetError:
                if self._closed or cluster.unwanted():
                    with self._asked:
                        self._waiting.pop(case, None)
                        self._local.kill()
                    raise StoppedError from None

    def close(self) -> None:
        """End the process, and whatever it does."""
        self._closed = True
        self._local.kill()
        self._held.close()
        with self._asked:
            self._asked.notify()

    def _receive(self) -> None:
        """Hand answers on, as they come."""
        try:
            self._local.__enter__()
            self._local.load()
            self._hand_on(Answer(_LOADED))
            while self._wait():
                self._hand_on(self._local.receive())
        except BaseException as error:  # noqa: BLE001 (whoever waits must hear of it)
            with self._asked:
                self._local.__exit__(type(error), error, error.__traceback__)
                for future in self._waiting.values():
                    future.set_exception(error if isinstance(error, SegonnxError) else StoppedError())
                self._waiting.clear()
                self._thread = None

    def _hand_on(self, answer: Answer) -> None:
        with self._asked:
            if (future := self._waiting.pop(answer.case, None)) is not None:
                future.set_result(answer)

    def _wait(self) -> bool:
        """Wait for something to receive. False where nothing came for long: the process has ended then."""
        with self._asked:
            if not self._local.busy and not self._closed:
                self._asked.wait(IDLE_S)
            if self._local.busy and not self._closed:
                return True
            self._local.__exit__(None, None, None)
            self._thread = None
            return False


_servers: dict[str, _Server] = {}
_lock = threading.Lock()


def prepare(run: Run, share: int) -> None:
    """Get ready for the cases of a run: what artifacts it needs was brought before.

    Args:
        run: The run.
        share: How many workers share this machine.

    Raises:
        InputError: This worker has another version of segonnx, or doesn't see the folder of the label maps.
        VerifyError: An artifact isn't intact.
        SegonnxError: The networks can't be loaded.
    """
    if run.segonnx != __version__:
        raise InputError(f"it has segonnx {__version__}, and the run {run.segonnx}: install the same")
    if run.seen is not None and not run.seen.exists():
        raise InputError(f"it doesn't see {run.seen}: share the storage, or send images with --transfer")
    with _lock:
        if run.name in _servers:
            return
        server = _servers[run.name] = _Server(run, share)
    try:
        server.load()
    except BaseException:
        close(run.name)
        raise


class UnknownRunError(SegonnxError):
    """This worker isn't prepared for a run: it is another process than the one that was."""


def _server(name: str) -> _Server:
    if (found := _servers.get(name)) is None:
        raise UnknownRunError("the worker was started anew")
    return found


def do(name: str, request: Request, alone: bool) -> Answer:
    """Do a case of a run, which was prepared."""
    return _server(name).do(request, alone=alone)


def do_sent(name: str, request: Request, sent: dict[Path, Path], alone: bool) -> tuple[Answer, Path]:
    """Do a case whose files were sent.

    Args:
        name: Of the run.
        request: The case, with the paths that its files have on the other machine.
        sent: The files here by those paths.
        alone: See ``Executor``.

    Returns:
        What came of it, and the folder that holds the files that were made. ``forget`` removes it.
    """
    server = _server(name)
    folder = Path(tempfile.mkdtemp(prefix="segonnx-"))
    try:
        here = {}
        for number, (was, path) in enumerate(sent.items()):
            (folder / str(number)).mkdir()
            here[was] = Path(shutil.move(path, folder / str(number) / was.name))
        target, job = folder / "made", request.job
        made = {path: target / path.relative_to(request.target) for path in (job.path, *request.made)}
        moved = replace(
            job,
            channels=[here[path] for path in job.channels if path in here],
            path=here.get(job.path, made[job.path]),
            reference=None if job.reference is None else here[job.reference],
        )
        mine = replace(request, job=moved, target=target, made=tuple(made[path] for path in request.made), claim=None)
        return server.do(mine, alone=alone), target
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def forget(target: Path) -> None:
    """Remove what ``do_sent`` made."""
    shutil.rmtree(target.parent, ignore_errors=True)


def _tasks() -> list[str]:
    """The cases that this worker has in hand; for tests."""
    return [case for server in _servers.values() for case in server._waiting if case != _LOADED]


def close(name: str) -> None:
    """Forget a run."""
    with _lock:
        server = _servers.pop(name, None)
    if server is not None:
        server.close()
