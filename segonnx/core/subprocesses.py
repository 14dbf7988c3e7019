"""Work in a process of its own: its memory is its own, and it can crash without taking the caller along."""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import logging
import logging.handlers
import multiprocessing
import os
import pickle
import queue
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Generic, Literal, Protocol, TypeVar, TypeVarTuple

from segonnx.core import hardware, standard_streams
from segonnx.errors import ResourceError, SegonnxError, StageError, first_line

T = TypeVar("T")
Q = TypeVar("Q")
Arguments = TypeVarTuple("Arguments")
_NO_SPACE = ("No space left on device", "Disk quota exceeded", "StorageFull", " requested and ")  # the last is NumPy's
_NO_MEMORY = (
    "can't allocate memory", "not enough memory", "bad_alloc", "bad allocation", "Cannot allocate memory",
    "Failed to allocate memory", "Memory allocation still failed", "failed to map segment", "MemoryError",
    "cannot allocate memory in static TLS block", "can't start new thread", "out of memory",
    "error return without exception set", "without setting an exception",  # Python's own, where it has none left
)  # fmt: skip

STEP_S = 1800.0
"""The most seconds that a step may take of what strangers made, where nothing else is said."""

PATIENCE_S = 10.0
CLEAR_UP_S = 1.0
"""How long a process may clear up after itself, before it is killed."""
_LOGGER = logging.getLogger("segonnx")
_PR_SET_PDEATHSIG = 1


class Progress(Protocol):
    """A progress callback: whenever a step begins, it gets what the step does, in a few words."""

    def __call__(self, step: str, /) -> None: ...


def silent(step: str, /) -> None:
    """A Progress that says nothing."""


@dataclass(frozen=True)
class Bounds:
    """What each process may take that runs what strangers made: a graph, or a pickle.

    Attributes:
        timeout: the most seconds of one step. None lets the size of the work decide, up to ``STEP_S``.
        memory: the most bytes of the process's own. None takes what is free when it starts.
        mapped: the bytes of files that it maps. Their pages belong to the file, and come on top.
    """

    timeout: float | None = None
    memory: int | None = None
    mapped: int = 0

    @property
    def step_s(self) -> float:
        """The most seconds of a step whose size nobody knows."""
        return STEP_S if self.timeout is None else self.timeout

    def hold(self) -> None:
        """Cap this process's memory."""
        cap_memory((hardware.available_memory() if self.memory is None else self.memory) + self.mapped)


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What a process gave.

    Attributes:
        value: the function's result.
        peak_rss_bytes: the most resident memory that the process held, file-backed pages included.
        seconds: how long it ran, imports included.
    """

    value: T
    peak_rss_bytes: int
    seconds: float


def peak_rss_bytes() -> int:
    """The most resident memory that this process has held."""
    try:
        status = Path("/proc/self/status").read_text("ascii")
        # ru_maxrss is inherited from the parent over exec; VmHWM is this program's own.
        return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024
    except (OSError, StopIteration):
        return _peak_rss_bytes_elsewhere()


def reset_peak() -> None:
    """Let ``peak_rss_bytes`` begin anew, where the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", "ascii")


def _peak_rss_bytes_elsewhere() -> int:
    """``peak_rss_bytes``, where there is no /proc."""
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        memory = psutil.Process().memory_info()
        return int(getattr(memory, "peak_wset", memory.rss))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def bind(cpus: Iterable[int]) -> None:
    """Bind this process, with the threads that it has and will have, to these processors; where the system can."""
    if hasattr(os, "sched_setaffinity"):
        chosen = set(cpus)
        for thread in Path("/proc/self/task").iterdir():
            os.sched_setaffinity(int(thread.name), chosen)


class Worker:
    """A fresh process that runs ``function(channel, *args)`` and ends with its parent.

    What it prints goes to a file, whose last line is shown where the process dies. What it logs as ``segonnx`` is
    logged here, at the level that holds here, while ``receive`` waits.

    Args:
        function: what it runs; it must be importable by its name.
        args: the function's arguments.
        preload: modules that the process finds imported already. On Linux one process imports them once, and each
            worker is a copy of it; the first worker's list holds for all. Elsewhere they aren't imported.
    """

    def __init__(self, function: Callable[..., None], *args: Any, preload: Sequence[str] = ()) -> None:
        context = start_preloading(preload) if preload else multiprocessing.get_context("spawn")
        standard_streams.open_descriptors()
        try:
            # A file that Python opens as a temporary one can't be opened again on Windows.
            self._folder = tempfile.TemporaryDirectory(prefix="segonnx-", ignore_cleanup_errors=True)
            self._log = Path(self._folder.name) / "log"
            self._log.touch()
        except OSError as error:
            raise translate(error) from error
        # What the function's module imports may fail: the new process unpickles it once it can tell why.
        work = bytes(ForkingPickler.dumps((function, args)))
        level = _LOGGER.getEffectiveLevel()
        environment = dict(os.environ) if preload else None  # a copy would have that of the process it is copied from
        try:
            self.channel, theirs = context.Pipe()
            entry = (theirs, self._log, level, environment, work)
            self.process = context.Process(target=_enter, args=entry, daemon=True)
            with _without_main(), _of_a_daemon():
                self.process.start()
        except OSError as error:  # too many files or processes, or too little memory
            self._folder.cleanup()
            raise ResourceError(f"no process can be started: {error.strerror or error}") from error
        _LOGGER.getChild("worker").info("process %d started", self.pid)
        self._paused = False
        theirs.close()

    @property
    def pid(self) -> int:
        """The process's number."""
        assert self.process.pid is not None
        return self.process.pid

    def pause(self) -> None:
        """Stop the process, with every thread of it: it takes no time of a processor until ``resume``."""
        self._control("suspend")
        self._paused = True

    def resume(self) -> None:
        """Let a paused process go on."""
        self._control("resume")
        self._paused = False

    def kill(self) -> None:
        """End the process at once."""
        self.process.kill()

    def _control(self, action: Literal["suspend", "resume"]) -> None:
        import psutil

        if self.process.is_alive():  # where it isn't, the next receive tells how it ended
            getattr(psutil.Process(self.pid), action)()

    def receive(self, what: str, timeout: float | None = None) -> Any:
        """The next message of the process.

        Raises:
            StageError: it ended without one, or ``timeout`` seconds passed; ``what`` names its work in the message.
            ResourceError: it ended because the memory ran out.
        """
        try:
            while True:
                if not wait([self.channel], timeout):
                    raise StageError(f"{what} took more than {timeout:.3g} s: --timeout allows more")
                message = self.channel.recv()
                if not isinstance(message, logging.LogRecord):
                    return message
                logging.getLogger(message.name).handle(message)
        except (EOFError, ConnectionError):
            self.process.join(10)
            log = self.log()
            if any(words in log for words in _NO_MEMORY):
                raise ResourceError("the memory ran out") from None
            raise StageError(_exit_message(what, self.process.exitcode, log)) from None

    def log(self) -> str:
        """What the process has printed so far."""
        return self._log.read_text("utf-8", errors="replace")

    def close(self, patience: float = 0.0) -> None:
        """End the process, after ``patience`` seconds in which it may end by itself."""
        self.channel.close()
        if not self._paused:
            if not patience:
                self.process.terminate()
            self.process.join(patience or CLEAR_UP_S)
        self.process.kill()
        self.process.join()
        _LOGGER.getChild("worker").info("process %d ended with exit code %s", self.pid, self.process.exitcode)
        self.process.close()
        self._folder.cleanup()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # One that has answered ends by itself and clears up; where something went wrong nobody waits.
        self.close(PATIENCE_S if error is None else 0.0)


def start_preloading(modules: Sequence[str]) -> SpawnContext | ForkServerContext:
    """Start the process that imports modules once for all workers, where there is none and the system can.

    Returns:
        The way to start workers: as copies of that process, or each afresh.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(modules))
    try:
        forkserver.ensure_running()
    except OSError:  # its socket has a path in the temporary folder, which may be too long
        return multiprocessing.get_context("spawn")
    return context


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Keep multiprocessing from running the caller's script anew in the child: no function of ours is in it.

    A script without ``if __name__ == "__main__"`` would start itself again, and again.
    """
    with _STARTING:  # a second thread would put aside what the first one put there
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


_STARTING = threading.Lock()


@contextlib.contextmanager
def _of_a_daemon() -> Iterator[None]:
    """Let a daemon process, as a worker of Dask is, have children: it can't end them, and ours end with it anyway."""
    config: dict[str, Any] = getattr(multiprocessing.current_process(), "_config", {})
    before = {key: config.pop(key) for key in ("daemon",) if key in config}
    try:
        yield
    finally:
        config.update(before)


def cap_memory(limit: int) -> None:
    """Let this process hold no more than ``limit`` bytes of its own: a larger request fails, instead of the machine."""
    try:
        import resource
    except ImportError:  # Windows
        return
    if sys.platform == "linux":  # other systems don't count a process's own memory
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (limit if hard < 0 else min(limit, hard), hard))


def keep_freed_memory() -> None:
    """Let this process use again what memory it frees, and not give it back to the system; glibc alone is told so.

    A network's pass takes and frees gigabytes, and the system clears each page that it hands out, which takes PyTorch's
    passes of volumes much of their time. The process holds more for it: what is free here and there.
    """
    import ctypes

    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is not None and hasattr(libc, "mallopt"):
        for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            libc.mallopt(option, 2**30)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


@contextlib.contextmanager
def room(more: int) -> Iterator[None]:
    """Let this process take no more than ``more`` bytes beside those that it has, while the block runs."""
    if sys.platform != "linux":  # see cap_memory
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    status = Path("/proc/self/status").read_text("ascii")
    held = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmData"))
    cap_memory(held + more if before[0] < 0 else min(held + more, before[0]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


@contextlib.contextmanager
def limited(seconds: float, what: str) -> Iterator[None]:
    """Let the block take no longer than this, in a process that ``call`` or ``stream`` started; elsewhere as it likes.

    The parent keeps the time, and kills the process: what runs may be a library's code that nothing else can stop.
    Where several threads are in such blocks, the time begins anew with each that enters one.

    Args:
        seconds: the most.
        what: names the block's work in the message.
    """
    if _parent is None:
        yield
        return
    global _limited  # noqa: PLW0603 (it is the process's)
    with _limiting:
        _limited += 1
        _tell(_parent, ("limit", (seconds, what), 0))
    try:
        yield
    finally:
        with _limiting:
            _limited -= 1
            if not _limited:
                _tell(_parent, ("limit", None, 0))


def call(
    function: Callable[[*Arguments, Progress], T],
    /,
    *args: *Arguments,
    progress: Progress = silent,
    bounds: Bounds | None = None,
    preload: Sequence[str] = (),
) -> Outcome[T]:
    """Run ``function(*args, progress)`` in a fresh process and wait for its result.

    Args:
        function: what to run; it must be importable by its name.
        args: the function's arguments.
        progress: callback that gets the name of each step.
        bounds: of the process; None lets it take what it likes.
        preload: modules that the process finds imported; see ``Worker``.

    Raises:
        SegonnxError: as the function raised it.
        ResourceError: the disk or the memory ran out.
        StageError: the process was killed, took too long, or raised anything else.
    """
    started = time.perf_counter()
    with Worker(_answer, function, args, bounds, preload=preload) as worker:
        for kind, value, peak in _messages(worker, _name(function), progress, bounds):
            if kind == "done":
                return Outcome(value, peak, time.perf_counter() - started)
    raise AssertionError("a process that ends without a word is an error")


def stream(
    function: Callable[[*Arguments, Progress], Iterator[T]],
    /,
    *args: *Arguments,
    progress: Progress = silent,
    bounds: Bounds | None = None,
) -> Iterator[T]:
    """Go through what ``function(*args, progress)`` yields, in a fresh process that runs ahead of the caller.

    Args:
        function: what to run; it must be importable by its name.
        args: the function's arguments.
        progress: callback that gets the name of each step.
        bounds: of the process; None lets it take what it likes.

    Raises:
        SegonnxError: see ``call``.
    """
    with Worker(_answer_each, function, args, bounds) as worker:
        for kind, value, _ in _messages(worker, _name(function), progress, bounds):
            if kind == "done":
                return
            yield value


class Conversation(Generic[Q, T]):
    """A process that answers what it is sent; see ``converse``. One thread receives, and one at a time sends."""

    def __init__(self, worker: Worker, messages: Iterator[tuple[Literal["value", "done"], Any, int]]) -> None:
        self._worker, self._messages = worker, messages

    def send(self, request: Q) -> None:
        """Send a request. Nothing is waited for."""
        with contextlib.suppress(ConnectionError):  # where it has ended, receive tells how
            self._worker.channel.send(request)

    def kill(self) -> None:
        """End the process at once; ``receive`` tells of it."""
        self._worker.kill()

    def receive(self) -> T:
        """The next answer, once it is there.

        Raises:
            SegonnxError: see ``call``; the process is gone.
        """
        for kind, value, _ in self._messages:
            if kind == "value":
                answer: T = value
                return answer
        raise StageError("a process ended that was to answer")


@contextlib.contextmanager
def converse(
    function: Callable[[Iterator[Q], Callable[[T], None], *Arguments, Progress], None],
    /,
    *args: *Arguments,
    progress: Progress = silent,
    bounds: Bounds | None = None,
) -> Iterator[Conversation[Q, T]]:
    """Run ``function(requests, answer, *args, progress)`` in a fresh process, and talk with it while the block runs.

    Args:
        function: what to run; it must be importable by its name. It gets the requests as they are sent, and calls
            ``answer`` with each answer, from any of its threads. The requests end with the block.
        args: the function's arguments.
        progress: callback that gets the name of each step.
        bounds: of the process; None lets it take what it likes.
    """
    with Worker(_answer_requests, function, args, bounds) as worker:
        yield Conversation(worker, _messages(worker, _name(function), progress, bounds))


def _name(function: Callable[..., Any]) -> str:
    return function.__name__.replace("_", " ").strip()


def _messages(
    worker: Worker, what: str, progress: Progress, bounds: Bounds | None
) -> Iterator[tuple[Literal["value", "done"], Any, int]]:
    """What a worker sends, the last message included: its results, after its steps went to ``progress``."""
    usual = (None if bounds is None else bounds.step_s, what)
    limit = usual
    while True:
        kind, value, peak = worker.receive(limit[1], limit[0])
        if kind == "error":
            raise value
        if kind == "limit":
            limit = usual if value is None else value
        elif kind == "step":
            progress(value)
        else:
            yield kind, value, peak
            if kind == "done":
                return


_parent: Connection | None = None
"""Where a process that ``call`` or ``stream`` started tells its parent what it does."""
_limiting, _limited = threading.Lock(), 0
"""How many threads are in blocks whose time is limited, and who may change that."""


_speaking = threading.Lock()


def _tell(channel: Connection, message: object) -> None:
    """Send a message to the parent, whole: several threads may do that."""
    with _speaking:
        channel.send(message)


def _answer(channel: Connection, function: Callable[..., Any], args: tuple[Any, ...], bounds: Bounds | None) -> None:
    """Run the function, and tell the parent what came of it."""
    try:
        value = function(*args, _begin(channel, bounds))
    except Exception as error:  # noqa: BLE001 (whatever it was, the parent must hear of it)
        _tell(channel, ("error", translate(error), peak_rss_bytes()))
    else:
        _tell(channel, ("done", value, peak_rss_bytes()))


def _answer_each(
    channel: Connection, function: Callable[..., Any], args: tuple[Any, ...], bounds: Bounds | None
) -> None:
    """``_answer`` for a function that yields."""

    def each(progress: Progress) -> None:
        for value in function(*args, progress):
            _tell(channel, ("value", value, 0))

    _answer(channel, each, (), bounds)


def _answer_requests(
    channel: Connection, function: Callable[..., Any], args: tuple[Any, ...], bounds: Bounds | None
) -> None:
    """``_answer`` for a function that gets requests. The parent may be gone once they have ended."""

    def requests() -> Iterator[Any]:
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                yield channel.recv()

    def answer(value: Any) -> None:
        _tell(channel, ("value", value, 0))

    with contextlib.suppress(ConnectionError):
        _answer(channel, function, (requests(), answer, *args), bounds)


def _begin(channel: Connection, bounds: Bounds | None) -> Progress:
    global _parent  # noqa: PLW0603 (a process has one parent)
    _parent = channel
    if bounds is not None:
        bounds.hold()
    return lambda step: _tell(channel, ("step", step, 0))


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was no memory."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY)


def ran_out_of_disk(error: BaseException) -> bool:
    """Whether an error says that nothing more can be written."""
    return any(words in str(error) for words in (*_NO_SPACE[:3], "the disk is full", "Read-only file system"))


def translate(error: BaseException) -> SegonnxError:
    """The error as one of ours, so that it can cross to another process and be printed as one line."""
    if isinstance(error, SegonnxError):
        return error
    text = str(error)
    if (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)) or any(
        s in text for s in _NO_SPACE
    ):
        return ResourceError("the disk is full: free some space, or choose another folder with --out")
    if ran_out_of_memory(error):
        return ResourceError("the memory ran out")
    if "No usable temporary directory" in text:
        return ResourceError("no folder for temporary files can be written to: TMPDIR names another")
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.EFBIG):
        return ResourceError(f"a limit of this system is reached: {error.strerror}")
    if isinstance(error, PermissionError):
        return ResourceError(f"no permission: {error.filename or text}")
    ours = StageError(f"{type(error).__name__}: {first_line(error, 1000) if text.strip() else 'no message'}")
    ours.add_note("".join(traceback.format_exception(error)))
    return ours


class _ToParent(logging.handlers.QueueHandler):
    """Sends each record, in a form that can be pickled, to the parent; where that is gone, nowhere."""

    def __init__(self, channel: Connection) -> None:
        super().__init__(queue.SimpleQueue())
        self._channel = channel

    def enqueue(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            _tell(self._channel, record)


def _enter(channel: Connection, log: Path, level: int, environment: Mapping[str, str] | None, work: bytes) -> None:
    """The first thing that runs in the new process."""
    if environment is not None:
        os.environ.clear()
        os.environ.update(environment)
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    _LOGGER.setLevel(level)
    _LOGGER.addHandler(_ToParent(channel))
    faulthandler.enable(2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides, and ends us
    signal.signal(signal.SIGTERM, _clear_up)
    _die_with_parent()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    function, args = pickle.loads(work)  # noqa: S301 (of the parent)
    function(channel, *args)


def _clear_up(*_: object) -> None:
    """Leave by way of everything that clears up after itself, such as temporary folders."""
    sys.exit(1)


def _die_with_parent() -> None:
    """Ask Linux to kill this process when its parent dies: a paused one can't see to it itself."""
    if sys.platform != "linux":
        return
    import ctypes

    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call
        os._exit(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _exit_message(what: str, exit_code: int | None, log: str) -> str:
    how = f"ended with exit code {exit_code}"
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        how = f"was killed by {name}"
        if name == "SIGKILL":  # which Windows doesn't have
            how += " (the machine may have run out of memory)"
    last = next((line.strip() for line in reversed(log.splitlines()) if line.strip()), "")
    return f"the process for {what} {how}" + (f"; its last words: {last[:200]}" if last else "")
