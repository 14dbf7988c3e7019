"""Winograd's F(2x2, 3x3) for images, in operators that stay in ONNX Runtime's blocked layout.

An image is cut into its four phases: the pixels in even or odd rows and even or odd columns. With the phases, each of a
quarter of the size, every product of Winograd's algorithm is a pointwise convolution, and every step of its transforms
a sum, or a depthwise convolution with taps of 1 and -1: operators that ONNX Runtime runs without laying out anything
anew. A convolution takes 16 products instead of 36. Along one axis, with the even rows e and the odd rows o:

    m0[h] = (o[h-1] - o[h]) * g0                  even[h] = m0[h] + m1[h] + m2[h]
    m1[h] = (e[h] + o[h]) * (g0 + g1 + g2) / 2    odd[h]  = m1[h] - m2[h] + m3[h]
    m2[h] = (o[h] - e[h]) * (g0 - g1 + g2) / 2
    m3[h] = (e[h] - e[h+1]) * -g2

Phases travel from one convolution to the next, through activations, sums and skips. A transposed convolution by two
gives the phases of its output as four pointwise ones, and after upsampling by two they are all the small image. A
strided convolution reads them where they are. Anything else gets the image put together again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from segonnx.optimize.reading import group, integers, repeats, shape, text
from segonnx.optimize.slices import Builder

MIN_INPUTS = 64
MIN_OUTPUTS = 128
"""With fewer channels the transforms take longer than the products save; see docs/performance.md."""
WEIGHT_GROWTH = 16 / 9
"""How many times the weights' bytes such a convolution computes with."""
LAYERS_PER_JOIN = 2
"""Putting an image together again costs about what one convolution saves."""
ACTIVATIONS = frozenset({"Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Clip"})


@dataclass(frozen=True)
class Phases:
    """Some channels of an image of even height and width.

    Attributes:
        values: (N, C, H / 2, W / 2) of even rows and columns; even rows, odd columns; odd rows, even columns; odd both.
        channels: C.
    """

    values: tuple[ir.Value, ir.Value, ir.Value, ir.Value]
    channels: int


class WinogradPhasesPass(ir.passes.InPlacePass):
    """Replace 3x3 convolutions of images, and what stands between them, by pointwise ones on phases.

    requires: float32 images of static, even sizes; weights that are initializers; at least ``MIN_INPUTS`` and
        ``MIN_OUTPUTS`` channels, and ``LAYERS_PER_JOIN`` convolutions for each image that must be put together again.
        What isn't so stays.
    ensures: inputs and outputs keep their names, shapes and types; every initializer stays as it is.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        layers = _worthwhile(model.graph)
        if not layers:
            return ir.passes.PassResult(model, False)
        _Splitting(model.graph, layers).run()
        return ir.passes.PassResult(model, True)


# What is rewritten.


def _worthwhile(graph: ir.Graph) -> set[ir.Node]:
    """The convolutions to be made on phases."""
    layers = {node for node in graph if _is_layer(node)}
    while True:
        inside = _inside(graph, layers)
        for region in _regions(inside):
            mine = {value.producer() for value in region} & layers
            joins = sum(any(not _reads(user, inside, layers) for user in _users(value)) for value in region)
            if joins * LAYERS_PER_JOIN > len(mine):
                layers -= mine  # which can leave another region with an image to put together
                break
        else:
            return layers


def _inside(graph: ir.Graph, layers: set[ir.Node]) -> dict[ir.Value, list[ir.Value]]:
    """The values that are made as phases, each with those of its node's inputs that are."""
    inside: dict[ir.Value, list[ir.Value]] = {}
    for node in graph:
        known = [value for value in node.inputs if value is not None and value in inside]
        if node in layers or (known and _keeps_phases(node)):
            inside[node.outputs[0]] = known
    return inside


def _regions(inside: dict[ir.Value, list[ir.Value]]) -> list[list[ir.Value]]:
    """The values, by what hangs together without an image being put together."""
    region: dict[ir.Value, list[ir.Value]] = {}
    for value, sources in inside.items():
        mine = [value]
        for other in {id(region[source]): region[source] for source in sources}.values():
            mine += other
        for one in mine:
            region[one] = mine
    return list({id(values): values for values in region.values()}.values())


def _keeps_phases(node: ir.Node) -> bool:
    """Whether the node treats each pixel alone, so that it can treat the phases one by one."""
    if node.domain != "" or not _is_image(node.outputs[0]):
        return False
    if node.op_type in ACTIVATIONS:
        return all(value is None or value.const_value is not None for value in node.inputs[1:])
    if node.op_type == "Add":
        return all(value is not None and value.shape == node.outputs[0].shape for value in node.inputs)
    return _is_convolution(node, kernel=1, stride=1)


def _reads(node: ir.Node | None, inside: dict[ir.Value, list[ir.Value]], layers: set[ir.Node]) -> bool:
    """Whether the node takes phases; None stands for the graph's output."""
    if node is None:
        return False
    if node.outputs[0] in inside or _is_strided(node):
        return True
    return _joins_channels(node) and all(user in layers for user in _users(node.outputs[0]))


def _users(value: ir.Value) -> Iterator[ir.Node | None]:
    """The nodes that take the value; None for the graph's output."""
    yield from (use.node for use in value.uses())
    if value.is_graph_output():
        yield None


def _is_image(value: ir.Value | None) -> bool:
    """Whether the value is (N, C, H, W) of float32, all sizes known, height and width even."""
    if value is None or value.shape is None or value.dtype != ir.DataType.FLOAT or value.shape.rank() != 4:
        return False
    return all(isinstance(size, int) for size in value.shape) and not any(size % 2 for size in value.shape[2:])


def _is_layer(node: ir.Node) -> bool:
    if not (_is_convolution(node, kernel=3, stride=1) and _is_image(node.outputs[0])):
        return False
    outputs, inputs, *_ = shape(node.inputs[1])
    return inputs >= MIN_INPUTS and outputs >= MIN_OUTPUTS


def _is_strided(node: ir.Node) -> bool:
    """Whether the node is a convolution by two that can read its input's phases."""
    return _is_convolution(node, kernel=3, stride=2) or _is_convolution(node, kernel=1, stride=2)


def _is_convolution(node: ir.Node, *, kernel: int, stride: int) -> bool:
    """Whether the node is such a convolution of an image, padded to keep its size but for the stride."""
    if node.domain != "" or node.op_type != "Conv" or not _is_image(node.inputs[0]):
        return False
    return (
        _has_weight(node, (kernel, kernel))
        and integers(node, "strides", (1, 1)) == (stride,) * 2
        and integers(node, "pads", (0,) * 4) == (kernel // 2,) * 4
        and _plain(node)
    )


def _is_doubling(node: ir.Node | None) -> bool:
    """Whether the node is a transposed convolution whose kernel and stride are two."""
    if node is None or node.domain != "" or node.op_type != "ConvTranspose" or not _is_image(node.outputs[0]):
        return False
    return (
        _has_weight(node, (2, 2))
        and integers(node, "strides", (1, 1)) == (2, 2)
        and not any(integers(node, "pads", ()) + integers(node, "output_padding", ()))
        and "output_shape" not in node.attributes
        and _plain(node)
    )


def _is_repeating(node: ir.Node | None) -> bool:
    """Whether the node repeats each pixel twice along both axes."""
    if node is None or node.domain != "" or node.op_type != "Resize" or not _is_image(node.outputs[0]):
        return False
    return repeats(node) == [1, 1, 2, 2]


def _joins_channels(node: ir.Node | None) -> bool:
    if node is None or node.domain != "" or node.op_type != "Concat":
        return False
    return node.attributes["axis"].as_int() in (1, -3) and all(_is_image(value) for value in node.inputs)


def _has_weight(node: ir.Node, kernel: tuple[int, int]) -> bool:
    weight = node.inputs[1]
    return (
        weight is not None
        and weight.const_value is not None
        and weight.shape is not None
        and tuple(weight.shape[2:]) == kernel
        and weight.dtype == ir.DataType.FLOAT
    )


def _plain(node: ir.Node) -> bool:
    """Neither groups nor dilations nor padding by a rule."""
    automatic = text(node, "auto_pad", "NOTSET") != "NOTSET"
    return group(node) == 1 and integers(node, "dilations", (1, 1)) == (1, 1) and not automatic


def _bias(node: ir.Node) -> ir.Value | None:
    return node.inputs[2] if len(node.inputs) > 2 else None


# How it is rewritten.


class _Splitting:
    """One run over a graph."""

    def __init__(self, graph: ir.Graph, layers: set[ir.Node]) -> None:
        self.graph = graph
        self.layers = layers
        self.inside = _inside(graph, layers)
        self.phases: dict[ir.Value, list[Phases]] = {}
        self.whole: dict[ir.Value, ir.Value] = {}
        self.waiting: dict[ir.Value, ir.Node] = {}
        """Layers that are made together with the sum that alone takes them."""
        self.replaced: list[ir.Node] = []

    def run(self) -> None:
        for node in list(self.graph):
            build = Builder(self.graph)
            y = node.outputs[0]
            if node in self.layers and self._is_summed(node):
                self.waiting[y] = node
                self.replaced.append(node)
            elif y in self.inside:
                self.phases[y] = [self._split(build, node)]
                self.replaced.append(node)
            elif node.inputs and node.inputs[0] in self.inside and _is_strided(node):
                self._replace(node, self._strided(build, node))
            elif _joins_channels(node) and _reads(node, self.inside, self.layers):
                self.replaced.append(node)
            else:
                for index, value in enumerate(node.inputs):
                    if value is not None and value in self.inside:
                        node.replace_input_with(index, self._put_together(build, value))
            build.insert_before(node)
        self._restore_outputs()
        for node in reversed(self.replaced):
            self.graph.remove(node, safe=True)
        self._remove_unused()

    def _is_summed(self, node: ir.Node) -> bool:
        users = list(_users(node.outputs[0]))
        if len(users) != 1 or users[0] is None or users[0].op_type != "Add" or users[0].outputs[0] not in self.inside:
            return False
        return not any(value in self.waiting for value in users[0].inputs)  # one convolution takes the other

    def _split(self, build: Builder, node: ir.Node) -> Phases:
        """The phases of what the node gives."""
        if node in self.layers:
            return self._layer(build, node, None)
        x = node.inputs[0]
        assert x is not None
        if node.op_type == "Add":
            a, b = node.inputs
            assert a is not None and b is not None
            if (layer := self.waiting.get(a) or self.waiting.get(b)) is not None:
                return self._layer(build, layer, self._one(build, b if a in self.waiting else a))
            one, other = self._one(build, a), self._one(build, b)
            pairs = zip(one.values, other.values, strict=True)
            return _phases([build("Add", *pair) for pair in pairs], one.channels)
        if node.op_type == "Conv":
            return self._pointwise(build, node, x)
        source = self._one(build, x)
        attributes = dict(node.attributes)
        values = [build(node.op_type, value, *node.inputs[1:], **attributes) for value in source.values]
        return _phases(values, source.channels)

    def _pointwise(self, build: Builder, node: ir.Node, x: ir.Value) -> Phases:
        sources, kernels = self._sources(build, node, x)
        values: list[ir.Value | None] = []
        for index in range(4):
            factors = [(source.values[index], kernel) for source, kernel in zip(sources, kernels, strict=True)]
            values.append(_products(build, factors, _bias(node)))
        return _phases(values, shape(node.inputs[1])[0])

    def _sources(self, build: Builder, node: ir.Node, x: ir.Value) -> tuple[list[Phases], tuple[ir.Value, ...]]:
        """The parts of a convolution's input, and of its weight."""
        weight = node.inputs[1]
        assert weight is not None
        sources = self._parts(build, x)
        return sources, build.split(weight, [source.channels for source in sources], 1)

    def _layer(self, build: Builder, node: ir.Node, plus: Phases | None) -> Phases:
        """Winograd's F(2x2, 3x3), with something to be added to its output."""
        x, weight = node.inputs[:2]
        assert x is not None and weight is not None
        outputs = shape(weight)[0]
        sources = self._parts(build, x)
        weights = build.split(weight, [source.channels for source in sources], 1)
        inputs = [_transformed(build, source) for source in sources]
        kernels = [
            _kernels(build, one, alike=source.values[0] is source.values[3])
            for one, source in zip(weights, sources, strict=True)
        ]

        def product(row: int, column: int, plus: ir.Value | None = None) -> ir.Value | None:
            factors = [(v[row][column], u[row][column]) for v, u in zip(inputs, kernels, strict=True)]
            bias = _bias(node) if (row, column) == (1, 1) else None  # it reaches every output once from there
            return _products(build, factors, bias, plus)

        def difference(a: ir.Value | None, b: ir.Value | None) -> ir.Value | None:
            """The difference of two; Sub isn't for blocked layouts, but a convolution by -1 with a sum is."""
            return a if b is None else _sum(build, _depthwise(build, b, outputs, [[-1]]), a)

        even: list[ir.Value | None] = []
        odd: list[ir.Value | None] = []
        for row in range(4):
            first, second = product(row, 1), product(row, 2)
            even.append(_sum(build, first, second))
            odd.append(difference(first, second))
        for row in (1, 2):
            even[row], odd[row] = product(row, 0, even[row]), product(row, 3, odd[row])
        values: list[ir.Value | None] = []
        for index, (row, column, own) in enumerate([(0, 0, even), (0, 3, odd), (3, 0, even), (3, 3, odd)]):
            both = even if index % 2 == 0 else odd
            total = _sum(build, both[1], both[2]) if row == 0 else difference(both[1], both[2])
            total = _sum(build, total, own[row])
            if plus is not None:
                total = _sum(build, total, plus.values[index])
            values.append(product(row, column, total))
        return _phases(values, outputs)

    def _strided(self, build: Builder, node: ir.Node) -> ir.Value:
        """A convolution by two: an odd row is above, an even one at, and the same odd one below the middle."""
        x = node.inputs[0]
        assert x is not None
        sources, weights = self._sources(build, node, x)
        pointwise = shape(node.inputs[1])[2] == 1
        total: ir.Value | None = None
        for source, weight in zip(sources, weights, strict=True):
            for index in (0,) if pointwise else range(4):
                rows, columns = divmod(index, 2)
                kernel = weight
                for axis, odd in ((2, rows), (3, columns)) if not pointwise else ():
                    limits = ((0,), (3,), (axis,), (2,)) if odd else ((1,), (2,), (axis,), (1,))
                    kernel = build("Slice", kernel, *(build.integers(*one) for one in limits))
                bias = _bias(node) if total is None else None
                inputs = (source.values[index], kernel) if bias is None else (source.values[index], kernel, bias)
                y = build("Conv", *inputs, kernel_shape=[1 + rows, 1 + columns], pads=[rows, columns, 0, 0])
                total = _sum(build, y, total)
        assert total is not None
        return total

    def _one(self, build: Builder, value: ir.Value) -> Phases:
        """A value's phases, its channels together."""
        parts = self._parts(build, value)
        if len(parts) > 1:
            values = [build.concat(phase, 1) for phase in zip(*(part.values for part in parts), strict=True)]
            parts = [_phases(values, sum(part.channels for part in parts))]
            self.phases[value] = parts
        return parts[0]

    def _parts(self, build: Builder, value: ir.Value) -> list[Phases]:
        """A value's phases, cut out where nobody made them yet."""
        if value not in self.phases:
            self.phases[value] = self._cut(build, value)
        return self.phases[value]

    def _cut(self, build: Builder, value: ir.Value) -> list[Phases]:
        node = value.producer()
        channels = shape(value)[1]
        if _joins_channels(node):
            assert node is not None
            return [part for one in node.inputs for part in self._parts(build, one)]  # type: ignore[arg-type]
        if _is_repeating(node):
            assert node is not None
            return [_phases([node.inputs[0]] * 4, channels)]
        if _is_doubling(node):
            assert node is not None
            x, weight = node.inputs[:2]
            assert x is not None and weight is not None
            turned = build("Transpose", weight, perm=[2, 3, 1, 0])  # rows, columns, outputs, inputs
            kernels = build.split(build.reshape(turned, 4, channels, shape(x)[1], 1, 1), [1] * 4, 0)
            pointwise = (build.reshape(kernel, channels, shape(x)[1], 1, 1) for kernel in kernels)
            return [_phases([_products(build, [(x, kernel)], _bias(node)) for kernel in pointwise], channels)]
        taps = ([[1]], [[0, 1]], [[0], [1]], [[0, 0], [0, 1]])
        return [_phases([_depthwise(build, value, channels, one, stride=2) for one in taps], channels)]

    def _put_together(self, build: Builder, value: ir.Value) -> ir.Value:
        """The image of a value's phases."""
        if value not in self.whole:
            batch, channels, height, width = shape(value)
            one = self._one(build, value)
            rows = []
            for even, odd in (one.values[:2], one.values[2:]):
                columns = [build.reshape(phase, batch, channels, height // 2, width // 2, 1) for phase in (even, odd)]
                rows.append(build.reshape(build.concat(columns, 4), batch, channels, height // 2, 1, width))
            whole = build.reshape(build.concat(rows, 3), batch, channels, height, width)
            whole.shape, whole.type = value.shape, value.type
            self.whole[value] = whole
            self.phases[whole] = self.phases[value]  # a node that takes the image may stand before others on phases
        return self.whole[value]

    def _replace(self, node: ir.Node, value: ir.Value) -> None:
        """Let the value take the place of the node's."""
        y = node.outputs[0]
        value.shape, value.type = y.shape, y.type
        name, y.name = y.name, None
        y.replace_all_uses_with(value, replace_graph_outputs=True)
        value.name = name
        self.replaced.append(node)

    def _restore_outputs(self) -> None:
        for index, value in enumerate(self.graph.outputs):
            if value in self.inside:
                build = Builder(self.graph)
                whole = self._put_together(build, value)
                self.graph.extend(build.nodes)
                whole.name, value.name = value.name, None
                self.graph.outputs[index] = whole

    def _remove_unused(self) -> None:
        """What gave a whole image that only its phases are needed of."""
        for node in reversed(list(self.graph)):
            if (_is_doubling(node) or _is_repeating(node)) and not list(_users(node.outputs[0])):
                self.graph.remove(node, safe=True)


def _phases(values: Sequence[ir.Value | None], channels: int) -> Phases:
    a, b, c, d = values
    assert a is not None and b is not None and c is not None and d is not None
    return Phases((a, b, c, d), channels)


def _sum(build: Builder, a: ir.Value | None, b: ir.Value | None) -> ir.Value | None:
    """The sum of two, where None is zero."""
    return build("Add", a, b) if a is not None and b is not None else a or b


def _products(
    build: Builder,
    factors: Sequence[tuple[ir.Value | None, ir.Value]],
    bias: ir.Value | None,
    plus: ir.Value | None = None,
) -> ir.Value | None:
    """The sum of pointwise convolutions, each of an input and its weight; an input of None is zero."""
    total = plus
    for x, weight in factors:
        if x is not None:
            y = build("Conv", *((x, weight) if bias is None else (x, weight, bias)), kernel_shape=[1, 1])
            bias = None
            total = _sum(build, y, total)  # ONNX Runtime adds it in the convolution
    return total


def _depthwise(
    build: Builder,
    x: ir.Value,
    channels: int,
    taps: list[list[int]],
    *,
    pads: Sequence[int] = (0, 0, 0, 0),
    stride: int = 1,
) -> ir.Value:
    """A convolution of each channel with the same few taps."""
    array = np.array([[taps]], np.float32)
    kernel = list(array.shape[2:])
    name = "taps_" + "_".join(",".join(map(str, row)) for row in taps)
    weight = build("Expand", build.constant(name, array), build.integers(channels, 1, *kernel))
    return build("Conv", x, weight, kernel_shape=kernel, group=channels, pads=list(pads), strides=[stride] * 2)


def _transformed(build: Builder, source: Phases) -> list[list[ir.Value | None]]:
    """The inputs of the 16 products, by row and column."""

    def along(even: ir.Value | None, odd: ir.Value | None, *, rows: bool) -> list[ir.Value | None]:
        if even is None or odd is None:
            return [None] * 4
        taps = [[1], [-1]] if rows else [[1, -1]]
        before, after = ((1, 0, 0, 0), (0, 0, 1, 0)) if rows else ((0, 1, 0, 0), (0, 0, 0, 1))
        first = _depthwise(build, odd, source.channels, taps, pads=before)
        last = _depthwise(build, even, source.channels, taps, pads=after)
        if even is odd:
            return [first, even, None, last]  # _kernels has the factor of 2
        minus = _depthwise(build, even, source.channels, [[-1]])
        return [first, build("Add", even, odd), build("Add", minus, odd), last]

    even_even, even_odd, odd_even, odd_odd = source.values
    left = along(even_even, odd_even, rows=True)
    right = left if (even_even, odd_even) == (even_odd, odd_odd) else along(even_odd, odd_odd, rows=True)
    return [along(one, other, rows=False) for one, other in zip(left, right, strict=True)]


def _kernels(build: Builder, weight: ir.Value, *, alike: bool) -> list[list[ir.Value]]:
    """The weights (outputs, inputs, 1, 1) of the 16 products, by row and column.

    Args:
        build: takes the nodes.
        weight: (outputs, inputs, 3, 3).
        alike: the four phases are the same image, so the sum of two is twice the one.
    """
    half = build.number(0.5)

    def along(weight: ir.Value) -> list[ir.Value]:
        g0, g1, g2 = (build("Gather", weight, build.scalar(k), axis=2) for k in range(3))
        outer = build("Add", g0, g2)
        plus, minus = build("Add", outer, g1), build("Sub", outer, g1)
        return [g0, plus if alike else build("Mul", plus, half), build("Mul", minus, half), build("Neg", g2)]

    axes = build.integers(2, 3)
    return [[build("Unsqueeze", one, axes) for one in along(rows)] for rows in along(weight)]
