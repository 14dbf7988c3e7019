"""The network before conversion: built, given its weights, counted, and its answers on the test inputs written down."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from segonnx.core import synthetic_inputs
from segonnx.core.files import sha256
from segonnx.core.subprocesses import Progress
from segonnx.exporters.parity_inputs import ParityInput, halved
from segonnx.sources.catalog import ModelSpec

if TYPE_CHECKING:
    from segonnx.models.base import BuiltModel

STATE = "weights.safetensors"


@dataclass(frozen=True)
class Prepared:
    """What ``prepare`` found.

    Attributes:
        parameters: of the inference form.
        macs: multiply-adds of one pass at the export's input shape.
        weights_sha256: of the weights file that it wrote.
    """

    parameters: int
    macs: int
    weights_sha256: str


@dataclass(frozen=True)
class Weights:
    """Where a network's weights come from.

    Attributes:
        checkpoints: files, one for each part of the network that has its own.
        trust: run the code that they bring.
        pretrained: the weights that the network's library publishes.
        seed: of random weights, where there's neither.
    """

    checkpoints: tuple[Path, ...] = ()
    trust: bool = False
    pretrained: bool = False
    seed: int = 0

    @property
    def random(self) -> bool:
        """Whether they are random."""
        return not self.checkpoints and not self.pretrained


def adapt(spec: ModelSpec, weights: Weights, progress: Progress) -> ModelSpec:
    """The system as its weights need it: with their classes and input channels, and what is known of them.

    Raises:
        CheckpointError: the weights can't be read or had, or are of another system.
    """
    from segonnx import models
    from segonnx.models import checkpoints as files
    from segonnx.models import infer_sizes, smp

    if weights.pretrained:
        progress("looking up the published weights")
        return models.pretrained(spec)
    if len(weights.checkpoints) != 1 or spec.builder not in infer_sizes.BUILDERS:
        return spec
    path = weights.checkpoints[0]
    progress(f"reading {path.name}")
    if "arguments" in spec.options:  # of a folder of smp, which tells the sizes
        return smp.describe(spec, path)
    return infer_sizes.infer(spec, files.read(path, weights.trust), path)


def network_with_weights(spec: ModelSpec, weights: Weights, progress: Progress) -> BuiltModel:
    """The system's network in its inference form, with its weights.

    Raises:
        CheckpointError: they can't be used or had.
        ParityError: the built network isn't the published one.
    """
    import torch

    from segonnx import models
    from segonnx.exporters import parameters
    from segonnx.models import checkpoints as files
    from segonnx.models import counting, random_weights

    progress("building the network")
    if weights.pretrained:
        built = models.build(spec, pretrained=True)
    else:
        built = models.build_empty(spec) if weights.random else models.build(spec)
    training_parameters = counting.parameters(built.module)
    if weights.random:
        progress("setting random weights")
        random_weights.randomize(built.module, weights.seed)
        progress("calibrating the random weights")
        random_weights.initialise(built.module, torch.from_numpy(_calibration_inputs(spec)))
    if built.members:
        for part, path in zip(built.members, weights.checkpoints, strict=True):
            progress(f"loading {path.name}")
            files.load(replace(built, module=part), path, weights.trust)
    elif weights.checkpoints:
        (path,) = weights.checkpoints
        progress(f"loading {path.name}")
        built = files.load(built, path, weights.trust)
    built = built.finalized()
    progress("checking parameter parity")
    parameters.require(spec, counting.parameters_per_module(built.module), training_parameters)
    return built


def prepare(
    spec: ModelSpec,
    weights: Weights,
    shape: tuple[int, ...],
    probes: tuple[ParityInput, ...],
    folder: Path,
    threads: int,
    progress: Progress,
) -> Prepared:
    """Build the network, and write it down.

    Raises:
        CheckpointError: the checkpoint can't be used.
        ParityError: the built network isn't the published one.
    """
    import torch

    from segonnx import models
    from segonnx.models import counting

    torch.set_num_threads(threads)
    built = network_with_weights(spec, weights, progress)
    macs = counting.macs(models.build_meta(spec).finalized(), shape, all_heads=False)
    return write_down(built, spec.modality, macs, probes, folder, progress)


def prepare_network(
    built: BuiltModel,
    modality: str,
    shape: tuple[int, ...],
    probes: tuple[ParityInput, ...],
    folder: Path,
    progress: Progress,
) -> Prepared:
    """Write down a network that is in this process; see ``write_down``."""
    from segonnx.models import counting

    return write_down(built, modality, counting.macs(built, shape, all_heads=False), probes, folder, progress)


def write_down(
    built: BuiltModel, modality: str, macs: int, probes: tuple[ParityInput, ...], folder: Path, progress: Progress
) -> Prepared:
    """Write the network's weights to ``weights.safetensors`` and its logits on probe i to ``logits_i.npy``."""
    import torch

    from segonnx.models import checkpoints, counting

    progress("writing the weights")
    checkpoints.save(built.module, folder / STATE)
    for i, probe in enumerate(probes):
        progress(f"running PyTorch on {probe.name}")
        with torch.inference_mode():
            logits = built.module(torch.from_numpy(probe.make(modality)))
        np.save(folder / f"logits_{i}.npy", logits.numpy())
        del logits
    progress("hashing the weights")
    return Prepared(counting.parameters(built.module), macs, sha256(folder / STATE))


def write_weights(spec: ModelSpec, seed: int, path: Path, progress: Progress) -> str:
    """Write the random weights that an export with this seed has, and give their file's SHA-256.

    Raises:
        ParityError: the built network isn't the published one.
    """
    from segonnx.models import checkpoints

    built = network_with_weights(spec, Weights(seed=seed), progress)
    progress("writing the weights")
    checkpoints.save(built.module, path)
    return sha256(path)


def _calibration_inputs(spec: ModelSpec) -> synthetic_inputs.Array:
    """A batch to set the scale of random weights on.

    BatchNorm gets its statistics from all kinds of inputs at the system's own size. Networks in 3D normalise each
    instance by itself, so half the size and two kinds do, at a sixteenth of the cost.
    """
    if len(spec.input_shape) == 5:
        shape = halved(spec, spec.input_shape)
        probes = [ParityInput("noise", shape), ParityInput("phantom", shape)]
    else:
        shape = spec.input_shape
        probes = [
            ParityInput("noise", shape),
            ParityInput("noise", shape, seed=1),
            ParityInput("phantom", shape),
            ParityInput("constant", shape),
        ]
    return np.concatenate([probe.make(spec.modality) for probe in probes])
