"""The graphs of a quantized artifact: which may be quantized, the ranges of their values, and int8 put into them.

Convolutions get QuantizeLinear and DequantizeLinear around them, which ONNX Runtime and OpenVINO fuse: weights are int8
by output channel, activations int8 with one scale each. All else, and the head, stays float32.
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
PLAIN, SLICES = "plain", "slices"
"""The graph as PyTorch writes it, and the one whose 3D convolutions are 2D ones on slices of depth."""

Ranges = dict[str, tuple[float, float]]
"""The least and the largest value of each tensor that is quantized."""


@dataclass(frozen=True)
class Candidate:
    """A graph that may be quantized.

    Attributes:
        name: ``PLAIN`` or ``SLICES``.
        path: the file, in float32, its constants folded.
        layers: for the name of each layer's weight, the names of its nodes; the head isn't among them.
        head: names of the layers that the graph ends in.
        rewrites: the passes that made it.
    """

    name: str
    path: Path
    layers: Mapping[str, tuple[str, ...]]
    head: tuple[str, ...]
    rewrites: tuple[str, ...]


def candidates(artifact: Path, work: Path) -> list[Candidate]:
    """The graphs of an artifact that may be quantized.

    Args:
        artifact: the artifact, whose plain graph is taken.
        work: gets their files.

    Raises:
        InputError: it holds no convolution but its head, or is too large.
    """
    import onnx_ir as ir
    from onnx_ir.passes import common

    from segonnx.optimize import run, stable_instance_norm
    from segonnx.optimize.choices import Choices

    if (size := model_bytes(artifact / MODEL)) > MAX_BYTES:
        raise InputError(
            f"{artifact} holds {size / 1e9:.1f} GB; models of up to {MAX_BYTES / 1e9:.0f} GB are quantized"
        )
    folded = work / "folded.onnx"
    _fold(artifact / MODEL, folded)
    model = ir.load(folded)
    stable_instance_norm.restore(model)
    common.ShapeInferencePass()(model)
    slices = model.clone()
    layers = run(slices.clone(), Choices()).layers
    found = [_candidate(model, (), PLAIN, work)]
    if layers:
        how = Choices(without=("WinogradPhasesPass",), algorithms=dict.fromkeys(layers, "taps"))
        found.append(_candidate(slices, run(slices, how).passes, SLICES, work))
    if not found[0].layers:
        raise InputError(f"{artifact} has no convolution besides its head: nothing to quantize")
    return found


def _candidate(model: Any, rewrites: tuple[str, ...], name: str, work: Path) -> Candidate:
    import onnx
    import onnx_ir as ir

    weights = {node.outputs[0].name: _weight(node) for node in model.graph if node.op_type == "Conv"}
    raw, path = work / f"{name}.raw.onnx", work / f"{name}.onnx"
    ir.save(model, raw)
    _fold(raw, path)
    raw.unlink()
    proto = onnx.load(path)
    heads = set(_head(proto.graph))
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
    return Candidate(
        name,
        path,
        {layer: tuple(nodes) for layer, nodes in layers.items() if layer not in ends},
        tuple(ends),
        rewrites,
    )


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
            ["Conv"],
            augmented_model_path=str(work / "calibrated.onnx"),
            calibrate_method=CalibrationMethod.MinMax,
        )
        session = open_session(candidate.path)
        calibrator.collect_data(Reader(session.get_inputs()[0].name))
        data = calibrator.compute_data()
    found = {name: (one.lowest, one.highest) for name, one in data.items()}
    return {name: (float(np.min(low)), float(np.max(high))) for name, (low, high) in found.items()}


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

    nodes = [node for layer in layers for node in candidate.layers[layer]]
    model = onnx.load(candidate.path)
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
                QuantType.QInt8,
                TensorsData(CalibrationMethod.MinMax, as_arrays),
                nodes,
                [],
                ["Conv"],
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
