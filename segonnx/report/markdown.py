"""Tables in GitHub's markdown, for a README or the summary of a CI job."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from segonnx.bench.comparison import Comparison
from segonnx.bench.result import Result, Row
from segonnx.core import markdown
from segonnx.core.markdown import escape
from segonnx.report import rows, tables

_CASE = ("model", "parameters", "input", "threads", "runtime")
_FIGURES = ("time", "vs eager", "verdict", "peak memory")


def result(content: Result) -> str:
    """One table per family, with the machine below."""
    parts = []
    for key, title in content.families().items():
        lines = [_cells(row, content) for row in content.rows if row.family == key]
        parts.append(f"### {escape(rows.title(title))}\n\n{_table([*_CASE, *_FIGURES], lines)}")
    versions = ", ".join(f"{name} {version}" for name, version in content.machine["versions"].items())
    parts.append(
        f"{markdown.line(content.machine['cpu'])}; {escape(content.autocast)}; {escape(versions)}. Time: median with "
        "the half-width of its 95 % interval; vs eager: median of the rounds' ratios with its 95 % interval."
    )
    return "\n\n".join(parts)


def comparison(content: Comparison) -> str:
    """The rows of a comparison, and what it means."""
    header, lines = tables.comparison_rows(content)
    summary = "\n".join(map(markdown.line, tables.comparison_summary(content)))
    return f"{_table(header, lines)}\n\n{summary}"


def _cells(row: Row, content: Result) -> list[str]:
    first = rows.texts(row, content, _CASE)
    if not rows.timed(row):
        return [*first, row.status, "", "", ""]
    return first + rows.texts(row, content, _FIGURES, missing="")


def _table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    first, *others = [[escape(cell) for cell in line] for line in (header, *lines)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (first, ["---"] * len(first), *others))
