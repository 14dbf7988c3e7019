"""What stands in the documents was made by the programs as they are now."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import docs
from segonnx import __version__
from segonnx.sources import catalog

PROGRAM = "benchmarks.docs"


def test_no_block_of_the_documents_is_stale() -> None:
    assert docs.stale(docs.pages()) == []
    assert len([block for path in docs.pages() for block in docs.blocks(path)]) >= 9


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "page.md"
    path.write_text("before\n<!-- table: put here by hand -->\nold\n<!-- /table -->\nafter\n")
    return path


def test_a_block_says_what_made_it_and_is_replaced(page: Path) -> None:
    assert docs.stale([page]) == ["page.md: table doesn't say what made it"]
    for content in ("| a |\n", r"| \1 |"):
        docs.put_block(page, "table", content, PROGRAM, "2 cores of <some> CPU")
        assert page.read_text() == (
            f"before\n<!-- table: made by {PROGRAM}, program version {docs.BLOCK_VERSION}, segonnx {__version__}, "
            f"2 cores of <some CPU -->\n{content.strip()}\n<!-- /table -->\nafter\n"
        )
    assert docs.stale([page]) == []
    docs.put_block(page, "table", "| a |", PROGRAM)
    assert docs.machine() in page.read_text()


def test_a_block_of_another_version_is_found(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docs.put_block(page, "table", "| a |", PROGRAM, "a machine")
    now = docs.BLOCK_VERSION
    page.write_text(page.read_text().replace(f"version {now},", f"version {now + 1},", 1))
    assert docs.stale([page]) == [
        f"page.md: table was made by version {now + 1} of benchmarks.docs, which has version {now}"
    ]


def test_marks_that_are_missing_or_doubled_are_refused(page: Path) -> None:
    with pytest.raises(ValueError, match="0 blocks called figures"):
        docs.put_block(page, "figures", "", PROGRAM, "a machine")
    page.write_text(page.read_text() * 2)
    with pytest.raises(ValueError, match="2 blocks called table"):
        docs.put_block(page, "table", "", PROGRAM, "a machine")


def test_a_program_without_a_version_is_refused() -> None:
    with pytest.raises(ValueError, match="no BLOCK_VERSION"):
        docs.version_of("benchmarks.__init__")


def test_every_program_that_writes_blocks_has_a_version() -> None:
    writers = [path for path in (docs.ROOT / "benchmarks").glob("*.py") if "put_block(" in path.read_text("utf-8")]
    assert len(writers) >= 8
    for path in writers:
        assert docs.version_of(f"benchmarks.{path.stem}") >= 1


def test_parity_of_both_graphs_is_written_as_a_table(tmp_path: Path) -> None:
    found = {"kind": "noise", "shape": [1, 3, 8, 8], "max_rel_error": 2e-5, "rms_rel_error": 1e-6, "label_agreement": 1}
    for number, name in enumerate(catalog.names()):
        (tmp_path / name).mkdir()
        content: dict[str, Any] = {
            "name": name, "parameters": {"count": number}, "parity": {"inputs": [found]},
            "producer": {"torch": "2", "onnxruntime": "1"},
        }  # fmt: skip
        if number == 0:
            content["cpu_graph"] = {"parity": found | {"rms_rel_error": 3e-6}}
        (tmp_path / name / "manifest.json").write_text(json.dumps(content))
    (tmp_path / "another").mkdir()
    where, _, _, _, *rows = docs.parity(tmp_path).splitlines()
    assert where == f"{docs.machine()}, torch 2, onnxruntime 1:"
    plain = [f"| {name} | noise 1x3x8x8 | 2.0e-05 | 1.0e-06 | 100.0000 % |" for name in catalog.names()]
    rewritten = f"| {catalog.names()[0]} | the worst of them, rewritten graph | 2.0e-05 | 3.0e-06 | 100.0000 % |"
    assert rows == [plain[0], rewritten, *plain[1:]]
