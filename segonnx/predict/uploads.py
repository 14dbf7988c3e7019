"""Decodes files of strangers in a process of its own, which sees no other file of the machine.

Libraries that read images go by content and believe much: a file may name another one, whose bytes become voxels.
What ``headers`` looks for is refused; what it doesn't know finds nothing here.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from segonnx.core import confinement, subprocesses
from segonnx.core.subprocesses import Bounds, Progress
from segonnx.dicom import libraries, nifti, pixels, seg, series
from segonnx.dicom.outputs import Algorithm
from segonnx.dicom.segments import Segment
from segonnx.errors import InputError
from segonnx.predict import headers, images
from segonnx.predict.images import Image

VOXEL_BYTES = 64
"""The most memory that decoding takes for each voxel: numbers of 8 bytes, as read, turned and copied."""
ROOM_BYTES = 2**30
"""The most memory that it takes beside that, threads included."""
LIBRARIES = (__name__, "SimpleITK", "nibabel", "tifffile", "imageio.v3", "highdicom")
"""What takes longer to import than most images to read; what isn't installed is left out."""
HEADER_BYTES = 2**28
"""The most bytes of a series beside its voxels."""
_ARRAY, _SERIES, _FILES, _MADE = "decoded.npy", "series.nii", "files", "made.dcm"
_PACKED = ".gz"
# SimpleITK goes by what a file holds, and may take another of its readers than the one of the file's ending.
_SIMPLEITK = {".nii": "NiftiImageIO", ".png": "PNGImageIO", ".tif": "TIFFImageIO", ".tiff": "TIFFImageIO"}


class TooLargeError(InputError):
    """An image has more voxels than are taken."""


def decode(
    paths: Sequence[Path], reader: str, most: int, *, timeout: float, progress: Progress = subprocesses.silent
) -> Image:
    """Read an image in a process that has bounds, and is confined to the files' folder where the system can.

    Args:
        paths: A file for each channel, all in one folder with nothing else in it. Their endings are what they are
            taken for; .gz files are unpacked beside themselves.
        reader: A key of ``images.READERS``.
        most: The most voxels of a file.
        timeout: The most seconds.
        progress: A progress callback. What it raises ends the process.

    Raises:
        InputError: A file is damaged, is another than its name says, or can't be read.
        TooLargeError: It has more voxels.
        StageError: The process took too long, or died.
        ResourceError: The memory or the disk ran out.
    """
    work = (tuple(paths), reader, most)
    found = subprocesses.call(_decode, *work, progress=progress, bounds=Bounds(timeout), preload=LIBRARIES).value
    array = np.load(paths[0].parent / _ARRAY, allow_pickle=False)
    (paths[0].parent / _ARRAY).unlink()
    return replace(found, array=array)


def _decode(paths: tuple[Path, ...], reader: str, most: int, progress: Progress) -> Image:
    images.require(reader)
    folder = paths[0].parent
    with subprocesses.room(VOXEL_BYTES * most + ROOM_BYTES):
        confinement.confine(folder)
        found = decoded(paths, reader, most, progress)
    np.save(folder / _ARRAY, found.array, allow_pickle=False)
    return replace(found, array=np.empty(0))


def decode_series(
    path: Path, reader: str, most: int, *, timeout: float, progress: Progress = subprocesses.silent
) -> Image:
    """Read a DICOM series in such a process, as ``decode`` does.

    Args:
        path: A zip file, in a folder with nothing else in it, which must stay for ``segmentation``.
        reader: A key of ``images.READERS``, of volumes in NIfTI files.
        most: The most voxels.
        timeout: The most seconds.
        progress: A progress callback. What it raises ends the process.

    Raises:
        SegonnxError: See ``decode``.
    """
    work = (path, reader, most)
    (path.parent / _FILES).mkdir()  # who is confined makes no folders
    found = subprocesses.call(_decode_series, *work, progress=progress, bounds=Bounds(timeout), preload=LIBRARIES).value
    array = np.load(path.parent / _ARRAY, allow_pickle=False)
    (path.parent / _ARRAY).unlink()
    return replace(found, array=array)


def _decode_series(path: Path, reader: str, most: int, progress: Progress) -> Image:
    images.require(reader)
    folder = path.parent
    with subprocesses.room(VOXEL_BYTES * most + HEADER_BYTES + ROOM_BYTES):
        confinement.confine(folder)
        found = series.find(path, None, folder / _FILES, progress, 8 * most + HEADER_BYTES)
        _require(math.prod(found.grid.shape), most)
        nifti.write(pixels.volume(found, progress), found.grid, folder / _SERIES)
        image = images.read([folder / _SERIES], reader)
    np.save(folder / _ARRAY, image.array, allow_pickle=False)
    return replace(image, array=np.empty(0))


def segmentation(
    labels: Path,
    segments: Sequence[Segment],
    algorithm: Algorithm,
    most: int,
    *,
    timeout: float,
    progress: Progress = subprocesses.silent,
) -> bytes:
    """The bytes of a DICOM SEG, which such a process makes of the series that ``decode_series`` read.

    Args:
        labels: The label map's file, beside the series'.
        segments: What its labels are.
        algorithm: What made it.
        most: The most voxels.
        timeout: The most seconds.
        progress: A progress callback. What it raises ends the process.

    Raises:
        SegonnxError: See ``decode``.
    """
    work = (labels, tuple(segments), algorithm, most)
    subprocesses.call(_make_segmentation, *work, progress=progress, bounds=Bounds(timeout), preload=LIBRARIES)
    return (labels.parent / _MADE).read_bytes()


def _make_segmentation(
    labels: Path, segments: tuple[Segment, ...], algorithm: Algorithm, most: int, progress: Progress
) -> None:
    folder = labels.parent
    with subprocesses.room(VOXEL_BYTES * most + HEADER_BYTES + ROOM_BYTES), libraries.quiet():
        confinement.confine(folder)
        found = series.find(folder / _FILES, None, folder, progress)
        made = seg.make(nifti.read_labels(labels, found.grid), found, segments, algorithm, "binary")
        made.save_as(folder / _MADE)


def decoded(paths: Sequence[Path], reader: str, most: int, progress: Progress = subprocesses.silent) -> Image:
    """Read an image in this process; see ``decode``."""
    whole = []
    for sent in paths:
        progress(f"decoding {sent.name}")
        path = _unpacked(sent, most, progress)
        headers.require_whole(path)
        if reader.startswith("SimpleITKIO"):
            _require_kind(path)
        _require(images.count(path, reader), most)
        whole.append(path)
    return images.read(whole, reader)


def _unpacked(path: Path, most: int, progress: Progress) -> Path:
    """The file without gzip, where its name says that it has it. One that has none under such a name is renamed."""
    if path.suffix != _PACKED:
        return path
    plain = path.with_suffix("")
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    if not packed:
        return path.rename(plain)
    try:
        with gzip.open(path) as source, plain.open("wb") as target:
            while chunk := source.read(1 << 20):
                target.write(chunk)
                _require(target.tell() / 8, most)  # no voxel takes more bytes
                progress(f"unpacking {path.name}")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{plain.stem} isn't an intact gzip file: {error}") from error
    path.unlink()
    return plain


def _require_kind(path: Path) -> None:
    """See to it that SimpleITK takes a file for what its name says."""
    import SimpleITK

    chosen: str = SimpleITK.ImageFileReader.GetImageIOFromFileName(str(path))  # type: ignore[no-untyped-call]
    if chosen != _SIMPLEITK[path.suffix]:
        raise InputError(f"{path.stem} can't be read as a {path.suffix} file")


def _require(voxels: float, most: int) -> None:
    if voxels > most:
        raise TooLargeError(f"the image is too large: at most {most} voxels are taken")
