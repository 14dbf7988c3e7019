"""What a bench will run: pure data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from segonnx.artifacts.layout import MODEL
from segonnx.bench.result import FLOAT32, Precision, Published, WeightsKind
from segonnx.bench.rounds import Rule
from segonnx.core import hardware
from segonnx.core.decisions import Decision
from segonnx.core.subprocesses import STEP_S, Bounds, Progress
from segonnx.core.tolerances import Tolerance
from segonnx.errors import InputError
from segonnx.runtimes.base import Options, Runtime

if TYPE_CHECKING:
    from torch import nn

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
        threads: how many threads every runtime gets; several numbers are a sweep.
        rule: when the rounds of a case end.
        processes: how many processes of every runtime run one after another; they share the rounds.
        timeout_s: the longest that loading, or one block, may take.
        max_memory: the most bytes that each process may take which runs an artifact; None takes what is free.
        autocast: ``bf16``, ``off``, or ``auto``: bf16 where the processor multiplies it.
        seed: of the input.
        options: what is set alike for every runtime that knows it; its threads and bf16 are replaced.
        profile: tell the time of each operator, too.
        roofline: measure the machine's roofline peaks first.
        diagnose: measure the core-to-core latency before every block.
    """

    backends: tuple[str, ...]
    threads: tuple[int, ...]
    rule: Rule = field(default_factory=Rule)
    processes: int = 1
    timeout_s: float = STEP_S
    max_memory: int | None = None
    autocast: Autocast = "off"
    seed: int = 0
    options: Options = field(default_factory=lambda: Options(threads=1))
    profile: bool = False
    roofline: bool = False
    diagnose: bool = False

    @property
    def bounds(self) -> Bounds:
        """Of the processes that check the graphs of the artifacts before they are timed."""
        return Bounds(self.timeout_s, self.max_memory)

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
            "max_memory": self.max_memory,
            "autocast": self.autocast,
            "input_seed": self.seed,
            "options": options,
            "profile": self.profile,
            "roofline": self.roofline,
            "diagnose": self.diagnose,
        }


@dataclass(frozen=True)
class TorchNetwork:
    """A network for the runtimes that run PyTorch. Both functions are called in other processes and must be picklable.

    Attributes:
        build: makes the ``nn.Module`` in eval mode from the file that ``write_weights`` wrote.
        write_weights: writes the weights to a path and returns the file's SHA-256, given a progress callback.
    """

    build: Callable[[Path], nn.Module]
    write_weights: Callable[[Path, Progress], str]


@dataclass(frozen=True)
class Target:
    """One network that a bench times.

    Attributes:
        name: the name that its rows carry.
        family: a key of ``catalog.FAMILIES``.
        parameters: exact count.
        macs: multiply-adds of a pass.
        input_shape: (N, C, spatial...).
        modality: of the input.
        num_classes: channels of the logits.
        artifact: folder of the artifact; None where there is none.
        cpu_model: file in it of the graph for ONNX Runtime's CPU provider.
        recorded: folder of the artifact whose test data hold PyTorch's output; None where nothing is recorded.
        rewritten: whether the artifact's graph for every runtime is laid out for ONNX Runtime's CPU provider, as it was
            when artifacts held one graph.
        derives: whether a runtime computes other weights from those of the artifact.
        network: the same in PyTorch, for the runtimes that need it; None where its weights came from a file.
        weights: whose weights it holds: ``seeded``, ``published`` or ``file``.
        weights_sha256: of the artifact's weights.
        digest: of the artifact's manifest.
        published: figures that others published of it; None where there are none.
        gives: what the artifact gives: ``logits``, ``probabilities`` or ``labels``.
        rule: how labels follow from it, where it gives none itself.
        backends: the runtimes that time it; None for all of the settings.
        effect: what storing its weights in fewer bits did, as its manifest says; None where they are the network's.
        computes: the type that its convolutions compute in: ``float32`` or ``int8``.
        precision: of its artifact; None where there is none.
    """

    name: str
    family: str
    parameters: int
    macs: int
    input_shape: tuple[int, ...]
    modality: str
    num_classes: int
    artifact: Path | None = None
    cpu_model: str = MODEL
    recorded: Path | None = None
    rewritten: bool = False
    derives: bool = False
    network: TorchNetwork | None = None
    weights: WeightsKind | None = None
    weights_sha256: str | None = None
    digest: str | None = None
    published: Published | None = None
    gives: str = "logits"
    rule: Decision | None = None
    backends: tuple[str, ...] | None = None
    effect: Tolerance | None = None
    computes: str = FLOAT32
    precision: Precision | None = None

    @property
    def images(self) -> float:
        """How many images one pass counts for: the batch, and for volumes the slices that the source counts."""
        batch, _, *spatial = self.input_shape
        return batch * (math.prod(spatial) / SLICE if len(spatial) == 3 else 1)


@dataclass(frozen=True)
class Case:
    """One target with one number of threads, in all runtimes of a bench.

    Attributes:
        target: what is timed.
        threads: how many threads every runtime gets.
        settings: how the bench runs.
        bf16: PyTorch computes in bfloat16.
        known: the runtimes by name.
        cpus: the processors that every worker is bound to.
    """

    target: Target
    threads: int
    settings: Settings
    bf16: bool
    known: Mapping[str, type[Runtime]]
    cpus: tuple[int, ...]

    @property
    def name(self) -> str:
        """The name in progress lines."""
        swept = len(self.settings.threads) > 1
        return f"{self.target.name}, {self.threads} threads" if swept else self.target.name

    def rules(self) -> list[Rule]:
        """The rule of each process of a runtime: what a process draws, where its memory lies say, is drawn anew."""
        rule, count = self.settings.rule, self.settings.processes
        count = count if rule.rounds is None else min(count, rule.rounds)
        return [rule.share(number, count) for number in range(count)]


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


def memory_needed(target: Target, backend: str) -> int:
    """Bytes that a worker takes, from measured peaks; PyTorch's workers share the pages of their weights' file."""
    voxels = 0 if target.family == "encoder" else target.input_shape[0] * math.prod(target.input_shape[2:])
    copies = 1.0
    if backend in _COPY_WEIGHTS:
        copies = 3.0 if target.derives and (target.rewritten or not backend.endswith("-stock")) else 1.5
    return 8 * 10**8 + voxels * (4 * target.num_classes + VOXEL) + int(4 * target.parameters * copies)


def resident_groups(needed: Mapping[str, int], available: int) -> list[list[str]]:
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
