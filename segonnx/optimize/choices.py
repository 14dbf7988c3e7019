"""Which of the rewrites a graph gets, and in which form: what tuning chooses, and a manifest records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segonnx.artifacts.manifest import misfit
from segonnx.core import documents
from segonnx.errors import InputError
from segonnx.optimize.convolutions import FORMS
from segonnx.optimize.unroll_depth import LANES

OPTIONAL = (
    "CommuteUpsamplingPass",
    "MergeGroupsPass",
    "WinogradPhasesPass",
    "SplitConcatPass",
    "UnrollDepthPass",
    "PointwiseHeadPass",
)
"""The passes that are there for speed alone."""
MAX_FILE_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Choices:
    """What differs from the package's defaults.

    Attributes:
        without: passes of ``OPTIONAL`` that are left out.
        forms: of 3D convolutions, by the text of their ``unroll_depth.Layer``.
        lanes: that volumes travel in.
        max_weight_growth: the most that all unrolled weights may grow by their forms, times; None sets no bound.
    """

    without: tuple[str, ...] = ()
    forms: Mapping[str, str] = field(default_factory=dict)
    lanes: int = LANES
    max_weight_growth: float | None = None


STOCK = Choices(without=OPTIONAL)
"""Nothing is rewritten for speed."""


def read(path: Path) -> dict[str, Any]:
    """The entry ``tuning`` of an artifact's manifest.

    Raises:
        InputError: the file can't be read, or holds no such entry that this version can replay.
    """
    content = documents.read(path, MAX_FILE_BYTES)
    tuning = content.get("tuning") if isinstance(content, dict) else None
    if not isinstance(tuning, dict):
        raise InputError(f"--tuning {path} holds no tuning: give the manifest.json of an artifact exported with --tune")
    if (wrong := misfit(tuning, "tuning")) is not None:
        raise InputError(f"--tuning {path} doesn't fit the schema of a manifest's tuning at {wrong}")
    parse(tuning, f"--tuning {path}")
    return tuning


def parse(tuning: Mapping[str, Any], where: str) -> Choices:
    """The choices that an entry ``tuning`` records; ``where`` names it in the message.

    Raises:
        InputError: it names a pass or a form that this version doesn't have.
    """
    without, forms = tuning["without"], tuning["forms"]
    if unknown := [name for name in without if name not in OPTIONAL]:
        raise InputError(f"{where} leaves out {unknown[0]!r}; a tuning may leave out {', '.join(OPTIONAL)}")
    if unknown := [form for form in forms.values() if form not in FORMS]:
        raise InputError(f"{where} asks for the form {unknown[0]!r}; there are {', '.join(FORMS)}")
    return Choices(tuple(without), forms, tuning.get("lanes", 1))  # one is what earlier tunings were made with
