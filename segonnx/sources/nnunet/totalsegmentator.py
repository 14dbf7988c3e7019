"""TotalSegmentator's trained folders: which task each is of, its classes, and the licence of its weights.

The table in ``totalsegmentator.json`` is made from TotalSegmentator's own by ``tools/make_totalsegmentator.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from segonnx.core import documents


@dataclass(frozen=True)
class Task:
    """What a folder is.

    Attributes:
        name: the task's, as TotalSegmentator's users type it.
        licence: the licence of the weights.
        classes: names of the labels from 1 on.
    """

    name: str
    licence: str
    classes: tuple[str, ...]


def task(dataset: str, trainer: str) -> Task | None:
    """The task of TotalSegmentator's folder of that data set and trainer; None where it has no such.

    Args:
        dataset: the name of the data set, for example ``Dataset297_TotalSegmentator_total_3mm_1559subj``.
        trainer: the name of the trainer, for example ``nnUNetTrainer_4000epochs_NoMirroring``.
    """
    found = _tasks().get(dataset)
    if found is None or found["trainer"] != trainer:
        return None
    return Task(found["name"], found["licence"], tuple(found["classes"]))


def _tasks() -> dict[str, dict[str, Any]]:
    tasks: dict[str, dict[str, Any]] = documents.packaged("segonnx.sources.nnunet", "totalsegmentator.json")
    return tasks
