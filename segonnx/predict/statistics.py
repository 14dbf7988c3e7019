"""Numbers of each label of a label map: its volume, what the image holds there, and where it lies."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segonnx.core import files
from segonnx.dicom.segments import Box, Segment, around, boxes
from segonnx.errors import InputError
from segonnx.predict.images import Image
from segonnx.predict.interpolation import AnyArray
from segonnx.predict.readers import READERS

ENDINGS = (".csv", ".json")
"""The endings of the files that are written."""


@dataclass(frozen=True)
class Row:
    """The numbers of a label or a region.

    Attributes:
        label: Its value in the label map.
        name: Its name.
        voxels: How many it has.
        ml: Its volume in millilitres.
        mean: For each channel of the image the mean of its voxels. None if it has none.
        std: For each channel their standard deviation, as of a sample. None if it has less than two.
        box: The least and the largest place of it in mm, (x, y, z) to the left, to the back and up: the corners of the
            box, parallel to these axes, that just holds its voxels. None if it has none.
        touches_border: One of its voxels is an outermost one of the image.
    """

    label: int
    name: str
    voxels: int
    ml: float
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    box: tuple[tuple[float, ...], tuple[float, ...]] | None
    touches_border: bool


def require(path: Path) -> None:
    """See to it that a file can be written by what it is called.

    Raises:
        InputError: Its ending isn't known.
    """
    if path.suffix.lower() not in ENDINGS:
        raise InputError(f"--statistics writes {' and '.join(ENDINGS)} files; found {path}")


def rows(labels: AnyArray, image: Image, segments: Sequence[Segment]) -> list[Row]:
    """The numbers of every segment.

    Args:
        labels: The label map (z, y, x).
        image: The image, as the network sees it.
        segments: The segments.

    Raises:
        InputError: The image doesn't say where its voxels are.
    """
    matrix = READERS[image.reader].matrix(image.geometry)
    if matrix is None:
        raise InputError("--statistics is for images of three dimensions with a spacing in mm")
    places = boxes(labels)
    return [_row(labels, image, one, around(places, one.labels), matrix) for one in segments]


def _row(labels: AnyArray, image: Image, segment: Segment, box: Box | None, matrix: AnyArray) -> Row:
    if box is None:
        return Row(segment.value, segment.name, 0, 0.0, None, None, None, touches_border=False)
    mask = np.isin(labels[box], segment.labels)
    voxels = int(np.count_nonzero(mask))
    values = [channel[box][mask].astype(np.float64) for channel in image.array]
    return Row(
        label=segment.value,
        name=segment.name,
        voxels=voxels,
        ml=voxels * abs(float(np.linalg.det(matrix[:3, :3]))) / 1000,
        mean=tuple(float(one.mean()) for one in values),
        std=tuple(float(one.std(ddof=1)) for one in values) if voxels > 1 else None,
        box=_extent(mask, box, matrix),
        touches_border=any(one.start == 0 or one.stop == size for one, size in zip(box, labels.shape, strict=True)),
    )


def _extent(mask: AnyArray, box: Box, matrix: AnyArray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The least and the largest place of a mask's voxels, whose corners count."""
    z, y = np.nonzero(mask.any(axis=2))
    lines = mask[z, y]
    # Of a line of voxels the ends alone can be outermost.
    first, last = lines.argmax(axis=1), mask.shape[2] - 1 - lines[:, ::-1].argmax(axis=1)
    ends = np.concatenate([np.stack([x, y, z]) for x in (first, last)], axis=1)
    places = matrix[:3, :3] @ (ends + np.array([[one.start] for one in reversed(box)])) + matrix[:3, 3:]
    half = np.abs(matrix[:3, :3]).sum(axis=1) / 2
    return tuple((places.min(axis=1) - half).tolist()), tuple((places.max(axis=1) + half).tolist())


def write(found: Sequence[Row], channels: int, path: Path) -> None:
    """Write the numbers as a table, or as JSON.

    Args:
        found: The rows.
        channels: The number of the image's channels.
        path: The file, whose ending says which.

    Raises:
        ResourceError: The file can't be written.
    """
    every = [_entry(one, channels) for one in found]
    files.require_writable(path)
    files.write(path, _table(every) if path.suffix.lower() == ".csv" else json.dumps(every, indent=1) + "\n")


def _entry(row: Row, channels: int) -> dict[str, Any]:
    """A row by its columns. Those of several channels have the channel's number behind them."""
    entry: dict[str, Any] = {"label": row.label, "name": row.name, "voxels": row.voxels, "ml": row.ml}
    for channel in range(channels):
        number = "" if channels == 1 else f"_{channel:04}"
        entry[f"mean{number}"] = None if row.mean is None else row.mean[channel]
        entry[f"std{number}"] = None if row.std is None else row.std[channel]
    for place, axis in enumerate("xyz"):
        for end, what in enumerate(("min", "max")):
            entry[f"{axis}_{what}_mm"] = None if row.box is None else row.box[end][place]
    return entry | {"touches_border": row.touches_border}


def _table(every: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    table = csv.DictWriter(text, fieldnames=list(every[0]) if every else [], lineterminator="\n")
    table.writeheader()
    for entry in every:
        table.writerow({key: _cell(value) for key, value in entry.items()})
    return text.getvalue()


def _cell(value: object) -> object:
    """A value as a table has it. What a spreadsheet would compute isn't: a name may be a stranger's formula."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.9g}"
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@")):
        return f"'{value}"
    return value
