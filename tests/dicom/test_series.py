"""Series become volumes as SimpleITK makes them, and what makes none is one line that names the slice."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK

from segonnx.dicom import libraries, nifti, pixels, series
from segonnx.dicom.series import Series
from segonnx.errors import InputError
from tests.dicom import judges
from tests.dicom.series_maker import CT, ENHANCED_CT, ENHANCED_MR, MR, PET, REAL, Maker, numbers, save

OBLIQUE = (0.8, 0.6, 0, -0.36, 0.48, 0.8)


def found(source: Path, scratch: Path, wanted: str | None = None) -> Series:
    (scratch / "unpacked").mkdir(exist_ok=True)
    return series.find(source, wanted, scratch / "unpacked")


def by_simpleitk(folder: Path) -> SimpleITK.Image:
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def require_same(one: Series, image: SimpleITK.Image) -> None:
    np.testing.assert_array_equal(pixels.volume(one), SimpleITK.GetArrayFromImage(image))
    np.testing.assert_allclose(one.grid.spacing, image.GetSpacing(), rtol=1e-7)
    np.testing.assert_allclose(one.grid.origin, image.GetOrigin(), atol=1e-6)
    np.testing.assert_allclose(one.grid.direction.ravel(), image.GetDirection(), atol=1e-6)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real images aren't beside the repository")
def test_the_real_series_is_the_file_that_simpleitk_makes_of_it(tmp_path: Path) -> None:
    one, image = found(REAL, tmp_path), by_simpleitk(REAL)
    assert one.grid.shape == (20, 512, 512)
    assert one.window == pytest.approx((40, 300))
    require_same(one, image)
    nifti.write(pixels.volume(one), one.grid, tmp_path / "ours.nii")
    SimpleITK.WriteImage(image, str(tmp_path / "theirs.nii"))
    assert (tmp_path / "ours.nii").read_bytes() == (tmp_path / "theirs.nii").read_bytes()


@pytest.mark.parametrize("source", ["real", "made"])
def test_voxels_are_where_dcm2niix_puts_them(source: str, tmp_path: Path) -> None:
    """It turns rows about; with axes to the right, to the front and up both are one."""
    folder = REAL
    if source == "made":
        folder = tmp_path / "in"
        Maker(numbers((6, 20, 14)), orientation=OBLIQUE).write(folder, order=[3, 0, 4, 2, 1, 5])
    elif not REAL.is_dir():
        pytest.skip("the real images aren't beside the repository")
    one = found(folder, tmp_path)
    nifti.write(pixels.volume(one), one.grid, tmp_path / "ours.nii")
    judges.by_dcm2niix(folder, tmp_path / "theirs.nii")
    ours, theirs = (nibabel.as_closest_canonical(nibabel.load(tmp_path / f"{name}.nii")) for name in ("ours", "theirs"))
    np.testing.assert_array_equal(ours.get_fdata(), theirs.get_fdata())
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-3)


@pytest.mark.parametrize("kind", [CT, MR, PET])
@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1), OBLIQUE, (-1, 0, 0, 0, 1, 0)])
def test_slices_are_sorted_along_the_normal(kind: str, orientation: tuple[float, ...], tmp_path: Path) -> None:
    made = Maker(numbers(), orientation=orientation)
    made.write(tmp_path / "in" / "deep", kind, order=[3, 0, 4, 2, 1])
    one = found(tmp_path / "in", tmp_path)
    require_same(one, by_simpleitk(tmp_path / "in" / "deep"))
    np.testing.assert_array_equal(pixels.volume(one), made.stored.astype(int) - 1024)
    np.testing.assert_allclose([part.position for part in one.slices], made.positions, atol=1e-6)


@pytest.mark.parametrize("kind", [ENHANCED_CT, ENHANCED_MR])
def test_a_file_of_many_slices_is_the_same_volume(kind: str, tmp_path: Path) -> None:
    made = Maker(numbers(), orientation=OBLIQUE)
    path = save(made.enhanced(kind, order=[2, 0, 1, 4, 3]), tmp_path / "in" / "all.dcm")
    made.write(tmp_path / "single")
    for source in (path, path.parent):
        require_same(found(source, tmp_path), by_simpleitk(tmp_path / "single"))


def test_one_slice_has_its_thickness(tmp_path: Path) -> None:
    made = Maker(numbers((1, 12, 10)))
    made.write(tmp_path / "in")
    assert found(tmp_path / "in", tmp_path).grid.spacing == (0.9, 0.7, 2)
    made.elements = {"SpacingBetweenSlices": 3.5}
    made.write(tmp_path / "in")
    assert found(tmp_path / "in", tmp_path).grid.spacing[2] == 3.5
    made.elements = {"SliceThickness": None}
    made.write(tmp_path / "in")
    with pytest.raises(InputError, match=r"instance 1 \(IM0000.dcm\) is the only slice, and says nothing"):
        found(tmp_path / "in", tmp_path)


def test_small_errors_of_rounding_are_taken(tmp_path: Path) -> None:
    shift = np.random.default_rng(0).uniform(-0.02, 0.02, (5, 3))
    made = Maker(numbers(), shift=shift, orientation=np.round(OBLIQUE, 4))
    made.write(tmp_path / "in")
    assert found(tmp_path / "in", tmp_path).grid.shape == (5, 12, 10)


Change = Callable[[list[Any]], object]


def _set(number: int, **elements: Any) -> Change:
    def change(headers: list[Any]) -> None:
        for keyword, value in elements.items():
            setattr(headers[number], keyword, value)

    return change


def _without(number: int, keyword: str) -> Change:
    return lambda headers: headers[number].__delattr__(keyword)


def _gone(number: int) -> Change:
    return lambda headers: headers.pop(number)


def _twice(headers: list[Any]) -> None:
    again = copy.deepcopy(headers[2])
    again.SOPInstanceUID = again.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    again.InstanceNumber = 9
    headers.append(again)


def _moved(number: int, by: tuple[float, float, float]) -> Change:
    def change(headers: list[Any]) -> None:
        place = np.array(headers[number].ImagePositionPatient, float) + by
        headers[number].ImagePositionPatient = place.tolist()

    return change


def _tilted(headers: list[Any]) -> None:
    for number in range(len(headers)):
        _moved(number, (0, number * 0.4, 0))(headers)


BAD: dict[str, tuple[Change, str]] = {
    "missing": (
        _gone(2),
        r"a slice is missing between instance 2 \(IM1.dcm\) and instance 4 \(IM2.dcm\): they lie 5 mm apart, others",
    ),
    "doubled": (_twice, r"instance 3 \(IM2.dcm\) and instance 9 \(IM5.dcm\) lie at the same place"),
    "uneven": (
        _moved(2, (0, 0, 0.3)),
        r"aren't evenly spaced: instance 3 \(IM2.dcm\) lies 0.3 mm from where it would be",
    ),
    "tilted": (_tilted, r"instance 5 \(IM4.dcm\) lies 1.6 mm beside the normal .* gantry tilted by 9.1 degrees"),
    "another size": (
        _set(1, Rows=10, PixelData=bytes(200)),
        r"instance 2 \(IM1.dcm\) has 10x10 pixels, instance 1 .* 12x10",
    ),
    "another spacing": (
        _set(3, PixelSpacing=[0.7, 0.8]),
        r"instance 4 \(IM3.dcm\) has pixels of 0.7x0.8 mm, instance 1",
    ),
    "another direction": (
        _set(4, ImageOrientationPatient=[0, 1, 0, 0, 0, 1]),
        r"instance 5 .* lies in another direction",
    ),
    "another patient": (_set(1, PatientID="4712"), r"instance 2 .* is of another patient than instance 1"),
    "another study": (_set(1, StudyInstanceUID="1.2.3"), r"instance 2 .* is of another study than instance 1"),
    "another frame": (_set(1, FrameOfReferenceUID="1.2.3"), r"instance 2 .* is of another frame of reference than"),
    "no place": (_without(2, "ImagePositionPatient"), r"instance 3 .* has no ImagePositionPatient"),
    "half a place": (
        _set(2, ImagePositionPatient=[1, 2]),
        r"instance 3 .* ImagePositionPatient that isn't 3 finite numbers",
    ),
    "no direction": (_without(2, "ImageOrientationPatient"), r"instance 3 .* has no ImageOrientationPatient"),
    "no numbers": (_set(0, ImagePositionPatient=["nan", "0", "0"]), r"instance 1 .* isn't 3 finite numbers"),
    "skewed": (
        _set(0, ImageOrientationPatient=[1, 0, 0, 0.1, 1, 0]),
        r"lies in another direction|isn't at right angles",
    ),
    "no unit vectors": (
        lambda headers: [_set(number, ImageOrientationPatient=[2, 0, 0, 0, 1, 0])(headers) for number in range(5)],
        r"instance 1 .* has rows and columns that aren't at right angles, or no unit vectors",
    ),
    "no spacing": (_set(2, PixelSpacing=[0, 1]), r"instance 3 .* has a PixelSpacing of 0 and 1 mm"),
    "one spacing": (_set(2, PixelSpacing="0.5"), r"instance 3 .* has a PixelSpacing that isn't 2 finite numbers"),
    "no rows": (_without(2, "Rows"), r"instance 3 .* has 0 rows and 10 columns"),
    "no slope": (_set(2, RescaleSlope=0), r"instance 3 .* has a RescaleSlope of 0"),
    "no finite slope": (
        _set(2, RescaleIntercept="inf"),
        r"instance 3 .* has a RescaleIntercept that is no finite number",
    ),
    "a table of values": (
        _set(2, ModalityLUTSequence=[pydicom.Dataset()]), r"instance 3 .* has a table of values \(ModalityLUTSequence\)"
    ),
    "no UID": (_without(2, "SeriesInstanceUID"), r"instance 3 \(IM2.dcm\) has no SeriesInstanceUID"),
    "inverted": (
        _set(2, PhotometricInterpretation="MONOCHROME1"),
        r"instance 3 .* of the kind MONOCHROME1, which isn't",
    ),
    "colours": (_set(2, PhotometricInterpretation="RGB", SamplesPerPixel=3), r"instance 3 .* of the kind RGB"),
    "bits apart": (_set(2, BitsStored=12, HighBit=15), r"instance 3 .* has its bits up to number 15 of 12"),
    "odd bits": (_set(2, BitsAllocated=12, BitsStored=12), r"instance 3 .* has 12 bits stored in 12"),
    "no pixels": (_without(2, "PixelData"), r"instance 3 .* has no pixels"),
    "few pixels": (
        _set(2, PixelData=bytes(100)),
        r"instance 3 .* has pixels that can't be decoded .Explicit VR Little Endian.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_series_is_one_line_that_names_the_slice(kind: str, tmp_path: Path) -> None:
    change, line = BAD[kind]
    headers = Maker(numbers()).headers()
    with libraries.quiet():  # pydicom warns of some of what it writes
        change(headers)
        for number, header in enumerate(headers):
            save(header, tmp_path / "in" / f"IM{number}.dcm")
    with pytest.raises(InputError, match=line) as caught:
        pixels.volume(found(tmp_path / "in", tmp_path))
    told = str(caught.value)
    assert "\n" not in told and "Doe" not in told and "471" not in told


def test_a_bad_file_of_many_slices_is_one_line_that_names_the_frame(tmp_path: Path) -> None:
    made = Maker(numbers())
    bad = {
        r"the same place": made.enhanced(order=[0, 1, 2, 2, 3]),
        r"a slice is missing between frame 2 of all.dcm and frame 3 of all.dcm": made.enhanced(order=[0, 1, 3, 4]),
        r"all.dcm has 6 frames, and says of 5 where they are": made.enhanced(),
        r"frame 3 of all.dcm has no ImagePositionPatient": made.enhanced(),
    }
    *_, lying, nowhere = bad.values()
    lying.NumberOfFrames = 6
    del nowhere.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence
    for line, header in bad.items():
        save(header, tmp_path / "all.dcm")
        with pytest.raises(InputError, match=line):
            found(tmp_path / "all.dcm", tmp_path)


def test_several_series_are_listed_and_one_is_chosen(tmp_path: Path) -> None:
    first, second = (
        Maker(numbers()),
        Maker(numbers((3, 12, 10)), elements={"SeriesNumber": 8, "SeriesDescription": "Lung"}),
    )
    first.write(tmp_path / "in" / "a")
    second.write(tmp_path / "in" / "b")
    with pytest.raises(InputError, match=r"--series: 7: Abdomen 2.5, CT, 5 slices; 8: Lung, CT, 3 slices$"):
        found(tmp_path / "in", tmp_path)
    assert found(tmp_path / "in", tmp_path, "8").grid.shape[0] == 3
    assert found(tmp_path / "in", tmp_path, first.uid).grid.shape[0] == 5
    with pytest.raises(InputError, match=r"holds no series '9', but 7: "):
        found(tmp_path / "in", tmp_path, "9")
    third = Maker(numbers((2, 12, 10)))
    third.write(tmp_path / "in" / "c")
    with pytest.raises(InputError, match=rf"holds 2 series: .* 7 \({first.uid}\): .* 7 \({third.uid}\): "):
        found(tmp_path / "in", tmp_path, "7")


def test_other_objects_are_no_series(tmp_path: Path) -> None:
    made = Maker(numbers())
    made.write(tmp_path / "in")
    other = made.headers()[0]
    other.SOPClassUID = other.file_meta.MediaStorageSOPClassUID = pydicom.uid.UID(
        "1.2.840.10008.5.1.4.1.1.88.11"
    )  # a report
    other.SeriesInstanceUID = "1.2.3"
    save(other, tmp_path / "in" / "report.dcm")
    assert found(tmp_path / "in", tmp_path).grid.shape[0] == 5
    with pytest.raises(InputError, match="holds 1 DICOM files, and none is a slice of CT, MR or PET"):
        found(tmp_path / "in" / "report.dcm", tmp_path)


def test_the_window_is_that_of_the_series(tmp_path: Path) -> None:
    for given, expected in (
        ({"WindowCenter": [30, 1], "WindowWidth": [400, 2]}, (30, 400)),
        ({"WindowCenter": 30, "WindowWidth": 400}, (30, 400)),
        ({"WindowCenter": 30, "WindowWidth": 0}, None),
        ({}, None),
    ):
        made = Maker(numbers(), elements=given)
        made.write(tmp_path / "in")
        assert found(tmp_path / "in", tmp_path).window == expected
    header = Maker(numbers()).enhanced()
    shown = pydicom.Dataset()
    shown.WindowCenter, shown.WindowWidth = 30, 400
    header.SharedFunctionalGroupsSequence[0].FrameVOILUTSequence = [shown]
    save(header, tmp_path / "all.dcm")
    assert found(tmp_path / "all.dcm", tmp_path).window == (30, 400)
