"""The one interface of every runtime."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from segonnx.core.ort_session import GraphOptimization
from segonnx.core.synthetic_inputs import Array
from segonnx.runtimes.operator_kinds import kind
from segonnx.sources.catalog import ModelSpec

Needs = Literal["network", "artifact", "stock"]
Outputs = Literal["bound", "fresh"]


@dataclass(frozen=True)
class Runnable:
    """What is run.

    Attributes:
        spec: the network, for runtimes that need it.
        weights: safetensors of the network's inference form, for the same.
        model: the ONNX file, for runtimes that need an artifact.
        stock: the same without rewrites (``segonnx export --optimize none``), for runtimes that show what those gain.
    """

    spec: ModelSpec | None = None
    weights: Path | None = None
    model: Path | None = None
    stock: Path | None = None


@dataclass(frozen=True)
class Options:
    """How it is run.

    Attributes:
        threads: of each operator.
        bf16: compute in bfloat16 where the runtime's autocast does; float32 otherwise.
        outputs: write into one output that is ``bound`` once, where the runtime can, or into a ``fresh`` one each run.
        spinning: let idle threads wait actively for a while, where the runtime has a switch for it.
        arena: let ONNX Runtime keep the memory that it has freed.
        graph_optimization: what ONNX Runtime does to the graph.
        profile: get ready for ``profile``, which may slow the runs down.
    """

    threads: int
    bf16: bool = False
    outputs: Outputs = "bound"
    spinning: bool = True
    arena: bool = True
    graph_optimization: GraphOptimization = "all"
    profile: bool = False


@dataclass(frozen=True)
class Operator:
    """What the operators of one type took together in one pass.

    Attributes:
        operator: as the runtime calls it, for example ``Conv`` or ``aten::mkldnn_convolution``.
        kind: the same words for all runtimes, one of ``kinds.KINDS``.
        calls: how many of them a pass ran.
        seconds: of a pass, all of them together.
    """

    operator: str
    kind: str
    calls: float
    seconds: float


class Runtime(ABC):
    """Loads a subject once and runs it many times. A runtime never times itself.

    Each lives in a process of its own, so a class may set what holds for its whole process, such as thread counts.
    """

    name: ClassVar[str]
    """What users type after --backend."""
    needs: ClassVar[Needs]
    """What the subject must hold."""
    autocasts: ClassVar[bool] = False
    """Whether ``Options.bf16`` means something to it."""

    @classmethod
    @abstractmethod
    def missing(cls) -> str | None:
        """Why this runtime can't run here and what to install, or None where it can."""

    @abstractmethod
    def load(self, runnable: Runnable, options: Options) -> None:
        """Import the library and read the model."""

    def prepare(self, example: Array) -> None:
        """Optimise or compile for inputs like ``example``: all that is done once and takes time apart from reading."""
        del example

    @abstractmethod
    def run(self, x: Array) -> Array:
        """Logits (N, classes, spatial...) of the input (N, C, spatial...); labels, where the artifact gives these.

        The result may be overwritten by the next run.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of everything that ``load`` took."""

    @abstractmethod
    def describe(self) -> dict[str, str]:
        """The settings that matter for time, for the result file."""

    @abstractmethod
    def profile(self, x: Array, passes: int) -> list[Operator]:
        """What the operators took in so many runs of ``x``, by the runtime's own profiler, the slowest type first.

        Called once, on a runtime that was loaded with ``Options.profile``. Each operator's own time, without what it
        calls, so that all of them together are about a pass.
        """


def by_type(timed: Iterable[tuple[str, float, float]], passes: int) -> list[Operator]:
    """Sum (operator, calls, seconds) of several passes by operator; those that took no time are left out."""
    sums: dict[str, tuple[float, float]] = {}
    for operator, count, spent in timed:
        calls, seconds = sums.get(operator, (0.0, 0.0))
        sums[operator] = calls + count, seconds + spent
    found = [Operator(name, kind(name), calls / passes, spent / passes) for name, (calls, spent) in sums.items()]
    return sorted((one for one in found if one.seconds > 0), key=lambda one: -one.seconds)
