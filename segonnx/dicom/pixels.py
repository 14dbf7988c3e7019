"""Decodes the pixels of slices, and makes of them the numbers that they stand for."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from segonnx.core import subprocesses
from segonnx.core.subprocesses import Progress
from segonnx.dicom import libraries, slices
from segonnx.dicom.series import Series
from segonnx.dicom.slices import Slice
from segonnx.errors import InputError

Array = npt.NDArray[Any]

NATIVE = (
    "1.2.840.10008.1.2",  # implicit little endian
    "1.2.840.10008.1.2.1",  # explicit little endian
    "1.2.840.10008.1.2.1.99",  # deflated
    "1.2.840.10008.1.2.2",  # big endian
)
"""The transfer syntaxes whose pixels stand as they are."""
DECODERS = {
    "1.2.840.10008.1.2.5": "pydicom",  # RLE
    "1.2.840.10008.1.2.4.80": "pyjpegls",
    "1.2.840.10008.1.2.4.81": "pyjpegls",
    "1.2.840.10008.1.2.4.90": "pylibjpeg",  # JPEG 2000
    "1.2.840.10008.1.2.4.91": "pylibjpeg",
    "1.2.840.10008.1.2.4.201": "pylibjpeg",  # high-throughput JPEG 2000
    "1.2.840.10008.1.2.4.202": "pylibjpeg",
    "1.2.840.10008.1.2.4.203": "pylibjpeg",
}
"""pydicom's plugin for each transfer syntax that it decodes. Others that it knows end the process on damaged pixels."""
JPEG = (
    "1.2.840.10008.1.2.4.50",  # baseline
    "1.2.840.10008.1.2.4.51",  # extended
    "1.2.840.10008.1.2.4.57",  # lossless
    "1.2.840.10008.1.2.4.70",  # lossless, of the first predictor
)
"""The transfer syntaxes that imagecodecs decodes."""
_END_OF_IMAGE = b"\xff\xd9"


def volume(series: Series, progress: Progress = subprocesses.silent) -> Array:
    """The numbers of a series, (slices, rows, columns): whole ones in 16 or 32 bits, or float64.

    Values that pad an image stay as they are, as with SimpleITK and dcm2niix.

    Raises:
        InputError: A slice can't be decoded, or holds something else than numbers. The message names it.
        MemoryError: The memory ran out.
    """
    made: Array | None = None
    path, content = None, None
    for number, one in enumerate(series.slices):
        progress(f"decoding slice {number + 1} of {len(series.slices)}")
        if content is None or one.header.found.path != path:
            path, content = one.header.found.path, _content(one)
        values = _values(_stored(one, content), one)
        if made is None:
            made = np.empty(series.grid.shape, values.dtype)
        made = made.astype(np.promote_types(made.dtype, values.dtype), copy=False)
        made[number] = values
    assert made is not None  # a series has a slice
    return made


def _values(stored: Array, one: Slice) -> Array:
    """What stored numbers stand for."""
    whole = one.slope.is_integer() and one.intercept.is_integer() and max(abs(one.slope), abs(one.intercept)) < 2**20
    if not whole:
        made: Array = stored * one.slope + one.intercept
        return made
    values = stored * int(one.slope) + int(one.intercept)
    low, high = int(values.min()), int(values.max())
    kinds = (np.int16, np.uint16, np.int32)
    kind = next((kind for kind in kinds if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max), np.float64)
    return values.astype(kind)


def _content(one: Slice) -> Any:
    """A slice's file with its pixels.

    Raises:
        InputError: It has none.
    """
    import pydicom

    try:
        with libraries.quiet():
            content = pydicom.dcmread(one.header.found.path)
            whole = "PixelData" in content
    except MemoryError:
        raise
    except Exception as error:
        raise InputError(f"{one} can't be read: its file ends early, or is damaged") from error
    if not whole:
        raise InputError(f"{one} has no pixels, or its file ends before they do")
    return content


def _stored(one: Slice, content: Any) -> Array:
    """The numbers of a slice as they are stored, int64 (rows, columns).

    Raises:
        InputError: They can't be decoded.
    """
    header = one.header.content
    with slices.reading(one):
        kind, samples = str(header.get("PhotometricInterpretation")), int(header.get("SamplesPerPixel") or 1)
        allocated, stored = int(header.get("BitsAllocated") or 0), int(header.get("BitsStored") or 0)
        highest, signed = int(header.get("HighBit", stored - 1)), header.get("PixelRepresentation") == 1
    if samples != 1 or kind != "MONOCHROME2":
        raise InputError(f"{one} holds pixels of the kind {kind}, which isn't read: MONOCHROME2 is")
    if allocated not in (8, 16, 32) or not 0 < stored <= allocated:
        raise InputError(f"{one} has {stored} bits stored in {allocated}, which isn't read")
    if highest != stored - 1:
        raise InputError(f"{one} has its bits up to number {highest} of {stored}, which isn't read")
    raw = _decoded(one, content)
    if raw.shape != one.size or raw.dtype.kind not in "iu":
        raise InputError(f"{one} has pixels {raw.shape}, its header says {one.size}")
    bits = raw.astype(np.int64) & ((1 << stored) - 1)  # above them there may be anything, such as an overlay
    if signed:
        bits = np.where(bits >> (stored - 1), bits - (1 << stored), bits)
    return bits


def _decoded(one: Slice, content: Any) -> Array:
    """The pixels of a slice, as its decoder gives them.

    Raises:
        InputError: They can't be decoded, or in no way that is known.
    """
    syntax = one.header.content.file_meta.TransferSyntaxUID
    if syntax not in (*NATIVE, *DECODERS, *JPEG):
        raise InputError(f"{one} is compressed as {syntax.name}, which isn't read")
    try:
        with libraries.quiet():
            if syntax in JPEG:
                return _jpeg(content, one)
            from pydicom.pixels.utils import pixel_array

            return pixel_array(content, index=one.frame, raw=True, decoding_plugin=DECODERS.get(syntax, ""))
    except (InputError, MemoryError):
        raise
    except Exception as error:
        raise InputError(
            f"{one} has pixels that can't be decoded ({syntax.name}): they end early, or are damaged"
        ) from error


def _jpeg(content: Any, one: Slice) -> Array:
    """The pixels of a slice in JPEG's older forms."""
    import imagecodecs
    from pydicom.encaps import get_frame

    data = get_frame(content.PixelData, one.frame or 0, number_of_frames=int(content.get("NumberOfFrames") or 1))
    if not data.rstrip(b"\0").endswith(_END_OF_IMAGE):  # what is missing would be made up
        raise InputError(f"{one} has pixels that end early")
    decoded: Array = imagecodecs.jpeg_decode(data)
    return decoded
