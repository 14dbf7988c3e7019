"""A network of one 3D convolution, in which its algorithms can be timed alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from segonnx.optimize.layers import Layer


def model_of(layer: Layer) -> ir.Model:
    """A network of this layer, with random weights and the input (1, 1, D, H, W).

    A slight convolution of one channel makes each part of the layer's input. Where neighbouring slices of a part are
    alike, nearest upsampling in depth repeats them.
    """
    network = _Network()
    parts = [network.part(channels, alike) for channels, alike in layer.sources]
    x = parts[0] if len(parts) == 1 else network.add("Concat", parts, axis=1)
    weights = [network.weight(layer.outputs, layer.inputs, *layer.kernel), network.weight(layer.outputs)]
    y = network.add("Conv", [x, *weights], strides=layer.strides, pads=layer.pads)
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, *layer.size])
    wanted = helper.make_tensor_value_info(y, TensorProto.FLOAT, None)
    graph = helper.make_graph(network.nodes, "layer", [given], [wanted], network.tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True))


class _Network:
    """Nodes and tensors of a graph with the input ``x``."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self._rng = np.random.default_rng(0)

    def weight(self, *shape: int) -> str:
        """The name of a new random weight (outputs, inputs, ...)."""
        values = self._rng.standard_normal(shape, np.float32) / np.sqrt(np.prod(shape[1:]), dtype=np.float32)
        return self._tensor(values.astype(np.float32))

    def add(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        """The name of a new node's output."""
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def part(self, channels: int, alike: int) -> str:
        """The name of a value (1, channels, D, H, W) in which ``alike`` neighbouring slices are alike."""
        y = self.add("Conv", ["x", self.weight(channels, 1, 2, 1, 1)], strides=[alike, 1, 1], pads=[1, 0, 0, 0, 0, 0])
        if alike == 1:
            return y
        scales = self._tensor(np.array([1, 1, alike, 1, 1], np.float32))
        return self.add("Resize", [y, "", scales], mode="nearest")

    def _tensor(self, array: np.ndarray) -> str:
        name = f"w{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(array, name))
        return name
