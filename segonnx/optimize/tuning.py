"""The entry ``tuning`` of a manifest: choices that were made by timing them, and how to make them again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from segonnx._version import __version__
from segonnx.core import documents, files, hardware
from segonnx.core.synthetic_inputs import Array
from segonnx.errors import InputError, ResourceError
from segonnx.optimize import OPTIONAL
from segonnx.optimize.algorithms import ALGORITHMS, EARLIER
from segonnx.optimize.choices import Choices

GONE = ("WinogradPhasesPass",)
"""Rewrites of earlier versions, which earlier tunings leave out."""
MAX_FILE_BYTES = 16 * 2**20

Tuning = dict[str, Any]
"""The entry. Its keys are older than some words of the code: ``forms`` holds algorithms, ``lanes`` depth chunks, and
the graph named ``stock`` is the baseline."""


def record(choices: Choices) -> Tuning:
    """The part of the entry that tells choices."""
    return {
        "without": list(choices.without),
        "forms": dict(sorted(choices.algorithms.items())),
        "lanes": choices.depth_chunks,
    }


def parse(tuning: Mapping[str, Any], where: str) -> Choices:
    """The choices that an entry tells.

    Args:
        tuning: the entry; it fits its schema.
        where: names it in messages.

    Raises:
        InputError: it names a rewrite or an algorithm that this version doesn't have.
    """
    without = [name for name in tuning["without"] if name not in GONE]
    now = {text: EARLIER.get(name, name) for text, name in tuning["forms"].items()}
    chosen = {text: name for text, name in now.items() if name is not None}
    if unknown := [name for name in without if name not in OPTIONAL]:
        raise InputError(f"{where} leaves out {unknown[0]!r}; a tuning may leave out {', '.join(OPTIONAL)}")
    if unknown := [name for name in chosen.values() if name not in ALGORITHMS]:
        raise InputError(f"{where} asks for the algorithm {unknown[0]!r}; there are {', '.join(ALGORITHMS)}")
    return Choices(tuple(without), chosen, tuning.get("lanes", 1))  # earlier tunings were made with one chunk


def read(path: Path) -> Tuning:
    """The entry of an artifact's manifest.

    Raises:
        InputError: the file can't be read, or holds no such entry that this version can replay.
    """
    content = documents.read(path, MAX_FILE_BYTES)
    tuning = content.get("tuning") if isinstance(content, dict) else None
    if not isinstance(tuning, dict):
        raise InputError(f"--tuning {path} holds no tuning: give the manifest.json of an artifact exported with --tune")
    if (wrong := documents.misfit(tuning, schema())) is not None:
        raise InputError(f"--tuning {path} doesn't fit the schema of a manifest's tuning at {wrong}")
    parse(tuning, f"--tuning {path}")
    return tuning


def schema() -> documents.Schema:
    """The JSON Schema of the entry."""
    result: documents.Schema = documents.packaged("segonnx.optimize", "tuning.schema.json")
    return result


def cache_folder() -> Path:
    """Where tunings are kept: ``$SEGONNX_CACHE``, or the user's cache folder."""
    if found := os.environ.get("SEGONNX_CACHE"):
        return Path(found)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "segonnx" / "tuning"


def cache_file(baseline: Path, x: Array, max_weight_growth: float | None, threads: int, seconds: float) -> Path:
    """The cache's file for a graph, whatever its weights are, on this machine.

    Args:
        baseline: the graph, not rewritten.
        x: the input that it is timed on.
        max_weight_growth: see ``Choices``.
        threads: of ONNX Runtime.
        seconds: that the search may take.
    """
    digest = hashlib.sha256()

    def add(what: object) -> None:
        digest.update(repr(what).encode())

    add((__version__, OPTIONAL, hardware.versions(["onnxruntime"]), hardware.describe()["cpu"], hardware.cpu_flags()))
    add((x.shape, hashlib.sha256(x.tobytes()).hexdigest(), max_weight_growth, threads, seconds))
    for node in ir.load(baseline).graph:
        add((node.op_type, sorted((name, str(attribute.value)) for name, attribute in node.attributes.items())))
        add([None if value is None else (value.name, str(value.shape)) for value in (*node.inputs, *node.outputs)])
    return cache_folder() / f"{digest.hexdigest()}.json"


def load(path: Path) -> Tuning | None:
    """What the cache's file holds; None where it holds nothing that can be used."""
    try:
        return read(path)
    except InputError:
        return None


def store(path: Path, tuning: Tuning) -> None:
    """Keep a tuning, where the folder can be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, json.dumps({"tuning": tuning}, indent=1) + "\n")
    except (OSError, ResourceError):
        return
