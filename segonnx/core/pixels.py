"""Pictures of 8 bits: how their axes lie, and the numbers that a network sees of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Bytes = npt.NDArray[np.uint8]

Layout = Literal["NHWC", "NCHW"]
"""The order of a picture's axes: batch, rows, columns and colours, as files and cameras give them, or colours first."""
Size = TypeVar("Size")

HIGHEST = 255
"""The largest number of 8 bits, which is 1 once pictures are scaled to 0..1."""


def channels_first(shape: Sequence[Size], layout: str | None) -> list[Size]:
    """A shape of pictures with its channels behind the batch.

    Args:
        shape: in the order of ``layout``.
        layout: a ``Layout``; None is of what has its channels there already.
    """
    return [shape[0], shape[-1], *shape[1:-1]] if layout == "NHWC" else list(shape)


def arranged(pictures: npt.NDArray[Any], layout: str) -> npt.NDArray[Any]:
    """Pictures (N, C, H, W) in the order of ``layout``, in one piece."""
    import numpy as np

    return np.ascontiguousarray(pictures.transpose(0, 2, 3, 1) if layout == "NHWC" else pictures)


@dataclass(frozen=True)
class Pixels:
    """What a graph is given that takes pictures of 8 bits, and how it normalises them.

    Attributes:
        layout: the order of the axes that the graph takes.
        mean: of each channel, of pictures that are scaled to 0..1.
        std: the standard deviation of each channel, alike.
    """

    layout: Layout
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def shape(self, shape: Sequence[Size]) -> list[Size]:
        """A shape (N, C, H, W) as the graph takes it."""
        batch, channels, *spatial = shape
        return [batch, *spatial, channels] if self.layout == "NHWC" else list(shape)

    def arranged(self, pictures: Bytes) -> Bytes:
        """Pictures (N, C, H, W) as the graph takes them."""
        return arranged(pictures, self.layout)

    def normalised(self, pictures: Bytes) -> npt.NDArray[np.float32]:
        """What the network sees of pictures (N, C, H, W): (picture / 255 - mean) / std, each step in float32."""
        import numpy as np

        x = pictures.astype(np.float32)
        x /= np.float32(HIGHEST)
        x -= self._by_channel(self.mean)
        x /= self._by_channel(self.std)
        return x

    def nearest(self, x: npt.NDArray[np.float32]) -> Bytes:
        """The pictures of which the network sees what is nearest to ``x`` (N, C, H, W), cut to 0..255."""
        import numpy as np

        scaled = x.astype(np.float64) * self._by_channel(self.std) + self._by_channel(self.mean)
        return np.rint(np.clip(HIGHEST * scaled, 0, HIGHEST)).astype(np.uint8)

    @staticmethod
    def _by_channel(numbers: Sequence[float]) -> npt.NDArray[np.float32]:
        import numpy as np

        return np.array(numbers, np.float32).reshape(-1, 1, 1)
