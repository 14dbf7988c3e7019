"""JSON that somebody else may have written: bounded in size, plain numbers alone, held against a schema."""

from __future__ import annotations

import functools
import importlib.resources
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segonnx.core import files
from segonnx.errors import InputError, SegonnxError

Schema = Mapping[str, Any]


def read(path: Path, max_bytes: int, *, error: type[SegonnxError] = InputError) -> Any:
    """The content of a JSON file.

    Args:
        path: the file.
        max_bytes: a larger file isn't read.
        error: what to raise.

    Raises:
        SegonnxError: as ``error`` says: the file can't be read, is too large, or isn't JSON.
    """
    try:
        with files.opened(path) as file:
            data = file.read(max_bytes + 1)
    except OSError as failure:
        raise error(f"{path} can't be read: {failure.strerror}") from failure
    return parse(data, path, max_bytes, error=error)


def parse(data: bytes, where: Path | str, max_bytes: int, *, error: type[SegonnxError] = InputError) -> Any:
    """The content of JSON in memory.

    Args:
        data: UTF-8.
        where: what it is, for messages.
        max_bytes: more isn't read.
        error: what to raise.

    Raises:
        SegonnxError: as ``error`` says: there is too much, or it isn't JSON. Python's own NaN and Infinity aren't.
    """
    if len(data) > max_bytes:
        raise error(f"{where} is larger than {max_bytes:,} bytes")
    try:
        return json.loads(data, parse_constant=_refuse)
    except (ValueError, RecursionError) as failure:
        raise error(f"{where} isn't JSON: {failure}") from failure


def require(content: object, schema: Schema, where: Path | str, *, error: type[SegonnxError] = InputError) -> None:
    """Hold a document against a JSON Schema.

    Args:
        content: what the document holds.
        schema: a JSON Schema of draft 2020-12.
        where: what it is, for messages.
        error: what to raise.

    Raises:
        SegonnxError: as ``error`` says: it doesn't fit; the message names the first place.
    """
    if (wrong := misfit(content, schema)) is not None:
        raise error(f"{where} doesn't fit its schema at {wrong}")


def misfit(content: object, schema: Schema) -> str | None:
    """The first place where a document doesn't fit a JSON Schema, and why; None if it fits."""
    import jsonschema

    wrong = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(content))
    if wrong is None:
        return None
    message = wrong.message if len(wrong.message) <= 200 else f"{wrong.message[:200]}..."
    return f"{'/'.join(map(str, wrong.absolute_path)) or 'its top'}: {' '.join(message.split())}"


@functools.cache
def packaged(package: str, name: str) -> Any:
    """The content of a JSON file that comes with the package, such as a schema.

    Args:
        package: dotted name of the package that holds it.
        name: the file's.
    """
    return json.loads(importlib.resources.files(package).joinpath(name).read_text("utf-8"))


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")
