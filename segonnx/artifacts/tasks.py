"""task.json: how the networks of a task make one label map."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from segonnx.artifacts import layout
from segonnx.artifacts.manifest import Manifest
from segonnx.core import documents
from segonnx.errors import VerifyError

SCHEMA_VERSION = 1
MAX_BYTES = 2**22
"""A larger task.json isn't read."""

TaskDocument = dict[str, Any]


def schema() -> dict[str, Any]:
    """The JSON Schema of task.json."""
    result: dict[str, Any] = documents.packaged("segonnx.artifacts", "task.schema.json")
    return result


def read(folder: Path, content: Manifest) -> TaskDocument:
    """The task.json of an artifact, checked against its schema and against itself.

    Args:
        folder: the artifact.
        content: its manifest.

    Raises:
        VerifyError: it isn't there, doesn't fit, or is of another task than the manifest's.
    """
    path = folder / layout.TASK
    if layout.TASK not in content["files"]:
        raise VerifyError(f"{folder} lacks {layout.TASK}")
    found: TaskDocument = documents.read(path, MAX_BYTES, error=VerifyError)
    documents.require(found, schema(), path, contradiction, error=VerifyError)
    if found["name"] != content["task"]:
        raise VerifyError(f"{path} is of the task {found['name']}, the manifest says {content['task']}")
    return found


def dump(document: TaskDocument, where: str) -> bytes:
    """The bytes of task.json, if every reader takes them.

    Args:
        document: what it holds.
        where: what it is of, for messages.

    Raises:
        InputError: it doesn't fit its schema, or contradicts itself.
    """
    documents.require(document, schema(), f"{where}: {layout.TASK}", contradiction)
    return (json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def folders(document: TaskDocument) -> list[str]:
    """The folders of the networks, each once, in the order in which they are run."""
    return list(dict.fromkeys(network["folder"] for stage in document["stages"] for network in stage["networks"]))


def contradiction(document: TaskDocument) -> str | None:
    """The first place where a task.json that fits its schema contradicts itself, and why; None where it doesn't."""
    earlier: dict[str, set[str]] = {}
    for number, stage in enumerate(document["stages"]):
        if (wrong := _wrong_in(stage, earlier)) is not None:
            return f"stages/{number}/{wrong}"
        earlier[stage["name"]] = {label["name"] for label in stage["labels"]}
    final, subset = document["stages"][-1], document["subset"]
    if subset is not None:
        needed = {referred["stage"] for stage in document["stages"] for _, referred in _references(stage)}
        if subset["stage"] not in earlier.keys() - {final["name"]}:
            return f"subset/stage: {subset['stage']} is no earlier stage"
        if final["crop"] is not None or subset["stage"] in needed:
            return "subset: the image is cropped without it, too"
    known = set(earlier[final["name"]])
    for mask in document["derived"]:
        if mask["name"] in known or not known.issuperset(mask["of"]):
            return f"derived: {mask['name']} is there already, or made of what isn't there"
        known.add(mask["name"])
    return None


def _wrong_in(stage: Mapping[str, Any], earlier: Mapping[str, set[str]]) -> str | None:
    """What a stage says against itself, or against the names of the earlier stages' classes; None where nothing."""
    names = [label["name"] for label in stage["labels"]]
    if stage["name"] in earlier:
        return f"name: {stage['name']} is there twice"
    for key in ("name", "value"):
        # Names differ in more than their case: on some systems their files would be one.
        found = [str(label[key]).lower() for label in stage["labels"]]
        if len(set(found)) != len(found):
            return f"labels: two have the same {key}"
    for where, referred in _references(stage):
        if referred["stage"] not in earlier:
            return f"{where}/stage: {referred['stage']} is no earlier stage"
        if missing := [name for name in referred["labels"] if name not in earlier[referred["stage"]]]:
            return f"{where}/labels: {referred['stage']} has no {missing[0]}"
    values = {label["value"] for label in stage["labels"]}
    for network in stage["networks"]:
        if unnamed := sorted(set((network["labels"] or {}).values()) - values):
            return f"networks: the label {unnamed[0]} has no name"
    for step in stage["steps"]:
        if missing := [name for name in step["labels"] if name not in names]:
            return f"steps: there is no {missing[0]}"
    return None


def _references(stage: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The entries of a stage that name classes of an earlier one."""
    for where in ("crop", "outside", "within"):
        if stage[where] is not None:
            yield where, stage[where]


def misfit(document: TaskDocument, described: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Why a task and its networks don't go together; None if they do.

    Args:
        document: the content of task.json.
        described: by a member's folder, its manifest, or the entries of it that say what inference needs.
    """
    used = folders(document)
    if other := sorted(set(used) ^ set(described)):
        return f"{other[0]} is named by {'task.json' if other[0] in used else 'the manifest'} alone"
    for name in used:
        own = described[name]
        if "inference" not in own or "image_reader_writer" not in own["preprocessing"]:
            return f"the manifest of {name} doesn't say how images are predicted"
        if own["preprocessing"].get("previous_stage") is not None:
            return f"{name} is a second stage of a cascade"
        if len(own["preprocessing"]["channels"]) != 1:
            return f"{name} takes {len(own['preprocessing']['channels'])} channels; a task has one"
        if max(label["value"] for label in own["labels"]) > 255:
            return f"{name} gives labels above 255"
    return None
