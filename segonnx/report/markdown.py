"""Tables in GitHub's markdown, for a README or the summary of a CI job."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from segonnx.bench.comparison import Comparisons
from segonnx.bench.machines import Machines
from segonnx.bench.result import Result, Row
from segonnx.core import markdown
from segonnx.core.markdown import escape
from segonnx.report import rows, tables

_CASE = ("model", "parameters", "input", "threads", "runtime")
_FIGURES = ("time", "vs eager", "verdict", "peak memory")
_MEANING = (
    "Time: median with the half-width of its 95 % interval; vs eager: median of the rounds' ratios with its 95 % "
    "interval."
)


def result(content: Machines) -> str:
    """One table per family, with the machine below; of several machines a column tells which."""
    several = len(content.results) > 1
    parts = []
    for key, title in content.families().items():
        its = rows.of_machines(content, key)
        case = (*_CASE, *rows.precision(row for *_, row in its))
        header = [*case[: len(_CASE)], *(rows.COLUMNS[name].title for name in case[len(_CASE) :]), *_FIGURES]
        header[3:3] = [rows.PROCESSOR] if several else []
        lines = []
        for processor, one, row in its:
            cells = _cells(row, one, case)
            cells[3:3] = [processor] if several else []
            lines.append(cells)
        parts.append(f"### {escape(rows.title(title))}\n\n{_table(header, lines)}")
    if several:
        parts.append("\n".join(map(_machine, content.titles, content.results)))
        parts += map(markdown.line, content.differing())
        parts.append(_MEANING)
    else:
        (one,) = content.results
        versions = ", ".join(f"{name} {version}" for name, version in one.machine["versions"].items())
        parts.append(f"{markdown.line(one.machine['cpu'])}; {escape(one.autocast)}; {escape(versions)}. {_MEANING}")
    parts += map(markdown.line, content.warnings)
    return "\n\n".join(parts)


def comparison(content: Comparisons) -> str:
    """The rows of a comparison, and what it means."""
    header, lines = tables.comparison_rows(content)
    summary = "\n".join(map(markdown.line, tables.comparison_summary(content)))
    return f"{_table(header, lines)}\n\n{summary}"


def _machine(title: str, content: Result) -> str:
    """A machine as an item of a list."""
    return f"- {escape(title)}: {escape(rows.machine(content.machine))}; {escape(content.autocast)}"


def _cells(row: Row, content: Result, case: Sequence[str]) -> list[str]:
    first = rows.texts(row, content, case, missing="")
    if not rows.timed(row):
        return [*first, row.status, "", "", ""]
    return first + rows.texts(row, content, _FIGURES, missing="")


def _table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    first, *others = [[escape(cell) for cell in line] for line in (header, *lines)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (first, ["---"] * len(first), *others))
