"""Pictures of 8 bits instead of normalised numbers: a quarter of the bytes, and nothing left to prepare."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from segonnx.core.pixels import HIGHEST, Pixels
from segonnx.optimize.base import invalid
from segonnx.optimize.builder import Builder

COLOURS_FIRST = (0, 3, 1, 2)


class PixelsPass(ir.passes.InPlacePass):
    """Put in front of the graph's first input what makes normalised numbers of pictures of 8 bits.

    It divides by 255, subtracts the mean and divides by the standard deviation, each step by itself and in float32, as
    a user does in PyTorch and as ``segonnx predict`` does: all three get the same bits. The Cast comes first, since
    TensorRT lets nothing else take 8-bit numbers.

    requires: a first input (N, C, H, W) of float32, with a mean and a standard deviation for each of its C channels.
    ensures: that input has the same name and is uint8, its axes in the order of ``pixels.layout``. The other inputs
        and all outputs stay. The graph is valid; whatever took the input stays as it is.

    Args:
        pixels: the order of the axes, the mean and the standard deviation.
    """

    def __init__(self, pixels: Pixels) -> None:
        super().__init__()
        self._pixels = pixels

    def requires(self, model: ir.Model) -> None:
        image = model.graph.inputs[0] if model.graph.inputs else None
        shape = None if image is None else image.shape
        wanted = len(self._pixels.mean)
        if image is None or image.dtype != ir.DataType.FLOAT or shape is None or len(shape) != 4 or shape[1] != wanted:
            found = "none" if image is None else f"{image.dtype} {shape}"
            raise ir.passes.PreconditionError(
                f"pictures take the place of an input (N, {wanted}, H, W) of float32, not of {found}"
            )

    def ensures(self, model: ir.Model) -> None:
        if (broken := invalid(model.graph)) is not None:
            raise ir.passes.PostconditionError(f"the graph that takes pictures isn't valid: {broken}")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph, pixels = model.graph, self._pixels
        normalised = graph.inputs[0]
        assert normalised.shape is not None
        pictures = ir.Value(
            name=normalised.name,
            shape=ir.Shape(pixels.shape(list(normalised.shape))),
            type=ir.TensorType(ir.DataType.UINT8),
        )
        build = Builder(graph)
        x = build("Cast", pictures, to=int(ir.DataType.FLOAT))
        if pixels.layout == "NHWC":
            x = build("Transpose", x, perm=COLOURS_FIRST)
        x = build("Div", x, build.number(float(HIGHEST)))
        x = build("Sub", x, self._constant(build, "mean", pixels.mean))
        x = build("Div", x, self._constant(build, "std", pixels.std))
        x.type, x.shape = normalised.type, normalised.shape
        graph.insert_before(graph[0], build.nodes)
        ir.convenience.replace_all_uses_with(normalised, x)
        graph.inputs[0] = pictures
        return ir.passes.PassResult(model, True)

    @staticmethod
    def _constant(build: Builder, what: str, numbers: tuple[float, ...]) -> ir.Value:
        # No parameter of PyTorch's is called so: a slash isn't what joins its names.
        return build.constant(f"pixels/{what}", np.array(numbers, np.float32).reshape(1, -1, 1, 1))
