"""What an artifact's labels are, for those who look at its label maps: names, codes and colours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from segonnx.dicom import segments
from segonnx.dicom.segments import Code, Codes, Colour, Row, Segment
from segonnx.errors import InputError
from segonnx.predict.predictor import Described


def of(artifact: Described, codes: Path | None = None) -> list[Segment]:
    """The classes or the regions that an artifact finds, without the background.

    Their codes and colours are those of the file, or else of the artifact, or else made up.

    Args:
        artifact: The artifact.
        codes: A file of codes; see ``dicom.segments.read``.

    Raises:
        InputError: The file can't be read, or names a label that the artifact hasn't.
    """
    rows = {} if codes is None else segments.read(codes)
    known = {} if artifact.task is None else artifact.task.codes
    found = list(_segments(artifact, known, rows))
    names = {key for one in found for key in (one.name, str(one.value))}
    if unknown := [label for label in rows if label not in names]:
        raise InputError(f"{codes} has codes of {unknown[0]!r}; the labels are {', '.join(one.name for one in found)}")
    return found


def _segments(
    artifact: Described, known: Mapping[str, Mapping[str, Any]], rows: Mapping[str, Row]
) -> Iterator[Segment]:
    entries = artifact.described["labels"] or [
        {"name": f"label {value}", "value": value, "labels": [value]} for value in artifact.config.label_values
    ]
    for entry in entries:
        name, value = entry["name"], entry["value"]
        if not value or entry["labels"] == [0]:
            continue
        codes, colour = _known(known[name]) if name in known else (None, None)
        row = rows.get(name, rows.get(str(value)))
        if row is not None:
            codes, colour = row.codes, row.colour or colour
        yield Segment(
            name=name,
            value=value,
            labels=tuple(entry["labels"]),
            codes=codes or segments.private(value, name),
            colour=colour or segments.colour(value),
        )


def _known(entry: Mapping[str, Any]) -> tuple[Codes | None, Colour | None]:
    """The codes and the colour of an artifact's class; None for what it has not."""
    codes = {key: Code(*map(segments.text, value)) for key, value in entry.items() if key != "colour"}
    colour = entry.get("colour")
    whole = None
    if "category" in codes and "type" in codes:
        whole = Codes(**codes)
    return whole, None if colour is None else (colour[0], colour[1], colour[2])
