"""An artifact that gives labels: which networks may, and the step that makes it of a graph with checked logits."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from segonnx.artifacts.layout import MODEL
from segonnx.core.subprocesses import Progress
from segonnx.errors import InputError, ParityError
from segonnx.exporters.assemble import Converted
from segonnx.exporters.parity import ParityCheck, open_runnable, run
from segonnx.sources.catalog import ModelSpec


def require(spec: ModelSpec) -> None:
    """Refuse a network of which one label per voxel doesn't say it all.

    Raises:
        InputError: why.
    """
    if spec.family == "encoder":
        why = "it is an encoder, whose output isn't one of voxels"
    elif spec.described.get("inference", {}).get("regions"):
        why = "its regions overlap, and a voxel that is in several has no one label"
    elif spec.num_classes > 1 and spec.described.get("activation") == "sigmoid":
        why = "its classes, each with a sigmoid, overlap, and a voxel that is in several has no one label"
    else:
        return
    raise InputError(f"{spec.name} gives no labels: {why}; export it with --output logits")


def put(artifact: Path, converted: Converted, name: str, check: ParityCheck, progress: Progress) -> Converted:
    """Let the artifact's model give labels, and hold them against those of its own logits.

    Args:
        artifact: holds the model, which gives logits.
        converted: what is known of the model.
        name: the name of the output.
        check: what ``parity.measure`` checked the logits on; it saved their labels.
        progress: callback that gets the name of each step.

    Returns:
        What is known of the model now.

    Raises:
        ParityError: a label is another.
    """
    import onnx
    import onnx_ir as ir

    from segonnx.optimize.labels import LabelsPass

    progress("putting the labels behind the logits")
    path = artifact / MODEL
    model = ir.load(path)
    LabelsPass(name)(model)
    ir.save(model, path)
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except onnx.checker.ValidationError as error:
        raise ParityError(f"the graph that gives labels isn't valid ONNX: {error}") from error
    with check.runnable(path) as runnable:
        session = open_runnable(runnable, check.threads)
    for i, test_input in enumerate(check.inputs):
        progress(f"comparing the labels of {test_input.name}")
        labels = run(session, test_input.make(check.modality))
        expected = np.load(check.saved_labels(i), allow_pickle=False)
        if (labels.dtype, labels.shape) != (expected.dtype, expected.shape) or not np.array_equal(labels, expected):
            raise ParityError(f"on {test_input.name} the graph gives other labels than those of its logits")
    return replace(
        converted,
        operators=dict(sorted(Counter(node.op_type for node in model.graph).items())),
        rewrites=(*converted.rewrites, LabelsPass.__name__),
        output=name,
    )
