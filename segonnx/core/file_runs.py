"""Runs an artifact's file in a runtime, whole: every input by its name, every output. Nothing here is timed."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy.typing as npt

from segonnx.core.ort_session import SessionSettings, open_session
from segonnx.core.tolerances import Agreement, Difference
from segonnx.errors import InputError

Arrays = Mapping[str, npt.NDArray[Any]]
Run = Callable[[Arrays], list[npt.NDArray[Any]]]
"""The outputs of a model in the graph's order, for its inputs by their names; names that it hasn't are passed over."""


class _Library(NamedTuple):
    """A runtime: what people call it, its module, and why it may be missing."""

    title: str
    module: str
    missing: str


LIBRARIES = {
    "ort": _Library("ONNX Runtime", "onnxruntime", "ONNX Runtime isn't installed: pip install onnxruntime"),
    "openvino": _Library("OpenVINO", "openvino", "OpenVINO isn't installed: pip install 'segonnx[openvino]'"),
}
"""The runtimes that run an artifact's file, by the names of ``segonnx.runtimes``."""
NAMES = tuple(LIBRARIES)


@dataclass(frozen=True)
class Replayed:
    """How far a runtime's outputs are from the recorded ones.

    Attributes:
        runtime: one of ``NAMES``.
        version: of its library.
        difference: of what differs most.
    """

    runtime: str
    version: str
    difference: Difference | Agreement

    def __str__(self) -> str:
        return line(self.entry)

    @property
    def entry(self) -> dict[str, Any]:
        """What a manifest says of it, and ``--json``: labels have no errors but their agreement."""
        keys = ("max_rel_error", "rms_rel_error", "label_agreement")
        found = {key: getattr(self.difference, key) for key in keys if hasattr(self.difference, key)}
        return {"runtime": self.runtime, "version": self.version, **found}


def line(entry: Mapping[str, Any]) -> str:
    """What ``Replayed.entry`` says, for people; in a manifest the runtime may be one that isn't known here."""
    known = LIBRARIES.get(entry["runtime"])
    errors = ""
    if "max_rel_error" in entry and "rms_rel_error" in entry:
        errors = f"max {entry['max_rel_error']:.1e}, rms {entry['rms_rel_error']:.1e} of std, "
    called = known.title if known is not None else entry["runtime"]
    return f"{called} {entry['version']}: {errors}labels {100 * entry['label_agreement']:.4f} %"


def chosen(names: str | Iterable[str] | None, argument: str) -> tuple[str, ...]:
    """The runtimes that somebody named, each once, and all of them installed.

    Args:
        names: one or several of ``NAMES``.
        argument: what named them, for messages.

    Raises:
        InputError: there is no such runtime, or it isn't installed.
    """
    found = tuple(dict.fromkeys([names] if isinstance(names, str) else names or ()))
    for name in found:
        if name not in NAMES:
            raise InputError(f"{argument} takes {' and '.join(NAMES)}; found {name!r}")
        if importlib.util.find_spec(LIBRARIES[name].module) is None:
            raise InputError(f"{argument} {name}: {LIBRARIES[name].missing}")
    return found


def title(runtime: str) -> str:
    """The runtime with the version of its library, which is imported for that."""
    return f"{LIBRARIES[runtime].title} {version(runtime)}"


def version(runtime: str) -> str:
    """The version of a runtime's library, which is imported for that."""
    found = str(importlib.import_module(LIBRARIES[runtime].module).__version__)
    return found.partition("-")[0]  # OpenVINO's goes on with the build


def opened(runtime: str, model: Path, threads: int) -> Run:
    """Load a model in float32 on the CPU.

    Args:
        runtime: one of ``NAMES``.
        model: the file.
        threads: of each operator; 0 leaves the number to the runtime.

    Raises:
        Exception: the library's own, of many classes: the model doesn't load.
    """
    return {"ort": _in_ort, "openvino": _in_openvino}[runtime](model, threads)


def _in_ort(model: Path, threads: int) -> Run:
    session = open_session(model, SessionSettings(threads=threads, arena=False))
    names = {value.name for value in session.get_inputs()}

    def run(arrays: Arrays) -> list[npt.NDArray[Any]]:
        outputs: list[npt.NDArray[Any]] = session.run(
            None, {name: array for name, array in arrays.items() if name in names}
        )
        return outputs

    return run


def _in_openvino(model: Path, threads: int) -> Run:
    import openvino

    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "f32",  # where the processor has bfloat16 it would take that
        "NUM_STREAMS": 1,
    }
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    compiled = openvino.Core().compile_model(str(model), "CPU", settings)
    ports: Sequence[Any] = compiled.inputs

    def run(arrays: Arrays) -> list[npt.NDArray[Any]]:
        given = {port: arrays[name] for port in ports for name in port.names if name in arrays}
        results = compiled(given)
        return [results[port] for port in compiled.outputs]

    return run


def farthest(found: Iterable[Replayed]) -> tuple[Replayed, ...]:
    """Of each runtime, what differs most."""
    worst: dict[str, Replayed] = {}
    for one in found:
        known = worst.get(one.runtime)
        if known is None or one.difference.label_agreement < known.difference.label_agreement:
            worst[one.runtime] = one
    return tuple(worst.values())
