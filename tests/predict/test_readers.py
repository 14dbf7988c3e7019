"""Every reader against nnU-Net's class of its name, on one table of files: what is read, and the label map written.

What nnU-Net's class can't read or write must be refused. What segonnx refuses though nnU-Net reads it is in the table.
"""

from __future__ import annotations

import contextlib
import gzip
import importlib
import io
import json
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import PIL.Image
import pytest
import SimpleITK
import tifffile

from segonnx.errors import InputError
from segonnx.predict import config, images, tasks
from segonnx.predict.readers import READERS
from segonnx.predict.resampling import AnyArray

NNUNET = {
    "SimpleITKIO": "simpleitk_reader_writer",
    "SimpleITKIOWithReorient": "simpleitk_reader_writer",
    "NibabelIO": "nibabel_reader_writer",
    "NibabelIOWithReorient": "nibabel_reader_writer",
    "NaturalImage2DIO": "natural_image_reader_writer",
    "Tiff3DIO": "tif_reader_writer",
}
"""Where nnU-Net has its class of this name."""
ITK = ("SimpleITKIO", "SimpleITKIOWithReorient")
NIBABEL = ("NibabelIO", "NibabelIOWithReorient")
PICTURE, STACK = ("NaturalImage2DIO",), ("Tiff3DIO",)

RANDOM = np.random.default_rng(0)
VOLUME = RANDOM.normal(0, 300, (5, 6, 7)).astype(np.int16)  # (x, y, z) of nibabel, (z, y, x) of others
COLOURS = RANDOM.integers(0, 256, (24, 32, 3)).astype(np.uint8)
GREY = COLOURS[..., 0].copy()
RGBA = np.concatenate([COLOURS, COLOURS[..., :1]], -1)
APART = np.moveaxis(COLOURS, -1, 0)
PLANES: dict[str, Any] = {"photometric": "rgb", "planarconfig": 2}
PALETTE = RANDOM.integers(0, 2**16, (3, 256)).astype(np.uint16)
WORDS = VOLUME.astype(np.uint16)
OBLIQUE = np.array([[0.9, -0.35, 0.1, -20], [0.4, 1.4, -0.3, 10], [-0.05, 0.5, 2.9, 7], [0, 0, 0, 1]])
OBLIQUE[:3, :3] = np.linalg.qr(OBLIQUE[:3, :3])[0] * [1.0, 1.5, 3.0]


@dataclass(frozen=True)
class Line:
    """A line of the table.

    Attributes:
        name: What is special about the file.
        file: The name of the file, or of the files of an image's channels with a 0 for each ``*``.
        make: Writes the file, whose path it gets.
        readers: That are tried.
        refused: Refused by segonnx, though nnU-Net's class reads it and may write a label map; the message.
        ours_alone: Segonnx writes a label map, which nnU-Net's class fails to do.
    """

    name: str
    file: str
    make: Callable[[Path], object]
    readers: tuple[str, ...]
    refused: str | None = None
    ours_alone: bool = False

    def __str__(self) -> str:
        return f"{self.file}: {self.name}"


def nifti(
    array: AnyArray = VOLUME,
    affine: AnyArray | None = None,
    kind: type = nibabel.Nifti1Image,
    *,
    extension: bool = False,
    **fields: Any,
) -> Callable[[Path], object]:
    """A NIfTI file; ``fields`` are of its header. ``sform``, ``qform`` are matrices, or None for a code of 0."""

    def make(path: Path) -> None:
        how = {"dtype": array.dtype} if array.dtype == np.int64 else {}
        image = kind(array, np.diag([1.0, 1.5, 2.0, 1.0]) if affine is None else affine, **how)
        if extension:
            image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"x" * 100))
        for which in ("sform", "qform"):
            if which in fields:
                getattr(image, f"set_{which}")(fields[which], 0 if fields[which] is None else 1)
        image.to_filename(path)
        patches = {key: value for key, value in fields.items() if key not in ("sform", "qform")}
        if patches:
            packed = path.name.endswith(".gz")
            data = bytearray(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
            header = image.header.structarr.copy()
            raw = np.frombuffer(bytes(data[: header.nbytes]), header.dtype).reshape(()).copy()
            for key, value in patches.items():
                raw[key] = value
            data[: header.nbytes] = raw.tobytes()
            path.write_bytes(gzip.compress(bytes(data)) if packed else bytes(data))

    return make


def big_endian(path: Path) -> None:
    header = nibabel.Nifti1Header(endianness=">")
    nibabel.Nifti1Image(VOLUME.astype(">i2"), np.diag([2.0, 1, 1, 1]), header).to_filename(path)


def renamed(make: Callable[[Path], object], name: str, change: Callable[[bytes], bytes] = lambda data: data) -> Any:
    """The same file, made under another name, with its bytes changed."""

    def made(path: Path) -> None:
        make(path.with_name(name))
        path.write_bytes(change(path.with_name(name).read_bytes()))
        path.with_name(name).unlink()

    return made


def itk(array: AnyArray = VOLUME, orientation: str | None = None, *, vector: bool = False) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        image = SimpleITK.GetImageFromArray(array, isVector=vector)
        image.SetSpacing((0.7, 1.3, 2.1, 1.0)[: image.GetDimension()])
        image.SetOrigin((-5.0, 7.0, 30.0, 0.0)[: image.GetDimension()])
        if image.GetDimension() == 3:
            image.SetDirection((0, 1, 0, 1, 0, 0, 0, 0, -1))
        if orientation is not None:
            image = SimpleITK.DICOMOrient(image, orientation)
        SimpleITK.WriteImage(image, str(path))

    return make


def tiff(array: AnyArray, **how: Any) -> Callable[[Path], object]:
    return lambda path: tifffile.imwrite(path, array, **how)


def picture(array: AnyArray, mode: str | None = None, **how: Any) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        image = PIL.Image.fromarray(array)
        (image if mode is None else image.convert(mode)).save(path, **how)

    return make


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int, colour: int, rows: bytes, extra: bytes = b"") -> Callable[[Path], object]:
    """A PNG file whose bit depth and colour type Pillow doesn't write."""

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    image = png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    parts = png_chunk(b"IHDR", header) + extra + image
    return lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


def rle_bmp(path: Path) -> None:
    """8 bits, packed by run lengths."""
    palette = b"".join(bytes((v, v, v, 0)) for v in range(256))
    rows = b"".join(bytes((8, row)) + bytes((8, 200)) + b"\0\0" for row in range(6)) + b"\0\1"
    head = 14 + 40 + 1024
    path.write_bytes(
        struct.pack("<2sIHHI", b"BM", head + len(rows), 0, 0, head)
        + struct.pack("<IiiHHIIiiII", 40, 16, 6, 1, 8, 1, len(rows), 0, 0, 256, 0)
        + palette
        + rows
    )


def oriented(path: Path) -> None:
    """With EXIF's orientation, as cameras write it."""
    image = PIL.Image.fromarray(COLOURS)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path, exif=exif)


def ome(file: str, *, uuid: bool) -> Callable[[Path], object]:
    """A stack whose OME-XML says which file each plane is in."""

    def make(path: Path) -> None:
        planes = "".join(
            f'<TiffData FirstZ="{z}" IFD="{z}" PlaneCount="1"><UUID FileName="{file}">urn:uuid:1</UUID></TiffData>'
            for z in range(5)
        )
        own = ' UUID="urn:uuid:1"' if uuid else ' UUID="urn:uuid:2"'
        xml = (
            f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"{own}><Image ID="Image:0">'
            '<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="int16" '
            'SizeX="7" SizeY="6" SizeZ="5" SizeC="1" SizeT="1">'
            f'<Channel ID="Channel:0:0" SamplesPerPixel="1"/>{planes}</Pixels></Image></OME>'
        )
        tifffile.imwrite(path, VOLUME, description=xml, photometric="minisblack", metadata=None)

    return make


def nrrd(fields: str, data: bytes) -> Callable[[Path], object]:
    """A NRRD file of int16 with these lines in its header, which SimpleITK doesn't write."""
    return lambda path: path.write_bytes(f"NRRD0004\ntype: short\n{fields}\n\n".encode() + data)


def metaimage(fields: str, array: AnyArray, sizes: str = "7 6 5") -> Callable[[Path], object]:
    """A MetaImage file with these lines in its header, which SimpleITK doesn't write."""
    kind = {"i2": "MET_SHORT", "f8": "MET_DOUBLE"}[array.dtype.str[1:]]
    head = (
        f"ObjectType = Image\nNDims = {len(sizes.split())}\nBinaryData = True\nBinaryDataByteOrderMSB = False\n{fields}"
        f"DimSize = {sizes}\nElementType = {kind}\nElementDataFile = LOCAL\n"
    )
    return lambda path: path.write_bytes(head.encode() + array.tobytes())


def bmp(bits: int, height: int, *, palette: AnyArray | None = None, masks: bytes = b"") -> Callable[[Path], object]:
    """A BMP file, 4 pixels wide, of a depth that Pillow doesn't write; of a negative height it begins at the top."""
    rows = np.random.default_rng(bits).integers(0, 256, abs(height) * max(4, bits // 2)).astype(np.uint8).tobytes()
    colours = b"" if palette is None else np.pad(palette, ((0, 0), (0, 1))).astype(np.uint8).tobytes()
    head = 14 + 40 + len(masks) + len(colours)
    count, packed = len(colours) // 4, 3 if masks else 0
    fields = (40, 4, height, 1, bits, packed, len(rows), 0, 0, count, 0)
    start = struct.pack("<2sIHHI", b"BM", head + len(rows), 0, 0, head) + struct.pack("<IiiHHIIiiII", *fields)
    return lambda path: path.write_bytes(start + masks + colours + rows)


def pyramid(path: Path) -> None:
    with tifffile.TiffWriter(path) as file:
        file.write(COLOURS, subifds=1, photometric="rgb")
        file.write(COLOURS[::2, ::2], subfiletype=1, photometric="rgb")


def with_spacing(make: Callable[[Path], object], spacing: object) -> Callable[[Path], object]:
    def made(path: Path) -> None:
        make(path)
        path.with_name(f"{path.stem[:-5]}.json").write_text(json.dumps({"spacing": spacing}))

    return made


NOT_FINITE = VOLUME.astype(np.float32)
NOT_FINITE[1, 2, 3], NOT_FINITE[0, 0, 0], NOT_FINITE[4, 5, 6] = np.nan, np.inf, -np.inf
FINITE = "aren't finite"
SHEARED = np.array([[1, 0, 0, 0], [0, 1, 0.14, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
FLIPPED = np.diag([-1.0, -1.5, 2.0, 1.0])
NRRD = "dimension: 3\nsizes: 7 6 5\nendian: little\n"
AXES = "space directions: {}\nspace origin: (1,2,3)\n"
PAIRS = "dimension: 4\nsizes: {}\nkinds: {}\nendian: little\n"
TWICE = np.repeat(VOLUME, 2)
GREYS = np.arange(256, dtype=np.uint8)[:, None].repeat(3, 1)
TONES = RANDOM.integers(0, 256, (256, 3)).astype(np.uint8)
RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])

TABLE = [
    # NIfTI: its two libraries differ in most of these.
    *(
        Line(name, f"case_0000{ending}", make, (*ITK, *NIBABEL))
        for ending in (".nii", ".nii.gz")
        for name, make in (
            ("axes to the right, front and top", nifti()),
            ("axes to the left, back and top", nifti(affine=FLIPPED)),
            ("oblique axes", nifti(affine=OBLIQUE)),
            ("axes in another order", nifti(affine=OBLIQUE[:, [1, 2, 0, 3]])),
            ("neither sform nor qform", nifti(sform=None, qform=None)),
            ("qform alone", nifti(affine=OBLIQUE, sform=None, qform=OBLIQUE)),
            ("sform alone", nifti(affine=OBLIQUE, sform=OBLIQUE, qform=None)),
            ("sform and qform that disagree", nifti(sform=OBLIQUE, qform=FLIPPED)),
            ("sheared sform", nifti(affine=SHEARED, sform=SHEARED, qform=None)),
            ("sheared sform, with a qform", nifti(sform=SHEARED, qform=np.eye(4))),
            ("sform and pixdim that disagree", nifti(affine=OBLIQUE, pixdim=[1, 3, 4, 5, 0, 0, 0, 0])),
            ("qfac -1", nifti(affine=FLIPPED[[1, 0, 2, 3]], sform=None, qform=FLIPPED[[1, 0, 2, 3]])),
            ("negative pixdim", nifti(pixdim=[1, -1, 1.5, -2, 0, 0, 0, 0])),
            ("singular sform", nifti(srow_z=[0, 0, 0, 0])),
            ("micrometers", nifti(xyzt_units=3)),
            ("slope and intercept", nifti(scl_slope=0.37, scl_inter=-1024)),
            ("slope 0", nifti(scl_slope=0, scl_inter=5)),
            ("slope NaN", nifti(scl_slope=np.nan, scl_inter=np.nan)),
            ("slope of float32", nifti(VOLUME.astype(np.float32), scl_slope=0.1, scl_inter=3.3)),
            ("NIfTI-2", nifti(affine=OBLIQUE, kind=nibabel.Nifti2Image)),
            ("NIfTI-2 of int64, scaled", nifti(VOLUME.astype(np.int64), kind=nibabel.Nifti2Image, scl_slope=0.1)),
            ("big-endian", big_endian),
            ("uint8", nifti(VOLUME.astype(np.uint8))),
            ("int8", nifti(VOLUME.astype(np.int8))),
            ("uint16", nifti(VOLUME.astype(np.uint16))),
            ("int32, large", nifti(VOLUME.astype(np.int32) * 54321)),
            ("uint32", nifti(VOLUME.astype(np.uint32))),
            ("float64", nifti(VOLUME / 7)),
            ("colours", nifti(np.zeros(VOLUME.shape, RGB))),
            ("two dimensions", nifti(VOLUME[:, :, 0])),
            ("one volume of four dimensions", nifti(VOLUME[..., None])),
            ("a header that is longer", nifti(extension=True)),
        )
    ),
    *(Line("two volumes", f"case_0000{e}", nifti(np.stack([VOLUME] * 2, -1)), (*ITK, *NIBABEL)) for e in (".nii",)),
    Line("complex", "case_0000.nii", nifti(VOLUME.astype(np.complex64)), (*ITK, *NIBABEL), "complex|can't be read"),
    Line("not finite", "case_0000.nii", nifti(NOT_FINITE), (*ITK, *NIBABEL), FINITE),
    Line("not finite", "case_0000.nii.gz", nifti(NOT_FINITE), (*ITK, *NIBABEL), FINITE),
    Line("not finite, float64", "case_0000.nii", nifti(NOT_FINITE.astype(float)), (*ITK, *NIBABEL), FINITE),
    Line("more than float32 holds", "case_0000.nii", nifti(VOLUME * 1e300), (*ITK, *NIBABEL), FINITE),
    Line("not packed", "case_0000.nii.gz", renamed(nifti(), "a.nii"), (*ITK, *NIBABEL)),
    Line("packed", "case_0000.nii", renamed(nifti(), "a.nii.gz"), (*ITK, *NIBABEL)),
    Line("bytes behind", "case_0000.nii.gz", renamed(nifti(), "a.nii.gz", lambda d: d + b"more"), (*ITK, *NIBABEL)),
    Line("zeros behind", "case_0000.nii.gz", renamed(nifti(), "a.nii.gz", lambda d: d + bytes(512)), (*ITK, *NIBABEL)),
    Line(
        "two gzip members",
        "case_0000.nii.gz",
        renamed(nifti(), "a.nii", lambda data: gzip.compress(data[:300]) + gzip.compress(data[300:])),
        (*ITK, *NIBABEL),
    ),
    Line("a pair", "case_0000.hdr", nifti(kind=nibabel.Nifti1Pair), (*ITK, *NIBABEL)),
    Line("a pair", "case_0000.img", nifti(kind=nibabel.Nifti1Pair), (*ITK, *NIBABEL)),
    Line("a pair, not finite", "case_0000.hdr", nifti(NOT_FINITE, kind=nibabel.Nifti1Pair), (*ITK, *NIBABEL), FINITE),
    Line("a pair, not finite", "case_0000.img", nifti(NOT_FINITE, kind=nibabel.Nifti1Pair), (*ITK, *NIBABEL), FINITE),
    Line("FreeSurfer", "case_0000.mgz", nifti(kind=nibabel.MGHImage), NIBABEL),
    Line("channels", "case_000*.nii", lambda path: nifti(VOLUME + len(path.parent.name))(path), (*ITK, *NIBABEL)),
    Line(
        "channels turned otherwise",
        "case_000*.nii",
        lambda path: nifti(affine=OBLIQUE if "0001" in path.name else OBLIQUE @ np.diag([-1, 1, 1, 1]))(path),
        (*ITK, *NIBABEL),
    ),
    Line(
        "channels with other spacings",
        "case_000*.nii",
        lambda path: nifti(affine=np.diag([1 + 1e-4 * ("0001" in path.name), 1, 1, 1]))(path),
        (*ITK, *NIBABEL),
    ),
    # What SimpleITK reads.
    *(
        Line("a volume", f"case_0000{ending}", itk(VOLUME.astype(kind)), ITK)
        for ending, kind in (
            (".mha", "i2"), (".mhd", "i2"), (".nrrd", "i2"), (".nhdr", "i2"), (".gipl", "i2"), (".gipl.gz", "i2"),
            (".vtk", "i2"), (".h5", "f4"), (".mrc", "f4"), (".nrrd", "f8"), (".mha", "u8"), (".tif", "u2"),
        )
    ),
    *(Line(f"turned to {o}", "case_0000.nrrd", itk(orientation=o), ITK) for o in ("RAS", "PSL", "AIR", "LPS")),
    *(Line("not finite", f"case_0000{e}", itk(NOT_FINITE), ITK, FINITE) for e in (".mha", ".nrrd", ".gipl", ".tif")),
    *(Line("flat", f"case_0000{e}", itk(VOLUME[0].astype("u1")), ITK) for e in (".mha", ".png", ".tif", ".bmp")),
    Line("a vector for each voxel", "case_0000.nrrd", itk(np.stack([VOLUME] * 5, -1), vector=True), ITK),
    Line("colours", "case_0000.png", itk(COLOURS, vector=True), ITK),
    Line("four dimensions", "case_0000.nrrd", itk(np.stack([VOLUME] * 2)), ITK),
    Line("grey", "case_0000.jpg", itk(GREY), ("SimpleITKIO",), "aren't written"),
    *(
        Line(name, "case_0000.nrrd", nrrd(f"{fields}encoding: {packing}", data), ITK)
        for name, fields, packing, data in (
            ("in words", NRRD, "ascii", " ".join(map(str, VOLUME.ravel())).encode()),
            ("packed", NRRD, "gzip", gzip.compress(VOLUME.tobytes())),
            ("spacings alone", f"{NRRD}spacings: 0.5 2 3\n", "raw", VOLUME.tobytes()),
            ("big-endian", NRRD.replace("little", "big"), "raw", VOLUME.astype(">i2").tobytes()),
            ("RAS", f"{NRRD}space: RAS\n{AXES.format('(0,2,0) (0,0,3) (1,0,0)')}", "raw", VOLUME.tobytes()),
            ("left-handed", f"{NRRD}space: LPS\n{AXES.format('(-1,0,0) (0,1,0) (0,0,3)')}", "raw", VOLUME.tobytes()),
            ("sheared", f"{NRRD}space: LPS\n{AXES.format('(1,0,0) (0.2,1,0) (0,0,3)')}", "raw", VOLUME.tobytes()),
            ("vectors", f"{PAIRS.format('2 7 6 5', 'vector domain domain domain')}", "raw", TWICE.tobytes()),
            ("a list", f"{PAIRS.format('7 6 5 2', 'domain domain domain list')}", "raw", TWICE.tobytes()),
        )
    ),
    *(
        Line(name, "case_0000.mha", metaimage(fields, array, sizes), ITK)
        for name, fields, array, sizes in (
            ("without a spacing", "", VOLUME, "7 6 5"),
            ("sizes of elements alone", "ElementSize = 2 2 2\n", VOLUME, "7 6 5"),
            ("turned", "TransformMatrix = 0 1 0 1 0 0 0 0 -1\nElementSpacing = 1 2 3\n", VOLUME, "7 6 5"),
            ("sheared", "TransformMatrix = 1 0 0 0.3 1 0 0 0 1\n", VOLUME, "7 6 5"),
            ("channels", "ElementNumberOfChannels = 2\n", TWICE, "7 6 5"),
            ("four dimensions", "ElementSpacing = 1 2 3 4\n", TWICE, "7 6 5 2"),
            ("two dimensions", "ElementSpacing = 1 2\n", VOLUME[0], "7 6"),
            ("float64", "", VOLUME / 3, "7 6 5"),
        )
    ),
    # Pictures.
    *(Line(f"{n} dpi", "a_0000.tif", tiff(COLOURS, resolution=(n, n), resolutionunit=2), PICTURE) for n in (72, 300)),
    Line("in tiles", "a_0000.tif", tiff(COLOURS, tile=(16, 16), photometric="rgb"), PICTURE),
    Line("colours apart", "a_0000.tif", tiff(APART, **PLANES), PICTURE),
    Line("colours apart, in tiles", "a_0000.tif", tiff(APART, tile=(16, 16), **PLANES), PICTURE),
    Line("transparency", "a_0000.tif", tiff(RGBA, photometric="rgb", extrasamples=["unassalpha"]), PICTURE),
    Line("grey and transparency", "a_0000.tif", tiff(RGBA[..., :2], photometric="minisblack", planarconfig=1), PICTURE),
    Line("white is 0", "a_0000.tif", tiff(GREY, photometric="miniswhite"), PICTURE),
    Line("bits", "a_0000.tif", tiff(GREY > 100, photometric="minisblack"), PICTURE),
    Line("a palette", "a_0000.tif", tiff(GREY, photometric="palette", colormap=PALETTE), PICTURE),
    *(
        Line(packed, "a_0000.tif", tiff(COLOURS, compression=packed, photometric="rgb"), PICTURE)
        for packed in ("lzw", "zlib", "packbits", "jpeg", "zstd")
    ),
    Line("a predictor", "a_0000.tif", tiff(GREY, compression="lzw", predictor=True), PICTURE),
    Line("big-endian", "a_0000.tif", tiff(GREY.astype("u2"), byteorder=">"), PICTURE),
    Line("BigTIFF", "a_0000.tif", tiff(GREY, bigtiff=True), PICTURE),
    *(Line(kind, "a_0000.tif", tiff((GREY / 3).astype(kind)), PICTURE) for kind in ("u2", "f4", "f8", "i4")),
    Line("other ending", "a_0000.tiff", tiff(GREY), PICTURE),
    Line("ending in capitals", "a_0000.TIF", tiff(COLOURS), PICTURE),
    *(
        Line(f"{pages} pages", "a_0000.tif", tiff(np.stack([GREY] * pages), photometric="minisblack"), PICTURE)
        for pages in (2, 3, 4, 5)
    ),
    Line("a pyramid", "a_0000.tif", pyramid, PICTURE),
    Line("three rows", "a_0000.tif", tiff(GREY[:3], photometric="minisblack"), PICTURE, ours_alone=True),
    Line("not finite", "a_0000.tif", tiff(NOT_FINITE[1]), PICTURE, FINITE),
    Line("a PNG file", "a_0000.tif", renamed(picture(GREY), "a.png"), PICTURE),
    *(Line("colours", f"a_0000{e}", picture(COLOURS), PICTURE) for e in (".png", ".bmp")),
    *(Line("grey", f"a_0000{e}", picture(GREY), PICTURE) for e in (".png", ".bmp")),
    *(Line("bits", f"a_0000{e}", picture(GREY, "1"), PICTURE) for e in (".png", ".bmp")),
    *(Line("a palette", f"a_0000{e}", picture(COLOURS, "P"), PICTURE) for e in (".png", ".bmp")),
    Line("a palette with transparency", "a_0000.png", picture(COLOURS, "P", transparency=3), PICTURE),
    Line("transparency", "a_0000.png", picture(COLOURS, "RGBA"), PICTURE),
    Line("transparency", "a_0000.bmp", picture(COLOURS, "RGBA"), PICTURE),
    Line("a transparent colour", "a_0000.png", picture(COLOURS, transparency=(1, 2, 3)), PICTURE),
    Line("grey and transparency", "a_0000.png", picture(COLOURS, "LA"), PICTURE),
    Line("16 bits", "a_0000.png", picture(GREY.astype("u2") * 200), PICTURE),
    Line("2 bits", "a_0000.png", png(8, 2, 2, 0, b"\0\x1b\x1b\0\xe4\xe4"), PICTURE),
    Line("4 bits", "a_0000.png", png(4, 2, 4, 0, b"\0\x12\x34\0\xff\0"), PICTURE),
    Line("16 bits of colours", "a_0000.png", png(2, 2, 16, 2, (b"\0" + bytes(range(12))) * 2), PICTURE),
    Line("16 bits of grey and transparency", "a_0000.png", png(2, 2, 16, 4, (b"\0" + bytes(range(8))) * 2), PICTURE),
    Line("three rows of grey and transparency", "a_0000.png", picture(COLOURS[:3], "LA"), PICTURE),
    Line("run lengths", "a_0000.bmp", rle_bmp, PICTURE),
    *(Line(f"{bits} bits", "a_0000.bmp", bmp(bits, 2), PICTURE) for bits in (16, 24, 32)),
    *(Line(f"{b} bits of grey", "a_0000.bmp", bmp(b, 2, palette=GREYS[:: 255 // (2**b - 1)]), PICTURE) for b in (1, 4)),
    *(Line(f"{b} bits of a palette", "a_0000.bmp", bmp(b, 2, palette=TONES[: 2**b]), PICTURE) for b in (1, 4, 8)),
    Line("black is 1", "a_0000.bmp", bmp(1, 2, palette=GREYS[::-255]), PICTURE),
    Line("5, 6 and 5 bits", "a_0000.bmp", bmp(16, 2, masks=struct.pack("<3I", 0xF800, 0x7E0, 0x1F)), PICTURE),
    Line("from the top", "a_0000.bmp", bmp(24, -2), PICTURE),
    *(
        Line(name, "a_0000.png", png(8, 2, 8, 0, (b"\0" + bytes(range(8))) * 2, png_chunk(kind, data)), PICTURE)
        for name, kind, data in (
            ("gamma", b"gAMA", struct.pack(">I", 100000)), ("300 dpi", b"pHYs", struct.pack(">IIB", 11811, 11811, 1)),
            ("a transparent grey", b"tRNS", b"\0\3"), ("5 bits that count", b"sBIT", b"\5"),
        )
    ),
    *(
        Line(name, "a_0000.png", png(4, 1, bits, 3, row, png_chunk(b"PLTE", palette.tobytes())), PICTURE)
        for name, bits, row, palette in (
            ("a palette of grey", 8, b"\0\0\1\2\3", GREYS[:4]), ("a palette of 2 bits", 2, b"\0\x1b", TONES[:4]),
        )
    ),
    Line("16 bits and transparency", "a_0000.png", png(2, 2, 16, 6, (b"\0" + bytes(range(16))) * 2), PICTURE),
    Line("one pixel", "a_0000.png", png(1, 1, 8, 0, b"\0\7"), PICTURE),
    Line("four columns", "a_0000.png", picture(GREY[:5, :4]), PICTURE),
    *(Line(f"a file {e}", "a_0000.png", renamed(picture(COLOURS), f"a{e}"), PICTURE) for e in (".gif", ".jp2", ".ppm")),
    Line("inks", "a_0000.tif", tiff(RGBA, photometric="separated"), PICTURE),
    Line("CIELAB", "a_0000.tif", tiff(COLOURS, photometric="cielab"), PICTURE),
    *(Line(kind, "a_0000.tif", tiff((GREY / 3).astype(kind)), PICTURE) for kind in ("f2", "i1", "i8")),
    Line("colours of 16 bits apart", "a_0000.tif", tiff(APART.astype("u2") * 200, **PLANES), PICTURE),
    Line("two planes apart", "a_0000.tif", tiff(APART[:2], photometric="minisblack", planarconfig=2), PICTURE),
    Line("transparency apart", "a_0000.tif", tiff(np.moveaxis(RGBA, -1, 0), extrasamples=[2], **PLANES), PICTURE),
    Line("ImageJ's channels", "a_0000.tif", tiff(APART.astype("u2"), imagej=True, metadata={"axes": "CYX"}), PICTURE),
    Line("turned by a tag", "a_0000.tif", tiff(COLOURS, photometric="rgb", extratags=[(274, 3, 1, 6, True)]), PICTURE),
    Line("YCbCr", "a_0000.tif", tiff(COLOURS, photometric="ycbcr", compression="jpeg", subsampling=(2, 2)), PICTURE),
    Line("upside down", "a_0000.bmp", renamed(picture(COLOURS), "a.bmp"), PICTURE),
    Line("turned by EXIF", "a_0000.png", oriented, PICTURE),
    Line("moving", "a_0000.png", picture(COLOURS, save_all=True, append_images=[PIL.Image.fromarray(GREY)]), PICTURE),
    Line("a JPEG file", "a_0000.png", renamed(picture(COLOURS), "a.jpg"), PICTURE),
    Line("a TIFF file", "a_0000.png", renamed(picture(GREY), "a.tif"), PICTURE),
    *(Line("lossy", f"a_0000{e}", picture(COLOURS), PICTURE, "aren't written") for e in (".jpg", ".webp")),
    Line("CMYK", "a_0000.jpg", picture(COLOURS, "CMYK"), PICTURE, "aren't written"),
    Line("PostScript", "a_0000.png", renamed(picture(COLOURS), "a.eps"), PICTURE),
    Line("channels", "a_000*.png", picture(GREY), PICTURE),
    Line("colours and grey", "a_000*.png", lambda p: picture(GREY if "0001" in p.name else COLOURS)(p), PICTURE),
    # Stacks.
    *(Line("a stack", f"case_0000{e}", tiff(VOLUME), STACK) for e in (".tif", ".tiff", ".TIF")),
    *(Line(f"a stack, {p}", "case_0000.tif", tiff(VOLUME, compression=p), STACK) for p in ("lzw", "zlib")),
    *(Line(f"a stack of {k}", "case_0000.tif", tiff(VOLUME.astype(k)), STACK) for k in ("u1", "u2", "f4", "f8", "i4")),
    Line("ImageJ's", "case_0000.tif", tiff(WORDS, imagej=True, metadata={"axes": "ZYX", "spacing": 3}), STACK),
    Line("ImageJ's, of four axes", "case_0000.tif", tiff(WORDS[:4].reshape(2, 2, 6, 7), imagej=True), STACK),
    Line("a spacing beside it", "case_0000.tif", with_spacing(tiff(VOLUME), [3, 0.5, 0.25]), STACK),
    Line("a spacing of two numbers", "case_0000.tif", with_spacing(tiff(VOLUME), [3, 0.5]), STACK),
    Line("a spacing beside channels", "case_000*.tif", with_spacing(tiff(VOLUME), [3, 0.5, 0.25]), STACK),
    Line("two dimensions", "case_0000.tif", tiff(VOLUME[0]), STACK),
    Line("colours", "case_0000.tif", tiff(COLOURS, photometric="rgb"), STACK),
    Line("colours in a stack", "case_0000.tif", tiff(np.stack([COLOURS] * 5), photometric="rgb"), STACK),
    Line("in tiles", "case_0000.tif", tiff(np.stack([GREY] * 5), tile=(16, 16), photometric="minisblack"), STACK),
    Line("OME", "case_0000.ome.tif", tiff(VOLUME, metadata={"axes": "ZYX"}, photometric="minisblack"), STACK),
    Line("OME, by its own name", "case_0000.tif", ome("case_0000.tif", uuid=False), STACK),
    Line("OME, renamed", "case_0000.tif", ome("before.tif", uuid=True), STACK),
    Line("OME, of another file", "case_0000.tif", ome("before.tif", uuid=False), STACK, "other files"),
    Line("not finite", "case_0000.tif", tiff(NOT_FINITE), STACK, FINITE),
    Line("a NIfTI file", "case_0000.nii", nifti(), STACK),
]  # fmt: skip


def theirs(reader: str) -> Any:
    """nnU-Net's class of this name."""
    return getattr(importlib.import_module(f"nnunetv2.imageio.{NNUNET[reader]}"), reader)()


@contextlib.contextmanager
def printing() -> Any:
    """nnU-Net and its libraries print and warn."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def written(folder: Path) -> dict[str, bytes | object]:
    """The content of the files of a folder, unpacked."""
    result: dict[str, bytes | object] = {}
    for path in folder.iterdir():
        data = b"" if path.is_dir() else path.read_bytes()
        result[path.name] = gzip.decompress(data) if path.suffix in (".gz", ".mgz") else data
        if path.suffix == ".json":
            result[path.name] = json.loads(data)
        if path.suffix == ".h5":  # it holds the time when it was written
            result[path.name] = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))).tobytes()
    return result


def paths(line: Line, folder: Path) -> list[Path]:
    """Make the files of a line."""
    names = [line.file.replace("*", str(index)) for index in (range(2) if "*" in line.file else range(1))]
    made = [folder / name for name in names]
    for path in made:
        with printing():
            line.make(path)
    return made


@pytest.mark.parametrize(
    ("reader", "line"), [pytest.param(r, line, id=f"{r}-{line}") for line in TABLE for r in line.readers]
)
def test_a_reader_is_nnunets_of_its_name(reader: str, line: Line, tmp_path: Path) -> None:
    files = paths(line, tmp_path)
    ending = images.ending_of(files[0].name)
    (tmp_path / "theirs").mkdir()
    expected: AnyArray | None = None
    properties: dict[str, Any] = {}
    judge = theirs(reader)
    wrote = False
    with contextlib.suppress(Exception), printing():
        expected, properties = judge.read_images([str(path) for path in files])
        labels = np.random.default_rng(0).integers(0, 4, expected.shape[1:]).astype(np.uint8)
        judge.write_seg(labels, str(tmp_path / "theirs" / f"case{ending}"), dict(properties))
        wrote = True
    usable = len(properties.get("spacing", ())) == 3 and min(properties["spacing"]) > 0
    able = usable and wrote
    target = tmp_path / "ours" / f"case{ending}"
    if line.refused is not None or not (able or line.ours_alone):
        with pytest.raises(InputError, match=line.refused) as caught:
            image = images.read(files, reader)
            images.outputs(target, reader, ending, highest=3)
            assert not usable or min(image.spacing) > 0
            if not usable:  # which the preprocessing refuses
                raise InputError("no spacing")
            images.write(np.zeros(image.array.shape[1:], np.uint8), image, target)
        assert "\n" not in str(caught.value)
        return
    assert expected is not None
    image = images.read(files, reader)
    np.testing.assert_array_equal(image.array.astype(np.float32), expected)
    assert image.spacing == tuple(map(float, properties["spacing"]))
    made = images.outputs(target, reader, ending, highest=3)
    images.write(labels, image, target)
    if line.ours_alone:
        assert not able
        np.testing.assert_array_equal(images.read([target], reader).array[0], labels)
        return
    assert written(target.parent) == written(tmp_path / "theirs")
    assert {path.name for path in made} == {path.name for path in target.parent.iterdir()}


@pytest.mark.parametrize("reader", ITK)
@pytest.mark.parametrize("ending", [".dcm", ".DICOM"])
def test_dicom_is_read_and_not_written(reader: str, ending: str, tmp_path: Path) -> None:
    """SimpleITK's compressed writer ends the process."""
    itk(VOLUME[:1])(tmp_path / "a_0000.dcm")
    with printing():
        expected, properties = theirs(reader).read_images([str(tmp_path / "a_0000.dcm")])
    image = images.read([tmp_path / "a_0000.dcm"], reader)
    np.testing.assert_array_equal(image.array.astype(np.float32), expected)
    assert image.spacing == tuple(map(float, properties["spacing"]))
    with pytest.raises(InputError, match="aren't written to such files"):
        images.outputs(tmp_path / f"labels{ending}", reader, ".nii.gz", highest=3)


def test_the_table_holds_every_reader() -> None:
    assert (
        set(READERS) - {tasks.READER}
        == set(config.READERS)
        == {reader for line in TABLE for reader in line.readers}
        == set(NNUNET)
    )


@pytest.mark.parametrize(
    ("reader", "name", "make"),
    [
        *((reader, "a.nii", nifti()) for reader in (*ITK, *NIBABEL)),
        *((reader, "a.nii.gz", nifti()) for reader in (*ITK, *NIBABEL)),
        ("SimpleITKIO", "a.hdr", nifti(kind=nibabel.Nifti1Pair)),
        ("NibabelIO", "a.hdr", nifti(kind=nibabel.Nifti1Pair)),
        *(
            ("SimpleITKIO", f"a{ending}", itk())
            for ending in (".mha", ".mhd", ".nrrd", ".nhdr", ".gipl", ".gipl.gz", ".vtk", ".tif")
        ),
        ("SimpleITKIO", "a.mrc", itk(VOLUME.astype("f4"))),
        *(("SimpleITKIO", f"a{ending}", itk(GREY)) for ending in (".png", ".tif", ".jpg")),
        ("NaturalImage2DIO", "a.png", picture(COLOURS)),
        ("NaturalImage2DIO", "a.bmp", picture(COLOURS)),
        ("NaturalImage2DIO", "a.jpg", picture(COLOURS)),
        *(
            ("NaturalImage2DIO", "a.tif", tiff(COLOURS, photometric="rgb", **how))
            for how in ({}, {"tile": (16, 16)}, {"compression": "lzw"}, {"compression": "jpeg"})
        ),
        ("Tiff3DIO", "a.tif", tiff(VOLUME)),
        ("Tiff3DIO", "a.tif", tiff(VOLUME, compression="zlib")),
        ("Tiff3DIO", "a.tif", tiff(VOLUME.astype("u2"), imagej=True)),
    ],
)
def test_a_file_that_ends_early_is_refused_by_every_reader(
    reader: str, name: str, make: Callable[[Path], object], tmp_path: Path
) -> None:
    make(tmp_path / name)
    (path,) = [file for file in tmp_path.iterdir() if file.suffix not in (".hdr", ".mhd", ".nhdr")]
    expected = images.read([tmp_path / name], reader).array
    whole = path.read_bytes()
    refused = 0
    for share in (0.02, 0.5, 0.7, 0.8, 0.95, 1):
        path.write_bytes(whole[: min(int(share * len(whole)), len(whole) - 1)])
        try:
            found = images.read([tmp_path / name], reader).array
        except InputError as error:
            refused += str(error).count("\n") == 0
        else:  # what is lost is no voxel
            np.testing.assert_array_equal(found, expected)
    assert refused > 1


def test_a_gzip_file_is_read_to_its_checksum(tmp_path: Path) -> None:
    nifti()(tmp_path / "a.nii.gz")
    whole = (tmp_path / "a.nii.gz").read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(whole[:-8] + bytes(8))
    for reader in (*ITK, *NIBABEL):
        with pytest.raises(InputError, match=r"isn't an intact gzip file|Unable to determine ImageIO"):
            images.read([tmp_path / "a.nii.gz"], reader)


@pytest.mark.parametrize("shape", [(100, 100, 110), (30, 30, 30)])
def test_what_is_not_finite_is_found_in_every_byte_order_and_part(shape: tuple[int, ...], tmp_path: Path) -> None:
    """Files of several pieces, whose ends cut numbers in two."""
    for order in "<>":
        for where in (0, int(np.prod(shape)) // 2, int(np.prod(shape)) - 1):
            array = np.random.default_rng(0).normal(0, 1, shape).astype(f"{order}f4")
            array[np.unravel_index(where, shape, order="F")] = np.nan
            header = nibabel.Nifti1Header(endianness=order)
            nibabel.Nifti1Image(array, np.eye(4), header).to_filename(tmp_path / "a.nii")
            with pytest.raises(InputError, match=FINITE):
                images.read([tmp_path / "a.nii"], "SimpleITKIO")
            zeros = images.read([tmp_path / "a.nii"], "SimpleITKIO", nan_as_zero=True).array
            assert np.isfinite(zeros).all() and zeros.ravel()[where] == 0


@pytest.mark.parametrize("reader", NNUNET)
@pytest.mark.parametrize(("highest", "kind"), [(254, np.uint8), (255, np.uint16), (300, np.uint16)])
def test_many_labels_take_two_bytes_where_nnunets_do(reader: str, highest: int, kind: type, tmp_path: Path) -> None:
    name = {"NaturalImage2DIO": "a.png", "Tiff3DIO": "a.tif"}.get(reader, "a.nii")
    (picture(GREY) if name == "a.png" else tiff(VOLUME) if name == "a.tif" else nifti(affine=FLIPPED))(tmp_path / name)
    image = images.read([tmp_path / name], reader)
    labels = np.zeros(image.array.shape[1:], np.uint16)
    labels[0, 1, 2] = highest
    images.write(labels, image, tmp_path / f"labels{name[1:]}")
    again = images.read([tmp_path / f"labels{name[1:]}"], reader).array
    np.testing.assert_array_equal(again[0], labels)
    if reader == "SimpleITKIOWithReorient" and highest == 255:
        kind = np.uint8
    assert again.dtype == kind
    if not (reader == "SimpleITKIOWithReorient" and highest > 255):  # which nnU-Net cuts to a byte
        (tmp_path / "theirs").mkdir()
        with printing():
            _, properties = theirs(reader).read_images([str(tmp_path / name)])
            theirs(reader).write_seg(labels, str(tmp_path / "theirs" / f"labels{name[1:]}"), properties)
        assert written(tmp_path / "theirs").items() <= written(tmp_path).items()


def test_a_stranger_s_header_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "case.json").write_text('{"spacing": [1, NaN, 2]}')
    tifffile.imwrite(tmp_path / "case_0000.tif", VOLUME)
    with pytest.raises(InputError, match="isn't JSON"):
        images.read([tmp_path / "case_0000.tif"], "Tiff3DIO")
    (tmp_path / "case.json").write_text('{"spacing": [1, -1, 2]}')
    with pytest.raises(InputError, match="spacing"):
        images.read([tmp_path / "case_0000.tif"], "Tiff3DIO")


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "nibabel" else name)
    images.require("SimpleITKIO")
    with pytest.raises(InputError, match=r"nibabel, .* isn't installed: pip install 'segonnx\[predict\]'"):
        images.require("NibabelIO")
