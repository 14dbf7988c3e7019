"""Numeric parity after conversion: does the file compute in the runtime what the network computes in PyTorch?"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from segonnx.artifacts import testdata
from segonnx.artifacts.layout import MODEL
from segonnx.core import synthetic_inputs
from segonnx.core.ort_session import SessionSettings, open_session
from segonnx.core.subprocesses import Progress
from segonnx.core.synthetic_inputs import ParityInput
from segonnx.core.tolerances import TOLERANCES, Difference, compare, labels_of, std_of
from segonnx.errors import ParityError
from segonnx.exporters.settings import OutputKind

if TYPE_CHECKING:
    import onnxruntime as ort

DTYPE = "float32"
RUNTIME = "ONNX Runtime CPU"
STABLE_NORM_RUNTIME = (
    f"{RUNTIME}, with each large InstanceNormalization of the file computed by sums that lose no digits"
)


@dataclass(frozen=True)
class ParityCheck:
    """What a file is checked on, and how.

    Attributes:
        inputs: the test inputs.
        modality: the network's, which decides how the test inputs are normalised.
        folder: holds PyTorch's logits on test input i as ``logits_i.npy``.
        stable_norm: run the file with its InstanceNormalization computed without loss of digits. ONNX Runtime's loses
            some, and a file for other runtimes shouldn't fail for that.
        threads: threads of ONNX Runtime.
    """

    inputs: tuple[ParityInput, ...]
    modality: str
    folder: Path
    stable_norm: bool
    threads: int

    def runnable(self, path: Path) -> contextlib.AbstractContextManager[Path]:
        """The model that ONNX Runtime runs in place of the one at ``path``."""
        return with_stable_norm(path) if self.stable_norm else contextlib.nullcontext(path)

    def reference(self, i: int) -> synthetic_inputs.Array:
        """PyTorch's logits on test input i, mapped from their file."""
        logits: synthetic_inputs.Array = np.load(self.folder / f"logits_{i}.npy", mmap_mode="r", allow_pickle=False)
        return logits

    def saved_labels(self, i: int) -> Path:
        """The file of the labels that the ONNX file's own logits on test input i give."""
        return self.folder / f"labels_{i}.npy"


@dataclass(frozen=True)
class Measured:
    """The parity of one test input.

    Attributes:
        input: what the input is.
        sha256: SHA-256 of its bytes.
        difference: how far ONNX Runtime's logits are from PyTorch's.
    """

    input: ParityInput
    sha256: str
    difference: Difference


def measure(artifact: Path, check: ParityCheck, output: OutputKind, progress: Progress) -> list[Measured]:
    """Run the ONNX file on every test input, hold it against PyTorch's logits, and write the first as test data.

    Errors are relative to the largest standard deviation of the logits on any input: on a flat image a network's
    logits may hardly vary.

    Args:
        artifact: holds the model.
        check: the test inputs, and how the model is run.
        output: what the artifact will give. For labels, those of the file's logits are saved (see
            ``ParityCheck.saved_labels``), and the test data holds those of PyTorch's.
        progress: callback that gets the name of each step.

    Raises:
        ParityError: a difference is beyond the tolerance.
    """
    results: list[Measured] = []
    scale = max(std_of(check.reference(i)) for i in range(len(check.inputs)))
    with check.runnable(artifact / MODEL) as path:
        session = open_runnable(path, check.threads)
    for i, test_input in reversed(list(enumerate(check.inputs))):
        x = test_input.make(check.modality)
        progress(f"running ONNX Runtime on {test_input.name}")
        logits = run(session, x)
        progress(f"comparing the logits of {test_input.name}")
        reference = check.reference(i)
        difference = compare(reference, logits, scale)
        if not difference.within(TOLERANCES[DTYPE]):
            raise ParityError(
                f"numeric parity failed on {test_input.name}: ONNX Runtime differs from PyTorch by {difference}; "
                f"allowed: {TOLERANCES[DTYPE]}"
            )
        if output == "labels":
            np.save(check.saved_labels(i), labels_of(logits))
        results.insert(0, Measured(test_input, synthetic_inputs.sha256(x), difference))
    progress("writing the test data")
    del logits
    if output == "labels":
        testdata.write(artifact, x, labels_of(reference), output, atol=0.0, rtol=0.0)
    else:
        tolerance = TOLERANCES[DTYPE].max_rel_error
        testdata.write(artifact, x, reference, output, atol=tolerance * results[0].difference.spread, rtol=tolerance)
    return results


def open_runnable(path: Path, threads: int) -> ort.InferenceSession:
    """A session that gives freed memory back at once: models of several gigabytes need it."""
    return open_session(path, SessionSettings(threads=threads, arena=False))


def run(session: ort.InferenceSession, x: synthetic_inputs.Array) -> npt.NDArray[Any]:
    """What the session gives for ``x``."""
    given: npt.NDArray[Any] = session.run(None, {session.get_inputs()[0].name: x})[0]
    return given


@contextlib.contextmanager
def with_stable_norm(path: Path) -> Iterator[Path]:
    """The model with its InstanceNormalization computed in a way that loses no digits, beside the file."""
    import onnx_ir as ir

    from segonnx.optimize.stable_instance_norm import StableInstanceNormPass

    model = ir.load(path)
    if not StableInstanceNormPass()(model).modified:
        yield path
        return
    stable = path.with_name("stable_norm.onnx")  # beside the external data, which it shares
    ir.save(model, stable)
    try:
        yield stable
    finally:
        stable.unlink()
