"""The images that a network is calibrated and judged on: what ``segonnx predict`` takes, or the network's inputs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segonnx.artifacts import manifest
from segonnx.artifacts.manifest import Manifest
from segonnx.core.ort_session import SessionSettings, open_session
from segonnx.core.subprocesses import Progress
from segonnx.core.tolerances import labels_of
from segonnx.errors import InputError
from segonnx.predict import config, images, pixels, preprocessing, sliding_window
from segonnx.predict.evaluation import Evaluated
from segonnx.predict.predictor import Artifact
from segonnx.predict.preprocessing import Times
from segonnx.predict.resampling import AnyArray

ARRAY = ".npy"
"""The ending of files that hold an input of the network, prepared."""
LEAST, FEW = 2, 8
"""One image to calibrate on and one to judge by must be there; fewer than ``FEW`` are warned of."""
EVERY = 4
"""One image in so many is held out, where nobody says which."""
WINDOWS = 8
"""The most windows of an image that calibration sees."""
ALIKE = 0.2
"""Neighbouring voxels of an image are alike; of noise their correlation is near 0."""


@dataclass(frozen=True)
class Case:
    """An image.

    Attributes:
        name: of the case.
        files: of its channels; one with the ending ``ARRAY`` is an input of the network.
    """

    name: str
    files: tuple[Path, ...]

    @property
    def prepared(self) -> bool:
        """Whether the file holds an input of the network."""
        return self.files[0].suffix == ARRAY


def find(folder: Path, content: Manifest, source: Path) -> list[Case]:
    """The cases of a file or a folder.

    Args:
        folder: the artifact.
        content: its manifest.
        source: what ``segonnx predict`` takes; or a file with the ending ``ARRAY``, or a folder of such.

    Raises:
        InputError: there are none, or the artifact doesn't say how images are prepared.
    """
    arrays = [source] if source.suffix == ARRAY else sorted(source.glob(f"*{ARRAY}")) if source.is_dir() else []
    if arrays:
        return [Case(path.stem, (path,)) for path in arrays]
    how = config.read(content, folder)
    if how.previous_labels:
        raise InputError(f"{folder} is the second stage of a cascade, which needs label maps of the first")
    images.require(how.reader)
    found = images.cases(source, len(how.channels), how.file_ending, natural=how.natural)
    return [Case(name, tuple(files)) for name, files in found.items()]


def split(found: Sequence[Case], source: Path) -> tuple[list[Case], list[Case]]:
    """The cases to calibrate on, and those that are held out.

    Raises:
        InputError: there are too few.
    """
    if len(found) < LEAST:
        raise InputError(
            f"{source} holds {len(found)} image{'s' if len(found) != 1 else ''}: one to calibrate on and another one "
            "to judge by are needed (--held-out says which are the latter)"
        )
    held = {len(found) - 1 - place for place in range(0, len(found), EVERY)}
    return [one for i, one in enumerate(found) if i not in held], [found[i] for i in sorted(held)]


def windows(folder: Path, content: Manifest, case: Case) -> list[AnyArray]:
    """What the network sees of a case, at most ``WINDOWS`` windows, evenly over the image.

    Raises:
        InputError: the image can't be read, or doesn't fit the network.
    """
    if case.prepared:
        return [_read(content, case.files[0])]
    how = config.read(content, folder)
    image = images.read(list(case.files), how.reader)
    prepared = preprocessing.prepare(image.array, image.spacing, how, None, Times()).array
    sizes = (1, *how.window)[-3:]
    short = [max(0, need - size) for need, size in zip(sizes, prepared.shape[1:], strict=True)]
    padded = np.pad(prepared, [(0, 0), *((count // 2, count - count // 2) for count in short)])
    places = [sliding_window.starts(size, need, how.step) for size, need in zip(padded.shape[1:], sizes, strict=True)]
    corners = list(itertools.product(*places))
    chosen = {round(place) for place in np.linspace(0, len(corners) - 1, min(WINDOWS, len(corners)))}
    found = []
    for z, y, x in (corners[place] for place in sorted(chosen)):
        window = padded[:, z : z + sizes[0], y : y + sizes[1], x : x + sizes[2]]
        found.append(np.ascontiguousarray(pixels.given(window.reshape(1, len(padded), *how.window), how)))
    return found


def is_noise(window: AnyArray) -> bool:
    """Whether neighbouring voxels of a window have little to do with each other."""
    one, other = window[..., :-1].astype(np.float64).ravel(), window[..., 1:].astype(np.float64).ravel()
    if not one.std() or not other.std():
        return False
    return abs(float(np.corrcoef(one, other)[0, 1])) < ALIKE


def evaluated(content: Manifest, *, prepared: bool) -> Evaluated:
    """What is compared of label maps of an artifact's network.

    Raises:
        InputError: classes overlap, and images are prepared by the caller: then they have no one label map.
    """
    if not prepared:
        return Evaluated.of(content)
    output = content["outputs"][0]
    if manifest.gives_labels(content):
        return Evaluated({str(value): (value,) for value in range(1, output["classes"])})
    classes = output["shape"][1]
    if classes > 1 and manifest.given_rule(content).above is not None:
        raise InputError("the network's classes overlap, and inputs of it have no label map")
    return Evaluated({str(value): (value,) for value in range(1, max(2, classes))})


def label_maps(
    folder: Path, content: Manifest, cases: Sequence[Case], out: Path, threads: int, progress: Progress
) -> None:
    """Write the label map of each case as ``i.npy``. Runs in a process of its own.

    Args:
        folder: holds the graph.
        content: the manifest of the artifact that it is, or will be.
        cases: the images.
        out: the folder of the files.
        threads: of ONNX Runtime.
        progress: progress callback.
    """
    out.mkdir(exist_ok=True)
    if cases[0].prepared:
        session = open_session(folder / manifest.cpu_model(content), SessionSettings(threads=threads))
    else:
        artifact = Artifact.verified(folder, content, threads)
    for i, case in enumerate(cases):
        progress(f"predicting {case.name}")
        if case.prepared:
            given = session.run(None, {content["inputs"][0]["name"]: _read(content, case.files[0])})[0]
            labels = given if manifest.gives_labels(content) else labels_of(given, manifest.given_rule(content))
        else:
            image = images.read(list(case.files), artifact.config.reader)
            labels = artifact.predict(image.array, image.spacing)
        np.save(out / f"{i}.npy", labels)


def _read(content: Manifest, path: Path) -> AnyArray:
    """An input of the network from its file.

    Raises:
        InputError: it holds none.
    """
    described = content["inputs"][0]
    try:
        given = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} isn't a .npy file of numbers: {error}") from error
    fits = isinstance(given, np.ndarray) and given.dtype == described["dtype"] and given.ndim == len(described["shape"])
    if not fits or any(
        isinstance(wanted, int) and wanted != size for wanted, size in zip(described["shape"], given.shape, strict=True)
    ):
        found = f"{given.dtype} {given.shape}" if isinstance(given, np.ndarray) else "several arrays"
        raise InputError(f"{path} holds {found}; the network takes {described['dtype']} {described['shape']}")
    if not np.isfinite(given).all():
        raise InputError(f"{path} holds NaN or infinite values")
    result: AnyArray = np.ascontiguousarray(given)
    return result
