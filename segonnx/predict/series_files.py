"""Predicts a DICOM series: its NIfTI file goes through everything else, and the label map becomes DICOM again."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from segonnx.core import files as core_files
from segonnx.core import subprocesses
from segonnx.core.subprocesses import Progress
from segonnx.dicom import files as dicom_files
from segonnx.dicom import libraries, nifti, outputs, pixels, rtstruct, seg, series
from segonnx.dicom.outputs import Algorithm
from segonnx.dicom.segments import PRIVATE, Segment
from segonnx.dicom.series import Series
from segonnx.errors import InputError
from segonnx.predict import files, images, segments
from segonnx.predict.config import InferenceConfig
from segonnx.predict.files import FileOptions, Predicted
from segonnx.predict.interpolation import AnyArray
from segonnx.predict.predictor import Artifact
from segonnx.predict.preprocessing import Times

FORMATS = {"nifti": ".nii.gz", "dicom-seg": ".seg.dcm", "dicom-rtstruct": ".rtstruct.dcm"}
"""What is written of a series, and how the files' names end where there are several."""
READERS = ("SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient", "TotalSegmentatorIO")
"""The readers of volumes in NIfTI files."""
NIFTI = "nifti"
_IMAGE, _LABELS = "series.nii", "labels.nii.gz"
_ENDING = ".dcm"


def predict(
    artifact: Artifact,
    source: Path,
    target: Path,
    options: FileOptions,
    *,
    previous: Artifact | None = None,
    progress: Progress = subprocesses.silent,
) -> Iterator[Predicted]:
    """Predict a DICOM series, or what ``files.predict`` takes.

    Args:
        artifact: The artifact to predict with.
        source: What holds the series: a folder, a zip file, or a file of many slices. Or see ``files.predict``.
        target: The file of the label map. Where several are written, they have its name with endings of their own.
        options: How the files are predicted.
        previous: See ``files.predict``.
        progress: A progress callback. It gets the name of each step.

    Yields:
        Each case, once all its files are written.

    Raises:
        InputError: There is no such series, it makes no volume, or see ``files.predict``.
        ResourceError: The disk is too small, or can't be written.
    """
    if not is_series(source, artifact.config, options):
        require_no_format(source, options)
        yield from files.predict(artifact, source, target, options, previous=previous, progress=progress)
        return
    libraries.require()
    _require_fit(artifact, options)
    targets = _targets(target, options)
    every = segments.of(artifact, options.looks.codes)
    with core_files.staging(target) as scratch:
        times = Times()
        with times.of("read"):
            (scratch / "files").mkdir()
            found = series.find(source, options.series, scratch / "files", progress)
            _require_apart(found, [*targets.values()])
            making = _Making(found, every, algorithm(artifact), options.seg_type)
            making.require([*targets])
            nifti.write(pixels.volume(found, progress), found.grid, scratch / _IMAGE)
        looks = replace(options.looks, window=options.looks.window or found.window)
        path = targets.get(NIFTI, scratch / _LABELS)
        try:
            (done,) = files.predict(
                artifact, scratch / _IMAGE, path, replace(options, looks=looks), previous=previous, progress=progress
            )
        except InputError as error:
            raise type(error)(str(error).replace(str(scratch / _IMAGE), str(source))) from error
        notes: tuple[str, ...] = ()
        if making_of := [kind for kind in targets if kind != NIFTI]:
            with times.of("write"):
                labels = nifti.read_labels(path, found.grid)
                for kind in making_of:
                    progress(f"writing {targets[kind].name}")
                    outputs.write(making.make(kind, labels), targets[kind])
            notes = tuple(_notes(outputs.occurring(labels, every), labels))
        seconds = {step: times.seconds.get(step, 0.0) + done.seconds.get(step, 0.0) for step in times.seconds}
        first, *others = targets.values()
        yield replace(
            done,
            case=f"series {found.header.number}".strip(),
            path=first,
            shape=found.grid.shape,
            seconds=done.seconds | seconds,
            also=(*others, *done.also),
            notes=notes,
        )


@dataclass(frozen=True)
class _Making:
    """Makes DICOM of a label map.

    Attributes:
        series: The series that it is of.
        segments: What its labels are.
        algorithm: What made it.
        seg_type: The kind of DICOM SEG.
    """

    series: Series
    segments: list[Segment]
    algorithm: Algorithm
    seg_type: str

    def make(self, kind: str, labels: AnyArray) -> Any:
        """Make what is to be written; see ``dicom.seg.make`` and ``dicom.rtstruct.make``.

        Args:
            kind: A key of ``FORMATS`` but ``NIFTI``.
            labels: The label map, (slices, rows, columns).
        """
        if kind == "dicom-seg":
            return seg.make(labels, self.series, self.segments, self.algorithm, self.seg_type)
        return rtstruct.make(labels, self.series, self.segments, self.algorithm)

    def require(self, kinds: list[str]) -> None:
        """See to it, before the network runs, that all kinds can be made: of a label map of one voxel.

        Raises:
            InputError: One can't.
        """
        if kinds != [NIFTI]:
            labels = np.zeros(self.series.grid.shape, np.uint16)
            labels[0, 0, 0] = self.segments[0].labels[0]
            for kind in kinds:
                if kind != NIFTI:
                    self.make(kind, labels)


def algorithm(artifact: Artifact) -> Algorithm:
    """What made the label maps of an artifact."""
    manifest = artifact.manifest
    return Algorithm(manifest["name"], manifest["created"], manifest["digest"])


def require_no_format(source: Path, options: FileOptions) -> None:
    """Refuse formats that are made of a DICOM series, of a source that is none.

    Raises:
        InputError: One is wanted.
    """
    if options.formats != (NIFTI,):
        raise InputError(f"--format {options.formats[-1]} is made of a DICOM series, and {source} is none")


def is_series(source: Path, config: InferenceConfig, options: FileOptions) -> bool:
    """Whether a source is a DICOM series, and no image or folder of cases."""
    if options.series is not None:
        return True
    if source.is_dir():
        named = (file.name for file in source.iterdir())
        if any(re.fullmatch(r".+_[0-9]{4}", images.stem(name, config.file_ending)) and "." in name for name in named):
            return False
    elif source.name.lower().endswith((config.file_ending, *images.ENDINGS)):
        return False
    return not config.natural and dicom_files.is_source(source)


def _require_fit(artifact: Artifact, options: FileOptions) -> None:
    """Refuse a series where the network or what is asked for doesn't go with one.

    Raises:
        InputError: It doesn't.
    """
    config = artifact.config
    if config.reader not in READERS:
        raise InputError(f"the network's images are {config.file_ending}; a DICOM series is a volume")
    if len(config.channels) > 1:
        raise InputError(f"the network takes {len(config.channels)} channels; a DICOM series is one: give NIfTI files")
    wanted = {
        "--probabilities": options.probabilities,
        "--evaluate": options.evaluate is not None,
        "--one-file-per-class": options.one_file_per_class,
    }
    given = next((option for option, there in wanted.items() if there), None)
    if given is not None and NIFTI not in options.formats:
        raise InputError(f"{given} goes with --format {NIFTI}")
    if options.one_file_per_class and len(options.formats) > 1:
        raise InputError("--one-file-per-class writes masks alone; a DICOM SEG has a segment for each class anyway")


def _targets(target: Path, options: FileOptions) -> dict[str, Path]:
    """The file of each format, once nothing stands in the way of writing it.

    Raises:
        InputError: Something does.
        ResourceError: A folder or a device is there.
    """
    formats = [kind for kind in FORMATS if kind in options.formats]
    targets = {formats[0]: target} if len(formats) == 1 else {kind: _named(target, kind) for kind in formats}
    for kind, path in targets.items():
        if kind != NIFTI and path.suffix.lower() != _ENDING:
            raise InputError(f"{path} would hold DICOM: call it {_named(target, kind).name}, or the like")
        if options.one_file_per_class:
            continue  # a folder that may be there
        if path.is_dir():
            raise InputError(f"{path} is a folder; the label map of a series goes into a file")
        if os.path.lexists(path) and not options.overwrite:
            raise InputError(f"{path} exists: --overwrite replaces it")
        core_files.require_replaceable(path)
    return targets


def _named(target: Path, kind: str) -> Path:
    """The file of a format, where a name stands for several."""
    if kind == NIFTI and target.name.lower().endswith(images.ENDINGS):
        return target
    stem = target.name
    for ending in (*FORMATS.values(), _ENDING):
        stem = stem.removesuffix(ending)
    return target.with_name(f"{images.stem(stem) if stem.lower().endswith(images.ENDINGS) else stem}{FORMATS[kind]}")


def _require_apart(found: Series, made: list[Path]) -> None:
    """See to it that no slice is overwritten.

    Raises:
        InputError: One would be.
    """
    read = [one.header.found.path for one in found.slices]
    for path in made:
        if path.exists() and any(core_files.same_file(path, one) for one in read):
            raise InputError(f"{path} is a slice of the series, which is read: choose another place")


def _notes(there: list[Segment], labels: AnyArray) -> Iterator[str]:
    """What a user should know of the DICOM files."""
    if not labels.any():
        yield f"no label occurs: {there[0].name} stands there, empty"
    if uncoded := [one.name for one in there if not one.coded]:
        have = "1 label has a private code" if len(uncoded) == 1 else f"{len(uncoded)} labels have private codes"
        yield f"{have} ({PRIVATE}), which nobody else knows: {', '.join(uncoded)}; --codes gives others"
