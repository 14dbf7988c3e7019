"""Numbers of labels, held against SimpleITK's label statistics."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from scipy.spatial.transform import Rotation

from segonnx.dicom import segments
from segonnx.dicom.segments import Segment
from segonnx.errors import InputError
from segonnx.predict import images, statistics
from segonnx.predict.images import Image
from segonnx.predict.series_files import READERS
from tests.conftest import message, run
from tests.predict.conftest import save, volume

SEGMENTS = [
    Segment(f"organ {value}", value, (value,), segments.private(value, "o"), (1, 2, 3)) for value in (1, 2, 5, 9)
]
ASKEW = Rotation.from_euler("xyz", (20, -35, 50), degrees=True).as_matrix()


def image_of(array: np.ndarray, direction: np.ndarray) -> SimpleITK.Image:
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing((1.4, 3.2, 1.5))
    image.SetOrigin((-5.0, 7.0, 30.0))
    image.SetDirection(direction.ravel().tolist())
    return image


def label_map() -> np.ndarray:
    labels = np.zeros((11, 13, 17), np.uint8)
    labels[2:7, 3:9, 4:12] = 1
    labels[4:6, 4:6, 5:9] = 0
    labels[8:, 10:, 0:4] = 2
    labels[5, 12, 9] = 5
    labels[3, 4, 5] = 2
    return labels


def read(array: np.ndarray, direction: np.ndarray, reader: str, folder: Path) -> tuple[Image, np.ndarray]:
    """The image and the label map as a reader gives them."""
    found = []
    for name, one in (("image", array), ("labels", label_map())):
        path = folder / f"{name}.nii"
        SimpleITK.WriteImage(image_of(one, direction), str(path))
        found.append(images.read([path], reader))
    return found[0], found[1].array[0].astype(np.uint8)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "direction",
    [np.eye(3), np.diag([-1.0, 1, -1]), np.eye(3)[[2, 0, 1]], ASKEW],
    ids=["axial", "negated", "turned", "askew"],
)
def test_numbers_are_simpleitks(reader: str, direction: np.ndarray, tmp_path: Path) -> None:
    array = volume(1, label_map().shape)
    image, labels = read(array, direction, reader, tmp_path)
    rows = {row.label: row for row in statistics.rows(labels, image, SEGMENTS)}
    theirs, whole = image_of(label_map(), direction), image_of(array, direction)
    shape, intensity = SimpleITK.LabelShapeStatisticsImageFilter(), SimpleITK.LabelStatisticsImageFilter()
    shape.Execute(theirs)
    intensity.Execute(whole, theirs)
    for value in (1, 2, 5):
        row = rows[value]
        assert row.voxels == shape.GetNumberOfPixels(value) == intensity.GetCount(value)
        assert row.ml == pytest.approx(shape.GetPhysicalSize(value) / 1000)
        assert row.mean is not None
        assert row.mean[0] == pytest.approx(intensity.GetMean(value))
        assert (row.std is None) == (value == 5)
        assert row.std is None or row.std[0] == pytest.approx(intensity.GetSigma(value))
        assert row.touches_border == (shape.GetNumberOfPixelsOnBorder(value) > 0)
        low, high = corners(theirs, label_map() == value)
        assert row.box is not None
        np.testing.assert_allclose(row.box, (low, high), atol=1e-3)
    assert rows[9].voxels == 0 and not rows[9].touches_border
    assert rows[9].box is None and rows[9].mean is None


def corners(image: SimpleITK.Image, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least and the largest place of the corners of a mask's voxels."""
    halves = np.array([(x, y, z) for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
    centres = np.argwhere(mask)[:, ::-1]
    places = np.array(
        [image.TransformContinuousIndexToPhysicalPoint((one + half).tolist()) for one in centres for half in halves]
    )
    return places.min(axis=0), places.max(axis=0)


def test_a_box_along_the_axes_is_simpleitks(tmp_path: Path) -> None:
    image, labels = read(volume(1, label_map().shape), np.eye(3), "SimpleITKIO", tmp_path)
    theirs = image_of(label_map(), np.eye(3))
    shape = SimpleITK.LabelShapeStatisticsImageFilter()
    shape.Execute(theirs)
    row = next(row for row in statistics.rows(labels, image, SEGMENTS) if row.label == 1)
    begin, size = np.array(shape.GetBoundingBox(1)).reshape(2, 3)
    expected = [theirs.TransformContinuousIndexToPhysicalPoint((end - 0.5).tolist()) for end in (begin, begin + size)]
    np.testing.assert_allclose(row.box or (), expected, atol=1e-5)


def test_regions_are_counted_whole(tmp_path: Path) -> None:
    image, labels = read(volume(1, label_map().shape), np.eye(3), "NibabelIO", tmp_path)
    union = Segment("both", 1, (1, 5), segments.private(1, "both"), (1, 2, 3))
    (row,) = statistics.rows(labels, image, [union])
    assert row.voxels == np.isin(label_map(), (1, 5)).sum() and row.touches_border


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_tables_and_json_say_the_same(tmp_path: Path) -> None:
    image, labels = read(volume(1, label_map().shape), ASKEW, "SimpleITKIO", tmp_path)
    rows = statistics.rows(
        labels, image, [*SEGMENTS[:3], Segment("=1+1", 9, (9,), segments.private(9, "x"), (1, 2, 3))]
    )
    for name in ("a.csv", "a.json"):
        statistics.write(rows, 1, tmp_path / "deep" / name)
    content: list[dict[str, Any]] = json.loads((tmp_path / "deep" / "a.json").read_text())
    cells = table(tmp_path / "deep" / "a.csv")
    assert list(content[0]) == list(cells[0]) == [
        "label", "name", "voxels", "ml", "mean", "std", "x_min_mm", "x_max_mm", "y_min_mm", "y_max_mm", "z_min_mm",
        "z_max_mm", "touches_border",
    ]  # fmt: skip
    for entry, row in zip(content, cells, strict=True):
        assert row["touches_border"] == ("yes" if entry["touches_border"] else "no")
        for key in ("ml", "mean", "std", "x_min_mm"):
            assert (row[key] == "") if entry[key] is None else float(row[key]) == pytest.approx(entry[key], rel=1e-8)
    assert cells[-1]["name"] == "'=1+1" and content[-1]["name"] == "=1+1"
    two = Image(np.concatenate([image.array, image.array * 2]), image.spacing, image.geometry, image.reader)
    statistics.write(statistics.rows(labels, two, SEGMENTS), 2, tmp_path / "b.csv")
    row = table(tmp_path / "b.csv")[0]
    assert float(row["mean_0001"]) == pytest.approx(2 * float(row["mean_0000"]))


@pytest.mark.usefixtures("steps_here")
def test_the_command_writes_them_for_an_image_and_for_a_folder(hand: Path, tmp_path: Path) -> None:
    save(volume(), tmp_path / "in" / "a_0000.nii.gz")
    save(volume(1), tmp_path / "in" / "b_0000.nii.gz")
    result = run(
        "predict",
        hand,
        tmp_path / "in",
        tmp_path / "out",
        "--statistics",
        tmp_path / "numbers",
        "--preview",
        tmp_path / "shown",
    )
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in (tmp_path / "numbers").iterdir()) == ["a.csv", "b.csv"]
    assert sorted(path.name for path in (tmp_path / "shown").iterdir()) == ["a.png", "b.png"]
    labels = SimpleITK.ReadImage(str(tmp_path / "out" / "b.nii.gz"))
    counts = np.bincount(SimpleITK.GetArrayFromImage(labels).ravel(), minlength=3)
    assert [int(row["voxels"]) for row in table(tmp_path / "numbers" / "b.csv")] == counts[1:].tolist()
    again = run("predict", hand, tmp_path / "in", tmp_path / "again", "--statistics", tmp_path / "numbers")
    assert again.returncode == 2 and "a.csv exists: --overwrite replaces it" in message(again)
    one = tmp_path / "in" / "a_0000.nii.gz"
    result = run("predict", hand, one, tmp_path / "a.nii.gz", "--statistics", tmp_path / "a.json")
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "a.json").read_text())[0]["name"] == "organ_1"
    wrong = run("predict", hand, one, tmp_path / "b.nii.gz", "--statistics", tmp_path / "a.txt")
    assert wrong.returncode == 2 and "--statistics writes .csv and .json files" in message(wrong)


@pytest.mark.parametrize("reader", ["NaturalImage2DIO", "SimpleITKIO"])
def test_flat_images_have_no_volumes(reader: str, tmp_path: Path) -> None:
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.zeros((20, 30), np.uint8)), str(tmp_path / "a.png"))
    image = images.read([tmp_path / "a.png"], reader)
    with pytest.raises(InputError, match="three dimensions with a spacing in mm"):
        statistics.rows(np.ones((1, 20, 30), np.uint8), image, SEGMENTS)
