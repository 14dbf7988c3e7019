"""Which configurations of a data set make an ensemble: those that nnU-Net found best, or those that a user names.

``nnUNetv2_find_best_configuration`` writes ``inference_information.json`` into the folder of a data set's results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segonnx.core import documents
from segonnx.errors import InputError
from segonnx.sources.nnunet.folder import locate, trained_in

INFORMATION = "inference_information.json"
MAX_BYTES = 2**24

_PART = {"type": "string", "pattern": r"^[^/\\\x00-\x1f]{1,200}$"}
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["folds", "best_model_or_ensemble"],
    "properties": {
        "folds": {
            "type": "array", "minItems": 1, "maxItems": 100,
            "items": {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 999}, {"const": "all"}]},
        },
        "best_model_or_ensemble": {
            "type": "object",
            "required": ["selected_model_or_models"],
            "properties": {
                "selected_model_or_models": {
                    "type": "array", "minItems": 1, "maxItems": 16,
                    "items": {
                        "type": "object",
                        "required": ["configuration", "trainer", "plans_identifier"],
                        "properties": {"configuration": _PART, "trainer": _PART, "plans_identifier": _PART},
                    },
                },
            },
        },
    },
}  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """The configurations of an ensemble.

    Attributes:
        dataset: the folder of the data set's results.
        models: the folders of one trainer and configuration, in nnU-Net's order.
        folds: the folds that nnU-Net says to use, as ``--fold`` takes them; None where it says nothing.
    """

    dataset: Path
    models: tuple[Path, ...]
    folds: str | None


def choose(dataset: Path, wanted: Sequence[str]) -> Choice:
    """The configurations that make an ensemble.

    Args:
        dataset: the folder of a data set's results.
        wanted: configurations, or the names of trained folders. Without any, nnU-Net's best ones are taken.

    Raises:
        InputError: the folder doesn't hold them; the message says what it holds.
    """
    try:
        models = trained_in(dataset) if dataset.is_dir() else []
        if not models:
            locate(dataset)  # which says what is wrong with it
            raise InputError(f"{dataset} is one configuration: --ensemble takes the data set's folder, with several")
        there = {model.name: model for model in models}
        if wanted:
            return Choice(dataset, tuple(_named(there, name, dataset) for name in dict.fromkeys(wanted)), None)
        if not (dataset / INFORMATION).is_file():
            raise InputError(
                f"{dataset} has no {INFORMATION}, which nnUNetv2_find_best_configuration writes: name the "
                f"configurations after --ensemble; it holds {', '.join(there)}"
            )
    except OSError as error:
        raise InputError(f"{error.filename or dataset} can't be read: {error.strerror}") from error
    content = documents.read(dataset / INFORMATION, MAX_BYTES)
    documents.require(content, _SCHEMA, dataset / INFORMATION)
    best = content["best_model_or_ensemble"]["selected_model_or_models"]
    names = [f"{one['trainer']}__{one['plans_identifier']}__{one['configuration']}" for one in best]
    folds = ",".join(dict.fromkeys(map(str, content["folds"])))
    return Choice(dataset, tuple(_named(there, name, dataset) for name in dict.fromkeys(names)), folds)


def first_stage(choice: Choice, model: Path, configuration: str) -> Path:
    """The trained folder of a cascade's first stage: that of the same trainer and plans, or else the only one.

    Args:
        choice: the ensemble.
        model: the trained folder of the second stage.
        configuration: the first stage's.

    Raises:
        InputError: there is none.
    """
    there = {found.name: found for found in trained_in(choice.dataset)}
    same = f"{model.name.rpartition('__')[0]}__{configuration}"
    return there[same] if same in there else _named(there, configuration, choice.dataset)


def _named(there: Mapping[str, Path], name: str, dataset: Path) -> Path:
    """The trained folder of this name, or the only one of a configuration of this name."""
    if name in there:
        return there[name]
    found = [model for folder, model in there.items() if folder.rpartition("__")[2] == name]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(
            f"{dataset} holds {len(found)} trained folders of {name}; name one: "
            + ", ".join(model.name for model in found)
        )
    raise InputError(f"{dataset} holds no trained folder of {name!r}; it has {', '.join(there)}")
