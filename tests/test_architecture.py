"""Rooms import one way; see docs/decisions/0001."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

import segonnx

PACKAGE = Path(segonnx.__file__).parent

ROOMS: dict[str, set[str]] = {
    "__main__": {"cli"},
    "__init__": {"exporters", "quantization", "predict", "artifacts", "core"},
    "cli": {"commands", "core"},
    "commands": {
        "report", "bench", "exporters", "quantization", "runtimes", "predict", "optimize", "models", "artifacts",
        "sources", "core",
    },
    "report": {"bench", "predict", "core"},
    "bench": {"runtimes", "artifacts", "sources", "core"},
    "exporters": {"optimize", "models", "artifacts", "sources", "core"},
    "quantization": {"predict", "optimize", "artifacts", "core"},
    "runtimes": {"artifacts", "core"},
    "predict": {"artifacts", "dicom", "core"},
    "optimize": {"core"},
    "models": {"sources", "core"},
    "artifacts": {"core"},
    "dicom": {"core"},
    "sources": {"core"},
    "core": set(),
}  # fmt: skip
"""Each room, from the top down, with the rooms below it that it may import."""

FLOOR = {"errors", "_version"}
"""What every room may import; these two import nothing of the package."""

EXCEPTIONS: dict[tuple[str, str], str] = {
    ("artifacts", "optimize.stable_instance_norm"): "verify replays a graph as export ran it, with norms that are exact"
}
"""Arrows that the table doesn't allow, (importing file's room, imported module), and why each stays."""

TOP = {"__init__.py", "__main__.py", "_version.py", "cli.py", "errors.py", "py.typed"}
"""The files of the package that are in no room."""

WITHOUT_TORCH = ("artifacts", "dicom", "runtimes", "bench", "report", "predict", "quantization")
"""The rooms that run without the export extra."""


class Arrow(NamedTuple):
    """One import: the file it stands in, its line, and the module that is imported, both below the package."""

    importer: str
    line: int
    imported: str

    @property
    def ends(self) -> tuple[str, str]:
        return self.importer.partition(".")[0], self.imported.partition(".")[0]


def arrows(package: Path) -> Iterator[Arrow]:
    """Every import of the package's own modules in its files, wherever it stands: also in functions and under ifs."""
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        # A folder's __init__ is the folder; the package's own is a room of its own.
        importer = ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            for name in _imported(node, path, package):
                yield Arrow(importer, node.lineno, name)  # type: ignore[attr-defined]


def _imported(node: ast.AST, path: Path, package: Path) -> Iterator[str]:
    """What one statement imports of the package, as dotted names below it."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        here = [package.name, *path.relative_to(package).parent.parts]
        base = here[: len(here) - node.level + 1] if node.level else []
        origin = ".".join([*base, *([node.module] if node.module else [])])
        names = [f"{origin}.{alias.name}" for alias in node.names]
    else:
        return
    for name in names:
        root, _, inner = name.partition(".")
        if root == package.name:
            room = inner.partition(".")[0]
            known = (package / room).is_dir() or (package / f"{room}.py").is_file()
            yield inner if room and known else "__init__"  # a name that the package itself holds


def wrong(package: Path, exceptions: Mapping[tuple[str, str], str]) -> list[str]:
    """The arrows that neither the table nor an exception allows, and the exceptions that no arrow needs."""
    found, needed = [], set()
    for arrow in arrows(package):
        importer, imported = arrow.ends
        if importer == imported or imported in FLOOR | ROOMS.get(importer, set()):
            continue
        excused = {
            exception
            for exception in exceptions
            if exception[0] == importer and f"{arrow.imported}.".startswith(f"{exception[1]}.")
        }
        needed |= excused
        if not excused:
            found.append(f"{arrow.importer}:{arrow.line} imports {arrow.imported}")
    idle = [f"the exception {room} -> {module} is needed no more" for room, module in exceptions.keys() - needed]
    return found + sorted(idle)


def test_rooms_import_only_what_stands_below_them() -> None:
    assert wrong(PACKAGE, EXCEPTIONS) == []


def test_the_table_runs_one_way() -> None:
    order = list(ROOMS)
    for room, below in ROOMS.items():
        assert all(order.index(other) > order.index(room) for other in below), room


def test_every_folder_is_a_room_and_no_file_is_loose() -> None:
    entries = [path for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    assert {path.name for path in entries if path.is_dir()} == ROOMS.keys() - {"__main__", "__init__", "cli"}
    assert {path.name for path in entries if path.is_file()} == TOP


MADE_UP = {
    "at the top": ("sources/x.py", "from segonnx.models import checkpoints\n", "models.checkpoints"),
    "in a function": ("core/x.py", "def f():\n    from segonnx.artifacts.verify import verify\n", "artifacts.verify"),
    "under TYPE_CHECKING": (
        "artifacts/x.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from segonnx.bench import result\n",
        "bench.result",
    ),
    "import of a module": ("models/x.py", "import segonnx.exporters.pipeline as p\n", "exporters.pipeline"),
    "from the package": ("optimize/x.py", "from segonnx import models\n", "models"),
    "of the public face": ("predict/x.py", "import segonnx\n", "__init__"),
    "of a name of the public face": ("predict/x.py", "from segonnx import export\n", "__init__"),
    "relative": ("artifacts/packing/x.py", "from ...runtimes import ort\n", "runtimes.ort"),
    "of a neighbour": ("runtimes/x.py", "from segonnx.predict import config\n", "predict.config"),
    "in a room's __init__": ("models/__init__.py", "from segonnx.report import html\n", "report.html"),
    "of the floor": ("errors.py", "from segonnx.core import files\n", "core.files"),
}


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A made-up package with every room, and nothing in them."""
    package = tmp_path / "segonnx"
    for room in ROOMS.keys() - {"__main__", "__init__", "cli"}:
        (package / room).mkdir(parents=True)
    (package / "artifacts" / "packing").mkdir()
    (package / "errors.py").write_text("")
    (package / "bench" / "x.py").write_text("from segonnx.errors import InputError\nfrom segonnx import runtimes\n")
    return package


@pytest.mark.parametrize("kind", MADE_UP)
def test_a_wrong_arrow_is_found(kind: str, house: Path) -> None:
    assert wrong(house, {}) == []
    file, source, imported = MADE_UP[kind]
    (house / file).write_text(source)
    (found,) = wrong(house, {})
    assert found.endswith(f" imports {imported}") or f" imports {imported}." in found
    room = file.partition("/")[0].removesuffix(".py")
    assert wrong(house, {(room, imported): "for a reason"}) == []


def test_an_exception_that_nothing_needs_is_found(house: Path) -> None:
    exceptions = {("core", "artifacts.verify"): "for a reason", ("bench", "runtimes"): "allowed anyway"}
    assert wrong(house, exceptions) == [
        "the exception bench -> runtimes is needed no more",
        "the exception core -> artifacts.verify is needed no more",
    ]
    (house / "core" / "x.py").write_text("from segonnx.artifacts import card\n")
    assert len(wrong(house, exceptions)) == 3  # another module of the same room isn't excused


def _at_import(path: Path) -> set[str]:
    """The top names of what a file imports when it is imported."""
    found = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


@pytest.mark.parametrize("room", WITHOUT_TORCH)
def test_rooms_that_ship_import_no_torch(room: str) -> None:
    paths = list((PACKAGE / room).rglob("*.py"))
    assert paths
    for path in paths:
        assert not _at_import(path) & {"torch", "timm", "onnxscript"}, path


def test_an_import_of_torch_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text("import numpy\nimport torch.nn\nfrom timm.models import create\n\n\ndef f():\n    import onnx\n")
    assert _at_import(path) == {"numpy", "torch", "timm"}
