"""Reads the headers of DICOM files: what each slice is, and where it is in the patient."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from segonnx.dicom import libraries
from segonnx.dicom.files import Found
from segonnx.errors import InputError

SINGLE = {
    "1.2.840.10008.5.1.4.1.1.2": "CT",
    "1.2.840.10008.5.1.4.1.1.4": "MR",
    "1.2.840.10008.5.1.4.1.1.128": "PET",
}
"""The storage classes of files that hold a slice."""
MULTIPLE = {
    "1.2.840.10008.5.1.4.1.1.2.1": "CT",
    "1.2.840.10008.5.1.4.1.1.2.2": "CT",
    "1.2.840.10008.5.1.4.1.1.4.1": "MR",
    "1.2.840.10008.5.1.4.1.1.4.4": "MR",
    "1.2.840.10008.5.1.4.1.1.130": "PET",
    "1.2.840.10008.5.1.4.1.1.128.1": "PET",
}
"""The storage classes of files that hold many: enhanced ones, and those that were converted to such."""
_DEFERRED = 2**16
"""Values of more bytes are left in the file."""


@dataclass(frozen=True)
class Slice:
    """A slice of a series.

    Attributes:
        found: Its file.
        header: The file's header, as pydicom has it.
        frame: Its number in a file of many, from 0 on. None if the file holds one slice.
        size: Its (rows, columns).
        spacing: The distances of rows and of columns in mm.
        position: The place (x, y, z) of its first pixel's centre in mm, to the left, to the back and up.
        orientation: The direction in which a row runs, then that in which a column runs.
        slope: What a stored number is multiplied by.
        intercept: What is then added.
    """

    found: Found
    header: Any
    frame: int | None
    size: tuple[int, int]
    spacing: tuple[float, float]
    position: tuple[float, float, float]
    orientation: tuple[float, ...]
    slope: float
    intercept: float

    def __str__(self) -> str:
        return _called(self.found, self.header, self.frame)

    @property
    def instance(self) -> int:
        """The number of its file in the series; -1 where it has none."""
        number = self.header.get("InstanceNumber")
        return -1 if number is None else int(number)


def _called(found: Found, header: Any, frame: int | None = None) -> str:
    """What messages call a slice: by its frame or instance number, and its file."""
    if frame is not None:
        return f"frame {frame + 1} of {found.name}"
    number = header.get("InstanceNumber")
    return found.name if number is None else f"instance {number} ({found.name})"


@dataclass(frozen=True)
class Header:
    """The header of a file that holds slices.

    Attributes:
        found: The file.
        content: The header, as pydicom has it.
    """

    found: Found
    content: Any

    @property
    def modality(self) -> str:
        """CT, MR or PET."""
        return (SINGLE | MULTIPLE)[self.content.SOPClassUID]

    @property
    def count(self) -> int:
        """The number of slices that it says it holds."""
        return int(self.content.get("NumberOfFrames") or 1) if self.content.SOPClassUID in MULTIPLE else 1


def read_header(found: Found) -> Header | None:
    """The header of a DICOM file; None if it holds no slices of CT, MR or PET.

    Raises:
        InputError: The file is damaged, or lacks what every such file has.
    """
    import pydicom

    try:
        with libraries.quiet():
            content = pydicom.dcmread(found.path, stop_before_pixels=True, defer_size=_DEFERRED)
            kind = content.get("SOPClassUID")
            if kind not in SINGLE and kind not in MULTIPLE:
                return None
            header = Header(found, content)
            missing = [
                key for key in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID") if not content.get(key)
            ]
            _called(found, content), header.count, content.file_meta.TransferSyntaxUID  # which must be readable
    except MemoryError:
        raise
    except Exception as error:
        raise _damaged(found.name) from error
    if missing:
        raise InputError(f"{_called(found, content)} has no {missing[0]}")
    return header


def _damaged(what: str) -> InputError:
    return InputError(f"{what} is no intact DICOM file: its header can't be read")


def slices(header: Header) -> Iterator[Slice]:
    """The slices of a file.

    Raises:
        InputError: It doesn't say where they are, or how their numbers are meant, or that makes no sense.
    """
    try:
        with libraries.quiet():
            found = list(_frames(header) if header.content.SOPClassUID in MULTIPLE else [_slice(header, None, [])])
    except (InputError, MemoryError):
        raise
    except Exception as error:
        raise _damaged(_called(header.found, header.content)) from error
    yield from found


def _frames(header: Header) -> Iterator[Slice]:
    """The slices of a file of many."""
    content = header.content
    shared = content.get("SharedFunctionalGroupsSequence") or [None]
    own = content.get("PerFrameFunctionalGroupsSequence") or []
    if len(own) != header.count:
        raise InputError(f"{header.found.name} has {header.count} frames, and says of {len(own)} where they are")
    for number, groups in enumerate(own):
        yield _slice(header, number, [groups, *(one for one in shared if one is not None)])


def _slice(header: Header, frame: int | None, groups: Sequence[Any]) -> Slice:
    """A slice of a file.

    Args:
        header: The file's header.
        frame: See ``Slice``.
        groups: Of a file of many, the functional groups of the frame, and those of all frames.
    """
    content, name = header.content, _called(header.found, header.content, frame)

    def value(sequence: str, key: str) -> Any:
        if frame is None:
            return content.get(key)
        return next((item.get(key) for group in groups for item in group.get(sequence) or []), None)

    def numbers(sequence: str, key: str, count: int) -> tuple[float, ...]:
        given = value(sequence, key)
        if given is None:
            raise InputError(f"{name} has no {key}, without which nobody knows where it is")
        found = tuple(float(one) for one in given) if isinstance(given, Sequence) else ()
        if len(found) != count or not all(map(math.isfinite, found)):
            raise InputError(f"{name} has a {key} that isn't {count} finite numbers")
        return found

    def number(key: str, usual: float) -> float:
        given = value("PixelValueTransformationSequence", key)
        found = usual if given is None else float(given)
        if not math.isfinite(found):
            raise InputError(f"{name} has a {key} that is no finite number")
        return found

    size = (int(content.get("Rows") or 0), int(content.get("Columns") or 0))
    if min(size) < 1:
        raise InputError(f"{name} has {size[0]} rows and {size[1]} columns")
    spacing = numbers("PixelMeasuresSequence", "PixelSpacing", 2)
    if min(spacing) <= 0:
        raise InputError(f"{name} has a PixelSpacing of {spacing[0]:g} and {spacing[1]:g} mm")
    orientation = numbers("PlaneOrientationSequence", "ImageOrientationPatient", 6)
    x, y, z = numbers("PlanePositionSequence", "ImagePositionPatient", 3)
    slope = number("RescaleSlope", 1.0)
    if slope == 0:
        raise InputError(f"{name} has a RescaleSlope of 0")
    if content.get("ModalityLUTSequence"):
        raise InputError(f"{name} has a table of values (ModalityLUTSequence), which isn't read")
    return Slice(
        header.found, content, frame, size, (spacing[0], spacing[1]), (x, y, z), orientation, slope,
        number("RescaleIntercept", 0.0),
    )  # fmt: skip
