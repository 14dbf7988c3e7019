"""What the labels of a label map are: their names, their codes of SNOMED CT or another scheme, and their colours."""

from __future__ import annotations

import colorsys
import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy.typing as npt

from segonnx.core import files
from segonnx.errors import InputError, one_line

PRIVATE = "99SEGONNX"
"""The scheme of codes that nobody else knows."""
MAX_BYTES = 2**20
"""A larger file of codes isn't read."""
COLUMNS = ("label", "category", "type", "modifier", "region", "region_modifier", "colour")
"""The columns of a file of codes; the first three must be there."""
_NEEDED = 3
_WORD = re.compile(r"[A-Za-z0-9._-]{1,16}")
_COLOUR = re.compile(r"#([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})")
_GOLDEN = 0.618034
"""The golden ratio: multiples of it spread evenly over the circle of hues."""
_HUES, _LIGHTNESS = 13, (0.5, 0.7, 0.35)
"""The hues that are told apart easily; then they come again, lighter or darker."""

Colour = tuple[int, int, int]
Box = tuple[slice, ...]


class Code(NamedTuple):
    """A code of DICOM's code sequences: the scheme that it is of, its value there, and what it means."""

    scheme: str
    value: str
    meaning: str


@dataclass(frozen=True)
class Codes:
    """What a segment is.

    Attributes:
        category: Such as an anatomical structure.
        type: Such as the kidney.
        modifier: Such as the left one.
        region: Where it is, such as in the lung.
        region_modifier: Such as the left one.
    """

    category: Code
    type: Code
    modifier: Code | None = None
    region: Code | None = None
    region_modifier: Code | None = None


@dataclass(frozen=True)
class Segment:
    """A class or a region that a network finds.

    Attributes:
        name: Its name.
        value: The value that it has in a label map.
        labels: The values of all voxels that belong to it: one, or those of the classes that a region unites.
        codes: What it is.
        colour: What it is shown in (red, green, blue).
    """

    name: str
    value: int
    labels: tuple[int, ...]
    codes: Codes
    colour: Colour

    @property
    def coded(self) -> bool:
        """Whether others know what it is."""
        return self.codes.type.scheme != PRIVATE


def private(value: int, name: str) -> Codes:
    """The codes of a label that nobody gave any."""
    return Codes(Code(PRIVATE, "CLASS", "Class of a network"), Code(PRIVATE, f"LABEL-{value}", text(name)))


def colour(value: int) -> Colour:
    """The colour of a label that nobody gave any: always the same one."""
    red, green, blue = colorsys.hls_to_rgb(value * _GOLDEN % 1, _LIGHTNESS[value // _HUES % len(_LIGHTNESS)], 0.8)
    return round(255 * red), round(255 * green), round(255 * blue)


def text(given: str, length: int = 64) -> str:
    """Text as DICOM's elements of one line hold it: without the sign that parts values, and not too long."""
    return one_line(given.replace("\\", "/").strip() or "-", length)


@dataclass(frozen=True)
class Row:
    """A row of a file of codes.

    Attributes:
        codes: What the label is.
        colour: Its colour. None leaves it as it is.
    """

    codes: Codes
    colour: Colour | None


def read(path: Path) -> dict[str, Row]:
    """Read a file of codes.

    Args:
        path: A CSV file with the columns ``COLUMNS``. A label is a name or a value, a code ``SCHEME:VALUE:MEANING``,
            and a colour ``#rrggbb``.

    Returns:
        The rows, by their labels.

    Raises:
        InputError: It can't be read, or a row makes no sense.
    """
    try:
        content = files.read(path, MAX_BYTES).decode("utf-8-sig")
        rows = list(csv.reader(io.StringIO(content, newline=""), strict=True))
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is no CSV file in UTF-8: {error}") from error
    head = [name.strip() for name in rows[0]] if rows else []
    if not set(COLUMNS[:_NEEDED]) <= set(head) <= set(COLUMNS) or len(set(head)) != len(head):
        raise InputError(
            f"{path} must begin with the names of its columns: {','.join(COLUMNS)}; the first three are needed"
        )
    found: dict[str, Row] = {}
    for number, cells in enumerate(rows[1:], 2):
        if not any(cell.strip() for cell in cells):
            continue
        where = f"{path}, line {number}"
        if len(cells) > len(head):
            raise InputError(f"{where} has more cells than there are columns")
        row = dict(zip(head, (cell.strip() for cell in cells), strict=False))
        label = row.get("label", "")
        if not label or label in found:
            raise InputError(f"{where} names no label" if not label else f"{where} names {label!r} a second time")
        found[label] = _row(row, where)
    return found


def _row(row: Mapping[str, str], where: str) -> Row:
    for key in COLUMNS[1:_NEEDED]:
        if not row.get(key):
            raise InputError(f"{where} has no {key}")
    codes: dict[str, Code | None] = {key: _code(row[key], where) if row.get(key) else None for key in COLUMNS[1:-1]}
    category, kind = codes.pop("category"), codes.pop("type")
    assert category is not None and kind is not None
    if codes["region_modifier"] is not None and codes["region"] is None:
        raise InputError(f"{where} has a region_modifier and no region")
    chosen = None
    if given := row.get("colour"):
        match = _COLOUR.fullmatch(given)
        if match is None:
            raise InputError(f"{where} has the colour {given!r}; it must be one such as #d86c36")
        red, green, blue = (int(part, 16) for part in match.groups())
        chosen = (red, green, blue)
    return Row(Codes(category, kind, **codes), chosen)


def _code(given: str, where: str) -> Code:
    parts = [part.strip() for part in given.split(":", 2)]
    if len(parts) != 3 or not all(_WORD.fullmatch(part) for part in parts[:2]) or text(parts[2]) != parts[2]:
        raise InputError(
            f"{where} has the code {given!r}; it must be SCHEME:VALUE:MEANING, such as SCT:10200004:Liver, of up to "
            "16, 16 and 64 letters"
        )
    return Code(*parts)


def overlap(segments: Sequence[Segment]) -> bool:
    """Whether a voxel may belong to several segments."""
    labels = [label for segment in segments for label in segment.labels]
    return len(set(labels)) != len(labels)


def boxes(labels: npt.NDArray[Any]) -> list[Box | None]:
    """The box of each label from 1 on; None for those that don't occur."""
    from scipy import ndimage

    found: list[Box | None] = ndimage.find_objects(labels)
    return found


def around(found: Sequence[Box | None], labels: Sequence[int]) -> Box | None:
    """The box of several labels; None if none occurs.

    Args:
        found: What ``boxes`` gave.
        labels: The labels.
    """
    own = [box for label in labels if label <= len(found) and (box := found[label - 1]) is not None]
    if not own:
        return None
    axes = zip(*own, strict=True)
    return tuple(slice(min(one.start for one in axis), max(one.stop for one in axis)) for axis in axes)
