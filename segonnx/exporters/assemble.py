"""From the converted graph to the ONNX file that ships, and the checks of that file that need no runtime."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from segonnx.artifacts.layout import CPU_MODEL, MODEL
from segonnx.core.subprocesses import Progress
from segonnx.errors import ParityError
from segonnx.exporters import accounting
from segonnx.exporters.accounting import Account
from segonnx.exporters.activation import Activation
from segonnx.exporters.provenance import Origin
from segonnx.exporters.rounding import Rounded

if TYPE_CHECKING:
    import onnx

EXTERNAL_BYTES = 2**30
"""Weights larger than this stay in one external file: a protobuf ends at 2 GB, and all of it is held in memory."""


@dataclass(frozen=True)
class Graph:
    """One of the graphs of a network.

    Attributes:
        operators: how often each operator stands in it.
        origins: where each initializer comes from.
        rewrites: the passes that changed it, in order.
    """

    operators: dict[str, int]
    origins: dict[str, Origin]
    rewrites: tuple[str, ...] = ()


@dataclass(frozen=True)
class Converted:
    """What the conversion wrote.

    Attributes:
        opset: the version of the standard operators.
        ir_version: the version of the file's format.
        plain: the graph as PyTorch writes it.
        parameters: the names of the network's parameters.
        unused: patterns of the names of those that inference doesn't use, with the reason.
        inputs: the names of the graph's inputs, the image's first.
        outputs: the names of the graph's outputs, the segmentation's first.
        activation: what the network ends in, where that makes probabilities.
        cpu: the graph that is rewritten for ONNX Runtime's CPU provider; None where nothing was rewritten.
        rounded: which weights are stored in 16 bits; None where all are float32.
    """

    opset: int
    ir_version: int
    plain: Graph
    parameters: tuple[str, ...]
    unused: dict[str, str]
    inputs: tuple[str, ...] = ("input",)
    outputs: tuple[str, ...] = ("logits",)
    activation: Activation | None = None
    cpu: Graph | None = None
    rounded: Rounded | None = None

    @property
    def graphs(self) -> dict[str, Graph]:
        """Each graph by the name of its file in the artifact."""
        return {MODEL: self.plain} | ({} if self.cpu is None else {CPU_MODEL: self.cpu})


def assemble(
    converted_path: Path, converted: Converted, weights_path: Path, artifact: Path, progress: Progress
) -> Account:
    """Move the converted graphs into the artifact, check them, and account for every parameter.

    Weights of up to ``EXTERNAL_BYTES`` move into ``model.onnx``; the rewritten graph then points to them there.

    Args:
        converted_path: the graph as PyTorch writes it. The rewritten one is beside it, if there is one.
        converted: what is known of both.
        weights_path: the network's weights, as they were before the conversion.
        artifact: the folder.
        progress: progress callback.

    Returns:
        Where the parameters are in ``model.onnx``.

    Raises:
        ParityError: a file isn't valid ONNX, or doesn't hold just the network's parameters.
    """
    import onnx

    data_path = converted_path.with_name(f"{converted_path.name}.data")
    large = data_path.exists() and data_path.stat().st_size > EXTERNAL_BYTES
    progress("moving the weights")
    model = onnx.load(str(converted_path), load_external_data=not large)
    if large:
        data_path.rename(artifact / f"{MODEL}.data")
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = f"{MODEL}.data"
    _rename_output(model.graph, converted.outputs[0])
    onnx.save(model, str(artifact / MODEL))
    if converted.cpu is not None:
        rewritten = onnx.load(str(converted_path.with_name(CPU_MODEL)), load_external_data=False)
        _rename_output(rewritten.graph, converted.outputs[0])
        onnx.save(rewritten, str(artifact / CPU_MODEL))
        share_weights(artifact)
    accounts = []
    for name, graph in converted.graphs.items():
        progress(f"checking the graph in {name}")
        _require_valid(artifact / name, converted)
        accounts.append(
            accounting.account(
                artifact / name,
                weights_path,
                converted.parameters,
                graph.origins,
                converted.unused,
                progress,
                converted.rounded,
            )
        )
    return accounts[0]


def share_weights(artifact: Path) -> None:
    """Let the rewritten graph find the weights where ``model.onnx``, which was written anew, has them."""
    import onnx

    places = _places(artifact / MODEL)
    rewritten = onnx.load(str(artifact / CPU_MODEL), load_external_data=False)
    for tensor in rewritten.graph.initializer:
        if tensor.external_data:
            del tensor.external_data[:]
            for key, value in places[tensor.name].items():
                tensor.external_data.add(key=key, value=str(value))
    onnx.save(rewritten, str(artifact / CPU_MODEL))


def _places(path: Path) -> dict[str, dict[str, str | int]]:
    """Where the numbers of each initializer of a model are, by its name: as its external data, in another model."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    places: dict[str, dict[str, str | int]] = {}
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        position = 0
        for tensor in model.graph.initializer:  # in the file in this order
            places[tensor.name] = {entry.key: entry.value for entry in tensor.external_data}
            if tensor.raw_data:
                position = data.find(tensor.raw_data, position)
                length = len(tensor.raw_data)
                places[tensor.name] = {"location": path.name, "offset": position, "length": length}
                position += length
    return places


def _require_valid(path: Path, converted: Converted) -> None:
    """Check that a file is valid ONNX, with the inputs and outputs that it should have.

    Raises:
        ParityError: it isn't.
    """
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except onnx.checker.ValidationError as error:
        raise ParityError(f"the converted graph isn't valid ONNX: {error}") from error
    graph = onnx.load(str(path), load_external_data=False).graph
    names = [value.name for value in (*graph.input, *graph.output)]
    if names != [*converted.inputs, *converted.outputs]:
        expected = [*converted.inputs, *converted.outputs]
        raise ParityError(f"the graph's inputs and outputs are called {names}, expected {expected}")


def _rename_output(graph: onnx.GraphProto, name: str) -> None:
    """Call the graph's first output by a name, which says what was found that it holds."""
    if graph.output[0].name == name:
        return
    old, graph.output[0].name = graph.output[0].name, name
    for node in graph.node:
        for names in (node.input, node.output):
            for i, used in enumerate(names):
                if used == old:
                    names[i] = name
