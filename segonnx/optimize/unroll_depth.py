"""3D operators as 2D ones on depth slices, for whole networks.

Volumes travel between operators as slices (see ``slices``), through convolutions, norms, activations, sums, skips and
upsampling, so nothing is laid out anew at their borders. An operator without a rule here gets its volume as it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir

from segonnx.optimize import convolutions
from segonnx.optimize.convolutions import Convolution
from segonnx.optimize.reading import group, integers, repeats, shape, text
from segonnx.optimize.slices import Builder, Slices, border, cut, join, relane

UNARY = frozenset({"LeakyRelu", "Relu", "Elu", "Sigmoid", "Tanh", "HardSwish", "Gelu", "Mish", "Selu", "Softplus"})
BINARY = frozenset({"Add", "Sub", "Mul", "Div", "Max", "Min"})
FEW_INPUTS = 4
FEW_OUTPUTS = 15
"""Up to so many channels other forms than Winograd's are faster; see docs/performance.md."""
BY_FOUR = range(16, 257)
"""Output channels of F(4, 3): with fewer its transforms cost more than it saves, with more its weights the memory."""
LARGE_SLICE = 2**20
"""Bytes of a slice from which F(4, 3) is made of operators on slices: the caches don't hold a dozen of them."""

MAX_BYTES = 3 * 2**30
LARGE_WEIGHT = 32 * 2**20
"""In networks with more bytes of weights than the one, convolutions with more than the other keep their 3D operators.
While it loads a model ONNX Runtime holds the weights as they are in the file, as derived, and as laid out for its
kernels, three times the memory and more. Such weights meet few voxels: they are most of the bytes, and little of the
time."""

LANES = 2
"""Lanes that volumes travel in, see ``slices``. Two do for any even number of threads."""
SHORTEST = 4
"""Slices that a lane has at least: of fewer, too many are borders."""

Volume = Sequence[Slices]
"""A value's channels, one ``Slices`` after the other: a concatenation is carried out where somebody needs it whole."""


@dataclass(frozen=True)
class Layer:
    """A convolution in its place; those that are alike in this get the same form.

    Attributes:
        sources: channels of each part of the input, and how many neighbouring slices of it are alike.
        outputs: output channels.
        kernel: sizes in depth, height and width.
        strides: in depth, height and width.
        pads: zeros before depth, height and width, and after them.
        size: depth, height and width of the input.
    """

    sources: tuple[tuple[int, int], ...]
    outputs: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    size: tuple[int, ...]

    def __str__(self) -> str:
        def numbers(values: Sequence[int]) -> str:
            return str(values[0]) if len(set(values)) == 1 else "x".join(map(str, values))

        inputs = "+".join(f"{channels}" if alike == 1 else f"{channels}(x{alike})" for channels, alike in self.sources)
        return (
            f"{inputs}->{self.outputs} k{numbers(self.kernel)} s{numbers(self.strides)} p{numbers(self.pads)} "
            f"{'x'.join(map(str, self.size))}"
        )


@dataclass
class Found:
    """What a pass found of a layer.

    Attributes:
        layer: which.
        convolutions: how many are alike in it.
        forms: those that can build it, the chosen one among them.
        form: the chosen one.
    """

    layer: Layer
    convolutions: int
    forms: tuple[str, ...]
    form: str


def lanes_of(depth: int, lanes: int) -> int:
    """In how many lanes a volume travels: one where more would be short, or leave over more of F(4, 3)'s windows."""
    count, rest = divmod(depth, lanes)
    return lanes if rest == 0 and count >= SHORTEST and count % 4 * lanes <= depth % 4 else 1


def default_form(conv: Convolution, sources: Volume, forms: Sequence[str]) -> str:
    """The form that was fastest where it was measured; see docs/performance.md."""
    if "stacked" in forms and sources[0].channels <= FEW_INPUTS:
        return "stacked"
    if "winograd" not in forms:
        return "taps"
    if conv.outputs <= FEW_OUTPUTS:
        return "pairs"
    if "winograd4" not in forms or conv.outputs not in BY_FOUR:
        return "winograd"
    channels = max(conv.outputs, *(source.channels for source in sources))
    large = 4 * channels * sources[0].height * sources[0].width > LARGE_SLICE
    return "winograd4" if large else "winograd4_matmul"


def bounded(found: Mapping[str, Found], growth: float) -> dict[str, str]:
    """Forms whose weights, taken together, are at most ``growth`` times those of the convolutions.

    The weights that grow for the fewest voxels, and so save the least time for their bytes, give way first.
    """
    forms = {text: one.form for text, one in found.items()}

    def size(one: Found) -> int:
        inputs = sum(channels for channels, _ in one.layer.sources)
        return one.convolutions * inputs * one.layer.outputs * math.prod(one.layer.kernel)

    allowed = growth * sum(map(size, found.values()))
    for name, one in sorted(found.items(), key=lambda item: (math.prod(item[1].layer.size), item[0])):
        for lighter in ("winograd", "taps"):
            bytes_now = sum(convolutions.GROWTH.get(forms[key], 1) * size(other) for key, other in found.items())
            heavier = convolutions.GROWTH.get(forms[name], 1) > convolutions.GROWTH.get(lighter, 1)
            if bytes_now > allowed and heavier and lighter in one.forms:
                forms[name] = lighter
    return forms


class UnrollDepthPass(ir.passes.InPlacePass):
    """Replace 3D convolutions, and what stands between them, by 2D operators on depth slices.

    requires: float32 values of static shape (1, C, D, H, W); weights that are initializers, and of at most
        ``LARGE_WEIGHT`` if all together have more than ``MAX_BYTES``. What isn't so stays.
    ensures: inputs and outputs keep their names, shapes and types; every initializer stays as it is.

    Args:
        forms: of layers, by their text; ``default_form`` decides on others, and where the form can't build the layer.
        lanes: that volumes travel in, where they are deep enough.

    Attributes:
        found: the layers that the last call rewrote, by their text.
    """

    def __init__(self, forms: Mapping[str, str] = MappingProxyType({}), lanes: int = LANES) -> None:
        super().__init__()
        self._forms = forms
        self._lanes = lanes
        self.found: dict[str, Found] = {}

    def requires(self, model: ir.Model) -> None:
        version = model.graph.opset_imports.get("", 0)
        if version < 18:
            raise ir.passes.PreconditionError(f"reductions take their axes as inputs from opset 18 on, not {version}")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        weights = (value.const_value for value in model.graph.initializers.values())
        total = sum(weight.nbytes for weight in weights if weight is not None)
        unrolling = _Unrolling(model.graph, self._forms, self._lanes, LARGE_WEIGHT if total > MAX_BYTES else total)
        modified = unrolling.run()
        self.found = unrolling.found
        return ir.passes.PassResult(model, modified)


class _Unrolling:
    """One run over a graph; convolutions whose weights have more than ``max_bytes`` stay."""

    def __init__(self, graph: ir.Graph, forms: Mapping[str, str], lanes: int, max_bytes: int) -> None:
        self.graph = graph
        self.forms = forms
        self.lanes = lanes
        self.max_bytes = max_bytes
        self.found: dict[str, Found] = {}
        self.volumes: dict[ir.Value, Volume] = {}
        self.whole: dict[ir.Value, ir.Value] = {}
        self.replaced: list[ir.Node] = []
        self.borders: dict[tuple[tuple[ir.Value, ...], int], ir.Value] = {}

    def run(self) -> bool:
        rules: dict[str, Callable[[Builder, ir.Node], Volume | None]] = {
            "Conv": self._convolution,
            "ConvTranspose": self._transposed,
            "InstanceNormalization": self._norm,
            "Resize": self._upsampling,
            "Concat": self._concat,
            "AveragePool": self._pooling,
            "MaxPool": self._pooling,
            **dict.fromkeys(UNARY, self._unary),
            **dict.fromkeys(BINARY, self._binary),
        }
        for node in list(self.graph):
            rule = rules.get(node.op_type) if node.domain == "" else None
            build = Builder(self.graph)
            volume = rule(build, node) if rule is not None and _is_static(node) else None
            if volume is None:
                self._keep(node)
                continue
            self.volumes[node.outputs[0]] = tuple(self._laned(build, one) for one in volume)
            build.insert_before(node)
            self.replaced.append(node)
        self._restore_outputs()
        for node in reversed(self.replaced):
            self.graph.remove(node, safe=True)
        return bool(self.replaced)

    def _keep(self, node: ir.Node) -> None:
        """Give the node the values that it was written for."""
        for index, value in enumerate(node.inputs):
            if value in self.volumes:
                build = Builder(self.graph)
                node.replace_input_with(index, self._whole(build, value))
                build.insert_before(node)

    def _restore_outputs(self) -> None:
        for index, value in enumerate(self.graph.outputs):
            if value in self.volumes and self.whole.get(value) is not value:
                build = Builder(self.graph)
                whole = self._whole(build, value)
                self.graph.extend(build.nodes)
                name, value.name = value.name, None
                whole.name = name
                self.graph.outputs[index] = whole

    def _whole(self, build: Builder, value: ir.Value) -> ir.Value:
        """The value (1, C, D, H, W) of a volume."""
        if value not in self.whole:
            whole = build.concat([join(build, slices) for slices in self.volumes[value]], 1)
            whole.shape, whole.type = value.shape, value.type
            self.whole[value] = whole
        return self.whole[value]

    def _volume(self, build: Builder, value: ir.Value) -> Volume:
        """The slices of a value, cut where nobody did yet."""
        if value not in self.volumes:
            _, channels, *sizes = shape(value)
            self.volumes[value] = (self._laned(build, cut(build, value, channels, *sizes)),)
            self.whole[value] = value
        return self.volumes[value]

    def _one(self, build: Builder, value: ir.Value) -> Slices:
        """A volume with its channels together."""
        volume = self._volume(build, value)
        if len(volume) > 1:
            values = (build.concat(parts, 1) for parts in zip(*(one.values for one in volume), strict=True))
            volume = (volume[0].like(values, channels=sum(one.channels for one in volume)),)
            self.volumes[value] = volume
        return volume[0]

    def _laned(self, build: Builder, slices: Slices) -> Slices:
        return relane(build, slices, lanes_of(slices.depth, self.lanes))

    def _with_borders(
        self, build: Builder, source: Slices, kernel: int, stride: int, pads: tuple[int, int] = (0, 0)
    ) -> Slices:
        """A source with what windows along its depth take from other lanes; in one lane where lanes don't keep step."""
        depth = (source.depth + sum(pads) - kernel) // stride + 1
        if source.lanes == 1 or depth * stride != source.depth or depth % source.lanes:
            return relane(build, source, 1)
        taken = {d * stride - pads[0] + k for d in range(depth // source.lanes) for k in range(kernel)}
        outside = sorted(taken - set(range(source.count)))
        return replace(source, borders={index: self._border(build, source, index) for index in outside})

    def _border(self, build: Builder, source: Slices, index: int) -> ir.Value:
        key = (source.values, index)
        if key not in self.borders:
            self.borders[key] = border(build, source, index)
        return self.borders[key]

    # The rules. Each gives the node's volume, or None where it can't.

    def _convolution(self, build: Builder, node: ir.Node) -> Volume | None:
        x, conv = node.inputs[0], _read(node, self.max_bytes, transposed=False)
        assert x is not None
        if conv is None or (x not in self.volumes and conv.kernel == (1, 1, 1)):
            return None
        if conv.kernel == (1, 1, 1) and _ends(node):
            return None  # a head: putting its few inputs together costs less than its many outputs
        along = conv.kernel[0], conv.strides[0], (conv.pads[0], conv.pads[3])
        sources = [self._with_borders(build, one, *along) for one in self._volume(build, x)]
        values = convolutions.FORMS[self._form(conv, sources)](build, conv, sources)
        _, height, width = conv.sizes(sources[0])
        return (sources[0].like(values, channels=conv.outputs, height=height, width=width),)

    def _form(self, conv: Convolution, sources: Volume) -> str:
        layer = Layer(
            tuple((one.channels, one.alike) for one in sources),
            conv.outputs, conv.kernel, conv.strides, conv.pads, (sources[0].depth, sources[0].height, sources[0].width),
        )  # fmt: skip
        if (known := self.found.get(str(layer))) is not None:
            known.convolutions += 1
            return known.form
        forms = convolutions.possible(conv, sources)
        form = self.forms.get(str(layer), "")
        if form not in forms:
            form = default_form(conv, sources, forms)
        self.found[str(layer)] = Found(layer, 1, forms, form)
        return form

    def _transposed(self, build: Builder, node: ir.Node) -> Volume | None:
        """Kernel = stride: every slice of the input makes its own slices of the output."""
        x, conv = node.inputs[0], _read(node, self.max_bytes, transposed=True)
        assert x is not None
        if conv is None or conv.kernel != conv.strides or any(conv.pads) or x not in self.volumes:
            return None
        source = self._one(build, x)
        times, *scale = conv.kernel
        weights = [build("Gather", conv.weight, build.scalar(k), axis=2) for k in range(times)]
        bias = () if conv.bias is None else (conv.bias,)
        values = [
            build("ConvTranspose", value, weight, *bias, kernel_shape=scale, strides=scale)
            for value in source.values
            for weight in weights
        ]
        height, width = source.height * scale[0], source.width * scale[1]
        return (source.like(values, channels=conv.outputs, height=height, width=width),)

    def _upsampling(self, build: Builder, node: ir.Node) -> Volume | None:
        """Nearest neighbour by whole factors: a slice is made once, and stands for as many as the factor in depth."""
        x = node.inputs[0]
        assert x is not None
        factors = repeats(node)
        if x not in self.volumes or factors is None or factors[:2] != [1, 1]:
            return None
        times, *scale = factors[2:]
        source = self._one(build, x)
        scales = build.constant(f"scales_{scale[0]}_{scale[1]}", np.array([1, 1, *scale], np.float32))
        values: list[ir.Value] = []
        for value in source.values:
            y = build(
                "Resize", value, None, scales, mode="nearest", coordinate_transformation_mode="asymmetric",
                nearest_mode="floor",
            )  # fmt: skip
            values += [y] * times
        return (
            Slices(tuple(values), source.channels, source.height * scale[0], source.width * scale[1], source.lanes),
        )

    def _pooling(self, build: Builder, node: ir.Node) -> Volume | None:
        """The slices of a window are pooled one by one, and then taken together.

        A mean is a depthwise convolution with equal weights: ONNX Runtime adds the slices of a window in its kernel.
        """
        x = node.inputs[0]
        assert x is not None
        if x not in self.volumes or not _pools_plainly(node):
            return None
        kernel = integers(node, "kernel_shape", ())
        strides = integers(node, "strides", (1, 1, 1))
        source = self._with_borders(build, self._one(build, x), kernel[0], strides[0])
        _, channels, depth, height, width = shape(node.outputs[0])
        plane: dict[str, Any] = {"kernel_shape": kernel[1:], "strides": strides[1:]}
        weight = build.filled(1 / math.prod(kernel), channels, 1, *kernel[1:])
        largest: dict[ir.Value, ir.Value] = {}
        values = []
        for first in range(0, depth // source.lanes * strides[0], strides[0]):
            total = None
            for index in range(first, first + kernel[0]):
                value = source.get(index)
                assert value is not None  # there are no pads
                if node.op_type == "MaxPool":
                    if value not in largest:
                        largest[value] = build("MaxPool", value, **plane)
                    part, operator = largest[value], "Max"
                else:
                    part, operator = build("Conv", value, weight, group=channels, **plane), "Add"
                total = part if total is None else build(operator, part, total)
            assert total is not None
            values.append(total)
        return (source.like(values, height=height, width=width),)

    def _norm(self, build: Builder, node: ir.Node) -> Volume | None:
        """Statistics of each slice in turn, while it is in the cache, put together exactly for the volume.

        With a value's mean m and the mean q of (x - m)^2 in each slice, over all slices: mean = mean(m) and
        variance = mean(q) + mean((m - mean)^2). No sum runs over more voxels than a row or column has.
        What is left is one pass over each slice, as a depthwise convolution: ONNX Runtime adds the activation to it.
        """
        x, scale, bias = node.inputs
        assert x is not None and scale is not None and bias is not None
        if x not in self.volumes:
            return None
        source = self._one(build, x)
        epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
        rows, columns, first = (build.integers(axis) for axis in (3, 2, 0))
        centred, means, squares = [], [], []
        for value in source.values:
            mean = build("ReduceMean", build("ReduceMean", value, rows), columns)
            if source.lanes > 1:  # they share the weights below
                mean = build("ReduceMean", mean, first)
            centre = build("Sub", value, mean)
            centred.append(centre)
            means.append(mean)
            squares.append(build("ReduceMean", build("ReduceSumSquare", centre, rows), columns))
        all_means = build.concat(means, 0)
        off = build("Sub", all_means, build("ReduceMean", all_means, first))
        within = build("Mul", build("ReduceMean", build.concat(squares, 0), first), build.number(1 / source.width))
        between = build("ReduceMean", build("Mul", off, off), first)
        variance = build("Add", build("Add", within, between), build.number(epsilon))
        column = (1, source.channels, 1, 1)
        factor = build("Div", build.reshape(scale, *column), build("Sqrt", variance))
        shift = build("Add", build("Mul", off, factor), build.reshape(bias, *column))
        weight = build.reshape(factor, source.channels, 1, 1, 1)
        biases = build.split(build.reshape(shift, source.count * source.channels), [source.channels] * source.count, 0)
        values = [
            build("Conv", centre, weight, one, kernel_shape=[1, 1], group=source.channels)
            for centre, one in zip(centred, biases, strict=True)
        ]
        return (source.like(values),)

    def _unary(self, build: Builder, node: ir.Node) -> Volume | None:
        x = node.inputs[0]
        assert x is not None
        if x not in self.volumes or len(node.inputs) != 1:
            return None
        source = self._one(build, x)
        return (source.like(build(node.op_type, value, **dict(node.attributes)) for value in source.values),)

    def _binary(self, build: Builder, node: ir.Node) -> Volume | None:
        if len(node.inputs) != 2:
            return None
        a, b = node.inputs
        assert a is not None and b is not None
        if (a not in self.volumes and b not in self.volumes) or b.shape is None or a.shape != b.shape:
            return None
        one, other = self._one(build, a), self._one(build, b)
        return (one.like(build(node.op_type, *both) for both in zip(one.values, other.values, strict=True)),)

    def _concat(self, build: Builder, node: ir.Node) -> Volume | None:
        values = [value for value in node.inputs if value is not None]
        if node.attributes["axis"].as_int() not in (1, -4) or not any(value in self.volumes for value in values):
            return None
        return tuple(slices for value in values for slices in self._volume(build, value))


def _is_static(node: ir.Node) -> bool:
    """Whether the node takes and gives values of one instance of a volume, all sizes known."""
    for value in (*node.inputs[:1], *node.outputs[:1]):
        if value is None or value.shape is None or value.dtype != ir.DataType.FLOAT:
            return False
        sizes = value.shape
        if sizes.rank() != 5 or sizes[0] != 1 or not all(isinstance(size, int) for size in sizes):
            return False
    return True


def _pools_plainly(node: ir.Node) -> bool:
    """Whether a pooling has whole windows of neighbours everywhere, and gives nothing but their mean or maximum."""
    return (
        len(node.outputs) == 1
        and not any(integers(node, "pads", ()))
        and set(integers(node, "dilations", ())) <= {1}
        and text(node, "auto_pad", "NOTSET") == "NOTSET"
        and ("ceil_mode" not in node.attributes or not node.attributes["ceil_mode"].as_int())
    )


def _ends(node: ir.Node) -> bool:
    """Whether nothing but the graph's output waits for the node."""
    return node.outputs[0].is_graph_output() and not node.outputs[0].uses()


def _read(node: ir.Node, max_bytes: int, *, transposed: bool) -> Convolution | None:
    """The node's convolution; None where it is of a kind that has no form here, or larger than allowed."""
    weight = node.inputs[1]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if weight is None or weight.const_value is None or weight.shape is None or weight.const_value.nbytes > max_bytes:
        return None
    kernel = shape(weight)[2:]
    pads = integers(node, "pads", (0,) * 6)
    if (
        group(node) != 1
        or integers(node, "dilations", (1, 1, 1)) != (1, 1, 1)
        or text(node, "auto_pad", "NOTSET") != "NOTSET"
        or any(integers(node, "output_padding", (0, 0, 0)))
        or "output_shape" in node.attributes
        or max(pads[0], pads[3]) >= kernel[0]
    ):
        return None
    return Convolution(
        weight,
        bias,
        tuple(kernel),  # type: ignore[arg-type]
        integers(node, "strides", (1, 1, 1)),  # type: ignore[arg-type]
        pads,  # type: ignore[arg-type]
        shape(weight)[1 if transposed else 0],
    )
