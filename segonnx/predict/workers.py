"""Threads for NumPy's work: as many as a user allows the network, and never at the same time as the network."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Workers:
    """Threads that share work out among them. Any number of callers may use them at the same time.

    Args:
        threads: How many. One is the caller's own.
    """

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads, "segonnx") if threads > 1 else None

    def run(self, work: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Do a piece of work for each item, and give the results in the items' order.

        Raises:
            Exception: What ``work`` raised first, once all of it has ended.
        """
        every = list(items)
        if self._pool is None or len(every) < 2:
            return [work(item) for item in every]
        running = [self._pool.submit(work, item) for item in every]
        for one in running:
            one.exception()  # wait: what the work writes to belongs to the caller
        return [one.result() for one in running]

    def parts(self, size: int, least: int = 1) -> list[slice]:
        """Share ``size`` places out: a part for each thread, none of fewer than ``least`` places."""
        count = max(1, min(self.threads, size // max(1, least)))
        edges = [size * number // count for number in range(count + 1)]
        return [slice(begin, end) for begin, end in itertools.pairwise(edges)]


def blocks(size: int, length: int) -> Sequence[slice]:
    """Cut ``size`` places into blocks of at most ``length``."""
    return [slice(begin, min(begin + length, size)) for begin in range(0, size, max(1, length))]
