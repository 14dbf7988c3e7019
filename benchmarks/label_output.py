"""How fast a graph can decide: forms of the ArgMax over the classes, timed in turns, into docs/decisions/0070.

    python -m benchmarks.label_output

Each form is the head of a network, a pointwise convolution, and what decides behind it. Nothing else may run meanwhile.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime

from benchmarks.docs import put_block
from segonnx.core import hardware
from segonnx.core.tolerances import labels_of
from segonnx.optimize.builder import Builder

PATH = Path(__file__).resolve().parents[1] / "docs" / "decisions" / "0070-labels.md"
BLOCK_VERSION = 1
"""Raised when what this program writes, or measures, changes."""
ROUNDS = 9
TILE = 2**14
CASES = {
    "stunet-s": ((16, 64, 128, 128), 117),
    "unet-resnet18": ((32, 512, 512), 117),
    "five classes in 3D": ((32, 64, 128, 128), 5),
}
"""Channels before the head, and spatial sizes; classes."""

Form = Callable[[Builder, ir.Value, np.ndarray], ir.Value]


def _head(build: Builder, x: ir.Value, weight: np.ndarray) -> ir.Value:
    assert x.shape is not None
    return build("Conv", x, build.constant("weight", weight.reshape(*weight.shape, *[1] * (len(x.shape) - 2))))


def _small(build: Builder, labels: ir.Value) -> ir.Value:
    return build("Cast", labels, to=int(ir.DataType.UINT8))


def _sizes(x: ir.Value) -> tuple[int, ...]:
    """The shape, none of whose sizes is open."""
    assert x.shape is not None
    return x.shape.numpy()


def plain(build: Builder, x: ir.Value, weight: np.ndarray) -> ir.Value:
    """ArgMax over axis 1 of the logits."""
    return _small(build, build("ArgMax", _head(build, x, weight), axis=1, keepdims=0))


def transposed(build: Builder, x: ir.Value, weight: np.ndarray) -> ir.Value:
    """The logits transposed, so that a voxel's lie together."""
    assert x.shape is not None
    axes = len(x.shape)
    logits = build("Transpose", _head(build, x, weight), perm=[0, *range(2, axes), 1])
    return _small(build, build("ArgMax", logits, axis=axes - 1, keepdims=0))


def product(build: Builder, x: ir.Value, weight: np.ndarray) -> ir.Value:
    """The head's input transposed, and the head a matrix product whose classes come last."""
    rows = build("Transpose", build.reshape(x, weight.shape[1], -1), perm=[1, 0])
    logits = build("MatMul", rows, build.constant("weight", np.ascontiguousarray(weight.T)))
    return build.reshape(_small(build, build("ArgMax", logits, axis=1, keepdims=0)), 1, *_sizes(x)[2:])


def _in_tiles(build: Builder, x: ir.Value, decide: Callable[[ir.Value], ir.Value]) -> ir.Value:
    _, channels, *spatial = _sizes(x)
    voxels = int(np.prod(spatial))
    tiles = build.split(build.reshape(x, channels, voxels), [TILE] * (voxels // TILE), 1)
    return build.reshape(build.concat([decide(tile) for tile in tiles], 0), 1, *spatial)


def tiles(build: Builder, x: ir.Value, weight: np.ndarray) -> ir.Value:
    """Head and ArgMax on 2^14 voxels at a time, whose logits stay near the processor."""
    value = build.constant("weight", weight)
    return _in_tiles(build, x, lambda x: _small(build, build("ArgMax", build("MatMul", value, x), axis=0, keepdims=0)))


def tiles_product(build: Builder, x: ir.Value, weight: np.ndarray) -> ir.Value:
    """The same with the classes last."""
    value = build.constant("weight", np.ascontiguousarray(weight.T))

    def decide(x: ir.Value) -> ir.Value:
        logits = build("MatMul", build("Transpose", x, perm=[1, 0]), value)
        return _small(build, build("ArgMax", logits, axis=1, keepdims=0))

    return _in_tiles(build, x, decide)


def tiles_maximum(build: Builder, x: ir.Value, weight: np.ndarray) -> ir.Value:
    """The largest logit, and the first class that has it."""
    value = build.constant("weight", weight)
    classes = build.constant("classes", np.arange(len(weight), dtype=np.uint8)[:, None])
    none = build.constant("none", np.uint8(255))
    axis = build.integers(0)

    def decide(x: ir.Value) -> ir.Value:
        logits = build("MatMul", value, x)
        largest = build("Equal", logits, build("ReduceMax", logits, axis, keepdims=1))
        return build("ReduceMin", build("Where", largest, classes, none), axis, keepdims=0)

    return _in_tiles(build, x, decide)


FORMS: dict[str, Form] = {
    "logits alone": _head,
    "`ArgMax` over axis 1": plain,
    "logits transposed, `ArgMax` over the last axis": transposed,
    "head as a product with classes last, `ArgMax`": product,
    "head and `ArgMax` on tiles": tiles,
    "the same, classes last": tiles_product,
    "tiles: `ReduceMax`, `Equal`, `Where`, `ReduceMin`": tiles_maximum,
}


def session(form: Form, shape: tuple[int, ...], weight: np.ndarray) -> onnxruntime.InferenceSession:
    """The form as a graph, loaded."""
    x = ir.Value(name="x", shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 20}, name="form")
    build = Builder(graph)
    y = form(build, x, weight)
    graph.extend(build.nodes)
    logits = form is _head
    y.name, y.type = "y", ir.TensorType(ir.DataType.FLOAT if logits else ir.DataType.UINT8)
    y.shape = ir.Shape([1, *([len(weight)] if logits else []), *shape[2:]])
    graph.outputs.append(y)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = hardware.usable_cores()
    settings.log_severity_level = 3
    data = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    return onnxruntime.InferenceSession(data, settings, providers=["CPUExecutionProvider"])


def measure(shape: tuple[int, ...], classes: int, rounds: int) -> dict[str, float]:
    """Median seconds of every form, and of what NumPy takes for the labels of the logits."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((classes, shape[0]), dtype=np.float32)
    x = rng.standard_normal((1, *shape), dtype=np.float32)
    sessions = {name: session(form, x.shape, weight) for name, form in FORMS.items()}
    kinds = {name: np.float32 if form is _head else np.uint8 for name, form in FORMS.items()}
    outputs = {name: np.zeros(one.get_outputs()[0].shape, kinds[name]) for name, one in sessions.items()}
    times: dict[str, list[float]] = {name: [] for name in [*FORMS, "NumPy's argmax behind"]}
    for turn in range(rounds + 1):
        for name, one in sessions.items():
            out = outputs[name]
            binding = one.io_binding()
            binding.bind_cpu_input("x", x)
            binding.bind_output("y", "cpu", 0, kinds[name], out.shape, out.ctypes.data)
            started = time.perf_counter()
            one.run_with_iobinding(binding)
            times[name].append(time.perf_counter() - started)
            if kinds[name] is np.float32:
                started = time.perf_counter()
                expected = out.argmax(axis=1).astype(np.uint8)
                times["NumPy's argmax behind"].append(time.perf_counter() - started)
            elif turn == 0:
                assert (out == labels_of(outputs["logits alone"])).mean() > 0.9999, name
    assert np.array_equal(expected, outputs["`ArgMax` over axis 1"])
    return {name: statistics.median(seconds[1:]) for name, seconds in times.items()}


def main() -> None:
    found = {name: measure(shape, classes, ROUNDS) for name, (shape, classes) in CASES.items()}
    described = hardware.describe()
    where = f"{described['cpu']}, {hardware.usable_cores()} cores, ONNX Runtime {onnxruntime.__version__}"
    rows = [["", *found], ["---"] * (len(found) + 1)]
    rows += [[name, *(f"{1e3 * one[name]:.0f}" for one in found.values())] for name in next(iter(found.values()))]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    text = f"{where}; milliseconds, medians of {ROUNDS} turns:\n\n{table}\n"
    print(text)
    put_block(PATH, "figures", text, "benchmarks.label_output")


if __name__ == "__main__":
    main()
