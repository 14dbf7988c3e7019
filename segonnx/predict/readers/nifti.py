"""NibabelIO and NibabelIOWithReorient: by nibabel."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from segonnx.errors import InputError
from segonnx.predict.readers import packed
from segonnx.predict.readers.base import FileContent, Reader, narrowed, quiet, require_numbers
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


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A file as nibabel has it, all of which is there. What nibabel thinks of it isn't printed."""
    if packed.is_packed(path):
        for _ in packed.chunks(path):  # nibabel doesn't read as far as the checksum
            pass
    with quiet("nibabel.global"):
        yield importlib.import_module("nibabel").load(path, mmap=False)


def _widened(values: AnyArray) -> AnyArray:
    """Wide numbers in 64 bits of floating point, as nibabel's users take all."""
    wide = values.dtype.kind in "iuf" and values.dtype.itemsize > 4
    return values.astype(np.float64, copy=False) if wide else values


class NibabelIO(Reader):
    """Reads what nibabel reads, with the axes as they are."""

    name = "NibabelIO"
    libraries: ClassVar = {"nibabel": "nibabel"}

    def read(self, path: Path) -> FileContent:
        with _opened(path) as image:
            if len(image.shape) != 3:
                raise InputError(f"{path} has {len(image.shape)} dimensions; nnU-Net's {self.name} takes three")
            turned = self._turned(image)
            values = narrowed(_widened(np.asanyarray(turned.dataobj)), path)
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

    def matrix(self, geometry: Geometry) -> AnyArray:
        to_dicom: AnyArray = np.diag([-1.0, -1.0, 1.0, 1.0])  # NIfTI's axes run to the right and to the front
        return to_dicom @ geometry.turned

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


@dataclass(frozen=True)
class LabelledGeometry(Geometry):
    """The geometry of an image whose label map has the names of its labels in the header.

    Attributes:
        header: The image's header, as nibabel has it.
        names: The names by the labels. Empty leaves them out.
    """

    header: Any = None
    names: tuple[tuple[int, str], ...] = ()


class TotalSegmentatorIO(NibabelIOWithReorient):
    """Reads images as TotalSegmentator does, with all digits, and writes label maps with its table of names.

    Of an image of four dimensions it takes the first volume. A label map has the image's own header.
    """

    name = "TotalSegmentatorIO"
    widest_byte = 255

    def read(self, path: Path) -> FileContent:
        nibabel = importlib.import_module("nibabel")
        with _opened(path) as image:
            if not 3 <= len(image.shape) <= 4:
                raise InputError(f"{path} has {len(image.shape)} dimensions; TotalSegmentator takes three")
            values = np.asanyarray(image.dataobj)
        require_numbers(values, path)
        values = _widened(values if values.ndim == 3 else values[..., 0])
        turned = self._turned(nibabel.Nifti1Image(values, image.affine))
        values = np.asanyarray(turned.dataobj)
        spacing = tuple(float(size) for size in reversed(turned.header.get_zooms()))
        geometry = LabelledGeometry(image.affine, turned.affine, nibabel.Nifti1Header.from_header(image.header))
        return FileContent(values.transpose(2, 1, 0)[None], spacing, geometry, bool(np.isfinite(values).all()))

    def write(self, labels: AnyArray, geometry: Geometry, path: Path) -> None:
        nibabel = importlib.import_module("nibabel")
        image = nibabel.Nifti1Image(labels.astype(np.uint8).transpose(2, 1, 0), affine=geometry.turned)
        values = np.asanyarray(self._turned_back(image, geometry).dataobj)
        assert isinstance(geometry, LabelledGeometry)
        header = nibabel.Nifti1Header() if geometry.header is None else geometry.header.copy()
        header.set_data_dtype(np.uint8)
        made = nibabel.Nifti1Image(values, geometry.own, header)
        if geometry.names:
            made.header.extensions.append(nibabel.nifti1.Nifti1Extension(0, label_table(geometry.names)))
        nibabel.save(made, path)

    def blank(self, *, flat: bool) -> Geometry:
        del flat
        return LabelledGeometry(np.eye(4), np.eye(4))


COLOURS = (
    (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255), (0, 255, 255), (255, 128, 0), (255, 0, 128),
    (128, 255, 128), (0, 128, 255), (128, 128, 128), (185, 170, 155),
)  # fmt: skip
"""The colours that TotalSegmentator's label maps are shown in, by turns."""


def label_table(names: Sequence[tuple[int, str]]) -> bytes:
    """A table of labels as programs read it in the header of a NIfTI file: XML of the Caret format.

    Args:
        names: The names by the labels.
    """
    from xml.etree import ElementTree

    root = ElementTree.Element("CaretExtension")
    volume = ElementTree.SubElement(root, "VolumeInformation", Index="0")
    table = ElementTree.SubElement(volume, "LabelTable")
    for value, name in names:
        colour = COLOURS[value % len(COLOURS)]
        shown = dict(zip(("Red", "Green", "Blue"), (str(one / 255) for one in colour), strict=True))
        ElementTree.SubElement(table, "Label", {"Key": str(value), **shown, "Alpha": "1"}).text = name
    ElementTree.SubElement(volume, "StudyMetaDataLinkSet")
    ElementTree.SubElement(volume, "VolumeType").text = "Label"
    written: bytes = ElementTree.tostring(root, encoding="UTF-8", xml_declaration=True)
    return written
