"""What every reader is: it reads a file as nnU-Net's class of its name does, and writes label maps as that one does."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from segonnx.errors import InputError
from segonnx.predict.resampling import AnyArray


@dataclass(frozen=True)
class FileContent:
    """What a reader reads from one file.

    Attributes:
        array: The voxels, (C, z, y, x). Numbers that float32 holds as nnU-Net's float32 does.
        spacing: The spacing (z, y, x) in mm, as nnU-Net's class gives it.
        geometry: What the reader needs to write a label map.
        finite: No voxel of the file is NaN or infinite.
    """

    array: AnyArray
    spacing: tuple[float, ...]
    geometry: Any
    finite: bool


class Reader(ABC):
    """Reads images and writes label maps. An instance has no state.

    Attributes:
        name: The name of nnU-Net's class.
        libraries: The modules that must be there, with the names of their packages.
        widest_byte: The largest value of a label map that is written in bytes. Others take two bytes a voxel.
    """

    name: ClassVar[str]
    libraries: ClassVar[dict[str, str]]
    widest_byte: ClassVar[int] = 254

    @abstractmethod
    def read(self, path: Path) -> FileContent:
        """Read one file.

        Raises:
            InputError: nnU-Net's class doesn't take the file, or the file isn't intact.
            Exception: The library's own error: it can't read the file.
        """

    @abstractmethod
    def count(self, path: Path) -> int:
        """The number of values that a file says it holds; they aren't read.

        Raises:
            Exception: The library's own error: it can't read the file's header.
        """

    @abstractmethod
    def write(self, labels: AnyArray, geometry: Any, path: Path) -> None:
        """Write a label map.

        Args:
            labels: The label map (z, y, x), uint8 or uint16.
            geometry: The image's.
            path: The file to write.

        Raises:
            Exception: The library's own error: it can't write such a file.
        """

    @abstractmethod
    def blank(self, *, flat: bool) -> Any:
        """The geometry of an image without any: of one slice in two dimensions, or of several in three."""

    def place(self, geometry: Any) -> Sequence[float]:
        """The numbers that say where the voxels are. Empty if the reader's files don't keep that."""
        del geometry
        return ()

    def matrix(self, geometry: Any) -> AnyArray | None:
        """The matrix (4, 4) from voxels (x, y, z) of the array to mm to the left, to the back and up, as in DICOM.

        None if the reader's files don't say where their voxels are, or are flat.
        """
        del geometry
        return None

    def together(self, geometries: Sequence[Any]) -> Any:
        """The geometry of an image, from those of its files."""
        return geometries[0]


def narrowed(array: AnyArray, path: Path) -> AnyArray:
    """The same numbers; wide ones as float32, which is what nnU-Net makes of all.

    Raises:
        InputError: The array holds no numbers.
    """
    require_numbers(array, path)
    if array.dtype.itemsize <= 4:
        return array
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def require_numbers(array: AnyArray, path: Path) -> None:
    """Refuse colours, complex numbers and the like.

    Raises:
        InputError: The array holds no numbers.
    """
    if array.dtype.kind not in "iufb":
        raise InputError(f"{path} holds {array.dtype}; it must hold one number for each voxel")


@contextmanager
def quiet(logger: str) -> Iterator[None]:
    """Keep a library from printing, in this thread, what it thinks of a file. What is wrong is raised."""
    found, own = logging.getLogger(logger), threading.get_ident()

    def of_others(record: logging.LogRecord) -> bool:
        return record.thread != own

    found.addFilter(of_others)
    try:
        yield
    finally:
        found.removeFilter(of_others)
