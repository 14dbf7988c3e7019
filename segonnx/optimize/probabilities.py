"""The probabilities instead of the logits."""

from __future__ import annotations

import onnx_ir as ir

from segonnx.optimize.base import invalid
from segonnx.optimize.builder import Builder


class ProbabilitiesPass(ir.passes.InPlacePass):
    """Put a Softmax over the classes behind the graph's output, or a Sigmoid where each is decided by itself.

    requires: a first output of logits, (N, classes, ...).
    ensures: that output is its probabilities, of the same shape and type. The graph is valid; whatever computes the
        logits stays as it is.

    Args:
        name: the new output's.
        exclusive: of the classes one wins.
    """

    def __init__(self, name: str, *, exclusive: bool) -> None:
        super().__init__()
        self._name, self._exclusive = name, exclusive

    def requires(self, model: ir.Model) -> None:
        if not model.graph.outputs or model.graph.outputs[0].dtype != ir.DataType.FLOAT:
            raise ir.passes.PreconditionError("probabilities are of float32 logits, which the first output must hold")

    def ensures(self, model: ir.Model) -> None:
        if (broken := invalid(model.graph)) is not None:
            raise ir.passes.PostconditionError(f"the graph that gives probabilities isn't valid: {broken}")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        logits = graph.outputs[0]
        build = Builder(graph)
        found = build("Softmax", logits, axis=1) if self._exclusive else build("Sigmoid", logits)
        graph.extend(build.nodes)
        logits.name = f"{self._name}_logits"
        found.name, found.type, found.shape = self._name, logits.type, logits.shape
        graph.outputs[0] = found
        return ir.passes.PassResult(model, True)
