"""A graph in ONNX Runtime, ready to be timed."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from segonnx.core.ort_session import SessionSettings, open_session
from segonnx.core.synthetic_inputs import Array

SAMPLE_S = 0.05
"""Seconds that a sample takes at least, about. Shorter passes are repeated, and their mean is the sample."""


class TimedSession:
    """A graph in ONNX Runtime, after its warm-up. Its threads sleep while it doesn't run.

    Args:
        model: its path, or its bytes.
        x: the input.
        threads: of ONNX Runtime.
    """

    def __init__(self, model: Path | bytes, x: Array, threads: int) -> None:
        self._session = open_session(model, SessionSettings(threads=threads, spinning="while-running"))
        output = self._session.get_outputs()[0]
        self._out = np.empty(output.shape, np.float32)
        self._binding = self._session.io_binding()
        self._binding.bind_cpu_input(self._session.get_inputs()[0].name, x)
        self._binding.bind_output(output.name, "cpu", 0, np.float32, self._out.shape, self._out.ctypes.data)
        self._passes = 1
        self.sample()
        self._passes = max(1, round(SAMPLE_S / self.sample()))

    def sample(self) -> float:
        """Seconds of a pass: the mean of a few where they are short."""
        begun = time.perf_counter()
        for _ in range(self._passes):
            self._session.run_with_iobinding(self._binding)
        return (time.perf_counter() - begun) / self._passes
