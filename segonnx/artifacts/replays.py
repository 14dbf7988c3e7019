"""Replays an artifact's test data in a runtime that a user names, beside ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

from segonnx.artifacts import layout, manifest, testdata
from segonnx.artifacts.layout import MODEL
from segonnx.artifacts.manifest import Manifest
from segonnx.core import file_runs, subprocesses
from segonnx.core.file_runs import Replayed
from segonnx.core.ort_session import load_seconds, run_seconds
from segonnx.core.subprocesses import Progress
from segonnx.core.tolerances import TOLERANCES, Tolerance, compare, compare_labels, compare_values
from segonnx.errors import ParityError, VerifyError, first_line

COMPILING = 3.0
"""How many times longer than ONNX Runtime a runtime may load, which compiles the graph."""


def replay(
    folder: Path,
    content: Manifest,
    runtime: str,
    tolerance: Tolerance,
    threads: int,
    timeout: float | None,
    progress: Progress,
) -> Replayed:
    """How far the outputs of a runtime are from those that an artifact records. Runs in a process of its own.

    Args:
        folder: the artifact.
        content: its manifest.
        runtime: one of ``file_runs.NAMES``.
        tolerance: what is allowed.
        threads: of the runtime; 0 leaves the number to it.
        timeout: the most seconds of loading and of the run, each; None lets the model's size decide.
        progress: progress callback.

    Raises:
        VerifyError: the model doesn't run there, or differs by more than is allowed.
    """
    title = file_runs.title(runtime)
    given = {one["name"]: testdata.read(folder / layout.input_file(i)) for i, one in enumerate(content["inputs"])}
    expected = [testdata.read(folder / layout.output_file(i)) for i in range(len(content["outputs"]))]
    model = folder / MODEL
    x = given[content["inputs"][0]["name"]]
    positions = manifest.positions(content, x)
    patience = load_seconds(model, timeout) * (COMPILING if timeout is None else 1)
    progress(f"replaying the test data in {title}")
    try:
        with subprocesses.limited(patience, f"loading the model in {title}"):
            run = file_runs.opened(runtime, model, threads)
        with subprocesses.limited(run_seconds(model, positions, timeout), f"the replay in {title}"):
            found = run(given)
    except Exception as error:
        raise VerifyError(f"{folder} doesn't run in {title}: {first_line(error, 500)}") from error
    kind = content["outputs"][0].get("kind", "logits")
    wrong = f"{folder}: the replay in {title} differs from the recorded"
    try:
        labels = manifest.gives_labels(content)
        difference = (
            compare_labels(expected[0], found[0])
            if labels
            else compare(expected[0], found[0], rule=manifest.given_rule(content))
        )
    except ParityError as error:
        raise VerifyError(f"{wrong} {kind}: {error}") from error
    if not difference.within(tolerance):
        raise VerifyError(f"{wrong} {kind}: {difference}; allowed: {tolerance}")
    for described, wanted, had in zip(content["outputs"][1:], expected[1:], found[1:], strict=True):
        more = compare_values(wanted, had)
        if more is None or not more.within(TOLERANCES["float32"]):
            raise VerifyError(f"{wrong} output {described['name']!r}{'' if more is None else f': {more}'}")
    return Replayed(runtime, file_runs.version(runtime), difference)
