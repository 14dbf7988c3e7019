"""What an artifact gives: what the network's numbers are, and the probabilities or labels that a graph may end in."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from segonnx.core.decisions import LEVELS, Decision, Kind
from segonnx.core.subprocesses import Progress
from segonnx.core.tolerances import TOLERANCES, compare, probabilities_of
from segonnx.errors import InputError, ParityError
from segonnx.exporters.activation import Activation
from segonnx.exporters.assemble import Converted, Graph, share_weights
from segonnx.exporters.parity import DTYPE, ParityCheck, open_runnable, run
from segonnx.exporters.prepare import Values
from segonnx.exporters.settings import OutputKind
from segonnx.sources.catalog import ModelSpec

PROBABILITY_ERROR = 1e-5
"""How far the graph's probabilities may lie from those of its own logits, computed in float64."""


def require(spec: ModelSpec, output: OutputKind | None) -> None:
    """Refuse an artifact of which it is known before the export that the network can't give it.

    Args:
        spec: the network.
        output: what the artifact is to give.

    Raises:
        InputError: why.
    """
    if output == "labels":
        if spec.family == "encoder":
            raise _no_labels(spec, "it is an encoder, whose output isn't one of voxels")
        if spec.described.get("inference", {}).get("regions"):
            raise _no_labels(spec, "its regions overlap, and a voxel that is in several has no one label")
        if spec.overlapping and spec.num_classes > 1:
            raise _no_labels(spec, "its classes, each with a sigmoid, overlap, and a voxel may be in several")
    if output == "probabilities" and spec.family == "encoder":
        raise InputError(f"{spec.name} gives no probabilities: it is an encoder, whose output isn't one of voxels")


def _no_labels(spec: ModelSpec, why: str) -> InputError:
    instead = "leave out result='labels'" if spec.family == "module" else "export it with --output logits"
    return InputError(f"{spec.name} gives no labels: {why}; {instead}")


def settle(spec: ModelSpec, values: Values, activation: Activation | None, output: OutputKind | None) -> ModelSpec:
    """Find out what the network's numbers are, and how labels follow from them.

    Args:
        spec: the network, and what is known of it.
        values: what its outputs on the test inputs are like.
        activation: what its graph ends in.
        output: what the artifact is to give.

    Returns:
        The spec, with ``gives`` and ``overlapping`` filled in.

    Raises:
        InputError: it can't be found out, or what was said isn't so; the message says which argument decides.
    """
    gives = _kind(spec, values, activation)
    overlapping = _overlapping(spec, gives, values, activation)
    settled = replace(_renumbered(spec) if overlapping else spec, gives=gives, overlapping=overlapping)
    require(settled, output)
    if output == "logits" and gives == "probabilities":
        raise InputError(f"{spec.name} gives no logits: it ends in probabilities already (result='probabilities')")
    return settled


def _renumbered(spec: ModelSpec) -> ModelSpec:
    """The spec of a module whose classes overlap: none of them is the background, which is 0."""
    if spec.family != "module" or spec.num_classes == 1 or "labels" not in spec.described:
        return spec
    names = [entry["name"] for entry in spec.described["labels"]]
    labels = [{"name": name, "value": value, "labels": [value]} for value, name in enumerate(names, 1)]
    return replace(spec, described={**spec.described, "labels": labels})


def _kind(spec: ModelSpec, values: Values, activation: Activation | None) -> Kind:
    ends = f"its graph ends in a {activation}" if activation else "its classes add up to 1 everywhere"
    if activation == "log-sigmoid":
        raise InputError(f"{spec.name} gives no logits: {ends}; export the part of it before that")
    probable = values.bounded and (activation is not None or values.sum_to_one)
    if spec.gives == "logits" and probable:
        raise InputError(f"{spec.name} is said to give logits (output_kind='logits'), and {ends}")
    if spec.gives == "probabilities" and not values.bounded:
        raise InputError(
            f"{spec.name} is said to give probabilities (output_kind='probabilities'), and its values go from "
            f"{values.low:.3g} to {values.high:.3g}"
        )
    if spec.gives is None and values.bounded and not probable:
        raise InputError(
            f"{spec.name} gives values from {values.low:.3g} to {values.high:.3g}, and nothing in its graph says "
            "whether they are probabilities: say it with output_kind='probabilities' or output_kind='logits'"
        )
    return spec.gives or ("probabilities" if probable else "logits")


def _overlapping(spec: ModelSpec, gives: Kind, values: Values, activation: Activation | None) -> bool:
    if spec.overlapping is None:
        if gives == "logits" or spec.num_classes == 1 or values.sum_to_one:
            return False
        if activation == "softmax":
            raise InputError(
                f"{spec.name} ends in a softmax, and its classes don't add up to 1: overlapping=False lets the largest "
                "win, overlapping=True decides each by itself"
            )
        return True
    if spec.overlapping and spec.num_classes > 1 and gives == "probabilities" and values.sum_to_one:
        raise InputError(f"{spec.name} is said to give classes that overlap, and they add up to 1 everywhere")
    return spec.overlapping


def given_rule(spec: ModelSpec, output: OutputKind | None) -> Decision:
    """How labels follow from what the artifact gives, which may be the probabilities of the network's logits."""
    own = spec.rule
    return own if own.above is None or output != "probabilities" else Decision(LEVELS["probabilities"])


def name_of(spec: ModelSpec, output: OutputKind | None) -> str:
    """The name of the artifact's output."""
    return spec.output or output or spec.gives or "logits"


def put(
    artifact: Path, converted: Converted, output: OutputKind, name: str, check: ParityCheck, progress: Progress
) -> Converted:
    """Let the artifact's graphs end in labels or probabilities, and hold them against those of their own logits.

    Args:
        artifact: holds the graphs, which give what the network gives.
        converted: what is known of them.
        output: ``labels`` or ``probabilities``.
        name: of the new output.
        check: what ``parity.measure`` checked the network's numbers on; it saved what must come of them.
        progress: callback that gets the name of each step.

    Returns:
        What is known of the graphs now.

    Raises:
        ParityError: they are others.
    """
    progress(f"putting the {output} behind the logits")
    graphs = {
        model: _put(artifact / model, graph, output, name, check.spec.rule) for model, graph in converted.graphs.items()
    }
    if converted.cpu is not None:
        share_weights(artifact)
    for model in graphs:
        _require_own(artifact / model, output, check, progress)
    plain, *rewritten = graphs.values()
    return replace(
        converted,
        plain=plain,
        cpu=rewritten[0] if rewritten else None,
        outputs=(name, *converted.outputs[1:]),
    )


def _put(path: Path, graph: Graph, output: OutputKind, name: str, how: Decision) -> Graph:
    """Let one graph end in labels or probabilities."""
    import onnx_ir as ir

    from segonnx.optimize.labels import LabelsPass
    from segonnx.optimize.probabilities import ProbabilitiesPass

    model = ir.load(path)
    last: ir.passes.InPlacePass = (
        LabelsPass(name, how.above or 0.0)
        if output == "labels"
        else ProbabilitiesPass(name, exclusive=how.above is None)
    )
    last(model)
    ir.save(model, path)
    operators = dict(sorted(Counter(node.op_type for node in model.graph).items()))
    return replace(graph, operators=operators, rewrites=(*graph.rewrites, type(last).__name__))


def _require_own(path: Path, output: OutputKind, check: ParityCheck, progress: Progress) -> None:
    """Check that a graph gives the labels or probabilities of its own logits.

    Raises:
        ParityError: it gives others, or isn't valid.
    """
    import onnx

    how = check.spec.rule
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except onnx.checker.ValidationError as error:
        raise ParityError(f"the graph that gives {output} isn't valid ONNX: {error}") from error
    session, _ = open_runnable(path, check.threads)
    for i, test_input in enumerate(check.inputs):
        progress(f"comparing the {output} of {test_input.name}")
        found = run(session, check.given(i))[0]
        expected = np.load(check.saved(path.name, i), mmap_mode="r", allow_pickle=False)
        if not _same(expected, found, output):
            raise ParityError(f"on {test_input.name} the graph gives other {output} than those of its logits")
        if output == "probabilities":
            _require_close(probabilities_of(check.reference(i), how), found, how, test_input.name)


def _require_close(reference: npt.NDArray[Any], found: npt.NDArray[Any], how: Decision, what: str) -> None:
    difference = compare(reference, found, rule=how if how.above is None else Decision(LEVELS["probabilities"]))
    if not difference.within(TOLERANCES[DTYPE]):
        raise ParityError(
            f"numeric parity failed on {what}: the graph's probabilities differ from PyTorch's by {difference}; "
            f"allowed: {TOLERANCES[DTYPE]}"
        )


def _same(expected: npt.NDArray[Any], found: npt.NDArray[Any], output: OutputKind) -> bool:
    if (found.dtype, found.shape) != (expected.dtype, expected.shape):
        return False
    if output == "labels":
        return np.array_equal(expected, found)
    return compare(expected, found).max_abs_error <= PROBABILITY_ERROR
