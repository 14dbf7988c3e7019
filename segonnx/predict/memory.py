"""How much memory predicting an image takes, before any is taken.

A flat image has few voxels, and still needs the logits of as many slices as a window is deep.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from segonnx.predict.config import InferenceConfig

FLOAT = 4
"""Bytes of a number of the image, the windows and the logits."""


def needed(shape: Sequence[int], spacing: Sequence[float], config: InferenceConfig) -> float:
    """Bytes that predicting an image takes, at most, beside the network's own; infinity where they can't be counted.

    Args:
        shape: Of the image as read, (C, z, y, x).
        spacing: The image's spacing (z, y, x) in mm.
        config: The artifact's inference config.
    """
    channels, *sizes = shape
    sizes = [sizes[axis] for axis in config.transpose_forward]
    own = [spacing[axis] for axis in config.transpose_forward]
    wanted = [*own[: 3 - len(config.spacing)], *config.spacing]
    resampled = [float(size) for size in sizes]
    if config.image_resampling.resamples:
        resampled = [max(1.0, size * before / after) for size, before, after in zip(sizes, own, wanted, strict=True)]
    window = [1] * (3 - len(config.window)) + list(config.window)
    padded = [max(size, least) for size, least in zip(resampled, window, strict=True)]
    classes, plane = len(config.label_values), padded[1] * padded[2]
    channels += len(config.previous_labels)
    # The image as read, as float32 and turned; resampled by splines in float64; then with a border.
    image = channels * (3 * FLOAT * math.prod(sizes) + 6 * FLOAT * math.prod(resampled) + FLOAT * math.prod(padded))
    # The sums and weights of the slices that a window covers, a few slices of logits, and the label map.
    logits = FLOAT * (classes + 1) * (window[0] * plane + 3 * math.prod(window))
    slices = 4 * FLOAT * classes * max(plane, float(sizes[1] * sizes[2]))
    total = image + logits + slices + 2 * math.prod(sizes)
    return total if math.isfinite(total) else math.inf
