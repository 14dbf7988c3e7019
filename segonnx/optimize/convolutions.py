"""Forms of a 3D convolution over depth slices, each in 2D convolutions.

ONNX Runtime's CPU provider has blocked kernels for 2D convolutions only: they run two to three times as many
operations per second as its 3D ones. A 3D convolution is a sum of 2D ones, over the taps of its kernel in depth:

    y[d] = sum over k of conv2d(x[d * stride - pad + k], w[:, :, k])

ONNX Runtime adds each to the sum inside its kernel. The 2D weights are derived from the 3D one, which stays in the
file as it was published, by nodes that ONNX Runtime computes once, when it loads the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from segonnx.optimize.slices import Builder, Slices


@dataclass(frozen=True)
class Convolution:
    """A 3D convolution without groups and dilations.

    Attributes:
        weight: (output channels, input channels, depth, height, width).
        bias: of the output channels, or None.
        kernel: sizes in depth, height and width.
        strides: in depth, height and width.
        pads: zeros before depth, height and width, and after them.
        outputs: output channels.
    """

    weight: ir.Value
    bias: ir.Value | None
    kernel: tuple[int, int, int]
    strides: tuple[int, int, int]
    pads: tuple[int, int, int, int, int, int]
    outputs: int

    def sizes(self, source: Slices) -> tuple[int, int, int]:
        """Of the output: the depth of a lane, height and width."""
        found = (source.depth, source.height, source.width)
        depth, height, width = (
            (size + self.pads[i] + self.pads[i + 3] - self.kernel[i]) // self.strides[i] + 1
            for i, size in enumerate(found)
        )
        return depth // source.lanes, height, width

    def taps(self, build: Builder, sources: Sequence[Slices]) -> list[list[ir.Value]]:
        """For each source, whose channels are some of the input's, the 2D kernels of the taps in depth."""
        weights = build.split(self.weight, [source.channels for source in sources], 1)
        return [[build("Gather", one, build.scalar(k), axis=2) for k in range(self.kernel[0])] for one in weights]

    def conv2d(
        self, build: Builder, x: ir.Value, weight: ir.Value, bias: ir.Value | None = None, groups: int = 1
    ) -> ir.Value:
        """A 2D convolution with this one's kernel, strides and padding in the plane."""
        inputs = (x, weight) if bias is None else (x, weight, bias)
        pads = (*self.pads[1:3], *self.pads[4:6])
        return build("Conv", *inputs, kernel_shape=self.kernel[1:], strides=self.strides[1:], pads=pads, group=groups)


Form = Callable[[Builder, Convolution, Sequence[Slices]], list[ir.Value]]
"""Builds the output's slices, from sources whose channels together are the input's."""


def taps(build: Builder, conv: Convolution, sources: Sequence[Slices]) -> list[ir.Value]:
    """One 2D convolution per tap in depth: for every kernel, stride and padding."""
    kernels = conv.taps(build, sources)
    depth, *_ = conv.sizes(sources[0])
    return [_sum_of_taps(build, conv, sources, kernels, index) for index in range(depth)]


def _sum_of_taps(
    build: Builder, conv: Convolution, sources: Sequence[Slices], kernels: list[list[ir.Value]], index: int
) -> ir.Value:
    total: ir.Value | None = None
    for k in range(conv.kernel[0]):
        for source, weights in zip(sources, kernels, strict=True):
            x = source.get(index * conv.strides[0] - conv.pads[0] + k)
            if x is not None:
                y = conv.conv2d(build, x, weights[k], conv.bias if total is None else None)
                total = y if total is None else build("Add", y, total)
    assert total is not None  # the padding is smaller than the kernel
    return total


def stacked(build: Builder, conv: Convolution, sources: Sequence[Slices]) -> list[ir.Value]:
    """The slices that an output needs, as channels of one 2D convolution: for very few channels."""
    (source,) = sources
    (kernels,) = conv.taps(build, sources)
    weight = build.concat(kernels, 1)
    zeros = build.filled(0.0, source.lanes, source.channels, source.height, source.width)
    depth, *_ = conv.sizes(source)
    values = []
    for index in range(depth):
        begin = index * conv.strides[0] - conv.pads[0]
        window = [source.get(begin + k) or zeros for k in range(conv.kernel[0])]
        values.append(conv.conv2d(build, build.concat(window, 1), weight, conv.bias))
    return values


def pairs(build: Builder, conv: Convolution, sources: Sequence[Slices]) -> list[ir.Value]:
    """Pairs of slices as twice the channels: for few output channels, which alone don't fill the kernel's registers.

    Within a pair every slice of the input reaches every slice of the output, so the pair is one convolution without
    waste; what comes from the neighbours is a second one, in two groups. A pair of the same slice, after upsampling by
    two, needs its channels once. For kernels of 3, stride 1 and padding 1.
    """
    kernels = conv.taps(build, sources)
    weights = []
    for g0, g1, g2 in kernels:
        inner = build.concat([build.concat([g1, g2], 1), build.concat([g0, g1], 1)], 0)
        same = build.concat([build("Add", g1, g2), build("Add", g0, g1)], 0)
        weights.append((inner, same, build.concat([g0, g2], 0)))
    bias = None if conv.bias is None else build.concat([conv.bias] * 2, 0)
    values: list[ir.Value] = []
    depth = sources[0].count
    for start in range(0, depth - 1, 2):
        total: ir.Value | None = None
        for source, (inner, same, outer) in zip(sources, weights, strict=True):
            before, first, second, after = (source.get(start + i) for i in (-1, 0, 1, 2))
            assert first is not None and second is not None
            alike = first is second
            x = first if alike else build.concat([first, second], 1)
            y = conv.conv2d(build, x, same if alike else inner, bias if total is None else None)
            total = y if total is None else build("Add", y, total)
            zeros = build.filled(0.0, source.lanes, source.channels, source.height, source.width)
            around = build.concat([before or zeros, after or zeros], 1)
            total = build("Add", conv.conv2d(build, around, outer, groups=2), total)
        assert total is not None
        values += build.split(total, [conv.outputs] * 2, 1)
    if depth % 2:
        values.append(_sum_of_taps(build, conv, sources, kernels, depth - 1))
    return values


def winograd(build: Builder, conv: Convolution, sources: Sequence[Slices]) -> list[ir.Value]:
    """Winograd's F(2, 3) along the depth: two slices of the output from four 2D convolutions instead of six.

    With the input slices d0 to d3 and the taps g0 to g2:

        m0 = (d0 - d2) * g0                  y0 = m0 + m1 + m2
        m1 = (d1 + d2) * (g0 + g1 + g2) / 2  y1 = m1 - m2 - m3
        m2 = (d2 - d1) * (g0 - g1 + g2) / 2
        m3 = (d1 - d3) * g2

    Where d1 and d2 are the same slice, after upsampling by two, m2 vanishes: three instead of six. For kernels of 3,
    stride 1 and padding 1.
    """
    kernels = conv.taps(build, sources)
    half = build.number(0.5)
    weights = []
    for g0, g1, g2 in kernels:
        outer = build("Add", g0, g2)
        weights.append(
            (
                g0,
                build("Mul", build("Add", outer, g1), half),
                build("Mul", build("Sub", outer, g1), half),
                g2,
                build("Add", outer, g1),  # twice the second: for d1 + d1
            )
        )
    values: list[ir.Value] = []
    depth = sources[0].count
    for start in range(0, depth - 1, 2):
        products: dict[int, ir.Value] = {}

        def add(number: int, y: ir.Value, products: dict[int, ir.Value] = products) -> None:
            products[number] = build("Add", y, products[number]) if number in products else y

        for source, (u0, u1, u2, u3, u1_twice) in zip(sources, weights, strict=True):
            d0, d1, d2, d3 = (source.get(start + i) for i in (-1, 0, 1, 2))
            assert d1 is not None and d2 is not None
            bias = None if 1 in products else conv.bias
            if d1 is d2:
                add(1, conv.conv2d(build, d1, u1_twice, bias))
            else:
                add(1, conv.conv2d(build, build("Add", d1, d2), u1, bias))
                add(2, conv.conv2d(build, build("Sub", d2, d1), u2))
            add(0, conv.conv2d(build, build("Neg", d2) if d0 is None else build.once("Sub", d0, d2), u0))
            add(3, conv.conv2d(build, d1 if d3 is None else build.once("Sub", d1, d3), u3))
        if 2 in products:
            # Into the sums of the other two first: ONNX Runtime adds there for nothing.
            add(0, products[2])
            add(3, products[2])
        values.append(build("Add", products[0], products[1]))
        values.append(build("Sub", products[1], products[3]))
    if depth % 2:
        values.append(_sum_of_taps(build, conv, sources, kernels, depth - 1))
    return values


def winograd4(build: Builder, conv: Convolution, sources: Sequence[Slices]) -> list[ir.Value]:
    """Winograd's F(4, 3) along the depth: four slices of the output from six 2D convolutions instead of twelve.

    At the points 0, 1, -1, 2, -2 and infinity, with the input slices d0 to d5 and the taps g0 to g2:

        m0 = (4 d0 - 5 d2 + d4) * g0 / 4                            y0 = m0 + m1 + m2 + m3 + m4
        m1 = (d4 - 4 d2 + d3 - 4 d1) * (g0 + g1 + g2) / -6          y1 = m1 - m2 + 2 (m3 - m4)
        m2 = (d4 - 4 d2 - d3 + 4 d1) * (g0 - g1 + g2) / -6          y2 = m1 + m2 + 4 (m3 + m4)
        m3 = (d4 - d2 + 2 (d3 - d1)) * (g0 + 2 g1 + 4 g2) / 24      y3 = m1 - m2 + 8 (m3 - m4) + m5
        m4 = (d4 - d2 - 2 (d3 - d1)) * (g0 - 2 g1 + 4 g2) / 24
        m5 = (4 d1 - 5 d3 + d5) * g2

    What is left at the end of the depth is made by taps. For kernels of 3, stride 1 and padding 1.
    """
    kernels = conv.taps(build, sources)
    weights = [_weights_by_four(build, *taps) for taps in kernels]
    four = build.number(4.0)
    values: list[ir.Value] = []
    depth = sources[0].count
    whole = depth - depth % 4
    zeros = [build.filled(0.0, source.lanes, source.channels, source.height, source.width) for source in sources]
    for start in range(0, whole, 4):
        products: dict[int, ir.Value] = {}
        for source, u, zero in zip(sources, weights, zeros, strict=True):
            d0, d1, d2, d3, d4, d5 = (source.get(start + i) or zero for i in range(-1, 5))
            even, odd = build("Sub", d4, build("Mul", d2, four)), build("Sub", d3, build("Mul", d1, four))
            steps, by_two = build("Sub", d4, d2), build("Sub", d3, d1)
            double = build("Add", by_two, by_two)
            inputs = (
                build("Add", build("Mul", build("Sub", d0, d2), four), steps),
                build("Add", even, odd),
                build("Sub", even, odd),
                build("Add", steps, double),
                build("Sub", steps, double),
                build("Sub", build("Sub", d5, d3), build("Mul", by_two, four)),
            )
            for number, x in enumerate(inputs):
                # m1 is in each of the four once, and takes the bias there.
                bias = conv.bias if number == 1 and number not in products else None
                y = conv.conv2d(build, x, u[number], bias)
                products[number] = build("Add", y, products[number]) if number in products else y
        m0, m1, m2, m3, m4, m5 = (products[number] for number in range(6))
        near, near_off = build("Add", m1, m2), build("Sub", m1, m2)
        far, far_off = build("Add", m3, m4), build("Sub", m3, m4)
        values += [
            build("Add", m0, build("Add", near, far)),
            build("Add", near_off, build("Add", far_off, far_off)),
            build("Add", near, build("Mul", far, four)),
            build("Add", m5, build("Add", near_off, build("Mul", far_off, build.number(8.0)))),
        ]
    values += [_sum_of_taps(build, conv, sources, kernels, index) for index in range(whole, depth)]
    return values


def winograd4_matmul(build: Builder, conv: Convolution, sources: Sequence[Slices]) -> list[ir.Value]:
    """``winograd4`` with its two transforms as matrix products, and its six convolutions as one in six groups.

    A window's six slices, one after the other, are a matrix of six rows; so are its six products. Far fewer operators
    pass over the slices, but each over all of a window: it is for slices of which the caches hold a dozen.
    """
    kernels = conv.taps(build, sources)
    weights = [build.concat(_weights_by_four(build, *taps), 0) for taps in kernels]
    bias = None
    if conv.bias is not None:  # m1 takes it
        before, after = (build.filled(0.0, count * conv.outputs) for count in (1, 4))
        bias = build.concat([before, conv.bias, after], 0)
    lanes = sources[0].lanes
    into, out_of = _matrix(build, INPUT_BY_FOUR), _matrix(build, OUTPUT_BY_FOUR)
    zeros = [build.filled(0.0, source.lanes, source.channels, source.height, source.width) for source in sources]
    values: list[ir.Value] = []
    depth, height, width = conv.sizes(sources[0])
    whole = depth - depth % 4
    for start in range(0, whole, 4):
        total: ir.Value | None = None
        for source, weight, zero in zip(sources, weights, zeros, strict=True):
            window = build.concat([source.get(start + i) or zero for i in range(-1, 5)], 1)
            rows = build.reshape(window, lanes, 6, source.channels * source.height * source.width)
            x = build.reshape(build("MatMul", into, rows), lanes, 6 * source.channels, source.height, source.width)
            y = conv.conv2d(build, x, weight, bias if total is None else None, groups=6)
            total = y if total is None else build("Add", y, total)
        assert total is not None
        y = build("MatMul", out_of, build.reshape(total, lanes, 6, conv.outputs * height * width))
        values += build.split(build.reshape(y, lanes, 4 * conv.outputs, height, width), [conv.outputs] * 4, 1)
    return values + [_sum_of_taps(build, conv, sources, kernels, index) for index in range(whole, depth)]


INPUT_BY_FOUR = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
"""What F(4, 3) multiplies the input's slices d0 to d5 by; see ``winograd4``."""

OUTPUT_BY_FOUR = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)
"""And its products m0 to m5."""


def _matrix(build: Builder, rows: Sequence[Sequence[int]]) -> ir.Value:
    """A matrix, from constants too small to hide weights in."""
    return build.concat(
        [build.constant(f"row_{'_'.join(map(str, row))}", np.array([row], np.float32)) for row in rows], 0
    )


def _weights_by_four(build: Builder, g0: ir.Value, g1: ir.Value, g2: ir.Value) -> list[ir.Value]:
    """The six kernels of F(4, 3)."""
    outer = build("Add", g0, g2)
    far = build("Add", g0, build("Mul", g2, build.number(4.0)))
    twice = build("Mul", g1, build.number(2.0))
    sixth, part = build.number(-1 / 6), build.number(1 / 24)
    return [
        build("Mul", g0, build.number(0.25)),
        build("Mul", build("Add", outer, g1), sixth),
        build("Mul", build("Sub", outer, g1), sixth),
        build("Mul", build("Add", far, twice), part),
        build("Mul", build("Sub", far, twice), part),
        g2,
    ]


FORMS: dict[str, Form] = {
    "taps": taps,
    "stacked": stacked,
    "pairs": pairs,
    "winograd": winograd,
    "winograd4": winograd4,
    "winograd4_matmul": winograd4_matmul,
}
"""Every form, by the name that a manifest has it under."""

GROWTH = {"winograd": 4 / 3, "winograd4": 2.0, "winograd4_matmul": 2.0}
"""How many times the weights' bytes a form computes with, where that isn't once."""


def possible(conv: Convolution, sources: Sequence[Slices]) -> tuple[str, ...]:
    """The names of the forms that can build the convolution."""
    names = ["taps"]
    if len(sources) == 1 and conv.kernel[0] > 1:
        names.append("stacked")
    in_groups = conv.kernel[0] == 3 and conv.strides == (1, 1, 1) and (conv.pads[0], conv.pads[3]) == (1, 1)
    if in_groups and sources[0].count > 1:
        names += ["pairs", "winograd"]
    if in_groups and sources[0].count > 3:
        names += ["winograd4", "winograd4_matmul"]
    return tuple(names)
