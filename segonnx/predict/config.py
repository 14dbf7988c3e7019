"""The inference config: what an artifact's manifest says of inference, checked before any work.

A normalization, resampling or reader that segonnx doesn't know is refused here.
"""

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
class ChannelNormalization:
    """How one input channel is normalised.

    Attributes:
        scheme: A member of ``NORMALIZATIONS``, or ``PICTURE``.
        use_mask: Compute the statistics over the nonzero voxels only.
        statistics: The numbers that the scheme needs, such as ``mean``, ``std`` and ``percentile_99_5``.
    """

    scheme: str
    use_mask: bool
    statistics: Mapping[str, float]


@dataclass(frozen=True)
class SplineOrders:
    """The orders of the splines that resample an array.

    Attributes:
        resamples: False leaves the array on the grid that it has.
        order: The order along the axes of high resolution.
        order_z: The order along the axis of low resolution, if that axis is resampled apart.
        separate_z: Whether that axis is resampled apart. None lets the spacings decide.
    """

    resamples: bool
    order: int
    order_z: int
    separate_z: bool | None


@dataclass(frozen=True)
class InferenceConfig:
    """All that inference needs besides the network. Axes are the network's, z first.

    Attributes:
        channels: The normalization of each channel of the image.
        spacing: The spacing that the network was trained on, in mm. A 2D network has two numbers, a 3D network three.
        transpose_forward: For each axis of the network, the axis of the image.
        transpose_backward: For each axis of the image, the axis of the network.
        crop: Crop the image to the box of its nonzero voxels.
        previous_labels: The labels of a cascade's first stage. Each becomes an input channel behind those of the
            image. Empty if the network is no second stage.
        image_resampling: How the image is resampled to the network's spacing.
        label_resampling: How a first stage's label map is resampled to the network's spacing.
        logit_resampling: How the logits are resampled back to the image's spacing.
        window: The spatial sizes of the network's input, in voxels.
        step: The step from window to window, as a fraction of a window.
        sigma: The standard deviation of the Gaussian that weights a window, as a fraction of the window.
        mirror_axes: The spatial axes of the network that may be mirrored.
        regions: The outputs are regions that may overlap, not classes of which one wins.
        label_values: The value that each output writes into the label map.
        file_ending: The file ending of the images that the network was trained on.
        natural: Images are pictures without a spacing.
        reorients: The network sees images whose axes run to the right, to the front and up.
    """

    channels: tuple[ChannelNormalization, ...]
    spacing: tuple[float, ...]
    transpose_forward: tuple[int, ...]
    transpose_backward: tuple[int, ...]
    crop: bool
    previous_labels: tuple[int, ...]
    image_resampling: SplineOrders
    label_resampling: SplineOrders
    logit_resampling: SplineOrders
    window: tuple[int, ...]
    step: float
    sigma: float
    mirror_axes: tuple[int, ...]
    regions: bool
    label_values: tuple[int, ...]
    file_ending: str
    natural: bool
    reorients: bool = False


def read(content: Manifest, folder: Path) -> InferenceConfig:
    """Read the inference config from an artifact's manifest.

    Args:
        content: The manifest.
        folder: The artifact's folder, which messages name.

    Raises:
        InputError: The manifest has no inference config, or one that segonnx can't follow. The message says why.
    """
    given, inference = content["preprocessing"], content.get("inference")
    shape, output = content["inputs"][0]["shape"], content["outputs"][0]
    if output.get("kind") == "labels":
        raise InputError(f"{folder} gives labels; windows are averaged by their logits: export it with --output logits")
    pairs = zip(shape[2:], output["shape"][2:], strict=False)
    if len(output["shape"]) != len(shape) or any(isinstance(after, int) and before != after for before, after in pairs):
        raise InputError(f"{folder} gives {output['shape']} of {shape}: no label for each place of its input")
    if output["dtype"] != "float32":
        raise InputError(f"{folder} gives {output['dtype']}; windows are averaged by their float32 logits")
    if shape[0] != 1 and isinstance(shape[0], int):
        raise InputError(f"{folder} takes {shape[0]} windows at a time: export it with --batch 1")
    if inference is None and "mean" in given:
        if len(shape) != 4:
            raise InputError(f"{folder} takes {shape}, which are no pictures (N, C, y, x)")
        if not len(given["mean"]) == len(given["std"]) == shape[1]:
            raise InputError(
                f"{folder}: its manifest normalises {len(given['mean'])} channels, and it takes {shape[1]}"
            )
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
    return InferenceConfig(
        channels=tuple(
            ChannelNormalization(channel["normalization"], channel["use_mask"], channel["intensities"])
            for channel in given["channels"]
        ),
        spacing=tuple(given["spacing"]),
        transpose_forward=tuple(given["transpose_forward"]),
        transpose_backward=tuple(given["transpose_backward"]),
        crop=given.get("crop") == "nonzero",
        previous_labels=tuple((given.get("previous_stage") or {"labels": ()})["labels"]),
        image_resampling=_spline_orders(given["resampling"]["data"], folder),
        label_resampling=_spline_orders(given["resampling"]["seg"], folder),
        logit_resampling=_spline_orders(given["resampling"]["probabilities"], folder),
        window=tuple(size if isinstance(size, int) else planned for size, planned in sizes),
        step=inference["tile_step_size"],
        sigma=inference["gaussian_sigma_scale"],
        mirror_axes=tuple(inference["mirror_axes"]),
        regions=inference["regions"],
        label_values=tuple(label["value"] for label in content["labels"]),
        file_ending=given["file_ending"],
        natural=given["image_reader_writer"] == "NaturalImage2DIO",
        reorients=given["image_reader_writer"] in REORIENTING,
    )


def _of_pictures(content: Manifest) -> InferenceConfig:
    """The config of a network for pictures: they are scaled to 0..1 and normalised as its encoder was trained."""
    given, kept = content["preprocessing"], SplineOrders(resamples=False, order=1, order_z=0, separate_z=False)
    classes = content["outputs"][0]["shape"][1]
    checked = content["parity"]["inputs"][0]["shape"]
    sizes = zip(content["inputs"][0]["shape"][2:], checked[2:], strict=True)
    return InferenceConfig(
        channels=tuple(
            ChannelNormalization(PICTURE, use_mask=False, statistics={"mean": mean, "std": std})
            for mean, std in zip(given["mean"], given["std"], strict=True)
        ),
        spacing=(1.0, 1.0),
        transpose_forward=(0, 1, 2),
        transpose_backward=(0, 1, 2),
        crop=False,
        previous_labels=(),
        image_resampling=kept,
        label_resampling=kept,
        logit_resampling=kept,
        window=tuple(size if isinstance(size, int) else tried for size, tried in sizes),
        step=0.5,
        sigma=0.125,
        mirror_axes=(),
        regions=classes == 1,  # which is there where its logit is above 0
        label_values=(1,) if classes == 1 else tuple(range(classes)),
        file_ending=".png",
        natural=True,
    )


def _spline_orders(given: Mapping[str, Any], folder: Path) -> SplineOrders:
    _require(folder, "resampling", given["function"], RESAMPLINGS)
    arguments = given["arguments"]
    return SplineOrders(
        resamples=given["function"] == RESAMPLINGS[0],
        order=int(arguments.get("order", 3)),
        order_z=int(arguments.get("order_z", 0)),
        separate_z=arguments.get("force_separate_z", False),
    )


def _require(folder: Path, what: str, found: str, known: tuple[str, ...]) -> None:
    if found not in known:
        raise InputError(f"{folder}: its manifest's {what} is {found!r}; segonnx predict knows {', '.join(known)}")
