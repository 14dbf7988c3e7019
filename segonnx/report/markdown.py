"""Tables in GitHub's markdown, for a README or the summary of a CI job."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from segonnx.bench.comparison import Comparison
from segonnx.bench.result import OK, Result, Row
from segonnx.report import tables
from segonnx.sources import catalog


def result(content: Result) -> str:
    """One table per family, with the machine below."""
    parts = []
    for key, title in catalog.FAMILIES.items():
        rows = [row for row in content.rows if row.family == key]
        if rows:
            parts.append(f"### {title[0].upper()}{title[1:]}\n\n{_family(rows)}")
    versions = ", ".join(f"{name} {version}" for name, version in content.machine["versions"].items())
    parts.append(
        f"{_escape(content.machine['cpu'])}; {_escape(content.autocast)}; {_escape(versions)}. Time: median with its "
        "95 % interval; vs eager: median of the rounds' ratios with its 95 % interval."
    )
    return "\n\n".join(parts)


def comparison(content: Comparison) -> str:
    """The rows of a comparison, and what it means."""
    header, rows = tables.comparison_rows(content)
    return f"{_table(header, rows)}\n\n{tables.comparison_summary(content)}"


def _family(rows: Sequence[Row]) -> str:
    header = ["model", "parameters", "input", "threads", "runtime", "time", "vs eager", "verdict", "peak memory"]
    return _table(header, [_cells(row) for row in rows])


def _cells(row: Row) -> list[str]:
    first = [row.model, f"{row.parameters:,}", tables.shape(row.input_shape), str(row.threads), row.backend]
    if row.status != OK or row.median_s is None or row.ci95_s is None:
        return [*first, row.status, "", "", ""]
    peak = f"{row.peak_rss_bytes / 1e9:.2f} GB" if row.peak_rss_bytes is not None else ""
    ratio = tables.speedup(row).removesuffix(" =")
    return [*first, tables.interval(row.median_s, row.ci95_s), ratio, row.verdict or "", peak]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(_escape, line)) + " |" for line in lines)


def _escape(text: str) -> str:
    """Text that stays in its cell and is no markup."""
    text = " ".join(str(text).split())
    for sign in "\\`*_[]<>|":
        text = text.replace(sign, f"\\{sign}" if sign not in "<>" else {"<": "&lt;", ">": "&gt;"}[sign])
    return text
