"""The labels instead of the logits: a byte per voxel for four per voxel and class."""

from __future__ import annotations

import onnx_ir as ir

from segonnx.optimize.base import invalid
from segonnx.optimize.builder import Builder


class LabelsPass(ir.passes.InPlacePass):
    """Put an ArgMax over the classes behind the graph's output; with one class, whether its value is above a level.

    requires: a first output (N, classes, spatial...) of logits or probabilities.
    ensures: that output is (N, spatial...) of uint8, or of uint16 for more than 256 classes. Of classes that tie it is
        the first. The graph is valid; whatever computes the logits stays as it is.

    Args:
        name: the new output's.
        above: the level of one class: 0 of logits, 0.5 of probabilities.
    """

    def __init__(self, name: str, above: float = 0.0) -> None:
        super().__init__()
        self._name, self._above = name, above

    def requires(self, model: ir.Model) -> None:
        shapes = [value.shape for value in model.graph.outputs]
        if not shapes or shapes[0] is None or len(shapes[0]) < 3 or not isinstance(shapes[0][1], int):
            raise ir.passes.PreconditionError(f"labels are of an output (N, classes, spatial...), not of {shapes}")

    def ensures(self, model: ir.Model) -> None:
        if (broken := invalid(model.graph)) is not None:
            raise ir.passes.PostconditionError(f"the graph that gives labels isn't valid: {broken}")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        logits = graph.outputs[0]
        assert logits.shape is not None
        batch, classes, *spatial = logits.shape
        assert isinstance(classes, int)
        kind = ir.DataType.UINT8 if classes <= 256 else ir.DataType.UINT16
        build = Builder(graph)
        if classes == 1:
            only = build("Squeeze", logits, build.integers(1))
            winners = build("Greater", only, build.number(self._above))
        else:
            winners = build("ArgMax", logits, axis=1, keepdims=0, select_last_index=0)
        labels = build("Cast", winners, to=int(kind))
        graph.extend(build.nodes)
        logits.name = f"{self._name}_logits"
        labels.name, labels.type, labels.shape = self._name, ir.TensorType(kind), ir.Shape([batch, *spatial])
        graph.outputs[0] = labels
        return ir.passes.PassResult(model, True)
