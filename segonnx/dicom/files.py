"""Finds the DICOM files of a folder, or of a zip file, by what they hold and not by their names."""

from __future__ import annotations

import os
import shutil
import stat
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from segonnx.core import files, zips
from segonnx.core.subprocesses import Progress
from segonnx.errors import InputError

ENDINGS = (".dcm", ".dicom", ".ima")
"""The endings of files that must be DICOM: a damaged slice isn't passed over."""
ZIP = ".zip"
MOST = 50_000
"""The most files of a folder, or of a zip file, that are looked at."""
MAX_GROWTH = 200
"""How many times its size a zip file may grow: air in an uncompressed slice packs well."""
_PREAMBLE, _MARK = 128, b"DICM"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Found:
    """A DICOM file.

    Attributes:
        path: The file.
        name: What messages call it: its path in the folder, or its place in the zip file, whose names may be those of
            patients.
    """

    path: Path
    name: str


def is_source(path: Path) -> bool:
    """Whether a path is what ``find`` takes: a DICOM file, a zip file, or a folder that holds DICOM files."""
    if path.is_dir():
        return any(_is_dicom(file) for file in _walk(path))
    return path.is_file() and (path.suffix.lower() == ZIP or _is_dicom(path))


def find(source: Path, scratch: Path, progress: Progress, most_bytes: int | None = None) -> list[Found]:
    """The DICOM files of a folder and of all folders in it, or of a zip file.

    Files of other kinds are passed over, and so are hidden ones and DICOMDIR.

    Args:
        source: The folder, the zip file, or one DICOM file.
        scratch: A folder for what is in a zip file.
        progress: A progress callback.
        most_bytes: The most bytes that a zip file may hold. None lets its own size decide.

    Raises:
        InputError: There is none, there are too many, a file whose name says that it is DICOM isn't, or the zip file is
            damaged or hostile.
        ResourceError: The disk has no room for what is in the zip file.
    """
    if source.is_dir():
        found = [
            Found(path, str(path.relative_to(source))) for path in sorted(_walk(source)) if _is_dicom(path, source)
        ]
    elif source.suffix.lower() == ZIP:
        found = _unpacked(source, scratch, progress, most_bytes)
    else:
        found = [Found(source, source.name)]
    if not found:
        raise InputError(f"{source} holds no DICOM files")
    return found


def _walk(folder: Path) -> Iterator[Path]:
    """Every file in a folder and the folders in it, but hidden ones. Links to folders aren't followed."""
    count = 0
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            if not name.startswith(".") and name.upper() != "DICOMDIR":
                count += 1
                if count > MOST:
                    raise InputError(f"{folder} holds more than {MOST:,} files; give the folder of one series")
                yield Path(parent, name)


def _is_dicom(path: Path, source: Path | None = None) -> bool:
    """Whether a file has DICOM's mark.

    Args:
        path: The file.
        source: The folder that messages name. None raises nothing.

    Raises:
        InputError: Its name says that it is DICOM, and it isn't, or can't be read.
    """
    named = source is not None and path.name.lower().endswith(ENDINGS)
    try:
        with files.opened(path) as file:
            found = _has_mark(file)
    except OSError as error:
        if not named:
            return False
        raise InputError(f"{path} can't be read: {error.strerror or error}") from error
    if named and not found:
        raise InputError(f"{path} is no DICOM file, or a damaged one: take it away, or bring it whole")
    return found


def _has_mark(file: IO[bytes]) -> bool:
    return file.read(_PREAMBLE + len(_MARK))[_PREAMBLE:] == _MARK


def _unpacked(path: Path, scratch: Path, progress: Progress, most_bytes: int | None) -> list[Found]:
    """Unpack the DICOM files of a zip file under names that tell nothing."""
    found = []
    with zips.opened(path) as (archive, size):
        entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        if len(entries) > MOST:
            raise InputError(f"{path} holds more than {MOST:,} files; give one series")
        needed = sum(entry.file_size for entry in entries)
        if needed > MAX_GROWTH * size:
            raise InputError(f"{path} would grow more than {MAX_GROWTH}-fold: a bomb")
        if most_bytes is not None and needed > most_bytes:
            raise InputError(f"{path} holds {needed:,} bytes; at most {most_bytes:,} are taken")
        files.require_space(needed, scratch, "what the zip file holds", "free some space")
        for number, entry in enumerate(entries, 1):
            progress(f"unpacking file {number} of {len(entries)}")
            if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
                continue
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or entry.flag_bits & 1:
                raise InputError(f"{path}: file {number} is locked, or packed in a way that isn't read")
            target = scratch / f"{number:05}.dcm"
            if _unpack(archive, entry, target, path):
                found.append(Found(target, f"file {number} of the zip file"))
    return found


def _unpack(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path, path: Path) -> bool:
    """Unpack an entry, if it is a DICOM file."""
    parts = [part for part in entry.filename.split("/") if part not in (".", "..")]
    hidden = any(part.startswith((".", "__MACOSX")) for part in parts)
    if hidden or entry.filename.upper().endswith("DICOMDIR"):
        return False
    with zips.reading(path, "unpacked"):
        with archive.open(entry) as file:
            if not _has_mark(file):
                if entry.filename.lower().endswith(ENDINGS):
                    raise InputError(f"{path}: a file whose name ends with {Path(entry.filename).suffix} isn't DICOM")
                return False
        with archive.open(entry) as file, target.open("xb") as made:
            shutil.copyfileobj(file, made, _CHUNK)
    return True
