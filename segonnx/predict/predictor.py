"""``segonnx.Artifact``: an artifact that predicts, for services and for the command line."""

from __future__ import annotations

import contextlib
import math
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from segonnx.artifacts import compounds, manifest
from segonnx.artifacts import tasks as task_documents
from segonnx.artifacts.manifest import Manifest
from segonnx.artifacts.verify import verify
from segonnx.core import arithmetic, hardware, subprocesses
from segonnx.core.files import require_space
from segonnx.core.ort_session import SessionSettings, load_seconds, open_session, run_seconds
from segonnx.errors import InputError, ResourceError, VerifyError, first_line
from segonnx.predict import config, heads, memory, pipeline, pixels, postprocessing, preprocessing, tasks
from segonnx.predict.config import InferenceConfig
from segonnx.predict.heads import Head
from segonnx.predict.images import Image
from segonnx.predict.interpolation import AnyArray
from segonnx.predict.pipeline import PredictOptions
from segonnx.predict.preprocessing import Times
from segonnx.predict.readers.nifti import LabelledGeometry
from segonnx.predict.sliding_window import Forward, WindowProgress
from segonnx.predict.tasks import Choice, Task
from segonnx.predict.workers import Workers

if TYPE_CHECKING:
    import os


SMALL_WORK = 3e8
"""Windows of fewer multiply-adds are run one on each thread: a graph of small operators gains little by two."""


@dataclass(frozen=True)
class _Loading:
    """How the networks of an artifact are loaded.

    Attributes:
        workers: As many threads as ONNX Runtime has, for what isn't the network's.
        concurrent: As many windows may be in a network at the same time; of small ones so many for each thread.
        slots: A network of large windows takes one of them for each.
        timeout: The most seconds that loading or a window may take; None lets their size decide.
    """

    workers: Workers
    concurrent: int
    slots: threading.Semaphore
    timeout: float | None


class _Network:
    """A network that is loaded: an artifact's, or that of an ensemble's member.

    Args:
        folder: The folder of the artifact or of the member. It was verified.
        described: The content of its manifest.
        load: How it is loaded.

    Attributes:
        config: The inference config of the manifest.
        channels: The numbers that it gives for a voxel.
        head: What makes logits of what ``forward`` gives. None if that is logits.

    Raises:
        VerifyError: The network doesn't load.
        ResourceError: It doesn't for want of memory.
        InputError: The manifest doesn't say how to predict.
    """

    head: Head | None = None

    def __init__(self, folder: Path, described: Manifest, load: _Loading) -> None:
        self.config = config.read(described, folder)
        self._folder, self._slots, self._lanes = folder, load.slots, 1
        self._input, self._output = described["inputs"][0]["name"], described["outputs"][0]["name"]
        graph = folder / manifest.fastest_model(described)
        self._window_s = run_seconds(graph, math.prod(self.config.window), load.timeout)
        # Windows that are little work are run one on each thread, and not one on all.
        work = described["macs"] * math.prod(self.config.window) / math.prod(manifest.checked_shape(described)[2:])
        numbers = memory.FLOAT * len(self.config.label_values) * math.prod(self.config.window)
        if work < SMALL_WORK and numbers <= memory.SIDE_BY_SIDE:
            self._lanes = load.workers.threads
            self._slots = threading.Semaphore(load.concurrent * self._lanes)
        settings = SessionSettings(
            threads=load.workers.threads // self._lanes,
            spinning="while-running",
            denormals_as_zero=True,
            memory_pattern=False,
        )
        with (
            self._errors("doesn't load"),
            subprocesses.limited(load_seconds(graph, load.timeout), "loading the model"),
        ):
            model: Path | bytes = graph
            if (split := heads.split(graph)) is not None:
                model, self._output, self.head = split.model, split.output, split.head
                settings = replace(settings, weights=folder)
            self._session = open_session(model, settings)
        self.channels = len(self.config.label_values) if self.head is None else self.head.features
        self._gives = (1, self.channels, *self.config.window)

    def beside(self) -> list[Forward]:
        """Forward passes that may run at the same time as another one of the same caller."""
        return [self.forward() for _ in range(self._lanes - 1)]

    def forward(self) -> Forward:
        """A forward pass of a caller's own: what it gives stands in one array, which its next call overwrites."""
        given = np.empty(self._gives, np.float32)

        def forward(x: AnyArray) -> AnyArray:
            x = np.ascontiguousarray(pixels.given(x, self.config))
            with self._slots, self._errors("doesn't run"), subprocesses.limited(self._window_s, "a window"):
                binding = self._session.io_binding()
                binding.bind_cpu_input(self._input, x)
                binding.bind_output(self._output, "cpu", 0, np.float32, self._gives, given.ctypes.data)
                try:
                    with arithmetic.denormals_as_zero():
                        self._session.run_with_iobinding(binding)
                except Exception:
                    self._require_fits(x)
                    raise
            return given

        return forward

    def _require_fits(self, x: AnyArray) -> None:
        """See to it that what the network gives for a window fits.

        Raises:
            VerifyError: It doesn't.
        """
        found = self._session.run([self._output], {self._input: x})[0]
        if found.shape != self._gives or found.dtype != np.float32:
            raise VerifyError(
                f"{self._folder} gives {found.dtype} {found.shape} for a window, where float32 {self._gives} fits"
            )

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """Raise ONNX Runtime's errors as ours."""
        try:
            yield
        except VerifyError:
            raise
        except Exception as error:
            if subprocesses.ran_out_of_memory(error):
                raise ResourceError(f"{self._folder} {what}: the memory ran out") from error
            raise VerifyError(f"{self._folder} {what}: {first_line(error)}") from error


@dataclass(frozen=True)
class _Member:
    """A network of an artifact, and its part in a prediction. An artifact that is no ensemble has one.

    Attributes:
        folder: The member's folder in the artifact.
        network: The network.
        averaged: The probabilities count in the mean.
        previous: The folder of the first stage whose label map it takes. None if it is no second stage of a cascade,
            or the caller gives the label map.
    """

    folder: str
    network: _Network
    averaged: bool
    previous: str | None


class Described(Protocol):
    """What is known of an artifact, whether its networks are loaded or not."""

    @property
    def described(self) -> Manifest:
        """See ``Artifact``."""

    @property
    def config(self) -> InferenceConfig:
        """See ``Artifact``."""

    @property
    def task(self) -> Task | None:
        """See ``Artifact``."""


class Artifact:
    """A verified artifact whose network is loaded. Make it once, and use it from any number of threads.

    The network runs in this process, without bounds on its memory and time: a graph is a program, so load artifacts
    of people whom you trust. ``segonnx predict`` runs it in a process of its own that has both.

    Args:
        path: The artifact's folder.
        threads: The number of ONNX Runtime's threads. None takes all cores.
        concurrent: The number of windows that may be in a network at the same time, over all calls of ``predict``.
            Each takes memory of its own.

    Attributes:
        manifest: The content of the artifact's manifest.
        described: The manifest that says how images are read and what the labels are: the artifact's own, or that of
            an ensemble's first member, which the others agree with.
        config: The inference config. That of an ensemble is its first member's in all that the members share; the
            mirror axes are those of all. That of a task says how images are read, and what the labels are.
        channels: The numbers that the network gives for a voxel: features where they are fewer than the outputs. Of an
            ensemble the most that a member gives, of a task the most outputs of one of its networks.
        several: Whether the probabilities of several networks are averaged.
        task: How the networks of a task make one label map. None if the artifact is no task.

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
        self._open(folder, verify(folder, replay=False, test_data=False).manifest, threads, concurrent, None)

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
        self.manifest = content
        self.described, self.task = described(folder, content)
        self._workers = Workers(threads or hardware.usable_cores())
        load = _Loading(self._workers, concurrent, threading.Semaphore(concurrent), timeout)
        self.config = config_of(folder, content)
        self.several = False
        if manifest.is_task(content):
            self._open_task(folder, content, load)
            return
        if not manifest.is_ensemble(content):
            self._members = [_Member("", _Network(folder, content, load), averaged=True, previous=None)]
        else:
            self._members = []
            contents = compounds.members(folder, content)
            for one in content["members"]:
                path = folder / one["folder"]
                network = _Network(path, contents[path], load)
                self._members.append(_Member(one["folder"], network, one["averaged"], one["previous"]))
        self.channels = max(member.network.channels for member in self._members)
        self.several = sum(member.averaged for member in self._members) > 1

    def _open_task(self, folder: Path, content: Manifest, load: _Loading) -> None:
        """Read how a task's networks go together. Each is loaded when it is run, so that memory holds one."""
        contents = compounds.members(folder, content)
        self.channels = max(len(own["labels"]) for own in contents.values())
        self._load = lambda name: _Network(folder / name, contents[folder / name], load)

    def memory(self, shape: Sequence[int], spacing: Sequence[float]) -> float:
        """Bytes that predicting an image takes, at most, beside the networks' own; infinity if they can't be counted.

        Args:
            shape: Of the image as read, (C, z, y, x).
            spacing: The image's spacing (z, y, x) in mm.
        """
        threads = self._workers.threads
        found = memory.needed(shape, spacing, self.config, channels=self.channels, threads=threads)
        return found if self.task is None else found + tasks.memory(self.task, shape[1:], spacing)

    def like(self, image: Image, roi_subset: Sequence[str] | None = None) -> Image:
        """The image that a label map is written like: that of a task has the names of its classes in its header.

        Args:
            image: The image as it was read.
            roi_subset: See ``predict``.
        """
        if self.task is None or not isinstance(image.geometry, LabelledGeometry):
            return image
        names = tuple(self.task.chosen(roi_subset).items())
        return replace(image, geometry=replace(image.geometry, names=names))

    def predict(  # noqa: PLR0913 (keyword-only arguments of the public face)
        self,
        image: AnyArray,
        spacing: Sequence[float],
        *,
        previous: AnyArray | None = None,
        probabilities: AnyArray | None = None,
        mirror: bool = False,
        step: float | None = None,
        postprocess: bool = True,
        roi_subset: Sequence[str] | None = None,
        remove_small_blobs: bool = False,
        progress: WindowProgress = lambda *_: None,
        times: Times | None = None,
    ) -> AnyArray:
        """Compute the label map of an image. Any number of threads may call this at the same time.

        Args:
            image: The image as read, not normalised: any finite numbers, (C, z, y, x), or (z, y, x) if the network
                takes one channel. The axes are in the order of SimpleITK's ``GetArrayFromImage``; those of a task's
                image run to the right, to the front and up.
            spacing: The image's spacing (z, y, x) in mm.
            previous: The label map of a cascade's first stage, integers (z, y, x). Only second stages take it.
            probabilities: An array (outputs, z, y, x) of float32, or a memory map. It is filled with the probability
                of each output: the softmax of labels, the sigmoid of regions; their mean over the members of an
                ensemble, which otherwise takes a temporary file of that size.
            mirror: Take the mean over mirrored windows, along the axes that the artifact allows (test-time
                augmentation). It is slower, and a little better.
            step: The step from window to window, as a fraction of a window, above 0 and at most 1. None takes the
                artifact's, which is 0.5 in nnU-Net.
            postprocess: Apply the postprocessing that the artifact carries, if any. It changes no probabilities.
            roi_subset: The classes that are wanted of a task that has a rough network, which finds where they are: the
                image is cut to that, and only networks that hold one of them run. None takes all.
            remove_small_blobs: Drop components up to 200 mm3 of each class of a task.
            progress: A progress callback. It gets the number of windows that are done, and the number of all windows.
            times: The seconds of each step are added to it.

        Returns:
            The label map (z, y, x), uint8, or uint16 if a label is above 255.

        Raises:
            InputError: The image doesn't fit the network.
            VerifyError: The network fails, or gives something else than the manifest says.
            ResourceError: The memory ran out, or the disk has no room for the probabilities of an ensemble.
        """
        image = np.asarray(image)
        if step is not None and not 0 < step <= 1:
            raise InputError(f"the step between windows must be above 0 and at most 1; found {step}")
        if previous is not None and manifest.is_ensemble(self.manifest):
            raise InputError("an ensemble takes no label map of a first stage: it holds that stage itself")
        image = image[None] if image.ndim == 3 else image
        options = PredictOptions(mirror, step, progress, times or Times(), workers=self._workers)
        if self.task is not None:
            if previous is not None or probabilities is not None or mirror:
                raise InputError("a task takes neither previous= nor probabilities= nor mirror=")
            preprocessing.check_image(image, spacing, self.config)
            choice = Choice(None if roi_subset is None else tuple(roi_subset), remove_small_blobs)
            return tasks.predict(self.task, image[0], spacing, self._load, options, choice)
        if roi_subset is not None or remove_small_blobs:
            raise InputError("roi_subset= and remove_small_blobs= are for tasks of TotalSegmentator")
        with contextlib.ExitStack() as stack:
            if self.several and probabilities is None:
                probabilities = stack.enter_context(_scratch((len(self.config.label_values), *image.shape[1:])))
            labels = self._members_labels(image, spacing, options, previous, probabilities)
            if self.several:
                assert probabilities is not None
                with options.times.of("decide"):
                    averaged = sum(member.averaged for member in self._members)
                    labels = pipeline.decide(probabilities, averaged, self.config)
        if postprocess and self.config.postprocessing:
            with options.times.of("postprocess"):
                labels = postprocessing.apply(labels, self.config.postprocessing)
        return labels

    def _members_labels(
        self,
        image: AnyArray,
        spacing: Sequence[float],
        options: PredictOptions,
        previous: AnyArray | None,
        probabilities: AnyArray | None,
    ) -> AnyArray:
        """Predict with each member, and add up the probabilities of those that are averaged.

        Returns:
            The label map of the last one that is averaged: the artifact's, if there is no other.
        """
        needed = {member.previous for member in self._members}
        first_stages: dict[str | None, AnyArray] = {}
        result, add = None, False
        for member in self._members:
            labels = pipeline.predict(
                image,
                spacing,
                member.network.config,
                member.network.forward(),
                replace(options, add=add, beside=member.network.beside()),
                previous=previous if member.previous is None else first_stages[member.previous],
                probabilities=probabilities if member.averaged else None,
                head=member.network.head,
            )
            if member.folder in needed:
                first_stages[member.folder] = labels
            if member.averaged:
                result, add = labels, True
        assert result is not None  # an artifact without one isn't intact
        return result


def described(folder: Path, content: Manifest) -> tuple[Manifest, Task | None]:
    """The manifest that says how an artifact's images are read and what its labels are, and what is known of a task.

    Args:
        folder: The artifact's folder, which was verified.
        content: The content of its manifest.
    """
    if manifest.is_task(content):
        task = tasks.read(task_documents.read(folder, content))
        return {**content, "labels": _task_labels(task)}, task
    if manifest.is_ensemble(content):
        return compounds.members(folder, content)[folder / content["members"][0]["folder"]], None
    return content, None


def config_of(folder: Path, content: Manifest) -> InferenceConfig:
    """The inference config of an artifact; of an ensemble as a whole, with the steps of its own postprocessing.

    Args:
        folder: The artifact's folder, which was verified.
        content: The content of its manifest.

    Raises:
        InputError: The manifest doesn't say how to predict.
    """
    if not manifest.is_compound(content):
        return config.read(content, folder)
    members = [config.read(described, path) for path, described in compounds.members(folder, content).items()]
    if manifest.is_task(content):
        return tasks.config(tasks.read(task_documents.read(folder, content)), members[-1])
    axes = sorted({axis for member in members for axis in member.mirror_axes})
    steps = config.postprocessing(content["inference"])
    return replace(members[0], previous_labels=(), mirror_axes=tuple(axes), postprocessing=steps)


def _task_labels(task: Task) -> list[dict[str, Any]]:
    """The labels of a task, as a network's manifest has them."""
    named = {0: "background", **task.labels}
    return [{"name": name, "value": value, "labels": [value]} for value, name in named.items()]


@contextlib.contextmanager
def _scratch(shape: tuple[int, ...]) -> Iterator[AnyArray]:
    """A float32 array in a temporary file, for as long as the block runs."""
    try:
        with tempfile.TemporaryDirectory(prefix="segonnx-", ignore_cleanup_errors=True) as folder:
            what = "the mean of an ensemble's probabilities"
            require_space(4 * math.prod(shape), Path(folder), what, "set TMPDIR to a larger disk's folder")
            yield np.lib.format.open_memmap(Path(folder) / "mean.npy", mode="w+", dtype=np.float32, shape=shape)
    except OSError as error:
        raise ResourceError(f"can't keep an ensemble's probabilities: {error.strerror or error}") from error
