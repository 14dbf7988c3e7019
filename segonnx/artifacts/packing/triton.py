"""Packs an artifact into a model repository of Triton Inference Server, for its ONNX Runtime backend.

The layout is that of "Model Repository" in Triton's user guide: ``NAME/config.pbtxt`` and ``NAME/1/model.onnx``. The
latter is a folder if the model has external data.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from segonnx.artifacts import layout
from segonnx.artifacts.layout import MODEL
from segonnx.artifacts.manifest import Manifest
from segonnx.core.subprocesses import Progress

TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "uint8": "TYPE_UINT8",
    "uint16": "TYPE_UINT16",
    "int64": "TYPE_INT64",
}
"""Triton's name of each type in a manifest."""


def write(artifact: Path, content: Manifest, out: Path, progress: Progress) -> None:
    """Write a verified artifact as the repository ``out``, with the manifest and the card beside the model."""
    version = out / content_name(content) / "1"
    version.mkdir(parents=True)
    parts = sorted(name for name in content["files"] if name.startswith(MODEL))
    folder = version if parts == [MODEL] else version / MODEL
    folder.mkdir(exist_ok=True)
    for name in parts:
        progress(f"packing {name}")
        shutil.copyfile(artifact / name, folder / name)
    (version.parent / "config.pbtxt").write_text(config(content), encoding="utf-8")
    for name in (layout.MANIFEST, layout.CARD):
        shutil.copyfile(artifact / name, version.parent / name)


def content_name(content: Manifest) -> str:
    """The name in the manifest, with every character replaced that a path or a URL can't hold."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in content["name"])


def config(content: Manifest) -> str:
    """The text of config.pbtxt. The batch is one of the model's own axes, so Triton adds none."""
    return f"""name: "{content_name(content)}"
backend: "onnxruntime"
max_batch_size: 0
input [
{_tensor(content["inputs"][0])}
]
output [
{_tensor(content["outputs"][0])}
]
"""


def _tensor(described: Manifest) -> str:
    sizes = ", ".join(str(size) if isinstance(size, int) else "-1" for size in described["shape"])
    kind = TYPES[described["dtype"]]
    return f'  {{\n    name: "{described["name"]}"\n    data_type: {kind}\n    dims: [ {sizes} ]\n  }}'
