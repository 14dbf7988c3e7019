"""Predicts files in a process of its own, which has bounds on its memory and its time.

An artifact's graph is a stranger's program, and images are strangers' files. The process reads the images, runs the
network and writes the label maps, so that no large array travels; it stays for all cases.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from segonnx.artifacts.manifest import Manifest
from segonnx.artifacts.verify import verify
from segonnx.core import subprocesses
from segonnx.core.subprocesses import Bounds, Progress
from segonnx.errors import InputError
from segonnx.predict import series_files
from segonnx.predict.config import InferenceConfig
from segonnx.predict.files import FileOptions, Predicted
from segonnx.predict.predictor import Artifact, config_of


@dataclass(frozen=True)
class Verified:
    """An artifact that was checked, and isn't loaded.

    Attributes:
        folder: Its folder.
        manifest: The content of its manifest.
        config: What the manifest says of inference.
    """

    folder: Path
    manifest: Manifest
    config: InferenceConfig

    @property
    def mapped(self) -> int:
        """The bytes of its graphs, which are mapped."""
        return sum(path.stat().st_size for path in self.folder.rglob("*.onnx*"))


def check(folder: Path, bounds: Bounds, progress: Progress) -> Verified:
    """Verify an artifact, but for its replay.

    Raises:
        VerifyError: It isn't intact.
        InputError: Its manifest doesn't say how to predict.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    content = verify(folder, replay=False, test_data=False, bounds=bounds, progress=progress).manifest
    return Verified(folder, content, config_of(folder, content))


def predict(
    artifacts: tuple[Verified, Verified | None],
    source: Path,
    target: Path,
    options: FileOptions,
    *,
    threads: int | None,
    bounds: Bounds,
    progress: Progress,
) -> Iterator[Predicted]:
    """Predict the image in a file, a DICOM series, or the cases of a folder one after another.

    Args:
        artifacts: What to predict with: the artifact, and of a cascade the first stage.
        source: See ``series_files.predict``.
        target: See ``series_files.predict``.
        options: How the files are predicted.
        threads: The number of ONNX Runtime's threads. None takes all cores.
        bounds: Of the process. Its ``timeout`` holds for loading, a window, and each other step.
        progress: A progress callback. It gets the name of each step.

    Yields:
        Each case, once its label map is written.

    Raises:
        SegonnxError: See ``series_files.predict``.
        StageError: A step took too long.
        ResourceError: The memory ran out.
    """
    mapped = sum(artifact.mapped for artifact in artifacts if artifact is not None)
    bounds = replace(bounds, mapped=mapped)
    arguments = (artifacts, source, target, options, threads, bounds.timeout)
    yield from subprocesses.stream(_predict, *arguments, progress=progress, bounds=bounds)


def _predict(
    artifacts: tuple[Verified, Verified | None],
    source: Path,
    target: Path,
    options: FileOptions,
    threads: int | None,
    timeout: float | None,
    progress: Progress,
) -> Iterator[Predicted]:
    import onnxruntime  # noqa: F401 (its import isn't the graph's time)

    progress("loading the artifact")
    loaded, first = (
        None if one is None else Artifact.verified(one.folder, one.manifest, threads, timeout) for one in artifacts
    )
    assert loaded is not None
    yield from series_files.predict(loaded, source, target, options, previous=first, progress=progress)
