from __future__ import annotations

from dataclasses import replace

from segonnx.bench import comparison
from segonnx.report import markdown
from tests.report import results


def test_tables_have_a_cell_for_every_column() -> None:
    result = results.make()
    result.rows[1] = results.failed(result.rows[1], "a | b\n*c* <img>")
    text = markdown.result(result)
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert len(tables) == len(result.rows) + 3 * 2
    assert {line.replace("\\|", "").count("|") for line in tables} == {10}
    assert r"a \| b \*c\* &lt;img&gt;" in text
    assert text.count("### ") == 3
    assert "Example CPU" in text


def test_a_comparison_is_a_table_too() -> None:
    old = results.make(("stunet-s",))
    new = replace(old, rows=[replace(row, rounds=[[2 * s for s in one] for one in row.rounds]) for row in old.rows])
    text = markdown.comparison(comparison.compare(old, new))
    assert "| stunet-s | 1x1x64x128x128 | 2 | ort |" in text
    assert "slower: regression" in text
    assert text.splitlines()[-1].startswith("4 of 4 rows slower by more than 5 %")
