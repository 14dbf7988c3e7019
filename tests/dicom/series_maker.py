"""Series that tests write, by pydicom: of slices in a file each, and of many in one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    generate_uid,
)

CT, MR, PET = (f"1.2.840.10008.5.1.4.1.1.{number}" for number in (2, 4, 128))
ENHANCED_CT, ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.4.1"
REAL = Path(__file__).resolve().parents[2].parent / "shared" / "images" / "ct_dicom"
"""A real CT of 20 slices, in JPEG 2000."""
PATIENT = "Doe^Jane"


@dataclass
class Maker:
    """A series whose slices lie one above another.

    Attributes:
        stored: The numbers as they are stored, (slices, rows, columns).
        spacing: The distances of rows and of columns, in mm.
        distance: The distance of slices, in mm.
        origin: The place of the first pixel of slice 0.
        orientation: The direction in which a row runs, then a column.
        shift: What is added to the place of each slice, (slices, 3).
        elements: More elements of every header, by their keywords.
        uid: Of the series.
        study: The UID of its study.
        frame: The UID of its frame of reference.
    """

    stored: np.ndarray
    spacing: Sequence[float] | np.ndarray = (0.7, 0.9)
    distance: float = 2.5
    origin: Sequence[float] | np.ndarray = (-20.0, 31.0, 7.0)
    orientation: Sequence[float] | np.ndarray = (1, 0, 0, 0, 1, 0)
    shift: np.ndarray | None = None
    elements: dict[str, Any] = field(default_factory=dict)
    uid: str = field(default_factory=generate_uid)
    study: str = field(default_factory=generate_uid)
    frame: str = field(default_factory=generate_uid)

    @property
    def positions(self) -> np.ndarray:
        """The place of each slice's first pixel."""
        row, column = np.array(self.orientation[:3], float), np.array(self.orientation[3:], float)
        steps = np.arange(len(self.stored))[:, None] * self.distance
        places: np.ndarray = np.array(self.origin) + steps * np.cross(row, column)
        return places if self.shift is None else places + self.shift

    def headers(self, kind: str = CT) -> list[Dataset]:
        """A data set of each slice."""
        return [self._slice(number, kind) for number in range(len(self.stored))]

    def _common(self, kind: str, number: int) -> Dataset:
        header = Dataset()
        header.file_meta = FileMetaDataset()
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = UID(kind)
        header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        header.SpecificCharacterSet = "ISO_IR 100"
        header.PatientName, header.PatientID, header.PatientBirthDate, header.PatientSex = (
            PATIENT,
            "4711",
            "19500102",
            "F",
        )
        header.StudyInstanceUID, header.SeriesInstanceUID, header.FrameOfReferenceUID = self.study, self.uid, self.frame
        header.StudyDate, header.StudyTime, header.StudyID = "20260102", "101112", "S1"
        header.AccessionNumber, header.ReferringPhysicianName = "A1", "Roe^Richard"
        header.PositionReferenceIndicator = ""
        header.Modality = {CT: "CT", MR: "MR", PET: "PT", ENHANCED_CT: "CT", ENHANCED_MR: "MR"}[kind]
        header.SeriesNumber, header.InstanceNumber, header.AcquisitionNumber = 7, number + 1, 1
        header.SeriesDescription, header.Manufacturer = "Abdomen 2.5", "Nobody"
        header.Laterality = None
        header.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        header.PatientPosition, header.KVP, header.SliceThickness = "HFS", "120", "2"
        header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
        header.Rows, header.Columns = self.stored.shape[1:]
        header.BitsAllocated = header.BitsStored = self.stored.dtype.itemsize * 8
        header.HighBit, header.PixelRepresentation = header.BitsStored - 1, int(self.stored.dtype.kind == "i")
        return header

    def _slice(self, number: int, kind: str) -> Dataset:
        header = self._common(kind, number)
        header.ImagePositionPatient = self.positions[number].round(9).tolist()
        header.ImageOrientationPatient = np.round(self.orientation, 12).tolist()
        header.PixelSpacing = list(self.spacing)
        header.RescaleSlope, header.RescaleIntercept, header.RescaleType = 1, -1024, "HU"
        header.PixelData = self.stored[number].astype(f"<{self.stored.dtype.str[1:]}").tobytes()
        for keyword, value in self.elements.items():
            setattr(header, keyword, copy.deepcopy(value))
        return header

    def write(self, folder: Path, kind: str = CT, order: Sequence[int] | None = None) -> list[Path]:
        """Write a file for each slice; names and numbers are in the order that is given.

        Args:
            folder: Where they go.
            kind: The storage class.
            order: The slices in the order of their files.
        """
        headers = self.headers(kind)
        numbers = range(len(headers)) if order is None else order
        return [
            save(headers[one], folder / f"IM{place:04}.dcm", InstanceNumber=place + 1)
            for place, one in enumerate(numbers)
        ]

    def enhanced(self, kind: str = ENHANCED_CT, order: Sequence[int] | None = None) -> Dataset:
        """A file of all slices, in the order that is given."""
        header = self._common(kind, 0)
        numbers = list(range(len(self.stored)) if order is None else order)
        header.NumberOfFrames = len(numbers)
        shared = Dataset()
        shared.PixelMeasuresSequence = [_item(PixelSpacing=list(self.spacing), SliceThickness=2)]
        shared.PlaneOrientationSequence = [_item(ImageOrientationPatient=np.round(self.orientation, 12).tolist())]
        shared.PixelValueTransformationSequence = [_item(RescaleSlope=1, RescaleIntercept=-1024, RescaleType="HU")]
        header.SharedFunctionalGroupsSequence = [shared]
        header.PerFrameFunctionalGroupsSequence = [
            _item(PlanePositionSequence=[_item(ImagePositionPatient=self.positions[one].round(9).tolist())])
            for one in numbers
        ]
        header.PixelData = self.stored[numbers].astype(f"<{self.stored.dtype.str[1:]}").tobytes()
        for keyword, value in self.elements.items():
            setattr(header, keyword, copy.deepcopy(value))
        return header


def _item(**elements: Any) -> Dataset:
    item = Dataset()
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return item


def save(header: Dataset, path: Path, syntax: str | None = None, **elements: Any) -> Path:
    """Write a data set, in another transfer syntax if that is asked for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for keyword, value in elements.items():
        setattr(header, keyword, value)
    if "PixelData" in header:
        header["PixelData"].VR = "OW" if header.BitsAllocated > 8 else "OB"
    if syntax is not None:
        _encode(header, syntax)
    chosen = header.file_meta.TransferSyntaxUID
    header.save_as(
        path,
        implicit_vr=chosen == ImplicitVRLittleEndian,
        little_endian=chosen != ExplicitVRBigEndian,
        enforce_file_format=True,
    )
    return path


def _encode(header: Dataset, syntax: str) -> None:
    import imagecodecs
    from pydicom.encaps import encapsulate

    kind = np.dtype(f"<{'i' if header.PixelRepresentation else 'u'}{header.BitsAllocated // 8}")
    stored = np.frombuffer(header.PixelData, kind)
    if syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian):
        header.file_meta.TransferSyntaxUID = UID(syntax)
    elif syntax == ExplicitVRBigEndian:
        header.PixelData = stored.astype(kind.newbyteorder(">")).tobytes()
        header.file_meta.TransferSyntaxUID = UID(syntax)
    elif syntax.startswith(("1.2.840.10008.1.2.4.5", "1.2.840.10008.1.2.4.7")):  # which pydicom doesn't write
        frames = stored.view(kind.str.replace("i", "u")).reshape(-1, header.Rows, header.Columns)
        bits = {"lossless": True, "bitspersample": header.BitsStored}
        if syntax.endswith("51"):
            bits = {"level": 100, "bitspersample": 12}
        header.PixelData = encapsulate([bytes(imagecodecs.jpeg_encode(frame, **bits)) for frame in frames])
        header["PixelData"].VR, header["PixelData"].is_undefined_length = "OB", True
        header.file_meta.TransferSyntaxUID = UID(syntax)
    else:
        header.compress(syntax, generate_instance_uid=False)


def numbers(shape: tuple[int, int, int] = (5, 12, 10), seed: int = 0, kind: str = "u2") -> np.ndarray:
    """Made-up numbers as they are stored, of 12 bits."""
    drawn: np.ndarray = np.random.default_rng(seed).integers(0, 4096, shape).astype(kind)
    return drawn
