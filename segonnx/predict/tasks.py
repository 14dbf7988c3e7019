"""A task of TotalSegmentator: the inference around its networks, from an image to one label map.

Its networks see an image that was brought to the task's spacing once, mostly cut to what a rough network found; their
label maps are laid over each other, and brought back by nearest neighbour. Facts from TotalSegmentator 2.18.0
(nnunet.py, python_api.py, resampling.py, cropping.py, postprocessing.py); arrays are (z, y, x) here, with axes that
run to the right, to the front and up, as its canonical images have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from segonnx.artifacts.tasks import TaskDocument
from segonnx.errors import InputError
from segonnx.predict import pipeline, vertebrae
from segonnx.predict.config import InferenceConfig
from segonnx.predict.heads import Head
from segonnx.predict.interpolation import AnyArray
from segonnx.predict.pipeline import PredictOptions
from segonnx.predict.resampling import Box
from segonnx.predict.sliding_window import Forward

READER = "TotalSegmentatorIO"
SMALL_MM3 = 200.0
"""The size up to which components go, where a user asks for that."""
LARGE, LEAST_SLICES, MARGIN = 512 * 512 * 900, 200, 20
"""From so many voxels on, and more slices than these, an image goes through several networks in three parts along z,
which overlap by this margin."""
SKIN, SKIN_LEAST = (-200, 250), 5
"""The densities of skin in a CT, and the voxels that a component of it has at most to be dropped."""


class Network(Protocol):
    """A network that is loaded."""

    config: InferenceConfig
    head: Head | None

    def forward(self) -> Forward:
        """A forward pass of the caller's own."""

    def beside(self) -> list[Forward]:
        """Forward passes that may run at the same time as another one of the same caller."""


Load = Callable[[str], Network]
"""Loads the network in a folder of the artifact."""


@dataclass(frozen=True)
class Choice:
    """What a user asks of a task.

    Attributes:
        subset: The classes that are wanted. None wants all.
        remove_small: Drop components up to ``SMALL_MM3`` of each class.
    """

    subset: tuple[str, ...] | None = None
    remove_small: bool = False


@dataclass(frozen=True)
class Part:
    """A network of a stage.

    Attributes:
        folder: Its folder in the artifact.
        table: The stage's label by the network's. None takes them as they are.
    """

    folder: str
    table: AnyArray | None


@dataclass(frozen=True)
class Around:
    """Classes of an earlier stage.

    Attributes:
        stage: Its name.
        values: Their labels.
        mm: A margin around them (z, y, x), or one number.
    """

    stage: str
    values: tuple[int, ...]
    mm: tuple[float, ...]


@dataclass(frozen=True)
class Step:
    """A step of the postprocessing.

    Attributes:
        values: The labels, one after another.
        mm3: Components up to this size go. None keeps the largest component alone.
        mm: The labels are those of vertebrae, which are numbered and grown by this. None does nothing of that.
    """

    values: tuple[int, ...]
    mm3: float | None
    mm: float | None = None


@dataclass(frozen=True)
class Stage:
    """One label map of a task; see task.schema.json.

    Attributes:
        name: Its name.
        spacing: The spacing (z, y, x) in mm that the image is resampled to. None leaves that to the network.
        step: The step from window to window, as a fraction of a window.
        parts: The networks.
        labels: The classes' names by their labels.
        crop: What the image is cut to. None takes all of it.
        drop: Labels that become 0.
        steps: The postprocessing on the network's grid.
        outside: What lies further away becomes 0. None keeps all.
        within: Labels are grown by its mm, and what doesn't lie in its classes becomes 0. None does nothing.
    """

    name: str
    spacing: tuple[float, ...] | None
    step: float
    parts: tuple[Part, ...]
    labels: Mapping[int, str]
    crop: Around | None
    drop: tuple[int, ...]
    steps: tuple[Step, ...]
    outside: Around | None
    within: Around | None


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        name: Its name.
        stages: In the order in which they are run.
        subset: The stage that finds the classes that a user asks for, and the margin around them; its values are
            empty. None if there is no such choice.
        derived: The masks beside those of the classes; see task.schema.json.
        codes: By class, its codes and its colour; see task.schema.json.
    """

    name: str
    stages: tuple[Stage, ...]
    subset: Around | None
    derived: tuple[Mapping[str, Any], ...]
    codes: Mapping[str, Mapping[str, Any]]

    @property
    def labels(self) -> Mapping[int, str]:
        """The classes' names by their labels."""
        return self.stages[-1].labels

    def chosen(self, subset: Sequence[str] | None) -> dict[int, str]:
        """The classes that are wanted, by their labels.

        Raises:
            InputError: The task has no such classes, or no such choice.
        """
        if subset is None:
            return dict(self.labels)
        if self.subset is None:
            raise InputError(f"the task {self.name} has no rough network, which a choice of classes needs")
        if not subset:
            raise InputError("a choice of classes names one at least")
        rough = self._rough()
        for name in subset:
            if name not in self.labels.values():
                raise InputError(
                    f"the task {self.name} has no class {name!r}; it has {', '.join(self.labels.values())}"
                )
            if name not in rough:
                raise InputError(f"the rough network of the task {self.name} doesn't find {name!r}: leave it out")
        return {value: name for value, name in self.labels.items() if name in subset}

    def masks(self, subset: Sequence[str] | None) -> tuple[str, ...]:
        """The names of the masks that ``mask_arrays`` gives."""
        derived = self.derived if subset is None else ()
        return (*self.chosen(subset).values(), *(str(mask["name"]) for mask in derived))

    def mask_arrays(
        self, labels: AnyArray, image: AnyArray, subset: Sequence[str] | None
    ) -> Iterator[tuple[str, AnyArray]]:
        """The mask of each class, and those that are made of them.

        Args:
            labels: The task's label map (z, y, x).
            image: The image (z, y, x).
            subset: The classes that are wanted. None wants all, and what is made of them.

        Yields:
            The name of a mask, and the mask, uint8 (z, y, x).
        """
        for value, name in self.chosen(subset).items():
            yield name, (labels == value).astype(np.uint8)
        made: dict[str, AnyArray] = {}
        values = {name: value for value, name in self.labels.items()}
        for mask in self.derived if subset is None else ():
            parts = [made[name] if name in made else labels == values[name] for name in mask["of"]]
            whole = np.logical_or.reduce(parts)
            made[mask["name"]] = whole if mask["kind"] == "union" else _skin(image, whole)
            yield mask["name"], made[mask["name"]].astype(np.uint8)

    def around(self, subset: Sequence[str]) -> Around:
        """What finds these classes."""
        assert self.subset is not None
        rough = self._rough()
        return replace(self.subset, values=tuple(rough[name] for name in subset))

    def _rough(self) -> dict[str, int]:
        """The labels of the rough stage, by name."""
        assert self.subset is not None
        stage = next(stage for stage in self.stages if stage.name == self.subset.stage)
        return {name: value for value, name in stage.labels.items()}


def read(document: TaskDocument) -> Task:
    """The task that a task.json describes, which was checked."""
    labels = {
        stage["name"]: {label["name"]: label["value"] for label in stage["labels"]} for stage in document["stages"]
    }

    def around(given: Mapping[str, Any] | None) -> Around | None:
        if given is None:
            return None
        values = tuple(labels[given["stage"]][name] for name in given.get("labels", ()))
        return Around(given["stage"], values, tuple(reversed(given.get("margin") or [given.get("mm", 0.0)])))

    stages = tuple(
        Stage(
            name=stage["name"],
            spacing=None if stage["spacing"] is None else tuple(reversed(stage["spacing"])),
            step=stage["step"],
            parts=tuple(Part(one["folder"], _table(one["labels"])) for one in stage["networks"]),
            labels={label["value"]: label["name"] for label in stage["labels"]},
            crop=around(stage["crop"]),
            drop=tuple(stage["drop"]),
            steps=tuple(
                Step(tuple(labels[stage["name"]][name] for name in step["labels"]), step.get("mm3"), step.get("mm"))
                for step in stage["steps"]
            ),
            outside=around(stage["outside"]),
            within=around(stage["within"]),
        )
        for stage in document["stages"]
    )
    return Task(document["name"], stages, around(document["subset"]), tuple(document["derived"]), document["codes"])


def _table(given: Mapping[str, int] | None) -> AnyArray | None:
    if given is None:
        return None
    table = np.zeros(256, np.uint8)
    for own, value in given.items():
        if int(own) < len(table):
            table[int(own)] = value
    return table


def config(task: Task, first: InferenceConfig) -> InferenceConfig:
    """What a task's artifact says of images and labels, in the words of one network's config.

    Args:
        task: The task.
        first: The config of one of its networks.
    """
    spacing = task.stages[-1].spacing
    return replace(
        first,
        spacing=first.spacing if spacing is None else spacing,
        transpose_forward=(0, 1, 2),
        transpose_backward=(0, 1, 2),
        mirror_axes=(),
        regions=False,
        label_values=(0, *task.labels),
        file_ending=".nii.gz",
        reader=READER,
        postprocessing=(),
    )


def memory(task: Task, shape: Sequence[int], spacing: Sequence[float]) -> float:
    """Bytes that a task takes around its networks, at most.

    Args:
        task: The task.
        shape: The image's (z, y, x).
        spacing: The image's spacing (z, y, x) in mm.
    """
    voxels, finest = float(math.prod(shape)), 0.0
    for stage in task.stages:
        if stage.spacing is not None:
            finest = max(finest, voxels * math.prod(spacing) / math.prod(stage.spacing))
    # A label map of each stage, masks of one; the image in 64 and in 32 bits, and label maps at the finest spacing.
    return (len(task.stages) + 3 + 4) * voxels + (8 + 4 + 3) * finest


def predict(
    task: Task, image: AnyArray, spacing: Sequence[float], load: Load, options: PredictOptions, choice: Choice
) -> AnyArray:
    """Compute the label map of an image.

    Memory holds one network at a time.

    Args:
        task: The task.
        image: The image as read, (z, y, x), with axes that run to the right, to the front and up.
        spacing: The image's spacing (z, y, x) in mm.
        load: Loads a network.
        options: How each network's windows are run. Its step, where it has one, is that of the last stage.
        choice: What is asked of the task.

    Returns:
        The label map (z, y, x), uint8.

    Raises:
        InputError: The image doesn't fit, or the task has no such classes.
    """
    wanted = task.chosen(choice.subset)
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise InputError("the image holds values that aren't finite numbers")
    # A file's header keeps spacings in 32 bits, and TotalSegmentator computes with these.
    own = np.asarray(spacing, np.float32)
    found: dict[str, AnyArray] = {}
    for stage in task.stages:
        last = stage is task.stages[-1]
        if not last and task.subset is not None and stage.name == task.subset.stage and choice.subset is None:
            continue
        crop = stage.crop
        if last and choice.subset is not None:
            crop = task.around(choice.subset)
        step = options.step if last and options.step else stage.step
        run = _Run(stage, load, replace(options, step=step), frozenset(wanted if last else stage.labels))
        small = SMALL_MM3 if last and choice.remove_small else None
        found[stage.name] = run.predict(image, own, crop, found, small)
    final = task.stages[-1]
    labels = found[final.name]
    if final.within is not None:
        with options.times.of("postprocess"):
            labels = vertebrae.grow(labels, list(final.labels), own, final.within.mm[0])
            labels[~np.isin(found[final.within.stage], final.within.values)] = 0
    if choice.subset is not None:
        labels[~np.isin(labels, list(wanted))] = 0
    if final.outside is not None:
        with options.times.of("postprocess"):
            _drop_outside(labels, found[final.outside.stage], final.outside, own)
    return labels


@dataclass(frozen=True)
class _Run:
    """One stage, and how it is run.

    Attributes:
        stage: The stage.
        load: Loads a network.
        options: How each network's windows are run.
        wanted: The stage's labels that are wanted: networks that find none of them aren't run.
    """

    stage: Stage
    load: Load
    options: PredictOptions
    wanted: frozenset[int]

    def predict(
        self,
        image: AnyArray,
        spacing: AnyArray,
        crop: Around | None,
        found: Mapping[str, AnyArray],
        small: float | None,
    ) -> AnyArray:
        """The stage's label map (z, y, x) of the whole image."""
        times = self.options.times
        result = np.zeros(image.shape, np.uint8)
        box: Box = tuple(slice(0, size) for size in image.shape)
        if crop is not None:
            inside = np.isin(found[crop.stage], crop.values)
            if not inside.any():
                return result
            box = _box(inside, crop.mm, spacing)
            with times.of("prepare"):
                image = _truncated(image[box])
        shape = image.shape
        given = spacing
        if self.stage.spacing is not None and not np.array_equal(spacing, self.stage.spacing):
            with times.of("resample"):
                image = _resampled(image, spacing, self.stage.spacing)
            given = np.asarray(self.stage.spacing, np.float32)
        labels = self._labels(image, given)
        with times.of("postprocess"):
            labels[np.isin(labels, self.stage.drop)] = 0
            volume = float(np.prod(given))
            for step in self.stage.steps:
                if step.mm is not None and step.mm3 is not None:
                    labels = vertebrae.number(labels, step.values, given, step.mm3, step.mm)
                else:
                    _clean(labels, step, volume)
            if small is not None:
                _clean(labels, Step(tuple(self.stage.labels), small), volume)
        with times.of("resample back"):
            result[box] = nearest(labels, shape)
        return result

    def _labels(self, image: AnyArray, spacing: AnyArray) -> AnyArray:
        """The label map on the networks' grid."""
        stage = self.stage
        several = any(part.table is not None for part in stage.parts)
        ranges = list(_thirds(image.shape)) if several else [(slice(0, len(image)), slice(0, len(image)))]
        result = np.zeros(image.shape, np.uint8)
        for part in stage.parts:
            if part.table is not None and not np.isin(part.table, list(self.wanted)).any():
                continue
            with self.options.times.of("load"):
                network = self.load(part.folder)
            for read, kept in ranges:
                labels = pipeline.predict(
                    image[None, read],
                    [float(size) for size in spacing],
                    network.config,
                    network.forward(),
                    replace(self.options, beside=network.beside()),
                    head=network.head,
                )[kept.start - read.start : kept.stop - read.start]
                if part.table is not None:
                    labels = part.table[labels]
                np.copyto(result[kept], labels.astype(np.uint8, copy=False), where=labels != 0)
            del network
        return result


def _box(inside: AnyArray, mm: Sequence[float], spacing: AnyArray) -> Box:
    """The box of the voxels that are set, with a margin in whole voxels, within the array."""
    margin = (np.asarray(mm) / spacing.astype(np.float64)).astype(int)
    box = []
    for axis, room in enumerate(margin):
        there = np.flatnonzero(inside.any(axis=tuple(other for other in range(3) if other != axis)))
        box.append(slice(max(0, int(there[0] - room)), min(inside.shape[axis], int(there[-1] + 1 + room))))
    return tuple(box)


def _truncated(image: AnyArray) -> AnyArray:
    """The image in whole numbers, cut towards 0.

    Raises:
        InputError: A number is too large for 32 bits.
    """
    limits = np.iinfo(np.int32)
    if image.dtype.kind in "iub" and image.dtype.itemsize < 4:
        return image.astype(np.int32)
    if image.size and not (limits.min <= image.min() and image.max() <= limits.max):
        raise InputError("the image holds numbers that don't fit into 32 bits, which TotalSegmentator's images do")
    return image.astype(np.int32)


def _resampled(image: AnyArray, spacing: AnyArray, wanted: Sequence[float]) -> AnyArray:
    """The image (z, y, x) at another spacing, linearly between the centres of its outermost voxels, in whole numbers.

    Raises:
        InputError: Less than a voxel is left, or a number is too large for 32 bits.
    """
    from scipy import ndimage

    zoom = spacing[::-1].astype(np.float64) / np.asarray(wanted[::-1])
    shape = [round(size * factor) for size, factor in zip(image.shape[::-1], zoom, strict=True)]
    if min(shape) < 1:
        raise InputError(f"the image covers less than a voxel of {'x'.join(f'{size:g}' for size in wanted)} mm")
    # Axes in the order x, y, z: sums of 64 bits depend on the order, and what follows cuts them to whole numbers.
    made = ndimage.zoom(image.T, zoom, output=np.float64, order=1, mode="nearest")
    return _truncated(np.ascontiguousarray(made.T))


def nearest(labels: AnyArray, shape: Sequence[int]) -> AnyArray:
    """A label map on a grid of another shape whose outermost voxels are where its own are: the nearest voxel's label.

    What ``scipy.ndimage.zoom`` of order 0 gives, bit by bit.

    Args:
        labels: The label map (z, y, x).
        shape: The shape to give it.
    """
    for axis, (old, new) in enumerate(zip(labels.shape, shape, strict=True)):
        if old != new:
            factor = (old - 1) / (new - 1) if new > 1 else 1.0
            labels = labels.take(np.floor(np.arange(new) * factor + 0.5).astype(np.intp), axis=axis)
    return labels


def _thirds(shape: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """The slices that are read at once, and those of them that count."""
    slices = shape[0]
    if math.prod(shape) <= LARGE or slices <= LEAST_SLICES:
        yield slice(0, slices), slice(0, slices)
        return
    third = slices // 3
    yield slice(0, third + MARGIN), slice(0, third)
    yield slice(third + 1 - MARGIN, 2 * third + MARGIN), slice(third, 2 * third)
    yield slice(2 * third + 1 - MARGIN, slices), slice(2 * third, slices)


def _clean(labels: AnyArray, step: Step, volume: float) -> None:
    """Keep the largest component of each label, or drop the small ones. Voxels that share a face are connected.

    Args:
        labels: The label map; it is changed.
        step: The labels, and what goes.
        volume: The size of a voxel in mm3.
    """
    from scipy import ndimage

    boxes = ndimage.find_objects(labels)
    for value in step.values:
        box = boxes[value - 1] if value <= len(boxes) else None
        if box is None:
            continue
        inside = labels[box]
        components, _ = ndimage.label(inside == value)
        sizes = np.bincount(components.ravel())
        sizes[0] = 0
        largest = np.arange(len(sizes)) == sizes.argmax()
        kept = largest if step.mm3 is None else sizes > step.mm3 / volume
        inside[(components > 0) & ~kept[components]] = 0


def _drop_outside(labels: AnyArray, found: AnyArray, around: Around, spacing: AnyArray) -> None:
    """Drop what lies further from some classes than so many mm, counted in steps from face to face."""
    from scipy import ndimage

    steps = int(around.mm[0] / np.mean(spacing))
    near = ndimage.binary_dilation(np.isin(found, around.values), iterations=steps)
    labels[~near] = 0


def _skin(image: AnyArray, body: AnyArray) -> AnyArray:
    """The outermost layer of a body, where it has the density of skin."""
    from scipy import ndimage

    outer = ndimage.binary_dilation(body)
    layer = outer & ~ndimage.binary_erosion(outer, iterations=3)
    layer &= (image > SKIN[0]) & (image < SKIN[1])
    components, _ = ndimage.label(layer)
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    return np.asarray((sizes > SKIN_LEAST)[components])
