"""manifest.json: all that a reader of an artifact needs to know, and the hashes that bind its files to it."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from segonnx.artifacts.agreement import compound_contradiction, contradiction
from segonnx.artifacts.layout import CPU_MODEL, MANIFEST, MODEL
from segonnx.core import documents, files, hardware
from segonnx.core.decisions import Decision, of_output
from segonnx.core.pixels import channels_first
from segonnx.errors import InputError, VerifyError

if TYPE_CHECKING:
    import numpy.typing as npt

SCHEMA_VERSION = 2
"""What is written; those of version 1 are read, too."""
MAX_BYTES = 16 * 2**20
"""A larger manifest isn't read."""

Manifest = dict[str, Any]
PrecisionKind = Literal["float32", "float16 storage", "bfloat16 storage", "int8"]
"""What an artifact is: weights and arithmetic in float32, weights stored in 16 bits, or convolutions in int8."""

_LOGGER = logging.getLogger(__name__)


def seal(content: Manifest) -> bytes:
    """The bytes of manifest.json, with a digest of everything else in it under ``digest``."""
    content = {key: value for key, value in content.items() if key != "digest"}
    content["digest"] = hashlib.sha256(_dump(content)).hexdigest()
    return _dump(content)


def sealed(content: Manifest, where: str) -> bytes:
    """The bytes of manifest.json, if every reader takes them.

    Args:
        content: the manifest.
        where: what it is of, for messages.

    Raises:
        InputError: some text or number in it can't be written, or doesn't fit the schema.
    """
    try:
        data = seal(content)
        parse(data, Path(MANIFEST))
    except (ValueError, TypeError, RecursionError) as error:  # half a character, NaN, what is no JSON
        raise InputError(f"{where} can't be written as an artifact: its manifest isn't JSON: {error}") from error
    except VerifyError as error:
        raise InputError(f"{where} can't be written as an artifact: its {error}") from error
    return data


def read(folder: Path) -> Manifest:
    """The manifest of an artifact, checked against its schema, against itself and its own digest.

    Raises:
        VerifyError: there is none, or it isn't as it was written.
        OSError: it can't be read.
    """
    path = folder / MANIFEST
    if path.is_symlink() or not path.is_file():
        raise VerifyError(f"{folder} is no artifact: it has no {MANIFEST}")
    with files.opened(path, follow=False) as file:
        data = file.read(MAX_BYTES + 1)
    return parse(data, path)


def parse(data: bytes, path: Path) -> Manifest:
    """The manifest in these bytes, checked against its schema, against itself and its own digest.

    Args:
        data: the bytes of manifest.json.
        path: the file, for messages.

    Raises:
        VerifyError: it isn't as it was written.
    """
    content = documents.parse(data, path, MAX_BYTES, error=VerifyError)
    try:
        same = isinstance(content, dict) and seal(content) == data
    except (ValueError, RecursionError) as error:  # what only Python takes for text: half characters
        raise VerifyError(f"{path} isn't JSON: {error}") from error
    validate(content)
    if not same:
        raise VerifyError(f"{path} was changed after it was written: its digest doesn't match")
    manifest: Manifest = content
    return manifest


def validate(content: object) -> None:
    """Check a manifest against the schema, and its entries against each other.

    Raises:
        VerifyError: it doesn't fit; the message names the first place.
    """
    if is_compound(content):
        documents.require(content, compound_schema(), MANIFEST, compound_contradiction, error=VerifyError)
    else:
        documents.require(content, schema(), MANIFEST, contradiction, error=VerifyError)


def is_compound(content: object) -> bool:
    """Whether a manifest is that of an ensemble or a task: of a folder that holds artifacts."""
    return isinstance(content, dict) and "members" in content


def is_task(content: object) -> bool:
    """Whether a manifest is that of a task: its artifacts' label maps make one, as task.json says."""
    return isinstance(content, dict) and "members" in content and "task" in content


def is_ensemble(content: object) -> bool:
    """Whether a manifest is that of an ensemble: its artifacts' probabilities are averaged."""
    return is_compound(content) and not is_task(content)


def require_one_network(content: Manifest, folder: Path, what: str) -> None:
    """Refuse an ensemble and a task.

    Args:
        content: the manifest.
        folder: the artifact, for the message.
        what: takes one network, for the message.

    Raises:
        InputError: it is one of these.
    """
    if is_compound(content):
        kind = "a task" if is_task(content) else "an ensemble"
        members = ", ".join(str(folder / member["folder"]) for member in content["members"])
        raise InputError(f"{folder} is {kind}, and {what} takes one network: give a member, of {members}")


def gives_labels(content: Manifest) -> bool:
    """Whether the model gives labels (N, spatial...) instead of logits (N, classes, spatial...)."""
    return bool(content["outputs"][0].get("kind") == "labels")


def precision(content: Manifest) -> PrecisionKind:
    """What an artifact holds its weights in."""
    if "quantization" in content:
        return "int8"
    kinds: dict[str, PrecisionKind] = {"float16": "float16 storage", "bfloat16": "bfloat16 storage"}
    return kinds.get(content["weights"].get("storage", {}).get("dtype"), "float32")


def cpu_model(content: Manifest) -> str:
    """The file of the graph for ONNX Runtime's CPU provider."""
    return CPU_MODEL if "cpu_graph" in content else MODEL


def fastest_model(content: Manifest) -> str:
    """The file of the graph that is fastest in ONNX Runtime on this processor."""
    graph = content.get("cpu_graph", {})
    made_for = graph.get("blocks")
    if made_for is None or made_for["cpu"] == hardware.blocks():
        return cpu_model(content)
    if set(made_for["rewrites"]) == set(graph["rewrites"]):
        return MODEL  # nothing else was rewritten, and that loses here
    _LOGGER.warning(
        "%s was rewritten for processors with %s, and this one has none: export with --cpu native for it",
        content["name"],
        made_for["cpu"].upper().replace("AVX", "AVX-"),
    )
    return cpu_model(content)


def models(content: Manifest) -> tuple[str, ...]:
    """The files of the graphs."""
    return tuple(dict.fromkeys((MODEL, cpu_model(content))))


def image_shape(content: Manifest) -> list[int | str]:
    """The shape of the image that the model takes, as (N, C, spatial...) whatever the order of its axes is."""
    image = content["inputs"][0]
    return channels_first(image["shape"], image.get("layout"))


def checked_shape(content: Manifest) -> list[int]:
    """The shape of the first image that the model was checked on, as (N, C, spatial...)."""
    return channels_first(content["parity"]["inputs"][0]["shape"], content["inputs"][0].get("layout"))


def positions(content: Manifest, image: npt.NDArray[Any]) -> int:
    """How many pixels or voxels an image of the model's input has; 0 of what has no channels."""
    shape = channels_first(image.shape, content["inputs"][0].get("layout")) if image.ndim > 1 else []
    return image.size // shape[1] if image.size and shape else 0


def given_rule(content: Manifest) -> Decision:
    """How labels follow from what the model gives, logits or probabilities (N, classes, spatial...)."""
    return of_output(content["outputs"][0], regions=content.get("inference", {}).get("regions", False))


def schema() -> dict[str, Any]:
    """The JSON Schema of manifest.json."""
    result: dict[str, Any] = documents.packaged("segonnx.artifacts", "manifest.schema.json")
    return result


def compound_schema() -> dict[str, Any]:
    """The JSON Schema of the manifest.json of an ensemble or a task."""
    result: dict[str, Any] = documents.packaged("segonnx.artifacts", "compound.schema.json")
    return result


def _dump(content: Manifest) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
