"""What a task.json says against itself or its networks is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from segonnx.artifacts import tasks
from segonnx.core import documents
from segonnx.errors import InputError


def stage(name: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "spacing": [1.5, 1.5, 1.5],
        "step": 0.5,
        "networks": [{"folder": f"members/{name}", "labels": None}],
        "labels": [{"value": 1, "name": "liver"}, {"value": 2, "name": "spleen"}],
        "crop": None,
        "drop": [],
        "steps": [],
        "outside": None,
        "within": None,
        **more,
    }


def document() -> dict[str, Any]:
    around = {"stage": "rough", "labels": ["liver"]}
    fine = stage("fine", crop={**around, "margin": [20.0, 20.0, 20.0]}, outside={**around, "mm": 10.0})
    fine["steps"] = [{"step": "keep_largest", "labels": ["liver"]}]
    return {
        "schema_version": 1, "name": "fine", "source": "a test", "modality": "CT", "licence": "unknown",
        "stages": [stage("rough"), fine], "subset": None, "derived": [], "codes": {},
    }  # fmt: skip


def _choice(content: dict[str, Any], name: str = "rough") -> None:
    content["stages"][1] |= {"crop": None, "outside": None}
    content["subset"] = {"stage": name, "margin": [20.0, 20.0, 20.0]}


def _both(content: dict[str, Any]) -> None:
    content["subset"] = {"stage": "rough", "margin": [20.0, 20.0, 20.0]}


def _last(content: dict[str, Any]) -> None:
    _choice(content, "fine")


def _mask(content: dict[str, Any]) -> None:
    content["derived"] = [{"name": "all", "kind": "union", "of": ["liver", "nose"]}]


def _named_alike(content: dict[str, Any]) -> None:
    content["stages"][0]["labels"][1]["name"] = "Liver"


def _valued_alike(content: dict[str, Any]) -> None:
    content["stages"][0]["labels"][1]["value"] = 1


def _unnamed(content: dict[str, Any]) -> None:
    content["stages"][0]["networks"][0]["labels"] = {"1": 7}


def _step(content: dict[str, Any]) -> None:
    content["stages"][1]["steps"][0]["labels"] = ["nose"]


def _class(content: dict[str, Any]) -> None:
    content["stages"][1]["outside"]["labels"] = ["nose"]


def _order(content: dict[str, Any]) -> None:
    content["stages"].reverse()


def _twice(content: dict[str, Any]) -> None:
    content["stages"][1]["name"] = "rough"


def test_a_whole_document_is_taken_and_written() -> None:
    content = document()
    assert documents.parse(tasks.dump(content, "a test"), "task.json", tasks.MAX_BYTES) == content
    _choice(content)
    tasks.dump(content, "a test")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_last, "fine is no earlier stage"),
        (_both, "cropped without it, too"),
        (_mask, "all is there already, or made of what isn't there"),
        (_named_alike, "labels: two have the same name"),
        (_valued_alike, "labels: two have the same value"),
        (_unnamed, "networks: the label 7 has no name"),
        (_step, "steps: there is no nose"),
        (_class, "outside/labels: rough has no nose"),
        (_order, "crop/stage: rough is no earlier stage"),
        (_twice, "name: rough is there twice"),
    ],
)
def test_a_contradiction_is_named(damage: Callable[[dict[str, Any]], None], message: str) -> None:
    content = document()
    damage(content)
    with pytest.raises(InputError, match=message):
        tasks.dump(content, "a test")


@pytest.mark.parametrize(
    ("key", "value"),
    [("name", "../x"), ("name", "a/b"), ("stages", []), ("modality", "PET"), ("source", "two\nlines"), ("more", 1)],
)
def test_what_does_not_fit_the_schema_is_refused(key: str, value: object) -> None:
    with pytest.raises(InputError, match="doesn't fit its schema"):
        tasks.dump(document() | {key: value}, "a test")


def network(**more: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"image_reader_writer": "SimpleITKIO", "channels": [{}], "previous_stage": None}
    return {"inference": {}, "preprocessing": given | more, "labels": [{"value": 2}]}


def test_networks_that_do_not_go_with_the_task_are_named() -> None:
    content, fits = document(), {"members/rough": network(), "members/fine": network()}
    assert tasks.misfit(content, fits) is None
    assert "by task.json alone" in str(tasks.misfit(content, {"members/rough": network()}))
    assert "by the manifest alone" in str(tasks.misfit(content, {**fits, "members/other": network()}))
    wrong: dict[str, dict[str, Any]] = {
        "second stage": network(previous_stage={"configuration": "3d_lowres", "labels": [1]}),
        "2 channels": network(channels=[{}, {}]),
        "above 255": network() | {"labels": [{"value": 256}]},
        "how images are predicted": {key: value for key, value in network().items() if key != "inference"},
    }
    for message, one in wrong.items():
        assert message in str(tasks.misfit(content, {**fits, "members/fine": copy.deepcopy(one)}))
