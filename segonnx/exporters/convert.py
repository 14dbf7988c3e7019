"""From a PyTorch module to an ONNX file: one path for 2D and 3D.

``convert`` runs in a process of its own; torch is imported there, and not by the caller that imports this module.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segonnx.core import subprocesses
from segonnx.core.subprocesses import Progress
from segonnx.core.synthetic_inputs import ParityInput
from segonnx.errors import ConversionError, ResourceError, first_line
from segonnx.exporters.assemble import Converted
from segonnx.exporters.prepare import STATE
from segonnx.sources.catalog import ModelSpec

if TYPE_CHECKING:
    import onnx_ir as ir

    from segonnx.models.base import BuiltModel
    from segonnx.optimize import Optimize
    from segonnx.optimize.choices import Choices

OPSET = 20


@dataclass(frozen=True)
class Conversion:
    """What to convert, and how.

    Attributes:
        spec: the network.
        shape: the example input's, (N, C, spatial...); it is the input's shape in the file unless ``dynamic``.
        dynamic: leave batch and spatial sizes open.
        optimize: which rewrites to apply.
        choices: what differs from the rewrites' defaults.
        path: the ONNX file; the weights go beside it, into a file with ``.data`` appended to its name.
    """

    spec: ModelSpec
    shape: tuple[int, ...]
    dynamic: bool
    optimize: Optimize
    choices: Choices
    path: Path


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
    """Convert a network, and write the ONNX file.

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
    from onnx_ir.passes import common

    from segonnx.exporters import provenance
    from segonnx.models import checkpoints
    from segonnx.optimize import apply

    spec, path = conversion.spec, conversion.path
    progress("converting to ONNX")
    model = _program(built, conversion)
    progress("optimising the graph")
    tensors = checkpoints.names(built.module)
    traced = provenance.trace(model, tensors)
    onnxscript.optimizer.optimize(model)
    changed = apply(model, conversion.optimize, conversion.choices)
    common.ShapeInferencePass()(model)
    common.RemoveUnusedNodesPass()(model)
    # Metadata of the exporter tells paths and source lines of this machine.
    common.ClearMetadataAndDocStringPass()(model)
    for value in model.graph.initializers.values():
        value.metadata_props.clear()
    model.graph.name = spec.name
    progress("writing the ONNX file")
    ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=1024)
    return Converted(
        opset=model.graph.opset_imports[""],
        ir_version=model.ir_version,
        operators=dict(sorted(Counter(node.op_type for node in model.graph).items())),
        origins=provenance.explain(model, traced, tensors),
        rewrites=changed,
        parameters=tuple(name for name, _ in built.module.named_parameters()),
        unused=dict(built.unused),
        input=spec.input,
        output=_output(spec),
    )


def _program(built: BuiltModel, conversion: Conversion) -> ir.Model:
    """The graph as torch writes it."""
    import torch

    spec, shape = conversion.spec, conversion.shape
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # it prints graphs where it fails
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                built.module,
                (torch.zeros(shape),),
                dynamo=True,
                optimize=False,
                opset_version=OPSET,
                input_names=[spec.input],
                output_names=[_output(spec)],
                dynamic_shapes=_dynamic_shapes(spec, shape) if conversion.dynamic else None,
                verbose=False,
            )
    except Exception as error:
        ours = subprocesses.translate(error)
        if isinstance(ours, ResourceError):
            raise ours from error
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise ConversionError(f"torch can't express {spec.name} in ONNX: {first_line(cause)}") from error
    finally:
        logger.setLevel(level)
    assert program is not None
    return program.model


def _output(spec: ModelSpec) -> str:
    return spec.output or "logits"


def _dynamic_shapes(spec: ModelSpec, shape: tuple[int, ...]) -> tuple[dict[int, Any], ...]:
    import torch

    names = ("depth", "height", "width")[-(len(shape) - 2) :]
    spatial = {
        axis: step * torch.export.Dim(f"{name}_{step}", min=2)
        for axis, (name, step) in enumerate(zip(names, spec.divisors, strict=True), 2)
    }
    return ({0: torch.export.Dim("batch", min=1), **spatial},)
