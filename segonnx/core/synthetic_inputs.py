"""The inputs that networks are checked and timed on: made from a seed, the same on every machine."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from segonnx.core.pixels import HIGHEST

if TYPE_CHECKING:
    from segonnx.core.pixels import Bytes

Array = npt.NDArray[np.float32]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
NAMES = ("noise", "phantom", "constant")
"""The names of the inputs that ``make`` knows."""

# (centre, half axes, Hounsfield units) of ellipsoids in a cube from -1 to 1 along (z, y, x), painted one over another.
_ORGANS = (
    ((0.0, 0.0, 0.0), (1.6, 0.72, 0.92), 40.0),  # trunk
    ((-0.5, -0.1, -0.42), (0.6, 0.46, 0.34), -820.0),  # lungs
    ((-0.5, -0.1, 0.42), (0.6, 0.46, 0.34), -820.0),
    ((-0.35, -0.2, 0.1), (0.35, 0.28, 0.26), 120.0),  # heart
    ((0.35, -0.05, -0.4), (0.45, 0.42, 0.4), 65.0),  # liver
    ((0.45, -0.2, 0.45), (0.3, 0.24, 0.22), 50.0),  # spleen
    ((0.7, 0.28, -0.38), (0.26, 0.14, 0.12), 180.0),  # kidneys
    ((0.7, 0.28, 0.38), (0.26, 0.14, 0.12), 180.0),
    ((0.0, 0.5, 0.0), (1.6, 0.13, 0.14), 700.0),  # spine
    ((0.2, 0.3, 0.08), (1.4, 0.07, 0.07), 220.0),  # aorta
)
_AIR = -1000.0


@dataclass(frozen=True)
class ParityInput:
    """A description of a test input: small enough to cross to another process, which makes the array.

    Attributes:
        kind: a name of ``NAMES``.
        shape: (N, C, spatial...).
        seed: the seed of its noise.
    """

    kind: str
    shape: tuple[int, ...]
    seed: int = 0

    @property
    def name(self) -> str:
        """Kind and shape, for people."""
        return f"{self.kind} {'x'.join(map(str, self.shape))}"

    def make(self, modality: str) -> Array:
        """The array, for a network of this modality (see ``make``)."""
        return make(self.kind, self.shape, modality, self.seed)


def make(name: str, shape: tuple[int, ...], modality: str, seed: int = 0) -> Array:
    """One test input.

    Args:
        name: ``noise`` (standard normal), ``phantom`` (a trunk of ellipsoids, normalised as the modality's networks
            are fed) or ``constant`` (one value everywhere, as in padding).
        shape: (N, C, spatial...).
        modality: ``CT``, ``RGB`` or ``other``.
        seed: the seed of the noise.

    Returns:
        float32, of that shape.
    """
    if name == "noise":
        return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    if name == "phantom":
        return phantom(shape, modality, seed)
    if name == "constant":
        return np.full(shape, 0.5, dtype=np.float32)
    raise ValueError(f"no input is called {name!r}; there are {', '.join(NAMES)}")


def phantom(shape: tuple[int, ...], modality: str, seed: int = 0) -> Array:
    """A deterministic CT-like phantom in Hounsfield units with a little noise, normalised for the modality.

    For RGB: a soft-tissue window to 0..1, then the mean and standard deviation of ImageNet per channel. For all others:
    clipped to its 0.5 and 99.5 percentiles, then centred and scaled by mean and standard deviation of what
    isn't air, as nnU-Net does. 2D shapes show the slice through the middle.
    """
    image, anatomy = _anatomy(shape, seed)
    if modality == "RGB":
        image = _window(image)
        for channel in range(shape[1]):
            which = channel % 3
            image[:, channel] = (image[:, channel] - IMAGENET_MEAN[which]) / IMAGENET_STD[which]
    else:
        inside = image[np.broadcast_to(anatomy > _AIR, image.shape)]
        low, high = np.percentile(inside, (0.5, 99.5))
        inside = np.clip(inside, low, high)
        image = (np.clip(image, low, high) - inside.mean()) / inside.std()
    return np.ascontiguousarray(image.reshape(shape), dtype=np.float32)


def pictures(name: str, shape: tuple[int, ...], seed: int = 0) -> Bytes:
    """One test input of a network that takes pictures of 8 bits.

    Args:
        name: ``noise`` (all numbers alike), ``phantom`` (see there, in its soft-tissue window) or ``constant`` (128).
        shape: (N, C, H, W).
        seed: the seed of the noise.

    Returns:
        uint8, of that shape.
    """
    if name == "noise":
        return np.random.default_rng(seed).integers(0, HIGHEST, shape, np.uint8, endpoint=True)
    if name == "phantom":
        window = _window(_anatomy(shape, seed)[0]).reshape(shape)
        return np.ascontiguousarray(np.rint(HIGHEST * window).astype(np.uint8))
    if name == "constant":
        return np.full(shape, 128, np.uint8)
    raise ValueError(f"no input is called {name!r}; there are {', '.join(NAMES)}")


def _anatomy(shape: tuple[int, ...], seed: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The phantom (N, C, D, H, W) in Hounsfield units with its noise, and one without (D, H, W)."""
    batch, channels, *spatial = shape
    depth = spatial if len(spatial) == 3 else [1, *spatial]
    axes = [np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in depth]
    z, y, x = np.meshgrid(*axes, indexing="ij", sparse=True)
    units = np.full(depth, _AIR)
    for (cz, cy, cx), (az, ay, ax), value in _ORGANS:
        units[((z - cz) / az) ** 2 + ((y - cy) / ay) ** 2 + ((x - cx) / ax) ** 2 <= 1] = value
    noise = np.random.default_rng(seed).standard_normal((batch, channels, *depth))
    return units + 12.0 * noise, units


def _window(image: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Hounsfield units in a soft-tissue window, from 0 to 1."""
    return np.clip((image + 160.0) / 400.0, 0, 1)


def sha256(x: npt.NDArray[Any]) -> str:
    """SHA-256 of the array's bytes in C order, as hexadecimal digits."""
    return hashlib.sha256(np.ascontiguousarray(x).data).hexdigest()
