"""Pictures of label maps: what they show, and where."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import SimpleITK

from segonnx.dicom import segments
from segonnx.dicom.segments import Segment
from segonnx.errors import InputError
from segonnx.predict import images, preview, readers
from segonnx.predict.images import Image
from segonnx.predict.preview import Look
from segonnx.predict.series_files import READERS
from tests.conftest import message, run
from tests.predict.conftest import save, volume

SEGMENTS = [
    Segment("liver $x^2$", 1, (1,), segments.private(1, "a"), (220, 30, 30)),
    Segment("_spleen", 2, (2,), segments.private(2, "b"), (30, 30, 220)),
    Segment("nowhere", 3, (3,), segments.private(3, "c"), (30, 220, 30)),
]
LOOK = Look("planes", None, ct=True)


def phantom() -> tuple[np.ndarray, np.ndarray]:
    """Image and label map (z, y, x), axes to the left, to the back and up; a mark at the right, front and top."""
    labels = np.zeros((20, 30, 40), np.uint8)
    labels[15:19, 2:8, 3:9] = 1
    labels[1:6, 20:28, 30:38] = 2
    return (labels * 100).astype(np.int16), labels


def turned(direction: str, folder: Path, reader: str) -> tuple[Image, np.ndarray]:
    """The phantom in files whose axes run otherwise, as a reader gives it."""
    found = []
    for name, array in zip(("image", "labels"), phantom(), strict=True):
        one = SimpleITK.GetImageFromArray(array)
        one.SetSpacing((1.0, 1.5, 2.0))
        SimpleITK.WriteImage(SimpleITK.DICOMOrient(one, direction), str(folder / f"{name}.nii"))
        found.append(images.read([folder / f"{name}.nii"], reader))
    return found[0], found[1].array[0].astype(np.uint8)


@pytest.mark.parametrize("direction", ["LPS", "RAS", "PIR", "SAL", "ASL"])
@pytest.mark.parametrize("reader", READERS)
def test_up_is_up_and_the_patients_right_is_at_the_left(reader: str, direction: str, tmp_path: Path) -> None:
    image, labels = turned(direction, tmp_path, reader)
    volume_ = preview._turned(image.array[0], labels, readers.READERS[reader].matrix(image.geometry))
    np.testing.assert_array_equal(volume_.labels, phantom()[1])
    assert volume_.sizes == pytest.approx((2, 1.5, 1))
    axial, coronal, sagittal = preview._planes(volume_)
    assert [plane.sides for plane in (axial, coronal, sagittal)] == ["RLAP", "RLSI", "APSI"]
    assert axial.aspect == pytest.approx(1.5) and coronal.aspect == pytest.approx(2)
    assert sagittal.aspect == pytest.approx(2 / 1.5)
    # The second mark is larger: each plane goes through it, which lies at the left, at the back and below.
    for plane, (rows, columns) in ((axial, (20, 30)), (coronal, (14, 30)), (sagittal, (14, 20))):
        y, x = np.argwhere(plane.labels == 2).min(axis=0)
        assert (y, x) == (rows, columns)
    assert axial.title == "axial, 2 of 20"


def pixels(path: Path) -> np.ndarray:
    with PIL.Image.open(io.BytesIO(path.read_bytes())) as opened:
        assert opened.format == "PNG"
        return np.asarray(opened.convert("RGB")).astype(int)


def has(picture: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool((np.abs(picture - colour).sum(axis=-1) < 30).any())


@pytest.mark.parametrize("layout", preview.LAYOUTS)
def test_a_picture_shows_labels_in_their_colours_with_a_legend(layout: str, tmp_path: Path) -> None:
    image, labels = turned("LPS", tmp_path, "SimpleITKIO")
    preview.write(labels, image, SEGMENTS, Look(layout, (100, 400), ct=True), tmp_path / "deep" / "a.png")
    picture = pixels(tmp_path / "deep" / "a.png")
    assert has(picture, (220, 30, 30)) and has(picture, (30, 30, 220)) and not has(picture, (30, 220, 30))
    assert (picture[0, 0] > 250).all()
    assert (tmp_path / "deep" / "a.png").stat().st_size < 200_000
    again = tmp_path / "b.png"
    preview.write(labels, image, SEGMENTS, Look(layout, (100, 400), ct=True), again)
    assert again.read_bytes() == (tmp_path / "deep" / "a.png").read_bytes()


def test_the_window_is_the_series_or_soft_tissue_or_what_the_image_holds(tmp_path: Path) -> None:
    image, labels = turned("LPS", tmp_path, "SimpleITKIO")
    planes = preview._planes(preview._turned(image.array[0], labels, None))
    assert preview._window(planes, Look("planes", (10, 4), ct=True)) == (8, 12)
    assert preview._window(planes, LOOK) == (-160, 240)
    low, high = preview._window(planes, Look("planes", None, ct=False))
    assert low == 0 and 100 <= high <= 200
    flat = [preview._Plane(np.ones((3, 4)), np.zeros((3, 4), int), 1, "", "    ")]
    assert preview._window(flat, Look("planes", None, ct=False)) == (1, 2)


def test_many_names_and_none_have_a_legend(tmp_path: Path) -> None:
    image, labels = turned("LPS", tmp_path, "SimpleITKIO")
    many = [
        Segment(f"class {value}", value, (value,), segments.private(value, "x"), segments.colour(value))
        for value in range(1, 61)
    ]
    labels = (np.arange(labels.size) % 61).reshape(labels.shape).astype(np.uint8)
    preview.write(labels, image, many, LOOK, tmp_path / "many.png")
    preview.write(labels * 0, image, many, LOOK, tmp_path / "none.png")
    assert pixels(tmp_path / "many.png").shape[0] > 200 and pixels(tmp_path / "none.png").shape[0] > 200
    shown = preview._shown(many, labels)
    assert len(shown) == 60 and not preview._shown(many, labels * 0)


def test_a_flat_image_has_one_plane(tmp_path: Path) -> None:
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.zeros((20, 30), np.uint8)), str(tmp_path / "a.png"))
    image = images.read([tmp_path / "a.png"], "NaturalImage2DIO")
    labels = np.zeros((1, 20, 30), np.uint8)
    labels[0, 3:9, 4:9] = 1
    for layout in preview.LAYOUTS:
        preview.write(labels, image, SEGMENTS, Look(layout, None, ct=False), tmp_path / "b.png")
        assert has(pixels(tmp_path / "b.png"), (220, 30, 30))
    assert len(preview._planes(preview._turned(image.array[0], labels, None))) == 1


@pytest.mark.usefixtures("steps_here")
def test_the_command_says_what_it_can_not_make(hand: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(volume(), tmp_path / "ct.nii.gz")
    words = ("predict", hand, tmp_path / "ct.nii.gz", tmp_path / "a.nii.gz", "--preview")
    wrong = run(*words, tmp_path / "a.jpg")
    assert wrong.returncode == 2 and "--preview writes .png files" in message(wrong)
    assert run(*words, tmp_path / "a.png").returncode == 0
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "matplotlib" else True)
    with pytest.raises(
        InputError, match=r"matplotlib, which makes previews, isn't installed: pip install 'segonnx\[preview\]'"
    ):
        preview.require(tmp_path / "a.png")
