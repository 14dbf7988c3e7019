"""A look from outside at a worker's threads, and at what else ran on its processors while it was timed."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import psutil

BUSY = 0.1
"""A thread that took this fraction of the busiest one's time has worked."""
FOREIGN = 0.05
STEAL = 0.01
"""From these fractions of the processors' time on, a reader is warned."""


@dataclass(frozen=True)
class _Look:
    """Counters at one moment, in seconds."""

    clock: float
    threads: dict[int, float]
    busy: float
    steal: float


class ThreadMonitor:
    """Watches the blocks of a runtime's workers, one worker after another.

    Args:
        cpus: the processors that they're bound to.
    """

    def __init__(self, cpus: Iterable[int]) -> None:
        self._process: psutil.Process | None = None
        self._wanted = sorted(cpus)
        self._begun: _Look | None = None
        self._threads: Counter[int] = Counter()
        self._capacity = self._foreign = self._steal = 0.0
        self.total = 0
        """Threads of a worker, the most at any time."""
        self._busy = 0
        self.cpus: set[int] = set()
        """The processors that any of them was allowed to run on."""

    def follow(self, pid: int) -> None:
        """Watch the worker of this number from now on."""
        self._process = psutil.Process(pid)
        self._busy = self.busy
        self._threads.clear()

    def begin(self) -> None:
        """A block is about to begin."""
        self._begun = self._look()

    def end(self) -> None:
        """A block is over."""
        begun, now = self._begun, self._look()
        assert begun is not None
        worked = {tid: spent - begun.threads.get(tid, 0.0) for tid, spent in now.threads.items()}
        self._threads.update({tid: round(1e3 * spent) for tid, spent in worked.items()})
        self._capacity += (now.clock - begun.clock) * len(self._wanted)
        self._foreign += now.busy - begun.busy - sum(worked.values())
        self._steal += now.steal - begun.steal
        self.total = max(self.total, len(now.threads))
        if hasattr(os, "sched_getaffinity"):
            for tid in now.threads:
                self.cpus |= os.sched_getaffinity(tid)

    @property
    def busy(self) -> int:
        """Threads of a worker that worked during its blocks, the most of any worker."""
        most = max(self._threads.values(), default=0)
        return max(self._busy, sum(spent > 0 and spent >= BUSY * most for spent in self._threads.values()))

    def warnings(self, threads: int) -> list[str]:
        """What a reader should know of the blocks.

        Args:
            threads: how many the runtime was asked to use.
        """
        result = []
        foreign = self._foreign / self._capacity if self._capacity else 0.0
        steal = self._steal / self._capacity if self._capacity else 0.0
        if foreign > FOREIGN:
            result.append(f"other programs took {100 * foreign:.0f} % of the processors while it was timed")
        if steal > STEAL:
            result.append(f"the host took {100 * steal:.0f} % of the processors' time away (steal)")
        if self.busy > threads:
            result.append(f"{self.busy} of its threads worked, {threads} were asked for")
        if self.cpus - set(self._wanted):
            result.append(f"it ran on processors {sorted(self.cpus)}, not only on {self._wanted}")
        return result

    def _look(self) -> _Look:
        assert self._process is not None
        try:
            threads = {thread.id: thread.user_time + thread.system_time for thread in self._process.threads()}
        except psutil.Error:  # it has died, and its row will say so
            threads = {}
        times = psutil.cpu_times(percpu=True)
        mine = [times[cpu] for cpu in self._wanted if cpu < len(times)]
        busy = sum(cpu.user + cpu.system + getattr(cpu, "irq", 0) + getattr(cpu, "softirq", 0) for cpu in mine)
        busy += sum(getattr(cpu, "nice", 0) for cpu in mine)
        steal = sum(getattr(cpu, "steal", 0.0) for cpu in mine)
        return _Look(time.perf_counter(), threads, busy, steal)
