"""What an artifact's manifest says of inference, checked: whatever isn't known here is refused before any work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segonnx.artifacts.manifest import Manifest
from segonnx.errors import InputError

NORMALIZATIONS = (
    "CTNormalization", "ZScoreNormalization", "NoNormalization", "RescaleTo01Normalization", "RGBTo01Normalization",
)  # fmt: skip
RESAMPLINGS = ("resample_data_or_seg_to_shape", "no_resampling_data_or_seg_to_shape")
READERS = ("SimpleITKIO", "NibabelIO", "NaturalImage2DIO")


@dataclass(frozen=True)
class Channel:
    """How one channel is normalised."""

    normalization: str
    use_mask: bool
    intensities: Mapping[str, float]


@dataclass(frozen=True)
class Resampling:
    """The orders of splines that an array is resampled with.

    Attributes:
        resamples: False keeps the grid as it is.
        order: along the axes of high resolution.
        order_z: along the one of low resolution, where it is treated apart.
        separate_z: whether it is; None where the spacings decide.
    """

    resamples: bool
    order: int
    order_z: int
    separate_z: bool | None


@dataclass(frozen=True)
class Recipe:
    """All that inference needs besides the network. Axes are the network's, z first.

    Attributes:
        channels: of the image.
        spacing: that the network sees, in mm; of a 2D network two numbers.
        forward: for each axis of the network, the axis of the image.
        backward: for each axis of the image, the axis of the network.
        crop: to what isn't 0.
        image: how the image is resampled.
        logits: how the logits are.
        window: spatial sizes of the network's input.
        step: from window to window, in windows.
        sigma: of the weights' Gaussian, in windows.
        mirror_axes: spatial axes of the network that may be mirrored.
        regions: the outputs overlap.
        values: what each output writes into the label map.
        file_ending: of the images that it was trained on.
        natural: images are pictures without a spacing.
    """

    channels: tuple[Channel, ...]
    spacing: tuple[float, ...]
    forward: tuple[int, ...]
    backward: tuple[int, ...]
    crop: bool
    image: Resampling
    logits: Resampling
    window: tuple[int, ...]
    step: float
    sigma: float
    mirror_axes: tuple[int, ...]
    regions: bool
    values: tuple[int, ...]
    file_ending: str
    natural: bool


def read(content: Manifest, folder: Path) -> Recipe:
    """The recipe in an artifact's manifest.

    Raises:
        InputError: it has none, or one that can't be followed; the message says why.
    """
    given, inference = content["preprocessing"], content.get("inference")
    if inference is None or "channels" not in given:
        raise InputError(
            f"{folder} holds a network alone: its manifest doesn't say how images are prepared "
            "(artifacts of nnU-Net's folders do: segonnx export --nnunet)"
        )
    if given.get("previous_stage") is not None:
        raise InputError(f"{folder} is the second stage of a cascade, which can't be predicted with yet")
    _require(folder, "preprocessor", given["preprocessor"], ("DefaultPreprocessor",))
    _require(folder, "image_reader_writer", given["image_reader_writer"], READERS)
    for channel in given["channels"]:
        _require(folder, "normalization", channel["normalization"], NORMALIZATIONS)
    shape = content["inputs"][0]["shape"]
    if shape[0] not in (1, "batch") and isinstance(shape[0], int):
        raise InputError(f"{folder} takes {shape[0]} windows at a time: export it with --batch 1")
    sizes = zip(shape[2:], inference["patch_size"], strict=True)
    return Recipe(
        channels=tuple(Channel(c["normalization"], c["use_mask"], c["intensities"]) for c in given["channels"]),
        spacing=tuple(given["spacing"]),
        forward=tuple(given["transpose_forward"]),
        backward=tuple(given["transpose_backward"]),
        crop=given.get("crop") == "nonzero",
        image=_resampling(given["resampling"]["data"], folder),
        logits=_resampling(given["resampling"]["probabilities"], folder),
        window=tuple(size if isinstance(size, int) else planned for size, planned in sizes),
        step=inference["tile_step_size"],
        sigma=inference["gaussian_sigma_scale"],
        mirror_axes=tuple(inference["mirror_axes"]),
        regions=inference["regions"],
        values=tuple(label["value"] for label in content["labels"]),
        file_ending=given["file_ending"],
        natural=given["image_reader_writer"] == "NaturalImage2DIO",
    )


def _resampling(given: Mapping[str, Any], folder: Path) -> Resampling:
    _require(folder, "resampling", given["function"], RESAMPLINGS)
    arguments = given["arguments"]
    return Resampling(
        resamples=given["function"] == RESAMPLINGS[0],
        order=int(arguments.get("order", 3)),
        order_z=int(arguments.get("order_z", 0)),
        separate_z=arguments.get("force_separate_z", False),
    )


def _require(folder: Path, what: str, found: str, known: tuple[str, ...]) -> None:
    if found not in known:
        raise InputError(f"{folder}: its manifest's {what} is {found!r}; segonnx predict knows {', '.join(known)}")
