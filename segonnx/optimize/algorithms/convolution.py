"""A 3D convolution over depth slices, as a sum of 2D ones over the taps of its kernel in depth.

    y[d] = sum over k of conv2d(x[d * stride - pad + k * dilation], w[:, :, k])

ONNX Runtime's CPU provider has blocked kernels for 2D convolutions only: they run two to three times as many
operations per second as its 3D ones. It adds each 2D convolution to the sum inside its kernel. The 2D weights are
derived from the 3D one, which stays in the file as it was published, by nodes that ONNX Runtime computes once, when it
loads the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from segonnx.optimize.builder import Builder
from segonnx.optimize.slices import Slices


@dataclass(frozen=True)
class Convolution:
    """A 3D convolution.

    Attributes:
        weight: (output channels, input channels of a group, depth, height, width).
        bias: of the output channels, or None.
        kernel: sizes in depth, height and width.
        strides: in depth, height and width.
        pads: zeros before depth, height and width, and after them.
        outputs: output channels.
        dilations: in depth, height and width.
        groups: that the channels are divided into.
    """

    weight: ir.Value
    bias: ir.Value | None
    kernel: tuple[int, int, int]
    strides: tuple[int, int, int]
    pads: tuple[int, int, int, int, int, int]
    outputs: int
    dilations: tuple[int, int, int] = (1, 1, 1)
    groups: int = 1

    @property
    def extents(self) -> tuple[int, ...]:
        """Voxels from the first tap to the last in depth, height and width."""
        return tuple((size - 1) * apart + 1 for size, apart in zip(self.kernel, self.dilations, strict=True))

    def index(self, output: int, tap: int) -> int:
        """The slice of the input that a tap takes for a slice of the output."""
        return output * self.strides[0] - self.pads[0] + tap * self.dilations[0]

    def sizes(self, source: Slices) -> tuple[int, int, int]:
        """Sizes of the output: depth of a chunk, height and width."""
        before = (source.depth, source.height, source.width)
        depth, height, width = (
            (size + self.pads[i] + self.pads[i + 3] - self.extents[i]) // self.strides[i] + 1
            for i, size in enumerate(before)
        )
        return depth // source.chunks, height, width

    def taps(self, build: Builder, sources: Sequence[Slices]) -> list[list[ir.Value]]:
        """For each source, whose channels are some of the input's, the 2D kernels of the taps in depth."""
        weights = build.split(self.weight, [source.channels for source in sources], 1)
        return [[build("Gather", weight, build.scalar(k), axis=2) for k in range(self.kernel[0])] for weight in weights]

    def conv2d(
        self, build: Builder, x: ir.Value, weight: ir.Value, bias: ir.Value | None = None, groups: int = 1
    ) -> ir.Value:
        """A 2D convolution with this one's kernel, strides and padding in the plane."""
        inputs = (x, weight) if bias is None else (x, weight, bias)
        plane = {
            "kernel_shape": self.kernel[1:], "strides": self.strides[1:], "pads": (*self.pads[1:3], *self.pads[4:6])
        }  # fmt: skip
        if self.dilations[1:] != (1, 1):
            plane["dilations"] = self.dilations[1:]
        return build("Conv", *inputs, **plane, group=groups * self.groups)

    def sum_of_taps(
        self, build: Builder, sources: Sequence[Slices], kernels: Sequence[Sequence[ir.Value]], index: int
    ) -> ir.Value:
        """One slice of the output, (L, outputs, H, W).

        Args:
            build: takes the nodes.
            sources: whose channels together are the input's.
            kernels: of each source, as ``taps`` gives them.
            index: of the slice.
        """
        total: ir.Value | None = None
        for k in range(self.kernel[0]):
            for source, weights in zip(sources, kernels, strict=True):
                x = source.get(self.index(index, k))
                if x is not None:
                    y = self.conv2d(build, x, weights[k], self.bias if total is None else None)
                    total = y if total is None else build("Add", y, total)
        assert total is not None  # each slice of the output has a tap in the input
        return total


def is_sliding(conv: Convolution) -> bool:
    """Whether in depth the kernel has 3 taps, stride 1 and padding 1: the output has as many slices as the input.

    Groups and dilations are for ``taps`` alone.
    """
    plain = conv.groups == 1 and conv.dilations == (1, 1, 1)
    return plain and conv.kernel[0] == 3 and conv.strides == (1, 1, 1) and (conv.pads[0], conv.pads[3]) == (1, 1)


@dataclass(frozen=True)
class Algorithm:
    """A way to make a 3D convolution of 2D ones.

    Attributes:
        build: gives the output's slices, from sources whose channels together are the input's.
        applies: whether it can make the convolution from these sources.
        weight_growth: how many times the bytes of the weight it computes with.
    """

    build: Callable[[Builder, Convolution, Sequence[Slices]], list[ir.Value]]
    applies: Callable[[Convolution, Sequence[Slices]], bool]
    weight_growth: float = 1.0
