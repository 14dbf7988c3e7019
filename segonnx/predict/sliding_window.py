"""Sliding windows over a prepared image.

What the network gives comes out slice by slice, and memory holds that of as many slices as a window is deep.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from segonnx.errors import CheckFailed, InputError
from segonnx.predict import memory
from segonnx.predict.interpolation import AnyArray
from segonnx.predict.memory import FLAT_SLICES
from segonnx.predict.workers import Workers, blocks

Forward = Callable[[AnyArray], AnyArray]
"""The network's forward pass: from a window (1, C, spatial...) to what is averaged, float32 (1, channels, spatial...).

That is logits, or the features that a head makes logits of. The next call may overwrite it.
"""
MAX_WINDOWS = 1_000_000
"""The most windows of an image: at a tenth of a second each, they take a day."""
WindowProgress = Callable[[int, int], None]
"""A progress callback: it gets the number of windows that are done, and the number of all windows."""
Timed = Callable[[str], AbstractContextManager[None]]
"""Adds the time of a block to that of a step."""


@dataclass(frozen=True)
class Windows:
    """How windows lie over an image, and how they are averaged.

    Attributes:
        channels: The number of channels that the network gives.
        window: The spatial sizes of a window, in voxels. A 2D network has two, and sees every slice alone.
        step: The step from window to window, as a fraction of a window.
        sigma: The standard deviation of the windows' weights, as a fraction of a window.
        mirror_axes: The spatial axes to mirror. What is averaged is the mean over all combinations of them.
        largest: The size that no number may have which the network gives.
    """

    channels: int
    window: tuple[int, ...]
    step: float
    sigma: float
    mirror_axes: tuple[int, ...] = ()
    largest: float = float(np.finfo(np.float32).max)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """The sizes of a window as a box (z, y, x)."""
        z, y, x = (1, *self.window)[-3:]
        return z, y, x

    @property
    def held(self) -> int:
        """How many slices memory holds."""
        return self.window[0] if len(self.window) == 3 else FLAT_SLICES

    @property
    def together(self) -> int:
        """How many windows go through a forward pass before they are added up, where several run side by side."""
        return max(1, min(TOGETHER, memory.TOGETHER // (memory.FLOAT * self.channels * math.prod(self.window))))

    @property
    def flips(self) -> list[tuple[int, ...]]:
        """The axes that are mirrored together, for each window that the network sees; first none."""
        axes = self.mirror_axes
        return [found for count in range(len(axes) + 1) for found in itertools.combinations(axes, count)]


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


@functools.lru_cache(maxsize=1)
def weights(window: tuple[int, ...], sigma: float) -> npt.NDArray[np.float32]:
    """The Gaussian that weights the logits of a window, largest at its centre.

    The numbers are those of nnU-Net: the Gaussian times ten, rounded to float16. The last one is kept for the next
    image.

    Args:
        window: The spatial sizes of a window, in voxels.
        sigma: The standard deviation, as a fraction of the window.

    Returns:
        The weights, float32, of the window's shape, read-only. No weight is 0.
    """
    from scipy.ndimage import gaussian_filter

    peak = np.zeros(window)
    peak[tuple(size // 2 for size in window)] = 1
    gaussian = gaussian_filter(peak, [size * sigma for size in window], mode="constant")
    rounded: AnyArray = (10 * gaussian / gaussian.max()).astype(np.float16)
    rounded[rounded == 0] = rounded[rounded > 0].min()
    result = rounded.astype(np.float32)
    result.setflags(write=False)
    return result


def averaged(
    image: AnyArray,
    forward: Forward,
    how: Windows,
    workers: Workers,
    progress: WindowProgress = lambda *_: None,
    timed: Timed = lambda _: nullcontext(),
    beside: Sequence[Forward] = (),
) -> Iterator[list[AnyArray]]:
    """Compute the weighted mean over all windows of an image, some slices at a time along its first axis.

    Args:
        image: The prepared image, float32 (C, z, y, x).
        forward: The network's forward pass.
        how: How windows lie and are averaged.
        workers: The threads that add windows up.
        progress: The progress callback.
        timed: The seconds of ``network`` and ``blend`` are added by it.
        beside: More of the network's forward passes, which may run at the same time as the first.

    Yields:
        The next slices, each float32 (channels, y, x). They hold until the next ones are asked for.

    Raises:
        InputError: There are more than ``MAX_WINDOWS`` windows.
        CheckFailed: The network gives numbers that aren't finite, or too large.
    """
    wanted = how.sizes
    below = [max(0, need - size) // 2 for need, size in zip(wanted, image.shape[1:], strict=True)]
    above = [max(0, need - size) - low for need, size, low in zip(wanted, image.shape[1:], below, strict=True)]
    padded = np.pad(image, [(0, 0), *zip(below, above, strict=True)]) if any(below + above) else image
    depth, height, width = padded.shape[1:]
    rows = range(depth) if len(how.window) == 2 else starts(depth, wanted[0], how.step)
    along = starts(height, wanted[1], how.step), starts(width, wanted[2], how.step)
    if (count := len(rows) * math.prod(map(len, along))) > MAX_WINDOWS:
        raise InputError(
            f"an image of {'x'.join(map(str, image.shape[1:]))} voxels for the network takes {count:,} windows, more "
            f"than {MAX_WINDOWS:,}: take a larger step"
        )
    inside = (slice(below[1], below[1] + image.shape[2]), slice(below[2], below[2] + image.shape[3]))
    held = min(how.held, depth)
    sums = _Sums(how, (held, height, width), workers)
    passes = (forward, *beside)
    done = first = 0
    for row, following in zip(rows, [*rows[1:], depth], strict=True):
        corners = list(itertools.product(*along))
        seen = ((corner, flip) for corner in corners for flip in how.flips)
        while together := tuple(itertools.islice(seen, len(passes) * (how.together if beside else 1))):
            with timed("network"):
                windows = [
                    _mirrored(
                        padded[:, row : row + wanted[0], y : y + wanted[1], x : x + wanted[2]].reshape(
                            1, len(image), *how.window
                        ),
                        flip,
                    )
                    for (y, x), flip in together
                ]
                every = _passed(passes, windows, workers)
            with timed("blend"):
                for (corner, flip), given in zip(together, every, strict=True):
                    sums.add(_mirrored(given, flip), row, corner)
            done += sum(flip == how.flips[-1] for _, flip in together)
            progress(done, count)
        # No later window reaches the slices before the next row.
        if following == depth or following + wanted[0] - first > held:
            with timed("blend"):
                ready = sums.taken(first, following, inside)
            yield ready[max(below[0] - first, 0) : max(below[0] + image.shape[1] - first, 0)]
            sums.clear(first, following)
            first = following


class _Sums:
    """The weighted sums of windows, and the sums of their weights, of the slices that later windows may still reach.

    A slice has its place by its number modulo how many there are, so that none is ever moved.

    Args:
        how: How windows are averaged.
        shape: How many slices there are, and the sizes of each.
        workers: The threads that share the work.
    """

    def __init__(self, how: Windows, shape: tuple[int, int, int], workers: Workers) -> None:
        self._how, self._workers = how, workers
        self._gaussian = weights(how.window, how.sigma).reshape(how.sizes) / np.float32(len(how.flips))
        self._total = np.zeros((shape[0], how.channels, *shape[1:]), np.float32)
        self._weight = np.zeros(shape, np.float32)

    def add(self, given: AnyArray, row: int, corner: tuple[int, int]) -> None:
        """Add what the network gave for a window that begins at ``row`` and ``corner``."""
        depth, height, width = self._how.sizes
        window = given.reshape(self._how.channels, depth, height, width)
        box = (slice(corner[0], corner[0] + height), slice(corner[1], corner[1] + width))
        if window.size <= CACHED:
            self._add_small(window, row, box)
            return
        # A slice stays in a processor's cache between its product and its sum.
        parts = [(z, part) for z in range(depth) for part in blocks(self._how.channels, self._channels_at_once)]

        def add(share: slice) -> None:
            scratch = np.empty((min(self._channels_at_once, self._how.channels), height, width), np.float32)
            for z, channels in parts[share]:
                product = scratch[: channels.stop - channels.start]
                np.multiply(window[channels, z], self._gaussian[z], out=product)
                target = self._total[(row + z) % len(self._total)][(channels, *box)]
                np.add(target, product, out=target)
                if channels.start == 0:
                    weight = self._weight[(row + z) % len(self._total)][box]
                    np.add(weight, self._gaussian[z], out=weight)

        self._workers.run(add, self._workers.parts(len(parts)))

    def _add_small(self, window: AnyArray, row: int, box: tuple[slice, slice]) -> None:
        """Add a window at once: the work on its slices is less than what sharing it out takes."""
        product, depth, places = window * self._gaussian, window.shape[1], len(self._total)
        begin = row % places
        split = min(depth, places - begin)
        for place, some in ((begin, slice(0, split)), (0, slice(split, depth))):
            held = slice(place, place + some.stop - some.start)
            self._total[(held, slice(None), *box)] += product[:, some].swapaxes(0, 1)
            self._weight[(held, *box)] += self._gaussian[some]

    @property
    def _channels_at_once(self) -> int:
        return max(1, CACHED // math.prod(self._how.sizes[1:]))

    def taken(self, first: int, end: int, inside: tuple[slice, slice]) -> list[AnyArray]:
        """The means of slices, each (channels, y, x) without the border; they take the places of the sums.

        Raises:
            CheckFailed: A number isn't finite, or too large.
        """

        def divided(z: int) -> AnyArray:
            total, weight = self._total[z % len(self._total)], self._weight[z % len(self._total)][inside]
            mean: AnyArray = total[(slice(None), *inside)]
            with np.errstate(all="ignore"):  # what isn't finite is refused
                factor = 1 / weight
                for channel in mean:
                    np.multiply(channel, factor, out=channel)
                    if not -self._how.largest <= channel.min() <= channel.max() <= self._how.largest:
                        raise CheckFailed("the network gives logits that aren't finite numbers")
            return mean

        return self._workers.run(divided, range(first, end))

    def clear(self, first: int, end: int) -> None:
        """Let later slices take the places of these."""

        def clear(z: int) -> None:
            self._total[z % len(self._total)] = 0
            self._weight[z % len(self._total)] = 0

        self._workers.run(clear, range(first, end))


TOGETHER = 16
"""The most windows that go through each of several forward passes before what they gave is added up."""
CACHED = 2**16
"""So many numbers stay in the cache of a processor until they are used again."""


def _passed(passes: Sequence[Forward], windows: Sequence[AnyArray], workers: Workers) -> list[AnyArray]:
    """What the network gives for some windows, which its forward passes share out among them."""
    if len(passes) == 1:
        return [passes[0](np.ascontiguousarray(window)) for window in windows]

    def passed(place: int) -> list[AnyArray]:
        return [passes[place](np.ascontiguousarray(window)).copy() for window in windows[place :: len(passes)]]

    found = workers.run(passed, range(len(passes)))
    return [found[number % len(passes)][number // len(passes)] for number in range(len(windows))]


def _mirrored(array: AnyArray, axes: Sequence[int]) -> AnyArray:
    """An array (1, channels, spatial...) that is mirrored along these spatial axes."""
    return np.flip(array, tuple(axis + 2 for axis in axes)) if axes else array
