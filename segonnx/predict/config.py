"""The inference config: what an artifact's manifest says of inference, checked before any work.

A normalization, resampling or reader that segonnx doesn't know is refused here: when an artifact is predicted with, and
when it is exported (``of_network``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segonnx.artifacts.manifest import Manifest, checked_shape, given_rule, image_shape
from segonnx.core.decisions import LEVELS
from segonnx.errors import InputError

NORMALIZATIONS = (
    "CTNormalization", "ZScoreNormalization", "NoNormalization", "RescaleTo01Normalization", "RGBTo01Normalization",
)  # fmt: skip
PICTURE = "RGB to 0..1, then mean and standard deviation"
PIXELS = "RGB as it is, in 8 bits; the network's graph does the rest"
SPLINES, INTERPOLATION = "resample_data_or_seg_to_shape", "resample_torch_fornnunet"
TOGETHER = "resample_torch_simple"
"""nnU-Net's function that interpolates along all axes alike; its own inference can't call it from a plan."""
KEEPING = ("no_resampling_hack", "no_resampling_data_or_seg_to_shape")
"""nnU-Net's functions that leave an array on its grid; the second is what its older versions call it."""
RESAMPLINGS = (SPLINES, INTERPOLATION, TOGETHER, *KEEPING)
"""nnU-Net's functions that resample an image, a label map or logits."""
PLANE_MODES = ("linear", "bilinear", "bicubic", "nearest", "nearest-exact", "area")
AXIS_MODES = ("linear", "trilinear", "nearest", "nearest-exact", "area")
"""PyTorch's modes of interpolation within a plane, and along the axis of low resolution."""
ANISOTROPY = 3.0
"""Above this ratio of the largest to the smallest spacing, the axis of low resolution is resampled apart."""
CT_STATISTICS = ("mean", "std", "percentile_00_5", "percentile_99_5")
"""What a CT's normalization takes from the intensities of the training set."""
REORIENTING = ("SimpleITKIOWithReorient", "NibabelIOWithReorient")
READERS = ("SimpleITKIO", "NibabelIO", "NaturalImage2DIO", "Tiff3DIO", *REORIENTING)


@dataclass(frozen=True)
class ChannelNormalization:
    """How one input channel is normalised.

    Attributes:
        scheme: A member of ``NORMALIZATIONS``, ``PICTURE`` or ``PIXELS``.
        use_mask: Compute the statistics over the nonzero voxels only.
        statistics: The numbers that the scheme needs, such as ``mean``, ``std`` and ``percentile_99_5``.
    """

    scheme: str
    use_mask: bool
    statistics: Mapping[str, float]


@dataclass(frozen=True)
class SplineOrders:
    """The orders of the splines that resample an array (nnU-Net's ``resample_data_or_seg_to_shape``).

    Attributes:
        resamples: False leaves the array on the grid that it has.
        order: The order along the axes of high resolution.
        order_z: The order along the axis of low resolution, if that axis is resampled apart.
        separate_z: Whether that axis is resampled apart. None lets the spacings decide.
        threshold: The ratio of the largest to the smallest spacing above which it is, if the spacings decide.
        as_labels: Whether label maps are resampled label by label, and not as numbers.
    """

    resamples: bool
    order: int
    order_z: int
    separate_z: bool | None
    threshold: float = ANISOTROPY
    as_labels: bool = True


@dataclass(frozen=True)
class InterpolationModes:
    """The modes of PyTorch's ``interpolate`` that resample an array (nnU-Net's ``resample_torch_...``).

    Attributes:
        mode: The mode within the planes, if an axis is resampled apart.
        mode_z: The mode along the axis that is resampled apart.
        separate_z: Whether the axis of low resolution is resampled apart. None lets the spacings decide.
        threshold: The ratio of the largest to the smallest spacing above which it is, if the spacings decide.
        as_labels: Whether label maps are resampled label by label, and not as numbers.
        by_majority: A voxel takes the label that has more than half of it, or 0; otherwise the label that has most.
        mode_together: The mode along all axes, if none is resampled apart.
    """

    mode: str
    mode_z: str
    separate_z: bool | None
    threshold: float = ANISOTROPY
    as_labels: bool = True
    by_majority: bool = False
    mode_together: str = "linear"

    @property
    def resamples(self) -> bool:
        """Whether the array gets another grid: always."""
        return True


Resampling = SplineOrders | InterpolationModes


@dataclass(frozen=True)
class InferenceConfig:
    """All that inference needs besides the network. Axes are the network's, z first.

    Attributes:
        channels: The normalization of each channel of the image.
        spacing: The spacing that the network was trained on, in mm: three numbers, or the last two axes'. Most 2D
            networks have two numbers, and leave the slices where they are.
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
        regions: The outputs are regions that may overlap, or one class, not classes of which one wins.
        probable: The network gives probabilities, not logits.
        pixel_layout: The order of the axes of the pictures of 8 bits that the network's graph takes. None if it takes
            float32 (N, C, spatial...).
        label_values: The value that each output writes into the label map.
        file_ending: The file ending of the images that the network was trained on.
        reader: nnU-Net's class that reads images and writes label maps, a member of ``READERS``.
        postprocessing: For each step of the postprocessing, the labels whose largest component is kept.
    """

    channels: tuple[ChannelNormalization, ...]
    spacing: tuple[float, ...]
    transpose_forward: tuple[int, ...]
    transpose_backward: tuple[int, ...]
    crop: bool
    previous_labels: tuple[int, ...]
    image_resampling: Resampling
    label_resampling: Resampling
    logit_resampling: Resampling
    window: tuple[int, ...]
    step: float
    sigma: float
    mirror_axes: tuple[int, ...]
    regions: bool
    label_values: tuple[int, ...]
    file_ending: str
    reader: str
    postprocessing: tuple[tuple[int, ...], ...] = ()
    probable: bool = False
    pixel_layout: str | None = None

    @property
    def level(self) -> float:
        """What an output must be above for its region to be there."""
        return LEVELS["probabilities" if self.probable else "logits"]

    @property
    def natural(self) -> bool:
        """Images are pictures without a spacing."""
        return self.reader == "NaturalImage2DIO"

    @property
    def reorients(self) -> bool:
        """The network sees images whose axes run to the right, to the front and up."""
        return self.reader in REORIENTING


def read(content: Manifest, folder: Path) -> InferenceConfig:
    """Read the inference config from an artifact's manifest.

    Args:
        content: The manifest.
        folder: The artifact's folder, which messages name.

    Raises:
        InputError: The manifest has no inference config, or one that segonnx can't follow. The message says why.
    """
    given, inference = content["preprocessing"], content.get("inference")
    shape, output = image_shape(content), content["outputs"][0]
    if len(content["inputs"]) > 1:
        raise InputError(f"{folder} takes {len(content['inputs'])} inputs; segonnx predict has images alone to give")
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
    if output.get("kind") == "probabilities":
        raise InputError(
            f"{folder} gives probabilities; windows are averaged by their logits: export it with --output logits"
        )
    if inference is None or "channels" not in given:
        raise InputError(
            f"{folder} holds a network alone: its manifest doesn't say how images are prepared "
            "(artifacts of nnU-Net's folders do: segonnx export --nnunet)"
        )
    sizes = zip(shape[2:], inference["patch_size"], strict=True)
    window = tuple(size if isinstance(size, int) else planned for size, planned in sizes)
    return _of_nnunet(content, window, folder)


def of_network(described: Mapping[str, Any], where: str) -> InferenceConfig:
    """Read the inference config of a network of nnU-Net's before it is exported.

    Args:
        described: What its manifest will say of inference: the keys ``preprocessing``, ``labels`` and ``inference``.
        where: The network's name, for messages.

    Raises:
        InputError: ``read`` would refuse it. The message says why.
    """
    return _of_nnunet(described, tuple(described["inference"]["patch_size"]), where)


def _of_nnunet(content: Mapping[str, Any], window: tuple[int, ...], where: Path | str) -> InferenceConfig:
    """The config of a network of nnU-Net's."""
    given, inference = content["preprocessing"], content["inference"]
    _require(where, "preprocessor", given["preprocessor"], ("DefaultPreprocessor",))
    _require(where, "image_reader_writer", given["image_reader_writer"], READERS)
    previous = tuple((given.get("previous_stage") or {"labels": ()})["labels"])
    image, label, logit = (_resampling(given["resampling"], what, where) for what in ("data", "seg", "probabilities"))
    _require_grids(where, image, label if previous else None, logit)
    return InferenceConfig(
        channels=tuple(_channel(channel, where) for channel in given["channels"]),
        spacing=tuple(given["spacing"]),
        transpose_forward=tuple(given["transpose_forward"]),
        transpose_backward=tuple(given["transpose_backward"]),
        crop=given.get("crop") == "nonzero",
        previous_labels=previous,
        image_resampling=image,
        label_resampling=label,
        logit_resampling=logit,
        window=window,
        step=inference["tile_step_size"],
        sigma=inference["gaussian_sigma_scale"],
        mirror_axes=tuple(inference["mirror_axes"]),
        regions=inference["regions"],
        label_values=tuple(label["value"] for label in content["labels"]),
        file_ending=given["file_ending"],
        reader=given["image_reader_writer"],
        postprocessing=postprocessing(inference),
    )


def postprocessing(inference: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
    """The steps of the postprocessing that a manifest's entry ``inference`` holds; see ``InferenceConfig``."""
    return tuple(tuple(step["keep_largest_component"]) for step in inference.get("postprocessing", ()))


def _of_pictures(content: Manifest) -> InferenceConfig:
    """The config of a network for pictures: they are scaled to 0..1 and normalised as its encoder was trained."""
    given, kept = content["preprocessing"], SplineOrders(resamples=False, order=1, order_z=0, separate_z=False)
    classes, rule = content["outputs"][0]["shape"][1], given_rule(content)
    sizes = zip(image_shape(content)[2:], checked_shape(content)[2:], strict=True)
    scheme = PIXELS if given.get("in_graph") else PICTURE
    return InferenceConfig(
        channels=tuple(
            ChannelNormalization(scheme, use_mask=False, statistics={"mean": mean, "std": std})
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
        regions=rule.above is not None,
        label_values=tuple(range(classes)) if rule.above is None else tuple(range(1, classes + 1)),
        file_ending=".png",
        reader="NaturalImage2DIO",
        probable=content["outputs"][0].get("kind") == "probabilities",
        pixel_layout=content["inputs"][0].get("layout"),
    )


def _channel(given: Mapping[str, Any], where: Path | str) -> ChannelNormalization:
    """How a channel is normalised.

    Raises:
        InputError: segonnx doesn't know how, or a number is missing that it takes.
    """
    scheme, statistics = given["normalization"], given["intensities"]
    _require(where, "normalization", scheme, NORMALIZATIONS)
    missing = [key for key in CT_STATISTICS if not _is_number(statistics.get(key))]
    if scheme == "CTNormalization" and missing:
        raise InputError(
            f"{where}: the channel {given['name']!r} is normalised as a CT, by intensities of the training set; "
            f"missing or no numbers are {', '.join(missing)}"
        )
    if scheme == "CTNormalization" and (
        statistics["std"] < 0 or statistics["percentile_00_5"] > statistics["percentile_99_5"]
    ):
        raise InputError(
            f"{where}: the channel {given['name']!r} is normalised as a CT by std {statistics['std']:g}, from "
            f"{statistics['percentile_00_5']:g} to {statistics['percentile_99_5']:g}: no such intensities can be"
        )
    return ChannelNormalization(scheme, given["use_mask"], statistics)


def _resampling(every: Mapping[str, Any], what: str, where: Path | str) -> Resampling:
    """How one kind of array is resampled: ``data`` (images), ``seg`` (label maps) or ``probabilities`` (logits).

    Raises:
        InputError: segonnx doesn't know the function, a keyword argument of it, or its value.
    """
    function = every[what]["function"]
    _require(where, f"resampling of {what}", function, RESAMPLINGS)
    arguments = _Arguments(every[what]["arguments"], f"{where}: {function}, which resamples {what},")
    how: Resampling
    if function in KEEPING:
        # Manifests of earlier versions have what nnU-Net's older function took, and left unused.
        arguments.ignore("is_seg", "order", "order_z", "force_separate_z")
        how = SplineOrders(resamples=False, order=1, order_z=0, separate_z=False)
    elif function == TOGETHER:
        arguments.ignore("num_threads", "device")
        how = InterpolationModes(
            mode="linear",
            mode_z="linear",
            separate_z=False,
            as_labels=bool(arguments.flag("is_seg", False)),
            by_majority=bool(arguments.flag("memefficient_seg_resampling", False)),
            mode_together=arguments.word("mode", "linear", AXIS_MODES),
        )
    elif function == INTERPOLATION:
        arguments.ignore("num_threads", "device")  # they decide on no number
        how = InterpolationModes(
            mode=arguments.word("mode", "linear", PLANE_MODES),
            mode_z=arguments.word("aniso_axis_mode", "nearest-exact", AXIS_MODES),
            separate_z=arguments.flag("force_separate_z", None),
            threshold=arguments.number("separate_z_anisotropy_threshold", ANISOTROPY),
            as_labels=bool(arguments.flag("is_seg", False)),
            by_majority=bool(arguments.flag("memefficient_seg_resampling", False)),
        )
    else:
        how = SplineOrders(
            resamples=True,
            order=arguments.order("order", 3),
            order_z=arguments.order("order_z", 0),
            separate_z=arguments.flag("force_separate_z", False),
            threshold=arguments.number("separate_z_anisotropy_threshold", ANISOTROPY),
            as_labels=bool(arguments.flag("is_seg", False)),
        )
    arguments.require_none_left()
    if what != "seg" and function not in KEEPING and how.as_labels:
        raise arguments.refused("is_seg", True, "False: neither images nor logits are labels")
    if what == "probabilities" and isinstance(how, SplineOrders):
        # Logits are resampled slice by slice, as they come; a spline of a higher order takes all slices at once.
        if how.order > 1:
            raise arguments.refused("order", how.order, "0 or 1 for logits")
        if how.order_z > 1 and how.separate_z is not False:
            raise arguments.refused("order_z", how.order_z, "0 or 1 for logits")
    return how


class _Arguments:
    """The keyword arguments of one of nnU-Net's functions: each is taken once, and none may be left.

    Args:
        given: The arguments.
        whose: The function, for messages.
    """

    def __init__(self, given: Mapping[str, Any], whose: str) -> None:
        self._left, self._whose = dict(given), whose

    def ignore(self, *names: str) -> None:
        """Drop arguments that change no result."""
        for name in names:
            self._left.pop(name, None)

    def flag(self, name: str, default: bool | None) -> bool | None:
        """A bool, or None; 0 and 1 are bools to nnU-Net."""
        value = self._left.pop(name, default)
        if value is not None and (not isinstance(value, int) or value not in (0, 1)):
            raise self.refused(name, value, "true, false or null")
        return None if value is None else bool(value)

    def order(self, name: str, default: int) -> int:
        """The order of a spline."""
        value = self._left.pop(name, default)
        if not isinstance(value, int) or not 0 <= value <= 5:
            raise self.refused(name, value, "a whole number from 0 to 5")
        return int(value)

    def number(self, name: str, default: float) -> float:
        """A finite number."""
        value = self._left.pop(name, default)
        if not _is_number(value):
            raise self.refused(name, value, "a number")
        return float(value)

    def word(self, name: str, default: str, known: tuple[str, ...]) -> str:
        """One of some words."""
        value = self._left.pop(name, default)
        if value not in known:
            raise self.refused(name, value, " or ".join(known))
        return str(value)

    def require_none_left(self) -> None:
        """See to it that every argument was taken.

        Raises:
            InputError: One wasn't: nnU-Net's function has no such.
        """
        if self._left:
            raise InputError(f"{self._whose} takes no argument {', '.join(map(repr, self._left))}, in nnU-Net neither")

    def refused(self, name: str, value: object, expected: str) -> InputError:
        """The error of an argument that segonnx doesn't follow."""
        return InputError(f"{self._whose} has {name} = {value!r}; segonnx predict takes {expected}")


def _require_grids(where: Path | str, image: Resampling, label: Resampling | None, logit: Resampling) -> None:
    """See to it that the image, a first stage's labels and the logits end on the grids that they must.

    Raises:
        InputError: They don't: one is resampled, another one isn't.
    """
    if label is not None and label.resamples != image.resamples:
        raise InputError(f"{where}: of the image and the first stage's label map, one is resampled and the other isn't")
    if image.resamples and not logit.resamples:
        raise InputError(f"{where}: the image is resampled, and the logits aren't resampled back to its grid")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _require(where: Path | str, what: str, found: str, known: tuple[str, ...]) -> None:
    if found not in known:
        raise InputError(f"{where}: the {what} is {found!r}; segonnx predict knows {', '.join(known)}")
