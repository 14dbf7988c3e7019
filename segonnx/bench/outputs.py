"""Whether the runtimes of a case computed the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from segonnx.artifacts import layout, testdata
from segonnx.bench.plan import Case
from segonnx.bench.result import Row
from segonnx.core import synthetic_inputs
from segonnx.core.subprocesses import Progress
from segonnx.core.tolerances import TOLERANCES, Agreement, Difference, Tolerance, compare, compare_labels
from segonnx.errors import SegonnxError

EFFECT = 2.0
"""How many times the recorded effect of an artifact's weights may be, on an input that it wasn't measured on."""


def check(case: Case, rows: list[Row], output: Callable[[str], Path], progress: Progress) -> None:
    """Compare every runtime's logits, or labels, with eager's, or with the artifact's recorded ones.

    A row that differs by more than the tolerance gets a status that says so.

    Args:
        case: what was timed.
        rows: those with an output.
        output: the file of a runtime's output.
        progress: progress callback.
    """
    target = case.target
    if any(row.backend == "eager" for row in rows):
        reference, name = np.load(output("eager"), mmap_mode="r"), "eager"
    elif rows and target.recorded is not None and _same_input(target.recorded, rows[0].input_sha256):
        reference, name = testdata.read(target.recorded / layout.OUTPUT), "recorded"
    else:
        return
    what = target.gives
    for row in rows:
        progress(f"{case.name}: comparing the {what} of {row.backend}")
        found = np.load(output(row.backend), mmap_mode="r")
        difference: Difference | Agreement
        try:
            difference = (
                compare_labels(reference, found) if what == "labels" else compare(reference, found, rule=target.rule)
            )
        except SegonnxError as error:
            row.status = f"its {error}"
            continue
        largest = difference.max_abs_error if isinstance(difference, Difference) else None
        row.max_abs_error = None if largest is None or not math.isfinite(largest) else largest  # NaN is no JSON
        row.label_agreement = difference.label_agreement
        row.compared_with = name
        dtype = "float32" if row.settings.get("dtype") == "float32" else "bfloat16"
        allowed = TOLERANCES[dtype]
        if target.computes == "int8" and case.known[row.backend].needs == "artifact":
            allowed = TOLERANCES["int8"]
        if name == "eager" and target.effect is not None and case.known[row.backend].needs == "artifact":
            allowed = _with_effect(allowed, target.effect)
        if not difference.within(allowed):
            row.status = f"its {what} differ: {difference}"


def _with_effect(allowed: Tolerance, effect: Tolerance) -> Tolerance:
    """What an artifact may differ from a network whose weights it holds in fewer bits.

    The effect was measured on other inputs: it may be twice as large.
    """
    return Tolerance(
        allowed.max_rel_error + EFFECT * effect.max_rel_error,
        allowed.rms_rel_error + EFFECT * effect.rms_rel_error,
        max(0.0, allowed.label_agreement - EFFECT * (1 - effect.label_agreement)),
    )


def _same_input(recorded: Path, input_sha256: str) -> bool:
    """Whether the artifact's test data were recorded on the bench's input."""
    return synthetic_inputs.sha256(testdata.read(recorded / layout.INPUT)) == input_sha256
