"""SEG and RTSTRUCT of a series: whose they are, what they say, and that others read them."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK

from segonnx.dicom import libraries, outputs, pixels, rtstruct, seg, segments
from segonnx.dicom.outputs import Algorithm
from segonnx.dicom.segments import Code, Codes, Segment
from segonnx.dicom.series import Series
from segonnx.errors import InputError, ResourceError
from tests.dicom import judges
from tests.dicom.series_maker import CT, ENHANCED_CT, MR, REAL, Maker, numbers, save
from tests.dicom.test_series import OBLIQUE, found

ALGORITHM = Algorithm("liver net", "2026-01-02T03:04:05Z", "ab" * 32)
ORGAN = Codes(
    Code("SCT", "123037004", "Anatomical Structure"), Code("SCT", "64033007", "Kidney"), Code("SCT", "7771000", "Left")
)
LESION = Codes(
    Code("SCT", "49755003", "Morphologically Altered Structure"), Code("SCT", "4147007", "Mass"), None,
    Code("SCT", "39607008", "Lung"), Code("SCT", "24028007", "Right"),
)  # fmt: skip
SEGMENTS = [
    Segment("kidney_left", 1, (1,), ORGAN, (216, 108, 54)),
    Segment("lesion", 3, (3,), LESION, (10, 200, 30)),
    Segment("nowhere", 4, (4,), ORGAN, (0, 0, 255)),
    Segment("some class", 7, (7,), segments.private(7, "some class"), segments.colour(7)),
]
TYPED = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate", "StudyTime",
         "StudyID", "AccessionNumber", "ReferringPhysicianName", "FrameOfReferenceUID")  # fmt: skip


def label_map(shape: tuple[int, int, int]) -> np.ndarray:
    """Labels with holes, islands, corners that touch, and an empty slice."""
    rng = np.random.default_rng(3)
    labels = np.zeros(shape, np.uint8)
    labels[:, 1:-1, 1:-3] = 1
    labels[:, 4:8, 3:6] = 3
    labels[1, 5, 4] = 0
    labels[-1, 0, 0] = labels[0, -1, -1] = 7
    labels[rng.random(shape) < 0.1] = 0
    labels[2] = 0
    return labels


@pytest.fixture
def one(tmp_path: Path) -> Series:
    Maker(numbers(), orientation=OBLIQUE).write(tmp_path / "in", order=[4, 2, 0, 3, 1])
    return found(tmp_path / "in", tmp_path)


def written(made: Any, path: Path) -> Any:
    outputs.write(made, path)
    return pydicom.dcmread(path)


@judges.needs_dciodvfy
@pytest.mark.parametrize("what", ["single", "enhanced", "MR", "empty"])
def test_dciodvfy_finds_no_errors(what: str, tmp_path: Path) -> None:
    made = Maker(numbers(), orientation=OBLIQUE)
    if what == "enhanced":
        save(made.enhanced(ENHANCED_CT, order=[1, 0, 2, 4, 3]), tmp_path / "in" / "all.dcm")
    else:
        made.write(tmp_path / "in", MR if what == "MR" else CT)
    series = found(tmp_path / "in", tmp_path)
    labels = label_map(series.grid.shape) * (what != "empty")
    outputs.write(seg.make(labels, series, SEGMENTS, ALGORITHM, "binary"), tmp_path / "seg.dcm")
    outputs.write(rtstruct.make(labels, series, SEGMENTS, ALGORITHM), tmp_path / "rtstruct.dcm")
    assert judges.errors(tmp_path / "seg.dcm") == []
    assert judges.errors(tmp_path / "rtstruct.dcm") == []


@judges.needs_dciodvfy
@pytest.mark.skipif(not REAL.is_dir(), reason="the real images aren't beside the repository")
def test_dciodvfy_finds_no_errors_in_files_of_the_real_series(tmp_path: Path) -> None:
    series = found(REAL, tmp_path)
    labels = (pixels.volume(series) > 200).astype(np.uint8)
    outputs.write(seg.make(labels, series, SEGMENTS, ALGORITHM, "binary"), tmp_path / "seg.dcm")
    outputs.write(rtstruct.make(labels, series, SEGMENTS, ALGORITHM), tmp_path / "rtstruct.dcm")
    assert judges.errors(tmp_path / "seg.dcm") == []
    assert judges.errors(tmp_path / "rtstruct.dcm") == []


@pytest.mark.parametrize("kind", seg.KINDS)
def test_a_seg_says_what_it_is_and_of_whom(kind: str, one: Series, tmp_path: Path) -> None:
    made = written(seg.make(label_map(one.grid.shape), one, SEGMENTS, ALGORITHM, kind), tmp_path / "a.dcm")
    for keyword in TYPED:
        assert str(made[keyword].value) == str(one.header.content[keyword].value), keyword
    sources = {str(part.header.content.SOPInstanceUID) for part in one.slices}
    assert {
        str(item.ReferencedSOPInstanceUID) for item in made.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    } == sources
    assert made.ReferencedSeriesSequence[0].SeriesInstanceUID == one.header.content.SeriesInstanceUID
    assert made.SeriesInstanceUID != one.header.content.SeriesInstanceUID
    items = [item for item in made.SegmentSequence if item.SegmentNumber]
    assert [item.SegmentNumber for item in items] == ([1, 2, 3] if kind == "binary" else [1, 3, 7])
    assert [item.SegmentLabel for item in items] == ["kidney_left", "lesion", "some class"]
    kidney, lesion, other = items
    assert kidney.SegmentedPropertyTypeCodeSequence[0].CodeValue == "64033007"
    assert (
        kidney.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    )
    assert lesion.AnatomicRegionSequence[0].CodeMeaning == "Lung"
    assert lesion.AnatomicRegionSequence[0].AnatomicRegionModifierSequence[0].CodeMeaning == "Right"
    assert other.SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator == segments.PRIVATE
    for item, segment in zip(items, (SEGMENTS[0], SEGMENTS[1], SEGMENTS[3]), strict=True):
        (algorithm,) = item.SegmentationAlgorithmIdentificationSequence
        assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("liver net", "2026-01-02T03:04:05Z")
        assert "".join(algorithm.AlgorithmParameters) == f"sha256={'ab' * 32}"
        shown = highdicom.color.CIELabColor.from_dicom_value(item.RecommendedDisplayCIELabValue).to_rgb(clip=True)
        assert np.abs(np.subtract(shown, segment.colour)).max() <= 1


@pytest.mark.parametrize("kind", seg.KINDS)
def test_highdicom_and_dcmqi_read_the_labels_back(kind: str, one: Series, tmp_path: Path) -> None:
    labels = label_map(one.grid.shape)
    outputs.write(seg.make(labels, one, SEGMENTS, ALGORITHM, kind), tmp_path / "a.dcm")
    values = [1, 3, 7]
    read = highdicom.seg.segread(tmp_path / "a.dcm")
    numbers_ = [1, 2, 3] if kind == "binary" else values
    for value, number in zip(values, numbers_, strict=True):
        masks = read.get_pixels_by_source_instance(
            [part.header.content.SOPInstanceUID for part in one.slices],
            segment_numbers=[number],
            assert_missing_frames_are_empty=True,
        )
        np.testing.assert_array_equal(masks[..., 0] != 0, labels == value)
    images = judges.by_dcmqi(tmp_path / "a.dcm", tmp_path / "dcmqi")
    there = np.zeros(labels.shape, np.uint8)
    reference = SimpleITK.GetImageFromArray(labels)
    reference.SetSpacing(one.grid.spacing)
    reference.SetOrigin(one.grid.origin)
    reference.SetDirection(one.grid.direction.ravel().tolist())
    for image in images:
        onto = SimpleITK.Resample(image, reference, SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor)
        array = SimpleITK.GetArrayFromImage(onto)
        for value, number in zip(values, numbers_, strict=True):
            there[array == number] = value
    np.testing.assert_array_equal(there, labels)


def test_plastimatch_reads_the_contours_back(tmp_path: Path) -> None:
    """It takes slices whose rows and columns run along its axes."""
    Maker(numbers((5, 40, 30))).write(tmp_path / "in")
    series = found(tmp_path / "in", tmp_path)
    labels = label_map(series.grid.shape)
    labels[2] = labels[1]
    outputs.write(rtstruct.make(labels, series, SEGMENTS, ALGORITHM), tmp_path / "a.dcm")
    masks = judges.by_plastimatch(tmp_path / "a.dcm", tmp_path / "in", tmp_path / "out")
    for value, name in ((1, "kidney_left"), (3, "lesion"), (7, "some_class")):
        image = next(image for key, image in masks.items() if key.replace(" ", "_") == name)
        np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image) > 0, labels == value)


def test_an_rtstruct_says_what_it_is_and_of_whom(one: Series, tmp_path: Path) -> None:
    made = written(rtstruct.make(label_map(one.grid.shape), one, SEGMENTS, ALGORITHM), tmp_path / "a.dcm")
    for keyword in TYPED:
        assert str(made[keyword].value) == str(one.header.content[keyword].value), keyword
    assert [roi.ROIName for roi in made.StructureSetROISequence] == ["kidney_left", "lesion", "some class"]
    assert {roi.ReferencedFrameOfReferenceUID for roi in made.StructureSetROISequence} == {
        one.header.content.FrameOfReferenceUID
    }
    assert list(made.ROIContourSequence[0].ROIDisplayColor) == [216, 108, 54]
    (code,) = made.RTROIObservationsSequence[0].RTROIIdentificationCodeSequence
    assert code.CodeMeaning == "Kidney"
    (frame,) = made.ReferencedFrameOfReferenceSequence
    sources = {str(part.header.content.SOPInstanceUID) for part in one.slices}
    series = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    assert {str(item.ReferencedSOPInstanceUID) for item in series.ContourImageSequence} == sources
    for contour in made.ROIContourSequence[0].ContourSequence:
        uid = contour.ContourImageSequence[0].ReferencedSOPInstanceUID
        (part,) = (part for part in one.slices if part.header.content.SOPInstanceUID == uid)
        points = np.array(contour.ContourData, float).reshape(-1, 3)
        assert len(points) == contour.NumberOfContourPoints and contour.ContourGeometricType == "CLOSED_PLANAR"
        assert np.abs((points - part.position) @ one.grid.direction[:, 2]).max() < 1e-3


def test_contours_of_a_file_of_many_slices_name_their_frames(tmp_path: Path) -> None:
    order = [1, 0, 2, 4, 3]
    save(Maker(numbers()).enhanced(order=order), tmp_path / "all.dcm")
    series = found(tmp_path / "all.dcm", tmp_path)
    made = written(rtstruct.make(label_map(series.grid.shape), series, SEGMENTS, ALGORITHM), tmp_path / "a.dcm")
    place = {
        order.index(number) + 1: made_at[2]
        for number, made_at in enumerate(np.array([s.position for s in series.slices]))
    }
    for contour in made.ROIContourSequence[0].ContourSequence:
        frame = contour.ContourImageSequence[0].ReferencedFrameNumber
        assert float(contour.ContourData[2]) == pytest.approx(place[frame], abs=1e-3)


def test_regions_overlap_in_a_seg_of_bits_and_in_contours(one: Series, tmp_path: Path) -> None:
    regions = [replace(SEGMENTS[0], labels=(1, 3)), replace(SEGMENTS[1], labels=(3,))]
    labels = label_map(one.grid.shape)
    read = highdicom.seg.Segmentation.from_dataset(
        written(seg.make(labels, one, regions, ALGORITHM, "binary"), tmp_path / "a.dcm")
    )
    uids = [part.header.content.SOPInstanceUID for part in one.slices]
    masks = read.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True)
    np.testing.assert_array_equal(masks[..., 0] != 0, np.isin(labels, [1, 3]))
    np.testing.assert_array_equal(masks[..., 1] != 0, labels == 3)
    with pytest.raises(InputError, match="regions overlap.* --seg-type binary"):
        seg.make(labels, one, regions, ALGORITHM, "labelmap")
    made = rtstruct.make(labels, one, regions, ALGORITHM)
    assert len(made.ROIContourSequence) == 2


@pytest.mark.parametrize("charset", ["ISO_IR 100", "ISO_IR 192", ["", "ISO 2022 IR 87"], None])
def test_names_in_other_letters_are_kept(charset: Any, tmp_path: Path) -> None:
    name = {"ISO_IR 100": "Müller^Jörg", "ISO_IR 192": "Müller^Jörg=山田^太郎", None: "Mueller^Joerg"}
    given = (
        name.get(charset if isinstance(charset, str) else None, "")
        if not isinstance(charset, list)
        else "Yamada^Tarou=山田^太郎"
    )
    made = Maker(numbers(), elements={"SpecificCharacterSet": charset, "PatientName": given})
    made.write(tmp_path / "in")
    series = found(tmp_path / "in", tmp_path)
    labels = label_map(series.grid.shape)
    named = [replace(SEGMENTS[0], name="Niere, links \\ 左"), *SEGMENTS[1:]]
    for number, object_ in enumerate(
        (seg.make(labels, series, named, ALGORITHM, "binary"), rtstruct.make(labels, series, named, ALGORITHM))
    ):
        read = written(object_, tmp_path / f"{number}.dcm")
        assert read.PatientName == given
    assert read.StructureSetROISequence[0].ROIName == "Niere, links / 左"


def test_what_is_missing_or_wrong_in_a_header_is_no_hindrance(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad = {"PatientSex": "female", "PatientName": "A^B^C^D^E^F^G", "PatientID": "x" * 80, "SeriesNumber": -5}
    with libraries.quiet():
        headers = Maker(numbers(), elements=bad).headers()
        for number, header in enumerate(headers):
            for keyword in ("StudyID", "AccessionNumber", "StudyDate", "ReferringPhysicianName", "Laterality"):
                delattr(header, keyword)
            save(header, tmp_path / "in" / f"{number}.dcm")
    series = found(tmp_path / "in", tmp_path)
    labels = label_map(series.grid.shape)
    caplog.set_level(logging.DEBUG)
    for object_ in (
        seg.make(labels, series, SEGMENTS, ALGORITHM, "binary"),
        rtstruct.make(labels, series, SEGMENTS, ALGORITHM),
    ):
        read = written(object_, tmp_path / "a.dcm")
        with libraries.quiet():
            assert read.PatientID == "x" * 80 and not read.PatientSex and read.SeriesNumber > 0
    assert not [record for record in caplog.records if record.name.startswith(("pydicom", "highdicom"))]


def test_a_header_that_breaks_the_rules_is_one_line(tmp_path: Path) -> None:
    with libraries.quiet():
        Maker(numbers(), elements={"StudyDate": "last Tuesday"}).write(tmp_path / "in")
    series = found(tmp_path / "in", tmp_path)
    labels = label_map(series.grid.shape)
    with pytest.raises(InputError, match="no DICOM SEG can be made of this series: its header breaks") as caught:
        seg.make(labels, series, SEGMENTS, ALGORITHM, "binary")
    assert "Tuesday" not in str(caught.value)
    Maker(numbers(), frame="").write(tmp_path / "nowhere")
    series = found(tmp_path / "nowhere", tmp_path)
    for make in (
        lambda: seg.make(labels, series, SEGMENTS, ALGORITHM, "binary"),
        lambda: rtstruct.make(labels, series, SEGMENTS, ALGORITHM),
    ):
        with pytest.raises(InputError, match="has no FrameOfReferenceUID"):
            make()


def test_several_files_of_many_slices_make_no_seg(tmp_path: Path) -> None:
    made = Maker(numbers())
    for number, part in enumerate(([0, 1, 2], [3, 4])):
        save(made.enhanced(order=part), tmp_path / "in" / f"{number}.dcm")
    series = found(tmp_path / "in", tmp_path)
    np.testing.assert_array_equal(pixels.volume(series), made.stored.astype(int) - 1024)
    with pytest.raises(InputError, match="several files of many slices each"):
        seg.make(label_map(series.grid.shape), series, SEGMENTS, ALGORITHM, "binary")


@pytest.mark.parametrize("size", [(1, 7), (2, 3), (1, 8), (3, 3), (5, 7), (9, 15)])
def test_slices_of_odd_sizes_are_packed_right_or_refused(size: tuple[int, int], tmp_path: Path) -> None:
    Maker(numbers((4, *size))).write(tmp_path / "in")
    series = found(tmp_path / "in", tmp_path)
    labels = (np.random.default_rng(0).random(series.grid.shape) < 0.6).astype(np.uint8)
    labels[:, 0, 0] = 1
    if size[0] * size[1] < 8:
        with pytest.raises(InputError, match="fewer than 8 pixels"):
            seg.make(labels, series, SEGMENTS, ALGORITHM, "binary")
        return
    read = written(seg.make(labels, series, SEGMENTS, ALGORITHM, "binary"), tmp_path / "a.dcm")
    heights = [
        float(own.PlanePositionSequence[0].ImagePositionPatient[2]) for own in read.PerFrameFunctionalGroupsSequence
    ]
    np.testing.assert_array_equal(read.pixel_array[np.argsort(heights)], labels)


def test_nothing_found_is_an_empty_segment(one: Series, tmp_path: Path) -> None:
    labels = np.zeros(one.grid.shape, np.uint8)
    for kind in seg.KINDS:
        read = written(seg.make(labels, one, SEGMENTS, ALGORITHM, kind), tmp_path / f"{kind}.dcm")
        assert [item.SegmentLabel for item in read.SegmentSequence if item.SegmentNumber] == ["kidney_left"]
        assert not highdicom.seg.Segmentation.from_dataset(read).get_volume(rescale_fractional=False).array.any()
    read = written(rtstruct.make(labels, one, SEGMENTS, ALGORITHM), tmp_path / "rt.dcm")
    assert [roi.ROIName for roi in read.StructureSetROISequence] == ["kidney_left"]
    assert "ContourSequence" not in read.ROIContourSequence[0]


def test_a_file_that_can_not_be_written_is_one_line(one: Series, tmp_path: Path) -> None:
    made = seg.make(label_map(one.grid.shape), one, SEGMENTS, ALGORITHM, "binary")
    (tmp_path / "folder.dcm").mkdir()
    with pytest.raises(ResourceError, match="it is a folder"):
        outputs.write(made, tmp_path / "folder.dcm")
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="can't write"):
        outputs.write(made, tmp_path / "file" / "a.dcm")
    assert not list(tmp_path.glob(".*"))
