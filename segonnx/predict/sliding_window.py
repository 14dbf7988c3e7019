"""Sliding windows over a prepared image.

Logits come out slice by slice, and memory holds those of as many slices as a window is deep.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from segonnx.errors import CheckFailed, InputError
from segonnx.predict.resampling import AnyArray

Forward = Callable[[AnyArray], AnyArray]
"""The network's forward pass: from a window (1, C, spatial...) to its logits (1, classes, spatial...), both float32."""
MAX_WINDOWS = 1_000_000
"""The most windows of an image: at a tenth of a second each, they take a day."""
WindowProgress = Callable[[int, int], None]
"""A progress callback: it gets the number of windows that are done, and the number of all windows."""


def starts(size: int, window: int, step: float) -> list[int]:
    """The indices at which windows start along an axis.

    The starts are evenly spaced, at most ``step`` windows apart, and the last window ends at the axis' end.

    Args:
        size: The length of the axis, in voxels.
        window: The length of a window, in voxels.
        step: The largest step from window to window, as a fraction of a window.
    """
    count = math.ceil((size - window) / max(window * step, 0.5)) + 1  # no voxel begins three windows
    if count == 1:
        return [0]
    return [round((size - window) / (count - 1) * index) for index in range(count)]


def weights(window: Sequence[int], sigma: float) -> npt.NDArray[np.float32]:
    """The Gaussian that weights the logits of a window, largest at its centre.

    The numbers are those of nnU-Net: the Gaussian times ten, rounded to float16.

    Args:
        window: The spatial sizes of a window, in voxels.
        sigma: The standard deviation, as a fraction of the window.

    Returns:
        The weights, float32, of the window's shape. No weight is 0.
    """
    from scipy.ndimage import gaussian_filter

    peak = np.zeros(window)
    peak[tuple(size // 2 for size in window)] = 1
    gaussian = gaussian_filter(peak, [size * sigma for size in window], mode="constant")
    rounded: AnyArray = (10 * gaussian / gaussian.max()).astype(np.float16)
    rounded[rounded == 0] = rounded[rounded > 0].min()
    return rounded.astype(np.float32)


def slices(
    image: AnyArray,
    forward: Forward,
    classes: int,
    window: Sequence[int],
    step: float,
    sigma: float,
    mirror_axes: Sequence[int],
    progress: WindowProgress,
) -> Iterator[AnyArray]:
    """Compute the logits of an image, slice by slice along its first axis.

    Args:
        image: The prepared image, float32 (C, z, y, x).
        forward: The network's forward pass.
        classes: The number of channels of its logits.
        window: The spatial sizes of a window, in voxels. A 2D network has two, and sees every slice alone.
        step: The step from window to window, as a fraction of a window.
        sigma: The standard deviation of the windows' weights, as a fraction of a window.
        mirror_axes: The spatial axes to mirror. The logits are the mean over all combinations of them.
        progress: The progress callback.

    Yields:
        The logits of one slice, float32 (classes, y, x).

    Raises:
        InputError: There are more than ``MAX_WINDOWS`` windows.
        CheckFailed: Logits aren't finite.
    """
    wanted = (1, *window) if len(window) == 2 else tuple(window)
    below = [max(0, need - size) // 2 for need, size in zip(wanted, image.shape[1:], strict=True)]
    above = [max(0, need - size) - low for need, size, low in zip(wanted, image.shape[1:], below, strict=True)]
    padded = np.pad(image, [(0, 0), *zip(below, above, strict=True)])
    depth, height, width = padded.shape[1:]
    rows = range(depth) if len(window) == 2 else starts(depth, wanted[0], step)
    along = starts(height, wanted[1], step), starts(width, wanted[2], step)
    if (count := len(rows) * math.prod(map(len, along))) > MAX_WINDOWS:
        raise InputError(
            f"an image of {'x'.join(map(str, image.shape[1:]))} voxels for the network takes {count:,} windows, more "
            f"than {MAX_WINDOWS:,}: take a larger step"
        )
    columns = list(itertools.product(*along))
    gaussian = weights(window, sigma).reshape(wanted)
    flips = [axes for count in range(len(mirror_axes) + 1) for axes in itertools.combinations(mirror_axes, count)]
    inside = (slice(below[1], below[1] + image.shape[2]), slice(below[2], below[2] + image.shape[3]))
    total = np.zeros((wanted[0], classes, height, width), np.float32)  # of the slices from `first` on
    weight = np.zeros((wanted[0], height, width), np.float32)
    first = done = 0
    for row in [*rows, depth]:
        # No later window reaches the slices before this one.
        for z in range(first, row):
            if below[0] <= z < below[0] + image.shape[1]:
                logits = (total[z - first] / weight[z - first])[(slice(None), *inside)]
                if not np.isfinite(logits).all():
                    raise CheckFailed("the network gives logits that aren't finite numbers")
                yield logits
        _shift(total, row - first)
        _shift(weight, row - first)
        first = row
        if row == depth:
            return
        for y, x in columns:
            box = (slice(y, y + wanted[1]), slice(x, x + wanted[2]))
            part = padded[(slice(None), slice(row, row + wanted[0]), *box)]
            logits = _mean(forward, part.reshape(1, len(image), *window), flips).reshape(classes, *wanted)
            logits *= gaussian
            total[(slice(None), slice(None), *box)] += logits.transpose(1, 0, 2, 3)
            weight[(slice(None), *box)] += gaussian
            done += 1
            progress(done, len(rows) * len(columns))


def _mean(forward: Forward, x: AnyArray, flips: Sequence[tuple[int, ...]]) -> AnyArray:
    """The mean of the logits over the mirrored windows, each mirrored back."""
    unmirrored, *mirrored = flips
    result = np.array(_mirrored(forward, x, unmirrored))
    for axes in mirrored:
        result += _mirrored(forward, x, axes)
    result /= len(flips)
    return result


def _mirrored(forward: Forward, x: AnyArray, axes: Sequence[int]) -> AnyArray:
    """The logits of a window that is mirrored along these spatial axes, mirrored back."""
    array_axes = tuple(axis + 2 for axis in axes)
    return np.flip(forward(np.ascontiguousarray(np.flip(x, array_axes))), array_axes)


def _shift(array: AnyArray, count: int) -> None:
    """Move the array by ``count`` places to the front of its first axis, and fill the end with zeros."""
    if count:
        for index in range(len(array)):  # slice by slice, which needs no copy of the whole array
            array[index] = array[index + count] if index + count < len(array) else 0
