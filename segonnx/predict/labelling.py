"""From slices on the network's grid to labels and probabilities on the image's own grid.

No more slices are held than one new slice is made of, with those that threads work on at the same time.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from segonnx.predict.config import InferenceConfig
from segonnx.predict.heads import Head
from segonnx.predict.interpolation import AnyArray, LinearInterpolation
from segonnx.predict.memory import slices_at_once, voxels_at_once
from segonnx.predict.preprocessing import Times
from segonnx.predict.workers import Workers, blocks


@dataclass(frozen=True)
class Rule:
    """How labels and probabilities follow from what the windows' mean holds.

    Attributes:
        config: The inference config.
        head: What makes logits of it; None if it holds logits already.
    """

    config: InferenceConfig
    head: Head | None

    @property
    def outputs(self) -> int:
        """How many outputs the network has."""
        return len(self.config.label_values)

    @property
    def channels(self) -> int:
        """How many numbers a voxel has."""
        return self.outputs if self.head is None else self.head.features

    @property
    def kind(self) -> type[np.unsignedinteger[Any]]:
        """The type of the number of an output; its largest value is none's."""
        return np.uint8 if self.outputs < np.iinfo(np.uint8).max else np.uint16

    @property
    def values(self) -> AnyArray:
        """The label of each number that ``decided`` gives."""
        values = list(self.config.label_values)
        found: AnyArray = np.array([0, *values] if self.config.regions else values, label_type(self.config))
        return found

    def rows_at_once(self, height: int, width: int) -> Sequence[slice]:
        """The rows of a slice, in the blocks that are decided at a time."""
        return blocks(height, voxels_at_once(self.outputs) // width)

    def logits(self, channels: AnyArray) -> AnyArray:
        """The logits (outputs, voxels) of numbers (channels, voxels)."""
        return channels if self.head is None else self.head.logits(channels)

    def decided(self, logits: AnyArray) -> AnyArray:
        """The number of the output that wins at each voxel (outputs, voxels); of regions the last one, from 1, or 0."""
        found: AnyArray
        count = len(logits)
        if self.config.regions:
            numbers = np.arange(1, count + 1, dtype=self.kind)
            found = ((logits > self.config.level) * numbers[:, None]).max(axis=0)
            return found
        # The first of the largest ones, as argmax gives it, which takes four times as long across rows.
        numbers = np.arange(count, 0, -1, dtype=self.kind)
        found = self.kind(count) - ((logits >= logits.max(axis=0)) * numbers[:, None]).max(axis=0)
        return found

    def decided_rows(self, rows: AnyArray) -> AnyArray:
        """``decided``, of the numbers (voxels, channels) of voxels one after another."""
        found: AnyArray
        logits = rows if self.head is None else self.head.logits_rows(rows)
        if self.config.regions:
            numbers = np.arange(1, self.outputs + 1, dtype=self.kind)
            found = ((logits > self.config.level) * numbers).max(axis=1)
        else:
            found = logits.argmax(axis=1).astype(self.kind)
        return found

    def probabilities(self, logits: AnyArray) -> AnyArray:
        """The probabilities (outputs, voxels) of what ``logits`` gives."""
        from scipy.special import expit, softmax

        if self.config.probable:
            return logits
        found: AnyArray = expit(logits) if self.config.regions else softmax(logits, axis=0)
        return found


def label_type(config: InferenceConfig) -> type[np.unsignedinteger[Any]]:
    """The type of a label map."""
    return np.uint8 if max(config.label_values) <= 255 else np.uint16


@dataclass(frozen=True)
class Target:
    """What is filled.

    Attributes:
        labels: The label map (z, y, x).
        probabilities: The probabilities (outputs, z, y, x), or None.
        add: Add the probabilities to those that the array holds.
    """

    labels: AnyArray
    probabilities: AnyArray | None = None
    add: bool = False


def fill(
    slices: Iterator[list[AnyArray]],
    interpolations: Sequence[LinearInterpolation],
    rule: Rule,
    target: Target,
    workers: Workers,
    times: Times,
) -> None:
    """Fill the label map, and the probabilities if given, from slices on the network's grid.

    Args:
        slices: The next slices, each (channels, y, x), as ``sliding_window.averaged`` yields them.
        interpolations: How they are resampled along each axis.
        rule: How labels follow.
        target: What is filled.
        workers: The threads that share the work.
        times: The seconds of ``resample back`` and ``decide`` are added to it.
    """
    way = _way(interpolations, rule, target)
    along = interpolations[0]
    lowest, highest = along.index.min(axis=1), along.index.max(axis=1)
    held: dict[int, Any] = {}
    read = made = 0
    for block in slices:
        planes = [math.prod(one.shape[1:]) for one in block] + [math.prod(target.labels.shape[1:])]
        for some in blocks(len(block), slices_at_once(rule.channels, planes, workers.threads)):
            with times.of("resample back"):
                held |= dict(enumerate(workers.run(way.within, block[some]), read))
                read += len(block[some])
            with times.of("decide"):
                end = int(np.searchsorted(highest, read))
                ready = [(z, _Taps(along, z, held)) for z in range(made, end)]
                workers.run(lambda one: way.finish(*one), ready)
                made = end
            needed = int(lowest[made]) if made < len(lowest) else read
            held = {number: one for number, one in held.items() if number >= needed}
        with times.of("resample back"):
            held = {number: way.kept(one) for number, one in held.items()}


class _Taps:
    """The slices that a new one is made of, each with its share."""

    def __init__(self, along: LinearInterpolation, z: int, held: dict[int, Any]) -> None:
        pairs = zip(along.index[z].tolist(), along.weight[z].tolist(), strict=True)
        self.every = [(held[number], np.float32(share)) for number, share in pairs if share]


class _Way(ABC):
    """A way from slices on the network's grid to a slice of the image's."""

    @abstractmethod
    def within(self, one: AnyArray) -> Any:
        """Do what can be done with a slice (channels, y, x) alone."""

    @abstractmethod
    def finish(self, z: int, taps: _Taps) -> None:
        """Decide on the image's slice ``z``."""

    def kept(self, made: Any) -> Any:
        """The result of ``within``, so that it outlives the slice that it was made of."""
        return made


class _Resampled(_Way):
    """Every voxel is resampled, and decided by its logits."""

    def __init__(self, within: Sequence[LinearInterpolation], rule: Rule, target: Target) -> None:
        self._within, self._rule, self._target = within, rule, target

    def within(self, one: AnyArray) -> AnyArray:
        for axis, interpolation in enumerate(self._within, 1):
            one = interpolation.apply(one, axis)
        return one

    def kept(self, made: AnyArray) -> AnyArray:
        return made.copy()

    def finish(self, z: int, taps: _Taps) -> None:
        (first, share), *others = taps.every
        width = first.shape[2]
        for rows in self._rule.rows_at_once(first.shape[1], width):
            mixed = first[:, rows] if share == 1 else first[:, rows] * share
            for other, its in others:
                mixed = mixed + other[:, rows] * its
            logits = self._rule.logits(mixed.reshape(len(mixed), -1))
            decided = self._rule.values[self._rule.decided(logits)]
            self._target.labels[z, rows] = decided.reshape(-1, width)
            if self._target.probabilities is not None:
                found = self._rule.probabilities(logits).reshape(-1, mixed.shape[1], width)
                place = self._target.probabilities[:, z, rows]
                place[...] = place + found if self._target.add else found


@dataclass(frozen=True)
class _Corners:
    """A slice on the network's grid, for voxels whose corners may agree.

    Attributes:
        agreed: For each of the image's voxels within the plane (y, x), the number of the output that wins at all of the
            slice's voxels that it is made of; the type's largest number where no one does.
        rows: The slice's numbers, (y * x, channels).
        width: Its size along x.
    """

    agreed: AnyArray
    rows: AnyArray
    width: int


class _Decided(_Way):
    """Voxels are decided by the network's voxels around, where these agree; the others are resampled.

    A resampled logit is a mean of those around, with weights that aren't negative. So an output that wins at all of
    them wins in the mean, and a region whose logit is above 0 at all of them is above 0.
    """

    def __init__(self, within: Sequence[LinearInterpolation], rule: Rule, target: Target) -> None:
        self._y, self._x = within
        self._rule, self._target = rule, target
        self._none = np.iinfo(rule.kind).max
        self._values = np.zeros(int(self._none) + 1, target.labels.dtype)
        self._values[: len(rule.values)] = rule.values

    def within(self, one: AnyArray) -> _Corners:
        channels, height, width = one.shape
        rows = np.empty((height * width, channels), np.float32)
        wins = np.empty(height * width, self._rule.kind)
        for some in self._rule.rows_at_once(height, width):
            part = np.ascontiguousarray(one[:, some]).reshape(channels, -1)
            voxels = slice(some.start * width, some.stop * width)
            rows[voxels] = part.T
            wins[voxels] = self._rule.decided(self._rule.logits(part))
        agreed = wins.reshape(height, width)
        for axis, along in enumerate((self._y, self._x)):
            agreed = self._together([np.take(agreed, index, axis) for index in along.index.T])
        return _Corners(agreed, rows, width)

    def _together(self, every: list[AnyArray]) -> AnyArray:
        """The numbers that arrays agree on; where they don't, none."""
        first, *others = every
        for other in others:
            first[first != other] = self._none
        return first

    def finish(self, z: int, taps: _Taps) -> None:
        agreed = taps.every[0][0].agreed
        if len(taps.every) > 1:
            agreed = self._together([agreed.copy(), *(one.agreed for one, _ in taps.every[1:])])
        labels = self._values[agreed]
        undecided = agreed == self._none
        for rows in self._rule.rows_at_once(*labels.shape):
            y, x = np.nonzero(undecided[rows])
            if len(y):
                decided = self._rule.decided_rows(self._mixed(self._lines(rows, taps), y, x))
                labels[rows][y, x] = self._rule.values[decided]
        self._target.labels[z] = labels

    def _lines(self, rows: slice, taps: _Taps) -> AnyArray:
        """The numbers of some of the image's rows, (rows, x, channels), still on the network's grid along x."""
        index, weight = self._y.index[rows], self._y.weight[rows]
        begin, end = int(index.min()), int(index.max()) + 1
        width = taps.every[0][0].width
        parts = [(one.rows[begin * width : end * width], share) for one, share in taps.every]
        plane = _mean(parts).reshape(end - begin, -1)
        lines = _mean([(plane[old - begin], share[:, None]) for old, share in zip(index.T, weight.T, strict=True)])
        return lines.reshape(len(index), width, -1)

    def _mixed(self, lines: AnyArray, y: npt.NDArray[np.int64], x: npt.NDArray[np.int64]) -> AnyArray:
        """The numbers (voxels, channels) of the voxels (y, x) of what ``_lines`` gives."""
        taps = zip(self._x.index.T, self._x.weight.T, strict=True)
        line, lines = y * lines.shape[1], lines.reshape(-1, lines.shape[2])
        return _mean([(lines.take(line + index[x], axis=0), weight[x, None]) for index, weight in taps])


def _mean(parts: Sequence[tuple[AnyArray, AnyArray | np.float32]]) -> AnyArray:
    """The sum of arrays, each multiplied by its share."""
    (first, share), *others = parts
    total: AnyArray = first * share
    for other, its in others:
        total += other * its
    return total


def _way(interpolations: Sequence[LinearInterpolation], rule: Rule, target: Target) -> _Way:
    """The way that takes less time: by corners where the image's grid has more voxels than the network's."""
    within = interpolations[1:]
    old = math.prod(int(one.index.max()) + 1 for one in interpolations)
    convex = all((one.weight >= 0).all() for one in interpolations)
    if convex and target.probabilities is None and target.labels.size > old:
        return _Decided(within, rule, target)
    return _Resampled(within, rule, target)
