"""How a row of a result is written: the one place that formats its figures, for tables, markdown, pages and charts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segonnx.bench import stats
from segonnx.bench.machines import Machines
from segonnx.bench.result import FLOAT32, OK, CaseKey, Result, Row

MISSING = "-"
PROCESSOR = "processor"
"""The heading of the column that tells of which machine a row is, where there are several."""
PRECISION = ("precision", "size", "labels equal", "least dice")
"""The columns of what artifacts hold their weights in."""
_LIBRARIES = ("segonnx", "torch", "onnxruntime", "openvino")


@dataclass(frozen=True)
class Cell:
    """One figure of a row.

    Attributes:
        text: as a reader sees it; empty where there is no figure.
        value: what it is sorted by.
    """

    text: str
    value: Any


@dataclass(frozen=True)
class Column:
    """One figure of every row.

    Attributes:
        title: the heading.
        cell: gives the cell of a row of a result.
        number: whether it is a number, aligned to the right.
    """

    title: str
    cell: Callable[[Row, Result], Cell]
    number: bool = True


def timed(row: Row) -> bool:
    """Whether the row has times that count."""
    return row.status == OK and bool(row.rounds)


def case_names(result: Result) -> dict[CaseKey, str]:
    """A name for every case: the model, and the input and threads where a model has several."""
    cases = list(dict.fromkeys(row.case for row in result.rows))
    names = {}
    for case in cases:
        model, sizes, threads = case
        same = [other for other in cases if other[0] == model]
        name = model
        if len({other[1] for other in same}) > 1:
            name += f" {shape(sizes)}"
        if len({other[2] for other in same}) > 1:
            name += f", {threads} threads"
        names[case] = name
    return names


def names(content: Machines) -> dict[tuple[str, CaseKey], str]:
    """A name for every case of every machine, by the machine's title; where there are several it stands in the name."""
    return {
        (title, case): f"{name}, {title}" if len(content.results) > 1 else name
        for title, one in zip(content.titles, content.results, strict=True)
        for case, name in case_names(one).items()
    }


def of_machines(content: Machines, family: str | None = None) -> list[tuple[str, Result, Row]]:
    """Every row with its result and the title of its machine; of several machines, what is of one case together.

    Args:
        content: the results.
        family: of the rows; None takes all.
    """
    found = [
        (title, one, row)
        for title, one in zip(content.titles, content.results, strict=True)
        for row in one.rows
        if family in (None, row.family)
    ]
    if len(content.results) == 1:
        return found
    order = {case: place for place, case in enumerate(dict.fromkeys((row.model, row.input_shape) for *_, row in found))}
    return sorted(found, key=lambda each: order[each[2].model, each[2].input_shape])


def machine(content: Mapping[str, Any]) -> str:
    """What a machine is, beside its title."""
    versions = content["versions"]
    facts = [
        " ".join(map(str, content.get("flags", ()))),
        f"{content['memory_bytes'] / 1e9:.1f} GB" if "memory_bytes" in content else "",
        str(content.get("system") or ""),
        f"Python {content['python']}" if content.get("python") else "",
        *(f"{name} {versions[name]}" for name in _LIBRARIES if name in versions),
    ]
    return ", ".join(fact for fact in facts if fact)


def title(family: str) -> str:
    """A family's title as a heading."""
    return family[:1].upper() + family[1:]


def shape(sizes: Sequence[int | str]) -> str:
    """Sizes as people write them: 1x3x512x512."""
    return "x".join(map(str, sizes))


def seconds(value: float) -> str:
    """A time in the unit that reads best."""
    return f"{value * 1e3:,.1f} ms" if value < 10 else f"{value:,.1f} s"


def significant(value: float) -> str:
    """Three significant digits of a number, without an exponent."""
    if value <= 0:
        return "0"
    return f"{value:,.{max(2 - math.floor(math.log10(value)), 0)}f}"


def peaks(content: dict[str, Any]) -> str:
    """The roofline peaks of a number of threads."""
    return (
        f"{content['threads']} threads: {content['sgemm_gflops']:,.0f} GFLOP/s ({content['sgemm_library']}), "
        f"{content['bandwidth_gb_s']:,.1f} GB/s"
    )


def interval(value: float, ends: tuple[float, float]) -> str:
    """A time and the relative half-width of its interval."""
    return f"{seconds(value)} ±{100 * stats.half_width(value, ends):.1f} %"


def ratio(value: float, ends: tuple[float, float] | None, digits: int = 2) -> str:
    """A speed-up and its interval."""
    text = f"{value:.{digits}f}x"
    return text if ends is None else f"{text} ({ends[0]:.{digits}f}-{ends[1]:.{digits}f})"


def time(row: Row) -> str:
    """The median time of a pass with the half-width of its interval, if it has one; empty where there are no times."""
    if not timed(row):
        return ""
    assert row.median_s is not None
    return seconds(row.median_s) if row.ci95_s is None else interval(row.median_s, row.ci95_s)


def speedup(row: Row, *, mark: bool = True) -> str:
    """How many times faster than eager a row is, with the interval.

    Args:
        row: the row.
        mark: write ``=`` behind it where there is no difference.
    """
    if row.speedup_over_eager is None:
        return ""
    text = ratio(row.speedup_over_eager, row.speedup_ci95)
    return f"{text} =" if mark and row.verdict == "no difference" else text


def error(row: Row) -> str:
    """The largest error of a row's logits; how many labels agree, where it gives these."""
    if row.max_abs_error is not None:
        return f"{row.max_abs_error:.1e}"
    return "" if row.label_agreement is None else f"labels {100 * row.label_agreement:.4f} %"


def _figure(text: Callable[[Any], str], value: Callable[[Row], Any]) -> Callable[[Row, Result], Cell]:
    """A cell from a property of the row; empty where that is None."""

    def cell(row: Row, _: Result) -> Cell:
        found = value(row)
        return Cell("" if found is None else text(found), found)

    return cell


def _text(value: Callable[[Row], str]) -> Callable[[Row, Result], Cell]:
    return lambda row, _: Cell(value(row), value(row))


def _of_sgemm(row: Row, result: Result) -> Cell:
    peak = next((found["sgemm_gflops"] for found in result.roofline_peaks if found["threads"] == row.threads), None)
    part = row.gflops / peak if row.gflops and peak else None
    return Cell(f"{100 * part:.0f} %" if part else "", part)


def _published(key: str, text: Callable[[Any, Row], str]) -> Callable[[Row, Result], Cell]:
    def cell(row: Row, _: Result) -> Cell:
        found = None if row.published is None else getattr(row.published, key)
        return Cell("" if found is None else text(found, row), found)

    return cell


def _images_per_s(value: float, row: Row) -> str:
    """As the source prints them."""
    return f"{value:.{0 if row.family == 'encoder' else 1}f}"


def precision(its: Iterable[Row]) -> tuple[str, ...]:
    """The columns of precision that these rows need: none where all is float32."""
    kept = [row.precision for row in its if row.precision is not None and row.precision.kind != FLOAT32]
    if not kept:
        return ()
    without = {"labels equal"} if all(one.labels_equal is None for one in kept) else set()
    without |= {"least dice"} if all(one.least_dice is None for one in kept) else set()
    return tuple(name for name in PRECISION if name not in without)


def percent(part: float) -> str:
    """A part of voxels; of what isn't all of them no more than 99.999 %."""
    return f"{min(100 * part, 99.999) if part < 1 else 100:.3f} %"


def dice(value: float) -> str:
    """A Dice score; one below 1 is never rounded up to it."""
    return f"{value if value == 1 else min(value, 0.9999):.4f}"


def megabytes(value: int) -> str:
    """A size."""
    return f"{value / 1e6:,.1f} MB"


def _precision(text: Callable[[Any], str], key: str) -> Callable[[Row, Result], Cell]:
    return _figure(text, lambda row: None if row.precision is None else getattr(row.precision, key))


def _gigabytes(value: int) -> str:
    return f"{value / 1e9:.2f} GB"


COLUMNS = {
    "model": Column("model", _text(lambda row: row.model), number=False),
    "input": Column("input", _text(lambda row: shape(row.input_shape)), number=False),
    "threads": Column("threads", _figure(str, lambda row: row.threads)),
    "runtime": Column("runtime", _text(lambda row: row.backend), number=False),
    "millions": Column("params", _figure(lambda count: f"{count / 1e6:,.2f}M", lambda row: row.parameters)),
    "parameters": Column("parameters", _figure(lambda count: f"{count:,}", lambda row: row.parameters)),
    "precision": Column("precision", _precision(str, "kind"), number=False),
    "size": Column("size", _precision(megabytes, "bytes")),
    "labels equal": Column("labels equal", _precision(percent, "labels_equal")),
    "least dice": Column("least Dice", _precision(dice, "least_dice")),
    "time": Column("time", lambda row, _: Cell(time(row), row.median_s if timed(row) else None)),
    "images": Column("img/s", _figure(significant, lambda row: row.images_per_s)),
    "efficiency": Column("efficiency", _figure(significant, lambda row: row.efficiency)),
    "vs eager": Column("vs eager", lambda row, _: Cell(speedup(row, mark=False), row.speedup_over_eager)),
    "verdict": Column("verdict", _text(lambda row: row.verdict or ""), number=False),
    "gflops": Column("GFLOP/s", _figure(significant, lambda row: row.gflops)),
    "of sgemm": Column("of sgemm", _of_sgemm),
    "ns/voxel": Column("ns/voxel", _figure(significant, lambda row: row.ns_per_voxel)),
    "cpu": Column("cpu", _figure(seconds, lambda row: row.cpu_s)),
    "load": Column("load", _figure(seconds, lambda row: row.load_s)),
    "compile": Column("compile", _figure(seconds, lambda row: row.compile_s)),
    "first result": Column("first result", _figure(seconds, lambda row: row.first_result_s)),
    "peak memory": Column("peak memory", _figure(_gigabytes, lambda row: row.peak_rss_bytes)),
    "max error": Column("max error", lambda row, _: Cell(error(row), row.max_abs_error)),
    "rounds": Column(
        "rounds", lambda row, _: Cell(f"{len(row.rounds)}, {row.stopped or ''}".rstrip(", "), len(row.rounds))
    ),
    "published time": Column("published*", _published("time_ms", lambda value, _: f"{value:g} ms")),
    "published images": Column("img/s*", _published("images_per_s", _images_per_s)),
    "published efficiency": Column("efficiency*", _published("efficiency", lambda value, _: f"{value:g}")),
    "notes": Column(
        "notes",
        lambda row, _: Cell("; ".join(row.warnings) if row.status == OK else row.status, row.status),
        number=False,
    ),
}
"""Every figure of a row, by the name that a table asks for it with."""


def cells(row: Row, result: Result, names: Sequence[str]) -> list[Cell]:
    """The cells of a row.

    Args:
        row: the row.
        result: what it is of.
        names: keys of ``COLUMNS``.
    """
    return [COLUMNS[name].cell(row, result) for name in names]


def texts(row: Row, result: Result, names: Sequence[str], *, missing: str = MISSING) -> list[str]:
    """The texts of a row's cells, with ``missing`` in place of figures that there aren't; see ``cells``."""
    return [
        cell.text or (missing if COLUMNS[name].number else "")
        for name, cell in zip(names, cells(row, result, names), strict=True)
    ]
