"""Preprocessing: brings an image to the axes, the intensities and the spacing that the network was trained on."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from segonnx.core import hardware
from segonnx.errors import InputError, ResourceError
from segonnx.predict import memory, pixels, resampling
from segonnx.predict.config import PICTURE, PIXELS, ChannelNormalization, InferenceConfig
from segonnx.predict.interpolation import AnyArray
from segonnx.predict.resampling import Box, Channel
from segonnx.predict.workers import Workers

EPSILON = 1e-8
"""The smallest standard deviation or range to divide by, as in nnU-Net."""
MIN_SPACING, MAX_SPACING = 1e-9, 1e9
"""The spacings of images in mm, from less than an atom to more than the moon's orbit."""


@dataclass
class Times:
    """The seconds that each step took, summed over its calls."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def of(self, step: str) -> Iterator[None]:
        """Add the time that the block takes to a step."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[step] += time.perf_counter() - began


@dataclass(frozen=True)
class PreparedImage:
    """An image as the network sees it. All axes are the network's.

    Attributes:
        array: The network's input, float32 (C, z, y, x).
        full_shape: The shape (z, y, x) of the image before the crop.
        box: The crop, in voxels of the image.
        spacing: The image's spacing in mm.
        network_spacing: The spacing of ``array`` in mm.
    """

    array: AnyArray
    full_shape: tuple[int, ...]
    box: Box
    spacing: tuple[float, ...]
    network_spacing: tuple[float, ...]

    @property
    def cropped_shape(self) -> tuple[int, ...]:
        """The shape (z, y, x) of the image after the crop."""
        return tuple(axis.stop - axis.start for axis in self.box)


def prepare(
    image: AnyArray,
    spacing: Sequence[float],
    config: InferenceConfig,
    previous: AnyArray | None,
    times: Times,
    workers: Workers | None = None,
    channels: int | None = None,
) -> PreparedImage:
    """Bring an image to the network's axes, intensities and spacing.

    Args:
        image: The image as read, (C, z, y, x).
        spacing: The image's spacing (z, y, x) in mm.
        config: The artifact's inference config.
        previous: The label map of a cascade's first stage, integers (z, y, x). None if the network is no second stage.
        times: The seconds of ``prepare`` and ``resample`` are added to it.
        workers: The threads that share the work. None takes the caller's own.
        channels: The numbers that the network gives for a voxel. None takes its outputs.

    Raises:
        InputError: The image or the label map doesn't fit the config.
        ResourceError: The image is too large for the machine's memory at the network's spacing.
    """
    workers = workers or Workers()
    with times.of("prepare"):
        check_image(image, spacing, config)
        _check_previous(previous, image, config)
        image = image.transpose(0, *(axis + 1 for axis in config.transpose_forward))
        own = tuple(float(spacing[axis]) for axis in config.transpose_forward)
        wanted = (*own[: 3 - len(config.spacing)], *config.spacing)
        full_shape = image.shape[1:]
        masked = previous is not None or any(channel.use_mask for channel in config.channels)
        mask, found = _nonzero(image, masked, workers)
        box = found if config.crop else tuple(slice(0, size) for size in full_shape)
        image = image[(slice(None), *box)]
        if mask is not None:
            mask = resampling.filled(mask[box])
        shape = image.shape[1:]
        if config.image_resampling.resamples:
            shape = resampling.resampled_shape(shape, own, wanted)
        if min(shape) < 1:
            raise InputError(f"the image covers less than a voxel of {'x'.join(f'{size:g}' for size in wanted)} mm")
        _require_memory(image.shape[1:], shape, config, channels or len(config.label_values), workers.threads)
        result = np.empty((len(image) + len(config.previous_labels), *shape), np.float32)
    axis = resampling.low_resolution_axis(config.image_resampling, own, wanted)
    for values, channel, target in zip(image, config.channels, result, strict=False):
        with times.of("prepare"):
            normalised = _normalised(values, mask, channel, workers)
        with times.of("resample"):
            resampling.resample_channel(normalised, target, config.image_resampling, axis, workers)
    if previous is not None:
        assert mask is not None
        with times.of("resample"):
            labels = previous.transpose(config.transpose_forward)[box].astype(np.int16)
            # Zeros outside the body are a label of their own, as in nnU-Net: they may lose where all of the background
            # would win.
            labels[(labels == 0) & ~mask] = -1
            axis = resampling.low_resolution_axis(config.label_resampling, own, wanted)
            labels = resampling.resample_labels(labels, shape, config.label_resampling, axis)
            for value, target in zip(config.previous_labels, result[len(image) :], strict=True):
                target[...] = labels == value
    return PreparedImage(result, full_shape, box, own, wanted)


def _nonzero(image: AnyArray, masked: bool, workers: Workers) -> tuple[AnyArray | None, Box]:
    """Find the box of the voxels that aren't 0 in some channel, and if ``masked`` all of these voxels.

    Raises:
        InputError: A number isn't finite in float32.
    """
    mask = np.zeros(image.shape[1:], bool) if masked else None

    def look(z: int) -> tuple[bool, AnyArray, AnyArray]:
        found = np.zeros(image.shape[2:], bool)
        for plane in image[:, z]:
            if plane.dtype.kind == "f":
                with np.errstate(over="ignore"):
                    numbers = plane.astype(np.float32, copy=False)
                if not np.isfinite(numbers).all():
                    raise InputError("the image holds values that aren't finite numbers in float32")
                found |= numbers != 0
            else:
                found |= plane != 0
        if mask is not None:
            mask[z] = found
        return bool(found.any()), np.asarray(found.any(axis=1)), np.asarray(found.any(axis=0))

    seen = workers.run(look, range(image.shape[1]))
    inside = (
        np.array([one for one, _, _ in seen]),
        np.logical_or.reduce([rows for _, rows, _ in seen]),
        np.logical_or.reduce([columns for _, _, columns in seen]),
    )
    return mask, resampling.box_of(inside)


def _require_memory(
    before: Sequence[int], after: Sequence[int], config: InferenceConfig, channels: int, threads: int
) -> None:
    """See to it that the machine has the memory that an image takes from here on.

    Args:
        before: The shape (z, y, x) of the cropped image.
        after: Its shape at the network's spacing.
        config: The artifact's inference config.
        channels: The numbers that the network gives for a voxel.
        threads: How many threads there are.

    Raises:
        ResourceError: It has less.
    """
    needed = memory.predicting(before, after, config, channels, threads)
    if needed > (available := hardware.available_memory()):
        raise ResourceError(
            f"the image of {'x'.join(map(str, before))} voxels has {'x'.join(map(str, after))} at the network's "
            f"spacing, which take about {needed / 1e9:.1f} GB of memory; {available / 1e9:.1f} GB are available"
        )


def check_image(image: AnyArray, spacing: Sequence[float], config: InferenceConfig) -> None:
    """See to it that an image (C, z, y, x) has the network's channels, voxels, numbers, and a spacing.

    Raises:
        InputError: It hasn't.
    """
    if image.ndim != 4 or len(image) != len(config.channels):
        wanted = f"({len(config.channels)}, z, y, x)"
        raise InputError(f"the image is {image.shape}; the network takes {wanted}, a channel for each of its inputs")
    if min(image.shape) < 1:
        raise InputError(f"the image {image.shape} is empty")
    if len(spacing) != 3 or not all(MIN_SPACING <= size <= MAX_SPACING for size in spacing):
        raise InputError(
            f"the spacing is {tuple(spacing)}; it must be three positive numbers (z, y, x) in mm, "
            f"from {MIN_SPACING:g} to {MAX_SPACING:g}"
        )
    if image.dtype.kind not in "iufb":
        raise InputError(f"the image holds {image.dtype}, which aren't finite numbers")


def _check_previous(previous: AnyArray | None, image: AnyArray, config: InferenceConfig) -> None:
    if not config.previous_labels:
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


def _normalised(values: AnyArray, mask: AnyArray | None, channel: ChannelNormalization, workers: Workers) -> Channel:
    """One channel (z, y, x), normalised. Where each voxel is by itself, this is done when a plane is asked for."""
    if channel.scheme in memory.WHOLE:
        whole = np.empty(values.shape, np.float32)

        def copy(z: int) -> None:
            whole[z] = values[z]

        workers.run(copy, range(len(values)))
        with np.errstate(over="ignore", invalid="ignore"):  # what comes of it isn't finite, and is refused
            _normalise_whole(whole, mask, channel)
        values = whole

    def plane(number: int, axis: int) -> AnyArray:
        taken = np.array(np.moveaxis(values, axis, 0)[number], np.float32, order="C")
        with np.errstate(over="ignore", invalid="ignore"):
            _normalise_voxels(taken, channel)
        if not np.isfinite(taken).all():
            raise InputError("the image's numbers are too large, or too far apart, to be normalised in float32")
        return taken

    return Channel(values.shape, plane)


def _normalise_whole(values: AnyArray, mask: AnyArray | None, channel: ChannelNormalization) -> None:
    """Normalise one channel (z, y, x) in place by what all of its voxels have in common."""
    if channel.scheme == "RescaleTo01Normalization":
        values -= values.min()
        values /= max(values.max(), EPSILON)
        return
    inside = values[mask] if channel.use_mask and mask is not None else values
    mean, deviation = inside.mean(), max(inside.std(), EPSILON)
    if channel.use_mask and mask is not None:
        values[mask] = (inside - mean) / deviation
    else:
        values -= mean
        values /= deviation


def _normalise_voxels(values: AnyArray, channel: ChannelNormalization) -> None:
    """Normalise some voxels in place, each by itself."""
    known = channel.statistics
    if channel.scheme == "CTNormalization":
        np.clip(values, known["percentile_00_5"], known["percentile_99_5"], out=values)
        values -= known["mean"]
        values /= max(known["std"], EPSILON)
    elif channel.scheme in ("RGBTo01Normalization", PICTURE, PIXELS):
        if values.min() < 0 or values.max() > 255:
            raise InputError(f"a channel of colours must lie in 0..255; found {values.min():g} to {values.max():g}")
        if channel.scheme == PIXELS:
            pixels.centre(values, channel)
            return
        values /= 255
        if channel.scheme == PICTURE:
            values -= known["mean"]
            values /= known["std"]
