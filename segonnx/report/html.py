"""A result as a page: one file that needs no network, with tables and charts drawn by Vega-Lite."""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.resources
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from segonnx.bench.machines import Machines
from segonnx.bench.result import CaseKey, Result, Row
from segonnx.errors import InputError
from segonnx.report import charts, rows

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
"""The page may load nothing, and run the scripts that it was written with alone."""


def render(content: Machines) -> str:
    """The page as HTML.

    Whatever stands in the result is shown as text: it can't become markup or a script.

    Raises:
        InputError: a library that draws the page isn't installed.
    """
    several = len(content.results) > 1
    machines = list(zip(content.titles, content.results, strict=True))
    shown = _columns(content)
    drawn = [chart for title, one in machines for chart in _charts(title, one, several=several)]
    return page(
        "page.html.jinja",
        drawn,
        name=f"{len(machines)} machines" if several else content.results[0].machine["cpu"],
        machines=[
            {
                "title": title if several else one.machine["cpu"],
                "result": one,
                "facts": _machine(one),
                "settings": _facts(one.settings),
            }
            for title, one in machines
        ],
        several=several,
        warnings=_warnings(content),
        findings=[
            (f"{found}, {title}" if several else found, sentences)
            for title, one in machines
            for found, sentences in findings(one)
        ],
        header=[_COLUMNS[0], *([rows.PROCESSOR] if several else []), *(rows.COLUMNS[name].title for name in shown[1:])],
        rows=[
            [cells[0], *([(title, title, False)] if several else []), *cells[1:]]
            for title, one, row in rows.of_machines(content)
            for cells in [_cells(one, row, shown)]
        ],
    )


def page(template: str, drawn: Sequence[charts.Chart], **content: Any) -> str:
    """A page as HTML, by a template of ``report/page``, which shows whatever it gets as text.

    Args:
        template: the file's name.
        drawn: the page's charts.
        content: what else the template shows.

    Raises:
        InputError: a library that draws the page isn't installed.
    """
    try:
        import jinja2
        import vl_convert  # noqa: F401 (which _library needs)
    except ImportError as error:
        raise InputError(f"{error.name} isn't installed: pip install 'segonnx[report]'") from None

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    scripts = [_safe_script(_library()), _asset("page.js")]
    hashes = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    return environment.from_string(_asset(template)).render(
        policy=f"{POLICY}; script-src {hashes}",
        style=_asset("page.css"),
        scripts=scripts,
        data=_json([chart.spec for chart in drawn]),
        sections=_sections(drawn),
        **content,
    )


def _warnings(content: Machines) -> list[str]:
    if len(content.results) == 1:
        return [*content.results[0].warnings, *content.warnings]
    own = [
        f"{title}: {warning}"
        for title, one in zip(content.titles, content.results, strict=True)
        for warning in one.warnings
    ]
    return [*content.warnings, *content.differing(), *own]


def _charts(title: str, result: Result, *, several: bool) -> list[charts.Chart]:
    """The charts of one machine, which their titles name where there are several: none shows two machines."""
    drawn = charts.charts(result)
    return [replace(chart, title=f"{chart.title}, {title}") for chart in drawn] if several else drawn


def _columns(content: Machines) -> tuple[str, ...]:
    """The figures of the page's table."""
    precision = rows.precision(row for *_, row in rows.of_machines(content))
    return (*_COLUMNS[:3], *precision, *_COLUMNS[3:])


def _cells(result: Result, row: Row, shown: Sequence[str]) -> list[tuple[str, str, bool]]:
    """Of each figure of a row: as it is shown, what it is sorted by, and whether it is a number."""
    return [
        (text, "" if cell.value is None else str(cell.value), rows.COLUMNS[name].number)
        for name, text, cell in zip(shown, rows.texts(row, result, shown), rows.cells(row, result, shown), strict=True)
    ]


def findings(result: Result) -> list[tuple[str, list[str]]]:
    """What was found, by family: its title, and a sentence for each case."""
    found = []
    names = rows.case_names(result)
    for key, title in result.families().items():
        cases = dict.fromkeys(row.case for row in result.rows if row.family == key)
        found.append((rows.title(title), [_finding(result, case, names[case]) for case in cases]))
    return found


def _finding(result: Result, case: CaseKey, name: str) -> str:
    its = [row for row in result.rows if row.case == case and rows.timed(row)]
    if not its:
        return f"{name}: nothing could be timed"
    best = min(its, key=lambda row: row.median_s or 0.0)
    assert best.median_s is not None
    time = rows.seconds(best.median_s)
    if len(its) == 1:
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


_COLUMNS = (
    "model", "input", "threads", "runtime", "time", "vs eager", "verdict", "gflops", "of sgemm", "ns/voxel", "cpu",
    "load", "compile", "first result", "peak memory", "parameters", "max error", "rounds", "notes",
)  # fmt: skip


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


@functools.cache
def _library() -> str:
    """The scripts that draw the charts; bundling them takes half a second."""
    import vl_convert

    bundle: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its stub has no defaults
    return bundle


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
