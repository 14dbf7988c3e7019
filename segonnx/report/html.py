"""A result as a page: one file that needs no network, with tables and charts drawn by Vega-Lite."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import json
from collections.abc import Sequence
from typing import Any

from segonnx.bench.result import OK, Case, Result, Row
from segonnx.errors import InputError
from segonnx.report import charts, tables
from segonnx.sources import catalog

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
"""The page may load nothing, and run the scripts that it was written with alone."""


def render(result: Result) -> str:
    """The page as HTML.

    Whatever stands in the result is shown as text: it can't become markup or a script.

    Raises:
        InputError: a library that draws the page isn't installed.
    """
    try:
        import jinja2
        import vl_convert
    except ImportError as error:
        raise InputError(f"{error.name} isn't installed: pip install 'segonnx[report]'") from None

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    library = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its stub has no defaults
    scripts = [_safe_script(library), _asset("page.js")]
    hashes = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    drawn = charts.charts(result)
    return environment.from_string(_asset("page.html.jinja")).render(
        policy=f"{POLICY}; script-src {hashes}",
        style=_asset("page.css"),
        scripts=scripts,
        data=_json([chart.spec for chart in drawn]),
        sections=_sections(drawn),
        result=result,
        findings=findings(result),
        header=[name for name, _ in _COLUMNS],
        rows=[_cells(row, result) for row in result.rows],
        machine=_machine(result),
        settings=_facts(result.settings),
        overhead=result.overhead,
    )


def findings(result: Result) -> list[tuple[str, list[str]]]:
    """What was found, by family: its title, and a sentence for each case."""
    found = []
    for key, title in catalog.FAMILIES.items():
        cases = dict.fromkeys(row.case for row in result.rows if row.family == key)
        names = charts.case_names(result)
        sentences = [sentence for case in cases if (sentence := _finding(result, case, names[case]))]
        if sentences:
            found.append((title[0].upper() + title[1:], sentences))
    return found


def _finding(result: Result, case: Case, name: str) -> str | None:
    rows = [row for row in result.rows if row.case == case and row.status == OK and row.median_s is not None]
    if not rows:
        return f"{name}: nothing could be timed"
    best = min(rows, key=lambda row: row.median_s or 0.0)
    assert best.median_s is not None
    time = tables.seconds(best.median_s)
    if len(rows) == 1:
        return f"{name}: {best.backend} takes {time}"
    level, unsure = [], []
    for ratio in result.ratios:
        pair = {ratio.baseline, ratio.backend}
        if (ratio.model, ratio.input_shape, ratio.threads) == case and best.backend in pair:
            other = (pair - {best.backend}).pop()
            if ratio.verdict == "no difference":
                level.append(other)
            elif ratio.verdict is None:
                unsure.append(other)
    text = f"{name}: {best.backend} is fastest with {time}"
    if level:
        text = f"{name}: {' and '.join([best.backend, *level])} are level, at about {time}"
    if best.speedup_over_eager is not None and best.backend != "eager":
        text += f", {best.speedup_over_eager:.2f} times as fast as eager"
        if best.speedup_ci95 is not None:
            text += f" ({best.speedup_ci95[0]:.2f} to {best.speedup_ci95[1]:.2f})"
    return text + (f"; too few rounds for a verdict against {' and '.join(unsure)}" if unsure else "")


def _sections(drawn: Sequence[charts.Chart]) -> list[tuple[str, str, list[tuple[int, charts.Chart]]]]:
    """The charts by section: its title, its explanation, and its charts with their places in the data."""
    sections: dict[str, list[tuple[int, charts.Chart]]] = {}
    for number, chart in enumerate(drawn):
        sections.setdefault(chart.section, []).append((number, chart))
    return [(title, charts.SECTIONS[title], its) for title, its in sections.items()]


_COLUMNS: Sequence[tuple[str, bool]] = (
    ("model", False), ("input", False), ("threads", True), ("runtime", False), ("time", True), ("vs eager", True),
    ("verdict", False), ("GFLOP/s", True), ("of sgemm", True), ("ns/voxel", True), ("cpu", True), ("load", True),
    ("compile", True), ("first result", True), ("peak memory", True), ("parameters", True), ("max error", True),
    ("rounds", True), ("notes", False),
)  # fmt: skip


def _cells(row: Row, result: Result) -> list[tuple[str, str, bool]]:
    """The text of each cell, what it is sorted by, and whether that is a number."""
    ceiling = next((one["sgemm_gflops"] for one in result.ceilings if one["threads"] == row.threads), None)
    part = row.gflops / ceiling if row.gflops and ceiling else None
    fine = row.status == OK and row.median_s is not None and row.ci95_s is not None
    values: list[tuple[str, Any]] = [
        (row.model, row.model),
        (tables.shape(row.input_shape), tables.shape(row.input_shape)),
        (str(row.threads), row.threads),
        (row.backend, row.backend),
        (tables.interval(row.median_s, row.ci95_s), row.median_s) if fine else ("-", None),  # type: ignore[arg-type]
        (tables.speedup(row).removesuffix(" ="), row.speedup_over_eager),
        (row.verdict or "", row.verdict or ""),
        (tables.significant(row.gflops) if row.gflops else "-", row.gflops),
        (f"{100 * part:.0f} %" if part else "-", part),
        (tables.significant(row.ns_per_voxel) if row.ns_per_voxel else "-", row.ns_per_voxel),
        (_seconds(row.cpu_s), row.cpu_s),
        (_seconds(row.load_s), row.load_s),
        (_seconds(row.compile_s), row.compile_s),
        (_seconds(row.first_result_s), row.first_result_s),
        (f"{row.peak_rss_bytes / 1e9:.2f} GB" if row.peak_rss_bytes else "-", row.peak_rss_bytes),
        (f"{row.parameters:,}", row.parameters),
        (tables.error(row), row.max_abs_error),
        (f"{len(row.rounds)}, {row.stopped or ''}".rstrip(", "), len(row.rounds)),
        ("; ".join(row.warnings) if row.status == OK else row.status, row.status),
    ]
    return [
        (text, "" if value is None else str(value), number)
        for (text, value), (_, number) in zip(values, _COLUMNS, strict=True)
    ]


def _seconds(value: float | None) -> str:
    return "-" if value is None else tables.seconds(value)


def _machine(result: Result) -> list[tuple[str, str]]:
    facts = {key: value for key, value in result.machine.items() if key not in {"versions", "memory_bytes"}}
    if "memory_bytes" in result.machine:
        facts["memory"] = f"{result.machine['memory_bytes'] / 1e9:.1f} GB"
    return _facts(facts | {"versions": [f"{name} {version}" for name, version in result.machine["versions"].items()]})


def _facts(content: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and values as text; what is empty is left out."""
    found = []
    for key, value in content.items():
        if isinstance(value, dict):
            text = ", ".join(f"{name} {item}" for name, item in value.items())
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        if value not in (None, False) and text:
            found.append((key.replace("_", " "), text))
    return found


def _asset(name: str) -> str:
    return importlib.resources.files("segonnx.report").joinpath("page", name).read_text("utf-8")


def _safe_script(text: str) -> str:
    """A script that can stand in a page: nothing in it ends the script's element."""
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _json(content: Any) -> str:
    """JSON that can stand in a script element, whatever texts it holds."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text
