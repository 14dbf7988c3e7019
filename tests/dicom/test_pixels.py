"""Pixels are read as SimpleITK reads them, in every transfer syntax that is known; what is damaged is one line."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom import uid
from pydicom.encaps import encapsulate, generate_frames

from segonnx.core import subprocesses
from segonnx.core.subprocesses import Bounds, Progress
from segonnx.dicom import libraries, pixels
from segonnx.errors import InputError
from tests.dicom.series_maker import CT, MR, PET, Maker, numbers, save
from tests.dicom.test_series import by_simpleitk, found

LOSSLESS = [
    uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.DeflatedExplicitVRLittleEndian,
    uid.RLELossless, uid.JPEGLSLossless, uid.JPEG2000Lossless, uid.JPEGLossless, uid.JPEGLosslessSV1,
]  # fmt: skip


def by_name(one: Any) -> str:
    return str(one.name).replace(" ", "_") if isinstance(one, uid.UID) else str(one)


@pytest.mark.parametrize("kind", ["u2", "i2"])
@pytest.mark.parametrize("syntax", LOSSLESS, ids=by_name)
def test_every_lossless_syntax_gives_the_numbers(syntax: uid.UID, kind: str, tmp_path: Path) -> None:
    stored = numbers((5, 60, 50))
    stored = stored if kind == "u2" else (stored.astype(int) * 16 - 32768).astype("i2")
    made = Maker(stored, elements={} if kind == "i2" else {"BitsStored": 12, "HighBit": 11})
    for number, header in enumerate(made.headers()):
        save(header, tmp_path / "in" / f"{number}.dcm", syntax)
    np.testing.assert_array_equal(pixels.volume(found(tmp_path / "in", tmp_path)), stored.astype(int) - 1024)
    header = made.enhanced(order=[1, 0, 2, 4, 3])
    save(header, tmp_path / "all.dcm", syntax)
    np.testing.assert_array_equal(pixels.volume(found(tmp_path / "all.dcm", tmp_path)), stored.astype(int) - 1024)
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(by_simpleitk(tmp_path / "in")), stored.astype(int) - 1024)


def test_lossy_jpeg_is_read_as_simpleitk_reads_it(tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(5), np.add.outer(np.arange(32) * 8, np.arange(24) * 9)).astype("u2")
    made = Maker(smooth, elements={"BitsStored": 12, "HighBit": 11})
    for number, header in enumerate(made.headers()):
        save(header, tmp_path / "in" / f"{number}.dcm", uid.JPEGExtended12Bit)
    read = pixels.volume(found(tmp_path / "in", tmp_path))
    assert np.abs(read - (smooth.astype(int) - 1024)).max() < 20
    assert np.abs(read - SimpleITK.GetArrayFromImage(by_simpleitk(tmp_path / "in"))).max() <= 1


PIXELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "slope and intercept": (CT, "u2", {"RescaleSlope": 2, "RescaleIntercept": -100}),
    "halves": (CT, "u2", {"RescaleSlope": "0.5", "RescaleIntercept": "-1000.25"}),
    "PET": (PET, "u2", {"RescaleSlope": "0.3717", "RescaleIntercept": 0}),
    "MR with a slope": (MR, "u2", {"RescaleSlope": 3, "RescaleIntercept": 5}),
    "large numbers": (CT, "u2", {"RescaleSlope": 1000, "RescaleIntercept": 0}),
    "8 bits": (MR, "u1", {"RescaleSlope": 1, "RescaleIntercept": 0}),
    "padding": (CT, "i2", {"PixelPaddingValue": -2000}),
    "more bits than are stored": (CT, "u2", {"BitsStored": 11, "HighBit": 10}),
    "signed in 12 bits": (CT, "i2", {"BitsStored": 12, "HighBit": 11}),
}


@pytest.mark.parametrize("kind", PIXELS)
def test_numbers_are_those_of_simpleitk(kind: str, tmp_path: Path) -> None:
    storage, form, elements = PIXELS[kind]
    stored = numbers(kind=form)
    if kind == "padding":
        stored[:, :3] = -2000
    Maker(stored, elements=elements).write(tmp_path / "in", storage)
    read, theirs = (
        pixels.volume(found(tmp_path / "in", tmp_path)),
        SimpleITK.GetArrayFromImage(by_simpleitk(tmp_path / "in")),
    )
    np.testing.assert_allclose(read, theirs, rtol=1e-12)
    assert kind != "padding" or read.min() == -3024


def test_each_slice_has_its_own_slope(tmp_path: Path) -> None:
    made = Maker(numbers())
    for number, header in enumerate(made.headers(PET)):
        save(header, tmp_path / "in" / f"{number}.dcm", RescaleSlope=f"{0.1 + number / 10:.1f}", RescaleIntercept=0)
    slopes = np.array([0.1, 0.2, 0.3, 0.4, 0.5])[:, None, None]
    np.testing.assert_allclose(pixels.volume(found(tmp_path / "in", tmp_path)), made.stored * slopes)


def _damaged(path: Path, syntax: uid.UID, how: str) -> None:
    """Damage a file of one slice."""
    if how == "the file ends early":
        path.write_bytes(path.read_bytes()[:-200])
        return
    header = pydicom.dcmread(path)
    (frame,) = generate_frames(header.PixelData, number_of_frames=1)
    changed = {"the pixels end early": frame[: len(frame) // 2], "no pixels": b"\0" * len(frame)}[how]
    header.PixelData = encapsulate([changed])
    header.save_as(path)


@pytest.mark.parametrize("how", ["the file ends early", "the pixels end early", "no pixels"])
@pytest.mark.parametrize("syntax", LOSSLESS, ids=by_name)
def test_damaged_pixels_are_one_line_that_names_the_slice(syntax: uid.UID, how: str, tmp_path: Path) -> None:
    if not syntax.is_encapsulated and how != "the file ends early":
        pytest.skip("pixels that aren't packed have no form")
    for number, header in enumerate(Maker(numbers((3, 60, 50)), elements={"BitsStored": 12, "HighBit": 11}).headers()):
        save(header, tmp_path / "in" / f"IM{number}.dcm", syntax)
    _damaged(tmp_path / "in" / "IM1.dcm", syntax, how)
    with pytest.raises(InputError, match=r"IM1.dcm") as caught:
        pixels.volume(found(tmp_path / "in", tmp_path))
    assert "\n" not in str(caught.value) and "Doe" not in str(caught.value)


def test_a_syntax_that_is_not_known_is_one_line(tmp_path: Path) -> None:
    headers = Maker(numbers()).headers()
    for number, header in enumerate(headers):
        header.PixelData = encapsulate([b"1234"])
        header.file_meta.TransferSyntaxUID = uid.MPEG2MPML
        header["PixelData"].is_undefined_length = True
        save(header, tmp_path / "in" / f"{number}.dcm")
    with pytest.raises(
        InputError, match=r"instance 1 \(0.dcm\) is compressed as MPEG2 Main Profile / Main Level, which"
    ):
        pixels.volume(found(tmp_path / "in", tmp_path))


def _read(folder: Path, progress: Progress) -> tuple[int, ...]:
    del progress
    return pixels.volume(found(folder / "in", folder)).shape


HOSTILE = ("many rows", "many frames", "large picture in JPEG 2000", "deep sequences", "long value", "deflated bomb")


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_are_refused_within_bounds(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "in" / "0.dcm"
    made = Maker(numbers((1, 60, 50)))
    (header,) = made.headers()
    if kind == "many rows":
        save(header, path, Rows=65535, Columns=65535)
    elif kind == "many frames":
        header = made.enhanced()
        header.NumberOfFrames = 2**31 - 1
        save(header, path)
    elif kind == "large picture in JPEG 2000":
        save(header, path, uid.JPEG2000Lossless)
        data = path.read_bytes()
        at = data.index(b"\xff\x51") + 6  # the sizes of the picture, and of its tiles
        path.write_bytes(data[:at] + struct.pack(">II", 60000, 60000) + data[at + 8 :])
    elif kind == "deep sequences":
        save(header, path)
        _append_deep(path)
    elif kind == "long value":
        save(header, path)
        data = path.read_bytes()
        at = data.index(struct.pack("<HH", 0x10, 0x10)) + 4
        data = data[:at] + b"OB\0\0" + struct.pack("<I", 0xFFFFFFF0) + data[at + 8 :]
        path.write_bytes(data)
    elif kind == "deflated bomb":
        header.add_new(0x00091010, "OB", bytes(2**29))
        with libraries.quiet():
            save(header, path, uid.DeflatedExplicitVRLittleEndian)
        assert path.stat().st_size < 2**20
    with pytest.raises(InputError) as caught:
        subprocesses.call(_read, tmp_path, progress=subprocesses.silent, bounds=Bounds(60, 2**29))
    told = str(caught.value)
    assert "\n" not in told and "Doe" not in told
    assert "0.dcm" in told or told == "the memory ran out"


def _append_deep(path: Path) -> None:
    """Sequences in sequences, deeper than any stack."""
    data = path.read_bytes()
    at = data.index(struct.pack("<HH", 0x10, 0x10))
    begin = struct.pack("<HH2sHI", 0x8, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    path.write_bytes(data[:at] + begin * 20000 + data[at:])
