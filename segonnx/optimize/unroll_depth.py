"""3D operators as 2D ones on depth slices, for whole networks.

Volumes travel between operators as slices (see ``slices``), through convolutions, norms, activations, sums, skips and
upsampling, so no operator lays them out anew. An operator without a rule gets its volume as it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from types import MappingProxyType
from typing import Self

import onnx_ir as ir

from segonnx.optimize import algorithms, depth_rules, group_norm
from segonnx.optimize.algorithms.convolution import Convolution
from segonnx.optimize.algorithms.transposed import transposed
from segonnx.optimize.base import Rewrite
from segonnx.optimize.builder import Builder
from segonnx.optimize.choices import DEPTH_CHUNKS, Choices
from segonnx.optimize.depth_rules import BINARY, RULES, Rule
from segonnx.optimize.group_norm import GroupNorm
from segonnx.optimize.layers import Layer, RewrittenLayer
from segonnx.optimize.reading import bias, group, is_constant, is_static, pads_by_rule, shape
from segonnx.optimize.slices import Volume
from segonnx.optimize.volumes import Volumes

MAX_BYTES = 3 * 2**30
LARGE_WEIGHT = 32 * 2**20
"""In networks with more than ``MAX_BYTES`` of weights, convolutions with more than ``LARGE_WEIGHT`` keep their 3D
operators. While it loads a model ONNX Runtime holds the weights as they are in the file, as derived, and as laid out
for its kernels: three times the memory and more. Such weights meet few voxels: they are most of the bytes, and little
of the time."""
LEAST_WORK = 50_000
"""Multiply-adds for each node that is added, or a network stays as it is. A node takes some 2 microseconds whatever it
does, and so many multiply-adds gain as much. Networks in use have millions; windows of a few thousand voxels don't."""
MOST_SLICES = 512
"""Slices that a node of a volume becomes at most, for an estimate."""


class UnrollDepthPass(Rewrite):
    """Replace 3D convolutions, and what stands between them, by 2D operators on depth slices.

    requires: float32 values of static shape (1, C, D, H, W); constant weights, of at most
        ``LARGE_WEIGHT`` bytes if all together have more than ``MAX_BYTES``. What isn't so stays.

    Args:
        algorithms: names of those of layers, by the layer's text. The default is taken for others, and where the
            algorithm can't make the layer.
        depth_chunks: that volumes are divided into, where they are deep enough.
        max_weight_growth: see ``Choices``.
        least_work: multiply-adds that each added node must have, or nothing is changed.
    """

    min_opset = 18  # reductions take their axes as inputs

    def __init__(
        self,
        algorithms: Mapping[str, str] = MappingProxyType({}),
        depth_chunks: int = DEPTH_CHUNKS,
        max_weight_growth: float | None = None,
        least_work: int = 0,
    ) -> None:
        super().__init__()
        self._least_work = least_work
        self._algorithms = algorithms
        self._depth_chunks = depth_chunks
        self._max_weight_growth = max_weight_growth

    @classmethod
    def with_choices(cls, choices: Choices) -> Self:
        # A tuning has measured what it chose.
        least_work = 0 if choices.algorithms else LEAST_WORK
        return cls(choices.algorithms, choices.depth_chunks, choices.max_weight_growth, least_work)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        weights = (value.const_value for value in model.graph.initializers.values())
        total = sum(weight.nbytes for weight in weights if weight is not None)
        max_bytes = LARGE_WEIGHT if total > MAX_BYTES else total
        chosen = self._algorithms
        if self._max_weight_growth is not None:
            trial = self._unrolling(model.clone().graph, chosen, max_bytes)
            trial.run()
            chosen = algorithms.bounded(trial.layers, self._max_weight_growth)
        if self._least_work and self._adds_idle_nodes(model, max_bytes):
            return ir.passes.PassResult(model, modified=False)
        unrolling = self._unrolling(model.graph, chosen, max_bytes)
        modified = unrolling.run()
        self.layers = unrolling.layers
        return ir.passes.PassResult(model, modified)

    def _unrolling(self, graph: ir.Graph, chosen: Mapping[str, str], max_bytes: int) -> Unrolling:
        return Unrolling(graph, Volumes(graph, self._depth_chunks), chosen, max_bytes)

    def _adds_idle_nodes(self, model: ir.Model, max_bytes: int) -> bool:
        """Whether what a node takes by itself is more than what it saves, for all nodes together."""
        if len(model.graph) * MOST_SLICES * self._least_work < _multiply_adds(model.graph):
            return False
        clone = model.clone().graph
        trial = self._unrolling(clone, self._algorithms, max_bytes)
        trial.run()
        added = len(clone) - len(model.graph)
        return sum(layer.multiply_adds for layer in trial.layers.values()) < self._least_work * added


def _multiply_adds(graph: ir.Graph) -> int:
    """Of the 3D convolutions of a graph, as far as their shapes are known; at most, as strided ones count more."""
    total = 0
    for node in graph:
        if node.op_type in ("Conv", "ConvTranspose") and _is_volume(node) and node.inputs[1] is not None:
            weight, voxels = node.inputs[1].shape, math.prod(shape(node.outputs[0])[2:])
            total += voxels * math.prod(size for size in weight or () if isinstance(size, int))
    return total


class Unrolling:
    """One run over a graph.

    Args:
        graph: is rewritten.
        volumes: its values that exist as slices.
        chosen: names of the algorithms of layers, by the layer's text.
        max_bytes: convolutions whose weights have more stay.
        default: gives the name of the algorithm of any other layer, of those that can make it.
        nodes: that are rewritten, where others aren't.
    """

    def __init__(
        self,
        graph: ir.Graph,
        volumes: Volumes,
        chosen: Mapping[str, str],
        max_bytes: int,
        default: Callable[[Convolution, Sequence[str]], str] = algorithms.default,
        nodes: AbstractSet[ir.Node] | None = None,
    ) -> None:
        self.layers: dict[str, RewrittenLayer] = {}
        self._graph = graph
        self._chosen = chosen
        self._max_bytes = max_bytes
        self._volumes = volumes
        self._default = default
        self._nodes = nodes

    def run(self) -> bool:
        """Rewrite the graph; whether anything changed."""
        rules: Mapping[str, Rule] = {**RULES, "Conv": self._convolution, "ConvTranspose": self._transposed}
        norms = {norm.nodes[0]: norm for norm in group_norm.find(self._graph)}
        replaced: list[ir.Node] = []
        waiting: dict[ir.Node, GroupNorm | None] = {}
        for node in list(self._graph):
            build = Builder(self._graph)
            if node in norms and norms[node].x in self._volumes:
                # Its nodes are replaced where the last of them is.
                waiting |= dict.fromkeys(norms[node].nodes) | {norms[node].nodes[-1]: norms[node]}
            if node in waiting:
                norm = waiting[node]
                volume = None if norm is None else depth_rules.group_norm(self._volumes, build, norm)
            else:
                rule = rules.get(node.op_type) if self._is_mine(node) else None
                volume = rule(self._volumes, build, node) if rule is not None and _is_volume(node) else None
                if volume is None:
                    self._volumes.stack_inputs(node)
                    continue
            if volume is not None:
                self._volumes.put(build, node.outputs[0], volume)
                build.insert_before(node)
            replaced.append(node)
        self._volumes.stack_outputs()
        for node in reversed(replaced):
            self._graph.remove(node, safe=True)
        return bool(replaced)

    def _is_mine(self, node: ir.Node) -> bool:
        return node.domain == "" and (self._nodes is None or node in self._nodes)

    def _convolution(self, volumes: Volumes, build: Builder, node: ir.Node) -> Volume | None:
        """A convolution, by the algorithm of its layer."""
        x, conv = node.inputs[0], _read(node, self._max_bytes, transposed=False)
        assert x is not None
        if conv is None or (x not in volumes and conv.kernel == (1, 1, 1)):
            return None
        if conv.kernel == (1, 1, 1) and _ends(node):
            return None  # a head: stacking its few inputs costs less than stacking its many outputs
        depths, taps = [shape(value)[2] for value in (x, node.outputs[0])], range(conv.kernel[0])
        if not all(any(0 <= conv.index(output, tap) < depths[0] for tap in taps) for output in range(depths[1])):
            return None  # a slice of the output has the padding alone
        along = conv.extents[0], conv.strides[0], (conv.pads[0], conv.pads[3])
        parts = volumes.get(build, x) if conv.groups == 1 else (volumes.with_all_channels(build, x),)
        sources = [volumes.with_halo(build, part, *along) for part in parts]
        values = algorithms.ALGORITHMS[self._algorithm(conv, sources)].build(build, conv, sources)
        _, height, width = conv.sizes(sources[0])
        return (sources[0].like(values, channels=conv.outputs, height=height, width=width),)

    def _algorithm(self, conv: Convolution, sources: Volume) -> str:
        """The name of the algorithm that makes a convolution; layers that are alike get the same."""
        size = (sources[0].depth, sources[0].height, sources[0].width)
        parts = tuple((source.channels, source.alike) for source in sources)
        layer = Layer(parts, conv.outputs, conv.kernel, conv.strides, conv.pads, size, conv.dilations, conv.groups)
        if (known := self.layers.get(str(layer))) is not None:
            known.convolutions += 1
            return known.algorithm
        possible = algorithms.possible(conv, sources)
        name = self._chosen.get(str(layer), "")
        if name not in possible:
            name = self._default(conv, possible)
        self.layers[str(layer)] = RewrittenLayer(layer, 1, possible, name)
        return name

    def _transposed(self, volumes: Volumes, build: Builder, node: ir.Node) -> Volume | None:
        """A transposed convolution of a value that exists as slices."""
        conv = _read(node, self._max_bytes, transposed=True)
        if conv is None or node.inputs[0] not in volumes or set(conv.dilations) != {1}:
            return None
        return transposed(volumes, build, node, conv)


def _is_volume(node: ir.Node) -> bool:
    """Whether the node takes and gives float32 values (1, C, D, H, W), all sizes known; of two it may take one."""
    for value in (*(() if node.op_type in BINARY else node.inputs[:1]), *node.outputs[:1]):
        if value is None or not is_static(value) or value.dtype != ir.DataType.FLOAT:
            return False
        sizes = shape(value)
        if len(sizes) != 5 or sizes[0] != 1:
            return False
    return True


def _ends(node: ir.Node) -> bool:
    """Whether nothing but the graph's output waits for the node."""
    return node.outputs[0].is_graph_output() and not node.outputs[0].uses()


def _read(node: ir.Node, max_bytes: int, *, transposed: bool) -> Convolution | None:
    """The node's convolution; None where no algorithm makes its kind, or its weight is larger than allowed."""
    weight = node.inputs[1]
    if weight is None or weight.dtype is None or not is_constant(weight) or not is_static(weight):
        return None
    if weight.dtype.itemsize * math.prod(shape(weight)) > max_bytes:
        return None
    conv = Convolution(
        weight,
        bias(node),
        tuple(shape(weight)[2:]),  # type: ignore[arg-type]
        tuple(node.attributes.get_ints("strides", (1, 1, 1))),  # type: ignore[arg-type]
        tuple(node.attributes.get_ints("pads", (0,) * 6)),  # type: ignore[arg-type]
        shape(weight)[1 if transposed else 0],
        tuple(node.attributes.get_ints("dilations", (1, 1, 1))),  # type: ignore[arg-type]
        group(node),
    )
    declined = pads_by_rule(node) or "output_shape" in node.attributes
    return None if declined or max(conv.pads[0], conv.pads[3]) >= conv.extents[0] else conv
