"""Images that name other files, lie about themselves, or hold numbers that are none."""

from __future__ import annotations

import gzip
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import SimpleITK

from segonnx.errors import InputError
from segonnx.predict import headers, images
from tests.conftest import message, run
from tests.predict.conftest import SHAPE, SPACING, save, volume

pytestmark = pytest.mark.usefixtures("steps_here")


def ascii_nifti(secret: Path) -> bytes:
    """A file that has the magic of NIfTI at its place, and that the NIfTI library reads as text that names a file."""
    made = bytearray(
        f"<nifti_image\n nifti_type = 'NIFTI-1A'\n header_filename = 'x'\n image_filename = '{secret}'\n"
        " image_offset = '0'\n ndim = '3' nx = '24' ny = '16' nz = '8' dx = '1' dy = '1' dz = '1'\n datatype = '2'\n"
        " descrip = '".encode()
    )
    return bytes(made + b"x" * (344 - len(made)) + b"n+1\0'\n/>\n" + bytes(20_000))


def nifti(folder: Path, *, packed: bool = False) -> Path:
    path = folder / ("a.nii.gz" if packed else "a.nii")
    save(volume(), path)
    return path


def patch(path: Path, offset: int, form: str, *values: float | bytes) -> Path:
    """Other numbers in a header."""
    packed = path.name.endswith(".gz")
    data = bytearray(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
    struct.pack_into(f"<{form}", data, offset, *values)
    path.write_bytes(gzip.compress(bytes(data)) if packed else data)
    return path


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("axis", [1, 2, 3])
@pytest.mark.parametrize("value", [float("nan"), 0.0, float("inf"), -float("inf")])
def test_a_spacing_that_is_none_is_refused(value: float, axis: int, packed: bool, tmp_path: Path) -> None:
    path = patch(nifti(tmp_path, packed=packed), 76 + 4 * axis, "f", value)
    with pytest.raises(InputError, match="has the spacing"):
        images.read([path])


@pytest.mark.parametrize("place", [256, 264, 268, 276, 280, 292, 324])
def test_an_orientation_that_is_none_is_refused(place: int, tmp_path: Path) -> None:
    path = patch(nifti(tmp_path), place, "f", float("nan"))
    patch(path, 252, "2h", 1, 1)
    with pytest.raises(InputError, match="isn't finite numbers"):
        images.read([path])


def test_the_line_is_alone(hand: Path, tmp_path: Path) -> None:
    """No remark of a library stands around it."""
    path = patch(nifti(tmp_path), 80, "f", float("nan"))
    done = run("predict", hand, path, tmp_path / "o.nii.gz", process=True)
    assert done.returncode == 2 and done.stdout == ""
    assert "has the spacing" in message(done) and len(done.stderr.splitlines()) == 1


def test_both_versions_and_byte_orders_are_taken(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel", reason="nnU-Net brings it")
    for kind in (nibabel.Nifti1Image, nibabel.Nifti2Image):
        for order in "<>":
            header = kind.header_class(endianness=order)
            header.set_data_dtype(np.int16)
            path = tmp_path / "a.nii.gz"
            nibabel.save(kind(volume().T, np.diag([1.0, 2.0, 3.0, 1.0]), header), path)
            headers.require_whole(path)
    patched = tmp_path / "two.nii"
    nibabel.save(nibabel.Nifti2Image(volume().T, np.eye(4)), patched)
    headers.require_whole(patched)
    patch(patched, 104 + 8, "d", float("nan"))
    with pytest.raises(InputError, match="has the spacing"):
        headers.require_whole(patched)


def test_a_file_that_names_another_one_is_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "elsewhere" / "secret.nia"
    secret.parent.mkdir()
    secret.write_bytes(bytes(3072))
    local = "ObjectType = Image\nNDims = 3\nDimSize = 24 16 8\nElementType = MET_UCHAR\nElementDataFile = "
    nrrd = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 24 16 8\nencoding: raw\n"
    pair = patch(nifti(tmp_path), 344, "4s", b"ni1\0").read_bytes()
    for name, data in (
        ("a.nii", ascii_nifti(secret)), ("b.nii.gz", gzip.compress(ascii_nifti(secret))), ("c.nii", pair),
        ("d.mha", f"{local}{secret}\n".encode()), ("e.mhd", f"{local}{secret}\n".encode()),
        ("f.mhd", f"{local}elsewhere/secret.nia\n".encode()), ("g.mhd", f"{local}../x/secret.nia\n".encode()),
        ("h.mhd", f"{local}LIST\n{secret}\n".encode()), ("i.mhd", f"{local}slice%03d.raw 1 8 1\n".encode()),
        ("j.mhd", f"{local}C:\\secret.nia\n".encode()), ("k.nrrd", f"{nrrd}data file: {secret}\n\n".encode()),
        ("l.nrrd", f"{nrrd}DataFile: LIST\n{secret}\n".encode()), ("m.mhd", f"{local.lower()}{secret}\n".encode()),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match="can't be read as an image|isn't followed"):
            images.read([tmp_path / name])


def test_a_header_that_names_a_file_beside_it_is_one_s_own(tmp_path: Path) -> None:
    save(volume(), tmp_path / "a.mhd")
    assert (tmp_path / "a.zraw").exists() or (tmp_path / "a.raw").exists()
    np.testing.assert_array_equal(images.read([tmp_path / "a.mhd"]).array[0], volume())
    with pytest.raises(InputError, match="isn't followed"):
        headers.require_whole(tmp_path / "a.mhd")
    raw = next(path for path in tmp_path.iterdir() if path.suffix in (".raw", ".zraw"))
    raw.unlink()
    raw.symlink_to("/etc/passwd")
    with pytest.raises(InputError, match="it is a link"):
        images.read([tmp_path / "a.mhd"])


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".mha", ".nrrd", ".png"])
def test_pipes_and_devices_are_not_read(ending: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / f"pipe{ending}")
    (tmp_path / f"zeros{ending}").symlink_to("/dev/zero")
    for name in ("pipe", "zeros"):
        with pytest.raises(InputError, match="isn't a plain file"):
            images.read([tmp_path / f"{name}{ending}"])


def test_what_whole_files_are_is_taken(tmp_path: Path) -> None:
    for ending in (".nii", ".nii.gz", ".mha", ".nrrd"):
        save(volume(), tmp_path / f"a{ending}")
        headers.require_whole(tmp_path / f"a{ending}")
        assert images.read([tmp_path / f"a{ending}"]).spacing == pytest.approx(SPACING)


@pytest.mark.parametrize("value", [1e300, -1e300, 3.5e38])
def test_numbers_that_float32_does_not_hold_are_refused(value: float, hand: Path, tmp_path: Path) -> None:
    array = volume().astype(np.float64)
    array[0, 0, 0] = value
    save(array, tmp_path / "a.nii")
    done = run("predict", hand, tmp_path / "a.nii", tmp_path / "o.nii")
    assert done.returncode == 2 and "\n" not in message(done)
    assert "float32" in done.stderr or "finite" in done.stderr
    assert not (tmp_path / "o.nii").exists()


def test_numbers_that_can_not_be_normalised_are_refused(loaded: object) -> None:
    from dataclasses import replace

    from segonnx.predict import config, preprocessing, resampling
    from segonnx.predict.predictor import Artifact
    from segonnx.predict.preprocessing import Times

    assert isinstance(loaded, Artifact)
    scheme = config.ChannelNormalization("ZScoreNormalization", use_mask=False, statistics={})
    image = np.full((1, *SHAPE), 3e38, np.float32)
    image[:, ::2] *= -1
    with (
        mock.patch.object(resampling, "resample", side_effect=AssertionError("it was resampled first")),
        pytest.raises(InputError, match="normalised"),
    ):
        preprocessing.prepare(image, SPACING, replace(loaded.config, channels=(scheme,)), None, Times())


@pytest.mark.parametrize("name", ["o.png", "o.bmp", "O.PNG"])
def test_a_volume_does_not_go_into_a_picture(name: str, hand: Path, tmp_path: Path) -> None:
    save(volume(), tmp_path / "a.nii.gz")
    (tmp_path / name).write_text("mine")
    done = run("predict", hand, tmp_path / "a.nii.gz", tmp_path / name, "--overwrite")
    assert done.returncode == 2 and "\n" not in message(done)
    assert "one slice of the 20" in message(done) or "label maps aren't written to such files" in message(done)
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha", ".tif"])
def test_a_label_map_is_read_again(ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(volume(), tmp_path / "a.nii.gz")
    image = images.read([tmp_path / "a.nii.gz"])
    labels = (volume() % 300).astype(np.uint16)
    images.write(labels, image, tmp_path / f"o{ending}")
    np.testing.assert_array_equal(
        SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / f"o{ending}"))), labels
    )
    real = SimpleITK.WriteImage
    changes: tuple[Callable[[SimpleITK.Image], SimpleITK.Image], ...] = (
        lambda made: made[:, :, :-1],
        lambda made: made + 1,
    )
    for change in changes:
        monkeypatch.setattr(
            SimpleITK, "WriteImage", lambda made, *more, to=change, **named: real(to(made), *more, **named)
        )
        with pytest.raises(InputError, match="keeps|doesn't keep the labels"):
            images.write(labels, image, tmp_path / f"o{ending}")
    assert sorted(os.listdir(tmp_path)) == ["a.nii.gz", f"o{ending}"]


def test_a_geometry_that_is_not_kept_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(volume(), tmp_path / "a.nii.gz")
    image = images.read([tmp_path / "a.nii.gz"])
    real = SimpleITK.WriteImage

    def other(made: SimpleITK.Image, *more: Any, **named: Any) -> None:
        made.SetOrigin((1, 2, 3))
        real(made, *more, **named)

    monkeypatch.setattr(SimpleITK, "WriteImage", other)
    with pytest.raises(InputError, match="doesn't keep the image's spacing, origin"):
        images.write(volume().astype(np.uint8), image, tmp_path / "o.nii.gz")
    assert os.listdir(tmp_path) == ["a.nii.gz"]


def test_predict_overwrites_nothing_that_it_reads(hand: Path, tmp_path: Path) -> None:
    image, folder = tmp_path / "a.nii.gz", tmp_path / "in"
    save(volume(), image)
    folder.mkdir()
    save(volume(), folder / "b_0000.nii.gz")
    (tmp_path / "link.nii.gz").symlink_to(image)
    (folder / "b.nii.gz").symlink_to("b_0000.nii.gz")
    before = image.read_bytes(), (folder / "b_0000.nii.gz").read_bytes(), sorted(hand.rglob("*"))
    for arguments in (
        (image, image), (image, tmp_path / "link.nii.gz"), (image, folder / ".." / "a.nii.gz"), (folder, folder),
        (image, hand / "o.nii.gz"), (folder, hand), (folder, hand / "labels"),
        (image, tmp_path / "o.nii.gz", "--json", hand / "manifest.json"),
    ):  # fmt: skip
        done = run("predict", hand, *arguments, "--overwrite")
        assert done.returncode == 2 and "which is read" in message(done), (arguments, done.stderr)
        assert "\n" not in message(done)
    assert before == (image.read_bytes(), (folder / "b_0000.nii.gz").read_bytes(), sorted(hand.rglob("*")))


def test_no_image_of_a_folder_is_passed_over(hand: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    save(volume(), folder / "a_0000.nii.gz")
    for other in ("a_0000.nii", "a_0000.mha", "b_0000.nii", "b_0000.mha"):
        save(volume(), folder / other)
        done = run("predict", hand, folder, tmp_path / "out")
        case = other[0]
        assert done.returncode == (2 if case == "a" else 1)  # where no case is left, it is wrong use
        assert other in message(done).splitlines()[0]
        assert case == "a" or message(done).endswith("1 of 2 cases aren't done: b")
        assert "\n" not in message(done) or case == "b"
        (folder / other).unlink()
    for harmless in ("notes.txt", "a.json", ".b_0000.nii", "readme_0000.md"):
        (folder / harmless).write_text("x")
    assert run("predict", hand, folder, tmp_path / "out").returncode == 0


@pytest.mark.parametrize("ending", ["/../../evil.nii.gz", "/x.nii.gz"])
def test_a_label_map_stands_in_its_folder(ending: str, loaded: object, tmp_path: Path) -> None:
    import copy
    from dataclasses import replace

    from segonnx.predict import files
    from segonnx.predict.predictor import Artifact

    assert isinstance(loaded, Artifact)
    changed = copy.copy(loaded)
    changed.config = replace(loaded.config, file_ending=ending)
    save(volume(), tmp_path / "in" / "a_0000.nii.gz")
    with pytest.raises(InputError):
        files.jobs(changed, tmp_path / "in", tmp_path / "out", files.FileOptions())
