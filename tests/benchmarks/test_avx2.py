"""ONNX Runtime without AVX-512, on a processor that has it."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks import avx2
from segonnx.core import hardware


def package() -> Path:
    found = find_spec("onnxruntime")
    assert found is not None and found.origin is not None
    return Path(found.origin).parent


def test_a_copy_of_onnxruntime_runs_without_avx512(tmp_path: Path) -> None:
    changed = avx2.environment(tmp_path)
    assert changed["PYTHONPATH"] == str(tmp_path / "avx2")


@pytest.mark.skipif("avx512f" not in hardware.cpu_flags(), reason="without AVX-512 there is nothing to switch off")
def test_a_copy_that_uses_avx512_is_refused(tmp_path: Path) -> None:
    shutil.copytree(package(), tmp_path / "avx2" / "onnxruntime")
    with pytest.raises(SystemExit, match="the copy of ONNX Runtime uses AVX-512"):
        avx2.environment(tmp_path)


@pytest.mark.parametrize("times", [0, 2])
def test_a_library_that_asks_otherwise_is_refused(times: int) -> None:
    asks = bytes.fromhex("41f7c200000100740e4c89c048f7d0a8e0")
    assert avx2.without_avx512(b"before" + asks) == b"before" + asks.replace(b"\x01", b"\x00")
    with pytest.raises(SystemExit, match="in another way"):
        avx2.without_avx512(b"before" + asks * times)
