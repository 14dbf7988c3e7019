"""Predicts an image file, or every case of a folder."""

from __future__ import annotations

import contextlib
import math
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segonnx.core import files, subprocesses
from segonnx.core.files import require_space
from segonnx.core.subprocesses import Progress
from segonnx.errors import InputError, ResourceError
from segonnx.predict import images
from segonnx.predict.config import InferenceConfig
from segonnx.predict.predictor import Artifact
from segonnx.predict.preprocessing import Times
from segonnx.predict.resampling import AnyArray


@dataclass(frozen=True)
class FileOptions:
    """How files are predicted.

    Attributes:
        mirror: Take the mean over mirrored windows; see ``Artifact.predict``.
        step: The step from window to window, as a fraction of a window; see ``Artifact.predict``.
        probabilities: Write the probabilities too, as ``CASE.npz`` beside the label map. Its array ``probabilities``
            is float32 (outputs, z, y, x).
        overwrite: Replace files that exist.
    """

    mirror: bool = False
    step: float | None = None
    probabilities: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class Predicted:
    """A case that was predicted.

    Attributes:
        case: The case's name.
        path: The file of the label map.
        shape: The shape of the image, (z, y, x).
        seconds: The seconds that each step took.
    """

    case: str
    path: Path
    shape: tuple[int, ...]
    seconds: dict[str, float]


@dataclass(frozen=True)
class _Job:
    """A case that is to be predicted.

    Attributes:
        case: The case's name.
        channels: The file of each channel.
        path: The file of the label map to make.
    """

    case: str
    channels: list[Path]
    path: Path

    @property
    def probabilities(self) -> Path:
        """The file of the probabilities to make."""
        return self.path.with_name(f"{images.stem(self.path.name)}.npz")


def predict(
    artifact: Artifact,
    source: Path,
    target: Path,
    options: FileOptions,
    *,
    previous: Artifact | None = None,
    progress: Progress = subprocesses.silent,
) -> Iterator[Predicted]:
    """Predict the image in a file, or the cases of a folder one after another.

    Args:
        artifact: The artifact to predict with.
        source: An image, or a folder of files ``CASE_0000.nii.gz``, ``CASE_0001.nii.gz``, ...
        target: For an image, the file of its label map. For a folder, a folder that gets a file of each case's name.
        options: How the files are predicted.
        previous: The first stage of the cascade whose second stage ``artifact`` is. It runs first.
        progress: A progress callback. It gets the name of each step.

    Yields:
        Each case, once its label map is written.

    Raises:
        InputError: A file is missing, can't be read, doesn't fit the network, or exists already.
        ResourceError: The disk is too small, or can't be written.
    """
    images.require()
    config = artifact.config
    if bool(config.previous_labels) != (previous is not None):
        raise InputError(
            "the artifact is the second stage of a cascade: give the first one's with --previous"
            if config.previous_labels
            else "the artifact is no second stage of a cascade: it takes no --previous"
        )
    for job in _jobs(config, source, target, options):
        yield _predict_case(artifact, job, options, previous, progress)


def _jobs(config: InferenceConfig, source: Path, target: Path, options: FileOptions) -> list[_Job]:
    """List the cases to predict, once nothing stands in the way of writing their files."""
    if options.probabilities and config.reorients:
        raise InputError("the network sees images in another order of axes; --probabilities can't follow it yet")
    cases = images.cases(source, len(config.channels), config.file_ending, natural=config.natural)
    if source.is_dir():
        _require_one_each(source, config.file_ending, [file for own in cases.values() for file in own])
        if target.exists() and not target.is_dir():
            raise InputError(f"{target} is a file; the label maps of a folder go into a folder")
        jobs = [_Job(case, files, target / f"{case}{config.file_ending}") for case, files in cases.items()]
    else:
        if target.is_dir():
            raise InputError(f"{target} is a folder; the label map of one image goes into a file")
        jobs = [_Job(case, files, target) for case, files in cases.items()]
    inputs = {_identity(file): file for job in jobs for file in job.channels}
    for job in jobs:
        if source.is_dir() and job.path.parent != target:
            raise InputError(f"the case {job.case!r} with the ending {config.file_ending!r} is no name of a file")
        images.require_ending(job.path)
        for path in (job.path, job.probabilities) if options.probabilities else (job.path,):
            if os.path.lexists(path) and not options.overwrite:
                raise InputError(f"{path} exists: --overwrite replaces it")
            files.require_replaceable(path)
            if os.path.lexists(path) and (read := inputs.get(_identity(path))) is not None:
                raise InputError(f"{path} is {read}, which is read: choose another place")
    return jobs


def _identity(path: Path) -> tuple[int, int]:
    """What two paths of one file have in common."""
    try:
        info = path.stat()
    except OSError:  # a link to nothing
        info = path.lstat()
    return info.st_dev, info.st_ino


def _require_one_each(folder: Path, ending: str, taken: list[Path]) -> None:
    """See to it that no image of a folder is passed over: none is there twice, and none has another format.

    Args:
        folder: The folder.
        ending: The ending of the network's images.
        taken: The files that are predicted.

    Raises:
        InputError: An image would be passed over without a word.
    """
    names = {file.name for file in taken}
    stems = {images.stem(name): name for name in sorted(names)}
    for name in sorted(file.name for file in folder.iterdir() if file.is_file()):
        stem = images.stem(name)
        if name in names or name.startswith(".") or not name.lower().endswith(images.ENDINGS):
            continue
        if (other := stems.get(stem)) is not None:
            raise InputError(f"{folder} holds both {other} and {name}: an image must be there once")
        if re.fullmatch(r".+_[0-9]{4}", stem):
            raise InputError(f"{folder} holds {name} beside images of another kind ({ending}): take it away first")


def _predict_case(
    artifact: Artifact, job: _Job, options: FileOptions, previous: Artifact | None, progress: Progress
) -> Predicted:
    """Read a case, predict it, and write its files."""

    def window_progress(done: int, of: int) -> None:
        progress(f"{job.case}: window {done} of {of}")

    times = Times()
    progress(f"{job.case}: reading")
    with times.of("read"):
        image = images.read(job.channels, reorient=artifact.config.reorients)
    if image.array.shape[1] > 1 and job.path.name.lower().endswith(images.FLAT):
        raise InputError(f"{job.path} would hold one slice of the {image.array.shape[1]} of {job.channels[0].name}")
    first_labels = None
    if previous is not None:
        first_labels = previous.predict(
            image.array,
            image.spacing,
            mirror=options.mirror,
            step=options.step,
            progress=window_progress,
            times=times,
        )
    with contextlib.ExitStack() as stack:
        probabilities = None
        if options.probabilities:
            shape = (len(artifact.config.label_values), *image.array.shape[1:])
            probabilities = stack.enter_context(_probabilities_on_disk(job.probabilities, shape))
        labels = artifact.predict(
            image.array,
            image.spacing,
            previous=first_labels,
            probabilities=probabilities,
            mirror=options.mirror,
            step=options.step,
            progress=window_progress,
            times=times,
        )
        progress(f"{job.case}: writing")
    with times.of("write"):
        images.write(labels, image, job.path)
    return Predicted(job.case, job.path, labels.shape, dict(times.seconds))


@contextmanager
def _probabilities_on_disk(path: Path, shape: tuple[int, ...]) -> Iterator[AnyArray]:
    """A float32 array on disk, which becomes the compressed file ``path`` once the block has filled it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        needed = 2 * 4 * math.prod(shape)
        require_space(needed, path.parent, f"the array of probabilities {path.name}", "free some space")
        with files.staging(path) as folder:
            raw, packed = folder / "probabilities.npy", folder / "probabilities.npz"
            array = np.lib.format.open_memmap(raw, mode="w+", dtype=np.float32, shape=shape)
            yield array
            array.flush()
            with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
                archive.write(raw, raw.name)
            with zipfile.ZipFile(packed) as archive:
                if archive.testzip() is not None:
                    raise ResourceError(f"can't write {path}: it reads otherwise than it was written")
            files.publish(packed, path, check=files.require_replaceable)
    except OSError as error:
        raise ResourceError(f"can't write {path}: {error.strerror or error}") from error
