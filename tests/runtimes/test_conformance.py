"""One check that every runtime passes."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from segonnx import inputs, process, runtimes
from segonnx.artifacts.verify import MODEL
from segonnx.catalog import System
from segonnx.errors import InputError
from segonnx.exporters import pipeline
from segonnx.exporters.prepare import write_weights
from segonnx.numeric import TOLERANCES, compare
from segonnx.runtimes import kinds, ort
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


def check(name: str, ready: Ready, options: Options, progress: process.Progress) -> dict[str, Any]:
    """Runs in a process of its own, as runtimes do."""
    runtime = runtimes.get(name)()
    runtime.load(ready.subject, options)
    runtime.prepare(ready.x)
    one = runtime.run(ready.x)
    first = one.copy()
    other = runtime.run(2 * ready.x)
    second = other.copy()
    third = runtime.run(ready.x).copy()
    answer = {
        "outputs": (first, second, third),
        "settings": runtime.describe(),
        "reused": np.shares_memory(one, other),
        "profile": runtime.profile(ready.x, 2) if options.profile else None,
    }
    runtime.close()
    return answer


@pytest.fixture(scope="module")
def answers(ready: Ready) -> Callable[..., dict[str, Any]]:
    known: dict[tuple[str, Options], dict[str, Any]] = {}

    def get(name: str, **options: Any) -> dict[str, Any]:
        key = name, Options(1, **options)
        if key not in known:
            known[key] = process.call(check, name, ready, key[1]).value
        return known[key]

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
def test_a_runtime_says_what_matters(name: str, answers: Callable[..., dict[str, Any]]) -> None:
    settings = answers(name)["settings"]
    assert {"dtype", "outputs", "spinning", "version"} <= settings.keys()
    assert settings["dtype"] == "float32"
    assert all(type(value) is str for value in settings.values())  # a library's own class would need the library
    assert ("channels last" in settings.get("memory_format", "")) == ("channels-last" in name)


@pytest.mark.parametrize("name", ["ort", "openvino"])
def test_outputs_are_reused_or_not_as_asked(name: str, answers: Callable[..., dict[str, Any]]) -> None:
    bound, fresh = answers(name), answers(name, outputs="fresh")
    assert bound["reused"]
    assert bound["settings"]["outputs"] == "bound once and reused"
    assert not fresh["reused"]
    assert fresh["settings"]["outputs"] == "fresh for every run"
    assert np.array_equal(bound["outputs"][0], fresh["outputs"][0])


@pytest.mark.parametrize("name", ["eager", "compile", "ort", "openvino"])
def test_a_profile_tells_operators_by_kind(name: str, answers: Callable[..., dict[str, Any]]) -> None:
    profile = answers(name, profile=True)["profile"]
    assert all(one.seconds > 0 and one.calls > 0 and one.kind in kinds.KINDS for one in profile)
    assert [one.seconds for one in profile] == sorted((one.seconds for one in profile), reverse=True)
    assert profile[0].kind != kinds.OTHER
    assert any(one.kind == "convolution" for one in profile)


def test_options_reach_onnx_runtime(ready: Ready, answers: Callable[..., dict[str, Any]]) -> None:
    import onnx

    operators = [node.op_type for node in onnx.load(str(ready.subject.model), load_external_data=False).graph.node]
    plain = answers("ort", profile=True, graph_optimization="disabled", spinning=False, arena=False)
    settings = {"graph_optimization": "disabled", "spinning": "off", "arena": "off"}
    assert settings.items() <= plain["settings"].items()
    calls = {one.operator: one.calls for one in plain["profile"]}
    assert calls["Conv"] == operators.count("Conv")
    assert calls["LeakyRelu"] == operators.count("LeakyRelu")
    fused = {one.operator: one.calls for one in answers("ort", profile=True)["profile"]}
    assert "LeakyRelu" not in fused or fused != calls


def test_torch_waits_passively_if_told_so(ready: Ready) -> None:
    assert process.call(idle_time, ready, Options(2, spinning=False)).value < 0.5


def idle_time(ready: Ready, options: Options, progress: process.Progress) -> float:
    """Processor seconds per second while a loaded runtime has nothing to do."""
    runtime = runtimes.get("eager")()
    runtime.load(ready.subject, options)
    runtime.run(ready.x)
    assert runtime.describe()["spinning"] == "off"
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    spent, started = time.process_time(), time.perf_counter()
    time.sleep(0.5)
    return (time.process_time() - spent) / (time.perf_counter() - started)


@pytest.mark.parametrize(
    ("texts", "options"),
    [
        ([], {}),
        (["spinning=off", "arena=on"], {"spinning": False, "arena": True}),
        (["graph_optimization=basic", "outputs=fresh"], {"graph_optimization": "basic", "outputs": "fresh"}),
    ],
)
def test_ort_options_are_read(texts: list[str], options: dict[str, Any]) -> None:
    assert ort.parse_options(texts) == options
    assert Options(1, **options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("spinning", "takes on, off"),
        ("spinning=maybe", "takes on, off"),
        ("speed=high", "the keys are graph_optimization"),
        ("", "the keys are"),
    ],
)
def test_wrong_ort_options_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ort.parse_options([text])


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        ("Conv", "convolution"),
        ("FusedConv", "convolution"),
        ("GroupConvolution", "convolution"),
        ("aten::mkldnn_convolution", "convolution"),
        ("Convert", "data movement"),
        ("ReorderInput", "data movement"),
        ("aten::copy_", "data movement"),
        ("aten::addmm", "matrix product"),
        ("MatMul", "matrix product"),
        ("InstanceNormalization", "normalisation"),
        ("aten::native_batch_norm", "normalisation"),
        ("Resize", "resampling"),
        ("aten::upsample_bilinear2d", "resampling"),
        ("aten::leaky_relu_", "activation"),
        ("QuickGelu", "activation"),
        ("ReduceMean", "reduction"),
        ("aten::sum", "reduction"),
        ("MaxPool", "reduction"),
        ("Add", "elementwise"),
        ("Eltwise", "elementwise"),
        ("Subgraph", "fused"),
        ("CompiledFxGraph", "fused"),
        ("Banana", "other"),
    ],
)
def test_kinds(operator: str, kind: str) -> None:
    assert kinds.kind(operator) == kind
    assert kind in kinds.KINDS


@pytest.mark.parametrize("runtime", runtimes.RUNTIMES)
def test_a_runtime_is_here_or_says_what_to_install(runtime: type[Runtime], monkeypatch: pytest.MonkeyPatch) -> None:
    assert runtime.missing() is None
    if runtime.name != "ort":
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
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
    runtime.load(ready.subject, Options(2, bf16=True))
    assert runtime.describe()["dtype"] == "bfloat16 autocast"
    return runtime.run(ready.x)
