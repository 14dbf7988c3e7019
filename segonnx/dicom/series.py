"""A series of slices as one volume: chosen among others, sorted along the normal, and checked to be evenly spaced."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from segonnx.core import subprocesses
from segonnx.core.subprocesses import Progress
from segonnx.dicom import files, slices
from segonnx.dicom.slices import Header, Slice
from segonnx.errors import InputError

Numbers = npt.NDArray[np.float64]

TURNED = 1e-4
"""How far the cosines of a slice may be from those of the first one."""
SKEWED = 1e-3
"""How far the axes of a slice may be from unit length and a right angle."""
UNEVEN_MM, UNEVEN = 0.05, 0.01
"""How far a slice may lie from where even distances put it: in mm, or as a fraction of the distance."""
ASIDE = 0.1
"""How far a slice may lie beside the normal through the first one, as a fraction of a pixel."""
SAME_MM = 1e-3
"""Slices that are closer lie at the same place."""
GAP = 1.5
"""From so many times the usual distance on, a slice is missing."""


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a volume are, in mm to the left, to the back and up, as DICOM and SimpleITK have it.

    Attributes:
        shape: The number of (slices, rows, columns).
        spacing: The distances (x, y, z) of columns, rows and slices.
        origin: The place (x, y, z) of the first voxel.
        direction: The directions of the axes x, y and z as columns of a matrix (3, 3).
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: Numbers


@dataclass(frozen=True)
class Series:
    """A series that makes one volume.

    Attributes:
        slices: Its slices, along the normal of the first one.
        grid: Where its voxels are.
    """

    slices: tuple[Slice, ...]
    grid: Grid

    @property
    def header(self) -> Header:
        """The header of the first slice's file."""
        return self.slices[0].header

    @property
    def window(self) -> tuple[float, float] | None:
        """The centre and the width of the window that its images are shown in, if they say so."""
        with slices.reading(self.header):
            centre, width = (_any(self.header, "FrameVOILUTSequence", key) for key in ("WindowCenter", "WindowWidth"))
        return None if centre is None or width is None or width <= 0 else (centre, width)


def _any(header: Header, sequence: str, key: str) -> float | None:
    """A number of a header: its own, or that of all frames or the first one, in this functional group."""
    groups = (
        group
        for name in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
        for group in (header.content.get(name) or [])[:1]
    )
    items = (item for group in groups for item in group.get(sequence) or [])
    return next((found for one in (header.content, *items) if (found := _first(one.get(key))) is not None), None)


def _first(given: Any) -> float | None:
    """The first of one or several numbers; None where it is none."""
    try:
        found = float(given[0] if isinstance(given, Sequence) and not isinstance(given, str) else given)
    except (TypeError, ValueError, IndexError):
        return None
    return found if math.isfinite(found) else None


def find(
    source: Path,
    wanted: str | None,
    scratch: Path,
    progress: Progress = subprocesses.silent,
    most_bytes: int | None = None,
) -> Series:
    """Find the series in a folder or a zip file.

    Args:
        source: A folder, a zip file, or a file of many slices.
        wanted: The UID or the number of the series, where there are several.
        scratch: A folder for what is in a zip file. It must stay as long as the series is used.
        progress: A progress callback.
        most_bytes: The most bytes that a zip file may hold. None lets its own size decide.

    Raises:
        InputError: There is no such series, there are several, or its slices don't make a volume. The message names
            the slice.
    """
    headers = []
    every = files.find(source, scratch, progress, most_bytes)
    for number, found in enumerate(every, 1):
        progress(f"looking at file {number} of {len(every)}")
        if (header := slices.read_header(found)) is not None:
            headers.append(header)
    if not headers:
        raise InputError(f"{source} holds {len(every)} DICOM files, and none is a slice of CT, MR or PET")
    return of_slices([one for header in choose(headers, wanted, source) for one in slices.slices(header)])


def choose(headers: Sequence[Header], wanted: str | None, source: Path) -> list[Header]:
    """The files of one series.

    Args:
        headers: Those of all files.
        wanted: The UID or the number of the series. None takes the only one.
        source: Where they are, for messages.

    Raises:
        InputError: There is no such series, or there are several.
    """
    series: dict[str, list[Header]] = {}
    for header in headers:
        series.setdefault(header.uid, []).append(header)
    fitting = series
    if wanted is not None:
        fitting = {uid: own for uid, own in series.items() if wanted in (uid, own[0].number)}
    if len(fitting) == 1:
        return next(iter(fitting.values()))
    shown = fitting or series
    unsure = len({own[0].number for own in shown.values()}) < len(shown)
    listed = "; ".join(_line(uid, own, unsure) for uid, own in shown.items())
    if not fitting:
        raise InputError(f"{source} holds no series {wanted!r}, but {listed}")
    raise InputError(f"{source} holds {len(fitting)} series: choose one with --series: {listed}")


def _line(uid: str, headers: Sequence[Header], unsure: bool) -> str:
    """A series in a few words, with its UID where its number doesn't tell it from others."""
    header = headers[0]
    named = header.number or "without a number"
    if unsure:
        named += f" ({uid})"
    return f"{named}: {header.description}, {header.modality}, {sum(one.count for one in headers)} slices"


def of_slices(found: Iterable[Slice]) -> Series:
    """The volume that slices make.

    Raises:
        InputError: They don't make one. The message names the slice.
    """
    given = sorted(found, key=lambda one: (one.header.instance or 0, one.frame or 0, one.header.found.name))
    first = given[0]
    for one in given[1:]:
        _require_alike(one, first)
    x, y, normal = _axes(first)
    places = np.array([one.position for one in given])
    heights = (places - places[0]) @ normal
    order = np.argsort(heights, kind="stable")
    ordered, places, heights = tuple(given[place] for place in order), places[order], heights[order]
    if len(ordered) > 1:
        _require_apart(ordered, heights)
        _require_upright(ordered, places, normal)
        _require_even(ordered, heights)
        distance = float(np.linalg.norm(places[-1] - places[0])) / (len(ordered) - 1)
    else:
        distance = _thickness(first)
    begin = ordered[0]
    grid = Grid(
        shape=(len(ordered), *begin.size),
        spacing=(begin.spacing[1], begin.spacing[0], distance),
        origin=begin.position,
        direction=np.column_stack([x, y, normal]),
    )
    return Series(ordered, grid)


def _require_alike(one: Slice, first: Slice) -> None:
    """See to it that two slices may be of one volume.

    Raises:
        InputError: They may not.
    """
    if one.size != first.size:
        raise InputError(f"{one} has {one.size[0]}x{one.size[1]} pixels, {first} {first.size[0]}x{first.size[1]}")
    if not np.allclose(one.spacing, first.spacing, rtol=1e-4, atol=0):
        raise InputError(
            f"{one} has pixels of {one.spacing[0]:g}x{one.spacing[1]:g} mm, {first} of "
            f"{first.spacing[0]:g}x{first.spacing[1]:g} mm"
        )
    if not np.allclose(one.orientation, first.orientation, rtol=0, atol=TURNED):
        raise InputError(f"{one} lies in another direction than {first}: they make no volume")
    for (what, own), (_, usual) in zip(one.header.whole, first.header.whole, strict=True):
        if own != usual:
            raise InputError(f"{one} is of another {what} than {first}, and of the same series")


def _axes(one: Slice) -> tuple[Numbers, Numbers, Numbers]:
    """The unit vectors along a row, along a column, and of the normal.

    Raises:
        InputError: They aren't at right angles.
    """
    x, y = np.array(one.orientation[:3]), np.array(one.orientation[3:])
    lengths = np.linalg.norm(x), np.linalg.norm(y)
    if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(x @ y)) > SKEWED:
        raise InputError(f"{one} has rows and columns that aren't at right angles, or no unit vectors")
    x = x / lengths[0]
    y = y - (x @ y) * x
    y = y / np.linalg.norm(y)
    return x, y, np.cross(x, y)


def _require_apart(ordered: Sequence[Slice], heights: Numbers) -> None:
    for (one, other), gap in zip(itertools.pairwise(ordered), np.diff(heights), strict=True):
        if gap < SAME_MM:
            raise InputError(
                f"{one} and {other} lie at the same place: the series holds slices twice, or several images"
            )


def _require_upright(ordered: Sequence[Slice], places: Numbers, normal: Numbers) -> None:
    """Refuse slices that are shifted against each other, as a tilted gantry makes them."""
    moved = places - places[0]
    aside = np.linalg.norm(moved - np.outer(moved @ normal, normal), axis=1)
    if aside.max() <= ASIDE * min(ordered[0].spacing):
        return
    number = int(aside.argmax())
    degrees = math.degrees(math.atan2(aside[number], float(moved[number] @ normal)))
    raise InputError(
        f"{ordered[number]} lies {aside[number]:.1f} mm beside the normal through {ordered[0]}, as from a gantry "
        f"tilted by {degrees:.1f} degrees: such a series is no box of voxels, resample it first"
    )


def _require_even(ordered: Sequence[Slice], heights: Numbers) -> None:
    """Refuse slices between which one is missing, or that aren't evenly spaced."""
    gaps = np.diff(heights)
    usual = float(np.median(gaps))
    for number, gap in enumerate(gaps):
        if gap > GAP * usual:
            raise InputError(
                f"a slice is missing between {ordered[number]} and {ordered[number + 1]}: they lie {gap:.4g} mm apart, "
                f"others {usual:.4g} mm"
            )
    even = np.linspace(heights[0], heights[-1], len(heights))
    off = np.abs(heights - even)
    number = int(off.argmax())
    if off[number] > max(UNEVEN_MM, UNEVEN * usual):
        raise InputError(
            f"the slices aren't evenly spaced: {ordered[number]} lies {off[number]:.4g} mm from where it would be; "
            f"the usual distance is {usual:.4g} mm"
        )


def _thickness(one: Slice) -> float:
    """The thickness of the only slice in mm."""
    with slices.reading(one):
        given = [_any(one.header, "PixelMeasuresSequence", key) for key in ("SpacingBetweenSlices", "SliceThickness")]
    for found in given:
        if found is not None and found > 0:
            return found
    raise InputError(f"{one} is the only slice, and says nothing of its thickness")
