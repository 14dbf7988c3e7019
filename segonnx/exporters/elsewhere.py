"""The parity of a finished file in other runtimes than ONNX Runtime: what ``--check-with`` asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy.typing as npt

from segonnx.artifacts.layout import MODEL
from segonnx.core import file_runs
from segonnx.core.file_runs import Replayed
from segonnx.core.subprocesses import Progress
from segonnx.core.tolerances import Agreement, Difference, compare, compare_labels, std_of
from segonnx.errors import ParityError, first_line
from segonnx.exporters import outputs
from segonnx.exporters.parity import ParityCheck, compare_more, require_within
from segonnx.exporters.settings import OutputKind


def measure(
    artifact: Path, check: ParityCheck, output: OutputKind | None, runtime: str, progress: Progress
) -> Replayed:
    """Run the finished file on every test input in a runtime, and hold it against PyTorch.

    Args:
        artifact: holds the model.
        check: the test inputs, and PyTorch's logits on them.
        output: what the file gives instead of what the network gives; None for that itself.
        runtime: one of ``file_runs.NAMES``.
        progress: callback that gets the name of each step.

    Returns:
        The largest differences on any input.

    Raises:
        ParityError: a difference is beyond the tolerance, or the file doesn't run there.
    """
    title = file_runs.title(runtime)
    progress(f"loading the model in {title}")
    scale = 0.0 if output is not None else max(std_of(check.reference(i)) for i in range(len(check.inputs)))
    results: list[Difference | Agreement] = []
    try:
        run = file_runs.opened(runtime, artifact / MODEL, check.threads)
        for i, test_input in enumerate(check.inputs):
            progress(f"running {title} on {test_input.name}")
            logits, *others = run(check.given(i))
            results.append(_compared(check, i, output, logits, scale))
            require_within(results[-1], title, test_input.name)
            for k, (name, found) in enumerate(zip(check.spec.more_outputs, others, strict=True), 1):
                compare_more(check, i, k, found, title, f"{name} of {test_input.name}")
    except ParityError:
        raise
    except Exception as error:
        raise ParityError(f"the file doesn't run in {title}: {first_line(error, 500)}") from error
    return Replayed(runtime, file_runs.version(runtime), _worst(results))


def _compared(
    check: ParityCheck, i: int, output: OutputKind | None, found: npt.NDArray[Any], scale: float
) -> Difference | Agreement:
    """How far what the file gives on test input i is from what follows from PyTorch's logits."""
    expected = check.reference(i)
    if output is None:
        return compare(expected, found, scale, check.spec.rule)
    expected = check.result(expected, output)
    if output == "labels":
        return compare_labels(expected, found)
    return compare(expected, found, rule=outputs.given_rule(check.spec, output))


def _worst(found: list[Difference | Agreement]) -> Difference | Agreement:
    agreement = min(one.label_agreement for one in found)
    errors = [one for one in found if isinstance(one, Difference)]
    if not errors:
        return Agreement(agreement)
    return Difference(
        max_abs_error=max(one.max_abs_error for one in errors),
        max_rel_error=max(one.max_rel_error for one in errors),
        rms_rel_error=max(one.rms_rel_error for one in errors),
        label_agreement=agreement,
        spread=max(one.spread for one in errors),
    )
