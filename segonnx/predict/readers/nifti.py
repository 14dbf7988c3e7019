"""NibabelIO and NibabelIOWithReorient: by nibabel."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from segonnx.errors import InputError
from segonnx.predict.readers import packed
from segonnx.predict.readers.base import FileContent, Reader, narrowed, quiet
from segonnx.predict.resampling import AnyArray


@dataclass(frozen=True)
class Geometry:
    """Where the voxels of an image are: matrices (4, 4) from voxels (x, y, z) to mm.

    Attributes:
        own: Of the file's voxels.
        turned: Of the voxels as the network sees them.
    """

    own: AnyArray
    turned: AnyArray


class NibabelIO(Reader):
    """Reads what nibabel reads, with the axes as they are."""

    name = "NibabelIO"
    libraries: ClassVar = {"nibabel": "nibabel"}

    def read(self, path: Path) -> FileContent:
        nibabel = importlib.import_module("nibabel")
        if packed.is_packed(path):
            for _ in packed.chunks(path):  # nibabel doesn't read as far as the checksum
                pass
        with quiet("nibabel.global"):
            image = nibabel.load(path, mmap=False)
            if len(image.shape) != 3:
                raise InputError(f"{path} has {len(image.shape)} dimensions; nnU-Net's {self.name} takes three")
            turned = self._turned(image)
            values = np.asanyarray(turned.dataobj)
        if values.dtype.kind in "iuf" and values.dtype.itemsize > 4:
            values = values.astype(np.float64, copy=False)  # as nnU-Net takes all
        values = narrowed(values, path)
        spacing = tuple(float(size) for size in reversed(turned.header.get_zooms()))
        geometry = Geometry(image.affine, turned.affine)
        return FileContent(values.transpose(2, 1, 0)[None], spacing, geometry, bool(np.isfinite(values).all()))

    def _turned(self, image: Any) -> Any:
        """The image as the network sees it."""
        return image

    def count(self, path: Path) -> int:
        with quiet("nibabel.global"):
            return math.prod(importlib.import_module("nibabel").load(path).shape)

    def write(self, labels: AnyArray, geometry: Geometry, path: Path) -> None:
        nibabel = importlib.import_module("nibabel")
        image = nibabel.Nifti1Image(labels.transpose(2, 1, 0), affine=geometry.turned)
        nibabel.save(self._turned_back(image, geometry), path)

    def place(self, geometry: Geometry) -> Sequence[float]:
        numbers: list[float] = geometry.turned.ravel().tolist()
        return numbers

    def _turned_back(self, image: Any, geometry: Geometry) -> Any:
        """The image as its file has it."""
        del geometry
        return image

    def blank(self, *, flat: bool) -> Geometry:
        del flat
        return Geometry(np.eye(4), np.eye(4))


class NibabelIOWithReorient(NibabelIO):
    """Turns the axes so that they run to the right, to the front and up."""

    name = "NibabelIOWithReorient"

    def _turned(self, image: Any) -> Any:
        orientations = importlib.import_module("nibabel.orientations")
        return image.as_reoriented(orientations.io_orientation(image.affine))

    def _turned_back(self, image: Any, geometry: Geometry) -> Any:
        orientations = importlib.import_module("nibabel.orientations")
        own = orientations.io_orientation(geometry.own)
        return image.as_reoriented(orientations.ornt_transform(orientations.axcodes2ornt("RAS"), own))
