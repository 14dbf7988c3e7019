"""SimpleITKIO and SimpleITKIOWithReorient: by SimpleITK."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from segonnx.errors import InputError
from segonnx.predict.readers import packed, tiff
from segonnx.predict.readers.base import FileContent, Reader, narrowed
from segonnx.predict.resampling import AnyArray

PICTURE_DEPTH = 999
"""nnU-Net's z spacing of a flat image, in multiples of its larger spacing within the plane."""
_FLOATS = {"16": "f4", "64": "f8"}
"""NIfTI's codes of the types that hold NaN."""
_DICOM = (".dcm", ".dicom")


@dataclass(frozen=True)
class Geometry:
    """Where the voxels of an image are, in SimpleITK's words.

    Attributes:
        spacing: The spacing (x, y, z) in mm, or (x, y).
        origin: The place of the first voxel in mm.
        direction: The axes' directions, row by row.
        orientation: The orientation of the file, such as ``LPS``, if the image was reoriented. None otherwise.
    """

    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]
    orientation: str | None = None


class SimpleITKIO(Reader):
    """Reads what SimpleITK reads, with the axes as they are."""

    name = "SimpleITKIO"
    libraries: ClassVar = {"SimpleITK": "SimpleITK"}

    def read(self, path: Path) -> FileContent:
        itk = _itk()
        finite = _inspect(path)
        image = itk.ReadImage(str(path))
        if image.GetNumberOfComponentsPerPixel() > 1:
            count = image.GetNumberOfComponentsPerPixel()
            raise InputError(f"{path} holds {count} values for each voxel; nnU-Net's {self.name} takes one")
        if image.GetDimension() not in (2, 3):
            raise InputError(f"{path} has {image.GetDimension()} dimensions; it must have two or three")
        image, geometry = self._turned(image)
        array = narrowed(itk.GetArrayFromImage(image), path)
        array = array[None] if array.ndim == 3 else array[None, None]
        spacing = tuple(abs(size) for size in reversed(geometry.spacing))
        if len(spacing) == 2:
            spacing = (PICTURE_DEPTH * max(spacing), *spacing)
        return FileContent(array, spacing, geometry, finite and bool(np.isfinite(array).all()))

    def _turned(self, image: Any) -> tuple[Any, Geometry]:
        """The image as the network sees it, and its geometry."""
        return image, Geometry(image.GetSpacing(), image.GetOrigin(), image.GetDirection())

    def count(self, path: Path) -> int:
        header = _header(path)
        return int(math.prod(header.GetSize()) * header.GetNumberOfComponents())

    def write(self, labels: AnyArray, geometry: Geometry, path: Path) -> None:
        itk = _itk()
        if path.name.lower().endswith(_DICOM):
            raise ValueError("ITK's writer of DICOM ends the process where a label map takes a byte a voxel")
        flat = len(geometry.spacing) == 2
        image = itk.GetImageFromArray(np.ascontiguousarray(labels[0] if flat else labels))
        image.SetSpacing(geometry.spacing)
        image.SetOrigin(geometry.origin)
        image.SetDirection(geometry.direction)
        if geometry.orientation is not None:
            image = itk.DICOMOrient(image, geometry.orientation)
        itk.WriteImage(image, str(path), useCompression=True)

    def place(self, geometry: Geometry) -> Sequence[float]:
        return (*geometry.spacing, *geometry.origin, *geometry.direction)

    def matrix(self, geometry: Geometry) -> AnyArray | None:
        if len(geometry.spacing) == 2:
            return None
        matrix = np.eye(4)
        matrix[:3, :3] = np.reshape(geometry.direction, (3, 3)) * geometry.spacing
        matrix[:3, 3] = geometry.origin
        return matrix

    def blank(self, *, flat: bool) -> Geometry:
        axes = 2 if flat else 3
        return Geometry((1.0,) * axes, (0.0,) * axes, tuple(np.eye(axes).ravel().tolist()))


class SimpleITKIOWithReorient(SimpleITKIO):
    """Turns the axes so that they run to the right, to the front and up."""

    name = "SimpleITKIOWithReorient"
    widest_byte = 255

    def _turned(self, image: Any) -> tuple[Any, Geometry]:
        itk = _itk()
        orientation = itk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection())
        turned, geometry = super()._turned(itk.DICOMOrient(image, "RAS"))
        return turned, replace(geometry, orientation=orientation)

    def together(self, geometries: Sequence[Geometry]) -> Geometry:
        # nnU-Net's label map has the place of the first channel, and the orientation of the last.
        return replace(geometries[0], orientation=geometries[-1].orientation)

    def blank(self, *, flat: bool) -> Geometry:
        # Axes to the right and front, of a file whose axes run to the left and back.
        return replace(super().blank(flat=flat), direction=(-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0), orientation="LPS")


def _itk() -> Any:
    return importlib.import_module("SimpleITK")  # its functions have no types


def _inspect(path: Path) -> bool:
    """Look at a file before SimpleITK does, which makes up what some files lack, and reads NaN in a NIfTI file as 0.

    Returns:
        A NIfTI file holds neither NaN nor infinities. True for any other file.

    Raises:
        InputError: The file ends early.
    """
    kind = _itk().ImageFileReader.GetImageIOFromFileName(str(path))
    if kind == "NiftiImageIO":
        return _inspect_nifti(path)
    if kind == "JPEGImageIO":
        intact = b"\xff\xd9" in path.read_bytes()  # JPEG's end-of-image marker
    elif kind == "BMPImageIO":
        with path.open("rb") as file:
            intact = int.from_bytes(file.read(6)[2:], "little") <= path.stat().st_size
    elif kind == "TIFFImageIO":
        tiff.require_intact(path)
        return True
    elif kind in _PLAIN:
        intact = sum(map(len, packed.chunks(path))) >= _PLAIN[kind](path) + _bytes_of_voxels(path)
    else:
        return True
    if not intact:
        raise InputError(f"{path} isn't intact: it ends early")
    return True


def _bytes_of_voxels(path: Path) -> int:
    """The size of an image's voxels as they are in memory."""
    header = _header(path)
    pixel = _itk().Image([1] * header.GetDimension(), header.GetPixelID(), header.GetNumberOfComponents())
    return int(math.prod(header.GetSize()) * pixel.GetSizeOfPixelComponent() * header.GetNumberOfComponents())


def _begin_of_mrc(path: Path) -> int:
    start = next(packed.chunks(path), b"")[:1024]
    return 1024 + int.from_bytes(start[92:96], "little" if start[212:213] == b"D" else "big")


def _begin_of_vtk(path: Path) -> int:
    """Of a VTK file of binary numbers. One of words holds more bytes than these, if not always."""
    start = next(packed.chunks(path), b"")
    found = re.search(rb"LOOKUP_TABLE[^\n]*\n", start)
    return found.end() if found is not None else 0


_PLAIN: dict[str, Callable[[Path], int]] = {
    "GiplImageIO": lambda _: 256,
    "MRCImageIO": _begin_of_mrc,
    "VTKImageIO": _begin_of_vtk,
}
"""Of formats whose voxels stand as they are behind a header: its size."""


def _header(path: Path) -> Any:
    header = _itk().ImageFileReader()
    header.SetFileName(str(path))
    header.ReadImageInformation()
    return header


def _inspect_nifti(path: Path) -> bool:
    header = _header(path)
    sizes = [int(header.GetMetaData(f"dim[{axis}]")) for axis in range(1, 1 + int(header.GetMetaData("dim[0]")))]
    begin = int(float(header.GetMetaData("vox_offset")))
    end = begin + math.prod(sizes) * int(header.GetMetaData("bitpix")) // 8
    kind = _FLOATS.get(header.GetMetaData("datatype"))
    first, data = _nifti_files(path)
    if kind is None and not packed.is_packed(data):
        if data.stat().st_size < end:
            raise InputError(f"{path} isn't intact: it ends early")
        return True
    voxels = np.dtype(f"{_byte_order(first)}{kind or 'u1'}")
    finite, at, rest = True, 0, b""
    for chunk in packed.chunks(data):
        inside = rest + chunk[max(begin - at, 0) : max(end - at, 0)]
        at += len(chunk)
        if kind is not None:
            whole = len(inside) // voxels.itemsize * voxels.itemsize
            finite = finite and bool(np.isfinite(np.frombuffer(inside[:whole], voxels)).all())
            rest = inside[whole:]
    if at < end:
        raise InputError(f"{path} isn't intact: it ends early")
    return finite


def _byte_order(path: Path) -> str:
    """Of a NIfTI file: its first number is the size of its header."""
    first = next(packed.chunks(path), b"")[:4]
    return "<" if int.from_bytes(first, "little") in (348, 540) else ">"


def _nifti_files(path: Path) -> tuple[Path, Path]:
    """The files of a NIfTI image that hold its header and its voxels: one, or those of a pair."""
    stem = re.sub(r"\.(hdr|img)(\.gz)?$", "", path.name, flags=re.IGNORECASE)
    if stem == path.name:
        return path, path
    pairs = [[path.with_name(f"{stem}{ending}{gz}") for gz in ("", ".gz")] for ending in (".hdr", ".img")]
    header, voxels = (next((file for file in pair if file.is_file()), path) for pair in pairs)
    return header, voxels
