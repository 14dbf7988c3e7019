"""Artifacts of one network in several precisions: what their rows carry, and what a reader sees of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from segonnx.bench import result
from segonnx.bench.result import Precision
from segonnx.errors import InputError
from segonnx.report import charts, html, markdown, rows, tables
from tests.report import results

PLAIN = results.make(("stunet-s",), {"eager": 1.0, "ort": 0.5, "openvino": 0.6})
SEVERAL = results.in_precisions(PLAIN)


def test_tables_show_precision_where_it_isnt_float32_alone() -> None:
    header, *lines = tables.family(SEVERAL, "3d").splitlines()[1:8]
    for title in ("precision", "size", "labels equal", "least Dice"):
        assert title in header
    (int8,) = (line for line in lines if line.startswith("stunet-s int8") and " ort " in line)
    assert "int8" in int8.split("stunet-s int8")[1]
    assert " ".join(int8.split()[4:10]) == "10.0 MB 99.800 % 0.9912 ort"
    (float32,) = (line for line in lines if line.startswith("stunet-s ") and " float32 " in line and " ort " in line)
    assert "40.0 MB" in float32


def test_tables_of_float32_are_no_wider() -> None:
    with_sizes = replace(PLAIN, rows=[replace(row, precision=Precision("float32", 40_000_000)) for row in PLAIN.rows])
    assert tables.family(with_sizes, "3d") == tables.family(PLAIN, "3d")
    assert markdown.result(results.alone(with_sizes)) == markdown.result(results.alone(PLAIN))
    assert "least Dice" not in html.render(results.alone(with_sizes))


def test_a_column_without_a_figure_is_left_out() -> None:
    stored = [row for row in SEVERAL.rows if row.precision is None or row.precision.kind != "int8"]
    assert rows.precision(stored) == ("precision", "size", "labels equal")
    assert rows.precision(PLAIN.rows) == ()


def test_markdown_and_the_page_show_them() -> None:
    text = markdown.result(results.alone(SEVERAL))
    assert "| runtime | precision | size | labels equal | least Dice | time |" in text
    assert "| ort | float16 storage | 20.0 MB | 99.998 % |  |" in text
    assert {line.count("|") for line in text.splitlines() if line.startswith("|")} == {14}
    page = html.render(results.alone(SEVERAL))
    assert "labels equal" in page
    assert "99.800 %" in page


def test_what_isnt_equal_is_never_rounded_up() -> None:
    assert (rows.percent(1.0), rows.percent(0.9999999)) == ("100.000 %", "99.999 %")
    assert (rows.dice(1.0), rows.dice(0.999999)) == ("1.0000", "0.9999")


def test_labels_and_dice_are_drawn_against_speed() -> None:
    (chart,) = (chart for chart in charts.charts(SEVERAL) if chart.section == "Precision against speed")
    values = {
        (value["precision"], value["kept"]): value["part"]
        for value in chart.spec["data"]["values"]
        if value["runtime"] == "ort"
    }
    assert values == pytest.approx(
        {
            ("float32", "labels equal"): 100, ("float32", "least Dice"): 100,
            ("float16 storage", "labels equal"): 99.998,
            ("int8", "labels equal"): 99.8, ("int8", "least Dice"): 99.12,
        }
    )  # fmt: skip
    assert not any(chart.section == "Precision against speed" for chart in charts.charts(PLAIN))


def test_a_dice_of_nothing_is_drawn_as_that() -> None:
    lost = [
        replace(row, precision=replace(row.precision, least_dice=0.0))
        if row.precision and row.precision.kind == "int8"
        else row
        for row in SEVERAL.rows
    ]
    (chart,) = (c for c in charts.charts(replace(SEVERAL, rows=lost)) if c.section == "Precision against speed")
    assert 0.0 in [value["part"] for value in chart.spec["data"]["values"]]


def test_results_carry_it_and_older_ones_are_read(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    SEVERAL.write(path)
    read = result.read(path)
    assert [row.precision for row in read.rows] == [row.precision for row in SEVERAL.rows]
    assert {row.network for row in read.rows} == {"stunet-s"}
    content = json.loads(path.read_text())
    for row in content["rows"]:
        del row["precision"]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="'precision' is a required property"):
        result.read(path)
    path.write_text(json.dumps(content | {"schema_version": 4}))
    assert {row.precision for row in result.read(path).rows} == {None}


@pytest.mark.parametrize("wrong", [{"kind": "int4"}, {"least_dice": 1.5}, {"labels_equal": -0.1}, {"bytes": -1}])
def test_a_precision_that_cant_be_is_refused(wrong: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    SEVERAL.write(path)
    content = json.loads(path.read_text())
    next(row for row in content["rows"] if row["precision"])["precision"].update(wrong)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="precision"):
        result.read(path)
