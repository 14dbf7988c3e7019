"""Reads zip files of strangers: what is wrong with one is said in one line, and its list of entries has a bound."""

from __future__ import annotations

import contextlib
import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from segonnx.core import files
from segonnx.errors import InputError, SegonnxError, first_line

MAX_READ = 8 * 2**20
"""The most bytes that are read at once: a list of entries that is longer isn't read."""


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[zipfile.ZipFile, int]]:
    """Open a zip file, and give it with its size in bytes.

    Raises:
        InputError: it is no zip file, a damaged one, or no plain file.
    """
    with contextlib.ExitStack() as stack:
        with reading(path):
            file = stack.enter_context(files.opened(path))
            archive = stack.enter_context(zipfile.ZipFile(_Bounded(file)))
        yield archive, os.fstat(file.fileno()).st_size


@contextlib.contextmanager
def reading(path: Path, what: str = "read") -> Iterator[None]:
    """Say in one line what is wrong with a zip file. The file is a stranger's, and there are many classes of errors.

    Args:
        path: the file, for the message.
        what: can't be done with it where the disk fails, for the message.

    Raises:
        InputError: the block raised something.
    """
    try:
        yield
    except SegonnxError:
        raise
    except OSError as error:
        raise InputError(f"{path} can't be {what}: {error.strerror or error}") from error
    except Exception as error:
        raise InputError(f"{path} is no zip file, or a damaged one: {first_line(error)}") from error


class _Bounded(io.RawIOBase):
    """A file of which no more is read at once than makes sense, whatever it says itself."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file

    def read(self, size: int | None = -1, /) -> bytes:
        data = self._file.read(min(size, MAX_READ + 1) if size is not None and size >= 0 else MAX_READ + 1)
        if len(data) > MAX_READ:
            raise zipfile.BadZipFile("its list of entries is too long")
        return data

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True
