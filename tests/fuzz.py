"""Documents that a JSON Schema allows, made from a real one: values at the schema's bounds and beyond good sense.

A document is changed in a few places, and kept if it still fits the schema. What the schema doesn't say, such as how
entries go together, isn't heeded: readers must refuse that by themselves.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping
from typing import Any

from segonnx.core import documents

Schema = Mapping[str, Any]

TEXTS = (
    "", "a", ".", "..", ".nii.gz", "x" * 99, "x" * 300, "x" * 4000, "../../x", "/etc/passwd", "<script>", "a|b`c`",
    "\u202etxt.exe", "\x1b[2J", "zwei Wörter", "\u65e5\u672c", "{0}%s", "a\nb", "ok", "eager", "CTNormalization",
    "ZScoreNormalization", "float32", "0" * 64, "2026-01-01T00:00:00Z", "[/]", "-1", "None", "batch",
)  # fmt: skip
INTEGERS = (0, 1, 2, 3, 5, 7, 64, 255, 256, 1023, 32767, 65535, 65536, 10**6, 2**31 - 1, 2**31, 2**53, 2**63 - 1, -1)
NUMBERS = (0, 1, 0.5, 1e-12, 1e-6, 1e-3, 0.01, 0.125, 1e3, 1e6, 1e12, 1e18, 1e30, -1.0, -1e30, 5e-324, 1.7e308)
LONGEST = 40
"""Items of a list that is made, where the schema asks for no more."""
CHANGES = 3


def changed(document: Any, schema: Schema, rng: random.Random) -> Any:
    """A copy of a document that fits a schema, changed in a few places so that it still does."""
    for _ in range(100):
        found = copy.deepcopy(document)
        for _ in range(rng.randint(1, CHANGES)):
            _change(found, schema, rng)
        if found != document and documents.misfit(found, schema) is None:
            return found
    raise AssertionError("no change of the document fits its schema")


def _change(document: Any, schema: Schema, rng: random.Random) -> None:
    place, key, inner = rng.choice([*_places(document, schema, schema)])
    kind = rng.random()
    if kind < 0.12:
        del place[key]
    elif kind < 0.2 and isinstance(place, list):
        place.insert(key, copy.deepcopy(place[key]))
    elif kind < 0.27 and isinstance(place, list):
        rng.shuffle(place)
    elif kind < 0.35 and isinstance(place, dict):
        other = rng.choice([*place])
        place[key], place[other] = place[other], place[key]
    elif kind < 0.42 and isinstance(place, dict):
        place[rng.choice(TEXTS)] = place[key]
    else:
        place[key] = _value(inner, schema, rng, place[key])


def _places(document: Any, schema: Schema, root: Schema) -> Iterator[tuple[Any, Any, Schema]]:
    """Every value in a document: what holds it, under which key, and the schema of it."""
    schema = _resolved(schema, root, document)
    if isinstance(document, dict):
        others = schema.get("additionalProperties", {})
        schemas = {key: schema.get("properties", {}).get(key, others) for key in document}
    elif isinstance(document, list):
        first = dict(enumerate(schema.get("prefixItems", ())))
        schemas = {number: first.get(number, schema.get("items", {})) for number in range(len(document))}
    else:
        return
    for key, said in schemas.items():
        inner = said if isinstance(said, dict) else {}
        yield document, key, inner
        yield from _places(document[key], inner, root)


def _resolved(schema: Schema, root: Schema, value: Any = None) -> Schema:
    """A schema with what it refers to, and the first alternative that fits the value."""
    while "$ref" in schema:
        target: Any = root
        for part in schema["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        more = {key: inner for key, inner in schema.items() if key != "$ref"}
        properties = {**target.get("properties", {}), **more.get("properties", {})}
        schema = {**target, **more, **({"properties": properties} if properties else {})}
    for alternative in schema.get("anyOf", ()):
        if documents.misfit(value, {**alternative, "$defs": root.get("$defs", {})}) is None:
            rest = {key: inner for key, inner in schema.items() if key != "anyOf"}
            return {**rest, **_resolved(alternative, root, value)}
    return schema


def _value(schema: Schema, root: Schema, rng: random.Random, like: Any = None, depth: int = 0) -> Any:
    """A value that a schema allows, as far as that is easily told.

    Args:
        schema: of the value.
        root: what its references are into.
        rng: decides.
        like: what stood there before.
        depth: of lists and objects around it.
    """
    if "anyOf" in schema and "$ref" not in schema:
        return _value(rng.choice(schema["anyOf"]), root, rng, like, depth)
    schema = _resolved(schema, root)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return rng.choice(schema["enum"])
    kinds = schema.get("type", ["string", "integer", "number", "boolean", "null"])
    kind = rng.choice([kinds] if isinstance(kinds, str) else kinds)
    if kind == "string":
        fitting = [text for text in TEXTS if documents.misfit(text, {**schema, "$defs": root.get("$defs", {})}) is None]
        return rng.choice(fitting) if fitting else like
    if kind in ("integer", "number"):
        return _number(schema, kind, rng)
    if kind == "boolean":
        return rng.random() < 0.5
    if kind == "null" or depth > 4:
        return None
    if kind == "array":
        low, high = schema.get("minItems", 0), schema.get("maxItems", LONGEST)
        count = rng.choice([low, min(high, low + 1), min(high, low + 3), max(low, min(high, LONGEST))])
        return [_value(schema.get("items", {}), root, rng, None, depth + 1) for _ in range(count)]
    known = schema.get("properties", {})
    keys = [*schema.get("required", ()), *(key for key in known if rng.random() < 0.5)]
    result = {key: _value(known.get(key, {}), root, rng, None, depth + 1) for key in dict.fromkeys(keys)}
    others = schema.get("additionalProperties", {})
    if isinstance(others, dict):
        for _ in range(rng.randint(0, 2)):
            result[rng.choice(TEXTS)] = _value(others, root, rng, None, depth + 1)
    return result


def _number(schema: Schema, kind: str, rng: random.Random) -> float:
    low = schema.get("minimum", schema.get("exclusiveMinimum", -1e30))
    high = schema.get("maximum", 2**63 - 1 if kind == "integer" else 1e30)
    pool = [low, high, *(INTEGERS if kind == "integer" else NUMBERS)]
    fitting = [number for number in pool if low <= number <= high and number != schema.get("exclusiveMinimum")]
    chosen = rng.choice(fitting or [low])
    return int(chosen) if kind == "integer" else chosen
