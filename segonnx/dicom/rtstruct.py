"""Writes a label map as DICOM RTSTRUCT: closed planar contours of each segment on each slice, holes as keyholes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from segonnx.core import subprocesses
from segonnx.core.subprocesses import Progress
from segonnx.dicom import contours, outputs
from segonnx.dicom.outputs import Algorithm
from segonnx.dicom.segments import Box, Segment, around, boxes, text
from segonnx.dicom.series import Series
from segonnx.dicom.slices import Slice

Array = npt.NDArray[Any]

DIGITS = 4
"""The digits of a millimetre behind the point."""
_CONTOUR_DATA = 0x30060050
_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"
_NUMBER = 2000
"""What is added to the number of the source's series."""


def make(
    labels: Array,
    series: Series,
    segments: Sequence[Segment],
    algorithm: Algorithm,
    progress: Progress = subprocesses.silent,
) -> Any:
    """Make an RTSTRUCT: a structure for each segment that occurs, and references to every slice of the series.

    Args:
        labels: The label map, (slices, rows, columns) as the series has them.
        series: The series.
        segments: All that there may be.
        algorithm: What made the label map.
        progress: A progress callback.

    Returns:
        The object, as pydicom has it, for ``outputs.write``.

    Raises:
        InputError: None can be made of the series.
    """
    with outputs.making("RTSTRUCT"):
        made = _set(series, outputs.source(series)[0], algorithm)
        found = outputs.occurring(labels, segments)
        places = boxes(labels)
        for number, one in enumerate(found, 1):
            progress(f"drawing the contours of structure {number} of {len(found)}")
            _add(made, number, one, _contours(labels, one, around(places, one.labels), series))
            made.StructureSetROISequence[-1].ROIDerivationAlgorithmIdentificationSequence = outputs.identification(
                algorithm
            )
        return made


def _set(series: Series, header: Any, algorithm: Algorithm) -> Any:
    """The object without structures."""
    import highdicom
    from pydicom.dataset import Dataset
    from pydicom.uid import ImplicitVRLittleEndian

    made = highdicom.SOPClass(
        study_instance_uid=header.StudyInstanceUID,
        sop_class_uid=_CLASS,
        modality="RTSTRUCT",
        # Where types are written, a contour may hold no more than 64 KiB.
        transfer_syntax_uid=ImplicitVRLittleEndian,
        **outputs.arguments(series, algorithm, _NUMBER),
    )
    made.copy_patient_and_study_information(header)
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", *_STUDY):
        setattr(made, keyword, header.get(keyword))
    made.OperatorsName = None
    made.FrameOfReferenceUID = header.FrameOfReferenceUID
    made.PositionReferenceIndicator = header.get("PositionReferenceIndicator")
    made.StructureSetLabel = text(algorithm.name, 16)
    made.StructureSetName = text(algorithm.name)
    made.StructureSetDate, made.StructureSetTime = made.InstanceCreationDate, made.InstanceCreationTime
    made.ApprovalStatus = "UNAPPROVED"
    contained, study, frame = Dataset(), Dataset(), Dataset()
    contained.SeriesInstanceUID = header.SeriesInstanceUID
    contained.ContourImageSequence = list(
        {id(one.header): _reference(one, whole=True) for one in series.slices}.values()
    )
    study.ReferencedSOPClassUID = "1.2.840.10008.3.1.2.3.1"
    study.ReferencedSOPInstanceUID = header.StudyInstanceUID
    study.RTReferencedSeriesSequence = [contained]
    frame.FrameOfReferenceUID = header.FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    made.ReferencedFrameOfReferenceSequence = [frame]
    made.StructureSetROISequence, made.ROIContourSequence, made.RTROIObservationsSequence = [], [], []
    return made


_STUDY = ("AccessionNumber", "ReferringPhysicianName", "StudyDate", "StudyID", "StudyTime")


def _add(made: Any, number: int, segment: Segment, drawn: list[Any]) -> None:
    """Add a structure."""
    from pydicom.dataset import Dataset

    structure, contour, observation = Dataset(), Dataset(), Dataset()
    structure.ROINumber = contour.ReferencedROINumber = number
    observation.ObservationNumber = observation.ReferencedROINumber = number
    structure.ReferencedFrameOfReferenceUID = made.FrameOfReferenceUID
    structure.ROIName = text(segment.name)
    structure.ROIGenerationAlgorithm = "AUTOMATIC"
    contour.ROIDisplayColor = list(segment.colour)
    if drawn:
        contour.ContourSequence = drawn
    observation.RTROIInterpretedType = observation.ROIInterpreter = None
    observation.RTROIIdentificationCodeSequence = [outputs.kind(segment)]
    made.StructureSetROISequence.append(structure)
    made.ROIContourSequence.append(contour)
    made.RTROIObservationsSequence.append(observation)


def _contours(labels: Array, segment: Segment, box: Box | None, series: Series) -> list[Any]:
    """The contours of a segment, as items of the sequence of contours.

    Args:
        labels: The label map.
        segment: The segment.
        box: What holds it. None if it doesn't occur.
        series: The series.
    """
    from pydicom.dataset import Dataset

    if box is None:
        return []
    grid, found = series.grid, []
    along = grid.direction[:, :2] * grid.spacing[:2]
    corner = np.array([box[2].start, box[1].start])
    for one, plane in zip(series.slices[box[0]], labels[box], strict=True):
        reference = [_reference(one)]
        for ring in contours.polygons(np.isin(plane, segment.labels)):
            item = Dataset()
            item.ContourImageSequence = reference
            item.ContourGeometricType = "CLOSED_PLANAR"
            item.NumberOfContourPoints = len(ring)
            item[_CONTOUR_DATA] = _numbers(one.position + (ring + corner) @ along.T)
            found.append(item)
    return found


def _numbers(points: Array) -> Any:
    """Numbers as the bytes of their element: pydicom takes a minute to make a million of its own kind."""
    from pydicom.dataelem import RawDataElement
    from pydicom.tag import Tag

    data = "\\".join([f"{number:.{DIGITS}f}" for number in points.ravel().tolist()]).encode("ascii")
    data += b" " * (len(data) % 2)
    return RawDataElement(Tag(_CONTOUR_DATA), "DS", len(data), data, 0, is_implicit_VR=True, is_little_endian=True)


def _reference(one: Slice, *, whole: bool = False) -> Any:
    """A reference to a slice, or to its whole file."""
    from pydicom.dataset import Dataset

    item = Dataset()
    item.ReferencedSOPClassUID = one.header.kind
    item.ReferencedSOPInstanceUID = one.header.content.SOPInstanceUID
    if one.frame is not None and not whole:
        item.ReferencedFrameNumber = one.frame + 1
    return item
