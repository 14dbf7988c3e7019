"""Numeric parity after conversion: does the file compute in the runtime what the network computes in PyTorch?"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from segonnx.artifacts import testdata
from segonnx.artifacts.layout import MODEL
from segonnx.core import synthetic_inputs
from segonnx.core.ort_session import SessionSettings, open_session
from segonnx.core.subprocesses import Progress
from segonnx.core.tolerances import TOLERANCES, Difference, compare, labels_of, spread_of
from segonnx.errors import ParityError
from segonnx.exporters.parity_inputs import ParityInput

Output = Literal["logits", "labels"]
"""What ``segonnx export --output`` takes."""

DTYPE = "float32"
RUNTIME = "ONNX Runtime CPU"
STEADY_RUNTIME = f"{RUNTIME}, with each large InstanceNormalization of the file computed by sums that lose no digits"


@dataclass(frozen=True)
class Measured:
    """One probe's result.

    Attributes:
        probe: the input.
        sha256: of its bytes.
        difference: of ONNX Runtime's logits from PyTorch's.
    """

    probe: ParityInput
    sha256: str
    difference: Difference


def measure(
    artifact: Path,
    probes: tuple[ParityInput, ...],
    modality: str,
    folder: Path,
    steady: bool,
    output: Output,
    threads: int,
    progress: Progress,
) -> list[Measured]:
    """Run the ONNX file on every probe, hold it against PyTorch's logits, and write the first probe as test data.

    Errors are relative to the widest spread of the logits on any probe: on a flat image a network's logits may hardly
    vary.

    Args:
        artifact: holds the model.
        probes: the inputs.
        modality: of the inputs.
        folder: holds PyTorch's logits on probe i as ``logits_i.npy``.
        steady: whether to spare the file ONNX Runtime's InstanceNormalization, which loses digits (a file for other
            runtimes shouldn't fail for that).
        output: what the artifact will give. For labels, those of the file's logits on probe i are saved in ``folder``,
            and the test data holds those of PyTorch's.
        threads: of ONNX Runtime.
        progress: told of each step.

    Raises:
        ParityError: a difference is beyond the tolerance.
    """
    results: list[Measured] = []
    scale = max(spread_of(_reference(folder, i)) for i in range(len(probes)))
    for i, probe in reversed(list(enumerate(probes))):
        x = probe.make(modality)
        progress(f"running ONNX Runtime on {probe.name}")
        with steadied(artifact / MODEL) if steady else contextlib.nullcontext(artifact / MODEL) as path:
            logits = run(path, x, threads)
        progress(f"comparing the logits of {probe.name}")
        reference = _reference(folder, i)
        difference = compare(reference, logits, scale)
        if not difference.within(TOLERANCES[DTYPE]):
            raise ParityError(
                f"numeric parity failed on {probe.name}: ONNX Runtime differs from PyTorch by {difference}; "
                f"allowed: {TOLERANCES[DTYPE]}"
            )
        if output == "labels":
            np.save(saved_labels(folder, i), labels_of(logits))
        results.insert(0, Measured(probe, synthetic_inputs.sha256(x), difference))
    progress("writing the test data")
    del logits
    if output == "labels":
        testdata.write(artifact, x, labels_of(reference), output, atol=0.0, rtol=0.0)
    else:
        tolerance = TOLERANCES[DTYPE].max_rel_error
        testdata.write(artifact, x, reference, output, atol=tolerance * results[0].difference.spread, rtol=tolerance)
    return results


def _reference(folder: Path, i: int) -> synthetic_inputs.Array:
    logits: synthetic_inputs.Array = np.load(folder / f"logits_{i}.npy", mmap_mode="r", allow_pickle=False)
    return logits


def saved_labels(folder: Path, i: int) -> Path:
    """Where the labels of probe i are saved."""
    return folder / f"labels_{i}.npy"


def run(path: Path, x: synthetic_inputs.Array, threads: int) -> npt.NDArray[Any]:
    """What the file gives for ``x`` in ONNX Runtime."""
    # Freed memory goes back at once: models of several gigabytes need it.
    session = open_session(path, SessionSettings(threads=threads, arena=False))
    given: npt.NDArray[Any] = session.run(None, {session.get_inputs()[0].name: x})[0]
    return given


@contextlib.contextmanager
def steadied(path: Path) -> Iterator[Path]:
    """The model with its InstanceNormalization computed in a way that loses no digits, beside the file."""
    import onnx_ir as ir

    from segonnx.optimize.stable_instance_norm import StableInstanceNormPass

    model = ir.load(path)
    if not StableInstanceNormPass()(model).modified:
        yield path
        return
    steady = path.with_name("steady.onnx")  # beside the external data, which it shares
    ir.save(model, steady)
    try:
        yield steady
    finally:
        steady.unlink()
