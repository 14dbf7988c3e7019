"""NaturalImage2DIO: pictures, by the libraries that scikit-image's ``imread`` takes: tifffile, imageio with Pillow."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from segonnx.errors import InputError
from segonnx.predict.readers import tiff
from segonnx.predict.readers.base import FileContent, Reader
from segonnx.predict.resampling import AnyArray

SPACING = (999.0, 1.0, 1.0)
"""nnU-Net's spacing of every picture, whatever its file says."""
_FORMATS = ("PNG", "BMP", "DIB", "JPEG", "JPEG2000", "GIF", "WEBP", "PPM", "TIFF")
"""The formats of Pillow that are taken. Others, such as EPS, run programs."""


class NaturalImage2DIO(Reader):
    """Reads pictures: colours are channels, and the resolution is ignored."""

    name = "NaturalImage2DIO"
    libraries: ClassVar = {"imageio": "imageio", "PIL": "pillow", **tiff.LIBRARIES}

    def read(self, path: Path) -> FileContent:
        array = tiff.pixels(path) if _is_tiff(path) else self._pixels(path)
        if array.ndim > 2 and array.shape[-1] not in (3, 4) and array.shape[-3] in (3, 4):
            array = np.moveaxis(array, -3, -1)  # as scikit-image does
        if array.ndim == 3 and array.shape[-1] in (3, 4):
            array = np.moveaxis(array, -1, 0)[:, None]
        elif array.ndim == 2:
            array = array[None, None]
        else:
            raise InputError(f"{path} is {array.shape}; nnU-Net's {self.name} takes (y, x), and (y, x, 3 or 4 colours)")
        return FileContent(array, SPACING, None, bool(np.isfinite(array).all()))

    def _pixels(self, path: Path) -> AnyArray:
        with _open(path):  # refuses other formats
            pass
        with path.open("rb") as file:
            array: AnyArray = np.asarray(importlib.import_module("imageio.v3").imread(file, plugin="pillow"))
        return array

    def count(self, path: Path) -> int:
        if _is_tiff(path):
            return tiff.count(path)
        with _open(path) as picture:
            moves = picture.format == "GIF" or getattr(picture, "custom_mimetype", None) == "image/apng"
            frames = picture.n_frames if moves else 1  # imageio reads all of these
            return int(picture.width * picture.height * max(len(picture.getbands()), 3) * frames)

    def write(self, labels: AnyArray, geometry: None, path: Path) -> None:
        del geometry
        if _is_tiff(path):
            importlib.import_module("tifffile").imwrite(path, labels[0])
        else:
            importlib.import_module("imageio.v3").imwrite(path, labels[0], plugin="pillow")

    def blank(self, *, flat: bool) -> None:
        if not flat:
            raise ValueError("a picture is flat")


def _is_tiff(path: Path) -> bool:
    return path.name.lower().endswith(tiff.ENDINGS)


def _open(path: Path) -> Any:
    return importlib.import_module("PIL.Image").open(path, formats=_FORMATS)
