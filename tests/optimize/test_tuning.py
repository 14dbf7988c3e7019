"""Tunings as manifests record them: what is read, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from segonnx.artifacts import manifest
from segonnx.errors import InputError
from segonnx.optimize import OPTIONAL, PASSES, tuning
from segonnx.optimize.algorithms import ALGORITHMS, EARLIER
from segonnx.optimize.choices import Choices

RECORDED_PASSES = (
    "CommuteUpsamplingPass", "MergeGroupsPass", "SplitConcatPass", "UnrollDepthPass", "PointwiseHeadPass",
)  # fmt: skip
RECORDED_ALGORITHMS = ("taps", "stacked", "pairs", "winograd", "winograd4", "winograd4_matmul")
"""Names in tunings that were written by earlier versions."""


def test_the_schema_is_that_of_a_manifest() -> None:
    assert tuning.schema() == manifest.schema()["properties"]["tuning"]


@pytest.mark.parametrize(
    ("changes", "choices"),
    [
        ({"without": [*RECORDED_PASSES, *tuning.GONE]}, Choices(without=RECORDED_PASSES, depth_chunks=1)),
        ({"lanes": 4}, Choices(depth_chunks=4)),
        *[({"forms": {"a": name}, "lanes": 2}, Choices(algorithms={"a": name})) for name in ALGORITHMS],
        ({"forms": {"a": "stacked", "b": "taps"}, "lanes": 2}, Choices(algorithms={"b": "taps"})),
        ({"forms": {"a": "pairs", "b": "winograd4_matmul"}, "lanes": 2}, Choices(algorithms={"b": "winograd4"})),
    ],
)
def test_earlier_tunings_are_read(changes: dict[str, Any], choices: Choices, tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(entry(**changes))
    assert tuning.parse(tuning.read(path), "it") == choices


def test_choices_are_read_as_they_were_recorded() -> None:
    choices = Choices(OPTIONAL[:2], {"b": "taps", "a": "winograd"}, 4)
    assert tuning.parse(tuning.record(choices), "it") == choices


def test_a_tuning_may_leave_out_what_is_there_for_speed_alone() -> None:
    assert set(OPTIONAL) == {rewrite.__name__ for rewrite in PASSES} - {"StableInstanceNormPass"}
    assert set(RECORDED_PASSES) <= set(OPTIONAL) and set(OPTIONAL).isdisjoint(tuning.GONE)
    assert set(RECORDED_ALGORITHMS) == {*ALGORITHMS, *EARLIER}


def entry(**changes: Any) -> str:
    """A manifest with a tuning, some of whose keys are others; None leaves one out."""
    whole = {
        "kept": "tuned", "without": [], "forms": {}, "medians_s": {"stock": 2.0, "tuned": 1.0},
        "search": {"complete": True, "races": 1, "layers": [], "seconds": 1.0},
        "machine": {"cpu": "some", "threads": 2, "onnxruntime": "1.32.0"},
    }  # fmt: skip
    return json.dumps({"tuning": {key: value for key, value in (whole | changes).items() if value is not None}})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "isn't JSON"),
        ("[]", "holds no tuning"),
        ("[" * 100_000, "isn't JSON"),
        ('{"name": "x"}', "holds no tuning"),
        (entry(forms=[]), "at forms: [] is not of type 'object'"),
        (entry(kept=None), "'kept' is a required property"),
        (entry(medians_s={"stock": 0}), "at medians_s/stock"),
        (entry(without=["StableInstanceNormPass"]), "may leave out"),
        (entry(forms={"a": "os.system"}), "asks for the algorithm 'os.system'"),
        (entry(forms={"a": ["taps"]}), "at forms/a"),
        (entry(lanes=0), "at lanes: 0 is less than the minimum of 1"),
        (entry(lanes=65), "at lanes: 65 is greater than the maximum of 64"),
        (entry(lanes="2"), "at lanes: '2' is not of type 'integer'"),
    ],
)
def test_a_file_without_a_tuning_is_refused(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(content)
    with pytest.raises(InputError, match=re.escape(message)):
        tuning.read(path)


def test_a_tuning_from_before_there_were_chunks_has_one(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(entry())
    assert tuning.parse(tuning.read(path), "it") == Choices(depth_chunks=1)
