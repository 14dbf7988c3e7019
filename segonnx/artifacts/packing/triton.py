"""Packs an artifact into a model repository of Triton Inference Server, for its ONNX Runtime backend.

The layout is that of "Model Repository" in Triton's user guide: ``NAME/config.pbtxt`` and ``NAME/1/model.onnx``. The
latter is a folder if the model has external data. The fields of the configuration, with their names and numbers, are
those of ``model_config.proto`` in https://github.com/triton-inference-server/common; protobuf writes them as text.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from segonnx.artifacts import layout
from segonnx.artifacts.layout import MODEL
from segonnx.artifacts.manifest import Manifest
from segonnx.artifacts.packing import contents
from segonnx.artifacts.packing.contents import Source
from segonnx.core.subprocesses import Progress
from segonnx.errors import InputError

TYPES = {
    "bool": ("TYPE_BOOL", 1),
    "uint8": ("TYPE_UINT8", 2),
    "uint16": ("TYPE_UINT16", 3),
    "int8": ("TYPE_INT8", 6),
    "int16": ("TYPE_INT16", 7),
    "int32": ("TYPE_INT32", 8),
    "int64": ("TYPE_INT64", 9),
    "float16": ("TYPE_FP16", 10),
    "float32": ("TYPE_FP32", 11),
}
"""The name and the number of each type of a manifest in Triton's ``DataType``."""
_CONFIG = "config.pbtxt"
MAX_NAME = 200
"""The most bytes of a model's name, which is a folder's."""


def write(source: Source, out: Path, progress: Progress) -> None:
    """Write a verified artifact as the repository ``out``, with the manifest and the card beside the model."""
    for name, place in _places(source).items():
        progress(f"packing {name}")
        source.copy(name, out / place)
    (out / content_name(source.content) / _CONFIG).write_bytes(config(source.content).encode())


def require_own(out: Path) -> None:
    """See to it that a folder holds a repository of one model and nothing else, before it is replaced.

    Raises:
        InputError: It doesn't.
    """
    models = [path.name for path in out.iterdir()] if out.is_dir() and not out.is_symlink() else []
    if len(models) > 1:
        raise InputError(f"{out} holds {len(models)} models or files, and not one model: --overwrite leaves it alone")
    name = models[0] if models else ""
    inside = ("", f"/{_CONFIG}", f"/{layout.MANIFEST}", f"/{layout.CARD}", "/1", f"/1/{MODEL}", f"/1/{MODEL}/{MODEL}")
    known = {f"{name}{path}" for path in (*inside, f"/1/{MODEL}/{MODEL}.data")}
    contents.require_layout(out, known, lambda _: False, needed=f"{name}/{_CONFIG}")


def require_written(source: Source, out: Path) -> None:
    """Read the repository that was written, and check that it is whole.

    Raises:
        ResourceError: It isn't.
    """
    from google.protobuf import text_format

    wanted = {place: source.entry(name) for name, place in _places(source).items()}
    place = f"{content_name(source.content)}/{_CONFIG}"
    text = (out / place).read_bytes()
    contents.require_written(out, {**wanted, place: contents.entry(text)})
    if text_format.Parse(text, _model_config()()) != _config(source.content):
        raise contents.unlike(out, f"{place} says something else")


def content_name(content: Manifest) -> str:
    """The name in the manifest, with every character replaced that a path or a URL can't hold."""
    plain = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in content["name"])
    return plain.encode()[:MAX_NAME].decode(errors="ignore").strip(".") or "model"


def config(content: Manifest) -> str:
    """The text of config.pbtxt. The batch is one of the model's own axes, so Triton adds none."""
    from google.protobuf import text_format

    text: str = text_format.MessageToString(_config(content), use_short_repeated_primitives=True)
    return text


def _places(source: Source) -> dict[str, str]:
    """Where each file of the artifact stands in the repository."""
    model = content_name(source.content)
    folder = f"{model}/1" if source.model == [MODEL] else f"{model}/1/{MODEL}"
    return {name: f"{folder}/{name}" for name in source.model} | {name: f"{model}/{name}" for name in source.documents}


def _config(content: Manifest) -> Any:
    """The configuration as protobuf's message ``ModelConfig``."""
    made = _model_config()(name=content_name(content), backend="onnxruntime", max_batch_size=0)
    tensors = [("input", one) for one in content["inputs"]] + [("output", one) for one in content["outputs"]]
    for field, described in tensors:
        sizes = [size if isinstance(size, int) else -1 for size in described["shape"]]
        getattr(made, field).add(name=described["name"], data_type=TYPES[described["dtype"]][1], dims=sizes)
    return made


@functools.cache
def _model_config() -> Any:
    """The class of Triton's message ``ModelConfig``, with the fields that we fill."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="segonnx/model_config.proto", package="inference", syntax="proto3")
    types = file.enum_type.add(name="DataType")
    for name, number in (("TYPE_INVALID", 0), *TYPES.values()):
        types.value.add(name=name, number=number)

    def message(name: str, *fields: tuple[str, int, int, str]) -> None:
        made = file.message_type.add(name=name)
        for field, number, kind, of in fields:
            repeated = field in {"dims", "input", "output"}
            label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            made.field.add(name=field, number=number, type=kind, label=label, type_name=of or None)

    text, enum, whole = kinds.TYPE_STRING, kinds.TYPE_ENUM, kinds.TYPE_INT64
    for tensor, dims in (("ModelInput", 4), ("ModelOutput", 3)):
        message(tensor, ("name", 1, text, ""), ("data_type", 2, enum, ".inference.DataType"), ("dims", dims, whole, ""))
    message(
        "ModelConfig",
        ("name", 1, text, ""),
        ("max_batch_size", 4, kinds.TYPE_INT32, ""),
        ("input", 5, kinds.TYPE_MESSAGE, ".inference.ModelInput"),
        ("output", 6, kinds.TYPE_MESSAGE, ".inference.ModelOutput"),
        ("backend", 17, text, ""),
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))
