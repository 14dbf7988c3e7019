from __future__ import annotations

from dataclasses import replace

from segonnx.bench import comparison
from segonnx.bench.machines import Machines
from segonnx.report import markdown
from tests.report import results


def test_tables_have_a_cell_for_every_column() -> None:
    result = results.make()
    result.rows[1] = results.failed(result.rows[1], "a | b\n*c* <img>")
    text = markdown.result(results.alone(result))
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert len(tables) == len(result.rows) + 3 * 2
    assert {line.replace("\\|", "").count("|") for line in tables} == {10}
    assert r"a \| b \*c\* &lt;img&gt;" in text
    assert text.count("### ") == 3
    assert "Example CPU" in text


def test_one_table_holds_all_machines_and_tells_which() -> None:
    one = results.make(("stunet-s", "unet-resnet18"))
    other = results.elsewhere(results.make(("stunet-s",)), cpu="Other|CPU")
    text = markdown.result(Machines([one, other], ["a third one died"]))
    header, _, *lines = [line for line in text.split("### ")[1].splitlines() if line.startswith("|")]
    assert header.startswith("| model | parameters | input | processor | threads | runtime |")
    assert len(lines) == 8  # of stunet-s, four runtimes on two machines
    assert [line.split(" | ")[3] for line in lines] == [
        "2 cores of Example CPU"] * 4 + [r"2 cores of Other\|CPU"
    ] * 4  # fmt: skip
    assert r"- 2 cores of Other\|CPU: avx2, 16.0 GB, torch 2.15.0, onnxruntime 1.32.0; autocast off" in text
    assert "a third one died" in text
    alone = markdown.result(Machines([one]))
    assert "processor" not in alone


def test_a_comparison_is_a_table_too() -> None:
    old = results.make(("stunet-s",))
    new = replace(old, rows=[replace(row, rounds=[[2 * s for s in one] for one in row.rounds]) for row in old.rows])
    text = markdown.comparison(comparison.compare_machines(results.alone(old), results.alone(new)))
    assert "| stunet-s | 1x1x64x128x128 | 2 | ort |" in text
    assert "slower: regression" in text
    assert text.splitlines()[-1].startswith("4 of 4 rows slower by more than 5 %")
