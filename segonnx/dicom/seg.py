"""Writes a label map as DICOM SEG, by highdicom: a bit for each voxel and segment, or a label for each voxel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from segonnx.dicom import outputs
from segonnx.dicom.outputs import Algorithm
from segonnx.dicom.segments import Segment, overlap, text
from segonnx.dicom.series import Series
from segonnx.errors import InputError

Array = npt.NDArray[Any]

KINDS = ("binary", "labelmap")
"""The kinds of SEG."""
_LEAST = 8
"""The pixels of a slice whose bits highdicom packs as DICOM wants it; of fewer each frame gets bytes of its own."""
_NUMBER = 1000
"""What is added to the number of the source's series."""


def make(labels: Array, series: Series, segments: Sequence[Segment], algorithm: Algorithm, kind: str) -> Any:
    """Make a DICOM SEG: a segment for each that occurs, and references to every slice of the series.

    Args:
        labels: The label map, (slices, rows, columns) as the series has them.
        series: The series.
        segments: All that there may be.
        algorithm: What made the label map.
        kind: A member of ``KINDS``.

    Returns:
        The object, as highdicom has it, for ``outputs.write``.

    Raises:
        InputError: None can be made of the series, or of segments that overlap.
    """
    if kind == "labelmap" and overlap(segments):
        raise InputError("the network's regions overlap, and a label map has one label for a voxel: --seg-type binary")
    if kind == "binary" and math.prod(series.grid.shape[1:]) < _LEAST:
        raise InputError(f"the series' slices have fewer than {_LEAST} pixels, which highdicom packs wrongly")
    with outputs.making("DICOM SEG"):
        return _segmentation(labels, series, segments, algorithm, kind)


def _segmentation(labels: Array, series: Series, segments: Sequence[Segment], algorithm: Algorithm, kind: str) -> Any:
    import highdicom
    from pydicom.uid import ExplicitVRLittleEndian, RLELossless

    source = outputs.source(series)
    if len(source) > 1 and series.slices[0].frame is not None:
        raise InputError("the series is several files of many slices each, of which highdicom makes no SEG")
    found = outputs.occurring(labels, segments)
    numbers = [one.value for one in found] if kind == "labelmap" else list(range(1, len(found) + 1))
    identified = outputs.identification(algorithm)
    made = highdicom.seg.Segmentation(
        source_images=source,
        pixel_array=_in_frame_order(_numbered(labels, found, numbers), series),
        segmentation_type=kind.upper(),
        segment_descriptions=[_described(one, number, identified) for one, number in zip(found, numbers, strict=True)],
        content_label="SEGMENTATION",
        content_description=text(algorithm.name),
        transfer_syntax_uid=RLELossless if kind == "labelmap" else ExplicitVRLittleEndian,
        **outputs.arguments(series, algorithm, _NUMBER),
    )
    made.ContentCreatorName = None
    return made


def _described(segment: Segment, number: int, identified: Any) -> Any:
    """A segment's item of the sequence of segments."""
    import highdicom

    codes = segment.codes
    item = highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=text(segment.name),
        segmented_property_category=outputs.coded(codes.category),
        segmented_property_type=outputs.coded(codes.type),
        algorithm_type="AUTOMATIC",
        algorithm_identification=identified,
        display_color=highdicom.color.CIELabColor.from_rgb(*segment.colour),
    )
    item.SegmentedPropertyTypeCodeSequence = [outputs.kind(segment)]
    if codes.region is not None:
        item.AnatomicRegionSequence = [
            outputs.coded(codes.region, codes.region_modifier, "AnatomicRegionModifierSequence")
        ]
    return item


def _numbered(labels: Array, found: Sequence[Segment], numbers: Sequence[int]) -> Array:
    """The voxels' segments: their numbers (slices, rows, columns), or where they overlap a mask of each at the end."""
    if overlap(found):
        return np.stack([np.isin(labels, one.labels) for one in found], axis=-1).astype(np.uint8)
    highest = max(int(labels.max()), *(label for one in found for label in one.labels))
    table = np.zeros(highest + 1, np.uint8 if max(numbers) < 256 else np.uint16)
    for one, number in zip(found, numbers, strict=True):
        table[list(one.labels)] = number
    numbered = np.empty(labels.shape, table.dtype)
    for own, plane in zip(numbered, labels, strict=True):  # an index takes eight bytes for each voxel
        own[:] = table[plane]
    return numbered


def _in_frame_order(array: Array, series: Series) -> Array:
    """Slices as highdicom takes them: in the order of the source's files, or of the frames in its file."""
    frames = [one.frame for one in series.slices if one.frame is not None]
    return array[np.argsort(frames)] if frames else array
