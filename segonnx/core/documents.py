"""JSON that somebody else may have written: bounded in size and depth, whole text and finite numbers alone, held
against a schema and against itself.
"""

from __future__ import annotations

import functools
import importlib.resources
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from segonnx.core import files
from segonnx.errors import InputError, SegonnxError

Schema = Mapping[str, Any]
Contradiction = Callable[[Any], str | None]
"""What a document that fits its schema says against itself, which JSON Schema has no words for; None where nothing."""

MAX_DEPTH = 64
"""Of lists and objects in each other."""
MAX_INTEGER = 2**63 - 1
"""The largest whole number, either side of 0: other programs read no larger one, and a float holds it."""
_ERRORS = 20
"""The misfits of which the most telling is named: a large document may have millions."""


def read(
    path: Path,
    max_bytes: int,
    *,
    error: type[SegonnxError] = InputError,
    constant: Callable[[str], object] | None = None,
) -> Any:
    """The content of a JSON file.

    Args:
        path: the file.
        max_bytes: a larger file isn't read.
        error: what to raise.
        constant: what stands for Python's own NaN, Infinity and -Infinity, by these names; without it they are refused.

    Raises:
        SegonnxError: as ``error`` says: the file can't be read, is too large, or isn't JSON.
    """
    try:
        with files.opened(path) as file:
            data = file.read(max_bytes + 1)
    except OSError as failure:
        raise error(f"{path} can't be read: {failure.strerror}") from failure
    return parse(data, path, max_bytes, error=error, constant=constant)


def parse(
    data: bytes,
    where: Path | str,
    max_bytes: int,
    *,
    error: type[SegonnxError] = InputError,
    constant: Callable[[str], object] | None = None,
) -> Any:
    """The content of JSON in memory.

    Args:
        data: UTF-8.
        where: what it is, for messages.
        max_bytes: more isn't read.
        error: what to raise.
        constant: what stands for Python's own NaN, Infinity and -Infinity, by these names; without it they are refused.

    Raises:
        SegonnxError: as ``error`` says: there is too much, or it isn't JSON. What only Python takes for JSON isn't:
            NaN, Infinity, numbers too large for a float or for 64 bits, and halves of characters.
    """
    if len(data) > max_bytes:
        raise error(f"{where} is larger than {max_bytes:,} bytes")
    try:
        content = json.loads(data, parse_constant=constant or _refuse)
    except (ValueError, RecursionError) as failure:
        raise error(f"{where} isn't JSON: {failure}") from failure
    if (wrong := _unreadable(content)) is not None:
        raise error(f"{where} isn't JSON that every program reads: it holds {wrong}")
    return content


def require(
    content: object,
    schema: Schema,
    where: Path | str,
    contradiction: Contradiction | None = None,
    *,
    error: type[SegonnxError] = InputError,
) -> None:
    """Hold a document against a JSON Schema.

    Args:
        content: what the document holds.
        schema: a JSON Schema of draft 2020-12.
        where: what it is, for messages.
        contradiction: asked of a document that fits.
        error: what to raise.

    Raises:
        SegonnxError: as ``error`` says: it doesn't fit; the message names the first place.
    """
    if (wrong := misfit(content, schema, contradiction)) is not None:
        raise error(f"{where} doesn't fit its schema at {wrong}")


def misfit(content: object, schema: Schema, contradiction: Contradiction | None = None) -> str | None:
    """The first place where a document doesn't fit a JSON Schema, and why; None if it fits.

    8.0 is no integer here, and a pattern's ``$`` is the end: not what stands before a last line break.

    Args:
        content: what the document holds.
        schema: a JSON Schema of draft 2020-12.
        contradiction: asked of a document that fits.
    """
    import jsonschema

    errors = itertools.islice(_validator()(schema).iter_errors(content), _ERRORS)
    wrong = jsonschema.exceptions.best_match(errors)
    if wrong is None:
        return None if contradiction is None else contradiction(content)
    message = wrong.message if len(wrong.message) <= 200 else f"{wrong.message[:200]}..."
    place = "/".join(str(key) if isinstance(key, int) else repr(key[:80])[1:-1] for key in wrong.absolute_path)
    return f"{place or 'its top'}: {' '.join(message.split())}"


@functools.cache
def _validator() -> Any:
    import jsonschema

    base = jsonschema.Draft202012Validator
    whole = base.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
    extend: Any = jsonschema.validators.extend  # which has no types
    return extend(base, {"pattern": _pattern}, type_checker=whole)


def _pattern(_validator: object, pattern: str, value: object, _schema: object) -> Iterator[Any]:
    """JSON Schema's ``pattern``. Python's ``$`` alone would pass a line break behind the text."""
    import jsonschema

    if isinstance(value, str) and re.search(re.sub(r"\$$", r"\\Z", pattern), value) is None:
        yield jsonschema.ValidationError(f"{value!r} does not match {pattern!r}")


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


def _unreadable(content: object) -> str | None:
    """The first thing in a document that some programs can't read, in words; None where there is none."""
    left = [(content, 0)]
    while left:
        value, depth = left.pop()
        wrong = None
        if isinstance(value, dict | list):
            if depth == MAX_DEPTH:
                return f"more than {MAX_DEPTH} lists and objects in each other"
            inner = [*value, *value.values()] if isinstance(value, dict) else value
            left += [(item, depth + 1) for item in inner]
        elif isinstance(value, str):
            wrong = None if _is_whole(value) else "half a character"
        elif isinstance(value, float):
            wrong = None if math.isfinite(value) else "a number too large for a float"
        elif isinstance(value, int):
            wrong = None if abs(value) <= MAX_INTEGER else "a whole number of more than 64 bits"
        if wrong is not None:
            return wrong
    return None


def _is_whole(text: str) -> bool:
    """Whether a text has no halves of characters, which no file of UTF-8 holds."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False
