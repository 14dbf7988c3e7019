"""3x3 convolutions of images by Winograd's F(2x2, 3x3), on polyphase components.

An image is decomposed once (see ``polyphase``). The components travel from one convolution to the next, through
activations, sums and skips. A transposed convolution by two gives the components of its output as four pointwise ones,
and after upsampling by two they are all the small image. A strided convolution reads them where they are. Anything else
gets the image, interleaved again.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

import onnx_ir as ir

from segonnx.optimize import polyphase
from segonnx.optimize.base import Rewrite
from segonnx.optimize.builder import Builder
from segonnx.optimize.polyphase import Components
from segonnx.optimize.polyphase_regions import (
    is_doubling,
    is_repeating,
    is_strided,
    joins_channels,
    reads,
    users,
    values_inside,
    worthwhile,
)
from segonnx.optimize.reading import bias, shape


class WinogradPhasesPass(Rewrite):
    """Replace 3x3 convolutions of images, and what stands between them, by pointwise ones on polyphase components.

    requires: float32 images of static, even sizes; constant weights; enough channels and work, and
        enough convolutions for each image that must be interleaved again, see ``polyphase_regions``. What isn't so
        stays.
    """

    weight_growth = 16 / 9

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        layers = worthwhile(model.graph)
        if layers:
            _Decomposing(model.graph, layers).run()
        return ir.passes.PassResult(model, bool(layers))


class _Decomposing:
    """One run over a graph.

    Args:
        graph: is rewritten.
        layers: the 3x3 convolutions to be made on components.
    """

    def __init__(self, graph: ir.Graph, layers: AbstractSet[ir.Node]) -> None:
        self._graph = graph
        self._layers = layers
        self._inside = values_inside(graph, layers)
        self._components: dict[ir.Value, list[Components]] = {}
        """The components of values. Those of a concatenation are in parts, one after the other."""
        self._images: dict[ir.Value, ir.Value] = {}
        self._waiting: dict[ir.Value, ir.Node] = {}
        """Layers that are made together with the sum that alone takes them, by their outputs."""
        self._replaced: list[ir.Node] = []

    def run(self) -> None:
        for node in list(self._graph):
            build = Builder(self._graph)
            y = node.outputs[0]
            if node in self._layers and self._is_summed(node):
                self._waiting[y] = node
                self._replaced.append(node)
            elif y in self._inside:
                self._components[y] = [self._made(build, node)]
                self._replaced.append(node)
            elif node.inputs and node.inputs[0] in self._inside and is_strided(node):
                build.replace(node, self._strided(build, node))
                continue
            elif joins_channels(node) and reads(node, self._inside, self._layers):
                self._replaced.append(node)
            else:
                for index, value in enumerate(node.inputs):
                    if value is not None and value in self._inside:
                        node.replace_input_with(index, self._image(build, value))
            build.insert_before(node)
        self._restore_outputs()
        for node in reversed(self._replaced):
            self._graph.remove(node, safe=True)
        self._remove_unused()

    def _is_summed(self, layer: ir.Node) -> bool:
        """Whether only a sum takes the layer, which can be made together with it."""
        takers = list(users(layer.outputs[0]))
        if len(takers) != 1 or takers[0] is None or takers[0].op_type != "Add":
            return False
        if takers[0].outputs[0] not in self._inside:
            return False
        return not any(value in self._waiting for value in takers[0].inputs)  # one convolution takes the other

    def _made(self, build: Builder, node: ir.Node) -> Components:
        """The components of what a node gives."""
        if node in self._layers:
            return self._layer(build, node, None)
        if node.op_type == "Add":
            return self._sum(build, node)
        if node.op_type == "Conv":
            return self._pointwise(build, node)
        x = node.inputs[0]
        assert x is not None
        source = self._with_all_channels(build, x)
        attributes = dict(node.attributes)
        values = [build(node.op_type, value, *node.inputs[1:], **attributes) for value in source.values]
        return polyphase.components(values, source.channels)

    def _layer(self, build: Builder, node: ir.Node, plus: Components | None) -> Components:
        """A 3x3 convolution, with something to be added to its output."""
        sources, weights = self._sources(build, node)
        return polyphase.winograd(build, sources, weights, shape(node.inputs[1])[0], bias(node), plus)

    def _sum(self, build: Builder, node: ir.Node) -> Components:
        a, b = node.inputs
        assert a is not None and b is not None
        if (layer := self._waiting.get(a) or self._waiting.get(b)) is not None:
            return self._layer(build, layer, self._with_all_channels(build, b if a in self._waiting else a))
        left, right = self._with_all_channels(build, a), self._with_all_channels(build, b)
        pairs = zip(left.values, right.values, strict=True)
        return polyphase.components([build("Add", *pair) for pair in pairs], left.channels)

    def _pointwise(self, build: Builder, node: ir.Node) -> Components:
        sources, weights = self._sources(build, node)
        values: list[ir.Value | None] = []
        for index in range(4):
            factors = [(source.values[index], weight) for source, weight in zip(sources, weights, strict=True)]
            values.append(polyphase.pointwise(build, factors, bias(node)))
        return polyphase.components(values, shape(node.inputs[1])[0])

    def _sources(self, build: Builder, node: ir.Node) -> tuple[list[Components], tuple[ir.Value, ...]]:
        """The parts of a convolution's input, and of its weight."""
        x, weight = node.inputs[:2]
        assert x is not None and weight is not None
        sources = self._parts(build, x)
        return sources, build.split(weight, [source.channels for source in sources], 1)

    def _strided(self, build: Builder, node: ir.Node) -> ir.Value:
        """A convolution by two: an odd row is above, an even one at, and the same odd one below the middle."""
        sources, weights = self._sources(build, node)
        pointwise = shape(node.inputs[1])[2] == 1
        total: ir.Value | None = None
        for source, weight in zip(sources, weights, strict=True):
            for index in (0,) if pointwise else range(4):
                rows, columns = divmod(index, 2)
                kernel = weight
                for axis, odd in ((2, rows), (3, columns)) if not pointwise else ():
                    limits = ((0,), (3,), (axis,), (2,)) if odd else ((1,), (2,), (axis,), (1,))
                    kernel = build("Slice", kernel, *(build.integers(*limit) for limit in limits))
                offset = bias(node) if total is None else None
                inputs = (source.values[index], kernel) if offset is None else (source.values[index], kernel, offset)
                y = build("Conv", *inputs, kernel_shape=[1 + rows, 1 + columns], pads=[rows, columns, 0, 0])
                total = polyphase.total(build, y, total)
        assert total is not None
        return total

    def _with_all_channels(self, build: Builder, value: ir.Value) -> Components:
        """A value's components, each with all channels."""
        parts = self._parts(build, value)
        if len(parts) > 1:
            values = [build.concat(component, 1) for component in zip(*(part.values for part in parts), strict=True)]
            parts = [polyphase.components(values, sum(part.channels for part in parts))]
            self._components[value] = parts
        return parts[0]

    def _parts(self, build: Builder, value: ir.Value) -> list[Components]:
        """A value's components in parts, made from the image where there are none yet."""
        if value not in self._components:
            self._components[value] = self._decomposed(build, value)
        return self._components[value]

    def _decomposed(self, build: Builder, value: ir.Value) -> list[Components]:
        node = value.producer()
        channels = shape(value)[1]
        if node is not None and joins_channels(node):
            return [part for value in node.inputs for part in self._parts(build, value)]  # type: ignore[arg-type]
        if node is not None and is_repeating(node):
            return [polyphase.components([node.inputs[0]] * 4, channels)]
        if node is not None and is_doubling(node):
            x, weight = node.inputs[:2]
            assert x is not None and weight is not None
            turned = build("Transpose", weight, perm=[2, 3, 1, 0])  # rows, columns, outputs, inputs
            kernels = build.split(build.reshape(turned, 4, channels, shape(x)[1], 1, 1), [1] * 4, 0)
            single = (build.reshape(kernel, channels, shape(x)[1], 1, 1) for kernel in kernels)
            values = [polyphase.pointwise(build, [(x, kernel)], bias(node)) for kernel in single]
            return [polyphase.components(values, channels)]
        return [polyphase.decompose(build, value, channels)]

    def _image(self, build: Builder, value: ir.Value) -> ir.Value:
        """The image of a value that exists as components."""
        if value not in self._images:
            batch, _, height, width = shape(value)
            image = polyphase.interleave(build, self._with_all_channels(build, value), batch, height, width)
            image.shape, image.type = value.shape, value.type
            self._images[value] = image
            # A node that takes the image may stand before others that take its components.
            self._components[image] = self._components[value]
        return self._images[value]

    def _restore_outputs(self) -> None:
        """Let the graph give the image of each output that exists as components."""
        for index, value in enumerate(self._graph.outputs):
            if value in self._inside:
                build = Builder(self._graph)
                image = self._image(build, value)
                self._graph.extend(build.nodes)
                image.name, value.name = value.name, None
                self._graph.outputs[index] = image

    def _remove_unused(self) -> None:
        """Remove what gave a whole image of which only the components are needed."""
        for node in reversed(list(self._graph)):
            if (is_doubling(node) or is_repeating(node)) and not list(users(node.outputs[0])):
                self._graph.remove(node, safe=True)
