"""Interpolation along one axis: each new voxel is a weighted sum of a few old ones.

Indices and weights of PyTorch's modes are computed in float32, as PyTorch does: the nearest voxel is then the same one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

AnyArray = npt.NDArray[Any]
"""An array of any type; each function says which types it takes."""

_HALF = np.float32(0.5)
_CUBIC = -0.75
"""The parameter of PyTorch's cubic convolution."""


def centres(old: int, new: int) -> npt.NDArray[np.float64]:
    """The positions of the centres of ``new`` voxels, in units of the ``old`` voxels that cover the same length."""
    return old / new * (np.arange(new, dtype=np.float64) + 0.5) - 0.5


@dataclass(frozen=True)
class LinearInterpolation:
    """How the voxels along one axis are made of older ones.

    Attributes:
        index: For each new voxel, the indices of old ones, (new, taps).
        weight: For each new voxel, the weights of these, (new, taps). They add up to 1.
    """

    index: npt.NDArray[np.int64]
    weight: npt.NDArray[np.float32]

    @classmethod
    def between(cls, old: int, new: int, *, nearest: bool = False) -> LinearInterpolation:
        """Make the interpolation of ``new`` voxels from ``old`` ones that cover the same length, as SciPy does.

        Args:
            old: The number of voxels before.
            new: The number of voxels after.
            nearest: Take the nearest old voxel instead of a mean of two.
        """
        if old == new:
            return cls.of(np.arange(new))
        positions = centres(old, new)
        if nearest:
            return cls.of(np.clip(np.floor(positions + 0.5).astype(np.int64), 0, old - 1))
        within = np.clip(positions, 0, old - 1)
        lower = np.minimum(np.floor(within).astype(np.int64), max(old - 2, 0))
        return cls._pairs(lower, np.minimum(lower + 1, old - 1), (within - lower).astype(np.float32))

    @classmethod
    def of(cls, index: npt.NDArray[np.int64]) -> LinearInterpolation:
        """Take the old voxel ``index[i]`` as the new voxel i."""
        return cls(index[:, None], np.ones((len(index), 1), np.float32))

    @classmethod
    def torch(cls, mode: str, old: int, new: int) -> LinearInterpolation:
        """Make the interpolation of ``new`` voxels from ``old`` ones as PyTorch's ``interpolate`` does.

        Args:
            mode: PyTorch's mode.
            old: The number of voxels before.
            new: The number of voxels after.
        """
        if old == new:
            return cls.of(np.arange(new))
        return _MODES[mode](old, new)

    @classmethod
    def _pairs(
        cls, lower: npt.NDArray[np.int64], upper: npt.NDArray[np.int64], weight: npt.NDArray[np.float32]
    ) -> LinearInterpolation:
        return cls(np.stack([lower, upper], axis=1), np.stack([1 - weight, weight], axis=1).astype(np.float32))

    def matrix(self, old: int) -> npt.NDArray[np.float32]:
        """The matrix (new, old) that makes the new voxels of ``old`` ones."""
        made = np.zeros((len(self.index), old), np.float32)
        for index, weight in zip(self.index.T, self.weight.T, strict=True):
            made[np.arange(len(made)), index] += weight
        return made

    @property
    def identity(self) -> bool:
        """Whether each voxel is left as it is; only ``of`` makes these, and ``between`` for equal numbers."""
        first = np.arange(len(self.index))
        return bool((self.weight[:, 0] == 1).all()) and np.array_equal(self.index[:, 0], first)

    def apply(self, array: AnyArray, axis: int) -> AnyArray:
        """Interpolate an array along one of its axes."""
        if self.identity and len(self.index) == array.shape[axis]:
            return array
        shape = [-1 if other == axis else 1 for other in range(array.ndim)]
        result = np.take(array, self.index[:, 0], axis)
        if self.index.shape[1] == 1:
            return result
        result = result * self.weight[:, 0].reshape(shape)
        for tap in range(1, self.index.shape[1]):
            result += np.take(array, self.index[:, tap], axis) * self.weight[:, tap].reshape(shape)
        return result


def spline(old: int, new: int, order: int) -> npt.NDArray[np.float64]:
    """The matrix (new, old) of scikit-image's ``resize`` along one axis: splines are linear, and go axis by axis.

    Args:
        old: The number of voxels before.
        new: The number of voxels after.
        order: The spline's order.
    """
    from scipy.ndimage import zoom

    made: npt.NDArray[np.float64] = zoom(np.eye(old), [new / old, 1], order=order, mode="nearest", grid_mode=True)
    return made


def spline_apart(old: int, new: int, order: int) -> npt.NDArray[np.float64]:
    """The matrix (new, old) of SciPy's ``map_coordinates`` at the new voxels' centres, along one axis.

    Args:
        old: The number of voxels before.
        new: The number of voxels after.
        order: The spline's order.
    """
    from scipy.ndimage import map_coordinates

    if order == 0:
        slices: npt.NDArray[np.float64] = np.arange(old, dtype=np.float64)
        nearest = map_coordinates(slices, [centres(old, new)], order=0, mode="nearest").astype(np.int64)
        taken: npt.NDArray[np.float64] = np.eye(old)[nearest]
        return taken
    where = np.meshgrid(centres(old, new), np.arange(old, dtype=np.float64), indexing="ij")
    made: npt.NDArray[np.float64] = map_coordinates(np.eye(old), where, order=order, mode="nearest")
    return made


def _source(old: int, new: int, *, fused: bool) -> npt.NDArray[np.float32]:
    """Positions in units of old voxels.

    Args:
        old: The number of voxels before.
        new: The number of voxels after.
        fused: PyTorch's kernel for two axes multiplies and subtracts with one rounding, on processors with AVX2 or
            more. Those for one axis and for three round twice. A voxel halfway between two labels depends on it.
    """
    scale = np.float32(old) / np.float32(new)
    centre = np.arange(new, dtype=np.float32) + _HALF
    if fused:  # float64 holds the product exactly
        return (centre.astype(np.float64) * scale - _HALF).astype(np.float32)
    return scale * centre - _HALF


def _linear(old: int, new: int, *, fused: bool = False) -> LinearInterpolation:
    position = np.maximum(_source(old, new, fused=fused), np.float32(0))
    lower = np.minimum(np.floor(position).astype(np.int64), old - 1)
    weight = np.clip(position - lower.astype(np.float32), 0, 1)
    return LinearInterpolation._pairs(lower, np.minimum(lower + 1, old - 1), weight)


def _cubic(old: int, new: int) -> LinearInterpolation:
    position = _source(old, new, fused=True)  # there are kernels for two axes alone
    lower = np.minimum(np.floor(position).astype(np.int64), old - 1)
    t = np.clip(position - lower.astype(np.float32), 0, 1).astype(np.float32)

    def near(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:  # up to one voxel away
        return ((_CUBIC + 2) * x - (_CUBIC + 3)) * x * x + 1

    def far(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:  # one to two voxels away
        return ((_CUBIC * x - 5 * _CUBIC) * x + 8 * _CUBIC) * x - 4 * _CUBIC

    weight = np.stack([far(t + 1), near(t), near(1 - t), far(2 - t)], axis=1).astype(np.float32)
    return LinearInterpolation(np.clip(lower[:, None] + np.arange(-1, 3), 0, old - 1), weight)


def _nearest(old: int, new: int) -> LinearInterpolation:
    scale = np.float32(old) / np.float32(new)
    position = np.floor(np.arange(new, dtype=np.float32) * scale).astype(np.int64)
    return LinearInterpolation.of(np.minimum(position, old - 1))


def _nearest_exact(old: int, new: int) -> LinearInterpolation:
    scale = np.float32(old) / np.float32(new)
    position = np.floor((np.arange(new, dtype=np.float32) + _HALF) * scale).astype(np.int64)
    return LinearInterpolation.of(np.minimum(position, old - 1))


def _area(old: int, new: int) -> LinearInterpolation:
    first = np.arange(new) * old // new
    count = 1 + ((np.arange(new) + 1) * old - 1) // new - first
    taps = np.arange(count.max())
    weight = np.where(taps < count[:, None], 1 / count[:, None], 0).astype(np.float32)
    return LinearInterpolation(np.minimum(first[:, None] + taps, old - 1), weight)


_MODES: dict[str, Callable[[int, int], LinearInterpolation]] = {
    "linear": _linear,
    "bilinear": partial(_linear, fused=True),
    "trilinear": _linear,
    "bicubic": _cubic,
    "nearest": _nearest,
    "nearest-exact": _nearest_exact,
    "area": _area,
}
