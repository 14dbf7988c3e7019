"""How to export: the settings, and the checks of them that need no network."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from segonnx.core import hardware
from segonnx.core.subprocesses import Bounds
from segonnx.errors import InputError
from segonnx.exporters.naming import Labels
from segonnx.exporters.prepare import Weights
from segonnx.exporters.rounding import WeightsDtype
from segonnx.optimize import Optimize
from segonnx.sources.catalog import ModelSpec

OutputKind = Literal["logits", "probabilities", "labels"]
"""What ``segonnx export --output`` takes."""

InputKind = Literal["float", "uint8-nhwc", "uint8-nchw"]
"""What ``segonnx export --input`` takes."""
INPUTS: tuple[InputKind, ...] = get_args(InputKind)

Cpu = hardware.Blocks | Literal["native"]
"""What ``segonnx export --cpu`` takes."""
CPUS: tuple[Cpu, ...] = (*get_args(hardware.Blocks), "native")

TUNE_S = 600.0
"""Seconds that the search of ``--tune`` may take, where nothing else is said."""


@dataclass(frozen=True)
class Settings:
    """How to export.

    Attributes:
        out: the folder that artifacts are made in.
        checkpoints: files of weights, one for each part of the network that has its own. Without any, the weights are
            random.
        trust: run the code that a file of weights brings.
        pretrained: take the weights that the network's library publishes.
        seed: the seed of random weights.
        shape: spatial sizes of the input, where they aren't the spec's.
        batch: instances per pass.
        dynamic: leave batch and spatial sizes open.
        optimize: which rewrites to apply; ``none`` gives the graph as torch wrote it.
        cpu: the processors that are to run the graph; ``native`` is this one.
        tune: choose the rewrites by timing them on this machine.
        tune_time: seconds that the search may take.
        tuning: a manifest whose choices are taken, instead of the package's.
        opset: the version of the file's operators.
        ir_version: the version of the file's format; None takes the least that the opset has.
        max_weight_growth: how many times larger the rewrites of 3D convolutions may make their weights.
        output: what the artifact gives: ``labels`` ends the graph in an ArgMax over the classes, ``probabilities`` in
            a Softmax, or a Sigmoid for one class and for classes that overlap. None leaves what the network gives.
        input: what the artifact takes: ``float`` is what the network takes, the others are pictures of 8 bits,
            (N, H, W, C) or (N, C, H, W), which the graph scales and normalises first.
        overwrite: replace an artifact that was made with other arguments.
        threads: threads of PyTorch and ONNX Runtime.
        folder: the name of the artifact's folder in ``out``, where it isn't that of the spec.
        reading: what reading a checkpoint may take.
        mean: of each channel of pictures in 0..1, where the user says it.
        std: the standard deviation, alike.
        labels: the names of the classes by their values, where the user says them.
        weights_prefix: what the names of the network's tensors begin with in a checkpoint; None finds it.
        weights_dtype: the type that weights are stored in; arithmetic is float32 whatever it is.
        check_with: more runtimes that must compute what PyTorch does, names of ``file_runs``.
    """

    out: Path
    checkpoints: tuple[Path, ...] = ()
    trust: bool = False
    pretrained: bool = False
    seed: int = 0
    shape: tuple[int, ...] | None = None
    batch: int = 1
    dynamic: bool = False
    optimize: Optimize = "cpu"
    cpu: Cpu = "avx512"
    tune: bool = False
    tune_time: float = TUNE_S
    tuning: Path | None = None
    max_weight_growth: float | None = None
    opset: int = 20
    ir_version: int | None = None
    output: OutputKind | None = "logits"
    input: InputKind = "float"
    overwrite: bool = False
    threads: int = field(default_factory=hardware.usable_cores)
    folder: str | None = None
    reading: Bounds = field(default_factory=Bounds)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    labels: Labels | None = None
    weights_prefix: str | None = None
    weights_dtype: WeightsDtype = "float32"
    check_with: tuple[str, ...] = ()

    @property
    def blocks(self) -> hardware.Blocks:
        """The blocks of the processors that are to run the graph."""
        return hardware.blocks() if self.cpu == "native" else self.cpu

    @property
    def weights(self) -> Weights:
        """Where the weights come from."""
        return Weights(self.checkpoints, self.trust, self.pretrained, self.seed, self.reading, self.weights_prefix)


def require_tunable(settings: Settings) -> None:
    """Refuse settings of the rewrites that contradict each other.

    Raises:
        InputError: they do; the message names the options.
    """
    asked = settings.tune or settings.tuning is not None or settings.max_weight_growth is not None
    if settings.tune and settings.tuning is not None:
        raise InputError("--tune chooses the rewrites, --tuning FILE names those that were chosen: give one")
    if asked and settings.optimize == "none":
        raise InputError(
            "--optimize none leaves nothing to choose: --tune, --tuning and --max-weight-growth go without"
        )
    if settings.tune and settings.dynamic:
        raise InputError("--tune times one shape: give the shape that you'll run most with --shape, without --dynamic")


def folder_name(spec: ModelSpec) -> str:
    """The name of a spec's artifact folder."""
    return spec.name.replace(":", "-").replace("/", "-")


def input_shape(spec: ModelSpec, spatial: tuple[int, ...] | None, batch: int = 1) -> tuple[int, ...]:
    """The spec's input shape with another batch size and other spatial sizes.

    Args:
        spec: the network.
        spatial: sizes in voxels or pixels, (D, H, W) or (H, W); None keeps the spec's.
        batch: instances per pass.

    Returns:
        (N, C, spatial...).

    Raises:
        InputError: their number is wrong, or the network can't take them.
    """
    if spatial is None:
        return (batch, *spec.input_shape[1:])
    wanted = len(spec.input_shape) - 2
    axes = "D,H,W" if wanted == 3 else "H,W"
    if len(spatial) != wanted:
        raise InputError(f"{spec.name} takes {wanted} spatial sizes, {axes}; --shape gives {len(spatial)}")
    for size, step in zip(spatial, spec.divisors, strict=True):
        if size <= 0 or size % step:
            alike = len(set(spec.divisors)) == 1
            each = step if alike else f"{','.join(map(str, spec.divisors))} along the axes"
            raise InputError(
                f"{spec.name} takes spatial sizes that are positive multiples of {each}; --shape has {size}"
            )
    if (wanted == 3 or spec.family == "nnunet") and spatial == spec.divisors:
        raise InputError(f"{spec.name} needs more than one voxel at its deepest level: double a size of --shape")
    return (batch, spec.input_shape[1], *spatial)
