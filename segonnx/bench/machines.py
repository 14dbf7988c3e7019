"""Results of several machines as one: each machine keeps its own rows, and no figure is of two of them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from segonnx.bench import result
from segonnx.bench.result import Result
from segonnx.core import documents, files
from segonnx.errors import InputError, one_line

SCHEMA_VERSION = 1
MEMORY = 0.05
"""Two machines are of one kind if their memory differs by no more than this: a kernel keeps a little more or less."""
UNKNOWN = "an unknown processor"
_HARDWARE = ("cpu", "architecture", "cores", "logical_cores", "usable_cores", "flags", "virtual")
_NAMED = 3
"""How many flags or versions a title names."""
_LONGEST = 80
"""Letters of a processor's name in a title."""

Machine = Mapping[str, Any]
"""As ``hardware.describe`` gives it."""


@dataclass
class Machines:
    """What a bench gave on several kinds of machine.

    Attributes:
        results: one for each kind.
        warnings: about all of them, such as a machine whose rows are missing.
    """

    results: list[Result]
    warnings: list[str] = field(default_factory=list)

    @property
    def titles(self) -> list[str]:
        """A title for each result's machine, no two alike."""
        return titles([one.machine for one in self.results])

    def families(self) -> dict[str, str]:
        """The families that there are rows of, each with its title, in the catalogue's order."""
        rows = [row for one in self.results for row in one.rows]
        return Result({}, "", rows).families()

    def differing(self) -> list[str]:
        """What rows of one name don't have in common between machines, though they stand side by side: a line each."""
        found: dict[str, None] = {}
        first: dict[Any, tuple[object, str]] = {}
        for title, one in zip(self.titles, self.results, strict=True):
            for row in one.rows:
                counts = row.parameters, row.macs
                for what, value in (("artifact", row.artifact), ("input", row.input_sha256), ("size", counts)):
                    if value is None:  # nobody knows
                        continue
                    known, where = first.setdefault((row.model, row.input_shape, what), (value, title))
                    if value != known and title != where:
                        found[f"{row.model} has another {what} on {title} than on {where}: the work isn't the same"] = (
                            None
                        )
        return [*found]

    def as_dict(self) -> dict[str, Any]:
        """The content of the file."""
        content = [one.as_dict() for one in self.results]
        return {"schema_version": SCHEMA_VERSION, "machines": content, "warnings": self.warnings}

    def write(self, path: Path) -> None:
        """Write the file whole or not at all: as the result of one machine, where there is one and nothing to say.

        Raises:
            ResourceError: it can't be written.
        """
        if len(self.results) == 1 and not self.warnings:
            self.results[0].write(path)
            return
        text = json.dumps(self.as_dict(), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
        files.write(path, text.encode(errors="replace"))


def read(path: Path) -> Machines:
    """The result in a file, of one machine or of several, checked against the schema and against itself.

    Raises:
        InputError: there is none, or it isn't one.
    """
    content = documents.read(path, result.MAX_BYTES)
    if not isinstance(content, dict) or "machines" not in content:
        return Machines([result.parse(content, path)])
    documents.require(content, schema(), path)
    found = [result.parse(one, f"machine {number} in {path}") for number, one in enumerate(content["machines"], 1)]
    rows = [row for one in found for row in one.rows]
    for what, count, most in (
        ("samples", sum(len(row.samples_s) for row in rows), result.MAX_SAMPLES),
        ("rounds", sum(len(row.rounds) for row in rows), result.MAX_ROUNDS),
    ):
        if count > most:
            raise InputError(f"{path} holds {count:,} {what}, more than {most:,}")
    return together([Machines(found, content["warnings"])])


def together(every: Iterable[Machines]) -> Machines:
    """Several results as one. What is of one kind of machine comes together, and nothing else does.

    Raises:
        InputError: two are of one kind of machine, and hold the same row or have other number types.
    """
    groups: list[list[Result]] = []
    warnings: list[str] = []
    for each in every:
        warnings += each.warnings
        for one in each.results:
            known = next((group for group in groups if not unlike(group[0].machine, one.machine)), None)
            if known is None:
                groups.append([one])
            else:
                known.append(one)
    return Machines([merge(group) for group in groups], list(dict.fromkeys(warnings)))


def merge(results: Sequence[Result]) -> Result:
    """Several results of one machine as one, to be shown together; what they share comes from the first.

    Raises:
        InputError: they are of several machines or number types, or two hold the same row.
    """
    first, *others = results
    seen = {(row.case, row.backend) for row in first.rows}
    for other in others:
        if differences := unlike(first.machine, other.machine):
            raise InputError(f"these results are of two machines: {differences[0]}")
        if other.autocast != first.autocast:
            raise InputError("these results can't be shown together: their number types differ")
        for row in other.rows:
            if (row.case, row.backend) in seen:
                raise InputError(
                    f"two of these results hold {row.model} in {row.backend} on {titles([first.machine])[0]}: "
                    "`segonnx compare` holds one against the other"
                )
            seen.add((row.case, row.backend))
    every = [peaks for one in results for peaks in one.roofline_peaks]
    by_threads = {peaks["threads"]: peaks for peaks in reversed(every)}
    overhead: dict[str, float] = {}
    for key in first.overhead:
        values = [one.overhead[key] for one in results if key in one.overhead]
        overhead[key] = max(values) if key.endswith("bytes") else sum(values)
    return replace(
        first,
        rows=[row for one in results for row in one.rows],
        ratios=[ratio for one in results for ratio in one.ratios],
        roofline_peaks=[by_threads[count] for count in sorted(by_threads)],
        overhead=overhead,
        interrupted=any(one.interrupted for one in results),
        warnings=list(dict.fromkeys(warning for one in results for warning in one.warnings)),
    )


def unlike(one: Machine, other: Machine) -> list[str]:
    """What makes two descriptions those of two kinds of machine, in words; empty where they are of one kind."""
    found = other_hardware(one, other)
    if one.get("python") != other.get("python"):
        found.append(f"python was {one.get('python')}, is {other.get('python')}")
    ours, theirs = one["versions"], other["versions"]
    found += [
        f"{name} was {ours.get(name)}, is {theirs.get(name)}"
        for name in sorted({*ours, *theirs})
        if ours.get(name) != theirs.get(name)
    ]
    return found


def other_hardware(one: Machine, other: Machine) -> list[str]:
    """What differs in the hardware of two machines, in words."""
    found = [
        f"{key} was {_text(one.get(key))}, is {_text(other.get(key))}"
        for key in _HARDWARE
        if _fact(one, key) != _fact(other, key)
    ]
    ours, theirs = one.get("memory_bytes", 0), other.get("memory_bytes", 0)
    if abs(ours - theirs) > MEMORY * max(ours, theirs):
        found.append(f"memory was {ours / 1e9:.1f} GB, is {theirs / 1e9:.1f} GB")
    return found


def titles(machines: Sequence[Machine]) -> list[str]:
    """A title for each machine, no two alike: its processor, and what tells it from others of that name."""
    found = [_processor(machine) for machine in machines]
    for tell in (_flags, _memory, _versions):
        for title in [title for title in dict.fromkeys(found) if found.count(title) > 1]:
            places = [place for place, own in enumerate(found) if own == title]
            words = tell([machines[place] for place in places])
            for place, word in zip(places, words if len(set(words)) > 1 else [""] * len(words), strict=True):
                found[place] += word
    for place, title in enumerate(found):
        numbers = itertools.count(2)
        while found[place] in found[:place]:
            found[place] = f"{title} ({next(numbers)})"
    return found


def _processor(machine: Machine) -> str:
    name = one_line(" ".join(str(machine["cpu"]).split()) or UNKNOWN, _LONGEST)
    count = machine["usable_cores"]
    return f"{count} core{'s' if count > 1 else ''} of {name}"


def _flags(alike: Sequence[Machine]) -> list[str]:
    sets = [frozenset(map(str, machine.get("flags", ()))) for machine in alike]
    shared, all_of_them = frozenset.intersection(*sets), frozenset.union(*sets)
    return [
        f", with {_named(own - shared)}" if own - shared else f", without {_named(all_of_them - shared)}"
        for own in sets
    ]


def _memory(alike: Sequence[Machine]) -> list[str]:
    return [f", {machine.get('memory_bytes', 0) / 1e9:.0f} GB" for machine in alike]


def _versions(alike: Sequence[Machine]) -> list[str]:
    every = {name for machine in alike for name in machine["versions"]}
    other = {name for name in every if len({machine["versions"].get(name) for machine in alike}) > 1}
    return [
        ", " + _named({f"{name} {machine['versions'].get(name, 'is missing')}" for name in other}) for machine in alike
    ]


def _named(words: Iterable[str]) -> str:
    first, *others = sorted(words) or [""]
    shown = [one_line(word, _LONGEST) for word in (first, *others[: _NAMED - 1])]
    return " ".join(shown) + (f" and {len(others) - _NAMED + 1} more" if len(others) >= _NAMED else "")


def _fact(machine: Machine, key: str) -> object:
    value = machine.get(key)
    return frozenset(map(str, value)) if isinstance(value, list) else value


def _text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def schema() -> dict[str, Any]:
    """The JSON Schema of a result of several machines, each of which is held against that of a result."""
    content: dict[str, Any] = documents.packaged("segonnx.bench", "machines.schema.json")
    return content
