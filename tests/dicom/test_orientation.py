"""Every mark of a phantom stands in SEG and RTSTRUCT where it stood in its series, whatever the geometry is.

Random ones: oblique directions, negated rows, columns and slices, files in any order, pixels that aren't square. Sixty
have each kind of direction and of file with each reader; two hundred are slow. A phantom goes from DICOM through one of
the readers, as before a network, and its label map back to DICOM.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from scipy.spatial.transform import Rotation

from segonnx.dicom import nifti, outputs, pixels, rtstruct, seg, segments
from segonnx.dicom.outputs import Algorithm
from segonnx.dicom.segments import Segment
from segonnx.dicom.series import Series
from segonnx.predict import images
from segonnx.predict.series_files import READERS
from tests.dicom import judges
from tests.dicom.series_maker import ENHANCED_MR, MR, Maker, save
from tests.dicom.test_series import found

JUDGED = 24
"""How many of them programs of others read, too, which start a process for each."""
EXACT = 1e-3
ALGORITHM = Algorithm("phantom", "2026-01-01T00:00:00Z", "0" * 64)
SEGMENTS = [
    Segment(f"mark {value}", value, (value,), segments.private(value, "m"), (255, 0, 0)) for value in range(1, 9)
]


@dataclass
class Case:
    """A phantom in a geometry of its own.

    Attributes:
        series: Its series, as it was read.
        labels: The label map that came back from a reader, (slices, rows, columns).
        marks: The place in mm of each mark, by its label.
    """

    series: Series
    labels: np.ndarray
    marks: dict[int, np.ndarray]


def directions(rng: np.random.Generator, number: int) -> np.ndarray:
    """Random directions of a row and a column: oblique ones, and those along axes, with every sign."""
    matrix = Rotation.random(random_state=rng).as_matrix()
    if number % 3 == 0:  # along the axes, as a patient lies: head or feet first, on any side
        matrix = np.eye(3)[rng.permutation(3)] * rng.choice([-1, 1], 3)[:, None]
    elif number % 3 == 1:  # nearly so
        turn = Rotation.from_euler("xyz", rng.uniform(-12, 12, 3), degrees=True).as_matrix()
        matrix = turn @ (np.eye(3)[rng.permutation(3)] * rng.choice([-1, 1], 3)[:, None])
    directed: np.ndarray = matrix[:2].ravel()
    return directed


def case(number: int, folder: Path) -> Case:
    """The case of this number."""
    rng = np.random.default_rng(number)
    shape = (int(rng.integers(2, 6)), *(int(size) for size in rng.integers(3, 8, 2)))
    stored = np.zeros(shape, np.uint16)
    corners = [(z, y, x) for z in (0, shape[0] - 1) for y in (0, shape[1] - 1) for x in (0, shape[2] - 1)]
    for value, corner in enumerate(corners, 1):
        stored[corner] = 1024 + value
    made = Maker(
        stored,
        spacing=rng.uniform(0.3, 2, 2).round(4).tolist(),
        distance=round(float(rng.uniform(0.5, 6)), 4),
        origin=rng.uniform(-400, 400, 3).round(4).tolist(),
        orientation=directions(rng, number),
        elements={"PatientPosition": str(rng.choice(["HFS", "FFS", "HFP", "FFDR", "HFDL"]))},
    )
    order = rng.permutation(shape[0]).tolist()
    if number % 4 == 3:
        save(made.enhanced(ENHANCED_MR, order=order), folder / "in" / "all.dcm")
    else:
        made.write(folder / "in", MR, order=order)
    row, column = np.array(made.orientation[:3]), np.array(made.orientation[3:])
    marks = {
        value: made.positions[z] + row * made.spacing[1] * x + column * made.spacing[0] * y
        for value, (z, y, x) in enumerate(corners, 1)
    }
    series = found(folder / "in", folder)
    return Case(series, through_a_reader(series, folder, READERS[number % len(READERS)]), marks)


def through_a_reader(series: Series, folder: Path, reader: str) -> np.ndarray:
    """The label map of a series, (slices, rows, columns), that a network would give that sees the labels themselves."""
    nifti.write(pixels.volume(series), series.grid, folder / "series.nii")
    image = images.read([folder / "series.nii"], reader)
    images.write(np.maximum(image.array[0], 0).astype(np.uint8), image, folder / "labels.nii.gz")
    return nifti.read_labels(folder / "labels.nii.gz", series.grid)


@pytest.fixture(scope="module", params=[60, pytest.param(200, marks=pytest.mark.slow)])
def every(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Case, Path]]:
    root = tmp_path_factory.mktemp("geometries")
    found_ = []
    for number in range(request.param):
        folder = root / str(number)
        folder.mkdir()
        one = case(number, folder)
        for kind in seg.KINDS:
            seg.make(one.labels, one.series, SEGMENTS, ALGORITHM, kind).save_as(folder / f"{kind}.dcm")
        rtstruct.make(one.labels, one.series, SEGMENTS, ALGORITHM).save_as(folder / "rtstruct.dcm")
        found_.append((one, folder))
    return found_


def require_there(found_: dict[int, np.ndarray], one: Case) -> None:
    """Each mark is at its place, and nowhere else."""
    assert found_.keys() == one.marks.keys()
    for value, place in one.marks.items():
        assert found_[value].shape == (1, 3), value
        assert np.abs(found_[value][0] - place).max() <= EXACT, value


def frames(path: Path) -> Iterator[tuple[int, np.ndarray]]:
    """Segment and place in mm of each voxel of a SEG, by the formula of DICOM's part 3, section C.7.6.2.1.1."""
    made = pydicom.dcmread(path)
    shared = made.SharedFunctionalGroupsSequence[0]
    array = made.pixel_array.reshape(-1, made.Rows, made.Columns)
    for own, plane in zip(made.PerFrameFunctionalGroupsSequence, array, strict=True):
        orientation = (own if "PlaneOrientationSequence" in own else shared).PlaneOrientationSequence[0]
        measures = (own if "PixelMeasuresSequence" in own else shared).PixelMeasuresSequence[0]
        x, y = np.reshape(np.array(orientation.ImageOrientationPatient, float), (2, 3))
        rows, columns = map(float, measures.PixelSpacing)
        begin = np.array(own.PlanePositionSequence[0].ImagePositionPatient, float)
        for j, i in np.argwhere(plane):
            value = int(plane[j, i])
            if "SegmentIdentificationSequence" in own:
                value = own.SegmentIdentificationSequence[0].ReferencedSegmentNumber
            yield value, begin + x * columns * i + y * rows * j


@pytest.mark.parametrize("kind", seg.KINDS)
def test_every_mark_of_a_seg_is_where_dicoms_formula_says(kind: str, every: list[tuple[Case, Path]]) -> None:
    for one, folder in every:
        there: dict[int, list[np.ndarray]] = {}
        for value, place in frames(folder / f"{kind}.dcm"):
            there.setdefault(value, []).append(place)
        require_there({value: np.array(places) for value, places in there.items()}, one)


@pytest.mark.parametrize("kind", seg.KINDS)
def test_every_mark_of_a_seg_is_where_highdicom_reads_it(kind: str, every: list[tuple[Case, Path]]) -> None:
    for one, folder in every if kind == "binary" else every[:JUDGED]:
        volume = highdicom.seg.segread(folder / f"{kind}.dcm").get_volume(combine_segments=True)
        there = {value: volume.map_indices_to_reference(np.argwhere(volume.array == value)) for value in one.marks}
        require_there(there, one)


@pytest.mark.parametrize("kind", seg.KINDS)
def test_every_mark_of_a_seg_is_where_dcmqi_reads_it(kind: str, every: list[tuple[Case, Path]]) -> None:
    for one, folder in every[:JUDGED]:
        there = {value: np.zeros((0, 3)) for value in one.marks}
        for image in judges.by_dcmqi(folder / f"{kind}.dcm", folder / f"dcmqi-{kind}"):
            for value in one.marks:
                there[value] = np.concatenate([there[value], judges.places(image, value)])
        require_there(there, one)


def test_every_mark_of_an_rtstruct_is_in_its_contour(every: list[tuple[Case, Path]]) -> None:
    for one, folder in every:
        made = pydicom.dcmread(folder / "rtstruct.dcm")
        grid, centres = one.series.grid, {part.header.content.SOPInstanceUID: part for part in one.series.slices}
        assert [roi.ROIName for roi in made.StructureSetROISequence] == [part.name for part in SEGMENTS]
        for value, structure in zip(one.marks, made.ROIContourSequence, strict=True):
            (contour,) = structure.ContourSequence
            points = np.array(contour.ContourData, float).reshape(-1, 3)
            # The outline of a pixel is a diamond around it; the middle of its corners is the pixel's centre.
            assert len(points) == 4
            assert np.abs(points.mean(axis=0) - one.marks[value]).max() <= EXACT
            assert contour.ContourImageSequence[0].ReferencedSOPInstanceUID in centres
            axes = (grid.direction[:, 0] * grid.spacing[0], grid.direction[:, 1] * grid.spacing[1])
            half = [abs((points - one.marks[value]) @ axis).max() / (axis @ axis) for axis in axes]
            np.testing.assert_allclose(half, 0.5, atol=1e-3)


@judges.needs_dciodvfy
def test_dciodvfy_finds_no_errors_in_any_geometry(every: list[tuple[Case, Path]]) -> None:
    for _, folder in every[:JUDGED]:
        for name in ("binary", "rtstruct"):
            assert judges.errors(folder / f"{name}.dcm") == []


def test_a_mirrored_label_map_is_found(every: list[tuple[Case, Path]], tmp_path: Path) -> None:
    one, _ = every[1]
    for axis in range(3):
        mirrored = np.flip(one.labels, axis)
        outputs.write(seg.make(mirrored, one.series, SEGMENTS, ALGORITHM, "binary"), tmp_path / "a.dcm")
        there: dict[int, list[np.ndarray]] = {}
        for value, place in frames(tmp_path / "a.dcm"):
            there.setdefault(value, []).append(place)
        with pytest.raises(AssertionError):
            require_there({value: np.array(places) for value, places in there.items()}, one)
