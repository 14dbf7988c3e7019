"""The 3D convolutions of a network whose algorithm can be chosen, as tuning and manifests name them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """A convolution in its place. Those that are alike in this get the same algorithm.

    Attributes:
        sources: for each part of the input, its channels and how many neighbouring slices of it are alike.
        outputs: output channels.
        kernel: sizes in depth, height and width.
        strides: in depth, height and width.
        pads: zeros before depth, height and width, and after them.
        size: depth, height and width of the input.
        dilations: in depth, height and width.
        groups: that the channels are divided into.
    """

    sources: tuple[tuple[int, int], ...]
    outputs: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    size: tuple[int, ...]
    dilations: tuple[int, ...] = (1, 1, 1)
    groups: int = 1

    @property
    def inputs(self) -> int:
        """Input channels."""
        return sum(channels for channels, _ in self.sources)

    @property
    def weights(self) -> int:
        """Numbers in the weight."""
        return self.inputs * self.outputs * math.prod(self.kernel) // self.groups

    def __str__(self) -> str:
        def numbers(values: Sequence[int]) -> str:
            return str(values[0]) if len(set(values)) == 1 else "x".join(map(str, values))

        inputs = "+".join(f"{channels}" if alike == 1 else f"{channels}(x{alike})" for channels, alike in self.sources)
        more = f" d{numbers(self.dilations)}" if set(self.dilations) != {1} else ""
        more += f" g{self.groups}" if self.groups > 1 else ""
        return (
            f"{inputs}->{self.outputs} k{numbers(self.kernel)} s{numbers(self.strides)} p{numbers(self.pads)}{more} "
            f"{'x'.join(map(str, self.size))}"
        )


@dataclass
class RewrittenLayer:
    """How a rewrite makes a layer.

    Attributes:
        layer: which.
        convolutions: how many are alike in it.
        algorithms: names of those that can make it, the chosen one among them.
        algorithm: name of the chosen one.
    """

    layer: Layer
    convolutions: int
    algorithms: tuple[str, ...]
    algorithm: str

    @property
    def weights(self) -> int:
        """Numbers in the weights of all its convolutions."""
        return self.convolutions * self.layer.weights

    @property
    def multiply_adds(self) -> int:
        """Of all its convolutions, as published."""
        layer = self.layer
        voxels = math.prod(size // stride for size, stride in zip(layer.size, layer.strides, strict=True))
        return self.weights * voxels
