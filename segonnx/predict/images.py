"""Reads images and writes label maps with their geometry, by SimpleITK. Finds cases by nnU-Net's file names."""

from __future__ import annotations

import gzip
import importlib
import importlib.util
import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segonnx.core.files import publish, require_replaceable, staging
from segonnx.errors import InputError, ResourceError
from segonnx.predict import headers
from segonnx.predict.resampling import AnyArray

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".png", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg")
WITHOUT_GEOMETRY = (".png", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg")
"""The endings of files that keep no spacing, or only that of a picture."""
FLAT = (".png", ".bmp", ".jpg", ".jpeg")
"""The endings of files that hold one slice."""
PICTURE_DEPTH = 999
"""nnU-Net's z spacing of a picture, in multiples of its larger spacing within the plane."""


@dataclass(frozen=True)
class Image:
    """An image that was read from files.

    Attributes:
        array: The voxels, (C, z, y, x). A picture has z = 1.
        spacing: The spacing (z, y, x) in mm.
        geometry: SimpleITK's image, whose spacing, origin and direction a label map gets.
        orientation: The orientation of the file, such as ``LPS``, if the image was reoriented. None otherwise.
    """

    array: AnyArray
    spacing: tuple[float, ...]
    geometry: Any
    orientation: str | None = None


def require() -> None:
    """Check that images can be read.

    Raises:
        InputError: SimpleITK isn't installed.
    """
    if importlib.util.find_spec("SimpleITK") is None:
        raise InputError("SimpleITK, which reads and writes images, isn't installed: pip install 'segonnx[predict]'")


def cases(path: Path, channels: int, ending: str, *, natural: bool = False) -> dict[str, list[Path]]:
    """Find the cases, and the file of each of their channels.

    Args:
        path: A file, or a folder of files ``CASE_0000.nii.gz``, ``CASE_0001.nii.gz``, ...
        channels: The number of channels that the network takes.
        ending: The file ending to look for in a folder. If no file has it, every known ending counts.
        natural: A picture in a folder may have any name.

    Returns:
        The files of each case, in the order of the channels, by the case's name.

    Raises:
        InputError: There is no case, or a case lacks a channel.
    """
    if path.is_file():
        if channels > 1 and not _holds_colours(path):
            raise InputError(f"the network takes {channels} channels: give a folder with a file CASE_0000... for each")
        return {stem(path.name): [path]}
    if not path.is_dir():
        raise InputError(f"{path} is neither a file nor a folder")
    names = sorted(file.name for file in path.iterdir() if file.is_file())
    chosen = [name for name in names if name.endswith(ending)] or [name for name in names if name.endswith(ENDINGS)]
    found: dict[str, dict[int, Path]] = {}
    for name in chosen:
        if (match := re.fullmatch(r"(.+)_(\d{4})", stem(name))) is not None:
            found.setdefault(match[1], {})[int(match[2])] = path / name
        elif natural and _holds_colours(path / name):
            found[stem(name)] = {0: path / name}
    if not found:
        raise InputError(f"{path} holds no CASE_0000{ending}, which is how nnU-Net names a case's channels")
    result = {}
    for case, files in found.items():
        wanted = [0] if len(files) == 1 and _holds_colours(files.get(0, path)) else range(channels)
        for index in wanted:
            if index not in files:
                raise InputError(
                    f"{path}: the case {case} lacks {case}_{index:04}; the network takes {channels} channels"
                )
        result[case] = [files[index] for index in wanted]
    return result


def stem(name: str) -> str:
    """A file's name without its ending."""
    ending = next((known for known in ENDINGS if name.lower().endswith(known)), Path(name).suffix)
    return name[: len(name) - len(ending)] if ending else name


def _holds_colours(path: Path) -> bool:
    return path.name.lower().endswith((".png", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg"))


def read(paths: Sequence[Path], *, reorient: bool = False) -> Image:
    """Read an image from one file per channel. A file of colours holds several channels.

    Args:
        paths: The files, in the order of the channels.
        reorient: Reorder and flip the axes so that they run to the right, to the front and up.

    Raises:
        InputError: A file can't be read, or the files differ in shape or spacing.
    """
    itk: Any = importlib.import_module("SimpleITK")  # its functions have no types

    arrays: list[AnyArray] = []
    geometry: Any = None
    spacing: tuple[float, ...] = ()
    orientation: str | None = None
    for path in paths:
        headers.require_whole(path, detached=True)
        try:
            _require_intact(path)
            image = itk.ReadImage(str(path))
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise InputError(f"{path} can't be read as an image: {lines[-1][:200] if lines else error}") from error
        if reorient and image.GetDimension() == 3:
            orientation = itk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection())
            image = itk.DICOMOrient(image, "RAS")
        array = itk.GetArrayFromImage(image)
        array = np.moveaxis(array, -1, 0) if image.GetNumberOfComponentsPerPixel() > 1 else array[None]
        if array.ndim == 3:
            array = array[:, None]
        if array.ndim != 4:
            raise InputError(f"{path} has {image.GetDimension()} dimensions; it must have two or three")
        own = tuple(abs(size) for size in reversed(image.GetSpacing()))
        own = own if len(own) == 3 else (PICTURE_DEPTH * max(own), *own)
        if arrays and (array.shape[1:] != arrays[0].shape[1:] or not np.allclose(own, spacing, rtol=1e-4)):
            raise InputError(
                f"{path} and {paths[0]} differ in shape or spacing: "
                f"{array.shape[1:]} at {own} mm, and {arrays[0].shape[1:]} at {spacing} mm"
            )
        arrays.append(array)
        geometry, spacing = geometry if geometry is not None else image, own
    return Image(np.concatenate(arrays), spacing, geometry, orientation)


def _require_intact(path: Path) -> None:
    """Refuse a file that ends early. SimpleITK would make up the missing voxels of these formats."""
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        itk: Any = importlib.import_module("SimpleITK")
        header = itk.ImageFileReader()
        header.SetFileName(str(path))
        header.ReadImageInformation()
        sizes = [int(header.GetMetaData(f"dim[{axis}]")) for axis in range(1, 1 + int(header.GetMetaData("dim[0]")))]
        wanted = float(header.GetMetaData("vox_offset")) + math.prod(sizes) * int(header.GetMetaData("bitpix")) / 8
        intact = _size(path) >= wanted
    elif name.endswith((".jpg", ".jpeg")):
        intact = b"\xff\xd9" in path.read_bytes()  # JPEG's end-of-image marker
    elif name.endswith(".bmp"):
        with path.open("rb") as file:
            intact = int.from_bytes(file.read(6)[2:], "little") <= path.stat().st_size
    else:
        return
    if not intact:
        raise InputError(f"{path} isn't intact: it ends early")


def _size(path: Path) -> int:
    """The number of bytes of a file, unpacked if it is a gzip file."""
    if not path.name.lower().endswith(".gz"):
        return path.stat().st_size
    try:
        with gzip.open(path) as file:
            return sum(len(chunk) for chunk in iter(lambda: file.read(1 << 20), b""))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path} isn't an intact gzip file: {error}") from error


def write(labels: AnyArray, like: Image, path: Path) -> None:
    """Write a label map with the geometry of an image. A failure leaves no file.

    Args:
        labels: The label map, (z, y, x).
        like: The image.
        path: The file to write.

    Raises:
        InputError: Label maps aren't written to files of this ending.
        ResourceError: The file can't be written, or reads otherwise than it was written.
    """
    itk: Any = importlib.import_module("SimpleITK")  # its functions have no types

    flat = like.geometry.GetDimension() == 2
    image = itk.GetImageFromArray(np.ascontiguousarray(labels[0] if flat else labels))
    image.SetSpacing(like.geometry.GetSpacing())
    image.SetOrigin(like.geometry.GetOrigin())
    image.SetDirection(like.geometry.GetDirection())
    if like.orientation is not None:
        image = itk.DICOMOrient(image, like.orientation)
    ending = require_ending(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with staging(path) as folder:
            made = folder / f"labels{ending}"
            try:
                itk.WriteImage(image, str(made), useCompression=True)
            except RuntimeError as error:
                raise ResourceError(f"can't write {path}: {str(error).strip().splitlines()[-1][:200]}") from error
            _require_kept(read([made], reorient=like.orientation is not None), labels, like, path)
            publish(made, path, check=require_replaceable)
    except OSError as error:
        raise ResourceError(f"can't write {path}: {error.strerror}") from error


def _require_kept(found: Image, labels: AnyArray, like: Image, path: Path) -> None:
    """Hold a label map that was written and read again against what was to be written.

    Args:
        found: The label map as it reads.
        labels: The label map, (z, y, x).
        like: The image that it belongs to.
        path: The file, which messages name.

    Raises:
        ResourceError: They differ.
    """
    if found.array.shape != (1, *labels.shape):
        raise ResourceError(
            f"can't write {path}: such a file keeps {found.array.shape[1:]} of a label map {labels.shape}"
        )
    if not np.array_equal(found.array[0], labels):
        raise ResourceError(f"can't write {path}: such a file doesn't keep the labels")
    if path.name.lower().endswith(WITHOUT_GEOMETRY):
        return
    own, wanted = (
        (*image.GetSpacing(), *image.GetOrigin(), *image.GetDirection()) for image in (found.geometry, like.geometry)
    )
    if not np.allclose(own, wanted, rtol=1e-4, atol=1e-3):
        raise ResourceError(f"can't write {path}: such a file doesn't keep the image's spacing, origin and direction")


def require_ending(path: Path) -> str:
    """The file's ending.

    Raises:
        InputError: Label maps aren't written to files of this ending.
    """
    ending = next((known for known in ENDINGS if path.name.lower().endswith(known)), None)
    if ending is None or ending in (".jpg", ".jpeg", ".mhd"):
        raise InputError(f"{path}: label maps are written to .nii.gz, .nii, .nrrd, .mha, .png, .bmp or .tif files")
    return ending
