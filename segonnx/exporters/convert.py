"""From a PyTorch module to an ONNX file: one path for 2D and 3D.

``convert`` runs in a process of its own; torch is imported there, and not by the caller that imports this module.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segonnx.artifacts.layout import CPU_MODEL
from segonnx.core import subprocesses
from segonnx.core.subprocesses import Progress
from segonnx.core.synthetic_inputs import ParityInput
from segonnx.errors import ConversionError, ResourceError, first_line
from segonnx.exporters.activation import final
from segonnx.exporters.assemble import Converted, Graph
from segonnx.exporters.prepare import STATE
from segonnx.exporters.provenance import CONSTANTS
from segonnx.exporters.rounding import WeightsDtype
from segonnx.optimize.opsets import OPSET, TORCH_LEAST
from segonnx.sources.catalog import ModelSpec

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import nn

    from segonnx.models.base import BuiltModel
    from segonnx.optimize import Optimize
    from segonnx.optimize.choices import Choices


@dataclass(frozen=True)
class Conversion:
    """What to convert, and how.

    Attributes:
        spec: the network.
        shape: the example input's, (N, C, spatial...); it is the input's shape in the file unless ``dynamic``.
        dynamic: leave batch and spatial sizes open.
        optimize: which rewrites to apply.
        choices: what differs from the rewrites' defaults.
        opset: of the graph's operators.
        ir_version: of the file's format; None takes the least that the opset has.
        weights_dtype: the type that weights are stored in.
        path: the ONNX file of the graph as PyTorch writes it; the weights go beside it, into a file with ``.data``
            appended to its name. If rewrites change the graph, theirs goes beside it, too, as ``CPU_MODEL``.
    """

    spec: ModelSpec
    shape: tuple[int, ...]
    dynamic: bool
    optimize: Optimize
    choices: Choices
    path: Path
    opset: int = OPSET
    ir_version: int | None = None
    weights_dtype: WeightsDtype = "float32"


def convert(conversion: Conversion, progress: Progress) -> Converted:
    """Convert the network whose weights ``prepare`` left beside the ONNX file: see ``convert_network``."""
    import torch

    from segonnx import models
    from segonnx.models import checkpoints, unreached

    progress("loading the network")
    spec = conversion.spec
    built = checkpoints.restore(spec, conversion.path.with_name(STATE))
    progress("looking for layers that the output doesn't depend on")
    x = torch.from_numpy(ParityInput("noise", conversion.shape).make(spec.modality))
    built = unreached.explain(built, models.build_meta(spec).finalized().module, x)
    return convert_network(built, conversion, progress)


def convert_network(built: BuiltModel, conversion: Conversion, progress: Progress) -> Converted:
    """Convert a network, and write the ONNX file; and that of the rewritten graph, which shares its weights.

    The weights go to one external file, whatever their size: that takes no second copy of them in memory.

    Args:
        built: the network in its inference form.
        conversion: what it is, and how it is converted.
        progress: callback that gets the name of each step.

    Raises:
        ConversionError: torch can't express the network in ONNX.
        InputError: the choices are another network's.
    """
    import onnx_ir as ir
    import onnxscript.optimizer

    from segonnx.exporters import provenance, rounding
    from segonnx.models import checkpoints
    from segonnx.optimize import apply

    spec, path = conversion.spec, conversion.path
    progress("converting to ONNX")
    model = _program(built, conversion)
    progress("optimising the graph")
    tensors = checkpoints.names(built.module)
    traced = provenance.trace(model, tensors)
    activation = final(model)
    onnxscript.optimizer.optimize(model)
    rewritten = model.clone()
    changed = apply(rewritten, conversion.optimize, conversion.choices)
    graphs = [model, rewritten] if changed else [model]
    constants: dict[str, Any] = {}
    for one in graphs:
        _finish(one, conversion)
        constants |= provenance.computed(one, traced)
    provenance.save(constants, path.with_name(CONSTANTS))
    origins = [provenance.explain(one, traced, tensors, constants) for one in graphs]
    parameters = dict(built.module.named_parameters())
    stored = None
    if conversion.weights_dtype != "float32":
        progress("rounding the weights")
        stored = rounding.round_weights(graphs, origins[0], parameters, conversion.weights_dtype, path.parent)
    progress("writing the ONNX file")
    ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=1024)
    if changed:
        _save_beside(rewritten, model, path)
    found = [
        Graph(
            operators=dict(sorted(Counter(node.op_type for node in one.graph).items())),
            origins=explained,
            rewrites=changed if one is rewritten else (),
        )
        for one, explained in zip(graphs, origins, strict=True)
    ]
    return Converted(
        opset=model.graph.opset_imports[""],
        ir_version=model.ir_version,
        plain=found[0],
        cpu=found[1] if changed else None,
        parameters=tuple(parameters),
        unused=dict(built.unused),
        inputs=(spec.input, *(one.name for one in spec.more_inputs)),
        outputs=(_output(spec), *spec.more_outputs),
        activation=activation,
        rounded=stored,
    )


def _finish(model: ir.Model, conversion: Conversion) -> None:
    """Bring a graph to the form of the file, in place."""
    from onnx_ir.passes import common

    from segonnx.optimize import opsets
    from segonnx.optimize.pixels import PixelsPass

    opsets.lower(model, conversion.opset)
    if conversion.spec.pixels is not None:
        PixelsPass(conversion.spec.pixels)(model)
    model.ir_version = conversion.ir_version or opsets.LEAST_IR[conversion.opset]
    common.ShapeInferencePass()(model)
    common.RemoveUnusedNodesPass()(model)
    # Metadata of the exporter tells paths and source lines of this machine.
    common.ClearMetadataAndDocStringPass()(model)
    for value in model.graph.initializers.values():
        value.metadata_props.clear()
    model.graph.name = conversion.spec.name


def _save_beside(rewritten: ir.Model, model: ir.Model, path: Path) -> None:
    """Write a rewritten graph beside its original at ``path``, where its weights stay."""
    import onnx_ir as ir

    written = ir.load(path).graph.initializers
    for name, value in rewritten.graph.initializers.items():
        original = model.graph.initializers.get(name)
        if original is not None and original.const_value is value.const_value:
            value.const_value = written[name].const_value
    ir.save(rewritten, path.with_name(CPU_MODEL))


def _program(built: BuiltModel, conversion: Conversion) -> ir.Model:
    """The graph as torch writes it."""
    import torch

    spec, shape = conversion.spec, conversion.shape
    arguments, keywords = _arguments(spec, shape, _traced(spec, shape, dynamic=conversion.dynamic))
    dynamic = _dynamic_shapes(built.module, spec, shape) if conversion.dynamic else None
    try:
        with _quiet():
            program = torch.onnx.export(
                built.module,
                arguments,
                kwargs=keywords or None,
                dynamo=True,
                optimize=False,
                opset_version=max(TORCH_LEAST, conversion.opset),
                input_names=[spec.input, *(one.name for one in spec.more_inputs)],
                output_names=[_output(spec), *spec.more_outputs],
                dynamic_shapes=dynamic,
                verbose=False,
            )
    except Exception as error:
        ours = subprocesses.translate(error)
        if isinstance(ours, ResourceError):
            raise ours from error
        raise ConversionError(f"torch can't express {spec.name} in ONNX: {_why(error)}") from error
    assert program is not None
    if conversion.dynamic:
        _require_open(program.model, spec)
    return program.model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Nothing of what torch prints and logs where it fails: whole graphs, by several ways."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _why(error: BaseException) -> str:
    """Why torch failed, in one line; with the caller's line of code where that depends on the input's values."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if "data-dependent" not in str(cause).lower():
        return first_line(cause)
    package = str(Path(__file__).parents[1])
    frames = [
        frame
        for frame in traceback.extract_tb(cause.__traceback__)
        if "site-packages" not in frame.filename and not frame.filename.startswith((package, "<"))
    ]
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"its code branches on values of its input, or makes a size of them{where}, and a graph holds one way alone"


def _output(spec: ModelSpec) -> str:
    return spec.output or "logits"


def _traced(spec: ModelSpec, shape: tuple[int, ...], *, dynamic: bool) -> tuple[int, ...]:
    """The shape of the image that torch traces the network with.

    torch takes a size of 1 for a constant, whatever is said of its axis. A graph of open sizes is traced at others: two
    images or more, of two steps or more.
    """
    if not dynamic:
        return shape
    spatial = (max(size, 2 * step) for size, step in zip(shape[2:], spec.divisors, strict=True))
    return (max(2, shape[0]), shape[1], *spatial)


def _arguments(
    spec: ModelSpec, shape: tuple[int, ...], traced: tuple[int, ...]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What torch traces the network with: by their places, and by their keywords."""
    import torch

    image = torch.zeros(traced)
    places: list[tuple[str | None, torch.Tensor]] = [(spec.argument, image)]
    for one in spec.more_inputs:
        axes = _open_axes(one.shape, shape)
        sizes = [traced[axis] if axis in axes else size for axis, size in enumerate(one.shape)]
        places.append((one.argument, torch.zeros(sizes, dtype=getattr(torch, one.dtype))))
    by_place = tuple(tensor for argument, tensor in places if argument is None)
    return by_place, {argument: tensor for argument, tensor in places if argument is not None}


def _open_axes(shape: tuple[int, ...], image: tuple[int, ...]) -> set[int]:
    """The axes of another input whose sizes are the image's."""
    axes = {0} if shape and shape[0] == image[0] else set()
    return axes | set(range(2, len(image))) if axes and len(shape) == len(image) and shape[2:] == image[2:] else axes


def _dynamic_shapes(module: nn.Module, spec: ModelSpec, shape: tuple[int, ...]) -> Any:
    """The open axes of each input, as ``torch.export`` wants them: in the order of ``forward``'s arguments."""
    import torch

    names = ("depth", "height", "width")[-(len(shape) - 2) :]
    spatial = {
        axis: step * torch.export.Dim(f"{name}_{step}", min=2)
        for axis, (name, step) in enumerate(zip(names, spec.divisors, strict=True), 2)
    }
    image = {0: torch.export.Dim("batch", min=1), **spatial}
    every = [(spec.argument, image)]
    for one in spec.more_inputs:
        axes = _open_axes(one.shape, shape)
        every.append((one.argument, {axis: dim for axis, dim in image.items() if axis in axes}))
    if all(argument is None for argument, _ in every):
        by_place = tuple(axes for _, axes in every)
        kinds = [one.kind for one in inspect.signature(module.forward).parameters.values()]
        return (by_place,) if kinds[:1] == [inspect.Parameter.VAR_POSITIONAL] else by_place
    return {str(argument): axes for argument, axes in every}


def _require_open(model: ir.Model, spec: ModelSpec) -> None:
    """See to it that batch and spatial sizes of the image are open in the file.

    Raises:
        ConversionError: torch fixed one.
    """
    shape = model.graph.inputs[0].shape
    assert shape is not None
    names = {0: "batch", **dict(enumerate(("depth", "height", "width")[-(len(shape) - 2) :], 2))}
    if fixed := {name: shape[axis] for axis, name in names.items() if isinstance(shape[axis], int)}:
        said = " and ".join(f"the {name} at {size}" for name, size in fixed.items())
        raise ConversionError(
            f"{spec.name} can't be exported with open sizes: torch fixed {said}, on which the network's code depends; "
            "export it without dynamic"
        )
