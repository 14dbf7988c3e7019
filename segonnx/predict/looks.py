"""What people look at beside a label map: a picture of it, and numbers of its labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from segonnx.predict import preview, segments, statistics
from segonnx.predict.images import Image
from segonnx.predict.interpolation import AnyArray
from segonnx.predict.predictor import Described
from segonnx.predict.preview import LAYOUTS, Look


@dataclass(frozen=True)
class Wanted:
    """What is wanted beside a label map.

    Attributes:
        preview: For one image, the file of its picture; for a folder, a folder that gets ``CASE.png``.
        layout: What the picture shows, a member of ``preview.LAYOUTS``.
        statistics: For one image, the file of its labels' numbers; for a folder, a folder that gets ``CASE.csv``.
        codes: The file of the labels' codes and colours; see ``dicom.segments.read``.
        window: The centre and the width of the image's window, where its file can't tell.
    """

    preview: Path | None = None
    layout: str = LAYOUTS[0]
    statistics: Path | None = None
    codes: Path | None = None
    window: tuple[float, float] | None = None

    def paths(self, case: str, *, several: bool) -> list[Path]:
        """The files that are written of a case, which may be one of several."""
        given = ((self.preview, preview.ENDING), (self.statistics, statistics.ENDINGS[0]))
        return [place(path, case, ending, several) for path, ending in given if path is not None]


def place(path: Path, case: str, ending: str, several: bool) -> Path:
    """The file of a case: the one that is named, or one in the folder that is named for several."""
    return path / f"{case}{ending}" if several else path


class Looks:
    """Writes what is wanted of each case.

    Args:
        artifact: The artifact that predicts.
        wanted: What is wanted.
        several: A folder is predicted.

    Raises:
        InputError: It can't be made.
    """

    def __init__(self, artifact: Described, wanted: Wanted, *, several: bool) -> None:
        self._wanted, self._several = wanted, several
        self._segments = segments.of(artifact, wanted.codes)
        ct = any(channel.scheme == "CTNormalization" for channel in artifact.config.channels)
        self._look = Look(wanted.layout, wanted.window, ct)
        if wanted.preview is not None:
            preview.require(self._place(wanted.preview, "case", preview.ENDING))
        if wanted.statistics is not None:
            statistics.require(self._place(wanted.statistics, "case", statistics.ENDINGS[0]))

    def _place(self, path: Path, case: str, ending: str) -> Path:
        return place(path, case, ending, self._several)

    def write(self, case: str, image: Image, labels: AnyArray) -> None:
        """Write what is wanted of a case.

        Args:
            case: The case's name.
            image: The image, as the network sees it.
            labels: Its label map (z, y, x).

        Raises:
            InputError: The image doesn't say where its voxels are.
            ResourceError: A file can't be written.
        """
        if self._wanted.statistics is not None:
            found = statistics.rows(labels, image, self._segments)
            path = self._place(self._wanted.statistics, case, statistics.ENDINGS[0])
            statistics.write(found, len(image.array), path)
        if self._wanted.preview is not None:
            path = self._place(self._wanted.preview, case, preview.ENDING)
            preview.write(labels, image, self._segments, self._look, path)
