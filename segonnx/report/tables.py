"""The tables that the command line prints."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from segonnx.bench import stats
from segonnx.bench.comparison import Comparison
from segonnx.bench.result import OK, Result, Row
from segonnx.errors import InputError
from segonnx.sources import catalog
from segonnx.sources.catalog import ModelSpec

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


def systems(rows: Sequence[ModelSpec]) -> str:
    """The catalogue."""
    table = _table("<name", "<family", "<input", "classes", "parameters", "<published", "multiply-adds", "<source")
    for spec in rows:
        assert spec.reference is not None
        table.add_row(
            spec.name,
            catalog.FAMILIES[spec.family],
            shape(spec.input_shape),
            str(spec.num_classes),
            f"{spec.reference.parameters:,}",
            ", ".join(
                figure.text + (f" @{figure.num_classes}" if figure.num_classes else "") for figure in spec.published
            ),
            f"{spec.reference.macs / 1e9:,.2f} G",
            spec.source,
        )
    return _render(table)


def shape(sizes: Sequence[int | str]) -> str:
    """Sizes as people write them: 1x3x512x512."""
    return "x".join(map(str, sizes))


def family(result: Result, name: str) -> str:
    """One family's table, with the source's columns for each backend and the published figures beside them."""
    rows = [row for row in result.rows if row.family == name]
    per = "equiv/s" if name == "3d" else "img/s"
    sweep = _swept(rows)
    threads = "" if "threads" in sweep else f"{rows[0].threads} threads of "
    shapes = "" if "input" in sweep else f"{shape(rows[0].input_shape)}, "
    table = _table(
        "<model", "params", *sweep, "<backend", "time", per, "efficiency", "<vs eager", "GFLOP/s", "of sgemm", "cpu",
        "load", "peak", "max error", "published*", f"{per}*", "efficiency*", "<notes",
        title=f"{catalog.FAMILIES[name]}, {shapes}{threads}{result.machine['cpu']}",
    )  # fmt: skip
    for row in rows:
        table.add_row(*_cells(row, result, sweep))
    notes = ["* the source's figures, measured on another machine: ratios may carry over, times do not"]
    notes.append(f"{per}: " + ("slices of 512x512 per second, 4 per volume" if name == "3d" else "per second"))
    return "\n".join([_render(table), *notes])


def notes(result: Result) -> str:
    """What a reader of the tables must know: what the figures mean, what was found of the machine and the run."""
    lines = [
        "time: median of all passes, with its 95 % interval; vs eager: median of the rounds' ratios, with",
        "its 95 % interval, = where that holds 1; cpu: processor seconds of a pass; load: until the model is ready;",
        "peak: resident memory; GFLOP/s: two operations per multiply-add of the published method",
    ]
    lines += [
        f"ceilings at {one['threads']} threads: {one['sgemm_gflops']:,.0f} GFLOP/s ({one['sgemm_library']}), "
        f"{one['bandwidth_gb_s']:,.1f} GB/s"
        for one in result.ceilings
    ]
    if result.overhead:
        spent = result.overhead
        lines.append(
            f"{spent['timed_s']:,.0f} of {spent['wall_s']:,.0f} s were timed passes; the bench's own process took "
            f"{spent['parent_cpu_s']:,.1f} s of a processor and {spent['parent_peak_rss_bytes'] / 1e9:.2f} GB"
        )
    return "\n".join([*lines, *(f"warning: {one}" for one in result.warnings)])


def _swept(rows: Sequence[Row]) -> list[str]:
    """The columns that a sweep needs, because their values differ among the rows."""
    columns = []
    if len({row.input_shape for row in rows}) > 1:
        columns += ["input", "ns/voxel"]
    if len({row.threads for row in rows}) > 1:
        columns.append("threads")
    return columns


def _cells(row: Row, result: Result, sweep: Sequence[str]) -> list[str]:
    spec = _system(row.model)
    published = spec.published_time if spec is not None and row.input_shape == spec.input_shape else None
    values = {
        "input": shape(row.input_shape),
        "ns/voxel": significant(row.ns_per_voxel) if row.ns_per_voxel else "-",
        "threads": str(row.threads),
    }
    first = [row.model, f"{row.parameters / 1e6:,.2f}M", *(values[column] for column in sweep), row.backend]
    theirs = ["", "", ""]
    if published is not None:
        time = f"{published.time_ms:g} ms" if published.time_ms is not None else ""
        decimals = 0 if row.family == "encoder" else 1  # as the source prints them
        theirs = [time, f"{published.images_per_s:.{decimals}f}", f"{published.efficiency:g}"]
    if row.status != OK or row.median_s is None or row.ci95_s is None or not row.images_per_s or not row.efficiency:
        return [*first, *["-"] * 10, *theirs, row.status]
    ceiling = next((one["sgemm_gflops"] for one in result.ceilings if one["threads"] == row.threads), None)
    return [
        *first,
        interval(row.median_s, row.ci95_s),
        significant(row.images_per_s),
        significant(row.efficiency),
        speedup(row),
        significant(row.gflops) if row.gflops else "-",
        f"{100 * row.gflops / ceiling:.0f} %" if row.gflops and ceiling else "-",
        seconds(row.cpu_s) if row.cpu_s is not None else "-",
        seconds(row.load_s) if row.load_s is not None else "-",
        f"{row.peak_rss_bytes / 1e9:.2f} GB" if row.peak_rss_bytes is not None else "-",
        error(row),
        *theirs,
        "; ".join(row.warnings),
    ]


def error(row: Row) -> str:
    """The largest error of a row's logits; how many labels agree, where it gives these."""
    if row.max_abs_error is not None:
        return f"{row.max_abs_error:.1e}"
    return "-" if row.label_agreement is None else f"labels {100 * row.label_agreement:.4f} %"


def speedup(row: Row) -> str:
    """How many times faster than eager a row is, with the interval, and ``=`` where there is no difference."""
    if row.speedup_over_eager is None:
        return "-"
    text = f"{row.speedup_over_eager:.2f}x"
    if row.speedup_ci95 is not None:
        text += f" ({row.speedup_ci95[0]:.2f}-{row.speedup_ci95[1]:.2f})"
    return f"{text} =" if row.verdict == "no difference" else text


def interval(value: float, ends: tuple[float, float]) -> str:
    """A time and how far its interval reaches."""
    return f"{seconds(value)} ±{100 * stats.half_width(value, ends):.1f} %"


def _system(name: str) -> ModelSpec | None:
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
    unets = [spec.name for spec in catalog.systems() if spec.family == "2d"]
    volumes = ["stunet-s", "totalsegmentator", "stunet-b"]
    for backend in dict.fromkeys(row.backend for row in result.rows):
        speed = {
            row.model: (row.images_per_s, row.efficiency)
            for row in sorted(result.rows, key=lambda row: row.threads)  # of a sweep, the most threads
            if row.backend == backend and row.images_per_s is not None and row.efficiency is not None
            if (spec := _system(row.model)) is not None and row.input_shape == spec.input_shape
        }
        theirs = {
            spec.name: (spec.published_time.images_per_s, spec.published_time.efficiency)
            for spec in catalog.systems()
            if spec.published_time is not None
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


def comparison(content: Comparison) -> str:
    """What became of each row, and what it means."""
    header, rows = comparison_rows(content)
    table = _table(*(f"<{name}" if name in {"model", "runtime", "verdict"} else name for name in header))
    for row in rows:
        table.add_row(*row)
    return f"{_render(table)}\n{comparison_summary(content)}"


def comparison_rows(content: Comparison) -> tuple[list[str], list[list[str]]]:
    """The header and the cells of a comparison's table."""
    rows = []
    for change in content.changes:
        ratio = f"{change.speedup:.3f}x" if change.speedup is not None else "-"
        if change.ci95 is not None:
            ratio += f" ({change.ci95[0]:.3f}-{change.ci95[1]:.3f})"
        verdict = change.verdict or ("too few rounds" if change.speedup is not None else "failed before")
        rows.append(
            [
                change.model,
                shape(change.input_shape),
                str(change.threads),
                change.backend,
                seconds(change.old_s) if change.old_s is not None else "-",
                seconds(change.new_s) if change.new_s is not None else "-",
                ratio,
                f"{verdict}: regression" if change.regression else verdict,
            ]
        )
    return ["model", "input", "threads", "runtime", "old", "new", "speed-up", "verdict"], rows


def comparison_summary(content: Comparison) -> str:
    """The last lines of a comparison: what differs, and how many rows are regressions."""
    lines = [f"only in the old result: {name}" for name in content.only_old]
    lines += [f"only in the new result: {name}" for name in content.only_new]
    lines += [f"{name}: {old or 'none'} -> {new or 'none'}" for name, (old, new) in content.versions.items()]
    lines += [f"compared nevertheless: {reason}" for reason in content.ignored]
    found = content.regressions
    names = ", ".join(f"{change.model} {change.backend}" for change in found)
    lines.append(
        f"{len(found)} of {len(content.changes)} rows slower by more than {100 * content.fail_above:g} %, or failed"
        + (f": {names}" if found else "")
    )
    return "\n".join(lines)
