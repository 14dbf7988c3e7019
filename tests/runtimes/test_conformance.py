"""One check that every runtime passes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from segonnx import inputs, process, runtimes
from segonnx.artifacts.verify import MODEL
from segonnx.catalog import System
from segonnx.exporters import pipeline
from segonnx.exporters.prepare import write_weights
from segonnx.numeric import TOLERANCES, compare
from segonnx.runtimes.base import Options, Runtime, Subject


@dataclass
class Ready:
    subject: Subject
    x: inputs.Array


@pytest.fixture(scope="module")
def ready(tiny: System, tmp_path_factory: pytest.TempPathFactory) -> Ready:
    folder = tmp_path_factory.mktemp("runtimes")
    exported = pipeline.export(tiny, pipeline.Settings(folder))
    process.call(write_weights, tiny, None, 0, folder / "weights.safetensors")
    subject = Subject(tiny, folder / "weights.safetensors", exported.folder / MODEL)
    return Ready(subject, inputs.make("phantom", tiny.input_shape, tiny.modality))


def check(name: str, ready: Ready, threads: int, progress: process.Progress) -> dict[str, Any]:
    """Runs in a process of its own, as runtimes do."""
    import psutil

    runtime = runtimes.get(name)()
    runtime.load(ready.subject, Options(threads), ready.x)
    first = runtime.run(ready.x).copy()
    second = runtime.run(2 * ready.x).copy()
    third = runtime.run(ready.x).copy()
    threads_now = psutil.Process().num_threads()
    settings = runtime.describe()
    runtime.close()
    return {"outputs": (first, second, third), "settings": settings, "threads": threads_now}


@pytest.fixture(scope="module")
def answers(ready: Ready) -> Callable[[str], dict[str, Any]]:
    known: dict[str, dict[str, Any]] = {}

    def get(name: str) -> dict[str, Any]:
        if name not in known:
            known[name] = process.call(check, name, ready, 1).value
        return known[name]

    return get


@pytest.mark.parametrize("name", runtimes.NAMES)
def test_a_runtime_gives_eagers_logits(name: str, answers: Callable[[str], dict[str, Any]]) -> None:
    first, second, third = answers(name)["outputs"]
    assert first.dtype == np.float32
    assert compare(answers("eager")["outputs"][0], first).within(TOLERANCES["float32"])
    assert compare(answers("eager")["outputs"][1], second).within(TOLERANCES["float32"])
    assert np.array_equal(first, third)
    assert not compare(first, second).within(TOLERANCES["float32"])


@pytest.mark.parametrize("name", runtimes.NAMES)
def test_a_runtime_says_what_matters(name: str, answers: Callable[[str], dict[str, Any]]) -> None:
    assert {"dtype", "outputs"} <= answers(name)["settings"].keys()


@pytest.mark.parametrize("runtime", runtimes.RUNTIMES)
def test_a_runtime_is_here_or_says_what_to_install(runtime: type[Runtime], monkeypatch: pytest.MonkeyPatch) -> None:
    assert runtime.missing() is None
    if runtime.needs == "network":
        monkeypatch.setitem(sys.modules, "torch", None)
        assert "pip install" in (runtime.missing() or "")


def test_compile_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert "C++ compiler" in (runtimes.get("compile").missing() or "")


def test_bf16_computes_in_bf16(ready: Ready, answers: Callable[[str], dict[str, Any]]) -> None:
    logits = process.call(run_bf16, ready).value
    difference = compare(answers("eager")["outputs"][0], logits)
    assert 1e-3 < difference.rms_rel_error < TOLERANCES["bfloat16"].rms_rel_error
    assert difference.within(TOLERANCES["bfloat16"])


def run_bf16(ready: Ready, progress: process.Progress) -> inputs.Array:
    runtime = runtimes.get("eager")()
    runtime.load(ready.subject, Options(2, bf16=True), ready.x)
    assert runtime.describe()["dtype"] == "bfloat16 autocast"
    return runtime.run(ready.x)
