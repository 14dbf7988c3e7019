"""Looks at the header of an image's file before a library reads it, which goes by content and believes much."""

from __future__ import annotations

import math
import struct
from pathlib import Path, PurePosixPath, PureWindowsPath

from segonnx.core import files
from segonnx.errors import InputError
from segonnx.predict.readers import packed

_HEAD = 2**16
"""The most bytes of a header that are looked at."""
_NIFTI_SIZES = {348: 1, 540: 2}
"""The version of NIfTI by the first number of the file, which is the size of its header."""
_LINES = 10_000
"""The most lines of a text header."""


def require_whole(path: Path, *, detached: bool = False) -> None:
    """See to it that a file is what its name says, and that no other file's bytes become voxels.

    A NIfTI file has the spacing and the orientation that it is read with, in finite numbers.

    Args:
        path: an image's file.
        detached: the header may name a file in its own folder, as .mhd files do.

    Raises:
        InputError: it can't be read, names another file, or has no spacing.
    """
    name = path.name.lower()
    try:
        head = _head(path)
    except OSError as error:
        raise InputError(f"{path} can't be read as an image: {error.strerror or error}") from error
    if name.endswith((".nii", ".nii.gz")):
        _require_nifti(path, head)
    elif name.endswith((".mha", ".mhd")):
        _require_local(path, _metaimage_files(path, head), detached=detached and name.endswith(".mhd"))
    elif name.endswith((".nrrd", ".nhdr")):
        _require_local(path, _nrrd_files(path, head), detached=detached and name.endswith(".nhdr"))


def _head(path: Path) -> bytes:
    """The first bytes of a file, unpacked if it is a gzip file."""
    with files.opened(path) as file:
        data = file.read(_HEAD)
        if not data.startswith(b"\x1f\x8b"):
            return data
    head = b""
    for chunk in packed.chunks(path):
        head += chunk
        if len(head) >= _HEAD:
            break
    return head[:_HEAD]


def _require_nifti(path: Path, head: bytes) -> None:
    order = next((sign for sign in "<>" if struct.unpack(f"{sign}i", head[:4].ljust(4))[0] in _NIFTI_SIZES), None)
    if order is None or len(head) < 348:
        raise InputError(f"{path} can't be read as an image: it isn't a NIfTI file")
    version = _NIFTI_SIZES[struct.unpack(f"{order}i", head[:4])[0]]
    if version == 2 and len(head) < 540:
        raise InputError(f"{path} can't be read as an image: it ends early")
    magic = head[344:348] if version == 1 else head[4:8]
    if magic[:3] not in (b"n+1", b"n+2"):
        raise InputError(f"{path} can't be read as an image: its voxels are in another file, or it isn't NIfTI")
    if version == 1:
        (axes,) = struct.unpack_from(f"{order}h", head, 40)
        spacing = struct.unpack_from(f"{order}8f", head, 76)
        codes = struct.unpack_from(f"{order}2h", head, 252)
        quaternion, rows = struct.unpack_from(f"{order}6f", head, 256), struct.unpack_from(f"{order}12f", head, 280)
    else:
        (axes,) = struct.unpack_from(f"{order}q", head, 16)
        spacing = struct.unpack_from(f"{order}8d", head, 104)
        codes = struct.unpack_from(f"{order}2i", head, 344)
        quaternion, rows = struct.unpack_from(f"{order}6d", head, 352), struct.unpack_from(f"{order}12d", head, 400)
    if not 1 <= axes <= 7:
        raise InputError(f"{path} can't be read as an image: it has {axes} dimensions")
    own = spacing[1 : 1 + min(axes, 3)]
    if not all(0 < abs(size) < math.inf for size in own):
        raise InputError(f"{path} has the spacing {own} mm; it must be finite numbers that aren't 0")
    used = (quaternion if codes[0] > 0 else ()) + (rows if codes[1] > 0 else ())
    if not all(map(math.isfinite, used)):
        raise InputError(f"{path} has an orientation or an origin that isn't finite numbers")


def _metaimage_files(path: Path, head: bytes) -> list[str]:
    """The files that the header of a MetaImage file names as those of its voxels; none where they follow it."""
    lines = head.split(b"\n", _LINES)
    for number, line in enumerate(lines):
        key, _, value = line.partition(b"=")
        if key.strip().lower() == b"elementdatafile":
            words = value.decode("latin-1").split()
            if words[:1] and words[0].upper() == "LIST":
                return [other.decode("latin-1").strip() for other in lines[number + 1 :] if other.strip()]
            return [] if words and words[0].upper() == "LOCAL" else [value.decode("latin-1").strip()]
    raise InputError(f"{path} can't be read as an image: it isn't a MetaImage file")


def _nrrd_files(path: Path, head: bytes) -> list[str]:
    """The files that the header of an NRRD file names as those of its voxels; none where they follow it."""
    if not head.startswith(b"NRRD"):
        raise InputError(f"{path} can't be read as an image: it isn't an NRRD file")
    for line in head.split(b"\n", _LINES):
        if not line.strip(b"\r"):
            return []
        key, _, value = line.partition(b":")
        if key.strip().lower() in (b"data file", b"datafile"):
            return [value.decode("latin-1").strip()]
    return []


def _require_local(path: Path, named: list[str], *, detached: bool) -> None:
    for name in named:
        words = name.split() or [""]
        plain = name == PurePosixPath(name).name == PureWindowsPath(name).name and name not in ("", ".", "..")
        if not detached or not plain:
            raise InputError(f"{path} has its voxels in another file, {name!r}, which isn't followed")
        if words[0] == "LIST" or "%" in name:
            raise InputError(f"{path} has its voxels in a list of files, which isn't followed")
        try:
            files.opened(path.with_name(name), follow=False).close()
        except OSError as error:
            raise InputError(f"{path} has its voxels in {name!r}, which can't be read: {error.strerror}") from error
