"""From the converted graph to the ONNX file that ships, and the checks of that file that need no runtime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from segonnx.artifacts.layout import MODEL
from segonnx.core.subprocesses import Progress
from segonnx.errors import ParityError
from segonnx.exporters import accounting
from segonnx.exporters.accounting import Account
from segonnx.exporters.activation import Activation
from segonnx.exporters.provenance import Origin

EXTERNAL_BYTES = 2**30
"""Weights larger than this stay in one external file: a protobuf ends at 2 GB, and all of it is held in memory."""


@dataclass(frozen=True)
class Converted:
    """What the conversion wrote.

    Attributes:
        opset: the version of the standard operators.
        ir_version: the version of the file's format.
        operators: how often each operator stands in the graph.
        origins: where each initializer comes from.
        rewrites: the passes that changed the graph, in order.
        parameters: the names of the network's parameters.
        unused: patterns of the names of those that inference doesn't use, with the reason.
        inputs: the names of the graph's inputs, the image's first.
        outputs: the names of the graph's outputs, the segmentation's first.
        activation: what the network ends in, where that makes probabilities.
    """

    opset: int
    ir_version: int
    operators: dict[str, int]
    origins: dict[str, Origin]
    rewrites: tuple[str, ...]
    parameters: tuple[str, ...]
    unused: dict[str, str]
    inputs: tuple[str, ...] = ("input",)
    outputs: tuple[str, ...] = ("logits",)
    activation: Activation | None = None


def assemble(
    converted_path: Path, converted: Converted, weights_path: Path, artifact: Path, progress: Progress
) -> Account:
    """Move the converted model into the artifact, check the graph, and account for every parameter.

    Weights of up to ``EXTERNAL_BYTES`` move into ``model.onnx``.

    Raises:
        ParityError: the file isn't valid ONNX, or doesn't hold just the network's parameters.
    """
    import onnx

    data_path = converted_path.with_name(f"{converted_path.name}.data")
    path = artifact / MODEL
    if data_path.exists() and data_path.stat().st_size > EXTERNAL_BYTES:
        progress("moving the weights")
        model = onnx.load(str(converted_path), load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = f"{MODEL}.data"
        data_path.rename(artifact / f"{MODEL}.data")
    else:
        model = onnx.load(str(converted_path))
    _rename_output(model.graph, converted.outputs[0])
    onnx.save(model, str(path))
    progress("checking the graph")
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except onnx.checker.ValidationError as error:
        raise ParityError(f"the converted graph isn't valid ONNX: {error}") from error
    graph = onnx.load(str(path), load_external_data=False).graph
    names = [value.name for value in (*graph.input, *graph.output)]
    if names != [*converted.inputs, *converted.outputs]:
        expected = [*converted.inputs, *converted.outputs]
        raise ParityError(f"the graph's inputs and outputs are called {names}, expected {expected}")
    return accounting.account(path, weights_path, converted.parameters, converted.origins, converted.unused, progress)


def _rename_output(graph: onnx.GraphProto, name: str) -> None:  # type: ignore[name-defined]  # noqa: F821
    """Call the graph's first output by a name, which says what was found that it holds."""
    if graph.output[0].name == name:
        return
    old, graph.output[0].name = graph.output[0].name, name
    for node in graph.node:
        for names in (node.input, node.output):
            for i, used in enumerate(names):
                if used == old:
                    names[i] = name
