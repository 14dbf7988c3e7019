from __future__ import annotations

import pytest

from segonnx import machine
from segonnx.bench import ceilings


def test_ceilings_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    found = ceilings.measure(1, machine.choose_cpus(1))
    assert found.keys() == {"threads", "sgemm_gflops", "sgemm_library", "bandwidth_gb_s"}
    assert found["threads"] == 1
    assert found["sgemm_library"].split()[0] in {"NumPy", "PyTorch"}
    assert 0.1 < found["bandwidth_gb_s"] < 1e4
    assert 0.1 < found["sgemm_gflops"] < 1e5
    monkeypatch.setattr(ceilings.importlib.util, "find_spec", lambda _: None)
    assert ceilings.measure(1, machine.choose_cpus(1))["sgemm_library"].startswith("NumPy")
