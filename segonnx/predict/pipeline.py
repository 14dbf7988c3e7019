"""The way of one image: prepare, run the network on windows, and decide, in bounded memory."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from segonnx.errors import InputError
from segonnx.predict import resampling, sliding_window
from segonnx.predict.config import PICTURE, Channel, Recipe
from segonnx.predict.resampling import Array, Line
from segonnx.predict.sliding_window import Network

EPSILON = 1e-8


@dataclass
class Times:
    """Seconds by step, added up."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def of(self, step: str) -> Iterator[None]:
        """Add what the block takes to a step."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[step] += time.perf_counter() - began


def predict(
    image: Array,
    spacing: Sequence[float],
    recipe: Recipe,
    network: Network,
    *,
    previous: Array | None = None,
    probabilities: Array | None = None,
    mirror: bool = False,
    step: float | None = None,
    progress: Callable[[int, int], None] = lambda *_: None,
    times: Times | None = None,
) -> Array:
    """The label map of an image.

    Memory: the image, and its resampled form while that is made in float64; logits of as many slices as a window is
    deep; and those of two slices at the image's own resolution. Never all logits.

    Args:
        image: (C, z, y, x), as read.
        spacing: (z, y, x) in mm.
        recipe: what the manifest says.
        network: runs a window.
        previous: the label map (z, y, x) of a cascade's first stage, on the image's grid.
        probabilities: gets those of each output, (outputs, z, y, x) float32, if it is given.
        mirror: take the mean over mirrored windows, along the axes that the recipe allows.
        step: between windows, in windows; None takes the recipe's.
        progress: told how many windows of how many are done.
        times: seconds by step are added to it.

    Returns:
        uint8, or uint16 where labels need it, (z, y, x).

    Raises:
        InputError: the image doesn't fit the recipe.
    """
    times = times or Times()
    with times.of("prepare"):
        _check(image, spacing, recipe)
        _check_previous(previous, image, recipe)
        if probabilities is not None and probabilities.shape != (len(recipe.values), *image.shape[1:]):
            raise InputError(f"probabilities= must be {(len(recipe.values), *image.shape[1:])}")
        image = image.astype(np.float32).transpose(0, *(axis + 1 for axis in recipe.forward))
        own = [float(spacing[axis]) for axis in recipe.forward]
        wanted = [*own[: 3 - len(recipe.spacing)], *recipe.spacing]
        mask, box = resampling.nonzero(image)
        if not recipe.crop:
            box = tuple(slice(0, size) for size in mask.shape)
        whole = mask.shape
        image = np.ascontiguousarray(image[(slice(None), *box)])
        mask = mask[box]
        if previous is not None or any(channel.use_mask for channel in recipe.channels):
            mask = resampling.filled(mask)
        for values, channel in zip(image, recipe.channels, strict=True):
            _normalise(values, mask, channel)
    with times.of("resample"):
        cropped = image.shape[1:]
        shape = resampling.resampled_shape(cropped, own, wanted) if recipe.image.resamples else cropped
        if min(shape) < 1:
            raise InputError(f"the image covers less than a voxel of {'x'.join(f'{size:g}' for size in wanted)} mm")
        axis = resampling.low_resolution_axis(recipe.image, own, wanted)
        image = resampling.resample(image, shape, recipe.image, axis)
        if previous is not None:
            image = np.concatenate([image, _one_hot(previous, box, mask, shape, own, wanted, recipe)])
    classes = len(recipe.values)
    logits = sliding_window.slices(
        image, network, classes, recipe.window, recipe.step if step is None else step, recipe.sigma,
        recipe.mirror_axes if mirror else (), progress,
    )  # fmt: skip
    labels = np.zeros(whole, np.uint8 if max(recipe.values) <= 255 else np.uint16)
    lines = _lines(recipe, shape, cropped, wanted, own)
    if probabilities is not None:
        probabilities[:] = 0
        if not recipe.regions:
            probabilities[0] = 1  # what was cropped away is background
        probabilities = probabilities.transpose(0, *(axis + 1 for axis in recipe.forward))[(slice(None), *box)]
    _decide(_timed(logits, times), lines, recipe, labels[box], probabilities, times)
    return labels.transpose(recipe.backward)


def _check(image: Array, spacing: Sequence[float], recipe: Recipe) -> None:
    if image.ndim != 4 or len(image) != len(recipe.channels):
        wanted = f"({len(recipe.channels)}, z, y, x)"
        raise InputError(f"the image is {image.shape}; the network takes {wanted}, a channel for each of its inputs")
    if min(image.shape) < 1:
        raise InputError(f"the image {image.shape} is empty")
    if len(spacing) != 3 or not all(0 < size < np.inf for size in spacing):
        raise InputError(f"the spacing is {tuple(spacing)}; it must be three positive numbers (z, y, x) in mm")
    if image.dtype.kind not in "iufb" or not np.isfinite(image).all():
        raise InputError("the image holds values that aren't finite numbers")


def _check_previous(previous: Array | None, image: Array, recipe: Recipe) -> None:
    if not recipe.previous:
        if previous is not None:
            raise InputError("the network is no second stage of a cascade: it takes no label map of a first one")
        return
    if previous is None:
        raise InputError("the network is the second stage of a cascade: it needs the label map of the first one")
    if previous.shape != image.shape[1:] or previous.dtype.kind not in "iu":
        raise InputError(
            f"the first stage's label map must be whole numbers {image.shape[1:]}, as the image; "
            f"found {previous.dtype} {previous.shape}"
        )


def _one_hot(
    previous: Array,
    box: resampling.Box,
    mask: Array,
    shape: Sequence[int],
    own: Sequence[float],
    wanted: Sequence[float],
    recipe: Recipe,
) -> Array:
    """A first stage's labels as channels (labels, z, y, x), on the network's grid."""
    labels = previous.transpose(recipe.forward)[box].astype(np.int16)
    labels[(labels == 0) & ~mask] = -1  # a label of its own: it may lose where all of the background would win
    axis = resampling.low_resolution_axis(recipe.labels, own, wanted)
    labels = resampling.resample_labels(labels, shape, recipe.labels, axis)
    return np.stack([(labels == value).astype(np.float32) for value in recipe.previous])


def _normalise(values: Array, mask: Array, channel: Channel) -> None:
    """Normalise one channel (z, y, x) in place."""
    kind = channel.normalization
    if kind == "CTNormalization":
        known = channel.intensities
        np.clip(values, known["percentile_00_5"], known["percentile_99_5"], out=values)
        values -= known["mean"]
        values /= max(known["std"], EPSILON)
    elif kind == "ZScoreNormalization":
        inside = values[mask] if channel.use_mask else values
        mean, deviation = inside.mean(), max(inside.std(), EPSILON)
        if channel.use_mask:
            values[mask] = (inside - mean) / deviation
        else:
            values -= mean
            values /= deviation
    elif kind == "RescaleTo01Normalization":
        values -= values.min()
        values /= max(values.max(), EPSILON)
    elif kind in ("RGBTo01Normalization", PICTURE):
        if values.min() < 0 or values.max() > 255:
            raise InputError(f"a channel of colours must lie in 0..255; found {values.min():g} to {values.max():g}")
        values /= 255
        if kind == PICTURE:
            values -= channel.intensities["mean"]
            values /= channel.intensities["std"]


def _lines(
    recipe: Recipe, old: Sequence[int], new: Sequence[int], current: Sequence[float], wanted: Sequence[float]
) -> list[Line]:
    """How each axis of the logits becomes the cropped image's."""
    axis = resampling.low_resolution_axis(recipe.logits, current, wanted)
    if recipe.logits.order != 1 or (axis is not None and recipe.logits.order_z not in (0, 1)):
        raise InputError(
            f"the manifest resamples logits with splines of order {recipe.logits.order} and {recipe.logits.order_z}; "
            "segonnx predict knows 1, and 0 or 1 for the axis of low resolution"
        )
    return [
        Line.make(before, after, nearest=number == axis and recipe.logits.order_z == 0)
        for number, (before, after) in enumerate(zip(old, new, strict=True))
    ]


def _timed(logits: Iterator[Array], times: Times) -> Iterator[Array]:
    while True:
        with times.of("network"):
            one = next(logits, None)
        if one is None:
            return
        yield one


def _decide(
    logits: Iterator[Array],
    lines: Sequence[Line],
    recipe: Recipe,
    labels: Array,
    probabilities: Array | None,
    times: Times,
) -> None:
    """Write the label map (z, y, x), and the probabilities where asked for, from the logits, slice by slice."""
    from scipy.special import expit, softmax

    deep, *flat = lines
    held: dict[int, Array] = {}
    upto = -1
    for z in range(len(labels)):
        low, high = int(deep.low[z]), int(deep.high[z])
        while upto < high:
            one = next(logits)
            upto += 1
            with times.of("resample back"):
                if upto >= low:
                    for axis, line in enumerate(flat, 1):
                        one = line.along(one, axis)
                    held[upto] = one
        held = {index: one for index, one in held.items() if index >= low}
        with times.of("resample back"):
            part = deep.part[z]
            mixed = held[low] if part == 0 else held[low] + part * (held[high] - held[low])
        with times.of("decide"):
            if recipe.regions:
                for value, one in zip(recipe.values, mixed, strict=True):
                    labels[z][one > 0] = value
            else:
                labels[z] = np.asarray(recipe.values)[mixed.argmax(axis=0)]
        if probabilities is not None:
            with times.of("probabilities"):
                probabilities[:, z] = expit(mixed) if recipe.regions else softmax(mixed, axis=0)
