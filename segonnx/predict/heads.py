"""The head of a network: the convolution over single voxels that makes logits of features.

Windows are blended, mirrored back and resampled by weighted means over voxels, and a head works on each voxel alone.
So both orders give the same numbers, and where there are fewer features than classes, they are blended instead.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segonnx.predict import products
from segonnx.predict.interpolation import AnyArray

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Head:
    """What makes the logits of a voxel of its features.

    Attributes:
        weight: float32 (classes, features).
        bias: float32 (classes,); None where there is none, or where a feature is 1 everywhere.
    """

    weight: AnyArray
    bias: AnyArray | None = None

    @property
    def features(self) -> int:
        """How many features a voxel has."""
        return int(self.weight.shape[1])

    @property
    def largest(self) -> float:
        """The size of a feature below which no logit can leave float32."""
        sums = np.abs(self.weight.astype(np.float64)).sum(axis=1)
        offsets = 0.0 if self.bias is None else float(np.abs(self.bias).max())
        return float((np.finfo(np.float32).max - offsets) / max(1.0, sums.max()))

    def logits(self, features: AnyArray) -> AnyArray:
        """The logits (classes, voxels) of features (features, voxels)."""
        made = products.product(self.weight, np.ascontiguousarray(features))
        if self.bias is not None:
            made += self.bias[:, None]
        return made

    def logits_rows(self, rows: AnyArray) -> AnyArray:
        """The logits (voxels, classes) of features (voxels, features)."""
        made = products.product(rows, self._turned)
        if self.bias is not None:
            made += self.bias
        return made

    @functools.cached_property
    def _turned(self) -> AnyArray:
        return np.ascontiguousarray(self.weight.T)


@dataclass(frozen=True)
class Split:
    """A graph without its head.

    Attributes:
        model: The graph, in ONNX's format, which gives features.
        output: The name of its output.
        head: What was taken off.
    """

    model: bytes
    output: str
    head: Head


def split(path: Path) -> Split | None:
    """Take the head off a graph, where it has fewer features than classes.

    Args:
        path: The graph's file. It was verified.

    Returns:
        None if the graph's output isn't made by such a head; the graph then stays as it is.
    """
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    graph = model.graph
    if len(graph.output) != 1 or (node := _maker(graph, graph.output[0].name)) is None or not _is_head(node):
        return None
    values = _Values(graph, path.parent)
    weight = values.of(node.input[1])
    bias = values.of(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    known = weight is not None and (bias is not None or len(node.input) < 3 or not node.input[2])
    if not known or weight is None or set(weight.shape[2:]) != {1} or weight.shape[1] >= weight.shape[0]:
        return None
    shape = [one.dim_value for one in graph.output[0].type.tensor_type.shape.dim]
    if len(shape) != weight.ndim or any(node.output[0] in other.input for other in graph.node):
        return None
    features = node.input[0]
    if _maker(graph, features) is None:  # the graph's own input
        return None
    described = onnx.helper.make_tensor_value_info(features, onnx.TensorProto.FLOAT, None)
    graph.node.remove(node)
    del graph.output[:]
    graph.output.append(described)
    head = Head(
        np.ascontiguousarray(weight.reshape(weight.shape[:2]), np.float32),
        None if bias is None else bias.astype(np.float32),
    )
    return Split(model.SerializeToString(), features, head)


def _maker(graph: onnx.GraphProto, name: str) -> onnx.NodeProto | None:
    """The node that makes a value."""
    return next((node for node in graph.node if name in node.output), None)


def _is_head(node: onnx.NodeProto) -> bool:
    """Whether a node is a convolution over single voxels, as far as its attributes say."""
    if node.op_type != "Conv" or node.domain not in ("", "ai.onnx"):
        return False
    given: dict[str, Any] = {one.name: one for one in node.attribute}
    plain = all(set(given[name].ints) <= {1} for name in ("strides", "dilations", "kernel_shape") if name in given)
    padded = "pads" in given and any(given["pads"].ints)
    grouped = "group" in given and given["group"].i != 1
    ruled = "auto_pad" in given and given["auto_pad"].s not in (b"", b"NOTSET")
    return plain and not padded and not grouped and not ruled


class _Values:
    """The numbers of a graph that are the same for every image.

    Args:
        graph: The graph.
        folder: Where the files of its weights are.
    """

    def __init__(self, graph: onnx.GraphProto, folder: Path) -> None:
        self._folder = folder
        self._tensors: Mapping[str, onnx.TensorProto] = {one.name: one for one in graph.initializer}
        self._makers = {name: node for node in graph.node for name in node.output}

    def of(self, name: str) -> AnyArray | None:
        """The value of this name; None where it depends on the image, or isn't as simple as a rewrite leaves it."""
        from onnx import numpy_helper

        if (tensor := self._tensors.get(name)) is not None:
            found: AnyArray = numpy_helper.to_array(tensor, str(self._folder))
            return found
        node = self._makers.get(name)
        if node is None:
            return None
        given = {one.name: one for one in node.attribute}
        if node.op_type == "Constant" and "value" in given:
            found = numpy_helper.to_array(given["value"].t, str(self._folder))
            return found
        if node.op_type not in ("Concat", "Reshape", "Unsqueeze", "Identity", "Cast"):
            return None
        parts = [self.of(one) for one in node.input]
        if any(part is None for part in parts):
            return None
        return _computed(node.op_type, [part for part in parts if part is not None], given)


def _computed(operator: str, parts: list[AnyArray], given: Mapping[str, Any]) -> AnyArray | None:
    """What one of a few operators makes of numbers."""
    if operator == "Concat":
        return np.concatenate(parts, given["axis"].i)
    if operator == "Cast":  # of weights in 16 bits
        return parts[0].astype(np.float32) if given["to"].i == 1 else None
    if operator == "Identity":
        return parts[0]
    if len(parts) != 2 or 0 in parts[1] or "allowzero" in given:
        return None
    if operator == "Reshape":
        return parts[0].reshape(parts[1].tolist())
    return np.expand_dims(parts[0], tuple(parts[1].tolist()))
