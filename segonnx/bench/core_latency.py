"""Core-to-core latency: how soon one processor sees what another wrote, which tells whether they share a cache.

On a machine of one's own that stays as it is. A host moves the processors of a virtual machine as it likes: programs
whose threads read what others wrote then take more time, or less, and those whose threads keep to themselves the same.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import time
from collections.abc import Sequence
from multiprocessing import shared_memory
from multiprocessing.connection import Connection
from statistics import median

TRIPS = 400
BATCHES = 5
PATIENCE = 10_000_000
"""Looks at the flag, some tenths of a second, after which it won't come back: the other process is gone or waits."""
APART = 1.4
"""Two levels differ by this factor at least; measurements of the same level hardly do."""


class CoreLatency(contextlib.AbstractContextManager["CoreLatency"]):
    """A flag in shared memory, and a process on another processor that answers it.

    Args:
        cpus: the first two of these processors are asked.
    """

    def __init__(self, cpus: Sequence[int]) -> None:
        self._here, there = cpus[:2]
        self._memory = shared_memory.SharedMemory(create=True, size=1)
        context = multiprocessing.get_context("spawn")
        self._channel, channel = context.Pipe()
        self._peer = context.Process(target=_answer, args=(self._memory.name, there, channel), daemon=True)
        self._peer.start()
        channel.close()

    def __exit__(self, *_: object) -> None:
        self._channel.close()  # which ends the other process
        self._peer.join()
        self._memory.close()
        self._memory.unlink()

    def measure(self) -> float | None:
        """Nanoseconds that the flag takes one way, the interpreter's own time included; None if it doesn't come back.

        The median of some batches. Takes a millisecond or two.
        """
        before = os.sched_getaffinity(0)
        flag = self._memory.buf
        assert flag is not None
        try:
            os.sched_setaffinity(0, {self._here})
            self._channel.send(TRIPS * BATCHES)
            times = []
            for _ in range(BATCHES):
                started = time.perf_counter_ns()
                for _ in range(TRIPS):
                    flag[0] = 1
                    for _ in range(PATIENCE):
                        if not flag[0]:
                            break
                    else:
                        return None
                times.append((time.perf_counter_ns() - started) / TRIPS / 2)
            return median(times)
        except OSError:  # the other process is gone
            return None
        finally:
            os.sched_setaffinity(0, before)


def _answer(name: str, cpu: int, channel: Connection) -> None:
    """Lower the flag as often as the channel says, again and again."""
    os.sched_setaffinity(0, {cpu})
    memory = shared_memory.SharedMemory(name)
    flag = memory.buf
    assert flag is not None
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            for _ in range(channel.recv()):
                for _ in range(PATIENCE):
                    if flag[0]:
                        break
                else:
                    return
                flag[0] = 0


def levels(times: Sequence[float]) -> tuple[float, float] | None:
    """The medians of the two levels that the times have; None where they have one.

    They are parted where the variance between the two is largest, as Otsu parts an image's grey values (IEEE SMC 9,
    1979), in logarithms. A single slow measurement is no level, nor are a few that took longer than a level.

    Args:
        times: nanoseconds, as ``CoreLatency.measure`` gives them.
    """
    ordered = sorted(times)
    inner = ordered[1:-1]
    total, below, best = sum(map(math.log, inner)), 0.0, (0.0, 0)
    for count, latency in enumerate(inner[:-1], 1):
        below += math.log(latency)
        rest = len(inner) - count
        best = max(best, (count * rest * ((total - below) / rest - below / count) ** 2, count))
    parted = best[1]
    if not parted or median(inner[parted:]) < APART * median(inner[:parted]):
        return None
    low, high = ordered[: parted + 1], ordered[parted + 1 :]
    return median(low), median(high)
