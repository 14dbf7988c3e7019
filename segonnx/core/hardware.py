"""The machine: what it is, and what it has left."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

PACKAGES = (
    "segonnx",
    "torch",
    "torchvision",
    "timm",
    "segmentation-models-pytorch",
    "dynamic-network-architectures",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "numpy",
    "scipy",
)
"""The packages whose versions decide what an export or a timing gives."""

_FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "neon", "asimd")


def versions(names: Iterable[str] = PACKAGES) -> dict[str, str]:
    """The installed versions of the packages, in that order; those that aren't installed are left out."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def cpu_flags() -> list[str]:
    """The instruction sets that matter for networks, of those that the processor has."""
    import cpuinfo

    flags = set(cpuinfo.get_cpu_info().get("flags", ()))
    return [flag for flag in _FLAGS if flag in flags or flag.replace("_", "") in flags]


Blocks = Literal["avx512", "avx2"]
"""How many channels ONNX Runtime's blocked kernels take at once: 16 with AVX-512, and on Arm, otherwise 8."""


@functools.cache
def blocks() -> Blocks:
    """Which blocks ONNX Runtime has on this processor."""
    return "avx512" if {"avx512f", "neon", "asimd"} & set(cpu_flags()) else "avx2"


def has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 in hardware; without it bfloat16 is many times slower than float32."""
    return bool({"avx512_bf16", "amx_bf16"} & set(cpu_flags()))


def describe() -> dict[str, Any]:
    """The machine, for a result file."""
    import cpuinfo
    import psutil

    info = cpuinfo.get_cpu_info()
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return {
        "cpu": info.get("brand_raw", platform.processor()),
        "architecture": platform.machine(),
        "cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(),
        "usable_cores": usable_cores(),
        "flags": cpu_flags(),
        "memory_bytes": psutil.virtual_memory().total,
        "governor": governor.read_text("ascii").strip() if governor.exists() else None,
        "virtual": "hypervisor" in info.get("flags", ()),
        "niceness": psutil.Process().nice(),
        "load_average_1min": psutil.getloadavg()[0],
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": versions(),
    }


def usable_cores() -> int:
    """How many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_cpus(threads: int) -> list[int]:
    """The processors for a program of so many threads, of those that this process may use; one per core first."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = {}
    for cpu in usable:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores[cpu] = siblings.read_text("ascii").strip() if siblings.exists() else str(cpu)
    return one_per_core_first(cores, threads)


def one_per_core_first(cores: Mapping[int, str], threads: int) -> list[int]:
    """So many processors, or all if there are fewer, one from each core before a second one from any.

    Args:
        cores: the core of every processor.
        threads: how many to choose.
    """
    taken: Counter[str] = Counter()
    ranked = []
    for cpu in sorted(cores):
        ranked.append((taken[cores[cpu]], cpu))
        taken[cores[cpu]] += 1
    return sorted(cpu for _, cpu in sorted(ranked)[:threads])


def available_memory() -> int:
    """Bytes of memory that a new process can take: of the machine, its control group and its own limit."""
    import psutil

    limits = [int(psutil.virtual_memory().available), *_own_limit()]
    try:
        allowed = Path("/sys/fs/cgroup/memory.max").read_text("ascii").strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text("ascii"))
        if allowed != "max":
            limits.append(max(0, int(allowed) - used))
    except (OSError, ValueError):
        pass  # no control groups here
    return min(limits)


def _own_limit() -> list[int]:
    """The limit that this process has set on its memory, where the system knows such and one is set."""
    try:
        import resource
    except ImportError:  # Windows
        return []
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return [] if soft == resource.RLIM_INFINITY else [soft]
