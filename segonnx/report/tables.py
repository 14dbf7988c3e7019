"""The tables that the command line prints."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from segonnx import catalog
from segonnx.bench.result import OK, Result, Row
from segonnx.catalog import System
from segonnx.errors import InputError

Ratio = Callable[[dict[str, tuple[float, float]]], float]
"""A ratio, computed from (images per second, efficiency) by model."""
CLOSE = 1.25
"""Two ratios that differ by at most this factor are the same, for a conclusion."""
WIDTH = 1000
"""Columns that a table may take: it is never wrapped or cut, whatever the terminal."""


def _render(table: Table) -> str:
    console = Console(width=WIDTH, file=io.StringIO(), color_system=None, markup=False)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines() if line.strip())


def _table(*columns: str, title: str | None = None) -> Table:
    """A plain table; columns whose name begins with ``<`` are aligned to the left."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), title=title, title_justify="left", title_style="")
    for column in columns:
        table.add_column(column.removeprefix("<"), justify="left" if column.startswith("<") else "right", no_wrap=True)
    return table


def systems(rows: Sequence[System]) -> str:
    """The catalogue."""
    table = _table("<name", "<family", "<input", "classes", "parameters", "<published", "multiply-adds", "<source")
    for system in rows:
        assert system.reference is not None
        table.add_row(
            system.name,
            catalog.FAMILIES[system.family],
            shape(system.input_shape),
            str(system.num_classes),
            f"{system.reference.parameters:,}",
            ", ".join(
                figure.text + (f" @{figure.num_classes}" if figure.num_classes else "") for figure in system.published
            ),
            f"{system.reference.macs / 1e9:,.2f} G",
            system.source,
        )
    return _render(table)


def shape(sizes: Sequence[int | str]) -> str:
    """Sizes as people write them: 1x3x512x512."""
    return "x".join(map(str, sizes))


def family(result: Result, name: str) -> str:
    """One family's table, with the source's columns for each backend and the published figures beside them."""
    rows = [row for row in result.rows if row.family == name]
    per = "equiv/s" if name == "3d" else "img/s"
    table = _table(
        "<model", "params", "<backend", "time", per, "efficiency", "vs eager", "load", "peak", "max error",
        "published*", f"{per}*", "efficiency*", "<notes",
        title=f"{catalog.FAMILIES[name]}, {', '.join(sorted({shape(row.input_shape) for row in rows}))}, "
        f"{result.machine['threads']} threads of {result.machine['cpu']}",
    )  # fmt: skip
    for row in rows:
        table.add_row(*_cells(row))
    notes = ["* the source's figures, measured on another machine: ratios may carry over, times do not"]
    notes.append(f"{per}: " + ("4 slices of 512x512 per volume, per second" if name == "3d" else "per second"))
    return "\n".join([_render(table), *notes])


def _cells(row: Row) -> list[str]:
    system = _system(row.model)
    published = system.published_time if system is not None else None
    params = f"{row.parameters / 1e6:,.2f}M"
    notes = "; ".join(row.warnings)
    theirs = ["", "", ""]
    if published is not None:
        time = f"{published.time_ms:g} ms" if published.time_ms is not None else ""
        decimals = 0 if row.family == "encoder" else 1  # as the source prints them
        theirs = [time, f"{published.images_per_s:.{decimals}f}", f"{published.efficiency:g}"]
    if row.status != OK or row.median_s is None or row.images_per_s is None or row.efficiency is None:
        return [row.model, params, row.backend, "-", "-", "-", "-", "-", "-", "-", *theirs, row.status]
    return [
        row.model,
        params,
        row.backend,
        seconds(row.median_s),
        significant(row.images_per_s),
        significant(row.efficiency),
        f"{row.speedup_over_eager:.2f}x" if row.speedup_over_eager is not None else "-",
        seconds(row.load_s or 0.0),
        f"{(row.peak_rss_bytes or 0) / 1e9:.2f} GB",
        f"{row.max_abs_error:.1e}" if row.max_abs_error is not None else "-",
        *theirs,
        notes,
    ]


def _system(name: str) -> System | None:
    try:
        return catalog.find(name)
    except InputError:
        return None


def seconds(value: float) -> str:
    """A time in the unit that reads best."""
    return f"{value * 1e3:,.1f} ms" if value < 10 else f"{value:,.1f} s"


def significant(value: float) -> str:
    """Three significant digits of a number above 0, without an exponent."""
    return f"{value:,.{max(2 - math.floor(math.log10(value)), 0)}f}"


@dataclass(frozen=True)
class Conclusion:
    """One of the source's conclusions, held against our own ratios.

    Attributes:
        claim: in the source's words, roughly.
        backend: whose times are used.
        published: the ratio that the source's tables give.
        ours: the same ratio of our times.
    """

    claim: str
    backend: str
    published: float
    ours: float

    @property
    def verdict(self) -> str:
        """``holds`` if our ratio is on the same side of 1, and within a factor ``CLOSE`` of the published one."""
        if (self.ours > 1) != (self.published > 1):
            return "does not hold"
        factor = max(self.ours / self.published, self.published / self.ours)
        return "holds" if factor <= CLOSE else "holds in direction, not in size"


def conclusions(result: Result) -> list[Conclusion]:
    """The source's three conclusions, for every backend that timed the models that they speak of."""
    found = []
    unets = [system.name for system in catalog.systems() if system.family == "2d"]
    volumes = ["stunet-s", "totalsegmentator", "stunet-b"]
    for backend in dict.fromkeys(row.backend for row in result.rows):
        speed = {
            row.model: (row.images_per_s, row.efficiency)
            for row in result.rows
            if row.backend == backend and row.images_per_s is not None and row.efficiency is not None
        }
        theirs = {
            system.name: (system.published_time.images_per_s, system.published_time.efficiency)
            for system in catalog.systems()
            if system.published_time is not None
        }
        claims: tuple[tuple[str, list[str], Ratio], ...] = (
            (
                "2D is about 2x faster than STU-Net-S (median of the four U-Nets, per slice)",
                [*unets, "stunet-s"],
                lambda s: statistics.median(s[name][0] for name in unets) / s["stunet-s"][0],
            ),
            (
                "2D is faster than STU-Net-S at a like size (resnet18 U-Net, per slice)",
                ["unet-resnet18", "stunet-s"],
                lambda s: s["unet-resnet18"][0] / s["stunet-s"][0],
            ),
            (
                "TotalSegmentator is about 2x slower than STU-Net-S (published DSC 86.76 against 83.74 %)",
                ["stunet-s", "totalsegmentator"],
                lambda s: s["stunet-s"][0] / s["totalsegmentator"][0],
            ),
            (
                "STU-Net-S is the best compromise in 3D (efficiency against the next best)",
                volumes,
                lambda s: s["stunet-s"][1] / max(s[name][1] for name in volumes[1:]),
            ),
        )
        for claim, needed, ratio in claims:
            if all(name in speed for name in needed):
                found.append(Conclusion(claim, backend, ratio(theirs), ratio(speed)))
    return found


def conclusions_table(rows: Sequence[Conclusion]) -> str:
    """The conclusions and what became of them."""
    table = _table("<the source concludes", "<backend", "published", "ours", "<verdict", title="Conclusions")
    for row in rows:
        table.add_row(row.claim, row.backend, f"{row.published:.2f}", f"{row.ours:.2f}", row.verdict)
    rule = f"holds: on the same side of 1, and within a factor of {CLOSE:g} of the published ratio"
    return f"{_render(table)}\n{rule}"
