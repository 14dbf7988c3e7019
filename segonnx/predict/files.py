"""Predicts files: one image, or every case of a folder."""

from __future__ import annotations

import math
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segonnx.core import subprocesses
from segonnx.core.files import require_space
from segonnx.core.subprocesses import Progress
from segonnx.errors import InputError, ResourceError
from segonnx.predict import images
from segonnx.predict.pipeline import Times
from segonnx.predict.predictor import Artifact
from segonnx.predict.resampling import Array


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
    previous: Artifact | None = None,
    probabilities: bool = False,
    mirror: bool = False,
    step: float | None = None,
    overwrite: bool = False,
    progress: Progress = subprocesses.silent,
) -> Iterator[Predicted]:
    """Predict what is in a file or folder, one case after another.

    Args:
        artifact: to predict with.
        source: an image, or a folder of files ``CASE_0000.nii.gz``, ...
        target: a file for an image; for a folder, a folder, which gets a file of each case's name.
        previous: the first stage of a cascade whose second one ``artifact`` is; it is run first.
        probabilities: write them too, as ``CASE.npz`` beside the label map: ``probabilities``, (outputs, z, y, x).
        mirror: see ``Artifact.predict``.
        step: see ``Artifact.predict``.
        overwrite: replace label maps that are there.
        progress: told of each step.

    Raises:
        InputError: something is missing, can't be read, doesn't fit, or is there already.
        ResourceError: the disk is too small, or can't be written.
    """
    images.require()
    recipe = artifact.recipe
    if bool(recipe.previous) != (previous is not None):
        raise InputError(
            "the artifact is the second stage of a cascade: give the first one's with --previous"
            if recipe.previous
            else "the artifact is no second stage of a cascade: it takes no --previous"
        )
    for path, case, files in _planned(artifact, source, target, probabilities=probabilities, overwrite=overwrite):
        times = Times()
        progress(f"{case}: reading")
        with times.of("read"):
            image = images.read(files, reorient=recipe.reorients)

        def told(done: int, of: int, case: str = case) -> None:
            progress(f"{case}: window {done} of {of}")

        first = None
        if previous is not None:
            first = previous.predict(image.array, image.spacing, mirror=mirror, step=step, progress=told, times=times)
        with _probabilities(path, (len(recipe.values), *image.array.shape[1:]), asked=probabilities) as array:
            labels = artifact.predict(
                image.array, image.spacing, previous=first, probabilities=array, mirror=mirror, step=step,
                progress=told, times=times,
            )  # fmt: skip
            progress(f"{case}: writing")
        with times.of("write"):
            images.write(labels, image, path)
        yield Predicted(case, path, labels.shape, dict(times.seconds))


def _planned(
    artifact: Artifact, source: Path, target: Path, *, probabilities: bool, overwrite: bool
) -> list[tuple[Path, str, list[Path]]]:
    """What is to be made: the label map's path, the case, and the files of its channels."""
    recipe = artifact.recipe
    if probabilities and recipe.reorients:
        raise InputError("the network sees images in another order of axes; --probabilities can't follow it yet")
    found = images.cases(source, len(recipe.channels), recipe.file_ending, natural=recipe.natural)
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
        for made in (path, _beside(path)) if probabilities else (path,):
            if made.exists() and not overwrite:
                raise InputError(f"{made} exists: --overwrite replaces it")
    return [(paths[case], case, files) for case, files in found.items()]


def _beside(path: Path) -> Path:
    return path.with_name(f"{images.stem(path.name)}.npz")


@contextmanager
def _probabilities(path: Path, shape: tuple[int, ...], *, asked: bool) -> Iterator[Array | None]:
    """An array on disk that becomes a file beside the label map once it is filled."""
    if not asked:
        yield None
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        needed = 2 * 4 * math.prod(shape)
        require_space(needed, path.parent, f"the array of probabilities of {path.name}", "free some space")
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            raw, packed = Path(folder) / "probabilities.npy", Path(folder) / "probabilities.npz"
            array = np.lib.format.open_memmap(raw, mode="w+", dtype=np.float32, shape=shape)
            yield array
            array.flush()
            with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
                archive.write(raw, raw.name)
            packed.replace(_beside(path))
    except OSError as error:
        raise ResourceError(f"can't write {_beside(path)}: {error.strerror or error}") from error
