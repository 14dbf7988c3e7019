"""Packs an artifact into the layout of a MONAI bundle: https://docs.monai.io/en/stable/mb_specification.html.

It is no full bundle: MONAI's own programs expect TorchScript or Python. Programs that read ``configs/metadata.json``
and ``models/model.onnx`` find them in their places.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from segonnx.artifacts import layout
from segonnx.artifacts.layout import MODEL
from segonnx.artifacts.manifest import Manifest, gives_labels
from segonnx.core.subprocesses import Progress


def write(artifact: Path, content: Manifest, out: Path, progress: Progress) -> None:
    """Write a verified artifact as the bundle ``out``."""
    for name in ("configs", "models", "docs"):
        (out / name).mkdir(parents=True)
    for name in sorted(content["files"]):
        if name.startswith(MODEL):
            progress(f"packing {name}")
            shutil.copyfile(artifact / name, out / "models" / name)
    shutil.copyfile(artifact / layout.CARD, out / "docs" / "README.md")
    shutil.copyfile(artifact / layout.MANIFEST, out / "docs" / layout.MANIFEST)
    (out / "LICENSE").write_text(
        f"The weights of this model: {content['weights']['licence']} ({content['weights']['source']}).\n", "utf-8"
    )
    text = json.dumps(metadata(content), indent=2, ensure_ascii=False) + "\n"
    (out / "configs" / "metadata.json").write_text(text, encoding="utf-8")


def metadata(content: Manifest) -> dict[str, Any]:
    """The content of metadata.json, by MONAI's schema."""
    x, y = content["inputs"][0], content["outputs"][0]
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
                    **_tensor(x, x["shape"][1], x["shape"][2:]),
                }
            },
            "outputs": {"pred": {"type": "image", "format": "segmentation", **given}},
        },
    }


def _tensor(described: Manifest, channels: int, spatial: list[int | str]) -> dict[str, Any]:
    return {
        "num_channels": channels,
        "spatial_shape": [size if isinstance(size, int) else "*" for size in spatial],
        "dtype": described["dtype"],
        "is_patch_data": bool(spatial),
    }
