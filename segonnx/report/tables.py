"""The tables that the command line prints."""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from segonnx.bench.comparison import Comparisons
from segonnx.bench.machines import Machines
from segonnx.bench.result import Result, Row
from segonnx.errors import one_line
from segonnx.report import rows

Ratio = Callable[[dict[str, tuple[float, float]]], float]
"""A ratio, computed from (images per second, efficiency) by model."""
CLOSE = 1.25
"""Two ratios that differ by at most this factor are the same, for a conclusion."""
WIDTH = 1000
"""Columns that a table may take: it is never wrapped or cut, whatever the terminal."""
_PUBLISHED = ("published time", "published images", "published efficiency")


def table(columns: Sequence[str], lines: Iterable[Sequence[str]], title: str | None = None) -> str:
    """A plain table.

    Args:
        columns: headings; those of columns that are aligned to the left begin with ``<``.
        lines: the cells.
        title: what stands above.
    """
    shown = None if title is None else one_line(title)
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), title=shown, title_justify="left", title_style="")
    for column in columns:
        made.add_column(column.removeprefix("<"), justify="left" if column.startswith("<") else "right", no_wrap=True)
    for line in lines:
        made.add_row(*map(one_line, line))
    console = Console(width=WIDTH, file=io.StringIO(), color_system=None, markup=False)
    with console.capture() as capture:
        console.print(made)
    return "\n".join(line.rstrip() for line in capture.get().splitlines() if line.strip())


def family(result: Result, name: str) -> str:
    """One family's table, with the source's columns for each runtime and the published figures beside them."""
    its = [row for row in result.rows if row.family == name]
    per = "equiv/s" if name == "3d" else "img/s"
    sweep = _swept(its)
    measured = (
        "model", "millions", *sweep, *rows.precision(its), "runtime", "time", "images", "efficiency", "vs eager",
        "gflops", "of sgemm", "cpu", "load", "peak memory", "max error",
    )  # fmt: skip
    names = (*measured, *_PUBLISHED, "notes")
    shown = {"runtime": "<backend", "images": per, "published images": f"{per}*", "peak memory": "peak"}
    shown |= {
        "model": "<model",
        "vs eager": "<vs eager",
        "notes": "<notes",
        "input": "input",
        "precision": "<precision",
    }
    threads = "" if "threads" in sweep else f"{its[0].threads} threads of "
    shapes = "" if "input" in sweep else f"{rows.shape(its[0].input_shape)}, "
    printed = table(
        [shown.get(column, rows.COLUMNS[column].title) for column in names],
        [_line(row, result, names) for row in its],
        f"{result.families()[name]}, {shapes}{threads}{result.machine['cpu']}",
    )
    notes = ["* the source's figures, measured on another machine: ratios may carry over, times do not"]
    notes.append(f"{per}: " + ("slices of 512x512 per second, 4 per volume" if name == "3d" else "per second"))
    return "\n".join([printed, *notes])


def by_processor(content: Machines, name: str) -> str:
    """One family's table of several machines: each row is of one machine, and tells which."""
    its = rows.of_machines(content, name)
    sweep = ["input"] if len({row.input_shape for *_, row in its}) > 1 else []
    first = ("model", *sweep, *rows.precision(row for *_, row in its))
    names = (
        "threads",
        "runtime",
        "time",
        "images",
        "vs eager",
        "gflops",
        "of sgemm",
        "peak memory",
        "max error",
        "notes",
    )
    shown = {"runtime": "<backend", "images": "equiv/s" if name == "3d" else "img/s", "peak memory": "peak"}
    shown |= {"model": "<model", "vs eager": "<vs eager", "notes": "<notes", "precision": "<precision"}
    headings = [shown.get(column, rows.COLUMNS[column].title) for column in (*first, *names)]
    return table(
        [*headings[: len(first)], f"<{rows.PROCESSOR}", *headings[len(first) :]],
        [[*_line(row, one, first), title, *_line(row, one, names)] for title, one, row in its],
        f"{content.families()[name]}, {'' if sweep else rows.shape(its[0][2].input_shape) + ', '}by processor type",
    )


def machine_notes(content: Machines) -> str:
    """What a reader of tables by processor type must know: what each machine is, and what was found of its run."""
    machines = list(zip(content.titles, content.results, strict=True))
    lines = [f"{title}: {rows.machine(one.machine)}" for title, one in machines]
    lines += [
        f"{title}: {text}"
        for title, one in machines
        for text in (
            one.autocast,
            *(f"roofline peaks at {rows.peaks(found)}" for found in one.roofline_peaks),
            *(f"warning: {warning}" for warning in one.warnings),
        )
    ]
    lines += [f"warning: {warning}" for warning in (*content.warnings, *content.differing())]
    return "\n".join(map(one_line, lines))


def notes(result: Result) -> str:
    """What a reader of the tables must know: what the figures mean, what was found of the machine and the run."""
    lines = [
        "time: median of all passes, with the half-width of its 95 % interval; vs eager: median of the rounds'",
        "ratios, with its 95 % interval, = where that holds 1; cpu: processor seconds of a pass; load: until the model",
        "is ready; peak: resident memory; GFLOP/s: two operations per multiply-add of the published method",
    ]
    lines += [f"roofline peaks at {rows.peaks(found)}" for found in result.roofline_peaks]
    if result.overhead:
        spent = result.overhead
        lines.append(
            f"{spent['timed_s']:,.0f} of {spent['wall_s']:,.0f} s were timed passes; the bench's own process took "
            f"{spent['parent_cpu_s']:,.1f} s of a processor and {spent['parent_peak_rss_bytes'] / 1e9:.2f} GB"
        )
    lines += [f"warning: {warning}" for warning in result.warnings]
    return "\n".join(map(one_line, lines))


def _swept(its: Sequence[Row]) -> list[str]:
    """The columns that a sweep needs, because their values differ among the rows."""
    columns = []
    if len({row.input_shape for row in its}) > 1:
        columns += ["input", "ns/voxel"]
    if len({row.threads for row in its}) > 1:
        columns.append("threads")
    return columns


def _line(row: Row, result: Result, names: Sequence[str]) -> list[str]:
    """The row's cells; no figure but the published ones where it has no times that count."""
    always = {"model", "millions", "input", "threads", "runtime", "notes", *rows.PRECISION}
    texts = []
    for name, text in zip(names, rows.texts(row, result, names), strict=True):
        if name in _PUBLISHED:
            texts.append("" if text == rows.MISSING else text)
        elif name == "vs eager" and rows.timed(row):
            texts.append(rows.speedup(row) or rows.MISSING)
        else:
            texts.append(text if rows.timed(row) or name in always else rows.MISSING)
    return texts


@dataclass(frozen=True)
class Conclusion:
    """A conclusion of the source, beside the same ratio of our times.

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


_UNETS = ("unet-mobilenetv3-small", "unet-mobileone-s0", "unet-regnetx-002", "unet-resnet18")
_VOLUMES = ("stunet-s", "totalsegmentator", "stunet-b")
_CLAIMS: tuple[tuple[str, tuple[str, ...], Ratio], ...] = (
    (
        "2D is about 2x faster than STU-Net-S (median of the four U-Nets, per slice)",
        (*_UNETS, "stunet-s"),
        lambda speeds: statistics.median(speeds[name][0] for name in _UNETS) / speeds["stunet-s"][0],
    ),
    (
        "2D is faster than STU-Net-S at a like size (resnet18 U-Net, per slice)",
        ("unet-resnet18", "stunet-s"),
        lambda speeds: speeds["unet-resnet18"][0] / speeds["stunet-s"][0],
    ),
    (
        "TotalSegmentator is about 2x slower than STU-Net-S (published DSC 86.76 against 83.74 %)",
        ("stunet-s", "totalsegmentator"),
        lambda speeds: speeds["stunet-s"][0] / speeds["totalsegmentator"][0],
    ),
    (
        "STU-Net-S is the best compromise in 3D (efficiency against the next best)",
        _VOLUMES,
        lambda speeds: speeds["stunet-s"][1] / max(speeds[name][1] for name in _VOLUMES[1:]),
    ),
)
"""What the source concludes, the models that it speaks of, and the ratio that it rests on."""


def conclusions(result: Result) -> list[Conclusion]:
    """The source's conclusions, for every runtime that timed the models that they speak of.

    Rows with published times alone count: those of the published architecture on the published input.
    """
    found = []
    for backend in dict.fromkeys(row.backend for row in result.rows):
        ours, theirs = {}, {}
        for row in sorted(result.rows, key=lambda row: row.threads):  # of a sweep, the most threads
            known = row.published
            if row.backend != backend or known is None or row.images_per_s is None or row.efficiency is None:
                continue
            if known.images_per_s is not None and known.efficiency is not None:
                ours[row.model] = row.images_per_s, row.efficiency
                theirs[row.model] = known.images_per_s, known.efficiency
        for claim, needed, ratio in _CLAIMS:
            if all(name in ours for name in needed):
                found.append(Conclusion(claim, backend, ratio(theirs), ratio(ours)))
    return found


def conclusions_table(found: Sequence[Conclusion]) -> str:
    """The conclusions and what became of them."""
    printed = table(
        ("<the source concludes", "<backend", "published", "ours", "<verdict"),
        [(each.claim, each.backend, f"{each.published:.2f}", f"{each.ours:.2f}", each.verdict) for each in found],
        "Conclusions",
    )
    rule = f"holds: on the same side of 1, and within a factor of {CLOSE:g} of the published ratio"
    return f"{printed}\n{rule}"


def comparison(content: Comparisons) -> str:
    """What became of each row, and what it means."""
    header, lines = comparison_rows(content)
    words = {"model", "runtime", "verdict", rows.PROCESSOR}
    columns = [f"<{name}" if name in words else name for name in header]
    return "\n".join([table(columns, lines), *comparison_summary(content)])


def comparison_rows(content: Comparisons) -> tuple[list[str], list[list[str]]]:
    """The header and the cells of a comparison's table."""
    lines = []
    for title, change in content.changes:
        verdict = change.verdict or ("too few rounds" if change.speedup is not None else "failed before")
        lines.append(
            [
                change.model,
                rows.shape(change.input_shape),
                *([title] if content.several else []),
                str(change.threads),
                change.backend,
                rows.seconds(change.old_s) if change.old_s is not None else rows.MISSING,
                rows.seconds(change.new_s) if change.new_s is not None else rows.MISSING,
                rows.MISSING if change.speedup is None else rows.ratio(change.speedup, change.ci95, 3),
                f"{verdict}: regression" if change.regression else verdict,
            ]
        )
    where = [rows.PROCESSOR] if content.several else []
    return ["model", "input", *where, "threads", "runtime", "old", "new", "speed-up", "verdict"], lines


def comparison_summary(content: Comparisons) -> list[str]:
    """The last lines of a comparison: what differs, and how many rows are regressions."""
    lines = [f"only in the old result: {title}" for title in content.only_old]
    lines += [f"only in the new result: {title}" for title in content.only_new]
    for title, own in content.machines.items():
        told = [f"only in the old result: {name}" for name in own.only_old]
        told += [f"only in the new result: {name}" for name in own.only_new]
        told += [f"{name}: {old or 'none'} -> {new or 'none'}" for name, (old, new) in own.versions.items()]
        told += [f"compared nevertheless: {reason}" for reason in own.ignored]
        lines += [f"{title}: {line}" if content.several else line for line in told]
    found = content.regressions
    names = ", ".join(
        f"{change.model} {change.backend}" + (f" on {title}" if content.several else "") for title, change in found
    )
    allowed = next(iter(content.machines.values())).fail_above
    lines.append(
        f"{len(found)} of {len(content.changes)} rows slower by more than {100 * allowed:g} %, or failed"
        + (f": {names}" if found else "")
    )
    return list(map(one_line, lines))
