"""Zip files of strangers: what is needed is written within the folder, and nothing else anywhere."""

from __future__ import annotations

import lzma
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from segonnx.core import zips
from segonnx.errors import InputError, ResourceError
from segonnx.sources.nnunet import archive
from segonnx.sources.nnunet.folder import find_checkpoints, locate

MODEL = "Dataset999_Hand/nnUNetTrainer__nnUNetPlans__3d_fullres"
FILES = {
    f"{MODEL}/plans.json": b"{}",
    f"{MODEL}/dataset.json": b"{}",
    f"{MODEL}/dataset_fingerprint.json": b"{}",
    f"{MODEL}/fold_0/checkpoint_final.pth": b"weights",
    f"{MODEL}/fold_0/checkpoint_best.pth": b"better",
    f"{MODEL}/fold_all/checkpoint_final.pth": b"all",
    f"{MODEL}/fold_0/progress.png": b"picture",
    f"{MODEL}/fold_0/validation/summary.json": b"{}",
    "Dataset999_Hand/inference_information.json": b"{}",
}


def _zip(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return path


def _below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_what_an_export_needs_is_there_while_it_runs(tmp_path: Path) -> None:
    with archive.unpacked(_zip(tmp_path / "model.zip", FILES)) as folder:
        assert folder.name == "Dataset999_Hand"
        model = locate(folder)
        assert _below(folder.parent) == {
            f"{MODEL}/plans.json", f"{MODEL}/dataset.json", f"{MODEL}/fold_0/checkpoint_final.pth",
            f"{MODEL}/fold_0/checkpoint_best.pth", f"{MODEL}/fold_all/checkpoint_final.pth",
            "Dataset999_Hand/inference_information.json",
        }  # fmt: skip
        assert find_checkpoints(model, "0", "final")["0"].read_bytes() == b"weights"
    assert not folder.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model.zip"]


@pytest.mark.parametrize("cut", ["Dataset999_Hand/", f"{MODEL}/"])
def test_a_zip_file_of_a_folder_within_is_one_too(cut: str, tmp_path: Path) -> None:
    files = {name.removeprefix(cut): content for name, content in FILES.items() if name.startswith(cut)}
    with archive.unpacked(_zip(tmp_path / "model.zip", files)) as folder:
        assert list(find_checkpoints(locate(folder), None, "final")) == ["0", "all"]


def test_several_configurations_leave_the_choice_to_the_user(tmp_path: Path) -> None:
    files = FILES | {name.replace("3d_fullres", "2d"): content for name, content in FILES.items()}
    path = _zip(tmp_path / "model.zip", files)
    with archive.unpacked(path) as folder:
        assert locate(folder, "2d").name.endswith("__2d")
    with (
        pytest.raises(InputError, match=f"^{path}/Dataset999_Hand holds 2 trained folders; name one"),
        archive.unpacked(path) as folder,
    ):
        locate(folder)


def _link(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{MODEL}/plans.json", b"{}")
        entry = zipfile.ZipInfo(f"{MODEL}/dataset.json")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(entry, b"/etc/passwd")


def _twice(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{MODEL}/plans.json", b"{}")
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr(f"{MODEL}/plans.json", b"{}")


def _cut(path: Path) -> None:
    _zip(path, FILES)
    path.write_bytes(path.read_bytes()[:-30])


def _flipped(path: Path) -> None:
    _zip(path, FILES, zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(b"weights", b"weighty", 1))


def _bad_stream(path: Path) -> None:
    """The bytes of a file that aren't deflate's."""
    _zip(path, {f"{MODEL}/plans.json": b"{}" * 100})
    data = bytearray(path.read_bytes())
    start = 30 + len(f"{MODEL}/plans.json")
    data[start : start + 2] = b"\xff\xff"
    path.write_bytes(data)


def _strange_version(path: Path) -> None:
    """A file that only a later program can unpack."""
    _zip(path, FILES)
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + 6] = 99
    path.write_bytes(data)


def _short_extra(path: Path) -> None:
    """An extra field of an entry that ends before its numbers."""
    _zip(path, FILES)
    data = bytearray(path.read_bytes())
    start = data.index(b"PK\1\2")
    name = start + 46
    size = int.from_bytes(data[start + 28 : start + 30], "little")
    data[start + 24 : start + 28] = b"\xff\xff\xff\xff"
    data[start + 30 : start + 32] = b"\6\0"
    data[name + size : name + size] = b"\1\0\2\0\0\0"
    end = data.index(b"PK\5\6")
    data[end + 12 : end + 16] = (int.from_bytes(data[end + 12 : end + 16], "little") + 6).to_bytes(4, "little")
    path.write_bytes(data)


def _long_list(path: Path) -> None:
    """A list of entries that is repeated until no reader should hold it."""
    _zip(path, FILES)
    data = path.read_bytes()
    start, end = data.index(b"PK\1\2"), data.index(b"PK\5\6")
    times = zips.MAX_READ // (end - start) + 1
    size = (times * (end - start)).to_bytes(4, "little")
    path.write_bytes(data[:start] + data[start:end] * times + data[end : end + 12] + size + data[end + 16 :])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b"no zip file"), "is no zip file, or a damaged one"),
        (lambda path: path.write_bytes(b""), "is no zip file, or a damaged one"),
        (_cut, "is no zip file, or a damaged one"),
        (_flipped, "is no zip file, or a damaged one: Bad CRC-32"),
        (_bad_stream, "is no zip file, or a damaged one: Error -3 while decompressing"),
        (_strange_version, "is no zip file, or a damaged one: zip file version 9.9"),
        (_short_extra, "is no zip file, or a damaged one: Corrupt zip64 extra field"),
        (_long_list, "its list of entries is too long"),
        (os.mkfifo, "isn't a plain file"),
        (_link, "isn't a plain file within the folder"),
        (_twice, "holds files of the same name"),
        (lambda path: _zip(path, FILES | {"../plans.json": b"{}"}), "isn't a plain file within the folder"),
        (lambda path: _zip(path, FILES | {"/tmp/plans.json": b"{}"}), "isn't a plain file within the folder"),
        (lambda path: _zip(path, FILES | {"c:\\plans.json/plans.json": b"{}"}), "isn't a plain file within the folder"),
        (lambda path: _zip(path, FILES | {f"{'a/' * 9}plans.json": b"{}"}), "isn't a plain file within the folder"),
        (lambda path: _zip(path, FILES, zipfile.ZIP_BZIP2), "is compressed or locked in a strange way"),
        (lambda path: _zip(path, FILES | {f"{MODEL}/fold_1/checkpoint_final.pth": bytes(10**6)}), "a bomb"),
        (lambda path: _zip(path, {"a/model.onnx": b"model"}), "holds no plans.json"),
        (lambda path: _zip(path, {}), "holds no plans.json"),
    ],
)
def test_zip_files_of_strangers_are_refused_in_one_line(
    make: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.zip"
    make(path)
    with pytest.raises(InputError, match=message) as caught, archive.unpacked(path):
        pass
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model.zip"]


@pytest.mark.parametrize(
    "error",
    [struct.error("unpack"), lzma.LZMAError("x"), zlib.error("x"), NotImplementedError("x"), EOFError(), KeyError("x")],
)
def test_whatever_a_damaged_file_makes_the_library_raise_is_one_line(error: Exception, tmp_path: Path) -> None:
    path = _zip(tmp_path / "model.zip", FILES)
    with (
        mock.patch.object(zipfile.ZipFile, "open", side_effect=error),
        pytest.raises(InputError, match="is no zip file, or a damaged one"),
        archive.unpacked(path),
    ):
        pass


def test_files_that_are_too_large_are_refused_before_they_are_written(tmp_path: Path) -> None:
    path = _zip(tmp_path / "model.zip", FILES)
    with (
        mock.patch.object(archive, "MAX_BYTES", 1),
        pytest.raises(InputError, match="plans.json is larger than 1 bytes"),
        archive.unpacked(path),
    ):
        pass
    with (
        mock.patch("segonnx.core.files.shutil.disk_usage", return_value=mock.Mock(free=1)),
        pytest.raises(ResourceError, match="set TMPDIR"),
        archive.unpacked(path),
    ):
        pass
