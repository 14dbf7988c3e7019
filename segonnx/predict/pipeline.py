"""Predicts one image in bounded memory: preprocesses it, runs the network on windows, and decides on the labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from segonnx.errors import InputError
from segonnx.predict import preprocessing, resampling, sliding_window
from segonnx.predict.config import InferenceConfig
from segonnx.predict.interpolation import LinearInterpolation
from segonnx.predict.preprocessing import PreparedImage, Times
from segonnx.predict.resampling import AnyArray, Box
from segonnx.predict.sliding_window import Forward, WindowProgress


@dataclass(frozen=True)
class PredictOptions:
    """How an image is predicted.

    Attributes:
        mirror: Take the mean over mirrored windows, along the axes that the config allows.
        step: The step from window to window, as a fraction of a window. None takes the config's.
        progress: The progress callback.
        times: The seconds of each step are added to it.
        add: Add the probabilities to those that their array holds.
    """

    mirror: bool = False
    step: float | None = None
    progress: WindowProgress = lambda *_: None
    times: Times = field(default_factory=Times)
    add: bool = False


def predict(
    image: AnyArray,
    spacing: Sequence[float],
    config: InferenceConfig,
    forward: Forward,
    options: PredictOptions,
    *,
    previous: AnyArray | None = None,
    probabilities: AnyArray | None = None,
) -> AnyArray:
    """Compute the label map of an image.

    Memory holds the image, its resampled form (in float64 while that is made), the logits of as many slices as a
    window is deep, and the logits of two slices at the image's own resolution. It never holds all logits.

    Args:
        image: The image as read, (C, z, y, x).
        spacing: The image's spacing (z, y, x) in mm.
        config: The artifact's inference config.
        forward: The network's forward pass.
        options: How the image is predicted.
        previous: The label map of a cascade's first stage, integers (z, y, x).
        probabilities: If given, the array is filled with the probability of each output, float32 (outputs, z, y, x);
            or they are added to what it holds, if the options say so.

    Returns:
        The label map (z, y, x), uint8, or uint16 if a label is above 255.

    Raises:
        InputError: The image doesn't fit the config.
    """
    if probabilities is not None and probabilities.shape != (len(config.label_values), *image.shape[1:]):
        raise InputError(f"probabilities= must be {(len(config.label_values), *image.shape[1:])}")
    times = options.times
    prepared = preprocessing.prepare(image, spacing, config, previous, times)
    interpolations = _interpolations(prepared, config)
    slices = sliding_window.slices(
        prepared.array,
        forward,
        len(config.label_values),
        config.window,
        config.step if options.step is None else options.step,
        config.sigma,
        config.mirror_axes if options.mirror else (),
        options.progress,
    )
    logits = _resampled_back(_timed(slices, times), interpolations, times)
    labels = np.zeros(prepared.full_shape, _label_type(config))
    cropped_probabilities = None
    if probabilities is not None:
        transposed = probabilities.transpose(0, *(axis + 1 for axis in config.transpose_forward))
        for outside in _around(prepared.box, prepared.full_shape):
            if not options.add:
                transposed[(slice(None), *outside)] = 0
            if not config.regions:
                transposed[0][outside] += 1  # voxels outside the crop are background
        cropped_probabilities = transposed[(slice(None), *prepared.box)]
    _decide(logits, config, labels[prepared.box], cropped_probabilities, options)
    return labels.transpose(config.transpose_backward)


def _around(box: Box, shape: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """The boxes that, with ``box``, make up an array of this shape. No two of them overlap."""
    for axis, inside in enumerate(box):
        for edge in (slice(0, inside.start), slice(inside.stop, shape[axis])):
            yield (*box[:axis], edge, *(slice(0, size) for size in shape[axis + 1 :]))


def decide(probabilities: AnyArray, members: int, config: InferenceConfig) -> AnyArray:
    """Decide on the labels by the mean of several networks' probabilities.

    Args:
        probabilities: The sum over the networks, float32 (outputs, z, y, x). It becomes the mean.
        members: The number of networks.
        config: The inference config of one of them.

    Returns:
        The label map (z, y, x), of the same type as that of ``predict``.
    """
    labels = np.zeros(probabilities.shape[1:], _label_type(config))
    values = np.asarray(config.label_values)
    for z in range(len(labels)):
        mean = probabilities[:, z] / np.float32(members)
        probabilities[:, z] = mean
        if config.regions:
            for value, region in zip(values, mean, strict=True):
                labels[z][region > 0.5] = value
        else:
            labels[z] = values[mean.argmax(axis=0)]
    return labels


def _label_type(config: InferenceConfig) -> type[np.unsignedinteger[Any]]:
    return np.uint8 if max(config.label_values) <= 255 else np.uint16


def _interpolations(prepared: PreparedImage, config: InferenceConfig) -> list[LinearInterpolation]:
    """How the logits are resampled to the cropped image along each axis."""
    how = config.logit_resampling
    axis = resampling.low_resolution_axis(how, prepared.network_spacing, prepared.spacing)
    return resampling.interpolations(how, prepared.array.shape[1:], prepared.cropped_shape, axis)


def _timed(slices: Iterator[AnyArray], times: Times) -> Iterator[AnyArray]:
    """The same slices; the time that each takes counts as the network's."""
    while True:
        with times.of("network"):
            logits = next(slices, None)
        if logits is None:
            return
        yield logits


def _resampled_back(
    slices: Iterator[AnyArray], interpolations: Sequence[LinearInterpolation], times: Times
) -> Iterator[AnyArray]:
    """Resample logits, slice by slice (classes, y, x), to the cropped image.

    No more slices are held than one new slice is made of: two, where logits are interpolated linearly.
    """
    along_depth, *within = interpolations
    held: dict[int, AnyArray] = {}
    read = 0
    for index, weight in zip(along_depth.index, along_depth.weight, strict=True):
        lower, upper = index.min(), index.max()
        while read <= upper:
            logits = next(slices)
            with times.of("resample back"):
                if read >= lower:
                    for axis, interpolation in enumerate(within, 1):
                        logits = interpolation.apply(logits, axis)
                    held[read] = logits
            read += 1
        held = {number: logits for number, logits in held.items() if number >= lower}
        with times.of("resample back"):
            mixed = held[index[0]] if weight[0] == 1 else held[index[0]] * weight[0]
            for number, share in zip(index[1:], weight[1:], strict=True):
                if share:
                    mixed = mixed + share * held[number]
        yield mixed


def _decide(
    slices: Iterator[AnyArray],
    config: InferenceConfig,
    labels: AnyArray,
    probabilities: AnyArray | None,
    options: PredictOptions,
) -> None:
    """Fill the label map (z, y, x), and the probabilities (outputs, z, y, x) if given, from slices of logits."""
    values = np.asarray(config.label_values)
    for z, logits in enumerate(slices):
        with options.times.of("decide"):
            if config.regions:
                for value, region in zip(values, logits, strict=True):
                    labels[z][region > config.level] = value
            else:
                labels[z] = values[logits.argmax(axis=0)]
        if probabilities is not None:
            with options.times.of("probabilities"):
                found = _probabilities(logits, config)
                probabilities[:, z] = probabilities[:, z] + found if options.add else found


def _probabilities(slices: AnyArray, config: InferenceConfig) -> AnyArray:
    """The probabilities of a slice (outputs, y, x) of what the network gives."""
    from scipy.special import expit, softmax

    if config.probable:
        return slices
    found: AnyArray = expit(slices) if config.regions else softmax(slices, axis=0)
    return found
