"""Packs an artifact into a zip file, whose bytes are the same each time. Reading doesn't trust the file.

Files are stored, not deflated: trained weights hardly shrink, and a stored file is written and read at the speed of the
disk.
"""

from __future__ import annotations

import contextlib
import shutil
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path

from segonnx.artifacts import layout, manifest
from segonnx.artifacts.manifest import Manifest
from segonnx.artifacts.packing import contents
from segonnx.core.subprocesses import Progress
from segonnx.errors import InputError, VerifyError

EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time that a zip file can hold. Every entry gets it, so that the bytes are the same each time."""
MODE = (stat.S_IFREG | 0o644) << 16
"""The attributes of every entry: a plain file that everybody may read."""
MAX_GROWTH = 100
"""How many times its size a zip file may grow. Weights stay below; zeros and overlapping entries don't."""


def write(artifact: Path, content: Manifest, out: Path, progress: Progress) -> None:
    """Write the files of a verified artifact to the zip file ``out``."""
    with zipfile.ZipFile(out, "x", zipfile.ZIP_STORED) as archive:
        for name in contents.names(content, signed=(artifact / layout.SIGNATURE).exists()):
            progress(f"packing {name}")
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.create_system = 3  # Unix, on every system
            entry.external_attr = MODE
            size = (artifact / name).stat().st_size
            with (
                (artifact / name).open("rb") as source,
                archive.open(entry, "w", force_zip64=size > zipfile.ZIP64_LIMIT // 2) as target,
            ):
                shutil.copyfileobj(source, target, contents.BLOCK)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Zipped]:
    """Open the artifact in a zip file.

    Raises:
        InputError: The file is no zip file, or is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            yield Zipped(archive, path)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no zip file, or a damaged one: {error}") from error
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror or error}") from error


class Zipped:
    """A zip file that isn't trusted."""

    def __init__(self, archive: zipfile.ZipFile, path: Path) -> None:
        self._archive, self._path = archive, path

    def manifest(self) -> Manifest:
        """Read the manifest, and check that the zip file holds the files that it names, and no other.

        Raises:
            VerifyError: A file is missing, isn't the artifact's, or is packed in an unusual way.
        """
        entries = self._archive.infolist()
        found = [entry.filename for entry in entries]
        contents.require_safe(found)
        for entry in entries:
            kind = stat.S_IFMT(entry.external_attr >> 16)
            if entry.is_dir() or kind not in (0, stat.S_IFREG):
                raise VerifyError(f"{self._path}: {entry.filename} isn't a plain file")
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or entry.flag_bits & 1:
                raise VerifyError(f"{self._path}: {entry.filename} is compressed or locked in a strange way")
        if layout.MANIFEST not in found:
            raise VerifyError(f"{self._path} holds no artifact: it has no {layout.MANIFEST}")
        with self._archive.open(layout.MANIFEST) as file:
            content = contents.parse(file.read(manifest.MAX_BYTES + 1), self._path)
        if sum(entry["bytes"] for entry in content["files"].values()) > MAX_GROWTH * self._path.stat().st_size:
            raise VerifyError(f"{self._path} would grow more than {MAX_GROWTH}-fold: a bomb")
        contents.require_known(found, content, self._path)
        return content

    def extract(self, content: Manifest, target: Path, progress: Progress) -> None:
        """Write the files below ``target``, and check their bytes on the way.

        Raises:
            VerifyError: A file has other bytes.
        """
        for name in {layout.MANIFEST, layout.SIGNATURE} & set(self._archive.namelist()):
            with self._archive.open(name) as file:
                (target / name).write_bytes(file.read(manifest.MAX_BYTES))
        for name, entry in content["files"].items():
            progress(f"unpacking {name}")
            with self._archive.open(name) as source:
                contents.copy(source, target / name, entry["bytes"], entry["sha256"], name)
