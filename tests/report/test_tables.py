from __future__ import annotations

from dataclasses import replace

import pytest

from segonnx.bench import targets
from segonnx.bench.result import Result, Row
from segonnx.report import rows, tables
from segonnx.sources import catalog


def _row(name: str, images_per_s: float, backend: str = "ort") -> Row:
    spec = catalog.find(name)
    assert spec.reference is not None
    images = 4 if spec.family == "3d" else 1
    row = Row(
        model=name,
        family=spec.family,
        backend=backend,
        parameters=spec.reference.parameters,
        macs=spec.reference.inference_macs,
        input_shape=spec.input_shape,
        input_sha256="",
        images=images,
        weights="seeded",
        published=targets.published(spec, spec.input_shape, "seeded"),
        rounds=[[images / images_per_s]] * 5,
        load_s=1.0,
        peak_rss_bytes=10**9,
        max_abs_error=1e-6,
        speedup_over_eager=2.0,
    )
    return row


def _as_published(backend: str = "ort") -> list[Row]:
    published = [spec for spec in catalog.systems() if spec.published_time is not None]
    return [_row(s.name, s.published_time.images_per_s, backend) for s in published if s.published_time]


def test_the_sources_own_figures_confirm_its_conclusions() -> None:
    found = tables.conclusions(Result({}, "", _as_published()))
    assert len(found) == 4
    for conclusion in found:
        assert conclusion.verdict == "holds"
        assert conclusion.ours == pytest.approx(conclusion.published, rel=0.02)


def test_published_efficiency_is_images_per_second_and_million_parameters() -> None:
    for row in _as_published():
        spec = catalog.find(row.model)
        assert spec.published_time is not None
        assert row.efficiency == pytest.approx(spec.published_time.efficiency, rel=0.02, abs=0.006), row.model
        if spec.published_time.time_ms is not None:
            assert row.median_s == pytest.approx(spec.published_time.time_ms / 1e3, rel=0.02)


def test_a_conclusion_can_fail() -> None:
    made = [_row("stunet-s", 10.0), _row("unet-resnet18", 8.0), _row("totalsegmentator", 2.0), _row("stunet-b", 50.0)]
    verdicts = {c.claim.split(" (")[0]: c.verdict for c in tables.conclusions(Result({}, "", made))}
    assert verdicts == {
        "2D is faster than STU-Net-S at a like size": "does not hold",
        "TotalSegmentator is about 2x slower than STU-Net-S": "holds in direction, not in size",
        "STU-Net-S is the best compromise in 3D": "does not hold" if 10 / 14.6 < 50 / 58.3 else "holds",
    }


def test_conclusions_need_their_models_in_one_backend() -> None:
    made = [_row("stunet-s", 10.0, "ort"), _row("totalsegmentator", 5.0, "eager")]
    assert tables.conclusions(Result({}, "", made)) == []


def test_rows_without_identity_prove_no_conclusion() -> None:
    """A user's own network may be called stunet-s, too."""
    made = [replace(row, published=None) for row in _as_published()]
    assert tables.conclusions(Result({}, "", made)) == []


def test_a_row_without_times_shows_why() -> None:
    row = _row("stunet-s", 10.0)
    row.rounds, row.status = [], "torch isn't installed: pip install 'segonnx[export]'"
    printed = tables.family(Result({"threads": 2, "cpu": "test"}, "", [row]), "3d")
    assert "torch isn't installed: pip install 'segonnx[export]'" in printed
    assert "14.60M" in printed


def test_one_round_has_no_interval() -> None:
    row = _row("stunet-s", 10.0)
    assert rows.time(row) == "400.0 ms ±0.0 %"
    row.rounds = [[0.4, 0.5, 0.3]]
    assert rows.time(row) == "400.0 ms"
    assert row.as_dict()["ci95_s"] is None
    assert "±" not in tables.family(Result({"threads": 2, "cpu": "test"}, "", [row]), "3d")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0003499, "0.000350"), (0.0234, "0.0234"), (1.234, "1.23"), (12.34, "12.3"), (123.4, "123"), (1234.5, "1,234")],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert rows.significant(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.01234, "12.3 ms"), (1.5, "1,500.0 ms"), (90.04, "90.0 s")])
def test_times_have_a_unit(value: float, text: str) -> None:
    assert rows.seconds(value) == text
