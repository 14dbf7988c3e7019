"""A reader for each of nnU-Net's, and TotalSegmentator's, by its name."""

from __future__ import annotations

from segonnx.predict.readers.base import Reader
from segonnx.predict.readers.itk import SimpleITKIO, SimpleITKIOWithReorient
from segonnx.predict.readers.nifti import NibabelIO, NibabelIOWithReorient, TotalSegmentatorIO
from segonnx.predict.readers.pictures import NaturalImage2DIO
from segonnx.predict.readers.tiff import Tiff3DIO

READERS: dict[str, Reader] = {
    reader.name: reader
    for reader in (
        NaturalImage2DIO(),
        SimpleITKIO(),
        Tiff3DIO(),
        NibabelIO(),
        NibabelIOWithReorient(),
        SimpleITKIOWithReorient(),
        TotalSegmentatorIO(),
    )
}
