"""One picture of a result for a README: how many times faster than PyTorch each runtime is."""

from __future__ import annotations

from typing import Any

from segonnx.bench.machines import Machines
from segonnx.errors import InputError
from segonnx.report import rows

RUNTIMES = {
    "compile": "torch.compile",
    "ort": "ONNX Runtime, segonnx's artifact",
    "openvino": "OpenVINO, segonnx's artifact",
}
"""The runtimes that are drawn, by their names in a result."""
COLOURS = ("#cc79a7", "#0072b2", "#009e73")
"""Okabe and Ito's colours, which colour-blind people can tell apart; both grounds show them."""
WIDTH = 480
"""Of the bars' part, in pixels: with names, legend and figures the picture is about 700 wide."""


def speedups_svg(content: Machines, *, dark: bool) -> str:
    """The speed-ups over PyTorch eager as an SVG: a group of bars for each model and machine, a bar for each runtime.

    Args:
        content: of a bench that timed eager and at least one of ``RUNTIMES``.
        dark: draw for a dark ground instead of a light one; the ground itself is left transparent.

    Raises:
        InputError: vl-convert isn't installed, or the result has no speed-up over eager.
    """
    try:
        import vl_convert
    except ImportError as error:
        raise InputError(f"{error.name} isn't installed: pip install 'segonnx[report]'") from None

    made: str = vl_convert.vegalite_to_svg(_spec(content, dark=dark), vl_version="6.4")
    return made if made.endswith("\n") else made + "\n"


def _spec(content: Machines, *, dark: bool) -> dict[str, Any]:
    names = rows.names(content)
    values = [
        {
            "model": names[title, row.case], "runtime": RUNTIMES[row.backend], "times": row.speedup_over_eager,
            "text": f"{row.speedup_over_eager:.1f}x",
        }
        for title, _, row in rows.of_machines(content)
        if row.backend in RUNTIMES and rows.timed(row) and row.speedup_over_eager is not None
    ]  # fmt: skip
    if not values:
        raise InputError("the result has no speed-up over eager of compile, ort or openvino: there is nothing to draw")
    ink, faint = ("#e6edf3", "#30363d") if dark else ("#1f2328", "#d1d9e0")
    order = list(RUNTIMES.values())
    bars = {
        "y": {"field": "model", "type": "nominal", "sort": None, "title": None, "scale": {"paddingInner": 0.3}},
        "yOffset": {"field": "runtime", "type": "nominal", "sort": order},
        "x": {"field": "times", "type": "quantitative", "title": "times as fast as PyTorch eager"},
    }
    colour = {
        "field": "runtime", "type": "nominal", "legend": {"orient": "top", "title": None, "labelLimit": 0},
        "scale": {"domain": order, "range": list(COLOURS)},
    }  # fmt: skip
    models = len({value["model"] for value in values})
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "width": WIDTH,
        "height": 22 + 17 * len(values) + 8 * models,
        "padding": {"left": 8, "right": 24, "top": 8, "bottom": 8},
        "background": "transparent",
        "data": {"values": values},
        "layer": [
            {"mark": {"type": "bar"}, "encoding": {**bars, "color": colour}},
            {
                "mark": {"type": "text", "align": "left", "dx": 4, "color": ink},
                "encoding": {**bars, "text": {"field": "text"}},
            },
            {
                "mark": {"type": "rule", "color": ink, "strokeDash": [4, 3]},
                "encoding": {"x": {"datum": 1}},
            },
        ],
        "config": {
            "font": "sans-serif",
            "view": {"stroke": None},
            "axis": {
                "labelColor": ink, "titleColor": ink, "gridColor": faint, "domainColor": faint, "tickColor": faint,
                "labelFontSize": 13, "titleFontSize": 13, "titleFontWeight": "normal", "labelLimit": 260,
            },
            "legend": {"labelColor": ink, "labelFontSize": 13, "symbolType": "square"},
            "text": {"fontSize": 12},
        },
    }  # fmt: skip
