"""What segmentation-models-pytorch's ``save_pretrained`` wrote: a folder of config.json and the weights.

The configuration is data of others: architectures and arguments are those of a list, and none can name a file or code.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from segonnx.core import documents
from segonnx.errors import InputError, first_line
from segonnx.sources.catalog import IMAGE, ModelSpec

ARCHITECTURES = (
    "Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "DeepLabV3", "DeepLabV3Plus", "PAN", "UPerNet",
    "Segformer", "DPT",
)  # fmt: skip
CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
MAX_BYTES = 2**20
MAX_SIZE = 2**14
"""The largest number in a configuration: channels, depths."""

_KNOWN = {"_model_class", "encoder_name", "encoder_weights", "in_channels", "classes", "activation", "aux_params"}
_ARGUMENTS = {"encoder_depth", "encoder_output_stride", "upsampling", "dynamic_img_size"}
_FAMILIES = ("decoder_", "psp_")  # all that begin so are arguments of decoders


def find(source: str) -> tuple[ModelSpec, Path]:
    """The network of a folder here, or of OWNER/NAME on Hugging Face's hub, from its cache or the network.

    Raises:
        InputError: it can't be had; see ``read``.
    """
    folder = Path(source)
    if folder.exists() or source.count("/") != 1 or source.startswith((".", "/")):
        return read(folder, folder.resolve().name)
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(source, allow_patterns=[CONFIG, *WEIGHTS]))
    except Exception as error:
        raise InputError(
            f"{source} is no folder here, and can't be had from Hugging Face's hub or its cache: "
            f"{first_line(error, 200)}"
        ) from error
    spec, weights = read(folder, source.partition("/")[2])
    return replace(spec, weights_source=f"{source} of Hugging Face, {weights.name}"), weights


def read(folder: Path, name: str) -> tuple[ModelSpec, Path]:
    """The network of a folder, which is to be called ``name``, and its file of weights.

    Raises:
        InputError: something is missing or not known; the message says what.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; --smp takes one that smp's save_pretrained wrote")
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise InputError(f"{folder} has no weights: neither {' nor '.join(WEIGHTS)}")
    path = folder / CONFIG
    config = _config(path)
    architecture = config.get("_model_class")
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise InputError(f"{path}: _model_class is {architecture!r}; segonnx knows {known}")
    encoder = config.get("encoder_name")
    if not isinstance(encoder, str) or ":" in encoder or "/" in encoder:
        raise InputError(f"{path}: encoder_name is {encoder!r}, which isn't an encoder of smp")
    arguments = {name: value for name, value in config.items() if name not in _KNOWN and value not in (None, {})}
    for argument, value in arguments.items():
        if argument not in _ARGUMENTS and not argument.startswith(_FAMILIES):
            raise InputError(f"{path} has {argument}, which segonnx doesn't know")
        if not _is_plain(value):
            raise InputError(f"{path}: {argument} isn't plain data of a sensible size")
    channels, classes = _size(path, config, "in_channels", 3), _size(path, config, "classes", 1)
    options: dict[str, Any] = {"architecture": architecture.lower(), "encoder": encoder, "arguments": arguments}
    if config.get("aux_params"):
        aux = config["aux_params"]
        if not isinstance(aux, dict) or not all(_is_plain(value) for value in aux.values()):
            raise InputError(f"{path}: aux_params isn't plain data of a sensible size")
        options["auxiliary"] = aux
    activation = config.get("activation")
    spec = ModelSpec(
        name=name,
        family="smp",
        builder="smp",
        options={**options, **({} if channels == 3 else {"in_channels": channels})},
        input_shape=(1, channels, *IMAGE[2:]),
        num_classes=classes,
        modality="RGB" if channels == 3 else "other",
        source=f"segmentation-models-pytorch {architecture} on {encoder}",
        weights_source=f"file {name}/{weights.name}",
        described={"activation": str(activation)} if activation else {},
    )
    return spec, weights


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path} is missing; smp's save_pretrained writes it")
    config = documents.read(path, MAX_BYTES)
    if not isinstance(config, dict):
        raise InputError(f"{path} doesn't hold names and values")
    return config


def _size(path: Path, config: dict[str, Any], name: str, default: int) -> int:
    value = config.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= MAX_SIZE:
        raise InputError(f"{path}: {name} is {value!r}, not a number from 1 to {MAX_SIZE:,}")
    return value


def _is_plain(value: object) -> bool:
    """Whether a value is text, a number that a layer's size can be, or a few of them."""
    if isinstance(value, (list, dict)):
        items = list(value.values()) if isinstance(value, dict) else value
        return len(items) <= 16 and all(not isinstance(item, (list, dict)) and _is_plain(item) for item in items)
    return value is None or isinstance(value, str) or (isinstance(value, (int, float)) and abs(value) <= MAX_SIZE)
