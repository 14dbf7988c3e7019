"""Preprocessing: brings an image to the axes, the intensities and the spacing that the network was trained on."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from segonnx.core import hardware
from segonnx.errors import InputError, ResourceError
from segonnx.predict import pixels, resampling
from segonnx.predict.config import PICTURE, PIXELS, ChannelNormalization, InferenceConfig
from segonnx.predict.resampling import AnyArray, Box

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
    image: AnyArray, spacing: Sequence[float], config: InferenceConfig, previous: AnyArray | None, times: Times
) -> PreparedImage:
    """Bring an image to the network's axes, intensities and spacing.

    Args:
        image: The image as read, (C, z, y, x).
        spacing: The image's spacing (z, y, x) in mm.
        config: The artifact's inference config.
        previous: The label map of a cascade's first stage, integers (z, y, x). None if the network is no second stage.
        times: The seconds of ``prepare`` and ``resample`` are added to it.

    Raises:
        InputError: The image or the label map doesn't fit the config.
        ResourceError: The image is too large for the machine's memory at the network's spacing.
    """
    with times.of("prepare"):
        _check_image(image, spacing, config)
        _check_previous(previous, image, config)
        with np.errstate(over="ignore"):
            image = image.astype(np.float32)
        if not np.isfinite(image).all():
            raise InputError("the image holds values that aren't finite numbers in float32")
        image = image.transpose(0, *(axis + 1 for axis in config.transpose_forward))
        own = tuple(float(spacing[axis]) for axis in config.transpose_forward)
        wanted = (*own[: 3 - len(config.spacing)], *config.spacing)
        mask, box = resampling.nonzero(image)
        if not config.crop:
            box = tuple(slice(0, size) for size in mask.shape)
        full_shape = mask.shape
        image = np.ascontiguousarray(image[(slice(None), *box)])
        mask = mask[box]
        if previous is not None or any(channel.use_mask for channel in config.channels):
            mask = resampling.filled(mask)
        with np.errstate(over="ignore", invalid="ignore"):  # what comes of it isn't finite, and is refused below
            for values, channel in zip(image, config.channels, strict=True):
                _normalise(values, mask, channel)
        if not np.isfinite(image).all():
            raise InputError("the image's numbers are too large, or too far apart, to be normalised in float32")
    with times.of("resample"):
        shape = image.shape[1:]
        if config.image_resampling.resamples:
            shape = resampling.resampled_shape(shape, own, wanted)
        if min(shape) < 1:
            raise InputError(f"the image covers less than a voxel of {'x'.join(f'{size:g}' for size in wanted)} mm")
        _require_memory(image.shape[1:], shape, config)
        axis = resampling.low_resolution_axis(config.image_resampling, own, wanted)
        image = resampling.resample(image, shape, config.image_resampling, axis)
        if previous is not None:
            labels = previous.transpose(config.transpose_forward)[box].astype(np.int16)
            # Zeros outside the body are a label of their own, as in nnU-Net: they may lose where all of the background
            # would win.
            labels[(labels == 0) & ~mask] = -1
            axis = resampling.low_resolution_axis(config.label_resampling, own, wanted)
            labels = resampling.resample_labels(labels, shape, config.label_resampling, axis)
            one_hot = np.stack([(labels == value).astype(np.float32) for value in config.previous_labels])
            image = np.concatenate([image, one_hot])
    return PreparedImage(image, full_shape, box, own, wanted)


def _require_memory(before: Sequence[int], after: Sequence[int], config: InferenceConfig) -> None:
    """See to it that the machine has the memory that an image takes from here on.

    Args:
        before: The shape (z, y, x) of the cropped image.
        after: Its shape at the network's spacing.
        config: The artifact's inference config.

    Raises:
        ResourceError: It has less.
    """
    old, new = math.prod(before), math.prod(after)
    channels, labels = len(config.channels), len(config.previous_labels)
    window = (1, *config.window)[-3:]
    padded = [max(sizes) for sizes in zip(window, after, strict=True)]
    resampled = 4 * (channels + labels) * new
    # Splines are computed in float64: one channel's coefficients, and its new voxels.
    making = 0 if tuple(before) == tuple(after) else 8 * (old + new)
    logits = 4 * len(config.label_values) * math.prod(padded[1:])
    predicting = 4 * (channels + labels) * math.prod(padded) + (window[0] + 3) * logits
    needed, available = resampled + max(making, predicting), hardware.available_memory()
    if needed > available:
        raise ResourceError(
            f"the image of {'x'.join(map(str, before))} voxels has {'x'.join(map(str, after))} at the network's "
            f"spacing, which take about {needed / 1e9:.1f} GB of memory; {available / 1e9:.1f} GB are available"
        )


def _check_image(image: AnyArray, spacing: Sequence[float], config: InferenceConfig) -> None:
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


def _normalise(values: AnyArray, mask: AnyArray, channel: ChannelNormalization) -> None:
    """Normalise one channel (z, y, x) in place."""
    if channel.scheme == "CTNormalization":
        known = channel.statistics
        np.clip(values, known["percentile_00_5"], known["percentile_99_5"], out=values)
        values -= known["mean"]
        values /= max(known["std"], EPSILON)
    elif channel.scheme == "ZScoreNormalization":
        inside = values[mask] if channel.use_mask else values
        mean, deviation = inside.mean(), max(inside.std(), EPSILON)
        if channel.use_mask:
            values[mask] = (inside - mean) / deviation
        else:
            values -= mean
            values /= deviation
    elif channel.scheme == "RescaleTo01Normalization":
        values -= values.min()
        values /= max(values.max(), EPSILON)
    elif channel.scheme in ("RGBTo01Normalization", PICTURE, PIXELS):
        if values.min() < 0 or values.max() > 255:
            raise InputError(f"a channel of colours must lie in 0..255; found {values.min():g} to {values.max():g}")
        if channel.scheme == PIXELS:
            pixels.centre(values, channel)
            return
        values /= 255
        if channel.scheme == PICTURE:
            values -= channel.statistics["mean"]
            values /= channel.statistics["std"]
