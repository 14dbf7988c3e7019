"""How much memory predicting an image takes, before any is taken.

A flat image has few voxels, and still needs what the network gives for as many slices as a window is deep.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from segonnx.predict.config import InferenceConfig

FLOAT = 4
"""Bytes of a number of the image, the windows and what the network gives."""
FLAT_SLICES = 16
"""How many slices of a 2D network are handed on together, so that threads can share them."""
SHARED = 2**28
"""So many bytes of slices are worked on at the same time, or one slice if that is larger."""
LOGITS, VOXELS = 2**18, 2**13
"""So many logits are compared at a time, as they stay in a processor's cache then; and of so many voxels, at least."""
SIDE_BY_SIDE, TOGETHER = 2**23, 2**21
"""Windows whose numbers take at most the first many bytes may be run side by side, and those that went through one
forward pass since the last were added up take at most the second many, or are one."""
WHOLE = ("ZScoreNormalization", "RescaleTo01Normalization")
"""The normalizations that take all voxels of a channel at once."""


def voxels_at_once(outputs: int) -> int:
    """How many voxels are decided at a time. Of fewer, threads would wait for the interpreter, and not for numbers.

    Args:
        outputs: The network's outputs.
    """
    return max(VOXELS, LOGITS // outputs)


def slices_at_once(channels: int, planes: Sequence[int], threads: int) -> int:
    """How many slices are worked on at the same time.

    Args:
        channels: The numbers of a voxel.
        planes: The voxels of a slice, on each grid.
        threads: How many threads there are.
    """
    return max(1, min(threads, SHARED // (FLOAT * channels * max(planes))))


def needed(
    shape: Sequence[int],
    spacing: Sequence[float],
    config: InferenceConfig,
    *,
    channels: int | None = None,
    threads: int = 1,
) -> float:
    """Bytes that predicting an image takes, at most, beside the network's own; infinity where they can't be counted.

    Args:
        shape: Of the image as read, (C, z, y, x).
        spacing: The image's spacing (z, y, x) in mm.
        config: The artifact's inference config.
        channels: The numbers that the network gives for a voxel; see ``Artifact.channels``. None takes its outputs.
        threads: How many threads there are.
    """
    count, *sizes = shape
    sizes = [sizes[axis] for axis in config.transpose_forward]
    own = [spacing[axis] for axis in config.transpose_forward]
    wanted = [*own[: 3 - len(config.spacing)], *config.spacing]
    resampled = [float(size) for size in sizes]
    if config.image_resampling.resamples:
        resampled = [max(1.0, size * before / after) for size, before, after in zip(sizes, own, wanted, strict=True)]
    read = count * FLOAT * math.prod(sizes)
    total = read + predicting(sizes, resampled, config, channels or len(config.label_values), threads)
    return total if math.isfinite(total) else math.inf


def predicting(
    before: Sequence[float], after: Sequence[float], config: InferenceConfig, channels: int, threads: int
) -> float:
    """Bytes that predicting an image takes, at most, beside the image as read and the network's own.

    Args:
        before: The shape (z, y, x) of the image.
        after: Its shape at the network's spacing.
        config: The artifact's inference config.
        channels: The numbers that the network gives for a voxel.
        threads: How many threads there are.
    """
    window = (1, *config.window)[-3:]
    padded = [max(sizes) for sizes in zip(window, after, strict=True)]
    inputs = len(config.channels) + len(config.previous_labels)
    prepared = FLOAT * inputs * (math.prod(after) + (math.prod(padded) if padded != list(after) else 0))
    labels = 2.0 * math.prod(before)
    # While a channel is prepared: its planes at their new size, the matrices, and all of it where all voxels count.
    planes = max(before[axis] * math.prod(after) / after[axis] for axis in range(3))
    making = FLOAT * planes + 3 * 8 * sum(old * new for old, new in zip(before, after, strict=True))
    if config.previous_labels or any(channel.use_mask for channel in config.channels):
        making += 2 * math.prod(before) + (
            8 * math.prod(before) + 24 * math.prod(after) if config.previous_labels else 0
        )
    if any(channel.scheme in WHOLE for channel in config.channels):
        making += 3 * FLOAT * math.prod(before)
    # While windows run: the sums of the slices that a window covers, what the network gives for one, and its input.
    held = window[0] if len(config.window) == 3 else min(FLAT_SLICES, padded[0])
    sums = FLOAT * (channels + 1) * held * padded[1] * padded[2]
    windows = FLOAT * (channels + 2 * inputs + 4) * math.prod(window)
    given = FLOAT * channels * math.prod(window)
    if given <= SIDE_BY_SIDE:
        windows += threads * (given + max(given, TOGETHER))
    # Slices between the two grids, and blocks of logits.
    grids = (padded[1] * padded[2], before[1] * before[2])
    finite = all(math.isfinite(size) for size in grids)
    at_once = slices_at_once(channels, [math.ceil(size) for size in grids], threads) if finite else threads
    slices = FLOAT * channels * max(grids) * (4 * at_once + 2)
    outputs = len(config.label_values)
    blocks = threads * voxels_at_once(outputs) * (2 * FLOAT * channels + (FLOAT + 2) * outputs)
    return prepared + max(making, labels + sums + windows + slices + blocks)
