"""Reads gzip files to their end, which the readers' libraries don't."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

from segonnx.errors import InputError

MAGIC = b"\x1f\x8b"
_CHUNK = 1 << 20


def is_packed(path: Path) -> bool:
    """A file is a gzip file, whatever its name says."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def chunks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, unpacked if it is a gzip file. What follows the last gzip member is ignored, as zlib does.

    Raises:
        InputError: The gzip file ends early, or isn't what its checksum says.
    """
    with path.open("rb") as file:
        data = file.read(_CHUNK)
        if not data.startswith(MAGIC):
            while data:
                yield data
                data = file.read(_CHUNK)
            return
        member = zlib.decompressobj(wbits=31)
        while True:
            try:
                unpacked = member.decompress(data, _CHUNK)
            except zlib.error as error:
                raise InputError(f"{path} isn't an intact gzip file: {error}") from error
            if not data and not unpacked and not member.eof:
                raise InputError(f"{path} isn't an intact gzip file: it ends early")
            yield unpacked
            if member.eof:
                data = member.unused_data + file.read(_CHUNK)
                if not data.startswith(MAGIC):
                    return
                member = zlib.decompressobj(wbits=31)
            else:
                data = member.unconsumed_tail or file.read(_CHUNK)
