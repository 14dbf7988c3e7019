"""Windows of pictures of 8 bits, for networks whose graphs take these and normalise them.

Windows are filled up with zeros, which a network whose images are normalised takes for their mean. Here a picture is
held less the 8-bit number that is nearest to its mean, so that zeros are nearly the same.
"""

from __future__ import annotations

import numpy as np

from segonnx.core.pixels import HIGHEST, arranged
from segonnx.predict.config import ChannelNormalization, InferenceConfig
from segonnx.predict.resampling import AnyArray


def centre(values: AnyArray, channel: ChannelNormalization) -> None:
    """Round a channel of 0..255 to whole numbers, and subtract the one that is nearest to the mean, in place."""
    np.rint(values, out=values)
    values -= _level(channel)


def given(x: AnyArray, config: InferenceConfig) -> AnyArray:
    """A window (1, C, y, x) as the graph takes it: pictures of 8 bits in their layout, or the window itself."""
    if config.pixel_layout is None:
        return x
    levels = np.array([_level(channel) for channel in config.channels], np.float32).reshape(-1, 1, 1)
    return arranged((x + levels).astype(np.uint8), config.pixel_layout)


def _level(channel: ChannelNormalization) -> float:
    return float(np.clip(np.rint(HIGHEST * channel.statistics["mean"]), 0, HIGHEST))
