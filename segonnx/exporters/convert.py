"""From a PyTorch module to an ONNX file: one path for 2D and 3D.

``convert`` runs in a process of its own; torch is imported there, and not by the caller that imports this module.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segonnx.catalog import System
from segonnx.exporters.assemble import INPUT, OUTPUT, Converted
from segonnx.exporters.prepare import STATE
from segonnx.process import Progress

if TYPE_CHECKING:
    from segonnx.exporters.rewrites import Optimize

OPSET = 20


def convert(
    system: System,
    shape: tuple[int, ...],
    dynamic: bool,
    optimize: Optimize,
    folder: Path,
    path: Path,
    progress: Progress,
) -> Converted:
    """Convert the network that ``prepare`` left in ``folder``, and write it to ``path``.

    The weights go to one external file, whatever their size: that takes no second copy of them in memory.

    Args:
        system: what it is.
        shape: of the example input, (N, C, spatial...); it is the input's shape in the file unless ``dynamic``.
        dynamic: leave batch and spatial sizes open.
        optimize: which rewrites to apply.
        folder: holds the weights.
        path: of the ONNX file; the weights go beside it, with ``.data`` appended to its name.
        progress: told of each step.
    """
    import onnx_ir as ir
    import onnxscript.optimizer
    import torch
    from onnx_ir.passes import common

    from segonnx.exporters import provenance, rewrites
    from segonnx.models import weights

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    progress("loading the network")
    network = weights.restore(system, folder / STATE)
    progress("converting to ONNX")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network.module,
            (torch.zeros(shape),),
            dynamo=True,
            optimize=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=_dynamic_shapes(system, shape) if dynamic else None,
            verbose=False,
        )
    assert program is not None
    model = program.model
    progress("optimising the graph")
    tensors = weights.names(network.module)
    traced = provenance.trace(model, tensors)
    onnxscript.optimizer.optimize(model)
    changed = rewrites.apply(model, optimize)
    common.ShapeInferencePass()(model)
    common.RemoveUnusedNodesPass()(model)
    # Metadata of the exporter tells paths and source lines of this machine.
    common.ClearMetadataAndDocStringPass()(model)
    for value in model.graph.initializers.values():
        value.metadata_props.clear()
    model.graph.name = system.name
    progress("writing the ONNX file")
    ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=1024)
    return Converted(
        opset=model.graph.opset_imports[""],
        ir_version=model.ir_version,
        operators=dict(sorted(Counter(node.op_type for node in model.graph).items())),
        origins=provenance.explain(model, traced, tensors),
        rewrites=changed,
        parameters=tuple(name for name, _ in network.module.named_parameters()),
        unused=dict(network.unused),
    )


def _dynamic_shapes(system: System, shape: tuple[int, ...]) -> tuple[dict[int, Any], ...]:
    import torch

    names = ("depth", "height", "width")[-(len(shape) - 2) :]
    spatial = {
        axis: step * torch.export.Dim(f"{name}_{step}", min=2)
        for axis, (name, step) in enumerate(zip(names, system.divisors, strict=True), 2)
    }
    return ({0: torch.export.Dim("batch", min=1), **spatial},)
