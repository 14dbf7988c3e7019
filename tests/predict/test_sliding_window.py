from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from segonnx.predict import memory, sliding_window
from segonnx.predict.resampling import AnyArray
from segonnx.predict.sliding_window import Windows
from segonnx.predict.workers import Workers


def channels(x: AnyArray) -> AnyArray:
    """A network whose logits are the image and its double."""
    return np.concatenate([x[:, :1], 2 * x[:, :1]], axis=1)


def local(x: AnyArray) -> AnyArray:
    """A network whose logits depend on the position in the window, as those of real ones do near its edges."""
    place = np.add.outer(np.arange(x.shape[2]), np.add.outer(np.arange(x.shape[3]), np.arange(x.shape[4])))
    return np.stack([x[0, 0] + place, x[0, 0] * place])[None].astype(np.float32)


def together(image: AnyArray, forward: sliding_window.Forward, how: Windows, threads: int = 1, **more: Any) -> AnyArray:
    """All slices at once: each is copied before the next ones are asked for."""
    every = sliding_window.averaged(image, forward, how, Workers(threads), **more)
    return np.stack([one.copy() for some in every for one in some], axis=1)


def averaged(image: AnyArray, forward: sliding_window.Forward, window: tuple[int, ...], step: float) -> AnyArray:
    """The weighted mean over all windows, with all logits in memory."""
    gaussian = sliding_window.weights(window, 1 / 8)
    below = [max(0, need - size) // 2 for need, size in zip(window, image.shape[1:], strict=True)]
    above = [max(0, need - size) - low for need, size, low in zip(window, image.shape[1:], below, strict=True)]
    padded = np.pad(image, [(0, 0), *zip(below, above, strict=True)])
    total, weight = np.zeros((2, *padded.shape[1:])), np.zeros(padded.shape[1:])
    every = (sliding_window.starts(size, need, step) for size, need in zip(padded.shape[1:], window, strict=True))
    for start in itertools.product(*every):
        box = tuple(slice(a, a + size) for a, size in zip(start, window, strict=True))
        total[(slice(None), *box)] += forward(padded[(slice(None), *box)][None])[0] * gaussian
        weight[box] += gaussian
    inside = tuple(slice(low, low + size) for low, size in zip(below, image.shape[1:], strict=True))
    return (total / weight)[(slice(None), *inside)]


@pytest.mark.parametrize("shape", [(8, 8, 8), (20, 13, 9), (5, 30, 8), (3, 4, 5), (9, 8, 8)])
@pytest.mark.parametrize("step", [0.5, 1.0, 0.3])
@pytest.mark.parametrize("threads", [1, 3])
def test_slices_are_the_weighted_mean_over_all_windows(shape: tuple[int, ...], step: float, threads: int) -> None:
    image = np.random.default_rng(0).standard_normal((1, *shape)).astype(np.float32)
    calls: list[tuple[int, int]] = []
    how = Windows(2, (8, 8, 8), step, 1 / 8)
    found = together(image, local, how, threads, progress=lambda *done: calls.append(done))
    np.testing.assert_allclose(found, averaged(image, local, (8, 8, 8), step), rtol=1e-4, atol=1e-4)
    assert calls[-1][0] == calls[-1][1] == len(calls)


def test_windows_of_pictures_go_through_every_slice() -> None:
    image = np.random.default_rng(0).standard_normal((1, 37, 20, 11)).astype(np.float32)
    found = together(image, channels, Windows(2, (8, 8), 0.5, 1 / 8), 2)
    np.testing.assert_allclose(found[0], image[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[1], 2 * image[0], rtol=1e-5, atol=1e-6)


def test_mirrored_windows_are_mirrored_back() -> None:
    image = np.random.default_rng(0).standard_normal((1, 12, 12, 12)).astype(np.float32)
    seen = []

    def forward(x: AnyArray) -> AnyArray:
        seen.append(x)
        return channels(x)

    found = together(image, forward, Windows(2, (12, 12, 12), 0.5, 1 / 8, (0, 2)))
    np.testing.assert_allclose(found[0], image[0], rtol=1e-5, atol=1e-6)
    assert len(seen) == 4
    np.testing.assert_array_equal(seen[3][0], image[:, ::-1, :, ::-1])


@pytest.mark.parametrize(
    ("size", "window", "step", "expected"),
    [(110, 64, 0.5, [0, 23, 46]), (64, 64, 0.5, [0]), (65, 64, 0.5, [0, 1]), (128, 64, 1.0, [0, 64])],
)
def test_windows_begin_evenly(size: int, window: int, step: float, expected: list[int]) -> None:
    assert sliding_window.starts(size, window, step) == expected


def test_no_weight_is_zero() -> None:
    weights = sliding_window.weights((64, 96, 160), 1 / 8)
    assert weights.min() > 0
    assert weights.max() == 10


@pytest.mark.parametrize("window", [(4, 6, 8), (6, 8)])
def test_windows_side_by_side_give_the_same_numbers(window: tuple[int, ...]) -> None:
    rng = np.random.default_rng(3)
    image = rng.standard_normal((2, 9, 17, 22)).astype(np.float32)
    how = Windows(3, window, 0.5, 1 / 8, tuple(range(len(window))))

    def forward(x: AnyArray) -> AnyArray:
        return np.concatenate([x, x[:, :1] * 2 + np.arange(window[-1], dtype=np.float32)], axis=1)

    alone = together(image, forward, how)
    found = together(image, forward, how, 3, beside=[forward, forward])
    np.testing.assert_array_equal(found, alone)


def test_windows_that_a_cache_holds_are_added_as_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large ones are added slice by slice, and some channels at a time."""
    image = np.random.default_rng(4).standard_normal((3, 11, 17, 22)).astype(np.float32)
    how = Windows(3, (6, 8, 10), 0.5, 1 / 8)
    at_once = together(image, lambda x: x, how)
    for cached in (1, 90, 200):
        monkeypatch.setattr(sliding_window, "CACHED", cached)
        for threads in (1, 2):
            np.testing.assert_array_equal(together(image, lambda x: x, how, threads), at_once)


def test_windows_that_wait_to_be_added_have_a_bound() -> None:
    assert Windows(2, (4, 4, 4), 0.5, 1 / 8).together == sliding_window.TOGETHER
    large = Windows(8, (40, 40, 40), 0.5, 1 / 8)
    assert large.together == 1 == memory.TOGETHER // (4 * 8 * 40**3)
    assert Windows(8, (20, 20, 20), 0.5, 1 / 8).together == 8
