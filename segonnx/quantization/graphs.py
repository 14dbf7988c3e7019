"""The graph of a quantized artifact: its layers that may be quantized, the ranges of its values, and int8 put into it.

Convolutions get QuantizeLinear and DequantizeLinear around them, which ONNX Runtime and OpenVINO fuse: weights are int8
by output channel, activations uint8 with one scale each. So does what lies between them. All else, and the head, stays
float32.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segonnx.artifacts.layout import MODEL
from segonnx.core.ort_session import SessionSettings, model_bytes, open_session
from segonnx.errors import InputError
from segonnx.predict.resampling import AnyArray

if TYPE_CHECKING:
    import onnx

MAX_BYTES = 2 * 10**9
"""The most bytes of a model that is quantized: it passes through one protobuf."""
THIN = 16
"""A 3D convolution of fewer channels is no faster in int8, and may be many times slower."""
BETWEEN = ("Add", "Concat", "MaxPool", "Relu", "Resize")
"""Operators that compute in 8 bits where their values are: else each value would be widened for them, and cut again."""

Ranges = dict[str, tuple[float, float]]
"""The least and the largest value of each tensor that is quantized."""


@dataclass(frozen=True)
class Candidate:
    """A graph that may be quantized.

    Attributes:
        path: the file, in float32, its constants folded.
        layers: for the name of each layer's weight, the names of its nodes; the head isn't among them.
        head: names of the layers that stay float32: those that the graph ends in, and 3D ones of few channels.
    """

    path: Path
    layers: Mapping[str, tuple[str, ...]]
    head: tuple[str, ...]


def candidate(artifact: Path, work: Path) -> Candidate:
    """The graph of an artifact that may be quantized: the plain one.

    Args:
        artifact: the artifact.
        work: gets the file.

    Raises:
        InputError: it holds no convolution but its head, or is too large.
    """
    import onnx
    import onnx_ir as ir
    from onnx_ir.passes import common

    if (size := model_bytes(artifact / MODEL)) > MAX_BYTES:
        raise InputError(
            f"{artifact} holds {size / 1e9:.1f} GB; models of up to {MAX_BYTES / 1e9:.0f} GB are quantized"
        )
    raw, path = work / "raw.onnx", work / "plain.onnx"
    _fold(artifact / MODEL, raw)
    model = ir.load(raw)
    common.ShapeInferencePass()(model)
    weights = {node.outputs[0].name: _weight(node) for node in model.graph if node.op_type == "Conv"}
    ir.save(model, work / "whole.onnx")
    _fold(work / "whole.onnx", path)
    proto = onnx.load(path)
    heads, thin = set(_head(proto.graph)), set(_thin(proto.graph))
    if {i for i, node in enumerate(proto.graph.node) if node.op_type == "Conv"} - heads - thin:
        heads |= thin
    layers: dict[str, list[str]] = {}
    ends: dict[str, None] = {}
    for i, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}_{i}"
        if node.op_type != "Conv":
            continue
        layer = weights.get(node.output[0]) or node.input[1]
        if i in heads:
            ends[layer] = None
        else:
            layers.setdefault(layer, []).append(node.name)
    onnx.save(proto, path)
    found = {layer: tuple(nodes) for layer, nodes in layers.items() if layer not in ends}
    if not found:
        raise InputError(f"{artifact} has no convolution besides its head: nothing to quantize")
    return Candidate(path, found, tuple(ends))


def _weight(node: Any) -> str | None:
    """The largest initializer that a convolution's weight is made of: the layer's own weight."""
    waiting, found, seen = [node.inputs[1]], [], set()
    while waiting:
        value = waiting.pop()
        if value is None or value.name in seen:
            continue
        seen.add(value.name)
        maker = value.producer()
        if maker is not None:
            waiting += list(maker.inputs)
        elif value.const_value is not None and value.const_value.dtype.name == "FLOAT":
            found.append((value.const_value.size, value.name))
    return max(found)[1] if found else None


def _head(graph: onnx.GraphProto) -> Iterator[int]:
    """The places of the convolutions from which the graph's outputs are reached without another one."""
    makers = {name: i for i, node in enumerate(graph.node) for name in node.output}
    waiting, seen = [one.name for one in graph.output], set()
    while waiting:
        place = makers.get(waiting.pop())
        if place is None or place in seen:
            continue
        seen.add(place)
        if graph.node[place].op_type in ("Conv", "ConvTranspose"):
            yield place
        else:
            waiting += list(graph.node[place].input)


def _thin(graph: onnx.GraphProto) -> Iterator[int]:
    """The places of 3D convolutions of few channels, which ONNX Runtime's int8 kernel gathers voxel by voxel."""
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for i, node in enumerate(graph.node):
        shape = shapes.get(node.input[1], []) if node.op_type == "Conv" else []
        groups = next((one.i for one in node.attribute if one.name == "group"), 1)
        if len(shape) == 5 and min(shape[:2]) < THIN and groups == 1:
            yield i


def _fold(source: Path, made: Path) -> None:
    """Write a graph with its constants folded, in ONNX's own operators."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(made)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


def ranges(candidate: Candidate, inputs: Sequence[AnyArray], work: Path) -> Ranges:
    """The least and the largest value of each tensor around a convolution, over some inputs of the network."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, name: str) -> None:
            self._name, self._inputs = name, iter(inputs)

        def get_next(self) -> dict[str, AnyArray] | None:
            x = next(self._inputs, None)
            return None if x is None else {self._name: x}

    with _quiet():
        calibrator = create_calibrator(
            str(candidate.path),
            ["Conv", *BETWEEN],
            augmented_model_path=str(work / "calibrated.onnx"),
            calibrate_method=CalibrationMethod.MinMax,
        )
        session = open_session(candidate.path)
        calibrator.collect_data(Reader(session.get_inputs()[0].name))
        data = calibrator.compute_data()
    found = {name: (one.lowest, one.highest) for name, one in data.items()}
    return {name: (float(np.min(low)), float(np.max(high))) for name, (low, high) in found.items()}


def _in_8_bits(graph: onnx.GraphProto, convolutions: Collection[str]) -> list[str]:
    """The names of these convolutions, and of the nodes between them that take and give 8 bits, too."""
    made = {name: node for node in graph.node for name in node.output}
    users: dict[str, list[str]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node.name)
    between = {node.name: node for node in graph.node if node.op_type in BETWEEN}

    def given(node: onnx.NodeProto) -> list[str]:
        taken = node.input[:1] if node.op_type == "Resize" else node.input
        return [made[name].name if name in made else "" for name in taken]

    def used(node: onnx.NodeProto) -> list[str]:
        return users.get(node.output[0], [])

    found = set(convolutions)
    while more := {
        name
        for name, node in between.items()
        if name not in found
        and (
            found.issuperset(given(node)) or (node.op_type == "Concat" and used(node) and found.issuperset(used(node)))
        )
    }:
        found |= more
    while useless := {
        name
        for name, node in between.items()
        if name in found and node.op_type != "Relu" and found.isdisjoint(used(node))
    }:
        found -= useless
    return [node.name for node in graph.node if node.name in found]


def quantize(candidate: Candidate, found: Ranges, layers: Collection[str], path: Path) -> None:
    """Write a graph with some of its layers in int8.

    Args:
        candidate: the graph.
        found: its ranges.
        layers: the names of those that are quantized.
        path: of the file.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    model = onnx.load(candidate.path)
    nodes = _in_8_bits(model.graph, {node for layer in layers for node in candidate.layers[layer]})
    domains = {one.domain for one in model.opset_import}
    if nodes:
        as_arrays = {
            name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in found.items()
        }
        with _quiet():
            quantizer = QDQQuantizer(
                model,
                True,
                False,
                QuantType.QInt8,
                QuantType.QUInt8,  # of int8 ONNX Runtime leaves convolutions in float32 whose input others take, too
                TensorsData(CalibrationMethod.MinMax, as_arrays),
                nodes,
                [],
                ["Conv", *BETWEEN],
                {"ActivationSymmetric": False, "WeightSymmetric": True},
            )
            quantizer.quantize_model()
            quantizer.model.topological_sort()
            model = quantizer.model.model
    used = {node.domain for node in model.graph.node} | {""}
    kept = [one for one in model.opset_import if one.domain in used & (domains | {""})]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    model.ClearField("metadata_props")
    model.producer_name, model.producer_version, model.doc_string = "segonnx", "", ""
    onnx.save(model, path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantizer's advice, which it gives by the root logger."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(level)


def answers(path: Path, inputs: Sequence[AnyArray], threads: int) -> list[AnyArray]:
    """What a graph's first output is for some inputs."""
    session = open_session(path, SessionSettings(threads=threads))
    name = session.get_inputs()[0].name
    return [session.run(None, {name: x})[0] for x in inputs]


def distance(expected: Sequence[AnyArray], found: Sequence[AnyArray]) -> float:
    """How far outputs are from others: the root mean square relative to the std; of labels the part that differs."""
    parts = []
    for want, have in zip(expected, found, strict=True):
        if want.dtype != np.float32:
            parts.append(float((want != have).mean()))
            continue
        error = float(np.sqrt(np.square(want.astype(np.float64) - have).mean()))
        parts.append(error / (float(want.std()) or 1.0))
    return max(parts)
