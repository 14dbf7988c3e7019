"""Predicts an image file, or every case of a folder."""

from __future__ import annotations

import contextlib
import math
import re
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from segonnx.core import files, subprocesses
from segonnx.core.files import require_space
from segonnx.core.subprocesses import Progress
from segonnx.errors import InputError, ResourceError
from segonnx.predict import evaluation, images, nnunet_files
from segonnx.predict.config import InferenceConfig
from segonnx.predict.evaluation import SUMMARY, Evaluated, Metrics
from segonnx.predict.looks import Looks, Wanted
from segonnx.predict.predictor import Artifact, Described
from segonnx.predict.preprocessing import Times
from segonnx.predict.resampling import AnyArray

MASK_ENDING = ".nii.gz"
"""The ending of the files of masks."""


@dataclass(frozen=True)
class FileOptions:
    """How files are predicted.

    Attributes:
        mirror: Take the mean over mirrored windows; see ``Artifact.predict``.
        step: The step from window to window, as a fraction of a window; see ``Artifact.predict``.
        probabilities: Write the probabilities too, as ``CASE.npz`` beside the label map. Its array ``probabilities``
            is float32 (outputs, z, y, x). For nnU-Net's commands there is ``CASE.pkl`` with it, and for a folder
            dataset.json and plans.json.
        overwrite: Replace files that exist.
        nan_as_zero: Take 0 for NaN and infinities, which are refused otherwise.
        postprocess: Apply the postprocessing that the artifact carries; see ``Artifact.predict``.
        evaluate: A folder of label maps that are right, or for one image the file of its label map. What was
            predicted is compared with them, and ``summary.json`` beside it tells how well it agrees.
        roi_subset: The classes of a task that are wanted; see ``Artifact.predict``.
        remove_small_blobs: Drop small components of each class of a task; see ``Artifact.predict``.
        one_file_per_class: Write a mask of each class of a task, ``CLASS.nii.gz`` in a folder, and no label map.
        looks: What is wanted beside a label map.
        series: The UID or the number of the DICOM series to take, where there are several.
        formats: What is written of a series, members of ``series_files.FORMATS``.
        seg_type: The kind of DICOM SEG, a member of ``dicom.seg.KINDS``.
    """

    mirror: bool = False
    step: float | None = None
    probabilities: bool = False
    overwrite: bool = False
    nan_as_zero: bool = False
    postprocess: bool = True
    evaluate: Path | None = None
    roi_subset: tuple[str, ...] | None = None
    remove_small_blobs: bool = False
    one_file_per_class: bool = False
    looks: Wanted = field(default_factory=Wanted)
    series: str | None = None
    formats: tuple[str, ...] = ("nifti",)
    seg_type: str = "binary"


@dataclass(frozen=True)
class Predicted:
    """A case that was predicted.

    Attributes:
        case: The case's name.
        path: The file of the label map, or the folder of the masks.
        shape: The shape of the image, (z, y, x).
        seconds: The seconds that each step took.
        metrics: How well the label map agrees with the reference, if there is one; see ``evaluation.compare``.
        also: What else was written of it.
        notes: What a user should know of it, a line each.
    """

    case: str
    path: Path
    shape: tuple[int, ...]
    seconds: dict[str, float]
    metrics: dict[str, Metrics] | None = None
    also: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """A case that is to be predicted.

    Attributes:
        case: The case's name.
        channels: The file of each channel.
        path: The file of the label map to make, or the folder of the masks.
        reference: The file of the label map that is right, if it is to be compared.
        masks: The names of the masks to make in the folder, without their ending; empty for a label map.
        several: It is one of a folder.
    """

    case: str
    channels: list[Path]
    path: Path
    reference: Path | None = None
    masks: tuple[str, ...] = ()
    several: bool = False

    def mask(self, name: str) -> Path:
        """The file of a mask."""
        return self.path / f"{name}{MASK_ENDING}"

    @property
    def probabilities(self) -> Path:
        """The file of the probabilities to make."""
        return self.path.with_name(f"{images.stem(self.path.name)}.npz")

    @property
    def properties(self) -> Path:
        """The file of the image's geometry to make, for nnU-Net's commands."""
        return self.probabilities.with_suffix(".pkl")

    def made(self, config: InferenceConfig, options: FileOptions) -> list[Path]:
        """The files to make.

        Raises:
            InputError: They can't be written by the network's reader.
        """
        looks = options.looks.paths(self.case, several=self.several)
        if self.masks:
            return [*(self.mask(name) for name in self.masks), *looks]
        made = images.outputs(self.path, config.reader, config.file_ending, highest=max(config.label_values))
        return [*made, *([self.probabilities, self.properties] if options.probabilities else []), *looks]


@dataclass(frozen=True)
class Case:
    """A case that was read.

    Attributes:
        job: What is to be done.
        image: Its image.
        reference: The label map (z, y, x) that is right, if it is to be compared.
        times: The seconds of each step.
    """

    job: Job
    image: images.Image
    reference: AnyArray | None
    times: Times


class Inputs:
    """The files that are read, of which none may be written over.

    Args:
        jobs: The cases.

    Attributes:
        bytes: The size of each file.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._known: dict[tuple[int, int], Path] = {}
        self.bytes: dict[Path, int] = {}
        for file in (file for job in jobs for file in job.channels):
            info = file.stat()
            self._known[info.st_dev, info.st_ino] = file
            self.bytes[file] = info.st_size

    def require_free(self, path: Path, *, overwrite: bool) -> None:
        """See to it that a file may be written.

        Raises:
            InputError: Something is there, and may not be replaced.
        """
        try:
            info = path.lstat()
        except OSError:
            return
        if not overwrite:
            raise InputError(f"{path} exists: --overwrite replaces it")
        files.require_replaceable(path)
        with contextlib.suppress(OSError):  # a link to nothing
            info = path.stat()
        if (read := self._known.get((info.st_dev, info.st_ino))) is not None:
            raise InputError(f"{path} is {read}, which is read: choose another place")


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
    require(artifact, options, previous=previous is not None, several=source.is_dir())
    found = jobs(artifact, source, target, options)
    inputs = Inputs(found)
    summary = [found[0].path.with_name(SUMMARY)] if options.evaluate is not None else []
    for job in found:
        for path in (*job.made(artifact.config, options), *summary):
            inputs.require_free(path, overwrite=options.overwrite)
    described = nnunet_files.descriptions(artifact.described) if options.probabilities and source.is_dir() else {}
    for name, content in described.items():
        require_same(target / name, content, options)
    compared = evaluation.Evaluation()
    for job in found:
        progress(f"{job.case}: reading")
        case = read(artifact, job, options)
        labels = compute(artifact, case, options, previous, progress)
        progress(f"{job.case}: writing")
        done = write(artifact, case, labels, options)
        for name, content in described.items():
            files.write(target / name, content)
        if done.metrics is not None:
            assert job.reference is not None
            compared.add(job.reference, job.path, done.metrics)
        yield done
    if compared.cases:
        files.write(found[0].path.with_name(SUMMARY), compared.text())


def require(artifact: Described, options: FileOptions, *, previous: bool, several: bool) -> None:
    """Refuse what an artifact can't do.

    Args:
        artifact: The artifact.
        options: How files are to be predicted.
        previous: Whether there is a first stage of a cascade.
        several: Whether a folder is to be predicted.

    Raises:
        InputError: The message says what it is.
    """
    images.require(artifact.config.reader)
    if bool(artifact.config.previous_labels) != previous:
        raise InputError(
            "the artifact is the second stage of a cascade: give the first one's with --previous"
            if artifact.config.previous_labels
            else "the artifact is no second stage of a cascade: it takes no --previous"
        )
    _require_for_task(artifact, options)
    Looks(artifact, options.looks, several=several)


def require_same(path: Path, content: bytes, options: FileOptions) -> None:
    """Refuse to replace a file of another network."""
    if path.exists() and not options.overwrite and path.read_bytes() != content:
        raise InputError(f"{path} exists, of another network: --overwrite replaces it")


def _require_for_task(artifact: Described, options: FileOptions) -> None:
    """Refuse what is for tasks of other artifacts, and what tasks don't give.

    Raises:
        InputError: The message says which option it is.
    """
    if artifact.task is None:
        for_tasks = {
            "--roi-subset": options.roi_subset is not None,
            "--remove-small-blobs": options.remove_small_blobs,
            "--one-file-per-class": options.one_file_per_class,
        }
        if given := [option for option, there in for_tasks.items() if there]:
            raise InputError(f"{given[0]} is for tasks of TotalSegmentator: segonnx export --totalsegmentator TASK")
        return
    artifact.task.chosen(options.roi_subset)
    if options.probabilities:
        raise InputError("a task gives no probabilities: its label map is made of several")
    if not options.postprocess:
        raise InputError("what a task does behind its networks belongs to it: leave --no-postprocess out")
    if options.mirror:
        raise InputError("a task is run without mirroring, as TotalSegmentator does: leave --tta out")
    if options.one_file_per_class and options.evaluate is not None:
        raise InputError("--evaluate compares label maps: leave --one-file-per-class out")


def jobs(
    artifact: Described, source: Path, target: Path, options: FileOptions, wrong: dict[str, str] | None = None
) -> list[Job]:
    """List the cases to predict.

    Args:
        artifact: The artifact to predict with.
        source: See ``predict``.
        target: See ``predict``.
        options: How the files are predicted.
        wrong: Gets the cases of a folder that can't be predicted, with what is wrong with each.

    Raises:
        InputError: There is no case, or ``target`` isn't what fits; or a case is wrong, and ``wrong`` is None.
    """
    config = artifact.config
    masks: tuple[str, ...] = ()
    if artifact.task is not None and options.one_file_per_class:
        masks = artifact.task.masks(options.roi_subset)
    cases = images.cases(source, len(config.channels), config.file_ending, natural=config.natural, wrong=wrong)
    if not source.is_dir():
        if target.is_dir() and not masks:
            raise InputError(f"{target} is a folder; the label map of one image goes into a file")
        if masks and target.exists() and not target.is_dir():
            raise InputError(f"{target} is a file; the masks of an image go into a folder")
        found = [Job(case, files, target, masks=masks) for case, files in cases.items()]
    else:
        _require_one_each(source, config.file_ending, cases, wrong)
        if target.exists() and not target.is_dir():
            raise InputError(f"{target} is a file; the label maps of a folder go into a folder")
        ending = "" if masks else config.file_ending
        found = [
            Job(case, files, target / f"{case}{ending}", masks=masks, several=True) for case, files in cases.items()
        ]
        for job in found:
            if job.path.parent != target:
                raise InputError(f"the case {job.case!r} with the ending {config.file_ending!r} is no name of a file")
    return found if options.evaluate is None else _with_references(found, options.evaluate, source, wrong)


def _with_references(found: list[Job], where: Path, source: Path, wrong: dict[str, str] | None) -> list[Job]:
    """The cases with the file that each is to be compared with; see ``jobs``."""
    result = []
    for job in found:
        try:
            result.append(replace(job, reference=_reference(job, where, source)))
        except InputError as error:
            if wrong is None:
                raise
            wrong[job.case] = str(error)
    return result


def _reference(job: Job, where: Path, source: Path) -> Path:
    """The file of a case's label map that is right: of the predicted one's name, or else of the case's."""
    found: Path | None = where
    if source.is_dir() or not where.is_file():
        if not where.is_dir():
            raise InputError(f"{where} is not a folder of label maps")
        cases = (images.stem(job.path.name), job.case)
        names = [job.path.name, *(f"{case}{ending}" for case in cases for ending in images.ENDINGS)]
        found = next((where / name for name in names if (where / name).is_file()), None)
    if found is None:
        raise InputError(f"{where} holds no label map {job.path.name}, which {job.case} is to be compared with")
    if job.path.exists() and found.samefile(job.path):
        raise InputError(f"{found} is to be compared with, and would be overwritten")
    return found


def _require_one_each(
    folder: Path, ending: str, cases: dict[str, list[Path]], wrong: dict[str, str] | None = None
) -> None:
    """See to it that no image of a folder is passed over: none is there twice, and none has another format.

    Args:
        folder: The folder.
        ending: The ending of the network's images.
        cases: The files of each case. If ``wrong`` is given, wrong ones are taken out.
        wrong: Gets the cases of such images, with what is wrong with each.

    Raises:
        InputError: An image would be passed over without a word.
    """
    stems = {images.stem(file.name): (case, file.name) for case, own in cases.items() for file in own}
    names = {name for _, name in stems.values()}
    for name in sorted(file.name for file in folder.iterdir() if file.is_file()):
        stem = images.stem(name)
        if name in names or name.startswith(".") or not name.lower().endswith(images.ENDINGS):
            continue
        if stem in stems:
            case, other = stems[stem]
            said = f"{folder} holds both {other} and {name}: an image must be there once"
        elif (match := re.fullmatch(r"(.+)_[0-9]{4}", stem)) is not None and match[1] not in (wrong or {}):
            case = match[1]
            said = f"{folder} holds {name} beside images of another kind ({ending}): take it away first"
        else:
            continue
        if wrong is None:
            raise InputError(said)
        wrong[case] = said
        cases.pop(case, None)


def read(artifact: Described, job: Job, options: FileOptions) -> Case:
    """Read the image of a case, and the label map that it is to be compared with.

    Raises:
        InputError: A file can't be read, or they don't fit each other or the file to make.
    """
    times = Times()
    with times.of("read"):
        image = images.read(job.channels, artifact.config.reader, nan_as_zero=options.nan_as_zero)
        reference = None if job.reference is None else _read_reference(job.reference, image, artifact.config)
    if image.array.shape[1] > 1 and job.path.name.lower().endswith(images.FLAT):
        raise InputError(f"{job.path} would hold one slice of the {image.array.shape[1]} of {job.channels[0].name}")
    return Case(job, image, reference, times)


def compute(
    artifact: Artifact, case: Case, options: FileOptions, previous: Artifact | None, progress: Progress
) -> AnyArray:
    """Compute the label map (z, y, x) of a case that was read, and write its probabilities if they are wanted."""
    job, image = case.job, case.image

    def window_progress(done: int, of: int) -> None:
        progress(f"{job.case}: window {done} of {of}")

    first_labels = None
    if previous is not None:
        first_labels = previous.predict(
            image.array,
            image.spacing,
            mirror=options.mirror,
            step=options.step,
            postprocess=False,  # the second stage was trained on what the first one gives
            progress=window_progress,
            times=case.times,
        )
    with contextlib.ExitStack() as stack:
        probabilities = None
        if options.probabilities or artifact.several:
            shape = (len(artifact.config.label_values), *image.array.shape[1:])
            on_disk = _probabilities_on_disk(job.probabilities, shape, keep=options.probabilities)
            probabilities = stack.enter_context(on_disk)
        return artifact.predict(
            image.array,
            image.spacing,
            previous=first_labels,
            probabilities=probabilities,
            mirror=options.mirror,
            step=options.step,
            postprocess=options.postprocess,
            roi_subset=options.roi_subset,
            remove_small_blobs=options.remove_small_blobs,
            progress=window_progress,
            times=case.times,
        )


def writes_of_image(job: Job, options: FileOptions) -> bool:
    """Whether what is written of a case is made of its image's voxels, too."""
    return bool(job.masks or options.looks.paths(job.case, several=job.several))


def write(artifact: Artifact, case: Case, labels: AnyArray, options: FileOptions) -> Predicted:
    """Write the label map of a case, or its masks, and compare it with the one that is right.

    Raises:
        ResourceError: A file can't be written.
    """
    job, image = case.job, case.image
    with case.times.of("write"):
        if options.probabilities:
            files.write(job.properties, nnunet_files.properties(image))
        if artifact.task is not None and job.masks:
            for name, mask in artifact.task.mask_arrays(labels, image.array[0], options.roi_subset):
                images.write(mask, image, job.mask(name))
        else:
            images.write(labels, artifact.like(image, options.roi_subset), job.path)
        Looks(artifact, options.looks, several=job.several).write(job.case, image, labels)
    metrics = None
    if case.reference is not None:
        with case.times.of("evaluate"):
            metrics = evaluation.compare(case.reference, labels, Evaluated.of(artifact.described))
    also = tuple(options.looks.paths(job.case, several=job.several))
    return Predicted(job.case, job.path, labels.shape, dict(case.times.seconds), metrics, also)


def _read_reference(path: Path, image: images.Image, config: InferenceConfig) -> AnyArray:
    """Read a label map that a predicted one is compared with."""
    found = images.read([path], config.reader).array
    require_like(found, image.array.shape[1:], path, "its image")
    reference: AnyArray = found[0]
    return reference


def require_like(found: AnyArray, shape: Sequence[int], path: Path, other: str) -> None:
    """See to it that a file holds one label map, of a shape.

    Args:
        found: What it holds, (C, z, y, x).
        shape: The shape (z, y, x).
        path: The file, for messages.
        other: What has the shape, for messages.

    Raises:
        InputError: It doesn't.
    """
    if len(found) != 1:
        raise InputError(f"{path} has {len(found)} channels; a label map has one")
    if found.shape != (1, *shape):
        raise InputError(f"{path} has the shape {found.shape[1:]}, {other} {tuple(shape)}")


@contextmanager
def _probabilities_on_disk(path: Path, shape: tuple[int, ...], *, keep: bool) -> Iterator[AnyArray]:
    """A float32 array on disk beside ``path``. If it's to be kept, it becomes that compressed file after the block."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        needed = (2 if keep else 1) * 4 * math.prod(shape)
        require_space(needed, path.parent, f"the array of probabilities {path.name}", "free some space")
        with files.staging(path) as folder:
            raw, packed = folder / "probabilities.npy", folder / "probabilities.npz"
            array = np.lib.format.open_memmap(raw, mode="w+", dtype=np.float32, shape=shape)
            yield array
            if not keep:
                return
            array.flush()
            with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
                archive.write(raw, raw.name)
            with zipfile.ZipFile(packed) as archive:
                if archive.testzip() is not None:
                    raise ResourceError(f"can't write {path}: it reads otherwise than it was written")
            files.publish(packed, path, check=files.require_replaceable)
    except OSError as error:
        raise ResourceError(f"can't write {path}: {error.strerror or error}") from error
