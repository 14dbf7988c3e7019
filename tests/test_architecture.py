"""Dependencies run one way; see docs/decisions/0001."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import segonnx

PACKAGE = Path(segonnx.__file__).parent

# What each part may import at the top of its modules, besides the plain modules below.
LAYERS = {
    "commands": {"commands", "bench", "exporters", "runtimes"},
    "models": {"models"},
    "exporters": {"exporters", "artifacts", "models"},
    "artifacts": {"artifacts"},
    "runtimes": {"runtimes"},
    "bench": {"bench", "artifacts", "runtimes"},
    "report": {"report", "bench"},
    "predict": {"predict", "artifacts"},
}
PLAIN = {
    "core", "errors", "optimize", "sources",
    "_version", "__version__",
}  # fmt: skip
WITHOUT_TORCH = ("artifacts", "runtimes", "bench", "report", "predict")


def _imports(path: Path) -> set[str]:
    """The modules that a file imports when it is imported."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("layer", LAYERS)
def test_a_part_imports_only_what_it_rests_on(layer: str) -> None:
    for path in (PACKAGE / layer).rglob("*.py"):
        parts = {name.split(".")[1] for name in _imports(path) if name.startswith("segonnx.")}
        assert parts <= LAYERS[layer] | PLAIN, path


@pytest.mark.parametrize("layer", WITHOUT_TORCH)
def test_parts_that_ship_import_no_torch(layer: str) -> None:
    paths = list((PACKAGE / layer).rglob("*.py"))
    assert paths
    for path in paths:
        assert not {name.split(".")[0] for name in _imports(path)} & {"torch", "timm", "onnxscript"}, path
