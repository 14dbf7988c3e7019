"""segonnx: segmentation networks as verified ONNX artifacts, and honest timings of the runtimes that run them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from segonnx._version import __version__
from segonnx.errors import (
    CheckFailed,
    CheckpointError,
    ConversionError,
    InputError,
    ParityError,
    ResourceError,
    SegonnxError,
    StageError,
    VerifyError,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from typing import Any, Literal

    import torch
    from torch import nn

    from segonnx.artifacts.verify import Verified
    from segonnx.core.subprocesses import Progress
    from segonnx.exporters.module_outputs import OutputAxes
    from segonnx.exporters.pipeline import Exported
    from segonnx.predict.predictor import Artifact
    from segonnx.quantization.run import Quantized

__all__ = [
    "Artifact",
    "CheckFailed",
    "CheckpointError",
    "ConversionError",
    "InputError",
    "ParityError",
    "ResourceError",
    "SegonnxError",
    "StageError",
    "VerifyError",
    "__version__",
    "export",
    "quantize",
    "verify",
]

# Whoever wants to read what passes, stages and workers do sets up logging; nobody else hears of it.
logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    """``segonnx.Artifact``, imported once somebody asks for it."""
    if name != "Artifact":
        raise AttributeError(f"module 'segonnx' has no attribute {name!r}")
    from segonnx.predict.predictor import Artifact

    return Artifact


def export(  # noqa: PLR0913 (keyword-only arguments of the public face)
    module: nn.Module,
    example_input: torch.Tensor | Sequence[torch.Tensor] | Mapping[str, torch.Tensor],
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    labels: Sequence[str] | None = None,
    output: str | int | Sequence[str | int] | None = None,
    output_axes: OutputAxes | None = None,
    output_kind: Literal["logits", "probabilities"] | None = None,
    overlapping: bool | None = None,
    result: Literal["logits", "probabilities", "labels"] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_kind: Literal["float", "uint8-nhwc", "uint8-nchw"] = "float",
    weights_dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    test_inputs: Sequence[torch.Tensor | Sequence[torch.Tensor] | Mapping[str, torch.Tensor]] = (),
    unused: Mapping[str, str] | None = None,
    dynamic: bool = False,
    divisor: int = 32,
    optimize: Literal["cpu", "none"] = "cpu",
    cpu: Literal["avx512", "avx2", "native"] = "avx512",
    opset: int = 20,
    ir_version: int | None = None,
    overwrite: bool = False,
    licence: str = "unknown",
    check_with: str | Sequence[str] = (),
    input_name: str | None = None,
    output_name: str | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Export a module as a checked artifact, as ``segonnx export`` does for the reference systems.

    Args:
        module: any network on the CPU, in float32. It is exported as in ``eval()``, and left as it was.
        example_input: float32, (N, C, H, W) or (N, C, D, H, W); its shape is the artifact's. Of a module that takes
            several tensors, a tuple of them, or a dictionary by the names of its arguments; the image comes first. The
            file is checked on its values, too.
        path: the artifact's folder.
        name: of the network; the folder's, if None.
        labels: the names of the classes, in order; of one class its name alone.
        output: which one is the segmentation of a module that gives several: a key, a number from 0, or a tuple of them
            that leads into nested ones.
        output_axes: the order of its axes, where it isn't (N, classes, spatial...): ``NHWC``, ``NDHWC``, or ``NHW`` and
            ``NDHW`` for one class without an axis of its own.
        output_kind: what its numbers are, ``logits`` or ``probabilities``; found in the graph, if None.
        overlapping: whether a voxel may be of several classes. If None, the classes of logits and of a softmax don't
            overlap, those that have a sigmoid each do.
        result: what the artifact gives: what the module gives, if None. ``probabilities`` puts a softmax behind logits,
            a sigmoid for one class and for classes that overlap. ``labels`` gives (N, spatial...) of uint8, uint16 for
            more than 256 classes: the class with the largest number; of one class, 1 where its logit is above 0, or its
            probability above 0.5.
        mean: of pictures, by channel, once they are scaled to 0..1; with it ``segonnx predict`` takes pictures.
        std: the standard deviation that goes with ``mean``.
        input_kind: what the artifact takes as its image: ``float`` is what the module takes; ``uint8-nhwc`` and
            ``uint8-nchw`` are pictures of 8 bits, (N, H, W, C) and (N, C, H, W), which the graph scales to 0..1 and
            normalises with ``mean`` and ``std``. The example and ``test_inputs`` are what the module takes; the file is
            checked on the pictures that are nearest to them.
        weights_dtype: ``float16`` and ``bfloat16`` store the weights in 16 bits, which halves the file; a runtime
            widens them when it loads it, and computes in float32. The file is checked against the module with the same
            rounded weights, and the manifest says how far that is from the module's own.
        test_inputs: more inputs to check the file on, each like ``example_input``.
        unused: regular expressions of the names of parameters that inference doesn't use (heads for training), each
            with the reason. Parameters that aren't in the file without a reason are an error.
        dynamic: leave batch and spatial sizes open; the file is then checked at two sizes.
        divisor: what every spatial size must be a multiple of, where they are open.
        optimize: ``cpu`` rewrites the graph for CPUs in standard operators; ``none`` keeps it as PyTorch writes it.
        cpu: the processors that are to run it; ``native`` is this one. It matters to convolutions in groups of 8
            channels alone.
        opset: the version of ONNX's operators, from 17 to 23.
        ir_version: the version of ONNX's file format; the least that the opset has, if None.
        overwrite: replace what is there.
        licence: of the weights.
        check_with: more runtimes that must compute what the module does, such as ``("openvino",)``; ONNX Runtime
            always must. The manifest records how far each is from the module.
        input_name: of the graph's input; ``input``, if None.
        output_name: of its output; what it holds, if None.
        input_names: the same of a module that takes several tensors; their arguments' names, if None.
        output_names: a name for each output of the module, the segmentation's first, then the others in their order:
            the artifact then gives all of them, each checked. Without it, it gives the segmentation alone.
        threads: of ONNX Runtime in the checks; all cores, if None.
        progress: called with a few words whenever a step begins.

    Returns:
        The artifact's ``folder`` and ``manifest``, and what each step took.

    Raises:
        segonnx.errors.InputError: the module, the input or the folder can't be used.
        segonnx.errors.ConversionError: torch can't express the module in ONNX.
        segonnx.errors.ParityError: the ONNX file computes something else than the module. Nothing is written.
    """
    from pathlib import Path

    from segonnx.core import file_runs, hardware, subprocesses
    from segonnx.exporters import module as exporter
    from segonnx.exporters import module_inputs

    how = exporter.ModuleExport(
        name=name,
        labels=labels,
        output=output,
        output_axes=output_axes,
        output_kind=output_kind,
        overlapping=overlapping,
        result=result,
        mean=mean,
        std=std,
        input_kind=input_kind,
        weights_dtype=weights_dtype,
        test_inputs=test_inputs,
        unused=unused or {},
        dynamic=dynamic,
        divisor=divisor,
        optimize=optimize,
        cpu=cpu,
        opset=opset,
        ir_version=ir_version,
        overwrite=overwrite,
        licence=licence,
        check_with=file_runs.chosen(check_with, "check_with="),
        input_names=module_inputs.names("input", input_name, input_names),
        output_names=module_inputs.names("output", output_name, output_names),
        threads=threads or hardware.usable_cores(),
    )
    return exporter.export(module, example_input, Path(path), how, progress or subprocesses.silent)


def quantize(  # noqa: PLR0913 (keyword-only arguments of the public face)
    folder: str | os.PathLike[str],
    calibration: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    held_out: str | os.PathLike[str] | None = None,
    min_dice: float = 0.99,
    budget: int = 0,
    overwrite: bool = False,
    threads: int | None = None,
    timeout: float | None = None,
    max_memory: int | None = None,
    progress: Progress | None = None,
) -> Quantized:
    """Make an artifact whose convolutions compute in int8, as ``segonnx quantize`` does, if labels stay what they are.

    Args:
        folder: the artifact's folder. It isn't trusted.
        calibration: images as ``segonnx predict`` takes them, a file or a folder; or ``.npy`` files of the network's
            own input.
        out: the folder that the new artifact is made in, under the network's name.
        held_out: images of the verdict; one in four of ``calibration``, if None.
        min_dice: the least Dice against float32 that each label must keep, as a mean over images.
        budget: how many layers may go back to float32 where it isn't kept, those that hurt most first.
        overwrite: replace what is there.
        threads: of ONNX Runtime; all cores, if None.
        timeout: the most seconds that one step may take.
        max_memory: the most bytes that a process may take which runs the graph.
        progress: called with a few words whenever a step begins.

    Returns:
        The new artifact's ``folder`` and ``manifest``, the ``verdict``, what was ``timed``, and ``warnings``.

    Raises:
        segonnx.InputError: the artifact or the images can't be used for that.
        segonnx.CheckFailed: a label doesn't keep the Dice that it must. Nothing is written.
    """
    from pathlib import Path

    from segonnx.core import hardware, subprocesses
    from segonnx.core.subprocesses import Bounds
    from segonnx.quantization import run

    request = run.Request(
        Path(folder),
        Path(calibration),
        Path(out),
        held_out=None if held_out is None else Path(held_out),
        min_dice=min_dice,
        budget=budget,
        threads=threads or hardware.usable_cores(),
        overwrite=overwrite,
        bounds=Bounds(timeout, max_memory),
    )
    return run.quantize(request, progress or subprocesses.silent)


def verify(
    folder: str | os.PathLike[str],
    *,
    replay: bool = True,
    backend: str | Sequence[str] | None = None,
    threads: int | None = None,
    timeout: float | None = None,
    max_memory: int | None = None,
    key: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Verified:
    """Check an artifact, as ``segonnx verify`` does: schema, every byte, the graph, and a replay of its test data.

    Args:
        folder: the artifact's folder. It isn't trusted.
        replay: run the model in ONNX Runtime, and compare its output with the recorded one.
        backend: replay in this runtime, too, or in several: ``openvino``.
        threads: of the replay; the runtime's choice, if None.
        timeout: the most seconds that one step may take; its size decides, if None, up to 1800.
        max_memory: the most bytes that a process may take which runs the graph; what is free, if None.
        key: the public key of who must have signed the artifact, a PEM file; a signature isn't looked for, if None.
        progress: called with a few words whenever a step begins.

    Returns:
        The artifact's ``manifest``, how many ``files`` and ``bytes`` were hashed, the ``difference`` of the replay, and
        those of other runtimes in ``also``.

    Raises:
        segonnx.VerifyError: the artifact isn't what was exported, or a runtime computes something else; the message
            says what is wrong.
        segonnx.InputError: the key can't be used, or a runtime isn't installed.
    """
    from pathlib import Path

    from segonnx.artifacts import verify as verifier
    from segonnx.core import file_runs, subprocesses
    from segonnx.core.subprocesses import Bounds

    also = file_runs.chosen(backend, "backend=")
    if also and not replay:
        raise InputError("backend= says where the test data is replayed: leave replay=False out")

    return verifier.verify(
        Path(folder),
        replay=replay,
        also=tuple(name for name in also if name != "ort"),
        threads=threads or 0,
        bounds=Bounds(timeout, max_memory),
        key=None if key is None else Path(key),
        progress=progress or subprocesses.silent,
    )
