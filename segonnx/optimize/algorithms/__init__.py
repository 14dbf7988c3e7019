"""The algorithms that make a 3D convolution of 2D ones over depth slices, and the choice between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from segonnx.optimize.algorithms.convolution import Algorithm, Convolution
from segonnx.optimize.algorithms.pairs import PAIRS
from segonnx.optimize.algorithms.stacked import STACKED
from segonnx.optimize.algorithms.taps import TAPS
from segonnx.optimize.algorithms.winograd import WINOGRAD
from segonnx.optimize.algorithms.winograd4 import WINOGRAD4, WINOGRAD4_MATMUL
from segonnx.optimize.layers import RewrittenLayer
from segonnx.optimize.slices import Slices, Volume

ALGORITHMS: Mapping[str, Algorithm] = {
    "taps": TAPS,
    "stacked": STACKED,
    "pairs": PAIRS,
    "winograd": WINOGRAD,
    "winograd4": WINOGRAD4,
    "winograd4_matmul": WINOGRAD4_MATMUL,
}
"""Every algorithm, by the name that manifests have it under."""

FEW_INPUTS = 4
"""Up to so many input channels, slices are stacked."""
FEW_OUTPUTS = 15
"""Up to so many output channels, slices are taken in pairs."""
WINOGRAD4_OUTPUTS = range(16, 257)
"""Output channels of F(4, 3). With fewer, its transforms cost more than it saves; with more, its weights are most of
the network's."""
LARGE_SLICE = 2**20
"""Bytes of a slice from which F(4, 3) is made of operators on slices: the caches don't hold a dozen of them."""


def possible(conv: Convolution, sources: Sequence[Slices]) -> tuple[str, ...]:
    """The names of the algorithms that can make the convolution."""
    return tuple(name for name, algorithm in ALGORITHMS.items() if algorithm.applies(conv, sources))


def default(conv: Convolution, sources: Volume, names: Sequence[str]) -> str:
    """The algorithm that was fastest where it was measured; see docs/performance.md.

    Args:
        conv: the convolution.
        sources: whose channels together are the input's.
        names: of the algorithms that can make it.
    """
    if "stacked" in names and sources[0].channels <= FEW_INPUTS:
        return "stacked"
    if "winograd" not in names:
        return "taps"
    if conv.outputs <= FEW_OUTPUTS:
        return "pairs"
    if "winograd4" not in names or conv.outputs not in WINOGRAD4_OUTPUTS:
        return "winograd"
    channels = max(conv.outputs, *(source.channels for source in sources))
    large = 4 * channels * sources[0].height * sources[0].width > LARGE_SLICE
    return "winograd4" if large else "winograd4_matmul"


def bounded(layers: Mapping[str, RewrittenLayer], growth: float) -> dict[str, str]:
    """Algorithms whose weights, taken together, are at most ``growth`` times those of the convolutions.

    The weights that grow for the fewest voxels, and so save the least time for their bytes, give way first.

    Args:
        layers: with the algorithms that they would have, by their text.
        growth: the bound.

    Returns:
        The name of an algorithm for each layer, by its text.
    """
    chosen = {text: layer.algorithm for text, layer in layers.items()}

    def derived() -> float:
        return sum(ALGORITHMS[chosen[text]].weight_growth * layer.weights for text, layer in layers.items())

    def voxels(text: str) -> int:
        depth, height, width = layers[text].layer.size
        return depth * height * width

    allowed = growth * sum(layer.weights for layer in layers.values())
    for text in sorted(layers, key=lambda text: (voxels(text), text)):
        for lighter in ("winograd", "taps"):
            saves = ALGORITHMS[lighter].weight_growth < ALGORITHMS[chosen[text]].weight_growth
            if saves and lighter in layers[text].algorithms and derived() > allowed:
                chosen[text] = lighter
    return chosen
