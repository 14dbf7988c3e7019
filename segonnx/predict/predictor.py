"""An artifact that predicts: for services, and for the command line."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from segonnx.artifacts.layout import MODEL
from segonnx.artifacts.verify import verify
from segonnx.core import hardware
from segonnx.core.ort_session import SessionSettings, open_session
from segonnx.errors import InputError, VerifyError, first_line
from segonnx.predict import config, pipeline
from segonnx.predict.pipeline import Times
from segonnx.predict.resampling import Array

if TYPE_CHECKING:
    import os


class Artifact:
    """A verified artifact with its network loaded: made once, used by many threads.

    Args:
        path: the artifact's folder.
        threads: of ONNX Runtime; None takes all cores.
        concurrent: how many windows may be in the network at the same time, whatever calls they are of; each takes
            memory of its own.

    Raises:
        VerifyError: the artifact isn't whole, or doesn't load.
        InputError: its manifest doesn't say how to predict, or a library isn't installed.
    """

    def __init__(self, path: str | os.PathLike[str], *, threads: int | None = None, concurrent: int = 1) -> None:

        folder = Path(path)
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder")
        if concurrent < 1:
            raise InputError(f"concurrent= takes a number above 0; found {concurrent}")
        self.manifest = verify(folder, replay=False).manifest
        self.recipe = config.read(self.manifest, folder)
        try:
            self._session = open_session(folder / MODEL, SessionSettings(threads=threads or hardware.usable_cores()))
        except Exception as error:
            raise VerifyError(f"{folder} doesn't load: {first_line(error)}") from error
        self._input, self._output = self.manifest["inputs"][0]["name"], self.manifest["outputs"][0]["name"]
        self._places = threading.Semaphore(concurrent)

    def predict(
        self,
        image: Array,
        spacing: Sequence[float],
        *,
        previous: Array | None = None,
        probabilities: Array | None = None,
        mirror: bool = False,
        step: float | None = None,
        progress: Callable[[int, int], None] = lambda *_: None,
        times: Times | None = None,
    ) -> Array:
        """The label map of an image; any number of threads may call this at the same time.

        Args:
            image: numbers, (C, z, y, x), or (z, y, x) of a network with one channel, not normalised. z, y, x are the
                axes as SimpleITK's ``GetArrayFromImage`` gives them.
            spacing: of these axes, (z, y, x), in mm.
            previous: of a cascade's second stage: the label map of the first one, whole numbers (z, y, x).
            probabilities: an array (outputs, z, y, x) of float32, or a memory map, that gets the probability of each
                output: softmax of labels, sigmoid of regions.
            mirror: test-time mirroring along the axes that the artifact allows: slower, and a little better.
            step: between windows, in windows, above 0 and at most 1; None takes the artifact's, nnU-Net's 0.5.
            progress: called with how many windows of how many are done.
            times: seconds by step are added to it.

        Returns:
            The labels, uint8 or uint16, (z, y, x).

        Raises:
            InputError: the image doesn't fit the network.
        """
        image = np.asarray(image)
        if step is not None and not 0 < step <= 1:
            raise InputError(f"the step between windows must be above 0 and at most 1; found {step}")
        return pipeline.predict(
            image[None] if image.ndim == 3 else image, spacing, self.recipe, self._run,
            previous=previous, probabilities=probabilities, mirror=mirror, step=step, progress=progress, times=times,
        )  # fmt: skip

    def _run(self, x: Array) -> Array:
        with self._places:
            logits: Array = self._session.run([self._output], {self._input: x})[0]
        return logits
