"""What a bench will run: pure data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from segonnx.bench.rounds import Rule
from segonnx.core import hardware
from segonnx.errors import InputError
from segonnx.runtimes.base import Options
from segonnx.sources.catalog import ModelSpec

Autocast = Literal["auto", "bf16", "off"]
_COPY_WEIGHTS = ("ort", "ort-stock", "openvino", "openvino-stock")

VOXEL = 1000
"""Bytes that a runtime holds for each voxel beside its logits; stunet-b took up to 740."""

SLICE = 512 * 512
"""The source counts a volume as so many slices of this many pixels: one of 64x128x128 as four."""


@dataclass(frozen=True)
class Settings:
    """How a bench runs.

    Attributes:
        backends: names of runtimes, in the order of the table.
        threads: of every runtime; several numbers are a sweep.
        rule: when the rounds of a case end.
        processes: of every runtime, one after another, with a share of the rounds each.
        timeout_s: the longest that loading, or one turn, may take.
        autocast: ``bf16``, ``off``, or ``auto``: bf16 where the processor multiplies it.
        seed: of the input.
        options: what is set alike for every runtime that knows it; its threads and bf16 are replaced.
        profile: tell the time of each operator, too.
        ceilings: measure what the machine can do at most.
    """

    backends: tuple[str, ...]
    threads: tuple[int, ...]
    rule: Rule = field(default_factory=Rule)
    processes: int = 1
    timeout_s: float = 1800
    autocast: Autocast = "off"
    seed: int = 0
    options: Options = field(default_factory=lambda: Options(threads=1))
    profile: bool = False
    ceilings: bool = False

    def as_dict(self) -> dict[str, Any]:
        """The settings, as they stand in the result."""
        options = asdict(self.options)
        for key in ("threads", "bf16", "profile"):
            options.pop(key)
        return {
            "backends": list(self.backends),
            "threads": list(self.threads),
            **asdict(self.rule),
            "processes": self.processes,
            "timeout_s": self.timeout_s,
            "autocast": self.autocast,
            "input_seed": self.seed,
            "options": options,
            "profile": self.profile,
        }


@dataclass(frozen=True)
class Target:
    """One network of a bench.

    Attributes:
        name: of the row.
        family: a key of ``catalog.FAMILIES``.
        parameters: exact count.
        macs: multiply-adds of a pass.
        input_shape: (N, C, spatial...).
        modality: of the input.
        artifact: its folder; None where there is none.
        stock: the folder of an artifact of the same network without rewrites; None where there is none.
        derives: whether a runtime that loads the artifact computes other weights from those in it.
        spec: how the network is built; None for an artifact that the catalogue doesn't know.
        seed: of the network's random weights; None where they came from a file.
        weights_sha256: of the artifact's weights.
        labels: the artifact gives labels instead of logits.
    """

    name: str
    family: str
    parameters: int
    macs: int
    input_shape: tuple[int, ...]
    modality: str
    artifact: Path | None = None
    stock: Path | None = None
    derives: bool = False
    spec: ModelSpec | None = None
    seed: int | None = 0
    weights_sha256: str | None = None
    labels: bool = False

    @property
    def images(self) -> float:
        """How many images one pass counts for: the batch, and for volumes the slices that the source counts."""
        batch, _, *spatial = self.input_shape
        return batch * (math.prod(spatial) / SLICE if len(spatial) == 3 else 1)


def resolve_autocast(mode: Autocast) -> tuple[bool, str]:
    """Whether to compute in bfloat16, and a sentence that says why.

    Raises:
        InputError: bf16 is asked for, and would be many times slower here.
    """
    if mode == "off":
        return False, "autocast off: every runtime computes in float32"
    if hardware.has_bf16():
        return True, "autocast bf16 in PyTorch: this processor multiplies bfloat16; the others compute in float32"
    if mode == "auto":
        return False, "autocast auto: this processor doesn't multiply bfloat16, so every runtime computes in float32"
    raise InputError(
        "--autocast bf16: this processor doesn't multiply bfloat16, which makes it many times slower than off"
    )


def memory_needed(model: Target, backend: str) -> int:
    """Bytes that a worker takes, from measured peaks; PyTorch's workers share the pages of their weights' file."""
    voxels = 0 if model.family == "encoder" else model.input_shape[0] * math.prod(model.input_shape[2:])
    classes = model.spec.num_classes if model.spec is not None else 117
    copies = 1.0
    if backend in _COPY_WEIGHTS:
        copies = 3.0 if model.derives and not backend.endswith("-stock") else 1.5
    return 8 * 10**8 + voxels * (4 * classes + VOXEL) + int(4 * model.parameters * copies)


def blocks(needed: Mapping[str, int], available: int) -> list[list[str]]:
    """The runtimes that are resident together: all, or as many as fit one after another, in the order given.

    Args:
        needed: bytes by runtime.
        available: bytes of memory.
    """
    result: list[list[str]] = []
    left = 0
    for name, size in needed.items():
        if result and size <= left:
            result[-1].append(name)
        else:
            result.append([name])
            left = available
        left -= size
    return result
