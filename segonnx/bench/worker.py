"""The process that holds one model in one runtime, sleeps while others are timed, and runs when it's told to."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from segonnx import process
from segonnx.runtimes.base import Options, Subject


@dataclass(frozen=True)
class Job:
    """What a worker runs.

    Attributes:
        backend: the runtime's name.
        subject: what it runs.
        options: how.
        x: file of the input, as ``numpy.save`` wrote it.
        logits: file that the logits are saved to.
        cache: an empty folder for what torch.compile compiles: a warm cache would hide the compile time.
    """

    backend: str
    subject: Subject
    options: Options
    x: Path
    logits: Path
    cache: Path


def serve(channel: Connection, job: Job) -> None:
    """Load, then answer each ``("run", n)`` with the seconds of n runs, and ``("end",)`` with the peak of memory.

    Answers are ``("ok", value)`` or ``("error", exception)``.
    """
    threads = str(job.options.threads)
    os.environ.update(OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads, TORCHINDUCTOR_CACHE_DIR=str(job.cache))
    try:
        _serve(channel, job)
    except EOFError:
        pass  # the parent is gone, or has heard enough
    except Exception as error:  # noqa: BLE001 (whatever it was, the parent must hear of it)
        channel.send(("error", process.translate(error)))


def _serve(channel: Connection, job: Job) -> None:
    from segonnx import runtimes

    x = np.load(job.x, allow_pickle=False)
    runtime = runtimes.get(job.backend)()
    started = time.perf_counter()
    runtime.load(job.subject, job.options, x)
    loaded: dict[str, Any] = {"load_s": time.perf_counter() - started, "settings": runtime.describe()}
    started = time.perf_counter()
    logits = runtime.run(x)
    loaded["pass_s"] = time.perf_counter() - started
    np.save(job.logits, logits)
    del logits
    channel.send(("ok", loaded))
    while True:
        command, *arguments = channel.recv()
        if command == "end":
            runtime.close()
            channel.send(("ok", process.peak_rss_bytes()))
            return
        seconds = []
        for _ in range(arguments[0]):
            started = time.perf_counter()
            runtime.run(x)
            seconds.append(time.perf_counter() - started)
        channel.send(("ok", seconds))
