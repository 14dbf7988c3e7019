"""How many times faster the artifact is than every other way to run the model, into docs/performance.md.

    python -m benchmarks.speedups RESULT.json...

The results are those of `make bench-perf`: nothing is measured here. Where the host moved the processors between caches
meanwhile, a network has a line for the rounds on either side.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace as with_
from pathlib import Path

from benchmarks.docs import put_block
from segonnx.bench import core_latency, machines, result, stats
from segonnx.bench.result import OK, Ratio, Result, Row

ROOT = Path(__file__).resolve().parents[1]
BLOCK_VERSION = 1
"""Raised when what this program writes, or measures, changes."""
OURS = "ort"
BASELINE = "ort-stock"
TORCH = ("eager", "eager-channels-last", "compile", "compile-channels-last")
WRONG = " †"
NEAR, FAR, EITHER = "one", "two", "either"
FEWEST = 3
"""A side of which there are fewer rounds has no line; one of all rounds takes its place."""
HEAD = (
    "| model | caches | ms | the stock graph | the best of PyTorch | OpenVINO, stock graph | "
    "memory, times the stock graph's | GFLOP/s, times sgemm's | least ms for its bytes |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def ratio(found: Result, row: Row, other: str) -> tuple[float, tuple[float, float] | None] | None:
    """How many times faster the row is than another runtime in the same case, with its 95 % interval."""
    known: Ratio
    for known in found.ratios:
        if (known.model, tuple(known.input_shape), known.threads) != row.case:
            continue
        if (known.baseline, known.backend) == (other, row.backend):
            return known.speedup, known.ci95
        if (known.baseline, known.backend) == (row.backend, other):
            return 1 / known.speedup, None if known.ci95 is None else (1 / known.ci95[1], 1 / known.ci95[0])
    return None


def sides(found: Result) -> dict[str, Result]:
    """The rounds in which the processors shared a cache, and the others; all of them where that never changed.

    A round is of a side for two runtimes if the blocks of both were.
    """
    levels = core_latency.levels([latency for row in found.rows for latency in row.core_latency_ns])
    if levels is None:
        return {"": found}
    middle = math.sqrt(math.prod(levels))
    parts = {}
    for name in (NEAR, FAR):

        def here(row: Row, name: str = name) -> list[bool]:
            return [(latency < middle) == (name == NEAR) for latency in row.core_latency_ns]

        rows = {(row.case, row.backend): row for row in found.rows}
        ratios = []
        for known in found.ratios:
            case = known.model, tuple(known.input_shape), known.threads
            a, b = rows[case, known.baseline], rows[case, known.backend]
            both = [i for i, pair in enumerate(zip(here(a), here(b), strict=False)) if all(pair)]
            if known.interleaved and len(both) >= FEWEST:
                value, interval = stats.speedup([a.rounds[i] for i in both], [b.rounds[i] for i in both])
                ratios.append(with_(known, speedup=value, ci95=interval, rounds=len(both)))
        kept = []
        for row in found.rows:
            mine = [its for its, side in zip(row.rounds, here(row), strict=False) if side]
            kept.append(with_(row, rounds=mine, rounds_per_process=[len(mine)]))
        parts[name] = with_(found, rows=kept, ratios=ratios)
    return parts


def line(found: Result, row: Row, caches: str = "") -> str:
    """A model's line of the table."""
    others = {its.backend: its for its in found.rows if its.case == row.case and its.status == OK and its.rounds}
    torch = min((name for name in TORCH if name in others), key=lambda name: others[name].median_s or 0.0, default="")

    def over(name: str) -> str:
        known = ratio(found, row, name)
        if known is None:
            return "-"
        interval = "" if known[1] is None else f" ({known[1][0]:.2f}-{known[1][1]:.2f})"
        return f"{known[0]:.2f}x{interval}" + (f" {name}" if name in TORCH else "") + ("" if name in others else WRONG)

    stock = others.get(BASELINE)
    memory = "-"
    if stock is not None and stock.peak_rss_bytes and row.peak_rss_bytes:
        memory = f"{row.peak_rss_bytes / stock.peak_rss_bytes:.2f}"
    rate = least = "-"
    peaks = next((each for each in found.roofline_peaks if each["threads"] == row.threads), None)
    if peaks is not None and row.gflops is not None and row.memory_bytes is not None:
        rate = f"{row.gflops:.0f}, {row.gflops / peaks['sgemm_gflops']:.2f}"
        least = f"{1e-6 * row.memory_bytes / peaks['bandwidth_gb_s']:.1f}"
    taken = f"{1e3 * row.median_s:.1f}" if row.median_s is not None else row.status
    cells = (row.model, caches, taken, over(BASELINE), over(torch), over("openvino-stock"), memory, rate, least)
    return f"| {' | '.join(cells)} |"


def table(found: Result) -> str:
    """The table, and which machine it is of."""
    machine, versions = found.machine, found.machine["versions"]
    names = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "torch": "torch"}
    where = (
        f"{machine['cpu']} ({', '.join(machine['flags'])}), {found.rows[0].threads} threads; "
        f"{', '.join(f'{name} {versions[key]}' for key, name in names.items())}."
    )
    for peaks in found.roofline_peaks[:1]:
        where += (
            f" NumPy's sgemm: {peaks['sgemm_gflops']:.0f} GFLOP/s; copying memory: {peaks['bandwidth_gb_s']:.0f} GB/s."
        )
    parts = sides(found)
    lines = []
    for row in found.rows:
        if row.backend == OURS:
            mine = {
                name: next(its for its in part.rows if its.case == row.case and its.backend == OURS)
                for name, part in parts.items()
            }
            enough = {
                name: its
                for name, its in mine.items()
                if len(its.rounds) >= FEWEST and (ratio(parts[name], its, BASELINE) or not ratio(found, row, BASELINE))
            }
            lines += [line(parts[name], its, name) for name, its in enough.items()]
            if len(enough) < len(parts):
                lines.append(line(found, row, EITHER if len(parts) > 1 else ""))
    notes = ["", f"{WRONG.strip()} its logits differ from PyTorch's by more than the tolerance."]
    return "\n".join([where, "", HEAD, *lines, *(notes if any(WRONG in text for text in lines) else [])])


def main(paths: Sequence[str]) -> None:
    """Print the table, and put it into the page."""
    merged = machines.merge([result.read(Path(path)) for path in paths])
    text = table(merged)
    print(text)
    where = f"{merged.rows[0].threads} cores of {merged.machine['cpu']}"
    put_block(ROOT / "docs" / "performance.md", "speedups", text, "benchmarks.speedups", where)


if __name__ == "__main__":
    main(sys.argv[1:])
