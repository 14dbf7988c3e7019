"""The network before conversion: built, given its weights, counted, and its answers on the test inputs written down."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segonnx.core import subprocesses, synthetic_inputs
from segonnx.core.files import sha256
from segonnx.core.subprocesses import Bounds, Progress
from segonnx.core.synthetic_inputs import ParityInput
from segonnx.errors import ConversionError, InputError, ParityError, first_line
from segonnx.exporters.parity_inputs import RESAMPLED, Feeds, ModuleInput, feeds, halved, keep
from segonnx.sources.catalog import ModelSpec
from segonnx.sources.smp import TIMM

if TYPE_CHECKING:
    import torch
    from torch import nn

    from segonnx.models.base import BuiltModel

STATE = "weights.safetensors"
NEAR = 1e-5
"""How far probabilities in float32 may lie beyond 0 and 1, and the sum of each class's from 1."""


@dataclass(frozen=True)
class Values:
    """What a network's outputs are like, over several inputs.

    Attributes:
        low: the least value.
        high: the largest value.
        sum_to_one: whether the values of several classes add up to 1 everywhere.
    """

    low: float = math.inf
    high: float = -math.inf
    sum_to_one: bool = True

    @property
    def bounded(self) -> bool:
        """Whether all could be probabilities."""
        return self.low >= -NEAR and self.high <= 1 + NEAR

    def with_those_of(self, values: torch.Tensor) -> Values:
        """What these and the values (N, classes, spatial...) of one more input are like."""
        low, high = float(values.min()), float(values.max())
        adds_up = (
            self.sum_to_one
            and values.shape[1] > 1
            and low >= -NEAR
            and high <= 1 + NEAR
            and float((values.sum(dim=1) - 1).abs().max()) <= NEAR * values.shape[1]
        )
        return Values(min(self.low, low), max(self.high, high), adds_up)


@dataclass(frozen=True)
class Prepared:
    """What ``prepare`` found.

    Attributes:
        parameters: the number of parameters of the inference form.
        macs: multiply-adds of one pass at the export's input shape.
        weights_sha256: SHA-256 of the file of weights that it wrote.
        values: what its outputs on the test inputs are like.
        inputs: the test inputs that it ran on.
    """

    parameters: int
    macs: int
    weights_sha256: str
    values: Values
    inputs: tuple[ParityInput, ...]


@dataclass(frozen=True)
class Weights:
    """Where a network's weights come from.

    Attributes:
        checkpoints: files, one for each part of the network that has its own.
        trust: run the code that the checkpoints bring.
        pretrained: take the weights that the network's library publishes.
        seed: the seed of random weights, where there's neither.
        reading: what reading a checkpoint may take.
        prefix: what the names of the network's tensors begin with in a checkpoint; None finds it.
    """

    checkpoints: tuple[Path, ...] = ()
    trust: bool = False
    pretrained: bool = False
    seed: int = 0
    reading: Bounds = field(default_factory=Bounds)
    prefix: str | None = None

    @property
    def random(self) -> bool:
        """Whether they are random."""
        return not self.checkpoints and not self.pretrained


def adapt(spec: ModelSpec, weights: Weights, progress: Progress) -> ModelSpec:
    """The spec as its weights need it: with their classes and input channels, and what is known of them.

    Raises:
        CheckpointError: the weights can't be read or had, or are another network's.
    """
    from segonnx import models
    from segonnx.models import checkpoints as files
    from segonnx.models import infer_sizes, smp

    if weights.pretrained:
        progress("looking up the published weights")
        return models.pretrained(spec)
    if len(weights.checkpoints) == 1 and spec.builder in infer_sizes.BUILDERS:
        path = weights.checkpoints[0]
        progress(f"reading {path.name}")
        if "arguments" in spec.options:  # of a folder of smp, which tells the sizes
            spec = smp.describe(spec, smp.folder_weights(path))
        else:
            named = files.read(path, weights.trust, weights.reading, weights.prefix)
            spec = infer_sizes.infer(infer_sizes.noted(spec, named.note, path), named.values, path)
            spec = smp.describe(spec) if spec.builder == "smp" else spec
    return smp.sized(spec) if spec.builder == "smp" else spec


def needs_adapting(spec: ModelSpec, weights: Weights) -> bool:
    """Whether ``adapt`` may change the spec: otherwise nobody need import torch for it."""
    return not weights.random or (spec.builder == "smp" and spec.options["encoder"].startswith(TIMM))


def network_with_weights(spec: ModelSpec, weights: Weights, progress: Progress) -> BuiltModel:
    """The spec's network in its inference form, with its weights.

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
        progress("initialising the random weights")
        random_weights.initialise(built.module, torch.from_numpy(_initialisation_inputs(spec)))
    if built.members:
        for part, path in zip(built.members, weights.checkpoints, strict=True):
            progress(f"loading {path.name}")
            files.load(replace(built, module=part), path, weights.trust, weights.reading)
    elif weights.checkpoints:
        (path,) = weights.checkpoints
        progress(f"loading {path.name}")
        built = files.load(built, path, weights.trust, weights.reading, weights.prefix)
    built = built.finalized()
    progress("checking parameter parity")
    parameters.require(spec, counting.parameters_per_module(built.module), training_parameters)
    return built


@dataclass(frozen=True)
class Preparation:
    """What to prepare, and where.

    Attributes:
        spec: the network.
        shape: the export's input shape, (N, C, spatial...).
        inputs: the test inputs.
        folder: gets the weights as ``weights.safetensors``, the logits on test input i as ``logits_i.npy``, and its
            k-th other output as ``more_i_k.npy``.
    """

    spec: ModelSpec
    shape: tuple[int, ...]
    inputs: tuple[ParityInput, ...]
    folder: Path


def prepare(preparation: Preparation, weights: Weights, threads: int, progress: Progress) -> Prepared:
    """Build a spec's network, and write down its weights and its logits.

    Args:
        preparation: the network, and where the files go.
        weights: where its weights come from.
        threads: threads of PyTorch.
        progress: callback that gets the name of each step.

    Raises:
        CheckpointError: the checkpoint can't be used.
        InputError: the network can't take inputs of the shape.
        ParityError: the built network isn't the published one.
    """
    import torch

    torch.set_num_threads(threads)
    progress("counting the network")
    macs = _macs(preparation.spec, preparation.shape)
    built = network_with_weights(preparation.spec, weights, progress)
    subprocesses.keep_freed_memory()
    return _write_down(built, macs, preparation, progress)


def _macs(spec: ModelSpec, shape: tuple[int, ...]) -> int:
    """Multiply-adds of one pass at a shape.

    Raises:
        InputError: the network can't take it.
    """
    from segonnx import models
    from segonnx.models import counting

    try:
        return counting.macs(models.build_meta(spec).finalized(), shape, all_heads=False)
    except InputError:
        raise
    except Exception:  # noqa: BLE001 (the network can't take the shape, or computes with tensors of its own on the CPU)
        built = models.build(spec).finalized()
    try:
        return counting.macs(built, shape, all_heads=False)
    except Exception as error:
        if subprocesses.ran_out_of_memory(error):
            raise
        raise InputError(f"{spec.name} takes no input of {'x'.join(map(str, shape))}: {first_line(error)}") from error


def prepare_network(built: BuiltModel, preparation: Preparation, progress: Progress) -> Prepared:
    """Write down the weights and the logits of a network that is in this process."""
    from segonnx.models import counting

    spec, (first, *_) = preparation.spec, preparation.inputs
    example = next((one for one in preparation.inputs if one.kind == "example"), first)
    progress("counting multiply-adds")
    arrays = feeds(example, spec)
    macs = counting.macs(built, preparation.shape, all_heads=False, run=lambda: call(built.module, spec, arrays))
    return _write_down(built, macs, preparation, progress)


def call(module: nn.Module, spec: ModelSpec, arrays: Feeds) -> Any:
    """What a network gives for the arrays of a test input: a tensor, or a tuple that begins with the segmentation."""
    import torch

    image = torch.from_numpy(arrays[spec.input])
    places = [(spec.argument, image), *((one.argument, torch.from_numpy(arrays[one.name])) for one in spec.more_inputs)]
    by_place = [tensor for argument, tensor in places if argument is None]
    return module(*by_place, **{argument: tensor for argument, tensor in places if argument is not None})


def _write_down(built: BuiltModel, macs: int, preparation: Preparation, progress: Progress) -> Prepared:
    import torch

    from segonnx.models import checkpoints, counting

    state = preparation.folder / STATE
    progress("writing the weights")
    checkpoints.save(built.module, state)
    values = Values()
    inputs: list[ParityInput] = []
    waiting = [*preparation.inputs]
    while waiting:
        test_input = waiting.pop(0)
        progress(f"running PyTorch on {test_input.name}")
        arrays = feeds(test_input, preparation.spec)
        if preparation.spec.pixels is None:
            keep(preparation.folder, len(inputs), arrays, preparation.spec)
        answer = _answer(built.module, preparation, test_input, arrays)
        given = answer if isinstance(answer, tuple) else (answer,)
        if not all(bool(torch.isfinite(tensor).all()) for tensor in given):
            instead = _instead(test_input, preparation.spec)
            waiting[:0] = [one for one in instead if one not in (*inputs, *waiting)]
            continue
        values = values.with_those_of(given[0])
        for k, tensor in enumerate(given):
            name = f"more_{len(inputs)}_{k}.npy" if k else f"logits_{len(inputs)}.npy"
            np.save(preparation.folder / name, tensor.numpy())
        inputs.append(test_input)
        del answer, given, arrays
    if all(one.kind == "constant" for one in inputs):
        raise InputError(
            f"{preparation.spec.name} gives NaN or infinite values on noise, in PyTorch itself: its inputs have a "
            "domain; give values of it as the example input, or as test_inputs="
        )
    progress("hashing the weights")
    return Prepared(counting.parameters(built.module), macs, sha256(state), values, tuple(inputs))


def _answer(module: nn.Module, preparation: Preparation, test_input: ParityInput, arrays: Feeds) -> Any:
    """What the network gives for a test input.

    Raises:
        ConversionError: it fails, on a size that an export with open sizes must allow.
    """
    import torch

    spec = preparation.spec
    try:
        with torch.inference_mode():
            return call(module, spec, arrays)
    except RuntimeError as error:
        if test_input.shape == preparation.shape:
            raise
        raise ConversionError(
            f"{spec.name} can't be exported with open sizes: in PyTorch it fails on {test_input.name}: "
            f"{first_line(error)}"
        ) from error


def _instead(test_input: ParityInput, spec: ModelSpec) -> tuple[ParityInput, ...]:
    """What to run in place of an input on which the network gives NaN or infinite values.

    Raises:
        InputError: it is the caller's own.
        ParityError: the network is one whose input is known: noise is one that it must take.
    """
    if not isinstance(test_input, ModuleInput):
        raise ParityError(f"{spec.name} gives NaN or infinite values on {test_input.name}, in PyTorch itself")
    if test_input.kind == RESAMPLED:
        return ()
    if test_input.kind not in synthetic_inputs.NAMES:
        raise InputError(f"{spec.name} gives NaN or infinite values on its {test_input.kind} input, in PyTorch itself")
    return () if test_input.flat else (replace(test_input, kind=RESAMPLED),)


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


def _initialisation_inputs(spec: ModelSpec) -> synthetic_inputs.Array:
    """A batch to set the scale of random weights on.

    BatchNorm gets its statistics from all kinds of inputs at the spec's own size. Networks in 3D normalise each
    instance by itself, so half the size and two kinds do, at a sixteenth of the cost.
    """
    if len(spec.input_shape) == 5:
        shape = halved(spec, spec.input_shape)
        inputs = [ParityInput("noise", shape), ParityInput("phantom", shape)]
    else:
        shape = spec.input_shape
        inputs = [
            ParityInput("noise", shape),
            ParityInput("noise", shape, seed=1),
            ParityInput("phantom", shape),
            ParityInput("constant", shape),
        ]
    return np.concatenate([test_input.make(spec.modality) for test_input in inputs])
