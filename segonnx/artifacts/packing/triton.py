"""Packs an artifact into a model repository of Triton Inference Server, for its ONNX Runtime backend.

The layout is that of "Model Repository" in Triton's user guide: ``NAME/config.pbtxt`` and ``NAME/1/model.onnx``. The
latter is a folder if the model has external data. Where the instances are to run on CPUs, and the artifact has a graph
for those, it lies in ``NAME/1`` with all its data, and the configuration names it. The fields of the configuration,
with their names and numbers, are those of ``model_config.proto`` in https://github.com/triton-inference-server/common;
protobuf writes them as text.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from segonnx.artifacts import layout
from segonnx.artifacts.layout import CPU_MODEL, MODEL
from segonnx.artifacts.manifest import Manifest
from segonnx.artifacts.packing import contents
from segonnx.artifacts.packing.contents import Source
from segonnx.artifacts.packing.serving import Serving
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
KINDS = {"auto": ("KIND_AUTO", 0), "gpu": ("KIND_GPU", 1), "cpu": ("KIND_CPU", 2)}
"""The name and the number of each kind of instance in Triton's ``ModelInstanceGroup.Kind``; ``auto`` is its default."""
_CONFIG = "config.pbtxt"
MAX_NAME = 200
"""The most bytes of a model's name, which is a folder's."""


def write(source: Source, out: Path, progress: Progress) -> None:
    """Write a verified artifact as the repository ``out``, with the manifest and the card beside the model."""
    for name, place in _places(source).items():
        progress(f"packing {name}")
        source.copy(name, out / place)
    (out / content_name(source.content) / _CONFIG).write_bytes(config(source.content, source.serving).encode())


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
    data = (f"/1/{MODEL}/{MODEL}.data", f"/1/{MODEL}.data", f"/1/{CPU_MODEL}")
    known = {f"{name}{path}" for path in (*inside, *data)}
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
    if text_format.Parse(text, _model_config()()) != _config(source.content, source.serving):
        raise contents.unlike(out, f"{place} says something else")


def content_name(content: Manifest) -> str:
    """The name in the manifest, with every character replaced that a path or a URL can't hold."""
    plain = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in content["name"])
    return plain.encode()[:MAX_NAME].decode(errors="ignore").strip(".") or "model"


def config(content: Manifest, serving: Serving | None = None) -> str:
    """The text of config.pbtxt.

    Args:
        content: the artifact's manifest.
        serving: what the user says of batches and instances.

    Raises:
        InputError: that doesn't go with the artifact.
    """
    from google.protobuf import text_format

    text: str = text_format.MessageToString(_config(content, serving or Serving()), use_short_repeated_primitives=True)
    return text


def _places(source: Source) -> dict[str, str]:
    """Where each file of the artifact stands in the repository."""
    model = content_name(source.content)
    files, folder = source.model, f"{model}/1"
    if _takes_cpu_model(source.content, source.serving):
        files = [*files, CPU_MODEL]
    elif source.model != [MODEL]:
        folder += f"/{MODEL}"
    return {name: f"{folder}/{name}" for name in files} | {name: f"{model}/{name}" for name in source.documents}


def _takes_cpu_model(content: Manifest, serving: Serving) -> bool:
    return serving.kind == "cpu" and "cpu_graph" in content


def _config(content: Manifest, serving: Serving) -> Any:
    """The configuration as protobuf's message ``ModelConfig``.

    Where Triton forms batches, it takes the first axis of every tensor for the batch, and the configuration leaves it
    out. A tensor with no other axis then has one of size 1 for clients, which ``reshape`` takes away for the model.
    """
    batch = serving.largest_batch(content)
    made = _model_config()(name=content_name(content), backend="onnxruntime", max_batch_size=batch)
    tensors = [("input", one) for one in content["inputs"]] + [("output", one) for one in content["outputs"]]
    for field, described in tensors:
        sizes = [size if isinstance(size, int) else -1 for size in described["shape"]][1 if batch else 0 :]
        data_type = TYPES[described["dtype"]][1]
        tensor = getattr(made, field).add(name=described["name"], data_type=data_type, dims=sizes or [1])
        if not sizes:
            tensor.reshape.SetInParent()
    if _takes_cpu_model(content, serving):
        made.default_model_filename = CPU_MODEL
    if serving.instances is not None or serving.kind is not None:
        # Without a count, Triton makes two on a CPU.
        made.instance_group.add(count=serving.instances or 1, kind=KINDS[serving.kind or "auto"][1])
    if batch > 1 or serving.preferred:
        made.dynamic_batching.SetInParent()
        made.dynamic_batching.preferred_batch_size.extend(sorted(serving.preferred))
    return made


_REPEATED = frozenset({"dims", "input", "output", "shape", "instance_group", "preferred_batch_size"})


@functools.cache
def _model_config() -> Any:
    """The class of Triton's message ``ModelConfig``, with the fields that we fill."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="segonnx/model_config.proto", package="inference", syntax="proto3")
    for enumeration, values in (("DataType", [("TYPE_INVALID", 0), *TYPES.values()]), ("Kind", KINDS.values())):
        made = file.enum_type.add(name=enumeration)
        for name, number in values:
            made.value.add(name=name, number=number)

    def message(name: str, *fields: tuple[str, int, int, str]) -> None:
        made = file.message_type.add(name=name)
        for field, number, kind, of in fields:
            label = kinds.LABEL_REPEATED if field in _REPEATED else kinds.LABEL_OPTIONAL
            named = f".inference.{of}" if of else None
            made.field.add(name=field, number=number, type=kind, label=label, type_name=named)

    text, enum, whole, inner = kinds.TYPE_STRING, kinds.TYPE_ENUM, kinds.TYPE_INT64, kinds.TYPE_MESSAGE
    short = kinds.TYPE_INT32
    message("ModelTensorReshape", ("shape", 1, whole, ""))
    for tensor, dims in (("ModelInput", 4), ("ModelOutput", 3)):
        reshape = ("reshape", 5, inner, "ModelTensorReshape")
        message(tensor, ("name", 1, text, ""), ("data_type", 2, enum, "DataType"), ("dims", dims, whole, ""), reshape)
    message("ModelInstanceGroup", ("count", 2, short, ""), ("kind", 4, enum, "Kind"))
    message("ModelDynamicBatching", ("preferred_batch_size", 1, short, ""))
    message(
        "ModelConfig",
        ("name", 1, text, ""),
        ("max_batch_size", 4, short, ""),
        ("default_model_filename", 8, text, ""),
        ("input", 5, inner, "ModelInput"),
        ("output", 6, inner, "ModelOutput"),
        ("instance_group", 7, inner, "ModelInstanceGroup"),
        ("dynamic_batching", 11, inner, "ModelDynamicBatching"),
        ("backend", 17, text, ""),
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))
