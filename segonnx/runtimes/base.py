"""The one interface of every runtime."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from segonnx.core.ort_session import GraphOptimization
from segonnx.core.synthetic_inputs import Array
from segonnx.runtimes.operator_kinds import kind

if TYPE_CHECKING:
    from torch import nn

Needs = Literal["network", "artifact"]
Outputs = Literal["bound", "fresh"]


@dataclass(frozen=True)
class Runnable:
    """What a runtime runs. It crosses to a process of its own, so everything in it can be pickled.

    Attributes:
        input_shape: (N, C, spatial...) of what is fed.
        build: makes the ``nn.Module`` in eval mode from the file ``weights``, for runtimes that need the network. Any
            function will do that can be pickled: it is called in the runtime's process.
        weights: the file that ``build`` reads.
        model: the ONNX file, for runtimes that need an artifact.
        cpu_model: the one that is rewritten for ONNX Runtime's CPU provider, where there is one.
    """

    input_shape: tuple[int, ...]
    build: Callable[[Path], nn.Module] | None = None
    weights: Path | None = None
    model: Path | None = None
    cpu_model: Path | None = None


@dataclass(frozen=True)
class Options:
    """How a runtime runs it.

    Attributes:
        threads: how many threads compute an operator.
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
        kind: the same words for all runtimes, one of ``operator_kinds.KINDS``.
        calls: how many of them a pass ran.
        seconds: what all of them took together in a pass.
    """

    operator: str
    kind: str
    calls: float
    seconds: float


class Runtime(ABC):
    """Loads a model once and runs it many times. A runtime never times itself.

    Each lives in a process of its own, so a class may set what holds for its whole process, such as thread counts.
    """

    name: ClassVar[str]
    """What users type after --backend."""
    needs: ClassVar[Needs]
    """What the ``Runnable`` must hold."""
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
    return sorted((operator for operator in found if operator.seconds > 0), key=lambda operator: -operator.seconds)
