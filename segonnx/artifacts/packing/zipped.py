"""Packs an artifact into a zip file, whose bytes are the same each time. Reading doesn't trust the file.

Files are stored, not deflated: trained weights hardly shrink, and a stored file is written and read at the speed of the
disk.
"""

from __future__ import annotations

import contextlib
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path

from segonnx.artifacts import layout, manifest
from segonnx.artifacts.manifest import Manifest
from segonnx.artifacts.packing import contents
from segonnx.artifacts.packing.contents import Source
from segonnx.core import zips
from segonnx.core.subprocesses import Progress
from segonnx.errors import VerifyError

EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time that a zip file can hold. Every entry gets it, so that the bytes are the same each time."""
MODE = (stat.S_IFREG | 0o644) << 16
"""The attributes of every entry: a plain file that everybody may read."""
MAX_GROWTH = 100
"""How many times its size a zip file may grow. Weights stay below; zeros and overlapping entries don't."""


def write(source: Source, out: Path, progress: Progress) -> None:
    """Write the files of a verified artifact to the zip file ``out``."""
    with zipfile.ZipFile(out, "x", zipfile.ZIP_STORED) as archive:
        for name in source.every:
            progress(f"packing {name}")
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.create_system = 3  # Unix, on every system
            entry.external_attr = MODE
            large = source.entry(name)["bytes"] > zipfile.ZIP64_LIMIT // 2
            with archive.open(entry, "w", force_zip64=large) as target:
                for block in source.blocks(name):
                    target.write(block)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Zipped]:
    """Open the artifact in a zip file.

    Raises:
        InputError: The file is no zip file, or is damaged.
    """
    with zips.opened(path) as (archive, size):
        yield Zipped(archive, path, size)


class Zipped:
    """A zip file that isn't trusted."""

    def __init__(self, archive: zipfile.ZipFile, path: Path, size: int) -> None:
        self._archive, self._path, self._size = archive, path, size

    def manifest(self) -> Manifest:
        """Read the manifest, and check that the zip file holds the files that it names, and no other.

        Raises:
            InputError: The file is damaged.
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
        self._manifest = self._read(layout.MANIFEST)
        content = contents.parse(self._manifest, self._path)
        if sum(entry["bytes"] for entry in content["files"].values()) > MAX_GROWTH * self._size:
            raise VerifyError(f"{self._path} would grow more than {MAX_GROWTH}-fold: a bomb")
        contents.require_known(found, content, self._path)
        return content

    def files(self, content: Manifest) -> Iterator[tuple[str, Iterator[bytes]]]:
        """The artifact's files: the name of each, and its bytes, which are checked on the way.

        Raises:
            InputError: The zip file is damaged.
            VerifyError: A file has other bytes.
        """
        yield layout.MANIFEST, iter([self._manifest])
        if layout.SIGNATURE in self._archive.namelist():
            yield layout.SIGNATURE, iter([self._read(layout.SIGNATURE)])
        for name, entry in content["files"].items():
            yield name, contents.checked(self._blocks(name), entry["bytes"], entry["sha256"], name)

    def _blocks(self, name: str) -> Iterator[bytes]:
        with zips.reading(self._path), self._archive.open(name) as file:
            yield from contents.blocks(file)

    def _read(self, name: str) -> bytes:
        """The bytes of a file that the manifest can't name."""
        data = bytearray()
        for block in self._blocks(name):
            data += block
            if len(data) > manifest.MAX_BYTES:
                raise VerifyError(f"{self._path}: {name} is larger than {manifest.MAX_BYTES:,} bytes")
        return bytes(data)
