"""The network before conversion: built, given its weights, counted, and its answers on the test inputs written down."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from segonnx import inputs
from segonnx.artifacts.verify import sha256
from segonnx.catalog import System
from segonnx.exporters.probes import Probe, halved
from segonnx.process import Progress

if TYPE_CHECKING:
    from segonnx.models.base import Network

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


def network_with_weights(system: System, checkpoints: tuple[Path, ...], seed: int, progress: Progress) -> Network:
    """The system's network in its inference form, with checkpoints' weights or seeded random ones.

    Raises:
        CheckpointError: the checkpoint can't be used.
        ParityError: the built network isn't the published one.
    """
    import torch

    from segonnx import models
    from segonnx.exporters import parameters
    from segonnx.models import counting, seeded, weights

    progress("building the network")
    network = models.build(system) if checkpoints else models.build_empty(system)
    training_parameters = counting.parameters(network.module)
    if not checkpoints:
        progress("setting random weights")
        seeded.randomize(network.module, seed)
        progress("calibrating the random weights")
        seeded.calibrate(network.module, torch.from_numpy(_calibration_inputs(system)))
    else:
        for part, path in zip(network.members or (network.module,), checkpoints, strict=True):
            progress(f"loading {path.name}")
            weights.load(replace(network, module=part), path)
    network = network.finalized()
    progress("checking parameter parity")
    parameters.require(system, counting.parameters_per_module(network.module), training_parameters)
    return network


def prepare(
    system: System,
    checkpoints: tuple[Path, ...],
    seed: int,
    shape: tuple[int, ...],
    probes: tuple[Probe, ...],
    folder: Path,
    threads: int,
    progress: Progress,
) -> Prepared:
    """Write the network's weights to ``weights.safetensors`` and its logits on probe i to ``logits_i.npy``.

    Raises:
        CheckpointError: the checkpoint can't be used.
        ParityError: the built network isn't the published one.
    """
    import torch

    from segonnx import models
    from segonnx.models import counting, weights

    torch.set_num_threads(threads)
    network = network_with_weights(system, checkpoints, seed, progress)
    progress("writing the weights")
    weights.save(network.module, folder / STATE)
    macs = counting.macs(models.build_meta(system).finalized(), shape, all_heads=False)
    for i, probe in enumerate(probes):
        progress(f"running PyTorch on {probe.name}")
        with torch.inference_mode():
            logits = network.module(torch.from_numpy(probe.make(system.modality)))
        np.save(folder / f"logits_{i}.npy", logits.numpy())
        del logits
    progress("hashing the weights")
    return Prepared(counting.parameters(network.module), macs, sha256(folder / STATE))


def write_weights(system: System, checkpoints: tuple[Path, ...], seed: int, path: Path, progress: Progress) -> str:
    """Write the weights that an export with these arguments has, and give their file's SHA-256.

    Raises:
        CheckpointError: the checkpoint can't be used.
        ParityError: the built network isn't the published one.
    """
    from segonnx.models import weights

    network = network_with_weights(system, checkpoints, seed, progress)
    progress("writing the weights")
    weights.save(network.module, path)
    return sha256(path)


def _calibration_inputs(system: System) -> inputs.Array:
    """A batch to set the scale of random weights on.

    BatchNorm gets its statistics from all kinds of inputs at the system's own size. Networks in 3D normalise each
    instance by itself, so half the size and two kinds do, at a sixteenth of the cost.
    """
    if len(system.input_shape) == 5:
        shape = halved(system, system.input_shape)
        probes = [Probe("noise", shape), Probe("phantom", shape)]
    else:
        shape = system.input_shape
        probes = [
            Probe("noise", shape),
            Probe("noise", shape, seed=1),
            Probe("phantom", shape),
            Probe("constant", shape),
        ]
    return np.concatenate([probe.make(system.modality) for probe in probes])
