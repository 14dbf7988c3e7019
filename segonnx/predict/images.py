"""Finds cases by nnU-Net's file names, reads images and writes label maps by nnU-Net's readers."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segonnx.core.files import publish, require_replaceable, staging
from segonnx.errors import InputError, ResourceError
from segonnx.predict import headers
from segonnx.predict.readers import READERS
from segonnx.predict.readers.base import Reader
from segonnx.predict.resampling import AnyArray

_PICTURES = (".png", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg")
_NIFTI = (".nii.gz", ".nii")
ENDINGS = (*_NIFTI, ".nrrd", ".mha", ".mhd", ".gipl", ".gipl.gz", *_PICTURES)
"""The endings that are known without a manifest that names one."""
FLAT = (".png", ".bmp", ".jpg", ".jpeg")
"""The endings of files that hold one slice."""
_PROBE = "labels"
_REASON = 200


@dataclass(frozen=True)
class Image:
    """An image that was read from files.

    Attributes:
        array: The voxels, (C, z, y, x). A picture has z = 1. As float32 they are what nnU-Net's reader gives.
        spacing: The spacing (z, y, x) in mm.
        geometry: What the reader needs to write a label map.
        reader: The reader, a key of ``READERS``.
    """

    array: AnyArray
    spacing: tuple[float, ...]
    geometry: Any
    reader: str


def require(reader: str) -> None:
    """Check that a reader can work.

    Args:
        reader: A key of ``READERS``.

    Raises:
        InputError: A library of it isn't installed.
    """
    for module, package in READERS[reader].libraries.items():
        if importlib.util.find_spec(module) is None:
            raise InputError(
                f"{package}, which reads and writes images, isn't installed: pip install 'segonnx[predict]'"
            )


def reader_of(path: Path, *, reorient: bool = False) -> str:
    """The reader that nnU-Net takes where a data set names none: it goes by the files' ending.

    Args:
        path: An image's file.
        reorient: Take a reader that turns the axes so that they run to the right, to the front and up.
    """
    name = path.name.lower()
    if reorient:
        return "NibabelIOWithReorient" if name.endswith(_NIFTI) else "SimpleITKIOWithReorient"
    if name.endswith(_PICTURES):
        return "NaturalImage2DIO"
    return "NibabelIO" if name.endswith(".nii") else "SimpleITKIO"


def cases(
    path: Path, channels: int, ending: str, *, natural: bool = False, wrong: dict[str, str] | None = None
) -> dict[str, list[Path]]:
    """Find the cases, and the file of each of their channels.

    Hidden files are none, and names of other forms are passed over. Channels are in the order of their numbers, which
    may have gaps, as long as all cases have the same ones.

    Args:
        path: A file, or a folder of files ``CASE_0000.nii.gz``, ``CASE_0001.nii.gz``, ...
        channels: The number of channels that the network takes.
        ending: The file ending to look for in a folder. If no file has it, every known ending counts.
        natural: Images are pictures: one file may hold several channels, and in a folder it may have any name.
        wrong: Gets the cases that lack a channel, or have one too many, with what is wrong with each.

    Returns:
        The files of each case, in the order of the channels, by the case's name.

    Raises:
        InputError: There is no case; or one is wrong, and ``wrong`` is None.
    """
    if path.is_file():
        if channels > 1 and not natural:
            raise InputError(f"the network takes {channels} channels: give a folder with a file CASE_0000... for each")
        return {stem(path.name, ending): [path]}
    if not path.is_dir():
        raise InputError(f"{path} is neither a file nor a folder")
    names = sorted(file.name for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    chosen = [name for name in names if name.endswith(ending)] or [name for name in names if name.endswith(ENDINGS)]
    found: dict[str, dict[int, Path]] = {}
    for name in chosen:
        if (match := re.fullmatch(r"(.+)_([0-9]{4})", stem(name, ending))) is not None:
            found.setdefault(match[1], {})[int(match[2])] = path / name
        elif natural:
            found[stem(name, ending)] = {0: path / name}
    if not found:
        raise InputError(f"{path} holds no CASE_0000{ending}, which is how nnU-Net names a case's channels")
    numbers = _numbers([tuple(sorted(files)) for files in found.values()], channels)
    result = {}
    for case, files in found.items():
        if natural:
            result[case] = [files[number] for number in sorted(files)]  # each may hold any number of channels
            continue
        missing = [number for number in numbers if number not in files]
        said = ""
        if missing:
            said = f"{path}: the case {case} lacks {case}_{missing[0]:04}; the network takes {channels} channels"
        elif len(files) > channels:
            said = f"{path}: the case {case} has {len(files)} channels; the network takes {channels}"
        if not said:
            result[case] = [files[number] for number in numbers]
        elif wrong is None:
            raise InputError(said)
        else:
            wrong[case] = said
    return result


def _numbers(found: Sequence[tuple[int, ...]], channels: int) -> tuple[int, ...]:
    """The numbers of a network's channels, from those of each case: 0, 1, ..., or what all cases agree on."""
    first = found[0]
    return first if len(first) == channels and set(found) == {first} else tuple(range(channels))


def ending_of(name: str, ending: str = "") -> str:
    """A file's ending: the one that is given if the file has it, a known one, or what follows its last dot."""
    endings = (ending, *ENDINGS) if ending else ENDINGS
    return next((name[-len(known) :] for known in endings if name.lower().endswith(known.lower())), Path(name).suffix)


def stem(name: str, ending: str = "") -> str:
    """A file's name without its ending."""
    return name.removesuffix(ending_of(name, ending))


def read(
    paths: Sequence[str | os.PathLike[str]],
    reader: str | None = None,
    *,
    reorient: bool = False,
    nan_as_zero: bool = False,
) -> Image:
    """Read an image from one file per channel. A picture's file may hold several channels.

    Args:
        paths: The files, in the order of the channels.
        reader: A key of ``READERS``. None takes ``reader_of`` the first file.
        reorient: For ``reader_of``.
        nan_as_zero: Take 0 for NaN and infinities, which are refused otherwise.

    Raises:
        InputError: A file can't be read, or the files differ in shape or spacing.
    """
    files = [Path(path) for path in paths]
    name = reader or reader_of(files[0], reorient=reorient)
    chosen = READERS[name]
    require(name)
    arrays: list[AnyArray] = []
    geometries: list[Any] = []
    spacing: tuple[float, ...] = ()
    for path in files:
        headers.require_whole(path, detached=True)
        try:
            content = chosen.read(path)
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"{path} can't be read as an image: {_last_line(error)}") from error
        array = content.array
        if not content.finite:
            if not nan_as_zero:
                raise InputError(
                    f"{path} holds values that aren't finite numbers: segonnx predict --nan-as-zero takes 0 for them"
                )
            array = np.nan_to_num(array, nan=0.0, posinf=0.0, neginf=0.0)
        if arrays and (array.shape[1:] != arrays[0].shape[1:] or not np.allclose(spacing, content.spacing)):
            raise InputError(
                f"{path} and {files[0]} differ in shape or spacing: {array.shape[1:]} at {content.spacing} mm, "
                f"and {arrays[0].shape[1:]} at {spacing} mm"
            )
        arrays.append(array)
        geometries.append(content.geometry)
        spacing = spacing or content.spacing
    joined = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    return Image(joined, spacing, chosen.together(geometries), name)


def count(path: Path, reader: str) -> int:
    """The number of values that a file says it holds. They aren't read: there may be more than memory holds.

    Args:
        path: An image's file.
        reader: A key of ``READERS``.

    Raises:
        InputError: The file's header can't be read.
    """
    try:
        return READERS[reader].count(path)
    except Exception as error:
        raise InputError(f"{path} can't be read as an image: {_last_line(error)}") from error


def write(labels: AnyArray, like: Image, path: str | os.PathLike[str]) -> None:
    """Write a label map with the geometry of an image. A failure leaves no file.

    Args:
        labels: The label map, (z, y, x).
        like: The image.
        path: The file to write. Formats of several files get theirs beside it.

    Raises:
        ResourceError: The file can't be written, or reads otherwise than it was written.
    """
    path, reader = Path(path), READERS[like.reader]
    labels = labels.astype(np.uint8 if labels.max() <= reader.widest_byte else np.uint16, copy=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with staging(path) as scratch:
            folder = scratch / "label map"
            folder.mkdir()
            made = folder / path.name
            try:
                reader.write(labels, like.geometry, made)
                found = reader.read(made)
            except Exception as error:
                raise ResourceError(f"can't write {path}: {_last_line(error)}") from error
            _require_kept(found.array, labels, path)
            if not path.name.lower().endswith(_PICTURES):
                _require_place(reader.place(found.geometry), reader.place(like.geometry), path)
            # The file that names the others comes last.
            for file in sorted(folder.iterdir(), key=lambda file: file == made):
                publish(file, path.with_name(file.name), check=require_replaceable)
    except OSError as error:
        raise ResourceError(f"can't write {path}: {error.strerror}") from error


def _require_kept(found: AnyArray, labels: AnyArray, path: Path) -> None:
    """Hold a label map that was written and read again against what was to be written.

    Args:
        found: The label map as it reads, (1, z, y, x).
        labels: The label map, (z, y, x).
        path: The file, which messages name.

    Raises:
        ResourceError: They differ.
    """
    if found.shape != (1, *labels.shape):
        raise ResourceError(f"can't write {path}: such a file keeps {found.shape[1:]} of a label map {labels.shape}")
    if not np.array_equal(found[0], labels):
        raise ResourceError(f"can't write {path}: such a file doesn't keep the labels")


def _require_place(found: Sequence[float], wanted: Sequence[float], path: Path) -> None:
    """See to it that a label map that was written is where its image is.

    Raises:
        ResourceError: It isn't.
    """
    if len(found) != len(wanted) or not np.allclose(found, wanted, rtol=1e-4, atol=1e-3, equal_nan=True):
        raise ResourceError(f"can't write {path}: such a file doesn't keep the image's spacing, origin and direction")


def outputs(path: Path, reader: str, ending: str, *, highest: int) -> list[Path]:
    """The files that a label map in a file is made of, after a small one was written and read again.

    Args:
        path: The file to write.
        reader: A key of ``READERS``.
        ending: The ending of the network's images.
        highest: The largest label.

    Returns:
        The file, and those that its format has beside it.

    Raises:
        InputError: The reader doesn't write label maps to files of this ending, or such a file doesn't keep them.
    """
    beside = _beside(ending_of(path.name, ending), reader, highest)
    if beside is None:
        raise InputError(
            f"{path}: label maps aren't written to such files by nnU-Net's {reader}, or not so that they can be read "
            f"again; the network's images are {ending}"
        )
    return [path, *(path.with_name(f"{stem(path.name, ending)}{other}") for other in beside)]


@functools.lru_cache
def _beside(ending: str, reader: str, highest: int) -> tuple[str, ...] | None:
    """What the names of the files end with that are beside a label map of this ending. None: it can't be written."""
    require(reader)
    with tempfile.TemporaryDirectory(prefix="segonnx-") as folder:
        probe = Path(folder) / f"{_PROBE}{ending}"
        if not any(_keeps_labels(probe, READERS[reader], highest, flat=flat) for flat in (False, True)):
            return None
        return tuple(sorted(file.name.removeprefix(_PROBE) for file in Path(folder).iterdir() if file != probe))


def _keeps_labels(path: Path, reader: Reader, highest: int, *, flat: bool) -> bool:
    """A small label map is the same after it was written and read again."""
    labels = np.arange(5 * 6 * 7).reshape(5, 6, 7)[: 1 if flat else None] * 37 % (highest + 1)
    labels = labels.astype(np.uint8 if highest <= reader.widest_byte else np.uint16)
    try:
        reader.write(labels, reader.blank(flat=flat), path)
        return bool(np.array_equal(reader.read(path).array, labels[None]))
    except Exception:  # noqa: BLE001 (libraries say in many ways that they don't)
        return False


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:_REASON] if lines else type(error).__name__
