"""What came of a cohort, as a page and as markdown: how far it is, what failed, what took longest, and on what."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import pairwise
from statistics import median, quantiles
from typing import Any

from segonnx.core import markdown
from segonnx.errors import one_line
from segonnx.predict.records import Cohort, Record
from segonnx.report import html
from segonnx.report.charts import Chart, vega

SLOWEST = 50
"""So many of the cases that took longest are shown."""
FAILED = 5000
"""So many of the cases that aren't done are shown at most: a page that no browser opens shows none."""
BINS = 30
POINTS = 500
"""The most points of a line."""
WORDS = {"done": "done", "failed": "failed", "refused": "refused", "left": "left after two processes died with it"}

Cell = tuple[str, str, bool]
"""What is shown, what it is sorted by, and whether that is a number."""


def render(cohort: Cohort) -> str:
    """The page as HTML; see ``html.page``.

    Raises:
        InputError: a library that draws the page isn't installed.
    """
    failed = _not_done(cohort)
    return html.page(
        "cohort.html.jinja",
        _charts(cohort),
        name=_name(cohort),
        ended=max((record["ended"] for record in cohort.records.values()), default="")[:16].replace("T", " "),
        warnings=_warnings(cohort),
        findings=findings(cohort),
        failed=[_failed_cells(record) for record in failed[:FAILED]],
        failed_more=max(0, len(failed) - FAILED),
        slowest=[_slow_cells(record) for record in _slowest(cohort)],
        failed_header=["case", "status", "why", "ended", "host"],
        slowest_header=["case", "time", *_STEPS, "peak memory", "shape", "host", "notes"],
        facts=_facts(cohort),
    )


def text(cohort: Cohort) -> str:
    """The page's words and tables in GitHub's markdown."""
    parts = [f"### {markdown.line(_name(cohort))}"]
    parts += ["\n".join(f"- {markdown.escape(line)}" for line in lines) for _, lines in findings(cohort)]
    if warnings := _warnings(cohort):
        parts.append("\n".join(f"- {markdown.escape(line)}" for line in warnings))
    if failed := _not_done(cohort)[:FAILED]:
        parts.append(_table(["case", "status", "why", "ended", "host"], [_failed_cells(one) for one in failed]))
    header = ["case", "time", *_STEPS, "peak memory", "shape", "host", "notes"]
    if slowest := _slowest(cohort)[:10]:
        parts.append(_table(header, [_slow_cells(one) for one in slowest]))
    return "\n\n".join(parts)


def findings(cohort: Cohort) -> list[tuple[str, list[str]]]:
    """What is to be said of a cohort: titles, each with its sentences."""
    counts = Counter(record["status"] for record in cohort.records.values())
    left = cohort.cases - len(cohort.records)
    share = 100 * counts["done"] / max(1, cohort.cases)
    progress = [f"{counts['done']:,} of {cohort.cases:,} cases are done ({share:.1f} %)"]
    progress += [f"{counts[status]:,} {WORDS[status]}" for status in WORDS if status != "done" and counts[status]]
    progress += [f"{left:,} haven't ended yet"] if left > 0 else []
    done = _done(cohort)
    found = [("Progress", progress)]
    if not done:
        return found
    times = [_seconds(record) for record in done]
    network = sum(record.get("seconds", {}).get("network", 0.0) for record in done)
    spread = f"; nine of ten take less than {_time(quantiles(times, n=10)[-1])}" if len(times) > 1 else ""
    memory = max(record.get("peak_memory_bytes", 0) for record in done)
    empty = sum(not record.get("labels") for record in done)
    found.append(
        (
            "Time and memory",
            [
                f"a case takes {_time(median(times))} in the median{spread}",
                f"all of them took {_time(sum(times))} of a process, {_time(network)} of that in the network",
                f"the most memory that a process held was {memory / 1e9:.2f} GB",
            ],
        )
    )
    if empty:
        found.append(("Labels", [f"{empty:,} cases have no label but the background"]))
    return found


_STEPS = ("read", "prepare", "network", "write")


def _name(cohort: Cohort) -> str:
    return f"{cohort.cases:,} case{'s' if cohort.cases != 1 else ''}"


def _done(cohort: Cohort) -> list[Record]:
    return [record for record in cohort.records.values() if record["status"] == "done"]


def _not_done(cohort: Cohort) -> list[Record]:
    found = [record for record in cohort.records.values() if record["status"] != "done"]
    return sorted(found, key=lambda record: record["case"])


def _slowest(cohort: Cohort) -> list[Record]:
    return sorted(_done(cohort), key=lambda record: (-_seconds(record), record["case"]))[:SLOWEST]


def _seconds(record: Record) -> float:
    return float(sum(record.get("seconds", {}).values()))


def _time(seconds: float) -> str:
    """A time in the unit that reads best."""
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds:.2f} s" if seconds < 100 else f"{seconds:,.0f} s"


def _warnings(cohort: Cohort) -> list[str]:
    found = []
    for what, values in (
        ("artifacts", {record["recipe"]["artifact"] for record in _done(cohort)}),
        ("versions of segonnx", {record["segonnx"] for record in _done(cohort)}),
        ("options", {repr(sorted(record["recipe"]["options"].items())) for record in _done(cohort)}),
    ):
        if len(values) > 1:
            found.append(f"the cases were made by {len(values)} different {what}")
    if cohort.cut:
        found.append(f"{cohort.cut} lines were cut by processes that died: the next run that reports mends that")
    return found


def _facts(cohort: Cohort) -> list[tuple[str, str]]:
    done = _done(cohort) or list(cohort.records.values())
    if not done:
        return []
    recipe = done[0]["recipe"]
    hosts = Counter(record["host"] for record in done)
    facts = {
        "artifact": recipe["artifact"],
        "first stage": recipe["previous"] or "",
        **{
            one_line(key.replace("_", " "), 100): one_line(str(value), 300)
            for key, value in recipe["options"].items()
            if value not in (None, False)
        },
        "segonnx": ", ".join(sorted({record["segonnx"] for record in done})),
        "hosts": ", ".join(f"{host} ({count:,})" for host, count in hosts.most_common(20)),
        "first and last": " to ".join((min(one["ended"] for one in done), max(one["ended"] for one in done))),
    }
    return [(key, value) for key, value in facts.items() if value]


def _failed_cells(record: Record) -> list[Cell]:
    texts = (record["case"], record["status"], record.get("error", ""), record["ended"], record["host"])
    return [(text, text, False) for text in texts]


def _slow_cells(record: Record) -> list[Cell]:
    steps = record.get("seconds", {})
    shape = record.get("shape", [])
    memory = record.get("peak_memory_bytes", 0)
    times = (_seconds(record), *(steps.get(step, 0.0) for step in _STEPS))
    return [
        (record["case"], record["case"], False),
        *[(_time(one), str(one), True) for one in times],
        (f"{memory / 1e9:.2f} GB", str(memory), True),
        ("x".join(map(str, shape)), str(math.prod(shape)), True),
        (record["host"], record["host"], False),
        ("; ".join(record.get("warnings", [])),) * 2 + (False,),
    ]


def _table(header: Sequence[str], lines: Sequence[Sequence[Cell]]) -> str:
    cells = [[markdown.escape(text) for text, _, _ in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in ([*header], ["---"] * len(header), *cells))


def _charts(cohort: Cohort) -> list[Chart]:
    done = _done(cohort)
    times = [_seconds(record) for record in done]
    if not times or max(times) <= 0:
        return []
    return [*_distribution(times), *_steps(done), *_over_time(cohort)]


def _distribution(times: Sequence[float]) -> Iterator[Chart]:
    """How many cases took how long, in bins of equal width, or of equal ratio where times differ much."""
    least, most = max(min(times), 1e-3), max(*times, 1e-3)
    log = most / least > 8
    edges = [
        least * (most / least) ** (number / BINS) if log else least + (most - least) * number / BINS
        for number in range(BINS + 1)
    ]
    counts = [0] * BINS
    for seconds in times:
        place = BINS * (math.log(max(seconds, least) / least) / math.log(most / least) if log else
                        (seconds - least) / max(most - least, 1e-9))  # fmt: skip
        counts[min(BINS - 1, max(0, int(place)))] += 1
    values = [
        {"from": low, "to": max(high, low * 1.001), "cases": count, "time": f"{_time(low)} to {_time(high)}"}
        for (low, high), count in zip(pairwise(edges), counts, strict=True)
    ]
    scale: dict[str, Any] = {"type": "log", "nice": False} if log else {"zero": False}
    spec = vega(
        values,
        height=220,
        mark={"type": "bar", "color": "#0072b2", "stroke": "white", "strokeWidth": 0.5},
        encoding={
            "x": {"field": "from", "type": "quantitative", "title": "seconds of a case", "scale": scale},
            "x2": {"field": "to"},
            "y": {"field": "cases", "type": "quantitative", "title": "cases"},
            "tooltip": [{"field": "time", "type": "nominal"}, {"field": "cases", "type": "quantitative"}],
        },
    )
    yield Chart("Cases", "Time of a case", f"The times of {len(times)} cases, in {BINS} bins.", spec)


def _steps(done: Sequence[Record]) -> Iterator[Chart]:
    """Where the time went."""
    sums: dict[str, float] = defaultdict(float)
    for record in done:
        for step, seconds in record.get("seconds", {}).items():
            sums[step] += seconds
    values = [
        {"step": step, "s": seconds / len(done), "time": f"{_time(seconds / len(done))} a case"}
        for step, seconds in sorted(sums.items(), key=lambda item: -item[1])[:20]
    ]
    spec = vega(
        values,
        height=24 * len(values),
        mark={"type": "bar", "color": "#009e73"},
        encoding={
            "y": {"field": "step", "type": "nominal", "title": None, "sort": None},
            "x": {"field": "s", "type": "quantitative", "title": "seconds of a case, in the mean"},
            "tooltip": [{"field": "step", "type": "nominal"}, {"field": "time", "type": "nominal"}],
        },
    )
    yield Chart("Cases", "Where the time goes", f"Seconds of {len(values)} steps, in the mean of all cases.", spec)


def _over_time(cohort: Cohort) -> Iterator[Chart]:
    """How many cases had ended, over time."""
    ended = sorted(datetime.fromisoformat(record["ended"]) for record in cohort.records.values())
    if len(ended) < 2 or ended[0] == ended[-1]:
        return
    numbers = sorted({round(place * (len(ended) - 1) / (POINTS - 1)) for place in range(POINTS)})
    values = [{"hours": (ended[n] - ended[0]).total_seconds() / 3600, "cases": n + 1} for n in numbers]
    spec = vega(
        values,
        height=220,
        mark={"type": "line", "color": "#d55e00", "interpolate": "step-after"},
        encoding={
            "x": {"field": "hours", "type": "quantitative", "title": "hours since the first case ended"},
            "y": {"field": "cases", "type": "quantitative", "title": "cases that ended"},
        },
    )
    yield Chart("Cases", "Cases over time", f"{len(ended)} cases ended.", spec)
