"""What the machine can do at most: the rate of a large matrix product, and of copying memory."""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from segonnx.core import hardware, subprocesses
from segonnx.core.subprocesses import Progress

SIZE = 3072
REPEATS = 7
CACHES = 4
"""The memory that is copied is so many times the last caches."""
MIN_BYTES, MAX_BYTES = 2**28, 2**31


def measure(threads: int, cpus: Sequence[int], progress: Progress = subprocesses.silent) -> dict[str, Any]:
    """The roofline peaks of so many threads on these processors, as they stand in a result.

    ``sgemm_gflops`` is the median rate of float32 matrix products of 3072x3072, by the faster of the libraries that
    are installed (NumPy's OpenBLAS, PyTorch's); ``bandwidth_gb_s`` is the median rate of the bytes read and the bytes
    written by a copy that is too large for the caches. Each has a process of its own. Takes some ten seconds.
    """
    bandwidth = subprocesses.call(_bandwidth, threads, cpus, progress=progress).value
    rates = [subprocesses.call(_numpy, threads, cpus, progress=progress).value]
    if importlib.util.find_spec("torch"):
        rates.append(subprocesses.call(_torch, threads, cpus, progress=progress).value)
    gflops, library = max(rates)
    return {
        "threads": threads, "sgemm_gflops": gflops, "sgemm_library": library, "bandwidth_gb_s": bandwidth,
    }  # fmt: skip


def _numpy(threads: int, cpus: Sequence[int], progress: Progress) -> tuple[float, str]:
    import numpy as np
    import threadpoolctl

    progress(f"measuring NumPy's matrix product, {threads} threads")
    subprocesses.bind(cpus)
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, SIZE, SIZE), np.float32)
    out = np.empty_like(a)
    with threadpoolctl.threadpool_limits(threads):
        gflops = 2 * SIZE**3 / _median(lambda: np.matmul(a, b, out=out)) / 1e9
    blas = [f" ({pool['internal_api']} {pool['version']})" for pool in threadpoolctl.threadpool_info()][:1]
    return gflops, "".join((f"NumPy {np.__version__}", *blas))


def _torch(threads: int, cpus: Sequence[int], progress: Progress) -> tuple[float, str]:
    progress(f"measuring PyTorch's matrix product, {threads} threads")
    subprocesses.bind(cpus)
    import torch

    torch.set_num_threads(threads)
    a, b = torch.randn(2, SIZE, SIZE)
    out = torch.empty_like(a)
    return 2 * SIZE**3 / _median(lambda: torch.mm(a, b, out=out)) / 1e9, f"PyTorch {torch.__version__}"


def _bandwidth(threads: int, cpus: Sequence[int], progress: Progress) -> float:
    import numpy as np

    progress(f"measuring the memory, {threads} threads")
    subprocesses.bind(cpus)
    wanted = min(max(MIN_BYTES, CACHES * last_caches(cpus)), MAX_BYTES, hardware.available_memory() // 4)
    source = np.ones(wanted // 4, np.float32)
    target = np.zeros_like(source)
    parts = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))
    with ThreadPoolExecutor(threads) as pool:
        seconds = _median(lambda: list(pool.map(lambda part: np.copyto(*part), parts)))
    return 2 * source.nbytes / seconds / 1e9


def _median(work: Callable[[], object]) -> float:
    work()
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def last_caches(cpus: Sequence[int], system: Path = Path("/sys/devices/system/cpu")) -> int:
    """Bytes of the last caches of these processors, all of them together; 0 where the system doesn't tell.

    Args:
        cpus: the processors.
        system: where Linux describes them.
    """
    found = {}
    for cpu in cpus:
        caches = (system / f"cpu{cpu}" / "cache").glob("index*")
        levels = {int((cache / "level").read_text("ascii")): cache for cache in caches if (cache / "size").exists()}
        if levels:
            last = levels[max(levels)]
            size = (last / "size").read_text("ascii").strip().removesuffix("K")  # Linux always writes KiB
            found[(last / "shared_cpu_list").read_text("ascii")] = int(size) * 1024
    return sum(found.values())
