"""What segmentation-models-pytorch's ``save_pretrained`` wrote: a folder of config.json and the weights.

The configuration is data of others: architectures and arguments are those of a list, and none can name a file or code.
"""

from __future__ import annotations

import re
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
TIMM = "tu-"
"""What the names of encoders of timm's begin with."""
CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
MAX_BYTES = 2**20
MAX_SIZE = 2**14
"""The largest number in a configuration: channels, depths."""

_PLAIN = {
    "anyOf": [
        {"type": "number", "minimum": -MAX_SIZE, "maximum": MAX_SIZE},
        {"type": ["boolean", "null"]},
        {"type": "string", "maxLength": 100},
    ]
}
_FEW: dict[str, Any] = {
    "anyOf": [
        *_PLAIN["anyOf"],
        {"type": "array", "maxItems": 16, "items": _PLAIN},
        {"type": "object", "maxProperties": 16, "additionalProperties": _PLAIN},
    ]
}
_SCHEMA = {
    "type": "object",
    "maxProperties": 100,
    "propertyNames": {"pattern": "^[A-Za-z_][A-Za-z0-9_]{0,99}$"},
    "properties": {
        "encoder_weights": {"anyOf": [{"type": "string", "maxLength": 100}, {"type": "null"}]},
        "in_channels": {"type": "integer", "minimum": 1, "maximum": MAX_SIZE},
        "classes": {"type": "integer", "minimum": 1, "maximum": MAX_SIZE},
        "activation": {"anyOf": [{"type": "string", "maxLength": 100, "pattern": "^[ -~]*$"}, {"type": "null"}]},
        "aux_params": {
            "anyOf": [
                {"type": "null"},
                {"type": "object", "maxProperties": 16, "additionalProperties": _PLAIN},
            ]
        },
    },
    "additionalProperties": _FEW,
}
"""Of a configuration: texts, numbers that a layer's size can be, and a few of them."""

_KNOWN = {"_model_class", "encoder_name", "encoder_weights", "in_channels", "classes", "activation", "aux_params"}
_ARGUMENTS = {
    "encoder_depth", "encoder_output_stride", "encoder_output_indices", "upsampling", "dynamic_img_size", "img_size",
}  # fmt: skip
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
    given = config(path)
    architecture = given.get("_model_class")
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise InputError(f"{path}: _model_class is {architecture!r}; segonnx knows {known}")
    encoder = given.get("encoder_name")
    if not isinstance(encoder, str) or re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", encoder) is None:
        raise InputError(f"{path}: encoder_name is {encoder!r}, which isn't an encoder of smp")
    arguments = {name: value for name, value in given.items() if name not in _KNOWN and value not in (None, {})}
    for argument in arguments:
        if argument not in _ARGUMENTS and not argument.startswith(_FAMILIES):
            raise InputError(f"{path} has {argument}, which segonnx doesn't know")
    channels, classes = given.get("in_channels", 3), given.get("classes", 1)
    options: dict[str, Any] = {"architecture": architecture.lower(), "encoder": encoder, "arguments": arguments}
    if given.get("aux_params"):
        options["auxiliary"] = given["aux_params"]
    activation = given.get("activation")
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
        overlapping=activation == "sigmoid" and classes > 1,
        described={"activation": str(activation)} if activation else {},
        divisors=(1, 1) if architecture == "DPT" else (),  # its encoder says which
    )
    return spec, weights


def config(path: Path) -> dict[str, Any]:
    """The content of a configuration, which fits ``_SCHEMA``.

    Raises:
        InputError: it is missing, or isn't one.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing; smp's save_pretrained writes it")
    content = documents.read(path, MAX_BYTES)
    if not isinstance(content, dict):
        raise InputError(f"{path} doesn't hold names and values")
    documents.require(content, _SCHEMA, path)
    return content
