"""What a bench will run: pure data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from segonnx import machine
from segonnx.catalog import System
from segonnx.errors import InputError

Autocast = Literal["auto", "bf16", "off"]

MIN_ROUNDS = 5
SLICES = 4
"""The source counts one 64x128x128 volume as four 512x512 slices."""


@dataclass(frozen=True)
class Settings:
    """How a bench runs.

    Attributes:
        backends: names of runtimes, in the order of the table.
        threads: of every runtime.
        rounds: interleaved rounds.
        autocast: ``bf16``, ``off``, or ``auto``: bf16 where the processor multiplies it.
        seed: of the order within rounds and of the input.
    """

    backends: tuple[str, ...]
    threads: int
    rounds: int = MIN_ROUNDS
    autocast: Autocast = "off"
    seed: int = 0


@dataclass(frozen=True)
class Model:
    """One network of a bench.

    Attributes:
        name: of the row.
        family: a key of ``catalog.FAMILIES``.
        parameters: exact count.
        macs: multiply-adds of a pass.
        input_shape: (N, C, spatial...).
        modality: of the input.
        artifact: its folder; None where there is none.
        system: how the network is built; None for an artifact that the catalogue doesn't know.
        seed: of the network's random weights; None where they came from a file.
        weights_sha256: of the artifact's weights.
    """

    name: str
    family: str
    parameters: int
    macs: int
    input_shape: tuple[int, ...]
    modality: str
    artifact: Path | None = None
    system: System | None = None
    seed: int | None = 0
    weights_sha256: str | None = None

    @property
    def images(self) -> int:
        """How many images one pass counts for: the batch, and for volumes the slices that the source counts."""
        return self.input_shape[0] * (SLICES if len(self.input_shape) == 5 else 1)


def resolve_autocast(mode: Autocast) -> tuple[bool, str]:
    """Whether to compute in bfloat16, and a sentence that says why.

    Raises:
        InputError: bf16 is asked for, and would be many times slower here.
    """
    if mode == "off":
        return False, "autocast off: every runtime computes in float32"
    if machine.has_bf16():
        return True, "autocast bf16 in PyTorch: this processor multiplies bfloat16; ONNX Runtime computes in float32"
    if mode == "auto":
        return False, "autocast auto: this processor doesn't multiply bfloat16, so every runtime computes in float32"
    raise InputError(
        "--autocast bf16: this processor doesn't multiply bfloat16, which makes it many times slower than off"
    )


def memory_needed(model: Model, backend: str) -> int:
    """Bytes that a worker takes, from measured peaks; PyTorch's workers share the pages of their weights' file."""
    spatial = 1
    for size in model.input_shape[2:]:
        spatial *= size
    classes = model.system.num_classes if model.system is not None else 117
    logits = 0 if model.family == "encoder" else 4 * model.input_shape[0] * classes * spatial
    weights = 4 * model.parameters
    return 8 * 10**8 + 6 * logits + (weights * 3 // 2 if backend == "ort" else weights)
