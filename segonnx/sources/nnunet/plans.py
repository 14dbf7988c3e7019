"""nnU-Net's plans.json and dataset.json, read as data: nothing that they name is imported.

A trained folder isn't trusted. Every name of a class must stand in a table here, every number in its bounds; the tables
say what ``segonnx.models.nnunet`` can build. What nnU-Net reads loosely (labels as strings, statistics that are NaN and
that nothing uses) is read as loosely. Nothing here needs torch or nnU-Net.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segonnx.core import documents
from segonnx.errors import InputError

PLANS = "plans.json"
DATASET = "dataset.json"
MAX_BYTES = 64 * 2**20
"""A larger JSON file isn't read."""
MAX_LABEL = 65535
STATISTICS = ("mean", "median", "std", "min", "max", "percentile_00_5", "percentile_99_5")
"""What nnU-Net's fingerprint says of the intensities of a channel."""
MAX_ANCESTORS = 64
"""Configurations that one may inherit from, one from another."""
MAX_NUMBERS = 2**36
"""The most parameters of a network, and the most numbers of its input or output: of float32 they take 256 GiB."""

_TORCH = {
    "conv": ("Conv2d", "Conv3d"),
    "instancenorm": ("InstanceNorm2d", "InstanceNorm3d"),
    "batchnorm": ("BatchNorm2d", "BatchNorm3d"),
    "dropout": ("Dropout", "Dropout2d", "Dropout3d"),
    "activation": ("LeakyReLU", "ReLU", "GELU", "ELU", "SiLU", "Mish"),
}
_BLOCKS = "dynamic_network_architectures.building_blocks.residual"
CLASSES = {
    **{f"torch.nn.modules.{module}.{name}": name for module, names in _TORCH.items() for name in names},
    **{f"torch.nn.{name}": name for names in _TORCH.values() for name in names},
    **{f"{_BLOCKS}.{name}": name for name in ("BasicBlockD", "BottleneckD")},
}
"""Every class that a plan may name as an argument of its network, and what it's called in ``Architecture``."""

NETWORKS = ("PlainConvUNet", "ResidualEncoderUNet", "ResidualUNet", "Primus", "PrimusV2", "PrimusV3")
"""The networks that a plan may name."""
_PACKAGE = "dynamic_network_architectures.architectures."

_OLD_KEYS = {
    "pool_op_kernel_sizes": "strides",
    "conv_kernel_sizes": "kernel_sizes",
    "n_conv_per_stage_decoder": "n_conv_per_stage_decoder",
}

# JSON Schema of what is read. Bounds are far beyond any network that was trained.


def _integer(low: int, high: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": low, "maximum": high}


def _several(item: dict[str, Any], low: int = 1, high: int = 16) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": low, "maxItems": high}


def _one_or(item: dict[str, Any], high: int = 16) -> dict[str, Any]:
    return {"anyOf": [item, _several(item, 1, high)]}


MAX_NUMBER = 1e30
_NUMBER = {"type": "number", "minimum": -MAX_NUMBER, "maximum": MAX_NUMBER}
_POSITIVE = {"type": "number", "minimum": 1e-6, "maximum": 1e6}
_AXES = _several(_integer(0, 2), 3, 3)
_WORD = {"type": "string", "pattern": r"^[A-Za-z_][A-Za-z0-9_.]{0,99}$"}
_NAME = {
    "type": "string", "minLength": 1, "maxLength": 300,
    "pattern": r"^[^\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]*$",
}  # fmt: skip
_KEY = {"type": "string", "pattern": r"^[A-Za-z_][A-Za-z0-9_.-]{0,99}$"}
_SCALARS = {
    "type": "object",
    "maxProperties": 32,
    "propertyNames": _KEY,
    "additionalProperties": {"anyOf": [_NUMBER, {"type": ["boolean", "null"]}, {"type": "string", "maxLength": 100}]},
}
_SPLINES = {
    **_SCALARS,
    "properties": {
        "order": _integer(0, 5),
        "order_z": _integer(0, 5),
        "force_separate_z": {"type": ["boolean", "null"]},
    },
}
_FLAG = {"type": "boolean"}
_OPTIONS = {
    "anyOf": [
        {"type": "null"},
        {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "eps": {"type": "number", "minimum": 0, "maximum": 1e6},
                "momentum": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
                "affine": _FLAG,
                "track_running_stats": _FLAG,
                "p": {"type": "number", "minimum": 0, "maximum": 1},
                "inplace": _FLAG,
                "negative_slope": _NUMBER,
                "alpha": _NUMBER,
                "approximate": {"enum": ["none", "tanh"]},
            },
        },
    ]
}
"""What the classes of norms, dropouts and activations take."""
_CLASS = {"enum": [None, *CLASSES]}
_BLOCK_COUNTS = _one_or(_integer(1, 64))
_CONVOLUTIONAL = {
    "type": "object",
    "required": ["n_stages", "features_per_stage", "conv_op", "kernel_sizes", "strides", "n_conv_per_stage_decoder"],
    "additionalProperties": False,
    "properties": {
        "n_stages": _integer(2, 16),
        "features_per_stage": _one_or(_integer(1, 8192)),
        "conv_op": {"enum": [name for name, short in CLASSES.items() if short in _TORCH["conv"]]},
        "kernel_sizes": _one_or(_one_or(_integer(1, 31), 3)),
        "strides": _one_or(_one_or(_integer(1, 16), 3)),
        "n_conv_per_stage": _BLOCK_COUNTS,
        "n_blocks_per_stage": _BLOCK_COUNTS,
        "n_conv_per_stage_decoder": _BLOCK_COUNTS,
        "conv_bias": {"type": "boolean"},
        "norm_op": _CLASS,
        "norm_op_kwargs": _OPTIONS,
        "dropout_op": _CLASS,
        "dropout_op_kwargs": _OPTIONS,
        "nonlin": _CLASS,
        "nonlin_kwargs": _OPTIONS,
        "nonlin_first": {"type": "boolean"},
        "deep_supervision": {"type": "boolean"},
        "block": _CLASS,
        "bottleneck_channels": {"anyOf": [{"type": "null"}, _one_or(_integer(1, 8192))]},
        "stem_channels": {"anyOf": [{"type": "null"}, _integer(1, 8192)]},
    },
}
_RATE = {"type": "number", "minimum": 0, "maximum": 1}
_TRANSFORMER = {
    "type": "object",
    "required": ["embed_dim", "patch_embed_size", "input_shape"],
    "additionalProperties": False,
    "properties": {
        "embed_dim": _integer(1, 8192),
        "patch_embed_size": _several(_integer(1, 64), 3, 3),
        "input_shape": _several(_integer(1, 4096), 3, 3),
        "eva_depth": _integer(1, 128),
        "eva_numheads": _integer(1, 128),
        "num_register_tokens": _integer(0, 4096),
        "use_rot_pos_emb": {"type": "boolean"},
        "use_abs_pos_embed": {"type": "boolean"},
        "mlp_ratio": _POSITIVE,
        "drop_path_rate": _RATE,
        "patch_drop_rate": _RATE,
        "proj_drop_rate": _RATE,
        "attn_drop_rate": _RATE,
        "init_values": {"anyOf": [{"type": "null"}, _NUMBER]},
        "scale_attn_inner": {"type": "boolean"},
    },
}
_ARCHITECTURE: dict[str, Any] = {
    "type": "object",
    "required": ["network_class_name", "arch_kwargs"],
    "properties": {
        "network_class_name": {"type": "string", "maxLength": 300},
        "arch_kwargs": {"type": "object"},
        "_kw_requires_import": _several({"type": "string", "maxLength": 100}, 0, 32),
    },
}
_OLD_ARCHITECTURE = {
    "type": "object",
    "required": [
        "UNet_class_name", "UNet_base_num_features", "unet_max_num_features", "n_conv_per_stage_encoder", *_OLD_KEYS,
    ],
    "properties": {
        "UNet_class_name": {"enum": ["PlainConvUNet", "ResidualEncoderUNet"]},
        "UNet_base_num_features": _integer(1, 8192),
        "unet_max_num_features": _integer(1, 8192),
        "n_conv_per_stage_encoder": _several(_integer(1, 64)),
    },
}  # fmt: skip
_CONFIGURATION: dict[str, Any] = {
    "type": "object",
    "required": [
        "preprocessor_name", "patch_size", "spacing", "normalization_schemes", "use_mask_for_norm",
        *(f"resampling_fn_{what}{tail}" for what in ("data", "seg", "probabilities") for tail in ("", "_kwargs")),
    ],
    "properties": {
        "preprocessor_name": _WORD,
        "patch_size": _several(_integer(1, 4096), 2, 3),
        "spacing": _several(_POSITIVE, 2, 3),
        "normalization_schemes": _several(_WORD, 1, 1024),
        "use_mask_for_norm": _several({"type": ["boolean", "null"]}, 1, 1024),
        **{f"resampling_fn_{what}": _WORD for what in ("data", "seg", "probabilities")},
        **{f"resampling_fn_{what}_kwargs": _SPLINES for what in ("data", "seg", "probabilities")},
        "previous_stage": {"anyOf": [{"type": "null"}, _NAME]},
    },
}  # fmt: skip
_INTENSITIES = {"type": ["object", "null"], "maxProperties": 1024}
_HEIR = {"type": "object", "properties": {"inherits_from": {"anyOf": [_NAME, {"type": "null"}]}}}
_PLANS: dict[str, Any] = {
    "type": "object",
    "required": [
        "dataset_name", "plans_name", "image_reader_writer", "transpose_forward", "transpose_backward",
        "configurations",
    ],
    "properties": {
        "dataset_name": _NAME,
        "plans_name": _NAME,
        "image_reader_writer": _WORD,
        "transpose_forward": _AXES,
        "transpose_backward": _AXES,
        "label_manager": {"const": "LabelManager"},
        "configurations": {
            "type": "object",
            "minProperties": 1,
            "maxProperties": 1000,
            "propertyNames": _NAME,
        },
        "foreground_intensity_properties_per_channel": _INTENSITIES,
        "foreground_intensity_properties_by_modality": _INTENSITIES,
    },
}  # fmt: skip
_CHANNELS = {
    "anyOf": [
        {"type": "object", "minProperties": 1, "maxProperties": 1024},
        _several({}, 1, 1024),
    ]
}
"""Their names decided on the normalization when they were planned: inference counts them alone."""
_DATASET = {
    "type": "object",
    "required": ["labels", "file_ending"],
    "anyOf": [{"required": ["channel_names"]}, {"required": ["modality"]}],
    "properties": {
        "channel_names": _CHANNELS,
        "modality": _CHANNELS,
        "labels": {
            "type": "object",
            "required": ["background"],
            "maxProperties": MAX_LABEL + 1,
            "propertyNames": _NAME,
        },
        "file_ending": {"type": "string", "maxLength": 40, "pattern": r"^([.][A-Za-z0-9]{1,10}){1,3}$"},
    },
}


@dataclass(frozen=True)
class Architecture:
    """A network and its arguments, as plain data.

    Attributes:
        name: the name of its class in dynamic-network-architectures.
        arguments: its keyword arguments but for the channels; a class stands there by its name in ``CLASSES``.
    """

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class InputChannel:
    """One input channel.

    Attributes:
        name: its name in dataset.json, such as ``CT``.
        normalization: nnU-Net's class, such as ``ZScoreNormalization``.
        use_mask: normalise the nonzero region alone.
        intensities: statistics of the training set's foreground; empty where the plans have none.
    """

    name: str
    normalization: str
    use_mask: bool
    intensities: Mapping[str, float]


@dataclass(frozen=True)
class OutputChannel:
    """One output channel.

    Attributes:
        name: the name of the label or region.
        value: what a voxel of it gets in the label map.
        labels: the labels that it is made of: those of a region, or its own. That differs from ``value`` where the
            labels have gaps.
        listed: a region of one label, which dataset.json has as a list.
    """

    name: str
    value: int
    labels: tuple[int, ...]
    listed: bool = False


@dataclass(frozen=True)
class ResamplingPlan:
    """How nnU-Net resamples one kind of array: its function and that function's keyword arguments."""

    function: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """What one configuration of a trained folder says. Sizes are in voxels and mm along the network's axes.

    Attributes:
        dataset: the name of the data set.
        plans: the name of the plans.
        configuration: the name of the configuration, such as ``3d_fullres``.
        architecture: the network.
        patch_size: the size of a window.
        spacing: the spacing of the images that the network sees. Of two numbers, the first axis keeps the image's.
        channels: the channels of the images, in order.
        outputs: the channels of the network's output, in order.
        regions: the outputs overlap: each has a sigmoid of its own.
        ignore_label: marks voxels that nobody annotated; None where there is none.
        transpose_forward: for each axis of the network, the axis of the image.
        transpose_backward: for each axis of the image, the axis of the network.
        preprocessor: nnU-Net's class.
        resampling: how images (``data``), label maps (``seg``) and ``probabilities`` are resampled.
        previous_stage: the configuration whose label map is an input too; None where there is none.
        image_reader_writer: nnU-Net's class.
        file_ending: the ending of image files.
    """

    dataset: str
    plans: str
    configuration: str
    architecture: Architecture
    patch_size: tuple[int, ...]
    spacing: tuple[float, ...]
    channels: tuple[InputChannel, ...]
    outputs: tuple[OutputChannel, ...]
    regions: bool
    ignore_label: int | None
    transpose_forward: tuple[int, ...]
    transpose_backward: tuple[int, ...]
    preprocessor: str
    resampling: Mapping[str, ResamplingPlan]
    previous_stage: str | None
    image_reader_writer: str
    file_ending: str

    @property
    def foreground(self) -> tuple[int, ...]:
        """The labels but for the background, in order: a second stage gets a channel for each."""
        return tuple(sorted({label for output in self.outputs for label in output.labels} - {0}))

    @property
    def moved(self) -> tuple[OutputChannel, ...]:
        """The labels that are another number in the label map: those above a gap."""
        return () if self.regions else tuple(output for output in self.outputs if output.labels != (output.value,))

    @property
    def input_channels(self) -> int:
        """Of the network: the images', and a previous stage's labels."""
        return len(self.channels) + (len(self.foreground) if self.previous_stage is not None else 0)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; NaN and infinite numbers, which Python writes, are their names there.

    Raises:
        InputError: it is missing, too large, or isn't one.
    """
    content: object = documents.read(path, MAX_BYTES, constant=str)
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object")
    return content


def as_json(value: object) -> Mapping[str, Any] | None:
    """What a checkpoint holds as ``read_json`` would read it from a file; None if it couldn't."""
    try:
        result = json.loads(json.dumps(value, default=_plain), parse_constant=str)
    except (TypeError, ValueError, RecursionError):
        return None
    return result if isinstance(result, Mapping) else None


def _plain(value: object) -> object:
    """NumPy's numbers and arrays as plain ones."""
    if not hasattr(value, "tolist"):
        raise TypeError(f"{type(value).__name__} isn't JSON")
    return value.tolist()


def named(plans: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """Plans with the names of their data set and of themselves; where they have none, those of the folder.

    Args:
        plans: content of plans.json.
        folder: the trained folder, DATASET/TRAINER__PLANS__CONFIGURATION.
    """
    folder = folder.resolve()
    parts = folder.name.split("__")
    return {"dataset_name": folder.parent.name, "plans_name": parts[1] if len(parts) == 3 else "nnUNetPlans", **plans}


def plan(plans: Mapping[str, Any], dataset: Mapping[str, Any], configuration: str, where: Path) -> Plan:
    """One configuration of a plans.json, with the dataset.json beside it.

    Args:
        plans: content of plans.json.
        dataset: content of dataset.json.
        configuration: its name.
        where: the folder, for messages.

    Raises:
        InputError: something is missing, of another type, out of bounds, names a class that isn't known, or doesn't go
            together.
    """
    _check(plans, _PLANS, where / PLANS)
    _check(dataset, _DATASET, where / DATASET)
    chosen = _resolve(plans["configurations"], configuration, where)
    at = where / PLANS / "configurations" / configuration
    _check(chosen, _CONFIGURATION, at)
    axes = len(chosen["patch_size"])
    forward, backward = tuple(plans["transpose_forward"]), tuple(plans["transpose_backward"])
    if sorted(forward) != [0, 1, 2] or any(forward[axis] != i for i, axis in enumerate(backward)):
        raise InputError(f"{where / PLANS}: transpose_forward {forward} and transpose_backward {backward} don't match")
    outputs, regions = _outputs(dataset, where)
    channels = _channels(plans, dataset, chosen, where)
    if math.prod(chosen["patch_size"]) * max(len(outputs), len(channels)) > MAX_NUMBERS:
        raise InputError(
            f"{at}/patch_size: {chosen['patch_size']} for {len(channels)} channels and {len(outputs)} outputs are more "
            f"than {MAX_NUMBERS:,} numbers"
        )
    return Plan(
        dataset=plans["dataset_name"],
        plans=plans["plans_name"],
        configuration=configuration,
        architecture=_architecture(chosen, axes, at),
        patch_size=tuple(int(size) for size in chosen["patch_size"]),
        spacing=tuple(float(size) for size in chosen["spacing"]),
        channels=channels,
        outputs=outputs,
        regions=regions,
        ignore_label=_ignore_label(dataset["labels"], where / DATASET),
        transpose_forward=forward,
        transpose_backward=backward,
        preprocessor=chosen["preprocessor_name"],
        resampling={
            what: ResamplingPlan(chosen[f"resampling_fn_{what}"], chosen[f"resampling_fn_{what}_kwargs"])
            for what in ("data", "seg", "probabilities")
        },
        previous_stage=chosen.get("previous_stage"),
        image_reader_writer=plans["image_reader_writer"],
        file_ending=dataset["file_ending"],
    )


def divisors(architecture: Architecture, axes: int) -> tuple[int, ...]:
    """What each spatial size of the network's input must be a multiple of."""
    if "patch_embed_size" in architecture.arguments:
        return tuple(architecture.arguments["patch_embed_size"])
    result = [1] * axes
    for stride in axis_strides(architecture, axes):
        result = [size * factor for size, factor in zip(result, stride, strict=True)]
    return tuple(result)


def axis_strides(architecture: Architecture, axes: int) -> list[Sequence[int]]:
    """The strides of each stage along each axis."""
    return [_per_axis(stride, axes) for stride in _per_stage(architecture, "strides")]


def least_parameters(arguments: Mapping[str, Any]) -> int:
    """So many parameters a transformer of these arguments has at least: its blocks' attention; 0 for other networks."""
    return 4 * int(arguments.get("eva_depth", 1)) * int(arguments.get("embed_dim", 0)) ** 2


def _check(content: object, schema: Mapping[str, Any], where: Path) -> None:
    if (wrong := documents.misfit(content, schema)) is not None:
        raise InputError(f"{where}/{wrong}")


def _resolve(every: Mapping[str, Any], name: str, where: Path) -> dict[str, Any]:
    """A configuration with what it inherits."""
    chain = [name]
    while True:
        if chain[-1] not in every:
            heir = f" (which {chain[-2]} inherits from)" if len(chain) > 1 else ""
            raise InputError(f"{where / PLANS} has no configuration {chain[-1]!r}{heir}; it has {', '.join(every)}")
        # Those that nobody asks for may be anything.
        _check(every[chain[-1]], _HEIR, where / PLANS / "configurations" / chain[-1])
        parent = every[chain[-1]].get("inherits_from")
        if parent is None:
            break
        if parent in chain or not isinstance(parent, str):
            raise InputError(f"{where / PLANS}: the configuration {name!r} inherits from itself")
        if len(chain) > MAX_ANCESTORS:
            raise InputError(f"{where / PLANS}: {name!r} inherits from more than {MAX_ANCESTORS} configurations")
        chain.append(parent)
    return {key: value for ancestor in reversed(chain) for key, value in every[ancestor].items()}


def _architecture(configuration: Mapping[str, Any], axes: int, where: Path) -> Architecture:
    if "architecture" in configuration:
        _check(configuration["architecture"], _ARCHITECTURE, where / "architecture")
        dotted = configuration["architecture"]["network_class_name"]
        arguments = configuration["architecture"]["arch_kwargs"]
    else:
        dotted, arguments = _old_architecture(configuration, axes, where)
    package, _, name = dotted.rpartition(".")
    # nnU-Net looks a class that it doesn't find where it is said to be up by its name in that library.
    ours = package == "" or f"{package}.".startswith(_PACKAGE)
    if not ours or name not in NETWORKS:
        found = f"{name[:100]!r}" if ours else f"{dotted[:100]!r}, a class of another package,"
        raise InputError(
            f"{where}/architecture: {found} isn't a network that can be built; known are {', '.join(NETWORKS)} of "
            f"{_PACKAGE.partition('.')[0]}"
        )
    at = where / "architecture" / "arch_kwargs"
    if name.startswith("Primus"):
        _check(arguments, _TRANSFORMER, at)
        tokens = math.prod(
            math.ceil(size / part)
            for size, part in zip(arguments["input_shape"], arguments["patch_embed_size"], strict=True)
        )
        if max(tokens, math.prod(arguments["patch_embed_size"])) * arguments["embed_dim"] > MAX_NUMBERS:
            raise InputError(
                f"{at}: {tokens:,} tokens of {arguments['embed_dim']:,} are more than {MAX_NUMBERS:,} numbers"
            )
        return Architecture(name, dict(arguments))
    _check(arguments, _CONVOLUTIONAL, at)
    # A class is known by its full name alone, whether or not the plan says that it must be imported.
    known = {
        key: CLASSES.get(value, value) if isinstance(value, str) else value
        for key, value in arguments.items()
        if key != "deep_supervision"
    }
    result = Architecture(name, known)
    _check_stages(result, axes, at)
    return result


def _old_architecture(configuration: Mapping[str, Any], axes: int, where: Path) -> tuple[str, dict[str, Any]]:
    """The network of plans that were written before they held their architecture, as nnU-Net reads them today."""
    _check(configuration, _OLD_ARCHITECTURE, where)
    blocks = configuration["n_conv_per_stage_encoder"]
    name = configuration["UNet_class_name"]
    return f"{_PACKAGE}unet.{name}", {
        "n_stages": len(blocks),
        "features_per_stage": [
            min(configuration["UNet_base_num_features"] * 2**stage, configuration["unet_max_num_features"])
            for stage in range(len(blocks))
        ],
        "n_conv_per_stage" if name == "PlainConvUNet" else "n_blocks_per_stage": blocks,
        **{new: configuration[old] for old, new in _OLD_KEYS.items()},
        "conv_op": f"torch.nn.Conv{axes}d",
        "conv_bias": True,
        "norm_op": f"torch.nn.InstanceNorm{axes}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }


def _check_stages(architecture: Architecture, axes: int, where: Path) -> None:
    """Lists must have an item per stage and per axis."""
    arguments = architecture.arguments
    stages = arguments["n_stages"]
    if arguments["conv_op"] != f"Conv{axes}d":
        raise InputError(f"{where}/conv_op: {arguments['conv_op']} doesn't go with a patch of {axes} sizes")
    blocks = "n_conv_per_stage" if architecture.name == "PlainConvUNet" else "n_blocks_per_stage"
    if blocks not in arguments:
        raise InputError(f"{where}: {blocks!r} is a required property")
    lengths = {
        "features_per_stage": stages, "kernel_sizes": stages, "strides": stages, blocks: stages,
        "bottleneck_channels": stages, "n_conv_per_stage_decoder": stages - 1,
    }  # fmt: skip
    for key, wanted in lengths.items():
        value = arguments.get(key)
        if isinstance(value, Sequence) and len(value) != wanted:
            raise InputError(f"{where}/{key}: {len(value)} entries for a network of {stages} stages")
    for key in ("kernel_sizes", "strides"):
        for value in _per_stage(architecture, key):
            if isinstance(value, Sequence) and len(value) != axes:
                raise InputError(f"{where}/{key}: {value} for a network of {axes} axes")

    # Those within the stages: a network of more isn't built, not even without its numbers.
    widths = _per_stage(architecture, "features_per_stage")
    kernels = [math.prod(_per_axis(kernel, axes)) for kernel in _per_stage(architecture, "kernel_sizes")]
    counts = _per_stage(architecture, blocks)
    parameters = sum(count * width**2 * kernel for count, width, kernel in zip(counts, widths, kernels, strict=True))
    if parameters > MAX_NUMBERS:
        raise InputError(f"{where}: its convolutions have more than {MAX_NUMBERS:,} parameters")


def _per_stage(architecture: Architecture, key: str) -> Sequence[Any]:
    value = architecture.arguments[key]
    return value if isinstance(value, Sequence) else [value] * architecture.arguments["n_stages"]


def _per_axis(value: int | Sequence[int], axes: int) -> Sequence[int]:
    return value if isinstance(value, Sequence) else [value] * axes


def _channels(
    plans: Mapping[str, Any], dataset: Mapping[str, Any], configuration: Mapping[str, Any], where: Path
) -> tuple[InputChannel, ...]:
    # nnU-Net counts the older key where there are both, and takes what is said of channels in the order of the file.
    given = dataset.get("modality", dataset.get("channel_names"))
    assert given is not None
    if isinstance(given, Mapping) and set(given) == {str(index) for index in range(len(given))}:
        names = [given[str(index)] for index in range(len(given))]
    else:
        names = list(given.values()) if isinstance(given, Mapping) else list(given)
    schemes, masks = configuration["normalization_schemes"], configuration["use_mask_for_norm"]
    if len(schemes) < len(names) or len(masks) < len(names):
        raise InputError(
            f"{where / PLANS} normalises {len(schemes)} channels (masks for {len(masks)}), {where / DATASET} has "
            f"{len(names)}: the files are of different data sets"
        )
    key = "foreground_intensity_properties_"
    every = plans.get(f"{key}per_channel", plans.get(f"{key}by_modality")) or {}
    return tuple(
        InputChannel(_told(name, index), schemes[index], bool(masks[index]), _intensities(every.get(str(index))))
        for index, name in enumerate(names)
    )


def _told(name: object, index: int) -> str:
    """What a channel is called: its name as a line of text, or its number where it has none."""
    words = "" if name is None else "".join(c if c.isprintable() else " " for c in str(name)).split()
    return " ".join(words)[:300] or f"channel {index}"


def _intensities(given: object) -> dict[str, float]:
    """The statistics of a channel that are numbers: not all are where they were never computed, or by hand.

    A bound of a CT that is infinite becomes the largest number: it cuts nothing off either.
    """
    if not isinstance(given, Mapping):
        return {}
    bounds = {"Infinity": MAX_NUMBER, "-Infinity": -MAX_NUMBER}
    known = {key: bounds.get(str(value), value) if "percentile" in key else value for key, value in given.items()}
    return {
        key: value
        for key, value in known.items()
        if key in STATISTICS
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and abs(value) <= MAX_NUMBER
    }


def _outputs(dataset: Mapping[str, Any], where: Path) -> tuple[tuple[OutputChannel, ...], bool]:
    """The network's outputs, and whether they are regions."""
    at = where / DATASET
    given = {name: value for name, value in dataset["labels"].items() if name != "ignore"}
    labels = {name: _labels(value, f"{at}/labels/{name[:100]}") for name, value in given.items()}
    if labels["background"] != (0,) or isinstance(given["background"], list):
        raise InputError(f"{at}/labels/background: the background must be 0; found {given['background']!r:.100}")
    highest = max(value for values in labels.values() for value in values)
    ignore = _ignore_label(dataset["labels"], at)
    if ignore is not None and ignore != highest + 1:
        raise InputError(f"{at}/labels: the ignore label must follow the highest label {highest}; found {ignore}")
    if any(isinstance(value, list) and len(value) > 1 for value in given.values()):
        regions = {name: values for name, values in labels.items() if not _is_background(given[name])}
        if not regions:
            raise InputError(f"{at}/labels: every region is background")
        order = _order(dataset.get("regions_class_order"), len(regions), at)
        if max(order) > 255 and len({value for values in labels.values() for value in values} - {0}) < 255:
            raise InputError(f"{at}/regions_class_order: {max(order)} is more than nnU-Net's label maps of 8 bits hold")
        single = {name for name, values in dataset["labels"].items() if isinstance(values, list) and len(values) == 1}
        return tuple(
            OutputChannel(name, value, regions[name], listed=name in single)
            for name, value in zip(regions, order, strict=True)
        ), True
    by_value: dict[int, str] = {}
    for name, values in labels.items():
        by_value.setdefault(values[0], name)
    # nnU-Net writes the index of the channel, also where the labels in dataset.json have gaps.
    return tuple(OutputChannel(by_value[v], index, (v,)) for index, v in enumerate(sorted(by_value))), False


def _is_background(value: object) -> bool:
    """Whether nnU-Net takes a label for the background, which is no region: a string "0" it doesn't."""
    values = value if isinstance(value, list) else [value]
    return all(not isinstance(one, str) and one == 0 for one in values)


def _order(given: object, regions: int, at: Path) -> list[int]:
    """What each region writes into the label map; only regions have it, and nothing else reads the key."""
    found = [] if given is None else given
    if not isinstance(found, list) or len(found) != regions:
        count = str(len(found)) if isinstance(found, list) and found else "none"
        raise InputError(f"{at}/regions_class_order: {regions} regions need as many entries; found {count}")
    return [_label(value, f"{at}/regions_class_order") for value in found]


def _ignore_label(labels: Mapping[str, Any], at: Path) -> int | None:
    value = labels.get("ignore")
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_LABEL):
        raise InputError(f"{at}/labels/ignore: the ignore label must be a whole number; found {value!r:.100}")
    return None if value is None else int(value)


def _labels(value: object, at: str) -> tuple[int, ...]:
    """The labels that a label or a region is made of."""
    if isinstance(value, list):
        if not 0 < len(value) <= MAX_LABEL:
            raise InputError(f"{at}: a region is made of at least one label; found {len(value)}")
        return tuple(_label(one, at) for one in value)
    return (_label(value, at),)


def _label(value: object, at: str) -> int:
    """A label: a whole number, also one that ends in .0, or stands in a string as Python's ``int`` reads it."""
    found = -1
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        found = int(value) if value == int(value) else -1
    elif isinstance(value, str) and len(value) < 20:
        with contextlib.suppress(ValueError):
            found = int(value)
    if not 0 <= found <= MAX_LABEL:
        raise InputError(f"{at}: a label is a whole number from 0 to {MAX_LABEL}; found {value!r:.100}")
    return found
