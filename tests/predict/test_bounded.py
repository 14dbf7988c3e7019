"""A stranger's graph runs in a process that has bounds on memory and time, whatever it asks for."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

from segonnx.artifacts import layout, manifest
from segonnx.core.subprocesses import Bounds
from segonnx.errors import CheckFailed, ResourceError, StageError
from segonnx.predict import bounded, config, files, memory
from segonnx.predict.predictor import Artifact
from tests.conftest import ROOT, message, run
from tests.predict.conftest import SHAPE, SPACING, save, volume

# A limit of few bytes holds for what a process takes more, and a copy has room of its own.
copied = pytest.mark.usefixtures("copied_workers")

HUGE = 2**30
"""So many float32 are 4 GiB."""
MEMORY = 2 * 10**9
TIMEOUT_S = 3.0


def _constant(name: str, value: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value, np.int64), name)


def _value(name: str, shape: list[int] | None, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _graph(kind: str, taken: list[int], given: list[int]) -> onnx.GraphProto:
    """A graph that ONNX's checker passes, and that no machine can run, or that gives what it doesn't declare."""
    node, constants = helper.make_node, [_constant("given", given), _constant("huge", [HUGE])]
    scalar = node("ReduceMax", ["input"], ["scalar"], keepdims=0)
    end = [node("ReduceMax", ["big"], ["largest"], keepdims=0), node("Expand", ["largest", "given"], ["logits"])]
    zero = helper.make_tensor("zero", TensorProto.FLOAT, [1], [0.0])
    if kind == "loop":
        body = helper.make_graph(
            [node("Identity", ["go"], ["on"]), node("Neg", ["before"], ["after"])], "body",
            [_value("turn", [], TensorProto.INT64), _value("go", [], TensorProto.BOOL), _value("before", [])],
            [_value("on", [], TensorProto.BOOL), _value("after", [])],
        )  # fmt: skip
        constants.append(_constant("turns", 2**62))
        nodes = [scalar, node("Loop", ["turns", "", "scalar"], ["big"], body=body), *end]
    elif kind == "scan":  # a hundred million turns
        body = helper.make_graph(
            [node("Neg", ["state"], ["next"]), node("Identity", ["state"], ["seen"])], "body",
            [_value("state", []), _value("item", [], TensorProto.BOOL)], [_value("next", []), _value("seen", [])],
        )  # fmt: skip
        items = node("ConstantOfShape", ["many"], ["items"], value=helper.make_tensor("", TensorProto.BOOL, [1], [1]))
        constants.append(_constant("many", [10**8]))
        nodes = [scalar, items, node("Scan", ["scalar", "items"], ["big", "all"], body=body, num_scan_inputs=1), *end]
    elif kind == "if":
        grown = helper.make_graph([node("Expand", ["scalar", "huge"], ["grown"])], "grown", [], [_value("grown", None)])
        same = helper.make_graph([node("Identity", ["scalar"], ["same"])], "same", [], [_value("same", None)])
        asks = [node("Sub", ["scalar", "scalar"], ["none"]), node("Equal", ["none", "none"], ["yes"])]
        nodes = [scalar, *asks, node("If", ["yes"], ["big"], then_branch=grown, else_branch=same), *end]
    elif kind == "constant":  # which the runtime computes when it loads the graph
        nodes = [
            node("ConstantOfShape", ["huge"], ["zeros"], value=zero), node("ReduceMax", ["zeros"], ["z"], keepdims=0),
            scalar, node("Add", ["scalar", "z"], ["big"]), *end,
        ]  # fmt: skip
    elif kind == "expand":
        nodes = [scalar, node("Expand", ["scalar", "huge"], ["big"]), *end]
    elif kind == "tile":
        constants.append(_constant("one", [1]))
        nodes = [scalar, node("Reshape", ["scalar", "one"], ["flat"]), node("Tile", ["flat", "huge"], ["big"]), *end]
    elif kind == "range":
        constants += [_constant("start", 0), _constant("step", 1)]
        cast = [node("Sub", ["scalar", "scalar"], ["none"]), node("Cast", ["none"], ["whole"], to=TensorProto.INT64)]
        constants.append(_constant("most", HUGE))
        nodes = [
            scalar, *cast, node("Add", ["whole", "most"], ["stop"]), node("Range", ["start", "stop", "step"], ["r"]),
            node("Cast", ["r"], ["big"], to=TensorProto.FLOAT), *end,
        ]  # fmt: skip
    elif kind == "resize":
        sizes = [*taken[:2], *(size * 100 for size in taken[2:])]
        constants.append(_constant("sizes", sizes))
        nodes = [node("Resize", ["input", "", "", "sizes"], ["big"], mode="nearest"), *end]
    elif kind == "another shape":
        constants.append(_constant("cut", [*given[:2], 9]))
        shape = [node("Shape", ["input"], ["shape"], start=3), node("Concat", ["cut", "shape"], ["other"], axis=0)]
        nodes = [scalar, *shape, node("Expand", ["scalar", "other"], ["logits"])]
    else:
        assert kind == "not a number"
        nodes = [
            scalar, node("Sub", ["scalar", "scalar"], ["none"]), node("Div", ["none", "none"], ["big"]),
            node("Expand", ["big", "given"], ["logits"]),
        ]  # fmt: skip
    return helper.make_graph(nodes, "g", [_value("input", taken)], [_value("logits", given)], constants)


def _with(hand: Path, target: Path, kind: str) -> Path:
    """A copy of the artifact with another graph, all hashes new."""
    artifact = shutil.copytree(hand, target / "artifact")
    content = json.loads((artifact / layout.MANIFEST).read_bytes())
    graph = _graph(kind, content["inputs"][0]["shape"], content["outputs"][0]["shape"])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    data = model.SerializeToString()
    (artifact / layout.MODEL).write_bytes(data)
    content["files"][layout.MODEL] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    del content["cpu_graph"], content["files"][layout.CPU_MODEL]
    (artifact / layout.CPU_MODEL).unlink()
    (artifact / layout.MANIFEST).write_bytes(manifest.seal(content))
    return artifact


def _predict(artifact: Path, folder: Path, bounds: Bounds) -> list[files.Predicted]:
    """What ``segonnx predict`` does once the artifact is verified."""
    content = manifest.read(artifact)
    checked = bounded.Verified(artifact, content, config.read(content, artifact))
    save(volume(), folder / "ct.nii.gz")
    options = files.FileOptions()
    found = bounded.predict(
        (checked, None), folder / "ct.nii.gz", folder / "labels.nii.gz", options, threads=1, bounds=bounds,
        progress=lambda _: None,
    )  # fmt: skip
    return list(found)


@copied
@pytest.mark.parametrize("kind", ["constant", "expand", "if", "tile", "range", "resize"])
def test_a_graph_that_asks_for_more_memory_than_it_may_take_is_one_line(kind: str, hand: Path, tmp_path: Path) -> None:
    artifact = _with(hand, tmp_path, kind)
    onnx.checker.check_model(str(artifact / layout.MODEL), full_check=True)
    with pytest.raises(ResourceError, match="the memory ran out") as caught:
        _predict(artifact, tmp_path, Bounds(memory=MEMORY))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "labels.nii.gz").exists()


@copied
@pytest.mark.parametrize("kind", ["loop", pytest.param("scan", marks=pytest.mark.slow)])
def test_a_graph_that_takes_longer_than_it_may_is_ended(kind: str, hand: Path, tmp_path: Path) -> None:
    artifact = _with(hand, tmp_path, kind)
    with pytest.raises(StageError, match="a window took more than 3 s: --timeout allows more"):
        _predict(artifact, tmp_path, Bounds(timeout=TIMEOUT_S, memory=MEMORY))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifact", "ct.nii.gz"]


@pytest.mark.parametrize(
    ("kind", "said"), [("another shape", r"gives float32 \(1, 3, 9, "), ("not a number", "aren't finite numbers")]
)
def test_a_graph_that_gives_something_else_than_its_manifest_says_is_refused(
    kind: str, said: str, hand: Path, tmp_path: Path
) -> None:
    artifact = Artifact.verified(copy := _with(hand, tmp_path, kind), manifest.read(copy), threads=1)
    with pytest.raises(CheckFailed, match=said):
        artifact.predict(volume(), SPACING)


def test_the_command_bounds_a_graph_by_itself(hand: Path, tmp_path: Path) -> None:
    save(volume(), tmp_path / "ct.nii.gz")
    artifact = _with(hand, tmp_path, "loop")
    done = run("predict", artifact, tmp_path / "ct.nii.gz", tmp_path / "labels.nii.gz")
    assert done.returncode == 1
    assert message(done).startswith("segonnx: a window took more than ")
    assert "\n" not in message(done)
    for command in (["verify", artifact], ["pack", artifact, "--format", "zip", "-o", tmp_path / "a.zip"]):
        held = run(*command, "--max-memory", "1kB")
        assert held.returncode in (1, 2) and held.stdout == ""  # Python has several words for it
        assert "\n" not in message(held)


@copied
def test_cases_come_one_after_another_from_one_process(hand: Path, loaded: Artifact, tmp_path: Path) -> None:
    for case in (0, 1):
        save(volume(case), tmp_path / "in" / f"case_{case}_0000.nii.gz")
    done = run("predict", hand, tmp_path / "in", tmp_path / "out", "-v")
    assert done.returncode == 0, done.stderr
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == ["case_0", "case_1"]
    assert done.stderr.count(" started") == 2  # of the check and of the prediction


def test_an_interrupt_ends_the_process_and_leaves_nothing(hand: Path, tmp_path: Path) -> None:
    save(volume(), tmp_path / "ct.nii.gz")
    artifact = _with(hand, tmp_path, "loop")
    words = ["predict", artifact, tmp_path / "ct.nii.gz", tmp_path / "labels.nii.gz", "--timeout", "100", "-v"]
    command = [sys.executable, "-m", "segonnx", *map(str, words)]
    # A shell starts its background jobs deaf to Ctrl-C, and so would be what these tests start.
    hear = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=hear) as running:  # noqa: PLW1509
        assert running.stderr is not None
        started = (line for line in running.stderr if line.endswith(" started\n"))
        next(started)
        next(started)
        worker = psutil.Process(running.pid).children()[-1]
        while worker.cpu_times().user < 2:  # until it is in the loop, or about to
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        said = running.stderr.read()
    assert running.returncode == 130
    assert said.splitlines()[-1] == "segonnx: interrupted"
    assert "Traceback" not in said
    assert not worker.is_running()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifact", "ct.nii.gz"]


def test_memory_is_counted_by_the_window(loaded: Artifact) -> None:
    shape = (1, *SHAPE)
    ordinary = memory.needed(shape, SPACING, loaded.config)
    assert ordinary < 10**7
    # A flat image, whose voxels are few, and whose windows are deep.
    flat = [1, 1, 1, 1]
    depth = loaded.config.transpose_forward[0]
    for axis in {0, 1, 2} - {depth}:
        flat[1 + axis] = 2000
    voxels = memory.needed((1, 1, 2000, 2000), (1e9, 1e9, 1e9), loaded.config)
    assert voxels == float("inf") or voxels > 10**12  # and one whose voxels are large
    held = 4 * (len(loaded.config.label_values) + 1) * loaded.config.window[0] * 2000**2
    assert memory.needed(flat, loaded.config.spacing, loaded.config) > held
