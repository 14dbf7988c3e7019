"""One check that every runtime passes."""

from __future__ import annotations

import functools
import importlib.util
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import segonnx
from segonnx import runtimes
from segonnx.artifacts.layout import CPU_MODEL, MODEL
from segonnx.bench.worker import Job, Loaded, serve
from segonnx.commands import bench_targets
from segonnx.core import subprocesses, synthetic_inputs
from segonnx.core.tolerances import TOLERANCES, compare
from segonnx.errors import InputError
from segonnx.exporters import pipeline
from segonnx.exporters.prepare import write_weights
from segonnx.runtimes import operator_kinds, ort
from segonnx.runtimes.base import Options, Runnable, Runtime
from segonnx.sources.catalog import ModelSpec
from tests.conftest import steps_in_process


@pytest.fixture(autouse=True)
def processes(request: pytest.FixtureRequest) -> None:
    """Processes have imported the libraries already, but for tests of what happens at the import."""
    if "fresh_processes" not in request.fixturenames:
        request.getfixturevalue("copied_workers")


@pytest.fixture
def fresh_processes() -> None:
    """Processes are as in a bench."""


@dataclass
class Ready:
    runnable: Runnable
    x: synthetic_inputs.Array


def two_levels(weights: Path) -> Any:
    """A U-Net of two levels in 3D, with the weights of a file; called in a runtime's process."""
    from safetensors.torch import load_file

    module = make_two_levels().eval()
    module.load_state_dict(load_file(weights))
    return module


def make_two_levels() -> Any:
    """The same with random weights. The processes of other runtimes import no torch, and so this file doesn't."""
    import torch
    from torch import nn

    def block(inputs: int, outputs: int, stride: int) -> nn.Module:
        conv = nn.Conv3d(inputs, outputs, 3, stride, padding=1)
        return nn.Sequential(conv, nn.InstanceNorm3d(outputs, affine=True), nn.LeakyReLU())

    class TwoLevels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.down = block(1, 8, 1), block(8, 16, 2)
            self.up, self.head = nn.ConvTranspose3d(16, 8, 2, 2), nn.Conv3d(16, 5, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.stem(x)
            logits: torch.Tensor = self.head(torch.cat((y, self.up(self.down(y))), 1))
            return logits

    torch.manual_seed(0)
    return TwoLevels()


@pytest.fixture(
    scope="module",
    params=["two levels", pytest.param("stunet", marks=pytest.mark.slow)],  # which torch.compile takes minutes for
)
def ready(request: pytest.FixtureRequest, tiny: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Ready:
    """A network whose convolutions the rewrites unroll."""
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("runtimes")
    weights = folder / "weights.safetensors"
    build: Callable[[Path], Any]
    with steps_in_process():
        if request.param == "stunet":
            spec = replace(tiny, input_shape=(1, 1, 64, 64, 64))
            shape, build = spec.input_shape, functools.partial(bench_targets.restore, spec)
            artifact = pipeline.export(spec, pipeline.Settings(folder)).folder
            write_weights(spec, 0, weights, subprocesses.silent)
        else:
            shape, build = (1, 1, 16, 64, 64), two_levels
            module = make_two_levels().eval()
            save_file(module.state_dict(), weights)
            artifact = segonnx.export(module, torch.zeros(shape), folder / "artifact").folder
    x = synthetic_inputs.make("phantom", shape, "CT")
    return Ready(Runnable(shape, build, weights, artifact / MODEL, artifact / CPU_MODEL), x)


def check(name: str, ready: Ready, options: Options, progress: subprocesses.Progress) -> dict[str, Any]:
    """Runs in a process of its own, as runtimes do."""
    runtime = runtimes.get(name)()
    runtime.load(ready.runnable, options)
    runtime.prepare(ready.x)
    output = runtime.run(ready.x)
    first = output.copy()
    later = runtime.run(-ready.x)
    second = later.copy()
    third = runtime.run(ready.x).copy()
    answer = {
        "outputs": (first, second, third),
        "settings": runtime.describe(),
        "reused": np.shares_memory(output, later),
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
            known[key] = subprocesses.call(check, name, ready, key[1]).value
        return known[key]

    return get


PLAIN = ("ort-stock", "openvino-stock")
NAMES = [
    pytest.param(name, marks=pytest.mark.slow if name == "compile-channels-last" else ())  # it compiles once more
    for name in runtimes.NAMES
]


@pytest.mark.parametrize("name", PLAIN)
def test_the_plain_graph_gives_eagers_logits_on_noise(name: str, ready: Ready) -> None:
    """On other inputs both lose digits in their InstanceNormalization: docs/decisions/0003."""
    noise = replace(ready, x=synthetic_inputs.make("noise", ready.x.shape, "CT"))
    eager, plain = (subprocesses.call(check, one, noise, Options(1)).value["outputs"][0] for one in ("eager", name))
    assert compare(eager, plain).within(TOLERANCES["float32"])


@pytest.mark.parametrize("name", [one for one in NAMES if one.values[0] not in PLAIN])
def test_a_runtime_gives_eagers_logits(name: str, answers: Callable[[str], dict[str, Any]]) -> None:
    first, second, third = answers(name)["outputs"]
    assert first.dtype == np.float32
    assert compare(answers("eager")["outputs"][0], first).within(TOLERANCES["float32"])
    assert compare(answers("eager")["outputs"][1], second).within(TOLERANCES["float32"])
    assert np.array_equal(first, third)
    assert not compare(first, second).within(TOLERANCES["float32"])


def doubled(weights: Path) -> Any:
    """A module of a user's own: its weight doubles the input."""
    import torch

    module = torch.nn.Conv2d(3, 3, 1, bias=False).eval()
    module.weight.data = torch.eye(3).reshape(3, 3, 1, 1) * float(weights.read_text())
    return module


@pytest.mark.parametrize("name", ["eager", "eager-channels-last"])
def test_any_module_can_be_run(name: str, tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("2")
    x = synthetic_inputs.make("noise", (1, 3, 8, 8), "RGB")
    mine = Ready(Runnable(x.shape, doubled, tmp_path / "weights"), x)
    assert np.array_equal(subprocesses.call(check, name, mine, Options(1)).value["outputs"][0], 2 * x)


@pytest.mark.parametrize("name", NAMES)
def test_a_runtime_says_what_matters(name: str, answers: Callable[..., dict[str, Any]]) -> None:
    settings = answers(name)["settings"]
    assert {"dtype", "outputs", "spinning", "version"} <= settings.keys()
    assert settings["dtype"] == "float32"
    assert all(type(value) is str for value in settings.values())  # a library's own class would need the library
    assert ("channels last" in settings.get("memory_format", "")) == ("channels-last" in name)
    own = {"ort": {"graph_optimization", "arena"}, "openvino": {"streams", "threads"}}
    assert own.get(name.removesuffix("-stock"), {"memory_format"}) <= settings.keys()


@pytest.mark.parametrize("name", ["ort", "openvino"])
def test_outputs_are_reused_or_not_as_asked(name: str, answers: Callable[..., dict[str, Any]]) -> None:
    bound, fresh = answers(name), answers(name, outputs="fresh")
    assert bound["reused"]
    assert bound["settings"]["outputs"] == "bound once and reused"
    assert not fresh["reused"]
    assert fresh["settings"]["outputs"] == "fresh for every run"
    assert np.array_equal(bound["outputs"][0], fresh["outputs"][0])


@pytest.mark.parametrize(
    "name", ["eager", "eager-channels-last", pytest.param("compile", marks=pytest.mark.slow), "ort", "openvino"]
)
def test_a_profile_tells_operators_by_kind(name: str, answers: Callable[..., dict[str, Any]]) -> None:
    profile = answers(name, profile=True)["profile"]
    assert all(one.seconds > 0 and one.calls > 0 and one.kind in operator_kinds.KINDS for one in profile)
    assert [one.seconds for one in profile] == sorted((one.seconds for one in profile), reverse=True)
    assert len({one.operator for one in profile}) == len(profile)
    assert any(one.kind == "convolution" for one in profile)
    known = sum(one.seconds for one in profile if one.kind != operator_kinds.OTHER)
    assert known > 0.9 * sum(one.seconds for one in profile)


@pytest.mark.parametrize("name", PLAIN)
def test_the_plain_graph_is_another(name: str, answers: Callable[..., dict[str, Any]]) -> None:
    ours, plain = (answers(one, profile=True)["profile"] for one in (name.removesuffix("-stock"), name))
    calls = [sum(one.calls for one in profile if one.kind == "convolution") for profile in (ours, plain)]
    assert calls[0] > calls[1] > 0


def test_a_profile_names_fused_kernels(answers: Callable[..., dict[str, Any]]) -> None:
    fused = [one for one in answers("compile", profile=True)["profile"] if one.operator.startswith("cpp_fused")]
    assert fused
    assert {one.kind for one in fused} == {"fused"}
    assert not any(one.operator[-1].isdigit() for one in fused)


def test_options_reach_onnx_runtime(ready: Ready, answers: Callable[..., dict[str, Any]]) -> None:
    import onnx

    operators = [node.op_type for node in onnx.load(str(ready.runnable.cpu_model), load_external_data=False).graph.node]
    plain = answers("ort", profile=True, graph_optimization="disabled", spinning=False, arena=False)
    settings = {"graph_optimization": "disabled", "spinning": "off", "arena": "off"}
    assert settings.items() <= plain["settings"].items()
    calls = {one.operator: one.calls for one in plain["profile"]}
    assert calls["Conv"] == operators.count("Conv")
    assert calls["LeakyRelu"] == operators.count("LeakyRelu")
    fused = {one.operator: one.calls for one in answers("ort", profile=True)["profile"]}
    assert "LeakyRelu" not in fused or fused != calls


def serve_once(name: str, ready: Ready, options: Options, folder: Path) -> tuple[Loaded, str]:
    """Load in the bench's own worker; what that answered, and what it printed."""
    np.save(folder / "x.npy", ready.x)
    job = Job(runtimes.get(name), ready.runnable, options, (0,), folder / "x.npy", folder / "logits.npy", folder)
    with subprocesses.Worker(serve, job) as worker:
        status, loaded = worker.receive(name)
        assert status == "ok", loaded
        return loaded, worker.log()


@pytest.mark.usefixtures("fresh_processes")
@pytest.mark.parametrize(("spinning", "says"), [(False, "off"), (True, "OpenMP's default")])
def test_torchs_openmp_hears_whether_to_spin(
    spinning: bool, says: str, ready: Ready, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("OMP_DISPLAY_ENV", "VERBOSE")  # OpenMP prints what it has read
    loaded, printed = serve_once("eager", ready, Options(1, spinning=spinning), tmp_path)
    assert loaded.settings["spinning"] == says
    assert "GOMP_SPINCOUNT" in printed
    assert ("GOMP_SPINCOUNT = '0'" in printed) == (not spinning)


@pytest.mark.usefixtures("fresh_processes")
@pytest.mark.parametrize("name", ["eager", "ort", "openvino"])
def test_a_runtime_prints_nothing(name: str, ready: Ready, tmp_path: Path) -> None:
    assert serve_once(name, ready, Options(1), tmp_path)[1] == ""


@pytest.mark.usefixtures("fresh_processes")
def test_openvino_calls_nobody(ready: Ready) -> None:
    before, after = subprocesses.call(calls_out, ready).value
    assert before == []
    assert after == ["socket.connect"]


def calls_out(ready: Ready, progress: subprocesses.Progress) -> tuple[list[str], list[str]]:
    """Connections made and programs started by a runtime, and then by a connection that is made on purpose."""
    seen: list[str] = []
    telling = {"socket.connect", "socket.sendto", "socket.getaddrinfo", "subprocess.Popen", "os.posix_spawn", "os.fork"}
    sys.addaudithook(lambda event, _: seen.append(event) if event in telling else None)
    runtime = runtimes.get("openvino")()
    runtime.load(ready.runnable, Options(1))
    runtime.prepare(ready.x)
    runtime.run(ready.x)
    runtime.close()
    before = seen.copy()
    with socket.socket() as nobody:
        nobody.connect_ex(("127.0.0.1", 1))
    return before, seen[len(before) :]


@pytest.mark.parametrize("passes", [0, 2])
def test_onnx_runtimes_profile_leaves_no_file(passes: int, ready: Ready, tmp_path: Path) -> None:
    during, after = subprocesses.call(profile_files, ready, passes, tmp_path).value
    assert len(during) == 1
    assert after == []


def profile_files(
    ready: Ready, passes: int, folder: Path, progress: subprocesses.Progress
) -> tuple[list[str], list[str]]:
    """Names in the folder for temporary files while ONNX Runtime is loaded, and once it's closed."""
    tempfile.tempdir = str(folder)
    runtime = runtimes.get("ort")()
    runtime.load(ready.runnable, Options(1, profile=True))
    runtime.prepare(ready.x)
    runtime.run(ready.x)
    during = [one.name for one in folder.iterdir()]
    if passes:
        assert runtime.profile(ready.x, passes)
    runtime.close()
    return during, [one.name for one in folder.iterdir()]


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
        ("ConvTranspose", "convolution"),
        ("aten::conv_transpose3d", "convolution"),
        ("mkldnn::_convolution_transpose_pointwise", "convolution"),
        ("aten::mkldnn_convolution", "convolution"),
        ("Convert", "data movement"),
        ("ReorderInput", "data movement"),
        ("aten::copy_", "data movement"),
        ("aten::addmm", "matrix product"),
        ("MatMul", "matrix product"),
        ("Einsum", "matrix product"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "matrix product"),
        ("InstanceNormalization", "normalisation"),
        ("aten::native_batch_norm", "normalisation"),
        ("aten::_batch_norm_impl_index", "normalisation"),
        ("Resize", "resampling"),
        ("aten::upsample_bilinear2d", "resampling"),
        ("aten::resize_", "data movement"),
        ("aten::leaky_relu_", "activation"),
        ("QuickGelu", "activation"),
        ("ReduceMean", "reduction"),
        ("aten::sum", "reduction"),
        ("MaxPool", "reduction"),
        ("Add", "elementwise"),
        ("Eltwise", "elementwise"),
        ("Subgraph", "fused"),
        ("CompiledFxGraph", "fused"),
        ("cpp_fused__native_batch_norm_legit_convolution_relu", "fused"),
        ("Banana", "other"),
    ],
)
def test_kinds(operator: str, kind: str) -> None:
    assert operator_kinds.kind(operator) == kind
    assert kind in operator_kinds.KINDS


@pytest.mark.parametrize("runtime", [runtimes.get(name) for name in runtimes.NAMES])
def test_a_runtime_is_here_or_says_what_to_install(runtime: type[Runtime], monkeypatch: pytest.MonkeyPatch) -> None:
    assert runtime.missing() is None
    if not runtime.name.startswith("ort"):
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
        assert "pip install" in (runtime.missing() or "")


def test_compile_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert "C++ compiler" in (runtimes.get("compile").missing() or "")


def test_bf16_computes_in_bf16(ready: Ready, answers: Callable[[str], dict[str, Any]]) -> None:
    logits = subprocesses.call(run_bf16, ready).value
    difference = compare(answers("eager")["outputs"][0], logits)
    assert 1e-3 < difference.rms_rel_error < TOLERANCES["bfloat16"].rms_rel_error
    assert difference.within(TOLERANCES["bfloat16"])


def run_bf16(ready: Ready, progress: subprocesses.Progress) -> synthetic_inputs.Array:
    runtime = runtimes.get("eager")()
    runtime.load(ready.runnable, Options(2, bf16=True))
    assert runtime.describe()["dtype"] == "bfloat16 autocast"
    return runtime.run(ready.x)
