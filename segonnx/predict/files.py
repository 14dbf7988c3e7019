"""Predicts files: one image, or every case of a folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from segonnx import process
from segonnx.errors import InputError
from segonnx.predict import images
from segonnx.predict.artifact import Artifact
from segonnx.predict.pipeline import Times
from segonnx.process import Progress


@dataclass(frozen=True)
class Predicted:
    """One case.

    Attributes:
        case: its name.
        path: of the label map.
        shape: of the image, (z, y, x).
        seconds: by step.
    """

    case: str
    path: Path
    shape: tuple[int, ...]
    seconds: dict[str, float]


def predict(
    artifact: Artifact,
    source: Path,
    target: Path,
    *,
    mirror: bool = False,
    step: float | None = None,
    overwrite: bool = False,
    progress: Progress = process.silent,
) -> Iterator[Predicted]:
    """Predict what is in a file or folder, one case after another.

    Args:
        artifact: to predict with.
        source: an image, or a folder of files ``CASE_0000.nii.gz``, ...
        target: a file for an image; for a folder, a folder, which gets a file of each case's name.
        mirror: see ``Artifact.predict``.
        step: see ``Artifact.predict``.
        overwrite: replace label maps that are there.
        progress: told of each step.

    Raises:
        InputError: something is missing, can't be read, doesn't fit, or is there already.
    """
    images.require()
    recipe = artifact.recipe
    found = images.cases(source, len(recipe.channels), recipe.file_ending)
    if source.is_dir():
        if target.exists() and not target.is_dir():
            raise InputError(f"{target} is a file; the label maps of a folder go into a folder")
        paths = {case: target / f"{case}{recipe.file_ending}" for case in found}
    else:
        if target.is_dir():
            raise InputError(f"{target} is a folder; the label map of one image goes into a file")
        paths = dict.fromkeys(found, target)
    for path in paths.values():
        images.require_ending(path)
        if path.exists() and not overwrite:
            raise InputError(f"{path} exists: --overwrite replaces it")
    for number, (case, files) in enumerate(found.items(), 1):
        place = f"[{number}/{len(found)}] {case}: " if len(found) > 1 else f"{case}: "
        times = Times()
        progress(f"{place}reading")
        with times.of("read"):
            image = images.read(files)
        labels = artifact.predict(
            image.array,
            image.spacing,
            mirror=mirror,
            step=step,
            progress=lambda done, of, place=place: progress(f"{place}window {done} of {of}"),  # type: ignore[misc]
            times=times,
        )
        with times.of("write"):
            images.write(labels, image, paths[case])
        yield Predicted(case, paths[case], labels.shape, dict(times.seconds))
