"""DICOM files are found by what they hold, in folders and in zip files that nobody trusts."""

from __future__ import annotations

import os
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest

from segonnx.core import subprocesses
from segonnx.dicom import files, pixels
from segonnx.errors import InputError, ResourceError
from tests.dicom.series_maker import PATIENT, Maker, numbers
from tests.dicom.test_series import found


def packed(folder: Path, path: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, f"{prefix}{file.relative_to(folder)}")
    return path


def test_a_zip_file_is_read_as_its_folder_and_its_names_are_told_nowhere(tmp_path: Path) -> None:
    made = Maker(numbers())
    made.write(tmp_path / "in")
    (tmp_path / "in" / "readme.txt").write_text("not an image")
    (tmp_path / "in" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    path = packed(tmp_path / "in", tmp_path / "in.zip", f"{PATIENT}/../../etc/")
    one = found(path, tmp_path)
    np.testing.assert_array_equal(pixels.volume(one), made.stored.astype(int) - 1024)
    assert str(one.slices[0]) == "instance 1 (file 2 of the zip file)"
    names = sorted(file.name for file in tmp_path.rglob("*") if file.parent.name == "unpacked")
    assert names == [f"{number:05}.dcm" for number in range(2, 7)]


def test_files_of_other_kinds_are_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    Maker(numbers()).write(folder / "a" / "b")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "x.dcm").write_bytes(b"0")
    (folder / "._IM0000.dcm").write_bytes(b"0")  # macOS leaves such files behind
    (folder / "report.pdf").write_bytes(b"0")
    (folder / "a" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    os.mkfifo(folder / "pipe")
    (folder / "again").symlink_to(folder)
    (folder / "a" / "b" / "IM0000.dcm").rename(folder / "a" / "b" / "no ending")
    every = files.find(folder, tmp_path, subprocesses.silent)
    assert [one.name for one in every] == [f"a/b/IM000{number}.dcm" for number in range(1, 5)] + ["a/b/no ending"]
    assert files.is_source(folder) and files.is_source(folder / "a" / "b" / "no ending")
    assert not files.is_source(folder / "report.pdf") and not files.is_source(folder / "pipe")


def test_what_holds_no_series_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty holds no DICOM files"):
        found(tmp_path / "empty", tmp_path)
    Maker(numbers()).write(tmp_path / "in")
    (tmp_path / "in" / "IM0002.dcm").write_bytes(b"0")
    with pytest.raises(InputError, match="IM0002.dcm is no DICOM file, or a damaged one"):
        found(tmp_path / "in", tmp_path)
    with pytest.raises(InputError, match=r"a file whose name ends with .dcm isn't DICOM"):
        found(packed(tmp_path / "in", tmp_path / "in.zip"), tmp_path)
    monkeypatch.setattr(files, "MOST", 3)
    for source in (tmp_path / "in", tmp_path / "in.zip"):
        with pytest.raises(InputError, match="holds more than 3 files"):
            found(source, tmp_path)


def _bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.dcm", bytes(128) + b"DICM" + bytes(10**8))


def _link(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        entry = zipfile.ZipInfo("a.dcm")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")


def _strange(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.dcm", bytes(128) + b"DICM")


def _locked(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.dcm", bytes(128) + b"DICM")
    data = bytearray(path.read_bytes())
    for mark, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(mark) + at] |= 1
    path.write_bytes(data)


def _damaged(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.dcm", bytes(128) + b"DICM" + bytes(range(256)))
    data = bytearray(path.read_bytes())
    data[300] ^= 1
    path.write_bytes(data)


def _lying(path: Path) -> None:
    """Its list of entries says that there is less than there is."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.dcm", bytes(128) + b"DICM" + bytes(10**7))
    data = path.read_bytes()
    size = (10**7 + 132).to_bytes(4, "little")
    path.write_bytes(data.replace(size, (1000).to_bytes(4, "little")))


STRANGE = {
    "a bomb": (_bomb, "would grow more than 200-fold: a bomb"),
    "a link": (_link, "holds no DICOM files"),
    "packed strangely": (_strange, "file 1 is locked, or packed in a way that isn't read"),
    "locked": (_locked, "file 1 is locked"),
    "damaged": (_damaged, "is no zip file, or a damaged one"),
    "lying": (_lying, "is no zip file, or a damaged one"),
    "no zip file": (lambda path: path.write_bytes(b"0"), "is no zip file, or a damaged one"),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_a_hostile_zip_file_is_one_line(kind: str, tmp_path: Path) -> None:
    make, line = STRANGE[kind]
    make(tmp_path / "in.zip")
    with pytest.raises(InputError, match=line) as caught:
        found(tmp_path / "in.zip", tmp_path)
    assert "\n" not in str(caught.value)
    assert sum(file.stat().st_size for file in (tmp_path / "unpacked").iterdir()) < 10**6


def test_a_zip_file_has_the_bounds_that_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Maker(numbers()).write(tmp_path / "in")
    path = packed(tmp_path / "in", tmp_path / "in.zip")
    with pytest.raises(InputError, match=r"holds [\d,]+ bytes; at most 1,000 are taken"):
        files.find(path, tmp_path, subprocesses.silent, 1000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("usage", (), {"free": 10}))
    with pytest.raises(ResourceError, match="what the zip file holds needs about"):
        files.find(path, tmp_path, subprocesses.silent)
