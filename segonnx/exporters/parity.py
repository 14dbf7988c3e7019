"""Numeric parity after conversion: does the file compute in the runtime what the network computes in PyTorch?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from segonnx.artifacts import graph_sessions, testdata
from segonnx.artifacts.layout import CPU_MODEL, MODEL
from segonnx.core import synthetic_inputs
from segonnx.core.ort_session import SessionSettings, open_session
from segonnx.core.subprocesses import Progress
from segonnx.core.synthetic_inputs import ParityInput
from segonnx.core.tolerances import (
    TOLERANCES,
    Agreement,
    Difference,
    compare,
    compare_values,
    labels_of,
    probabilities_of,
    size_of,
    std_of,
)
from segonnx.errors import ParityError
from segonnx.exporters.parity_inputs import Feeds, kept
from segonnx.exporters.settings import OutputKind
from segonnx.sources.catalog import ModelSpec

if TYPE_CHECKING:
    import onnxruntime as ort

DTYPE = "float32"


@dataclass(frozen=True)
class ParityCheck:
    """What a file is checked on, and how.

    Attributes:
        inputs: the test inputs.
        spec: the network.
        folder: holds PyTorch's logits on test input i as ``logits_i.npy``, and what the graphs are given.
        threads: threads of ONNX Runtime.
    """

    inputs: tuple[ParityInput, ...]
    spec: ModelSpec
    folder: Path
    threads: int

    def reference(self, i: int) -> synthetic_inputs.Array:
        """PyTorch's logits on test input i, mapped from their file."""
        logits: synthetic_inputs.Array = np.load(self.folder / f"logits_{i}.npy", mmap_mode="r", allow_pickle=False)
        return logits

    def given(self, i: int) -> Feeds:
        """What the graphs are given for test input i, mapped from their files."""
        return kept(self.folder, i, self.inputs[i], self.spec)

    def more(self, i: int, k: int) -> npt.NDArray[Any]:
        """PyTorch's k-th output after the segmentation on test input i, mapped from its file."""
        given: npt.NDArray[Any] = np.load(self.folder / f"more_{i}_{k}.npy", mmap_mode="r", allow_pickle=False)
        return given

    def more_scale(self, k: int) -> float:
        """What errors of that output are relative to: its largest root mean square on any test input."""
        return max(size_of(self.more(i, k)) for i in range(len(self.inputs)))

    def saved(self, model: str, i: int) -> Path:
        """The file of the labels, or the probabilities, that a graph's own logits on test input i give."""
        return self.folder / f"result_{model}_{i}.npy"

    def result(self, logits: npt.NDArray[Any], output: OutputKind) -> npt.NDArray[Any]:
        """The labels or the probabilities of logits."""
        return labels_of(logits, self.spec.rule) if output == "labels" else probabilities_of(logits, self.spec.rule)


@dataclass(frozen=True)
class Measured:
    """The parity of one test input.

    Attributes:
        input: what the input is.
        sha256: SHA-256 of the bytes that the graph is given.
        difference: how far ONNX Runtime's logits are from PyTorch's.
        more: how far its other outputs are.
    """

    input: ParityInput
    sha256: str
    difference: Difference
    more: tuple[Difference, ...] = ()


@dataclass(frozen=True)
class Parity:
    """The parity of one graph.

    Attributes:
        inputs: that of each test input.
        runtime: what ran it.
    """

    inputs: tuple[Measured, ...]
    runtime: str = graph_sessions.RUNTIME


def measure(artifact: Path, check: ParityCheck, output: OutputKind | None, progress: Progress) -> dict[str, Parity]:
    """Run the graphs on every test input, hold them against PyTorch's logits, and write the first input as test data.

    ``model.onnx`` runs with its InstanceNormalization computed without loss of digits where they are large: ONNX
    Runtime's loses some, and a file for other runtimes shouldn't fail for that. Errors are relative to the largest
    standard deviation of the logits on any input: on a flat image a network's logits may hardly vary.

    Args:
        artifact: holds the models.
        check: the test inputs, and how the models are run.
        output: what the graphs will be made to give: None leaves what the network gives. For labels and probabilities,
            those of each graph's logits are saved (see ``ParityCheck.saved``), and the test data holds those of
            PyTorch's.
        progress: callback that gets the name of each step.

    Returns:
        By the name of the graph's file.

    Raises:
        ParityError: a difference is beyond the tolerance.
    """
    scale = max(std_of(check.reference(i)) for i in range(len(check.inputs)))
    found: dict[str, Parity] = {}
    for model in (MODEL, CPU_MODEL):
        if not (artifact / model).exists():
            continue
        session, how = open_runnable(artifact / model, check.threads)
        results = [_measured(session, model, check, i, scale, output, progress) for i in range(len(check.inputs))]
        found[model] = Parity(tuple(results), how)
        del session
    progress("writing the test data")
    _write_test_data(artifact, check, output)
    return found


def _measured(
    session: ort.InferenceSession,
    model: str,
    check: ParityCheck,
    i: int,
    scale: float,
    output: OutputKind | None,
    progress: Progress,
) -> Measured:
    """The parity of a graph on test input i; see ``measure``."""
    test_input = check.inputs[i]
    arrays = check.given(i)
    progress(f"running {model} in ONNX Runtime on {test_input.name}")
    logits, *others = run(session, arrays)
    progress(f"comparing the logits of {test_input.name}")
    difference = compare(check.reference(i), logits, scale, check.spec.rule)
    require_within(difference, f"{model} in ONNX Runtime", test_input.name)
    if output is not None:
        np.save(check.saved(model, i), check.result(logits, output))
    more = tuple(
        compare_more(check, i, k, found, f"{model} in ONNX Runtime", f"{name} of {test_input.name}")
        for k, (name, found) in enumerate(zip(check.spec.more_outputs, others, strict=True), 1)
    )
    return Measured(test_input, synthetic_inputs.sha256(arrays[check.spec.input]), difference, more)


def _write_test_data(artifact: Path, check: ParityCheck, output: OutputKind | None) -> None:
    """Write the first test input, and PyTorch's answers on it."""
    reference = check.reference(0)
    given = reference if output is None else check.result(reference, output)
    answers: dict[str, npt.NDArray[Any]] = {output or check.spec.gives or "logits": given}
    answers |= {name: check.more(0, k) for k, name in enumerate(check.spec.more_outputs, 1)}
    exact = output == "labels" and not check.spec.more_outputs
    tolerance = 0.0 if exact else TOLERANCES[DTYPE].max_rel_error
    std = max(std_of(answer.reshape(1, 1, -1)) for answer in answers.values()) if tolerance else 0.0
    testdata.write(artifact, check.given(0), answers, atol=tolerance * std, rtol=tolerance)


def compare_more(check: ParityCheck, i: int, k: int, found: npt.NDArray[Any], title: str, what: str) -> Difference:
    """How far an output that isn't the segmentation is from PyTorch's on test input i.

    Args:
        check: the test inputs, and PyTorch's answers.
        i: the number of the test input.
        k: the number of the output, from 1.
        found: what a runtime gives.
        title: the runtime, for messages.
        what: the output, for messages.

    Raises:
        ParityError: it is beyond the tolerance; of whole numbers every one must be the same.
    """
    difference = compare_values(check.more(i, k), found, check.more_scale(k))
    if difference is None:
        raise ParityError(f"numeric parity failed on {what}: {title} gives another shape, type or number than PyTorch")
    require_within(difference, title, what)
    return difference


def require_within(difference: Difference | Agreement, title: str, what: str) -> None:
    """Refuse what a runtime gives where it is further from PyTorch than is allowed.

    Args:
        difference: how far it is.
        title: the runtime, for the message.
        what: the test input, or an output on it, for the message.

    Raises:
        ParityError: it is beyond the tolerance.
    """
    if not difference.within(TOLERANCES[DTYPE]):
        raise ParityError(
            f"numeric parity failed on {what}: {title} differs from PyTorch by {difference}; "
            f"allowed: {TOLERANCES[DTYPE]}"
        )


def open_runnable(path: Path, threads: int) -> tuple[ort.InferenceSession, str]:
    """A session that runs a graph as long as its parity is measured, and what it is, for the manifest.

    It gives freed memory back at once: models of several gigabytes need it.
    """
    settings = SessionSettings(threads=threads, arena=False)
    if path.name == MODEL:
        return graph_sessions.open_plain(path, settings)
    return open_session(path, settings), graph_sessions.RUNTIME


def run(session: ort.InferenceSession, arrays: Feeds) -> list[npt.NDArray[Any]]:
    """What the session gives for its inputs: the segmentation, then its other outputs."""
    known = {value.name for value in session.get_inputs()}
    given: list[npt.NDArray[Any]] = session.run(None, {name: array for name, array in arrays.items() if name in known})
    return given
