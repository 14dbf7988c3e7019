"""Predicts one image in bounded memory: preprocesses it, runs the network on windows, and decides on the labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from segonnx.errors import InputError
from segonnx.predict import labelling, preprocessing, resampling, sliding_window
from segonnx.predict.config import InferenceConfig
from segonnx.predict.heads import Head
from segonnx.predict.interpolation import AnyArray, LinearInterpolation
from segonnx.predict.labelling import Rule, Target
from segonnx.predict.preprocessing import PreparedImage, Times
from segonnx.predict.resampling import Box
from segonnx.predict.sliding_window import Forward, WindowProgress, Windows
from segonnx.predict.workers import Workers

FLOAT32 = float(np.finfo(np.float32).max)
"""The largest number that float32 holds."""


@dataclass(frozen=True)
class PredictOptions:
    """How an image is predicted.

    Attributes:
        mirror: Take the mean over mirrored windows, along the axes that the config allows.
        step: The step from window to window, as a fraction of a window. None takes the config's.
        progress: The progress callback.
        times: The seconds of each step are added to it.
        add: Add the probabilities to those that their array holds.
        workers: The threads that share what isn't the network's.
        beside: More of the network's forward passes, which may run at the same time as the first.
    """

    mirror: bool = False
    step: float | None = None
    progress: WindowProgress = lambda *_: None
    times: Times = field(default_factory=Times)
    add: bool = False
    workers: Workers = field(default_factory=Workers)
    beside: Sequence[Forward] = ()


def predict(
    image: AnyArray,
    spacing: Sequence[float],
    config: InferenceConfig,
    forward: Forward,
    options: PredictOptions,
    *,
    previous: AnyArray | None = None,
    probabilities: AnyArray | None = None,
    head: Head | None = None,
) -> AnyArray:
    """Compute the label map of an image.

    Memory holds the image, its resampled form, what the network gives for as many slices as a window is deep, and that
    of a few slices at the image's own resolution. It never holds all logits.

    Args:
        image: The image as read, (C, z, y, x).
        spacing: The image's spacing (z, y, x) in mm.
        config: The artifact's inference config.
        forward: The network's forward pass.
        options: How the image is predicted.
        previous: The label map of a cascade's first stage, integers (z, y, x).
        probabilities: If given, the array is filled with the probability of each output, float32 (outputs, z, y, x);
            or they are added to what it holds, if the options say so.
        head: What makes logits of what the network gives. None if it gives logits.

    Returns:
        The label map (z, y, x), uint8, or uint16 if a label is above 255.

    Raises:
        InputError: The image doesn't fit the config.
    """
    if probabilities is not None and probabilities.shape != (len(config.label_values), *image.shape[1:]):
        raise InputError(f"probabilities= must be {(len(config.label_values), *image.shape[1:])}")
    times, workers, rule = options.times, options.workers, Rule(config, head)
    prepared = preprocessing.prepare(image, spacing, config, previous, times, workers, rule.channels)
    windows = Windows(
        channels=rule.channels,
        window=config.window,
        step=config.step if options.step is None else options.step,
        sigma=config.sigma,
        mirror_axes=config.mirror_axes if options.mirror else (),
        largest=FLOAT32 if head is None else head.largest,
    )
    slices = sliding_window.averaged(
        prepared.array, forward, windows, workers, options.progress, times.of, options.beside
    )
    labels = np.zeros(prepared.full_shape, labelling.label_type(config))
    cropped_probabilities = None
    if probabilities is not None:
        transposed = probabilities.transpose(0, *(axis + 1 for axis in config.transpose_forward))
        for outside in _around(prepared.box, prepared.full_shape):
            if not options.add:
                transposed[(slice(None), *outside)] = 0
            if not config.regions:
                transposed[0][outside] += 1  # voxels outside the crop are background
        cropped_probabilities = transposed[(slice(None), *prepared.box)]
    target = Target(labels[prepared.box], cropped_probabilities, options.add)
    labelling.fill(slices, _interpolations(prepared, config), rule, target, workers, times)
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
    labels = np.zeros(probabilities.shape[1:], labelling.label_type(config))
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


def _interpolations(prepared: PreparedImage, config: InferenceConfig) -> list[LinearInterpolation]:
    """How the logits are resampled to the cropped image along each axis."""
    how = config.logit_resampling
    axis = resampling.low_resolution_axis(how, prepared.network_spacing, prepared.spacing)
    return resampling.interpolations(how, prepared.array.shape[1:], prepared.cropped_shape, axis)
