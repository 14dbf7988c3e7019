"""The reference systems, as plain data. Nothing here needs torch.

What a person decided (names, builders, published figures) stands in this file. What was counted from the built networks
(exact parameters, parameters per module, multiply-adds) stands in ``reference.json``, which ``make reference`` writes.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from segonnx.core import documents
from segonnx.core.decisions import Decision, Kind, decision
from segonnx.core.pixels import Pixels
from segonnx.errors import InputError

VOLUME = (1, 1, 64, 128, 128)
IMAGE = (1, 3, 512, 512)
FAMILIES = {
    "3d": "3D segmentation",
    "2d": "2D segmentation",
    "encoder": "encoders",
    "smp": "smp segmentation",
    "module": "modules",
    "nnunet": "nnU-Net",
}
"""Every family's key and its title in a table."""

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@dataclass(frozen=True)
class Figure:
    """A published figure, with the digits it was printed with.

    Attributes:
        text: the figure as printed, for example ``14.60M`` or ``31,288,169``.
        source: where it was printed.
        num_classes: the output channels it was counted with, where they aren't the spec's.
        size: the spatial input size in voxels it was counted at, where it isn't the spec's (multiply-adds).
    """

    text: str
    source: str
    num_classes: int | None = None
    size: tuple[int, ...] | None = None

    @property
    def value(self) -> int:
        """The figure as a number: 14.60M is 14,600,000."""
        number, unit = self._split()
        return int(number * unit)

    def matches(self, exact: int) -> bool:
        """Whether ``exact``, rounded to the printed digits, is this figure."""
        number, unit = self._split()
        return (Decimal(exact) / unit).quantize(number, ROUND_HALF_UP) == number

    def _split(self) -> tuple[Decimal, int]:
        text = self.text.replace(",", "")
        unit = text[-1] if text[-1] in _UNITS else ""
        return Decimal(text.removesuffix(unit)), _UNITS[unit]


@dataclass(frozen=True)
class PublishedTime:
    """One row of the source's tables, measured by others on another machine.

    Attributes:
        time_ms: milliseconds per pass, where the table has them.
        images_per_s: images (2D) or equivalent slices (3D) per second.
        efficiency: ``images_per_s`` per million parameters.
    """

    time_ms: float | None
    images_per_s: float
    efficiency: float


@dataclass(frozen=True)
class MoreInput:
    """An input of a network besides the image.

    Attributes:
        name: of the graph's input.
        shape: its sizes.
        dtype: NumPy's name of its type.
        argument: the keyword of the network's ``forward`` that takes it; None where it goes by its place.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    argument: str | None = None


@dataclass(frozen=True)
class ModelSpec:
    """One network: how it is built, what goes in, and what its counts must be.

    Attributes:
        name: what users type.
        family: a key of ``FAMILIES``.
        builder: a key of ``segonnx.models.BUILDERS``.
        options: the builder's keyword arguments, without ``num_classes``.
        input_shape: (N, C, spatial...), in voxels or pixels.
        num_classes: output channels.
        modality: ``CT``, ``RGB`` or ``other``: how inputs are normalised.
        source: the network's origin.
        published: published parameter counts.
        published_macs: published multiply-adds.
        published_time: the source's timing, for the bench's tables.
        dsc_percent: published Dice score in percent.
        divisors: what each spatial size must be a multiple of.
        licence: the licence of the weights in a checkpoint.
        input: the name of the graph's input.
        output: the name of its output, where that isn't what it holds: ``logits``, ``probabilities`` or ``labels``.
        gives: what its numbers are; None where that is to be found out.
        overlapping: whether a voxel may be of several classes; None where that is to be found out.
        argument: the keyword of the network's ``forward`` that takes the image; None where it goes by its place.
        more_inputs: what the network takes besides the image.
        more_outputs: the names of what it gives besides the segmentation.
        weights_source: where the weights come from, in words, where that is more than a file.
        parameters: about how many parameters it has, where there's no reference.
        described: keys of the manifest that say what inference with a checkpoint's weights needs.
        pixels: the pictures of 8 bits that the graph takes, and normalises itself; None where it takes what the network
            does.
    """

    name: str
    family: str
    builder: str
    options: Mapping[str, Any]
    input_shape: tuple[int, ...]
    num_classes: int
    modality: str
    source: str
    published: tuple[Figure, ...] = ()
    published_macs: tuple[Figure, ...] = ()
    published_time: PublishedTime | None = None
    dsc_percent: float | None = None
    reference: Reference | None = field(default=None, compare=False)
    divisors: tuple[int, ...] = ()
    licence: str = "unknown"
    input: str = "input"
    output: str | None = None
    gives: Kind | None = "logits"
    overlapping: bool | None = False
    argument: str | None = None
    more_inputs: tuple[MoreInput, ...] = ()
    more_outputs: tuple[str, ...] = ()
    weights_source: str = ""
    parameters: int = 10**8
    described: Mapping[str, Any] = field(default_factory=dict)
    pixels: Pixels | None = None

    def __post_init__(self) -> None:
        if not self.divisors:
            object.__setattr__(self, "divisors", (32,) * (len(self.input_shape) - 2))

    @property
    def rule(self) -> Decision:
        """How labels follow from the network's own numbers."""
        regions = bool(self.described.get("inference", {}).get("regions"))
        return decision(self.gives or "logits", self.num_classes, overlapping=regions or bool(self.overlapping))

    @property
    def published_parameters(self) -> int | None:
        """The most precise published count as a number, or None where nothing is published."""
        return self.published[0].value if self.published else None


@dataclass(frozen=True)
class Reference:
    """Counts of the built network.

    Attributes:
        parameters: the number of parameters of the inference form.
        training_parameters: the number of parameters of the training form (MobileOne has more branches there).
        modules: parameters per module, which add up to ``parameters``.
        macs: multiply-adds of convolutions, linear layers and attention at the spec's input, with every head that
            holds parameters, as the papers count them.
        inference_macs: the same without the heads that inference skips.
    """

    parameters: int
    training_parameters: int
    modules: Mapping[str, int]
    macs: int
    inference_macs: int


_BENCH = "reference benchmark"
_PAPER = "arXiv 2304.06716"
_STUNET = "github uni-medical/STU-Net"


def _stunet(
    size: str, depth: int, width: int, dsc: float, macs: str, *figures: Figure, time: PublishedTime | None = None
) -> ModelSpec:
    return ModelSpec(
        name=f"stunet-{size}",
        family="3d",
        builder="stunet",
        options={"depth": depth, "width": width},
        input_shape=VOLUME,
        num_classes=117,
        modality="CT",
        source=_STUNET,
        published=figures,
        published_macs=(Figure(macs, _PAPER, 105, (128, 128, 128)),),
        published_time=time,
        dsc_percent=dsc,
    )


def _unet(name: str, encoder: str, published: str, *time: float) -> ModelSpec:
    return ModelSpec(
        name=f"unet-{name}",
        family="2d",
        builder="timm_unet",
        options={"encoder": encoder},
        input_shape=IMAGE,
        num_classes=117,
        modality="RGB",
        source=f"timm {encoder}, U-Net decoder",
        published=(Figure(published, _BENCH),),
        published_time=PublishedTime(*time),
    )


def _encoder(name: str, encoder: str, published: str, images_per_s: float, efficiency: float) -> ModelSpec:
    return ModelSpec(
        name=f"encoder-{name}",
        family="encoder",
        builder="timm_encoder",
        options={"encoder": encoder},
        input_shape=IMAGE,
        num_classes=1000,
        modality="RGB",
        source=f"timm {encoder}",
        published=(Figure(published, _BENCH),),
        published_time=PublishedTime(None, images_per_s, efficiency),
    )


_SYSTEMS = (
    ModelSpec(
        name="totalsegmentator",
        family="3d",
        builder="plain_unet",
        options={"features": (32, 64, 128, 256, 320, 320)},
        input_shape=VOLUME,
        num_classes=117,
        modality="CT",
        source="nnU-Net PlainConvUNet of TotalSegmentator",
        published=(Figure("31,288,169", _BENCH),),
        published_macs=(Figure("242.47G", _BENCH),),
        published_time=PublishedTime(591, 6.8, 0.22),
        dsc_percent=86.76,
    ),
    _stunet("s", 1, 16, 83.74, "0.13T", Figure("14.60M", _BENCH), Figure("14.6M", _PAPER, 105),
            time=PublishedTime(311, 12.9, 0.88)),
    _stunet("b", 1, 32, 87.12, "0.51T", Figure("58.27M", _BENCH), Figure("58.26M", _PAPER, 105),
            time=PublishedTime(804, 5.0, 0.09)),
    _stunet("l", 2, 64, 88.71, "3.81T", Figure("440.30M", _PAPER, 105)),
    _stunet("h", 3, 96, 90.06, "12.60T", Figure("1457.33M", _PAPER, 105)),
    _unet("mobilenetv3-small", "mobilenetv3_small_100", "3.42M", 33, 30.2, 8.84),
    _unet("mobileone-s0", "mobileone_s0", "4.63M", 37, 27.2, 5.87),
    _unet("regnetx-002", "regnetx_002", "4.88M", 37, 27.3, 5.59),
    _unet("resnet18", "resnet18", "14.24M", 52, 19.3, 1.36),
    _encoder("mobileone-s0", "mobileone_s0", "2.1M", 241, 115.9),
    _encoder("regnetx-002", "regnetx_002", "2.7M", 215, 80.1),
    _encoder("lcnet-100", "lcnet_100", "3.0M", 202, 68.4),
    _encoder("mobilenetv4-conv-small", "mobilenetv4_conv_small", "3.8M", 236, 62.5),
    _encoder("mobilenetv3-small", "mobilenetv3_small_100", "2.5M", 168, 65.9),
)  # fmt: skip


@functools.cache
def systems() -> tuple[ModelSpec, ...]:
    """The reference systems, in the order of the source's tables, each with its counted reference."""
    counted = documents.packaged("segonnx.sources", "reference.json")
    return tuple(replace(s, reference=Reference(**counted[s.name])) for s in _SYSTEMS)


def names() -> list[str]:
    """The names of the reference systems."""
    return [spec.name for spec in _SYSTEMS]


def find(name: str) -> ModelSpec:
    """The spec called ``name``: of a reference system, or ``smp:ARCHITECTURE:ENCODER``.

    Raises:
        InputError: there is none; the message suggests the nearest name.
    """
    if name.startswith("smp:"):
        return _smp(name)
    for spec in systems():
        if spec.name == name:
            return spec
    near = difflib.get_close_matches(name, names(), n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise InputError(f"no system is called {name!r}{hint} (`segonnx list` shows all, smp:ARCH:ENCODER opens smp)")


def _smp(name: str) -> ModelSpec:
    parts = name.split(":")
    if len(parts) != 3 or not all(parts):
        raise InputError(f"{name!r} isn't smp:ARCHITECTURE:ENCODER, for example smp:unet:resnet34")
    _, architecture, encoder = parts
    return ModelSpec(
        name=name,
        family="smp",
        builder="smp",
        options={"architecture": architecture, "encoder": encoder},
        input_shape=IMAGE,
        num_classes=117,
        modality="RGB",
        source=f"segmentation-models-pytorch {architecture} on {encoder}",
        divisors=(1, 1) if architecture.lower() == "dpt" else (),  # its encoder says which
    )


def at_shape(spec: ModelSpec, shape: tuple[int, ...]) -> ModelSpec:
    """The spec for inputs of a shape, where it has no size of its own.

    The reference systems were counted at a size, and their random weights are those of that size. A network of smp may
    take one size alone, or none as small as another, so its random weights are scaled on inputs of the export's.
    """
    return replace(spec, input_shape=(1, *shape[1:])) if spec.family == "smp" else spec
