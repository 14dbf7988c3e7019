"""Puts what programs measured into the documents, between marks that say what made it.

    python -m benchmarks.docs ARTIFACTS

ARTIFACTS is the folder that `make reference-systems` made; the parity of each artifact goes into docs/checks.md.

A block looks like this, and `stale` finds those whose program has moved on since:

    <!-- NAME: made by PROGRAM, program version N, segonnx X.Y.Z, MACHINE -->
    ...
    <!-- /NAME -->
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from segonnx import __version__
from segonnx.core import hardware
from segonnx.sources import catalog

ROOT = Path(__file__).parents[1]
BLOCK_VERSION = 2
"""Raised when what this program writes, or measures, changes. Every program that writes blocks has one."""

_OPEN = re.compile(r"^<!-- (?P<mark>[\w-]+): (?P<how>[^>]*) -->$", re.MULTILINE)
_MADE = re.compile(
    r"made by (?P<program>[\w.]+), program version (?P<version>\d+), segonnx (?P<segonnx>[\w.+-]+), (?P<machine>.+)"
)


@dataclass(frozen=True)
class Block:
    """A generated block of a document.

    Attributes:
        path: the document.
        mark: the block's name.
        program: the module that made it; empty where the mark doesn't tell.
        version: the ``BLOCK_VERSION`` that it had; None where the mark doesn't tell.
    """

    path: Path
    mark: str
    program: str
    version: int | None


def main() -> None:
    put_block(ROOT / "docs" / "checks.md", "parity", parity(Path(sys.argv[1])), "benchmarks.docs")


def parity(artifacts: Path) -> str:
    """The parity of the reference systems in a folder, of either graph, with what computed it, as a table."""
    manifests = [json.loads((artifacts / name / "manifest.json").read_text("utf-8")) for name in catalog.names()]
    producer = manifests[0]["producer"]
    lines = [
        f"{machine()}, torch {producer['torch']}, onnxruntime {producer['onnxruntime']}:",
        "",
        "| artifact | input | largest error | RMS error | same label |",
        "|---|---|---|---|---|",
    ]
    for manifest in sorted(manifests, key=lambda manifest: manifest["parameters"]["count"]):
        inputs = manifest["parity"]["inputs"]
        rows = [(f"{found['kind']} {'x'.join(map(str, found['shape']))}", found) for found in inputs]
        if "cpu_graph" in manifest:
            rows.append(("the worst of them, rewritten graph", manifest["cpu_graph"]["parity"]))
        for what, found in rows:
            errors = f"{found['max_rel_error']:.1e} | {found['rms_rel_error']:.1e}"
            lines.append(f"| {manifest['name']} | {what} | {errors} | {100 * found['label_agreement']:.4f} % |")
    return "\n".join(lines)


def machine() -> str:
    """This machine in a few words."""
    described = hardware.describe()
    return f"{described['usable_cores']} cores of {described['cpu']}"


def content(path: Path, mark: str) -> str:
    """What stands between a document's two marks of a name; empty where it has none."""
    found = re.search(
        rf"<!-- {re.escape(mark)}: [^>]* -->\n(.*?)<!-- /{re.escape(mark)} -->", path.read_text("utf-8"), re.DOTALL
    )
    return "" if found is None else found[1]


def put_block(path: Path, mark: str, content: str, program: str, where: str | None = None) -> None:
    """Put a text between a document's two marks of a name, with what made it in the first one.

    Args:
        path: the document.
        mark: the block's name.
        content: what is put there.
        program: the module that made it, which has a ``BLOCK_VERSION``.
        where: the machine that it was measured on; None is this one.

    Raises:
        ValueError: the document has no such marks, or several.
    """
    how = f"made by {program}, program version {version_of(program)}, segonnx {__version__}, {where or machine()}"
    pattern = rf"<!-- {re.escape(mark)}: [^>]* -->\n.*?<!-- /{re.escape(mark)} -->"
    made = f"<!-- {mark}: {how.replace('>', '')} -->\n{content.strip(chr(10))}\n<!-- /{mark} -->"
    replaced, count = re.subn(pattern, lambda _: made, path.read_text("utf-8"), flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"{path} has {count} blocks called {mark}, and must have one")
    path.write_text(replaced, "utf-8")


def version_of(program: str) -> int:
    """The ``BLOCK_VERSION`` in a program's source, which isn't run for it.

    Raises:
        ValueError: it has none.
    """
    source = (ROOT / f"{program.replace('.', '/')}.py").read_text("utf-8")
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["BLOCK_VERSION"]:
            return int(ast.literal_eval(node.value))
    raise ValueError(f"{program} has no BLOCK_VERSION")


def blocks(path: Path) -> Iterator[Block]:
    """The generated blocks of a document: all that begin with a mark and end with another of the name."""
    text = path.read_text("utf-8")
    for found in _OPEN.finditer(text):
        if f"<!-- /{found['mark']} -->" in text:
            made = _MADE.fullmatch(found["how"])
            program, version = (made["program"], int(made["version"])) if made else ("", None)
            yield Block(path, found["mark"], program, version)


def stale(paths: list[Path]) -> list[str]:
    """A line for every block whose mark doesn't say what made it, or whose program has another version now."""
    found = []
    for block in (block for path in paths for block in blocks(path)):
        name = f"{block.path.name}: {block.mark}"
        if block.version is None:
            found.append(f"{name} doesn't say what made it")
        elif (now := version_of(block.program)) != block.version:
            found.append(f"{name} was made by version {block.version} of {block.program}, which has version {now}")
    return found


def pages() -> list[Path]:
    """The documents that may hold blocks."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


if __name__ == "__main__":
    main()
