from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from segonnx.bench import roofline
from segonnx.core import hardware

MEASURE = {name: getattr(roofline, name) for name in ("_numpy", "_torch", "_bandwidth")}
"""What is measured, each in a process of its own."""


def _smaller(name: str, *arguments: Any) -> Any:
    """Measure on less, a few times."""
    with pytest.MonkeyPatch.context() as patch:
        for constant, value in {"SIZE": 256, "REPEATS": 2, "MIN_BYTES": 2**22, "MAX_BYTES": 2**22}.items():
            patch.setattr(roofline, constant, value)
        return MEASURE[name](*arguments)


def smaller_numpy(*arguments: Any) -> Any:
    return _smaller("_numpy", *arguments)


def smaller_torch(*arguments: Any) -> Any:
    return _smaller("_torch", *arguments)


def smaller_bandwidth(*arguments: Any) -> Any:
    return _smaller("_bandwidth", *arguments)


@pytest.mark.parametrize("size", ["small", pytest.param("whole", marks=[pytest.mark.serial, pytest.mark.slow])])
def test_ceilings_are_measured(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if size == "small":
        for function in (smaller_numpy, smaller_torch, smaller_bandwidth):
            monkeypatch.setattr(roofline, function.__name__.removeprefix("smaller"), function)
    found = roofline.measure(1, hardware.choose_cpus(1))
    assert found.keys() == {"threads", "sgemm_gflops", "sgemm_library", "bandwidth_gb_s"}
    assert found["threads"] == 1
    assert found["sgemm_library"].split()[0] in {"NumPy", "PyTorch"}
    assert 0.1 < found["bandwidth_gb_s"] < 1e4
    assert 0.1 < found["sgemm_gflops"] < 1e5
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert roofline.measure(1, hardware.choose_cpus(1))["sgemm_library"].startswith("NumPy")


def describe_cache(system: Path, cpu: int, level: int, size: str, shared: str) -> None:
    """Write what Linux says of a cache."""
    folder = system / f"cpu{cpu}" / "cache" / f"index{level}"
    folder.mkdir(parents=True)
    for name, text in (("level", str(level)), ("size", size), ("shared_cpu_list", shared)):
        (folder / name).write_text(text + "\n")


def test_last_caches_count_once_each(tmp_path: Path) -> None:
    for cpu, shared in ((0, "0-1"), (1, "0-1"), (2, "2-3"), (3, "2-3")):
        describe_cache(tmp_path, cpu, 2, "1024K", str(cpu))
        describe_cache(tmp_path, cpu, 3, "32768K", shared)
    assert roofline.last_caches([0, 1], tmp_path) == 2**25
    assert roofline.last_caches([0, 2], tmp_path) == 2**26
    assert roofline.last_caches([0, 1, 2, 3], tmp_path) == 2**26
    assert roofline.last_caches([7], tmp_path) == 0


def test_this_systems_caches_are_found() -> None:
    if not Path("/sys/devices/system/cpu/cpu0/cache/index0/size").exists():
        pytest.skip("this system doesn't describe its caches")
    assert roofline.last_caches(hardware.choose_cpus(1)) > 2**17
