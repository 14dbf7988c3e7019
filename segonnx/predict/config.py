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
PICTURE = "RGB to 0..1, then mean and standard deviation"
RESAMPLINGS = ("resample_data_or_seg_to_shape", "no_resampling_data_or_seg_to_shape")
READERS = ("SimpleITKIO", "NibabelIO", "NaturalImage2DIO")
REORIENTING = ("SimpleITKIOWithReorient", "NibabelIOWithReorient")


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
        previous: labels of a cascade's first stage, which follow the image's channels; empty where there is none.
        image: how the image is resampled.
        labels: how a first stage's label map is.
        logits: how the logits are.
        window: spatial sizes of the network's input.
        step: from window to window, in windows.
        sigma: of the weights' Gaussian, in windows.
        mirror_axes: spatial axes of the network that may be mirrored.
        regions: the outputs overlap.
        values: what each output writes into the label map.
        file_ending: of the images that it was trained on.
        natural: images are pictures without a spacing.
        reorients: the network sees images whose axes run to the right, to the front and up.
    """

    channels: tuple[Channel, ...]
    spacing: tuple[float, ...]
    forward: tuple[int, ...]
    backward: tuple[int, ...]
    crop: bool
    previous: tuple[int, ...]
    image: Resampling
    labels: Resampling
    logits: Resampling
    window: tuple[int, ...]
    step: float
    sigma: float
    mirror_axes: tuple[int, ...]
    regions: bool
    values: tuple[int, ...]
    file_ending: str
    natural: bool
    reorients: bool = False


def read(content: Manifest, folder: Path) -> Recipe:
    """The recipe in an artifact's manifest.

    Raises:
        InputError: it has none, or one that can't be followed; the message says why.
    """
    given, inference = content["preprocessing"], content.get("inference")
    shape, output = content["inputs"][0]["shape"], content["outputs"][0]
    if output.get("kind") == "labels":
        raise InputError(f"{folder} gives labels; windows are joined by logits: export it with --output logits")
    pairs = zip(shape[2:], output["shape"][2:], strict=False)
    if len(output["shape"]) != len(shape) or any(isinstance(b, int) and a != b for a, b in pairs):
        raise InputError(f"{folder} gives {output['shape']} of {shape}: no label for each place of its input")
    if output["dtype"] != "float32":
        raise InputError(f"{folder} gives {output['dtype']}; windows are joined by their float32 logits")
    if shape[0] != 1 and isinstance(shape[0], int):
        raise InputError(f"{folder} takes {shape[0]} windows at a time: export it with --batch 1")
    if inference is None and "mean" in given:
        return _of_pictures(content)
    if inference is None or "channels" not in given:
        raise InputError(
            f"{folder} holds a network alone: its manifest doesn't say how images are prepared "
            "(artifacts of nnU-Net's folders do: segonnx export --nnunet)"
        )
    _require(folder, "preprocessor", given["preprocessor"], ("DefaultPreprocessor",))
    _require(folder, "image_reader_writer", given["image_reader_writer"], READERS + REORIENTING)
    for channel in given["channels"]:
        _require(folder, "normalization", channel["normalization"], NORMALIZATIONS)
    sizes = zip(shape[2:], inference["patch_size"], strict=True)
    return Recipe(
        channels=tuple(Channel(c["normalization"], c["use_mask"], c["intensities"]) for c in given["channels"]),
        spacing=tuple(given["spacing"]),
        forward=tuple(given["transpose_forward"]),
        backward=tuple(given["transpose_backward"]),
        crop=given.get("crop") == "nonzero",
        previous=tuple((given.get("previous_stage") or {"labels": ()})["labels"]),
        image=_resampling(given["resampling"]["data"], folder),
        labels=_resampling(given["resampling"]["seg"], folder),
        logits=_resampling(given["resampling"]["probabilities"], folder),
        window=tuple(size if isinstance(size, int) else planned for size, planned in sizes),
        step=inference["tile_step_size"],
        sigma=inference["gaussian_sigma_scale"],
        mirror_axes=tuple(inference["mirror_axes"]),
        regions=inference["regions"],
        values=tuple(label["value"] for label in content["labels"]),
        file_ending=given["file_ending"],
        natural=given["image_reader_writer"] == "NaturalImage2DIO",
        reorients=given["image_reader_writer"] in REORIENTING,
    )


def _of_pictures(content: Manifest) -> Recipe:
    """The recipe of a network for pictures, which are scaled to 0..1 and normalised as its encoder was trained with."""
    given, kept = content["preprocessing"], Resampling(resamples=False, order=1, order_z=0, separate_z=False)
    classes = content["outputs"][0]["shape"][1]
    checked = content["parity"]["inputs"][0]["shape"]
    sizes = zip(content["inputs"][0]["shape"][2:], checked[2:], strict=True)
    return Recipe(
        channels=tuple(
            Channel(PICTURE, use_mask=False, intensities={"mean": mean, "std": std})
            for mean, std in zip(given["mean"], given["std"], strict=True)
        ),
        spacing=(1.0, 1.0),
        forward=(0, 1, 2),
        backward=(0, 1, 2),
        crop=False,
        previous=(),
        image=kept,
        labels=kept,
        logits=kept,
        window=tuple(size if isinstance(size, int) else tried for size, tried in sizes),
        step=0.5,
        sigma=0.125,
        mirror_axes=(),
        regions=classes == 1,  # which is there where its logit is above 0
        values=(1,) if classes == 1 else tuple(range(classes)),
        file_ending=".png",
        natural=True,
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
