"""Tiff3DIO: stacks of slices in TIFF files, by tifffile; and TIFF files for the readers of pictures."""

from __future__ import annotations

import importlib
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segonnx.core import documents
from segonnx.errors import InputError
from segonnx.predict.readers.base import FileContent, Reader, narrowed, quiet
from segonnx.predict.resampling import AnyArray

ENDINGS = (".tif", ".tiff")
LIBRARIES = {"tifffile": "tifffile", "imagecodecs": "imagecodecs"}  # of which most ways to pack a TIFF file are
_SPACING = {
    "type": "object",
    "required": ["spacing"],
    "properties": {
        "spacing": {
            "type": "array",
            "items": {"type": "number", "exclusiveMinimum": 0, "maximum": 1e6},
            "minItems": 3,
            "maxItems": 3,
        }
    },
}
_MAX_BYTES = 2**20


class Tiff3DIO(Reader):
    """Reads stacks of slices. Their spacing stands in ``CASE.json`` beside ``CASE_0000.tif``; it is 1 mm otherwise."""

    name = "Tiff3DIO"
    libraries = LIBRARIES

    def read(self, path: Path) -> FileContent:
        if path.suffix.lower() not in ENDINGS:
            raise InputError(f"{path}: nnU-Net's {self.name} takes {' and '.join(ENDINGS)} files")
        array = pixels(path)
        if array.ndim != 3:
            raise InputError(f"{path} has {array.ndim} dimensions; nnU-Net's {self.name} takes three")
        spacing: Sequence[float] = (1, 1, 1)
        beside = path.with_name(f"{re.sub(r'_[0-9]{4}$', '', path.stem)}.json")
        if beside.is_file():
            content = documents.read(beside, _MAX_BYTES)
            documents.require(content, _SPACING, beside)
            spacing = content["spacing"]
        return FileContent(array[None], tuple(map(float, spacing)), spacing, bool(np.isfinite(array).all()))

    def count(self, path: Path) -> int:
        return count(path)

    def write(self, labels: AnyArray, geometry: Sequence[float], path: Path) -> None:
        tifffile = importlib.import_module("tifffile")
        if path.suffix.lower() not in ENDINGS:
            raise ValueError(f"nnU-Net's {self.name} writes {' and '.join(ENDINGS)} files")
        tifffile.imwrite(path, labels, compression="zlib")
        path.with_suffix(".json").write_text(json.dumps({"spacing": list(geometry)}, indent=4))

    def matrix(self, geometry: Sequence[float]) -> AnyArray:
        matrix: AnyArray = np.diag([*reversed(geometry), 1.0]).astype(float)
        return matrix

    def blank(self, *, flat: bool) -> Sequence[float]:
        del flat
        return (1, 1, 1)


def pixels(path: Path) -> AnyArray:
    """The first series of images in a TIFF file, as ``tifffile.imread`` gives it; wide numbers as float32.

    Raises:
        InputError: The file ends early, or takes planes from other files.
    """
    with quiet("tifffile"), _open(path) as file:
        _require_intact(file, path)
        return narrowed(file.asarray(), path)


def require_intact(path: Path) -> None:
    """Refuse a TIFF file that ends early.

    Raises:
        InputError: It does.
        Exception: It can't be read.
    """
    with quiet("tifffile"), _open(path) as file:
        _require_intact(file, path)


def _require_intact(file: Any, path: Path) -> None:
    series = file.series[0]
    ends = [
        offset + count
        for page in series.pages
        if page is not None
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False)
    ]
    if series.dataoffset is not None:
        ends.append(series.dataoffset + series.nbytes)
    lacks = any(page is None for page in series.pages) or max(ends, default=0) > path.stat().st_size
    if lacks or _next_page(file) not in (0, *(page.offset for page in file.pages)):
        raise InputError(f"{path} isn't intact: it ends early, or lacks planes")


def _next_page(file: Any) -> int:
    """Where the last page of a TIFF file says that another one is. 0: it is the last."""
    len(file.pages)  # looks for all of them
    file.filehandle.seek(file.pages.next_page_offset)
    return int.from_bytes(file.filehandle.read(file.tiff.offsetsize), "little" if file.tiff.byteorder == "<" else "big")


def count(path: Path) -> int:
    """The number of values that a TIFF file says it holds."""
    with quiet("tifffile"), _open(path) as file:
        return math.prod(file.series[0].shape)


def _open(path: Path) -> Any:
    """The file, which won't read another one: a stranger may have said which."""
    tifffile = importlib.import_module("tifffile")
    file = tifffile.TiffFile(path, _multifile=False)
    if not file.is_ome:
        return file
    named = {
        element.attrib.get("FileName", "")
        for element in importlib.import_module("xml.etree.ElementTree").fromstring(file.ome_metadata).iter()
        if element.tag.endswith("UUID")
    }
    if not named or file.series[0].kind == "ome":  # whose planes are all its own
        return file
    file.close()
    if named != {path.name}:
        raise InputError(f"{path} takes planes from other files, which isn't supported")
    return tifffile.TiffFile(path)
