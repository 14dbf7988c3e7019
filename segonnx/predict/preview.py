"""A picture of an image with its label map over it: three planes, or slices, with a legend of names."""

from __future__ import annotations

import importlib.util
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from segonnx.core import files
from segonnx.dicom.segments import Segment
from segonnx.errors import InputError
from segonnx.predict.images import Image
from segonnx.predict.interpolation import AnyArray
from segonnx.predict.readers import READERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LAYOUTS = ("planes", "slices")
"""What is shown: a plane of each direction, or slices."""
ENDING = ".png"
SOFT_TISSUE = (40.0, 400.0)
"""The centre and the width of the window of a CT whose own isn't known."""
_PERCENTILES = (1.0, 99.0)
"""The window of other images, whose numbers mean nothing by themselves."""
_SLICES = 12
_OPACITY = 0.5
_STACKED = [[0, 1], [0, 2]]
"""The first of three planes beside the others, which stand one above the other."""
_EMPTY = -1
"""The number of a place without a plane."""
_NAMES = 36
"""The most names of the legend."""
_COLOURS = 256


@dataclass(frozen=True)
class Look:
    """How a picture is made.

    Attributes:
        layout: A member of ``LAYOUTS``.
        window: The centre and the width of the image's window. None takes that of soft tissue for a CT, or else what
            the image holds.
        ct: The image is a CT.
    """

    layout: str
    window: tuple[float, float] | None
    ct: bool


@dataclass(frozen=True)
class _Plane:
    """A plane to show.

    Attributes:
        image: Its pixels, (rows, columns).
        labels: Their labels.
        aspect: The height of a pixel in its widths.
        title: What is written over it.
        sides: What the left, the right, the upper and the lower side are called.
    """

    image: AnyArray
    labels: AnyArray
    aspect: float
    title: str
    sides: str

    @property
    def flat(self) -> bool:
        """It is less than half as high as it is wide."""
        rows, columns = self.image.shape
        return bool(2 * self.aspect * rows < columns)


def require(path: Path) -> None:
    """See to it that pictures can be made, and that one may be called so.

    Raises:
        InputError: matplotlib isn't installed, or the file's ending isn't ``ENDING``.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("matplotlib, which makes previews, isn't installed: pip install 'segonnx[preview]'")
    if path.suffix.lower() != ENDING:
        raise InputError(f"--preview writes {ENDING} files; found {path}")


def write(labels: AnyArray, image: Image, segments: Sequence[Segment], look: Look, path: Path) -> None:
    """Write a picture of an image's first channel with a label map over it.

    Args:
        labels: The label map (z, y, x).
        image: The image, as the network sees it.
        segments: What the labels are.
        look: How the picture is made.
        path: The file to write.

    Raises:
        ResourceError: The file can't be written.
    """
    volume = _turned(image.array[0], labels, READERS[image.reader].matrix(image.geometry))
    planes = _planes(volume) if look.layout == "planes" else _slices(volume)
    files.require_writable(path)
    files.write(path, _picture(planes, segments, labels, _window(planes, look)))


@dataclass(frozen=True)
class _Volume:
    """An image and its label map with axes that run up, to the back and to the left, as nearly as may be.

    Attributes:
        image: The voxels.
        labels: Their labels.
        sizes: The sizes of a voxel.
        sides: For each axis, what the left, the right, the upper and the lower side of its planes are called.
    """

    image: AnyArray
    labels: AnyArray
    sizes: tuple[float, ...]
    sides: tuple[str, str, str]


def _turned(image: AnyArray, labels: AnyArray, matrix: AnyArray | None) -> _Volume:
    if matrix is None:
        return _Volume(image, labels, (1.0, 1.0, 1.0), ("    ",) * 3)
    from scipy.optimize import linear_sum_assignment

    steps = matrix[:3, :3]
    sizes = np.linalg.norm(steps, axis=0)
    # For each of left, back and up the axis of the array that runs most that way.
    _, axes = linear_sum_assignment(-np.abs(steps / sizes))
    ways = [(way, int(axes[way])) for way in (2, 1, 0)]
    order = [2 - axis for _, axis in ways]
    flips = tuple(slice(None, None, -1 if steps[way, axis] < 0 else 1) for way, axis in ways)
    return _Volume(
        image.transpose(order)[flips],
        labels.transpose(order)[flips],
        tuple(float(sizes[axis]) for _, axis in ways),
        ("RLAP", "RLSI", "APSI"),
    )


def _planes(volume: _Volume) -> list[_Plane]:
    """Of each direction the plane with most labels, or the middle one. An image of one slice has one."""
    found = []
    shape = volume.image.shape
    for axis, name in enumerate(("axial", "coronal", "sagittal")):
        others = tuple(other for other in range(3) if other != axis)
        if min(shape[other] for other in others) > 1 or axis == 0:
            counts = np.count_nonzero(volume.labels, axis=others)
            number = int(counts.argmax()) if counts.any() else shape[axis] // 2
            found.append(_plane(volume, axis, number, f"{name}, {number + 1} of {shape[axis]}"))
    return found


def _slices(volume: _Volume) -> list[_Plane]:
    """Axial slices from top to bottom, spread evenly over those that have labels, or over all."""
    there = np.flatnonzero(volume.labels.any(axis=(1, 2)))
    first, last = (int(there[0]), int(there[-1])) if len(there) else (0, len(volume.labels) - 1)
    numbers = np.linspace(last, first, min(_SLICES, last - first + 1)).round().astype(int)
    return [_plane(volume, 0, int(number), f"{number + 1} of {len(volume.labels)}") for number in numbers]


def _plane(volume: _Volume, axis: int, number: int, title: str) -> _Plane:
    pixels, values = volume.image.take(number, axis), volume.labels.take(number, axis)
    height, width = (size for other, size in enumerate(volume.sizes) if other != axis)
    if axis:  # up is up
        pixels, values = pixels[::-1], values[::-1]
    return _Plane(pixels, values, height / width, title, volume.sides[axis])


def _window(planes: Sequence[_Plane], look: Look) -> tuple[float, float]:
    """The numbers that are shown black and white."""
    window = look.window or (SOFT_TISSUE if look.ct else None)
    if window is not None:
        centre, width = window
        return centre - width / 2, centre + width / 2
    shown = np.concatenate([plane.image.ravel() for plane in planes])
    low, high = np.percentile(shown, _PERCENTILES)
    return float(low), float(high) if high > low else float(low) + 1


def _picture(
    planes: Sequence[_Plane], segments: Sequence[Segment], labels: AnyArray, window: tuple[float, float]
) -> bytes:
    """The bytes of a PNG file."""
    from matplotlib.figure import Figure

    shown = _shown(segments, labels)
    places: Any
    places, cell = _arranged(planes)
    size = (cell * len(places[0]) + 2.6, max(cell * len(places), 4.0))
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    colours = _colours(shown, int(labels.max()))
    for place, axes in figure.subplot_mosaic(cast("Any", places), empty_sentinel=_EMPTY).items():
        axes.set_axis_off()
        _draw(axes, planes[place], colours, window)
        if places == _STACKED and place:  # the flat ones close together
            axes.set_anchor("S" if place == 1 else "N")
    _legend(figure, shown)
    made = io.BytesIO()
    figure.savefig(made, format="png", facecolor="white", metadata={"Software": None})
    return _smaller(made.getvalue())


def _arranged(planes: Sequence[_Plane]) -> tuple[list[list[int]], float]:
    """The places of planes in rows and columns, and the size of a place in inches.

    Of a thin stack of slices the other two planes are flat, and stand one above the other.
    """
    if len(planes) == 3 and all(plane.flat for plane in planes[1:]):
        return _STACKED, 2.6
    columns = min(len(planes), 4)
    rows = math.ceil(len(planes) / columns)
    numbers = [number if number < len(planes) else _EMPTY for number in range(rows * columns)]
    return [numbers[row * columns :][:columns] for row in range(rows)], 4.0 if rows == 1 else 2.4


def _shown(segments: Sequence[Segment], labels: AnyArray) -> list[Segment]:
    """The segments that occur, the largest first."""
    counts = np.zeros(int(labels.max()) + 1, np.int64)
    for plane in labels:
        counts += np.bincount(plane.ravel(), minlength=len(counts))
    sizes = {one: sum(int(counts[label]) for label in one.labels if label < len(counts)) for one in segments}
    return sorted((one for one in segments if sizes[one]), key=lambda one: -sizes[one])


def _colours(shown: Sequence[Segment], highest: int) -> AnyArray:
    """The colour of each label: red, green, blue and opacity. Of regions that overlap the smaller one counts."""
    table = np.zeros((highest + 1, 4))
    for one in shown:
        for label in one.labels:
            if label <= highest:
                table[label] = (*(part / 255 for part in one.colour), _OPACITY)
    return table


def _draw(axes: Axes, plane: _Plane, colours: AnyArray, window: tuple[float, float]) -> None:
    axes.imshow(plane.image, cmap="gray", vmin=window[0], vmax=window[1], aspect=plane.aspect, interpolation="nearest")
    axes.imshow(colours[plane.labels], aspect=plane.aspect, interpolation="nearest")
    axes.set_title(plane.title, fontsize=9, color="#333333")
    places = ((0.02, 0.5, "left", "center"), (0.98, 0.5, "right", "center"), (0.5, 0.98, "center", "top"),
              (0.5, 0.02, "center", "bottom"))  # fmt: skip
    for side, (x, y, across, along) in zip(plane.sides, places, strict=True):
        axes.text(x, y, side, transform=axes.transAxes, ha=across, va=along, fontsize=8, color="white")


def _legend(figure: Any, shown: Sequence[Segment]) -> None:
    from matplotlib.patches import Patch

    named = [Patch(color="#{:02x}{:02x}{:02x}".format(*one.colour), label=one.name) for one in shown[:_NAMES]]
    if len(shown) > _NAMES:
        named.append(Patch(color="none", label=f"and {len(shown) - _NAMES} more"))
    if not named:
        named.append(Patch(color="none", label="no labels"))
    size = 9 if len(named) <= 18 else 6
    legend = figure.legend(handles=named, loc="outside right upper", fontsize=size, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a name may be a stranger's


def _smaller(picture: bytes) -> bytes:
    """The same picture in so many colours as a byte tells apart."""
    import PIL.Image

    made = io.BytesIO()
    with PIL.Image.open(io.BytesIO(picture)) as opened:
        opened.convert("RGB").quantize(_COLOURS).save(made, "PNG", optimize=True)
    return made.getvalue()
