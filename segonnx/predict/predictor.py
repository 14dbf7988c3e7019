"""``segonnx.Artifact``: an artifact that predicts, for services and for the command line."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from segonnx.artifacts.layout import MODEL
from segonnx.artifacts.manifest import Manifest
from segonnx.artifacts.verify import verify
from segonnx.core import hardware, subprocesses
from segonnx.core.ort_session import SessionSettings, load_seconds, open_session, run_seconds
from segonnx.errors import InputError, ResourceError, VerifyError, first_line
from segonnx.predict import config, pipeline
from segonnx.predict.pipeline import PredictOptions
from segonnx.predict.preprocessing import Times
from segonnx.predict.resampling import AnyArray
from segonnx.predict.sliding_window import WindowProgress

if TYPE_CHECKING:
    import os


class Artifact:
    """A verified artifact whose network is loaded. Make it once, and use it from any number of threads.

    The network runs in this process, without bounds on its memory and time: a graph is a program, so load artifacts
    of people whom you trust. ``segonnx predict`` runs it in a process of its own that has both.

    Args:
        path: The artifact's folder.
        threads: The number of ONNX Runtime's threads. None takes all cores.
        concurrent: The number of windows that may be in the network at the same time, over all calls of ``predict``.
            Each takes memory of its own.

    Attributes:
        manifest: The content of the artifact's manifest.
        config: The artifact's inference config.

    Raises:
        VerifyError: The artifact isn't intact, or doesn't load.
        InputError: The manifest doesn't say how to predict.
    """

    def __init__(self, path: str | os.PathLike[str], *, threads: int | None = None, concurrent: int = 1) -> None:
        folder = Path(path)
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder")
        if concurrent < 1:
            raise InputError(f"concurrent= takes a number above 0; found {concurrent}")
        self._open(folder, verify(folder, replay=False).manifest, threads, concurrent, None)

    @classmethod
    def verified(
        cls, folder: Path, content: Manifest, threads: int | None = None, timeout: float | None = None
    ) -> Artifact:
        """Load an artifact that somebody else has verified.

        Args:
            folder: The artifact's folder.
            content: The content of its manifest.
            threads: The number of ONNX Runtime's threads. None takes all cores.
            timeout: The most seconds that loading or a window may take, in a process that ``subprocesses`` started.
                None lets their size decide.

        Raises:
            VerifyError: The artifact doesn't load.
            ResourceError: It doesn't for want of memory.
            InputError: The manifest doesn't say how to predict.
        """
        artifact = cls.__new__(cls)
        artifact._open(folder, content, threads, 1, timeout)
        return artifact

    def _open(
        self, folder: Path, content: Manifest, threads: int | None, concurrent: int, timeout: float | None
    ) -> None:
        self.manifest, self._folder = content, folder
        self.config = config.read(content, folder)
        self._input, self._output = content["inputs"][0]["name"], content["outputs"][0]["name"]
        self._slots = threading.Semaphore(concurrent)
        self._gives = (1, len(self.config.label_values), *self.config.window)
        self._window_s = run_seconds(folder / MODEL, math.prod(self.config.window), timeout)
        settings = SessionSettings(threads=threads or hardware.usable_cores())
        with (
            self._errors("doesn't load"),
            subprocesses.limited(load_seconds(folder / MODEL, timeout), "loading the model"),
        ):
            self._session = open_session(folder / MODEL, settings)

    def predict(
        self,
        image: AnyArray,
        spacing: Sequence[float],
        *,
        previous: AnyArray | None = None,
        probabilities: AnyArray | None = None,
        mirror: bool = False,
        step: float | None = None,
        progress: WindowProgress = lambda *_: None,
        times: Times | None = None,
    ) -> AnyArray:
        """Compute the label map of an image. Any number of threads may call this at the same time.

        Args:
            image: The image as read, not normalised: any finite numbers, (C, z, y, x), or (z, y, x) if the network
                takes one channel. The axes are in the order of SimpleITK's ``GetArrayFromImage``.
            spacing: The image's spacing (z, y, x) in mm.
            previous: The label map of a cascade's first stage, integers (z, y, x). Only second stages take it.
            probabilities: An array (outputs, z, y, x) of float32, or a memory map. It is filled with the probability
                of each output: the softmax of labels, the sigmoid of regions.
            mirror: Take the mean over mirrored windows, along the axes that the artifact allows (test-time
                augmentation). It is slower, and a little better.
            step: The step from window to window, as a fraction of a window, above 0 and at most 1. None takes the
                artifact's, which is 0.5 in nnU-Net.
            progress: A progress callback. It gets the number of windows that are done, and the number of all windows.
            times: The seconds of each step are added to it.

        Returns:
            The label map (z, y, x), uint8, or uint16 if a label is above 255.

        Raises:
            InputError: The image doesn't fit the network.
            VerifyError: The network fails, or gives something else than the manifest says.
            ResourceError: The memory ran out.
        """
        image = np.asarray(image)
        if step is not None and not 0 < step <= 1:
            raise InputError(f"the step between windows must be above 0 and at most 1; found {step}")
        return pipeline.predict(
            image[None] if image.ndim == 3 else image,
            spacing,
            self.config,
            self._forward,
            PredictOptions(mirror, step, progress, times or Times()),
            previous=previous,
            probabilities=probabilities,
        )

    def _forward(self, x: AnyArray) -> AnyArray:
        with self._slots, self._errors("doesn't run"), subprocesses.limited(self._window_s, "a window"):
            logits: AnyArray = self._session.run([self._output], {self._input: x})[0]
        if logits.shape != self._gives or logits.dtype != np.float32:
            raise VerifyError(
                f"{self._folder} gives {logits.dtype} {logits.shape} for a window, where float32 {self._gives} fits"
            )
        if not np.isfinite(logits).all():
            raise VerifyError(f"{self._folder} gives logits that aren't finite numbers")
        return logits

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """Raise ONNX Runtime's errors as ours."""
        try:
            yield
        except Exception as error:
            if subprocesses.ran_out_of_memory(error):
                raise ResourceError(f"{self._folder} {what}: the memory ran out") from error
            raise VerifyError(f"{self._folder} {what}: {first_line(error)}") from error
