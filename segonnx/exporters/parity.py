"""Numeric parity after conversion: does the file compute in the runtime what the network computes in PyTorch?"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segonnx import inputs
from segonnx.artifacts import testdata
from segonnx.artifacts.verify import MODEL
from segonnx.errors import ParityError
from segonnx.exporters.assemble import INPUT, OUTPUT
from segonnx.exporters.probes import Probe
from segonnx.numeric import TOLERANCES, Difference, compare
from segonnx.process import Progress

DTYPE = "float32"


@dataclass(frozen=True)
class Measured:
    """One probe's result.

    Attributes:
        probe: the input.
        sha256: of its bytes.
        difference: of ONNX Runtime's logits from PyTorch's.
    """

    probe: Probe
    sha256: str
    difference: Difference


def measure(
    artifact: Path, probes: tuple[Probe, ...], modality: str, folder: Path, threads: int, progress: Progress
) -> list[Measured]:
    """Run the ONNX file on every probe, hold it against PyTorch's logits, and write the first probe as test data.

    Args:
        artifact: holds the model.
        probes: the first has the shape of the file's input; smaller ones run the same graph and weights at their shape.
        modality: of the inputs.
        folder: holds PyTorch's logits on probe i as ``logits_i.npy``.
        threads: of ONNX Runtime.
        progress: told of each step.

    Raises:
        ParityError: a difference is beyond the tolerance.
    """
    results: list[Measured] = []
    for i, probe in reversed(list(enumerate(probes))):
        x = probe.make(modality)
        progress(f"running ONNX Runtime on {probe.name}")
        logits = _run(artifact / MODEL, x, threads)
        progress(f"comparing the logits of {probe.name}")
        reference: inputs.Array = np.load(folder / f"logits_{i}.npy", mmap_mode="r", allow_pickle=False)
        difference = compare(reference, logits)
        if not difference.within(TOLERANCES[DTYPE]):
            raise ParityError(
                f"numeric parity failed on {probe.name}: ONNX Runtime differs from PyTorch by {difference}; "
                f"allowed: {TOLERANCES[DTYPE]}"
            )
        results.insert(0, Measured(probe, inputs.sha256(x), difference))
    progress("writing the test data")
    del logits
    tolerance = TOLERANCES[DTYPE].max_rel_error
    testdata.write(artifact, x, reference, atol=tolerance * results[0].difference.spread, rtol=tolerance)
    return results


def _run(path: Path, x: inputs.Array, threads: int) -> inputs.Array:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 3
    settings.enable_cpu_mem_arena = False  # freed memory goes back at once: models of several gigabytes need it

    with _at_shape(path, x.shape) as model:
        session = onnxruntime.InferenceSession(str(model), settings, providers=["CPUExecutionProvider"])
        logits: inputs.Array = session.run([OUTPUT], {INPUT: x})[0]
    return logits


@contextlib.contextmanager
def _at_shape(path: Path, shape: tuple[int, ...]) -> Iterator[Path]:
    """The model for inputs of ``shape``: the file itself, or, for another static shape, the same graph and weights."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    dims = model.graph.input[0].type.tensor_type.shape.dim
    if all(dim.dim_param or dim.dim_value == size for dim, size in zip(dims, shape, strict=True)):
        yield path
        return
    for dim, size in zip(dims, shape, strict=True):
        dim.dim_value = size
    for dim in model.graph.output[0].type.tensor_type.shape.dim:
        dim.Clear()
    del model.graph.value_info[:]
    resized = path.with_name("resized.onnx")  # beside the external data, which it shares
    onnx.save(model, str(resized))
    try:
        yield resized
    finally:
        resized.unlink()
