"""Which graphs the benchmark of algorithms compares."""

from __future__ import annotations

from benchmarks.algorithms import described, restricted, row, variants
from segonnx.optimize import Rewritten
from segonnx.optimize.choices import Choices
from segonnx.optimize.layers import Layer, RewrittenLayer


def layer(number: int, algorithm: str, *others: str) -> tuple[str, RewrittenLayer]:
    found = Layer(((number, 1),), 8, (3,) * 3, (1,) * 3, (1,) * 6, (8,) * 3)
    return str(found), RewrittenLayer(found, 2, ("taps", algorithm, *others), algorithm)


FIRST, SECOND = layer(1, "winograd4", "winograd"), layer(2, "winograd", "winograd4")
LAYERS = dict([FIRST, SECOND])


def test_what_is_not_offered_is_made_by_what_is() -> None:
    assert restricted(LAYERS, {"winograd4", "winograd"}) == {}
    assert restricted(LAYERS, {"winograd"}) == {FIRST[0]: "winograd"}
    assert restricted(LAYERS, {"taps"}) == {FIRST[0]: "taps", SECOND[0]: "taps"}
    assert restricted(LAYERS, {"winograd4", "taps"}) == {SECOND[0]: "winograd4"}


def test_each_graph_is_compared_once() -> None:
    found = variants(Rewritten(("UnrollDepthPass",), LAYERS))
    choices = [str(choice) for choice in found.values()]
    assert len(set(choices)) == len(choices)
    assert {"default, again", "taps alone", "winograd alone", "winograd4 alone"} <= set(found)
    assert "winograd and winograd4" not in found  # that is the default
    assert found["winograd alone"] == Choices(algorithms={FIRST[0]: "winograd"})


def test_images_are_compared_with_and_without_rows() -> None:
    found = variants(Rewritten(("UnrollRowsPass",), {}))
    assert list(found) == ["default, again", "without `UnrollRowsPass`"]


def test_a_row_has_the_ratio_of_the_rounds() -> None:
    assert row("taps", [2.0, 4.0, 6.0], [1.0, 2.0, 3.0], described(LAYERS)) == (
        "| taps | 4000.0 | 2.000 | 2 winograd, 2 winograd4 |"
    )
