"""The charts of a page, as Vega-Lite specifications with their data inside."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from segonnx.bench.result import FLOAT32, CaseKey, Result, Row
from segonnx.report import rows as formatted

Spec = dict[str, Any]

# Okabe and Ito's colours, which colour-blind people can tell apart, and a shape for each besides.
_LOOKS = {
    "eager": ("#d55e00", "circle"),
    "eager-channels-last": ("#e69f00", "triangle-up"),
    "compile": ("#cc79a7", "square"),
    "compile-channels-last": ("#999999", "triangle-down"),
    "ort": ("#0072b2", "diamond"),
    "ort-stock": ("#56b4e9", "triangle-right"),
    "openvino": ("#009e73", "cross"),
    "openvino-stock": ("#8fbc5a", "triangle-left"),
}
_OTHER = ("#b8860b", "square")

SECTIONS = {
    "Time": "Median time of a pass, with its 95 % interval. Further left is faster.",
    "Accuracy against speed": "Published Dice score of each network with its published weights, against slices of "
    "512x512 per second measured here. The scores are others' measurements; further up and to the right is better.",
    "Precision against speed": "What artifacts of one network in several precisions keep of float32's labels, as their "
    "manifests say, against passes per second measured here: the least fraction of voxels of an image with the same "
    "label, and the least Dice of a label, where label maps were compared. Further up and to the right is better.",
    "Every sample": "All timed passes in the order in which they ran, relative to the median of their runtime. A "
    "cloud that rises or falls is drift; the intervals don't know of it.",
    "Roofline": "Operations per second that each runtime achieved, against operations per byte. The lines are the "
    "machine's limits as measured in the same run: a large matrix product, and copying memory. Bytes are weights, "
    "input and logits, each moved once, the least that a pass can do, so the true place of a point is further left. "
    "Operations are those of the published method: a runtime that needs fewer can lie above the line.",
    "Time by kind of operator": "From passes under each runtime's own profiler, which slows them a little.",
    "Cases": "How long each case took, where the time went, and when cases ended. Times of reading and writing pass "
    "while other cases are in the network, so that the sum is more than what passed.",
}
TICKS = {"tickCount": 8}
LOG = 8
"""An axis is logarithmic where its values differ by more than this factor."""


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        section: a key of ``SECTIONS``.
        title: of the chart within it.
        text: what it shows, for those who don't see it.
        spec: for Vega-Lite.
    """

    section: str
    title: str
    text: str
    spec: Spec


def charts(result: Result) -> list[Chart]:
    """Every chart that the result has data for."""
    rows = [row for row in result.rows if formatted.timed(row)]
    names = formatted.case_names(result)
    found = []
    for key, title in result.families().items():
        if family := [row for row in rows if row.family == key]:
            found.append(_time(formatted.title(title), family, names))
    found += _accuracy(rows, names)
    found += _precision(rows)
    found += _roofline(rows, names, result.roofline_peaks)
    found += _kinds(rows, names)
    found += _samples(rows, names)
    return found


def _time(title: str, rows: list[Row], names: dict[CaseKey, str]) -> Chart:
    values: list[dict[str, Any]] = []
    for row in rows:
        assert row.median_s is not None
        low, high = row.ci95_s or (row.median_s, row.median_s)
        values.append(
            {
                "model": names[row.case], "runtime": row.backend, "ms": 1e3 * row.median_s, "low": 1e3 * low,
                "high": 1e3 * high, "time": formatted.time(row), "vs eager": formatted.speedup(row),
            }
        )  # fmt: skip
    x = {
        "type": "quantitative", "title": "milliseconds per pass", "scale": _scale([value["ms"] for value in values]),
        "axis": TICKS,
    }  # fmt: skip
    y = {
        "y": {"field": "model", "type": "nominal", "title": None, "sort": None, "axis": {"labelLimit": 260}},
        "yOffset": {"field": "runtime", "type": "nominal", "sort": _present(rows)},
    }
    looks = _looks(rows)
    spec = vega(
        values,
        height=16 * len(rows) + 12 * len({row.case for row in rows}),  # a step would be refused beside "container"
        layer=[
            {
                "mark": {"type": "rule", "strokeWidth": 2},
                "encoding": {**y, "x": {"field": "low", **x}, "x2": {"field": "high"}, "color": looks["color"]},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1},
                "encoding": {
                    **y,
                    "x": {"field": "ms", **x},
                    **looks,
                    "tooltip": _tips("model", "runtime", "time", "vs eager"),
                },
            },
        ],
    )
    return Chart("Time", title, f"Time of {len(rows)} rows by runtime; see the table.", spec)


def _accuracy(rows: list[Row], names: dict[CaseKey, str]) -> list[Chart]:
    values: list[dict[str, Any]] = []
    for row in rows:
        dice = None if row.published is None else row.published.dsc_percent
        if dice is not None:
            assert row.images_per_s is not None
            values.append(
                {
                    "model": names[row.case], "runtime": row.backend, "slices": row.images_per_s, "dsc": dice,
                    "slices/s": formatted.significant(row.images_per_s), "Dice": f"{dice:g} %",
                }
            )  # fmt: skip
    if len({value["model"] for value in values}) < 2:
        return []
    used = [row for row in rows if any(value["runtime"] == row.backend for value in values)]
    fastest = {value["model"]: value for value in sorted(values, key=lambda value: value["slices"])}
    for value in values:
        value["label"] = value["model"] if fastest[value["model"]] is value else ""
    x = {
        "field": "slices", "type": "quantitative", "title": "slices of 512x512 per second",
        "scale": _scale([value["slices"] for value in values]), "axis": TICKS,
    }  # fmt: skip
    y = {
        "field": "dsc", "type": "quantitative", "title": "published Dice score, %",
        "scale": {"zero": False, "padding": 18},
    }  # fmt: skip
    spec = vega(
        values,
        height=300,
        layer=[
            {
                "mark": {"type": "point", "filled": True, "size": 110, "opacity": 1},
                "encoding": {"x": x, "y": y, **_looks(used), "tooltip": _tips("model", "runtime", "Dice", "slices/s")},
            },
            {
                "mark": {"type": "text", "align": "right", "dy": -12, "dx": 8},
                "encoding": {"x": x, "y": y, "text": {"field": "label"}},
            },
        ],
    )
    return [Chart("Accuracy against speed", "3D networks", f"{len(values)} points; the table has the speeds.", spec)]


def _precision(rows: list[Row]) -> list[Chart]:
    """A chart for each network of which there are artifacts in several precisions."""
    found = []
    held = [row for row in rows if row.precision is not None]
    for network, sizes, threads in dict.fromkeys((row.network, row.input_shape, row.threads) for row in held):
        its = [row for row in held if (row.network, row.input_shape, row.threads) == (network, sizes, threads)]
        if len({row.precision.kind for row in its if row.precision}) < 2:
            continue
        values = [value for row in its for value in _kept(row)]
        x = {
            "field": "passes", "type": "quantitative", "title": "passes per second", "axis": TICKS,
            "scale": _scale([value["passes"] for value in values]) | {"padding": 18},
        }  # fmt: skip
        y = {
            "field": "part", "type": "quantitative", "title": "as float32, %",
            "scale": {"zero": False, "padding": 18},
        }  # fmt: skip
        looks = _looks(its)
        shape = {"field": "kept", "type": "nominal", "legend": {"orient": "top", "title": None}}
        tips = _tips("precision", "runtime", "labels equal", "least Dice", "time", "size")
        spec = vega(
            values,
            height=260,
            layer=[
                {
                    "mark": {"type": "point", "filled": True, "size": 110, "opacity": 1},
                    "encoding": {"x": x, "y": y, "color": looks["color"], "shape": shape, "tooltip": tips},
                },
                {
                    "mark": {"type": "text", "align": "right", "dy": -12, "dx": 8},
                    "encoding": {"x": x, "y": y, "text": {"field": "label"}},
                },
            ],
        )
        title = f"{network}, {formatted.shape(sizes)}, {threads} threads"
        found.append(Chart("Precision against speed", title, f"{len(values)} points; the table has the figures.", spec))
    return found


def _kept(row: Row) -> list[dict[str, Any]]:
    """A point for each thing that a row's artifact says to keep; float32 keeps all."""
    assert row.precision is not None and row.median_s is not None
    stored = row.precision
    whole = 1.0 if stored.kind == FLOAT32 else None
    kept = {
        "labels equal": whole if stored.labels_equal is None else stored.labels_equal,
        "least Dice": whole if stored.least_dice is None else stored.least_dice,
    }
    facts = {
        "precision": stored.kind, "runtime": row.backend, "passes": 1 / row.median_s, "time": formatted.time(row),
        "size": formatted.megabytes(stored.bytes),
        "labels equal": "" if kept["labels equal"] is None else formatted.percent(kept["labels equal"]),
        "least Dice": "" if kept["least Dice"] is None else formatted.dice(kept["least Dice"]),
    }  # fmt: skip
    return [
        {**facts, "kept": name, "part": 100 * part, "label": stored.kind if name == "labels equal" else ""}
        for name, part in kept.items()
        if part is not None
    ]


def _samples(rows: list[Row], names: dict[CaseKey, str]) -> list[Chart]:
    found = []
    for case in dict.fromkeys(row.case for row in rows):
        its = [row for row in rows if row.case == case]
        values = []
        for row in its:
            assert row.median_s is not None
            for began, block in zip(row.started_s, row.rounds, strict=True):
                when = began
                for seconds in block:
                    part = round(seconds / row.median_s, 4)
                    values.append({"s": round(when, 3), "part": part, "runtime": row.backend})
                    when += seconds
        count = len(values)
        spec = vega(
            values,
            height=150,
            mark={"type": "point", "filled": True, "size": 12 if count > 400 else 60, "opacity": 0.6},
            encoding={
                "x": {
                    "field": "s", "type": "quantitative", "title": "seconds since the bench began",
                    "scale": {"zero": False}, "axis": TICKS,
                },
                "y": {
                    "field": "part", "type": "quantitative", "title": "of the median",
                    "scale": {"zero": False}, "axis": {"format": ".0%"},
                },
                **_looks(its),
            },
        )  # fmt: skip
        spec["usermeta"] = {"canvas": True}
        found.append(Chart("Every sample", names[case], f"{count} samples of {names[case]} over time.", spec))
    return found


def _roofline(rows: list[Row], names: dict[CaseKey, str], peaks: list[dict[str, Any]]) -> list[Chart]:
    points: list[dict[str, Any]] = [
        {
            "model": names[row.case], "runtime": row.backend, "intensity": 2 * row.macs / row.memory_bytes,
            "gflops": row.gflops, "GFLOP/s": formatted.significant(row.gflops),
        }
        for row in rows
        if row.memory_bytes and row.gflops
    ]  # fmt: skip
    if not points or not peaks:
        return []
    lowest = min(point["intensity"] for point in points) / 2
    highest = max(point["intensity"] for point in points) * 2
    lines = []
    for peak in peaks:
        corner = peak["sgemm_gflops"] / peak["bandwidth_gb_s"]
        low = min(lowest, corner / 2)
        label = f"{peak['threads']} threads"
        lines += [
            {"threads": label, "intensity": x, "gflops": min(peak["sgemm_gflops"], x * peak["bandwidth_gb_s"])}
            for x in (low, corner, max(highest, 2 * corner))
        ]
    log = {"scale": {"type": "log", "nice": False, "padding": 12}, "axis": TICKS}
    x = {"field": "intensity", "type": "quantitative", "title": "operations per byte", **log}
    y = {"field": "gflops", "type": "quantitative", "title": "GFLOP/s", **log}
    spec = vega(
        None,
        height=340,
        layer=[
            {
                "data": {"values": lines},
                "mark": {"type": "line", "strokeWidth": 1.5, "strokeDash": [5, 3]},
                "encoding": {"x": x, "y": y, "detail": {"field": "threads"}},
            },
            {
                "data": {"values": points},
                "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1},
                "encoding": {"x": x, "y": y, **_looks(rows), "tooltip": _tips("model", "runtime", "GFLOP/s")},
            },
        ],
    )
    limits = "; ".join(formatted.peaks(peak) for peak in peaks)
    return [Chart("Roofline", limits, f"{len(points)} points below the machine's limits: {limits}.", spec)]


def _kinds(rows: list[Row], names: dict[CaseKey, str]) -> list[Chart]:
    found = []
    for case in dict.fromkeys(row.case for row in rows if row.profile):
        values = []
        for row in rows:
            if row.case != case or not row.profile:
                continue
            for kind in dict.fromkeys(operator.kind for operator in row.profile):
                ms = 1e3 * sum(operator.seconds for operator in row.profile if operator.kind == kind)
                values.append({"runtime": row.backend, "kind": kind, "ms": ms, "time": formatted.seconds(ms / 1e3)})
        spec = vega(
            values,
            height=30 * len({value["runtime"] for value in values}),
            mark={"type": "bar"},
            encoding={
                "y": {"field": "runtime", "type": "nominal", "title": None, "sort": None},
                "x": {"field": "ms", "type": "quantitative", "title": "milliseconds per pass", "stack": True},
                "color": {
                    "field": "kind", "type": "nominal", "scale": {"scheme": "tableau20"},
                    "legend": {"orient": "bottom", "columns": 4, "title": None},
                },
                "tooltip": _tips("runtime", "kind", "time"),
            },
        )  # fmt: skip
        found.append(Chart("Time by kind of operator", names[case], f"Operators of {names[case]} by runtime.", spec))
    return found


def vega(values: list[Any] | None, **content: Any) -> Spec:
    """A specification for Vega-Lite.

    Args:
        values: the data, if the layers have none of their own.
        content: further keys.
    """
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "width": "container",
        "autosize": {"type": "fit-x", "contains": "padding"},
        **({} if values is None else {"data": {"values": values}}),
        **content,
    }


def _present(rows: Sequence[Row]) -> list[str]:
    backends = dict.fromkeys(row.backend for row in rows)
    return [name for name in _LOOKS if name in backends] + [name for name in backends if name not in _LOOKS]


def _looks(rows: Sequence[Row]) -> Spec:
    """A colour and a shape for each runtime, the same in all charts."""
    names = _present(rows)
    looks = [_LOOKS.get(name, _OTHER) for name in names]
    legend = {"orient": "top", "title": None}
    return {
        "color": {
            "field": "runtime", "type": "nominal", "legend": legend,
            "scale": {"domain": names, "range": [colour for colour, _ in looks]},
        },
        "shape": {
            "field": "runtime", "type": "nominal", "legend": legend,
            "scale": {"domain": names, "range": [shape for _, shape in looks]},
        },
    }  # fmt: skip


def _scale(values: Sequence[float]) -> Spec:
    wide = min(values) > 0 and math.log(max(values) / min(values)) > math.log(LOG)
    return {"type": "log", "nice": True} if wide else {"zero": True}


def _tips(*names: str) -> list[Spec]:
    return [{"field": name, "type": "nominal"} for name in names]
