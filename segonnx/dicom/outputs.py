"""What DICOM objects that are made of a label map have in common: whose they are, and what made them."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from segonnx._version import __version__
from segonnx.core import files
from segonnx.dicom import libraries
from segonnx.dicom.segments import Code, Segment, boxes, text
from segonnx.dicom.series import Series
from segonnx.errors import InputError, ResourceError

Array = npt.NDArray[Any]

MANUFACTURER = "segonnx"
_EMPTY = (
    "AccessionNumber", "PatientBirthDate", "PatientID", "PatientName", "PatientSex", "ReferringPhysicianName",
    "StudyDate", "StudyID", "StudyTime",
)  # fmt: skip
"""What every file must have, if only without a value."""
_SEXES = ("M", "F", "O", "", None)
_LAST_NUMBER = 2**31 - 1


@dataclass(frozen=True)
class Algorithm:
    """What made a label map.

    Attributes:
        name: The artifact's name.
        version: When it was made.
        digest: The SHA-256 digest of its manifest, which holds those of its files.
    """

    name: str
    version: str
    digest: str


def occurring(labels: Array, segments: Sequence[Segment]) -> list[Segment]:
    """The segments that have a voxel; the first one, empty, if none has: a file of none is none.

    Args:
        labels: The label map.
        segments: All that there may be.
    """
    there = {value for value, box in enumerate(boxes(labels), 1) if box is not None}
    return [one for one in segments if there.intersection(one.labels)] or list(segments[:1])


def source(series: Series) -> list[Any]:
    """The headers of a series' files, in the order of its slices, with all that a file must have.

    Raises:
        InputError: The series has no frame of reference.
    """
    if not series.header.content.get("FrameOfReferenceUID"):
        raise InputError("the series has no FrameOfReferenceUID: nothing can be said of places in the patient")
    found: dict[int, Any] = {}
    for one in series.slices:
        if id(one.header) not in found:
            header = copy.copy(one.header.content)
            for keyword in _EMPTY:
                if keyword not in header:
                    setattr(header, keyword, None)
            if header.PatientSex not in _SEXES:
                header.PatientSex = None
            found[id(one.header)] = header
    return list(found.values())


def arguments(series: Series, algorithm: Algorithm, more: int) -> dict[str, Any]:
    """What highdicom's classes take of every object.

    Args:
        series: The series that it is made of.
        algorithm: What made it.
        more: What is added to the number of the source's series.
    """
    from pydicom.uid import generate_uid

    return {
        "series_instance_uid": generate_uid(prefix=None),
        "series_number": max(1, min(more + int(series.header.content.get("SeriesNumber") or 0), _LAST_NUMBER)),
        "series_description": text(f"{MANUFACTURER}: {algorithm.name}"),
        "sop_instance_uid": generate_uid(prefix=None),
        "instance_number": 1,
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": text(algorithm.name),
        "software_versions": __version__,
        "device_serial_number": algorithm.digest[:16],
        "specific_character_set": "ISO_IR 192",
    }


def identification(algorithm: Algorithm) -> Any:
    """The sequence that says which algorithm it was."""
    import highdicom
    from pydicom.sr.codedict import codes

    return highdicom.AlgorithmIdentificationSequence(
        name=text(algorithm.name),
        family=codes.DCM.ArtificialIntelligence,
        version=text(algorithm.version),
        source=f"{MANUFACTURER} {__version__}",
        parameters={"sha256": algorithm.digest},
    )


def coded(code: Code, modifier: Code | None = None, keyword: str = "") -> Any:
    """The item of a code sequence.

    Args:
        code: The code.
        modifier: What says more of it, if anything.
        keyword: The sequence in which that stands.
    """
    import highdicom

    item = highdicom.sr.CodedConcept(code.value, code.scheme, code.meaning)
    if modifier is not None:
        setattr(item, keyword, [coded(modifier)])
    return item


def kind(segment: Segment) -> Any:
    """The item of the code of a segment's type."""
    return coded(segment.codes.type, segment.codes.modifier, "SegmentedPropertyTypeModifierCodeSequence")


@contextlib.contextmanager
def making(what: str) -> Iterator[None]:
    """Make an object quietly, and say in one line without the header's values that it can't be made.

    Raises:
        InputError: The block raised something that nobody expected.
    """
    with libraries.refusing(f"no {what} can be made of this series: its header breaks DICOM's rules"):
        yield


def write(made: Any, path: Path) -> None:
    """Write an object to a file, whole or not at all.

    Raises:
        ResourceError: It can't be written.
    """
    files.require_replaceable(path)
    try:
        with files.staging(path) as scratch:
            file = scratch / "made"
            with libraries.quiet():
                made.save_as(file)
            file.chmod(0o644)
            files.publish(file, path, check=files.require_replaceable)
    except OSError as error:
        raise ResourceError(f"can't write {path}: {error.strerror or error}") from error
