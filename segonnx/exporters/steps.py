"""The steps of an export: where each runs, and what it took.

Most steps run in a process of their own, so that no two hold the weights at once. How a network is prepared and
converted depends on where it is: one that a spec describes is built in processes of its own (``SpecSteps``), a module
of the caller's stays in the caller's process (``ModuleSteps``).
"""

from __future__ import annotations

import abc
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple

from segonnx.artifacts.manifest import Manifest
from segonnx.artifacts.verify import verify
from segonnx.core import subprocesses
from segonnx.core.subprocesses import Progress
from segonnx.core.synthetic_inputs import ParityInput
from segonnx.core.tolerances import Difference
from segonnx.errors import InputError, VerifyError
from segonnx.exporters import libraries
from segonnx.exporters.assemble import Converted
from segonnx.exporters.convert import Conversion, convert, convert_network
from segonnx.exporters.parity_inputs import of_module
from segonnx.exporters.prepare import Preparation, Prepared, Weights, adapt, needs_adapting, prepare, prepare_network
from segonnx.exporters.rounding import Rounded, answers, network_answers
from segonnx.sources.catalog import ModelSpec

if TYPE_CHECKING:
    from segonnx.models.base import BuiltModel

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """One step of an export.

    Attributes:
        seconds: what it took.
        peak_rss_bytes: the most memory that its process held.
    """

    seconds: float
    peak_rss_bytes: int


class Steps(abc.ABC):
    """Runs steps, and keeps what each took in ``stages``, by name."""

    random_weights: bool
    """Whether the network's weights are made from a seed."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.stages: dict[str, Stage] = {}

    def spawn(self, name: str, function: Callable[[*Arguments, Progress], T], *arguments: *Arguments) -> T:
        """Run ``function(*arguments, progress)`` in a process of its own.

        Raises:
            SegonnxError: see ``subprocesses.call``.
        """
        outcome = subprocesses.call(function, *arguments, progress=self.progress, preload=libraries.LIBRARIES)
        self.stages[name] = Stage(round(outcome.seconds, 3), outcome.peak_rss_bytes)
        _LOGGER.info("%s took %.1f s, peak %.2f GB", name, outcome.seconds, outcome.peak_rss_bytes / 1e9)
        return outcome.value

    @abc.abstractmethod
    def adapt(self, spec: ModelSpec) -> ModelSpec:
        """The spec as the network's weights need it."""

    @abc.abstractmethod
    def existing(self, target: Path, arguments: dict[str, Any]) -> Manifest:
        """The manifest of what is at ``target`` already, if that is to be kept.

        Raises:
            InputError: it isn't.
        """

    def test_inputs(self, spec: ModelSpec, planned: tuple[ParityInput, ...]) -> tuple[ParityInput, ...]:
        """What the network is run on, of what is planned for every network."""
        del spec
        return planned

    @abc.abstractmethod
    def prepare(self, preparation: Preparation) -> Prepared:
        """Write down the network's weights, and its answers on the test inputs."""

    @abc.abstractmethod
    def convert(self, name: str, conversion: Conversion) -> Converted:
        """Convert the network to ONNX; ``name`` is the step's."""

    @abc.abstractmethod
    def round(self, preparation: Preparation, stored: Rounded) -> Difference:
        """Write down the network's answers with its rounded weights, and give how far they are from its own."""


class SpecSteps(Steps):
    """The steps of a network that a spec describes: each step builds it in a process of its own."""

    def __init__(self, weights: Weights, threads: int, progress: Progress) -> None:
        super().__init__(progress)
        self._weights = weights
        self._threads = threads
        self.random_weights = weights.random

    def adapt(self, spec: ModelSpec) -> ModelSpec:
        return self.spawn("adapt", adapt, spec, self._weights) if needs_adapting(spec, self._weights) else spec

    def existing(self, target: Path, arguments: dict[str, Any]) -> Manifest:
        try:
            found = verify(target, replay=False, progress=self.progress).manifest
        except VerifyError as error:
            raise InputError(
                f"{target} exists and isn't an intact artifact ({error}): --overwrite replaces it"
            ) from error
        if found["arguments"] != arguments:
            made = found["arguments"]
            changed = ", ".join(key for key in arguments | made if made.get(key) != arguments.get(key))
            raise InputError(f"{target} exists, made with other arguments ({changed}): --overwrite replaces it")
        return found

    def prepare(self, preparation: Preparation) -> Prepared:
        return self.spawn("prepare", prepare, preparation, self._weights, self._threads)

    def convert(self, name: str, conversion: Conversion) -> Converted:
        return self.spawn(name, convert, conversion)

    def round(self, preparation: Preparation, stored: Rounded) -> Difference:
        return self.spawn("round", answers, preparation, stored, self._threads)


class ModuleSteps(Steps):
    """The steps of a module of the caller's, which may be defined in a script or hold what can't be pickled."""

    random_weights = False

    def __init__(self, built: BuiltModel, progress: Progress) -> None:
        super().__init__(progress)
        self._built = built
        libraries.preload()  # while this process prepares and converts

    def adapt(self, spec: ModelSpec) -> ModelSpec:
        return spec

    def existing(self, target: Path, arguments: dict[str, Any]) -> Manifest:
        del arguments  # nothing tells whether the module is the same
        raise InputError(f"{target} exists: overwrite=True replaces it")

    def test_inputs(self, spec: ModelSpec, planned: tuple[ParityInput, ...]) -> tuple[ParityInput, ...]:
        return of_module(planned, [*self._built.inputs], spec) if self._built.inputs else planned

    def prepare(self, preparation: Preparation) -> Prepared:
        return self._run("prepare", prepare_network, self._built, preparation)

    def convert(self, name: str, conversion: Conversion) -> Converted:
        return self._run(name, convert_network, self._built, conversion)

    def round(self, preparation: Preparation, stored: Rounded) -> Difference:
        return self._run("round", network_answers, self._built, preparation, stored)

    def _run(self, name: str, function: Callable[[*Arguments, Progress], T], *arguments: *Arguments) -> T:
        """Run ``function(*arguments, progress)`` in this process, with the errors of ``spawn``."""
        started = time.perf_counter()
        try:
            value = function(*arguments, self.progress)
        except Exception as error:
            raise subprocesses.translate(error) from error
        self.stages[name] = Stage(round(time.perf_counter() - started, 3), subprocesses.peak_rss_bytes())
        return value
