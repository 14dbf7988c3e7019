"""Reads the headers of DICOM files: what each slice is, and where it is in the patient."""

from __future__ import annotations

import contextlib
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
class Header:
    """The header of a file that holds slices.

    Attributes:
        found: The file.
        content: The header, as pydicom has it. Its values are read when they are asked for: ask in ``reading``.
        kind: Its storage class.
        uid: The UID of its series.
        number: The number of its series; empty if it has none.
        description: What its series is.
        instance: Its number in the series. None if it has none.
        count: The number of slices that it says it holds.
        whole: What all files of a series have in common: what it is, and its value.
    """

    found: Found
    content: Any
    kind: str
    uid: str
    number: str
    description: str
    instance: int | None
    count: int
    whole: tuple[tuple[str, str], ...]

    @property
    def modality(self) -> str:
        """CT, MR or PET."""
        return (SINGLE | MULTIPLE)[self.kind]

    def __str__(self) -> str:
        return self.found.name if self.instance is None else f"instance {self.instance} ({self.found.name})"


@dataclass(frozen=True)
class Slice:
    """A slice of a series.

    Attributes:
        header: The header of its file.
        frame: Its number in a file of many, from 0 on. None if the file holds one slice.
        size: Its (rows, columns).
        spacing: The distances of rows and of columns in mm.
        position: The place (x, y, z) of its first pixel's centre in mm, to the left, to the back and up.
        orientation: The direction in which a row runs, then that in which a column runs.
        slope: What a stored number is multiplied by.
        intercept: What is then added.
    """

    header: Header
    frame: int | None
    size: tuple[int, int]
    spacing: tuple[float, float]
    position: tuple[float, float, float]
    orientation: tuple[float, ...]
    slope: float
    intercept: float

    def __str__(self) -> str:
        return _called(self.header, self.frame)


def _called(header: Header, frame: int | None) -> str:
    """What messages call a slice: by its frame or instance number, and its file."""
    return str(header) if frame is None else f"frame {frame + 1} of {header.found.name}"


@contextlib.contextmanager
def reading(what: object) -> Iterator[None]:
    """Read values of a header quietly, and say in one line without them that they can't be read.

    Args:
        what: The file or the slice, for the message.

    Raises:
        InputError: The block raised something that nobody expected.
    """
    with libraries.refusing(f"{what} is no intact DICOM file: its header can't be read"):
        yield


_WHOLE = {"StudyInstanceUID": "study", "PatientID": "patient", "FrameOfReferenceUID": "frame of reference"}
"""What all files of a series have in common."""


def read_header(found: Found) -> Header | None:
    """The header of a DICOM file; None if it holds no slices of CT, MR or PET.

    Raises:
        InputError: The file is damaged, or lacks what every such file has.
    """
    import pydicom

    with reading(found.name):
        content = pydicom.dcmread(found.path, stop_before_pixels=True, defer_size=_DEFERRED)
        kind = str(content.get("SOPClassUID"))
        if kind not in SINGLE and kind not in MULTIPLE:
            return None
        instance = content.get("InstanceNumber")
        header = Header(
            found=found,
            content=content,
            kind=kind,
            uid=str(content.get("SeriesInstanceUID") or ""),
            number=str(_given(content, "SeriesNumber")),
            description=str(content.get("SeriesDescription") or "no description"),
            instance=None if instance is None else int(instance),
            count=int(content.get("NumberOfFrames") or 1) if kind in MULTIPLE else 1,
            whole=tuple((what, str(_given(content, key))) for key, what in _WHOLE.items()),
        )
        for key in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
            if not content.get(key):
                raise InputError(f"{header} has no {key}")
        if not content.file_meta.TransferSyntaxUID:
            raise InputError(f"{header} has no TransferSyntaxUID")
    return header


def _given(content: Any, key: str) -> Any:
    """A value of a header; empty if it has none."""
    found = content.get(key)
    return "" if found is None else found


def slices(header: Header) -> Iterator[Slice]:
    """The slices of a file.

    Raises:
        InputError: It doesn't say where they are, or how their numbers are meant, or that makes no sense.
    """
    with reading(header):
        found = list(_frames(header) if header.kind in MULTIPLE else [_slice(header, None, [])])
    yield from found


def _frames(header: Header) -> Iterator[Slice]:
    """The slices of a file of many."""
    shared = header.content.get("SharedFunctionalGroupsSequence") or []
    own = header.content.get("PerFrameFunctionalGroupsSequence") or []
    if len(own) != header.count:
        raise InputError(f"{header.found.name} has {header.count} frames, and says of {len(own)} where they are")
    for number, groups in enumerate(own):
        yield _slice(header, number, [groups, *shared])


def _slice(header: Header, frame: int | None, groups: Sequence[Any]) -> Slice:
    """A slice of a file.

    Args:
        header: The file's header.
        frame: See ``Slice``.
        groups: Of a file of many, the functional groups of the frame, and those of all frames.
    """
    content, name = header.content, _called(header, frame)

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
        header=header,
        frame=frame,
        size=size,
        spacing=(spacing[0], spacing[1]),
        position=(x, y, z),
        orientation=orientation,
        slope=slope,
        intercept=number("RescaleIntercept", 0.0),
    )
