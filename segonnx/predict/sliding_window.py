"""Sliding windows over a prepared image. Logits come out slice by slice; no more are held than a window is deep."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from segonnx.predict.resampling import Array

Network = Callable[[Array], Array]
"""From a window (1, C, spatial...) to its logits (1, classes, spatial...), both float32."""


def starts(size: int, window: int, step: float) -> list[int]:
    """Where windows begin along an axis: evenly, as far apart as ``step`` windows at most, the last one at the end."""
    count = math.ceil((size - window) / (window * step)) + 1
    if count == 1:
        return [0]
    return [round((size - window) / (count - 1) * index) for index in range(count)]


def weights(window: Sequence[int], sigma: float) -> npt.NDArray[np.float32]:
    """A Gaussian around the window's middle. Its numbers are those of nnU-Net, which holds ten times it in float16.

    Args:
        window: sizes.
        sigma: in windows.
    """
    from scipy.ndimage import gaussian_filter

    peak = np.zeros(window)
    peak[tuple(size // 2 for size in window)] = 1
    gaussian = gaussian_filter(peak, [size * sigma for size in window], mode="constant")
    rounded: Array = (10 * gaussian / gaussian.max()).astype(np.float16)
    rounded[rounded == 0] = rounded[rounded > 0].min()
    return rounded.astype(np.float32)


def slices(
    image: Array,
    network: Network,
    classes: int,
    window: Sequence[int],
    step: float,
    sigma: float,
    mirror_axes: Sequence[int],
    progress: Callable[[int, int], None],
) -> Iterator[Array]:
    """The logits of an image, one slice (classes, y, x) along its first axis after another.

    Args:
        image: float32 (C, z, y, x).
        network: runs a window.
        classes: of its logits.
        window: its spatial sizes: two of a 2D network, which sees every slice alone.
        step: between windows, in windows.
        sigma: of the weights, in windows.
        mirror_axes: spatial axes of the window; the mean over all combinations is taken.
        progress: told how many windows of how many are done.
    """
    wanted = (1, *window) if len(window) == 2 else tuple(window)
    below = [max(0, need - size) // 2 for need, size in zip(wanted, image.shape[1:], strict=True)]
    above = [max(0, need - size) - low for need, size, low in zip(wanted, image.shape[1:], below, strict=True)]
    padded = np.pad(image, [(0, 0), *zip(below, above, strict=True)])
    depth, height, width = padded.shape[1:]
    gaussian = weights(window, sigma).reshape(wanted)
    rows = range(depth) if len(window) == 2 else starts(depth, wanted[0], step)
    columns = list(itertools.product(starts(height, wanted[1], step), starts(width, wanted[2], step)))
    flips = [axes for count in range(len(mirror_axes) + 1) for axes in itertools.combinations(mirror_axes, count)]
    inside = (slice(below[1], below[1] + image.shape[2]), slice(below[2], below[2] + image.shape[3]))
    total = np.zeros((wanted[0], classes, height, width), np.float32)  # of the slices from `first` on
    weight = np.zeros((wanted[0], height, width), np.float32)
    first = done = 0
    for row in [*rows, depth]:
        # Slices before this window get nothing more.
        for z in range(first, row):
            if below[0] <= z < below[0] + image.shape[1]:
                yield (total[z - first] / weight[z - first])[(slice(None), *inside)]
        _shift(total, row - first)
        _shift(weight, row - first)
        first = row
        if row == depth:
            return
        for y, x in columns:
            box = (slice(y, y + wanted[1]), slice(x, x + wanted[2]))
            part = padded[(slice(None), slice(row, row + wanted[0]), *box)]
            logits = _mean(network, part.reshape(1, len(image), *window), flips).reshape(classes, *wanted)
            logits *= gaussian
            total[(slice(None), slice(None), *box)] += logits.transpose(1, 0, 2, 3)
            weight[(slice(None), *box)] += gaussian
            done += 1
            progress(done, len(rows) * len(columns))


def _mean(network: Network, x: Array, flips: Sequence[tuple[int, ...]]) -> Array:
    """The mean of the logits over mirrored windows, mirrored back."""
    result: Array | None = None
    for axes in flips:
        shifted = tuple(axis + 2 for axis in axes)
        logits = np.flip(network(np.ascontiguousarray(np.flip(x, shifted))), shifted)
        result = np.array(logits) if result is None else np.add(result, logits, out=result)
    assert result is not None
    result /= len(flips)
    return result


def _shift(array: Array, count: int) -> None:
    """Move what is ``count`` or further along the first axis to the front, zeros behind."""
    if count:
        for index in range(len(array)):  # one by one: no copy of them all is needed
            array[index] = array[index + count] if index + count < len(array) else 0
