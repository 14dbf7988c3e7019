"""manifest.json: all that a reader of an artifact needs to know, and the hashes that bind its files to it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from segonnx.artifacts.layout import MANIFEST
from segonnx.core import documents, files
from segonnx.errors import VerifyError

SCHEMA_VERSION = 1
MAX_BYTES = 16 * 2**20
"""A larger manifest isn't read."""

Manifest = dict[str, Any]


def seal(content: Manifest) -> bytes:
    """The bytes of manifest.json, with a digest of everything else in it under ``digest``."""
    content = {key: value for key, value in content.items() if key != "digest"}
    content["digest"] = hashlib.sha256(_dump(content)).hexdigest()
    return _dump(content)


def read(folder: Path) -> Manifest:
    """The manifest of an artifact, checked against its schema and its own digest.

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
    """The manifest in these bytes, checked against its schema and its own digest.

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
    """Check a manifest against the schema.

    Raises:
        VerifyError: it doesn't fit; the message names the first place.
    """
    documents.require(content, schema(), MANIFEST, error=VerifyError)


def misfit(content: object, entry: str | None = None) -> str | None:
    """The first place where a manifest, or an entry of one, doesn't fit the schema, and why; None if it fits."""
    return documents.misfit(content, schema() if entry is None else schema()["properties"][entry])


def gives_labels(content: Manifest) -> bool:
    """Whether the model gives labels (N, spatial...) instead of logits (N, classes, spatial...)."""
    return bool(content["outputs"][0].get("kind") == "labels")


def schema() -> dict[str, Any]:
    """The JSON Schema of manifest.json."""
    result: dict[str, Any] = documents.packaged("segonnx.artifacts", "manifest.schema.json")
    return result


def _dump(content: Manifest) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
