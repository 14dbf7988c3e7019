"""Labels on the image's grid: those that corners decide are those that logits decide."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from segonnx.predict import labelling, memory
from segonnx.predict.heads import Head
from segonnx.predict.interpolation import LinearInterpolation
from segonnx.predict.labelling import Rule, Target
from segonnx.predict.predictor import Artifact
from segonnx.predict.preprocessing import Times
from segonnx.predict.resampling import AnyArray
from segonnx.predict.workers import Workers

OLD, NEW = (6, 11, 9), (13, 19, 21)


def _rule(loaded: Artifact, outputs: int, *, regions: bool, features: int | None = None, level: int = 0) -> Rule:
    values = tuple(range(1, outputs + 1)) if regions else tuple(range(outputs))
    chosen = replace(loaded.config, regions=regions, label_values=values)
    rng = np.random.default_rng(level)
    if features is None:
        return Rule(chosen, None)
    bias = rng.standard_normal(outputs).astype(np.float32)
    return Rule(chosen, Head(rng.standard_normal((outputs, features)).astype(np.float32), bias))


def _channels(count: int, smooth: float) -> AnyArray:
    rng = np.random.default_rng(1)
    found = np.stack([gaussian_filter(rng.standard_normal(OLD), smooth) for _ in range(count)])
    return (found / found.std()).astype(np.float32)


def _in_blocks(channels: AnyArray, length: int) -> Iterator[list[AnyArray]]:
    """Slices whose memory is taken by the next ones, as those of windows are."""
    ring = np.empty((length, *channels[:, 0].shape), np.float32)
    for begin in range(0, channels.shape[1], length):
        count = min(length, channels.shape[1] - begin)
        ring[:] = np.nan
        ring[:count] = channels[:, begin : begin + count].swapaxes(0, 1)
        yield list(ring[:count])


def _filled(channels: AnyArray, every: list[LinearInterpolation], rule: Rule, threads: int, length: int) -> AnyArray:
    labels = np.full([len(one.index) for one in every], 99, np.uint16)
    workers = Workers(threads)
    labelling.fill(_in_blocks(channels, length), every, rule, Target(labels), workers, Times())
    return labels


def _expected(channels: AnyArray, every: list[LinearInterpolation], rule: Rule) -> AnyArray:
    """All logits at once, resampled."""
    logits = channels
    if rule.head is not None:
        assert rule.head.bias is not None
        logits = np.tensordot(rule.head.weight, channels, 1) + rule.head.bias[:, None, None, None]
    for axis, one in enumerate(every, 1):
        logits = one.apply(logits, axis)
    values = np.asarray(rule.config.label_values)
    if not rule.config.regions:
        return values[logits.argmax(axis=0)]
    labels = np.zeros(logits.shape[1:], np.int64)
    for value, region in zip(values, logits, strict=True):
        labels[region > 0] = value
    return labels


def _linear(old: tuple[int, ...], new: tuple[int, ...]) -> list[LinearInterpolation]:
    return [LinearInterpolation.between(before, after) for before, after in zip(old, new, strict=True)]


@pytest.mark.parametrize("features", [None, 5])
@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("smooth", [0.3, 2.0])
@pytest.mark.parametrize(("threads", "length", "voxels"), [(1, 1, memory.VOXELS), (3, 4, 50)])
def test_labels_are_those_of_all_logits_at_once(
    features: int | None,
    regions: bool,
    smooth: float,
    threads: int,
    length: int,
    voxels: int,
    loaded: Artifact,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "VOXELS", voxels)  # decided at a time: all of these slices, or two or three rows
    monkeypatch.setattr(memory, "LOGITS", 8 * voxels)
    rule = _rule(loaded, 8, regions=regions, features=features)
    channels = _channels(rule.channels, smooth)
    apart = [LinearInterpolation.between(OLD[0], NEW[0], nearest=True), *_linear(OLD[1:], NEW[1:])]
    cubic = [LinearInterpolation.torch("bicubic", before, after) for before, after in zip(OLD, NEW, strict=True)]
    for every in (
        _linear(OLD, NEW),
        apart,
        cubic,
        _linear(OLD, OLD),
        _linear(OLD, (3, 5, 9)),
        _linear(OLD, (30, 3, 9)),
    ):
        found = _filled(channels, every, rule, threads, length)
        assert np.mean(found == _expected(channels, every, rule)) > 0.999
        assert len(np.unique(found)) > 3


@dataclass(frozen=True)
class _Unasked(Head):
    """A head that can't be asked about voxels between those of the network."""

    def logits_rows(self, rows: AnyArray) -> Any:
        raise AssertionError("a voxel whose corners agree was resampled")


@pytest.mark.parametrize("regions", [False, True])
def test_where_all_corners_agree_nothing_is_resampled(regions: bool, loaded: Artifact) -> None:
    rule = _rule(loaded, 8, regions=regions, features=5)
    assert rule.head is not None
    rule = replace(rule, head=_Unasked(rule.head.weight, rule.head.bias))
    channels = np.broadcast_to(_channels(5, 0.3)[:, :1, :1, :1], (5, *OLD)).copy()
    labels = _filled(channels, _linear(OLD, NEW), rule, 2, 4)
    assert len(np.unique(labels)) == 1
    channels *= 3000  # more than the bias
    channels[:, 3:] *= -1
    with pytest.raises(AssertionError, match="was resampled"):
        _filled(channels, _linear(OLD, NEW), rule, 2, 4)


@pytest.mark.parametrize("outputs", [1, 254, 255, 300])
def test_every_number_of_outputs_has_numbers_of_its_own(outputs: int, loaded: Artifact) -> None:
    for regions in (False, True):
        rule = _rule(loaded, outputs, regions=regions)
        channels = _channels(outputs, 1.0)
        channels[-1, :, 4:] = 20  # the last one is there, too
        every = _linear(OLD, NEW)
        np.testing.assert_array_equal(_filled(channels, every, rule, 1, 6), _expected(channels, every, rule))


def test_of_equal_logits_the_first_one_wins(loaded: Artifact) -> None:
    rule = _rule(loaded, 5, regions=False)
    logits = np.array([[1, 2, 0], [3, 2, 0], [3, 2, 0], [0, 2, 1], [3, 0, 1]], np.float32)
    assert rule.decided(logits).tolist() == logits.argmax(axis=0).tolist() == [1, 0, 3]
    assert rule.decided_rows(np.ascontiguousarray(logits.T)).tolist() == [1, 0, 3]


def test_an_error_in_a_thread_is_raised_when_all_have_ended() -> None:
    ended = []

    def work(item: int) -> int:
        if item == 1:
            raise ValueError("one")
        ended.append(item)
        return item

    with pytest.raises(ValueError, match="one"):
        Workers(2).run(work, range(6))
    assert sorted(ended) == [0, 2, 3, 4, 5]
    assert Workers(3).run(lambda item: item * item, range(5)) == [0, 1, 4, 9, 16]
    assert Workers(1).run(lambda item: item * item, range(5)) == [0, 1, 4, 9, 16]
