"""The algorithms that make a 3D convolution of 2D ones over depth slices, and the choice between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from segonnx.optimize.algorithms.convolution import Algorithm, Convolution
from segonnx.optimize.algorithms.taps import TAPS
from segonnx.optimize.algorithms.winograd import WINOGRAD
from segonnx.optimize.algorithms.winograd4 import WINOGRAD4
from segonnx.optimize.layers import RewrittenLayer
from segonnx.optimize.slices import Slices

ALGORITHMS: Mapping[str, Algorithm] = {
    "taps": TAPS,
    "winograd": WINOGRAD,
    "winograd4": WINOGRAD4,
}
"""Every algorithm, by the name that manifests have it under."""

EARLIER: Mapping[str, str | None] = {"stacked": None, "pairs": None, "winograd4_matmul": "winograd4"}
"""Names in earlier tunings: what makes such a layer now, None for the default."""

WINOGRAD4_OUTPUTS = range(16, 257)
"""Output channels of F(4, 3). With fewer, its transforms cost more than it saves; with more, its weights are most of
the network's."""


def possible(conv: Convolution, sources: Sequence[Slices]) -> tuple[str, ...]:
    """The names of the algorithms that can make the convolution."""
    return tuple(name for name, algorithm in ALGORITHMS.items() if algorithm.applies(conv, sources))


def default(conv: Convolution, names: Sequence[str]) -> str:
    """The algorithm that was fastest where it was measured; see docs/decisions/0096.

    Args:
        conv: the convolution.
        names: of the algorithms that can make it.
    """
    if "winograd" not in names or conv.outputs < WINOGRAD4_OUTPUTS.start:
        return "taps"
    if "winograd4" not in names or conv.outputs not in WINOGRAD4_OUTPUTS:
        return "winograd"
    return "winograd4"


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
