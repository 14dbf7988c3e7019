"""The one interface of every runtime."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from segonnx.catalog import System
from segonnx.inputs import Array

Needs = Literal["network", "artifact"]


@dataclass(frozen=True)
class Subject:
    """What is run.

    Attributes:
        system: the network, for runtimes that need it.
        weights: safetensors of the network's inference form, for the same.
        model: the ONNX file, for runtimes that need an artifact.
    """

    system: System | None = None
    weights: Path | None = None
    model: Path | None = None


@dataclass(frozen=True)
class Options:
    """How it is run.

    Attributes:
        threads: of each operator.
        bf16: compute in bfloat16 where the runtime's autocast does; float32 otherwise.
    """

    threads: int
    bf16: bool = False


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
    def load(self, subject: Subject, options: Options, example: Array) -> None:
        """Make ready to run inputs like ``example``; all that is done once belongs here, compilation too."""

    @abstractmethod
    def run(self, x: Array) -> Array:
        """Logits (N, classes, spatial...) of the input (N, C, spatial...).

        The result may be overwritten by the next run.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of everything that ``load`` took."""

    @abstractmethod
    def describe(self) -> dict[str, str]:
        """The settings that matter for time, for the result file."""
