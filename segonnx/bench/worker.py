"""The process that holds one model in one runtime, and runs it on command."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from segonnx.core import subprocesses
from segonnx.core.subprocesses import Bounds
from segonnx.core.synthetic_inputs import Array
from segonnx.runtimes.base import Operator, Options, Runnable, Runtime


@dataclass(frozen=True)
class Job:
    """What a worker runs.

    Attributes:
        runtime: the runtime's class.
        runnable: what it runs.
        options: how.
        cpus: the processors that it is bound to.
        x: file of the input, as ``numpy.save`` wrote it.
        logits: file that the logits, or labels, are saved to.
        cache: an empty folder for what torch.compile compiles: a warm cache would hide the compile time.
        bounds: of its memory, where it runs a graph, which may be a stranger's.
    """

    runtime: type[Runtime]
    runnable: Runnable
    options: Options
    cpus: tuple[int, ...]
    x: Path
    logits: Path
    cache: Path
    bounds: Bounds | None = None


@dataclass(frozen=True)
class Loaded:
    """What loading gave.

    Attributes:
        load_s: seconds until the model was ready: importing the library, reading, optimising or compiling.
        compile_s: the part that optimised or compiled.
        first_pass_s: seconds of the first pass after that.
        logits_bytes: size of the logits, or labels.
        settings: of the runtime.
    """

    load_s: float
    compile_s: float
    first_pass_s: float
    logits_bytes: int
    settings: dict[str, str]


@dataclass(frozen=True)
class Passes:
    """What passes took: seconds of each, and processor seconds of all threads for all of them together."""

    seconds: list[float]
    cpu_s: float


def serve(channel: Connection, job: Job) -> None:
    """Load, then answer commands, each with ``("ok", value)`` or ``("error", exception)``.

    Loading is answered with a ``Loaded``, ``("run", n)`` with the ``Passes`` of n runs, ``("profile", n)`` with the
    operators of n more, and ``("end",)`` with the peak of memory in bytes.
    """
    threads = str(job.options.threads)
    os.environ.update(OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads, TORCHINDUCTOR_CACHE_DIR=str(job.cache))
    subprocesses.bind(job.cpus)
    if job.bounds is not None:
        job.bounds.hold()
    try:
        _serve(channel, job)
    except EOFError:
        pass  # the parent is gone, or has heard enough
    except Exception as error:  # noqa: BLE001 (whatever it was, the parent must hear of it)
        channel.send(("error", subprocesses.translate(error)))


def _serve(channel: Connection, job: Job) -> None:
    import numpy as np

    x = np.load(job.x, allow_pickle=False)
    runtime = job.runtime()
    started = time.perf_counter()
    runtime.load(job.runnable, job.options)
    read = time.perf_counter()
    runtime.prepare(x)
    ready = time.perf_counter()
    logits = runtime.run(x)
    ran = time.perf_counter()
    np.save(job.logits, logits)
    size = logits.nbytes
    del logits
    channel.send(("ok", Loaded(ready - started, ready - read, ran - ready, size, runtime.describe())))
    while True:
        command, *arguments = channel.recv()
        if command == "end":
            runtime.close()
            channel.send(("ok", subprocesses.peak_rss_bytes()))
            return
        work = _profile if command == "profile" else _time
        channel.send(("ok", work(runtime, x, arguments[0])))


def _profile(runtime: Runtime, x: Array, passes: int) -> list[Operator]:
    return runtime.profile(x, passes)


def _time(runtime: Runtime, x: Array, passes: int) -> Passes:
    """Run ``passes`` passes; nothing but the pass is between two looks at the clock."""
    seconds = []
    cpu = time.process_time()
    for _ in range(passes):
        started = time.perf_counter()
        runtime.run(x)
        seconds.append(time.perf_counter() - started)
    return Passes(seconds, time.process_time() - cpu)
