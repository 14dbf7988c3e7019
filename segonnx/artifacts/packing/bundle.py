"""Packs an artifact into the layout of a MONAI bundle: https://docs.monai.io/en/stable/mb_specification.html.

It is no full bundle: MONAI's own programs expect TorchScript or Python. Programs that read ``configs/metadata.json``
and ``models/model.onnx`` find them in their places.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from segonnx.artifacts import layout
from segonnx.artifacts.layout import MODEL
from segonnx.artifacts.manifest import Manifest, gives_labels, image_shape
from segonnx.artifacts.packing import contents
from segonnx.artifacts.packing.contents import Source
from segonnx.core.pixels import HIGHEST
from segonnx.core.subprocesses import Progress
from segonnx.errors import one_line

_LICENCE, _METADATA = "LICENSE", "configs/metadata.json"


def write(source: Source, out: Path, progress: Progress) -> None:
    """Write a verified artifact as the bundle ``out``."""
    for name, place in _places(source).items():
        progress(f"packing {name}")
        source.copy(name, out / place)
    (out / "configs").mkdir()
    for place, data in _made(source).items():
        (out / place).write_bytes(data)


def require_own(out: Path) -> None:
    """See to it that a folder holds a bundle and nothing else, before it is replaced.

    Raises:
        InputError: It doesn't.
    """
    known = {
        "configs", "docs", "models", _LICENCE, _METADATA, f"docs/{layout.CARD}", f"docs/{layout.MANIFEST}",
        f"models/{MODEL}", f"models/{MODEL}.data",
    }  # fmt: skip
    contents.require_layout(out, known, lambda _: False, needed=_METADATA)


def require_written(source: Source, out: Path) -> None:
    """Read the bundle that was written, and check that it is whole.

    Raises:
        ResourceError: It isn't.
    """
    wanted = {place: source.entry(name) for name, place in _places(source).items()}
    wanted |= {place: contents.entry(data) for place, data in _made(source).items()}
    contents.require_written(out, wanted)


def _places(source: Source) -> dict[str, str]:
    """Where each file of the artifact stands in the bundle."""
    return {name: f"models/{name}" for name in source.model} | {name: f"docs/{name}" for name in source.documents}


def _made(source: Source) -> dict[str, bytes]:
    """The files that stand in the bundle alone."""
    weights = source.content["weights"]
    licence = f"The weights of this model: {one_line(weights['licence'])} ({one_line(weights['source'])}).\n"
    text = json.dumps(metadata(source.content), indent=2, ensure_ascii=False) + "\n"
    return {_LICENCE: licence.encode(), _METADATA: text.encode()}


def metadata(content: Manifest) -> dict[str, Any]:
    """The content of metadata.json, by MONAI's schema."""
    x, y = content["inputs"][0], content["outputs"][0]
    image = image_shape(content)
    values = {"value_range": [0, HIGHEST]} if x["dtype"] == "uint8" else {}
    names = {str(index): label["name"] for index, label in enumerate(content["labels"])}
    if gives_labels(content):
        spatial = y["shape"][1:]
        given = {**_tensor(y, 1, spatial), "value_range": [0, y["classes"] - 1], "channel_def": {"0": "labels"}}
    else:
        given = {**_tensor(y, y["shape"][1], y["shape"][2:]), "channel_def": names}
    return {
        "version": "1.0.0",
        "name": content["name"],
        "task": f"segmentation: {content['source']}",
        "description": f"{content['source']}, as ONNX; {content['preprocessing']['note']}",
        "authors": "see docs/README.md",
        "copyright": f"weights: {content['weights']['licence']}",
        "changelog": {"1.0.0": f"exported {content['created']}"},
        "monai_version": "not needed",
        "pytorch_version": content["producer"].get("torch", "not needed"),
        "numpy_version": content["producer"].get("numpy", "not needed"),
        "required_packages_version": {"onnxruntime": content["producer"].get("onnxruntime", "")},
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "magnitude",
                    "modality": content["preprocessing"]["modality"],
                    **_tensor(x, image[1], image[2:]),
                    **values,
                }
            },
            "outputs": {"pred": {"type": "image", "format": "segmentation", **given}},
        },
    }


def _tensor(described: Manifest, channels: int | str, spatial: list[int | str]) -> dict[str, Any]:
    return {
        "num_channels": channels,
        "spatial_shape": [size if isinstance(size, int) else "*" for size in spatial],
        "dtype": described["dtype"],
        "is_patch_data": bool(spatial),
    }
