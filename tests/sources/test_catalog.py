from __future__ import annotations

import json
from dataclasses import replace

import pytest

from segonnx.errors import InputError
from segonnx.sources import catalog
from segonnx.sources.catalog import Figure
from tests.conftest import run

# As counted independently of this code, when the systems were chosen.
EXACT = {
    "totalsegmentator": 31_288_169,
    "stunet-s": 14_602_953,
    "stunet-b": 58_274_633,
    "stunet-l": 440_326_473,
    "stunet-h": 1_457_361_993,
    "unet-mobilenetv3-small": 3_418_037,
    "unet-mobileone-s0": 4_629_973,
    "unet-regnetx-002": 4_879_525,
    "unet-resnet18": 14_242_517,
    "encoder-mobileone-s0": 2_078_504,
    "encoder-regnetx-002": 2_684_792,
    "encoder-lcnet-100": 2_953_800,
    "encoder-mobilenetv4-conv-small": 3_774_024,
    "encoder-mobilenetv3-small": 2_542_856,
}
GMACS = {"totalsegmentator": 242.47, "stunet-s": 65.0, "stunet-b": 253.7, "stunet-l": 1902.8, "stunet-h": 6298.3}


def test_the_fourteen_systems_have_their_exact_counts() -> None:
    assert {s.name: s.reference.parameters for s in catalog.systems() if s.reference} == EXACT
    assert catalog.find("unet-mobileone-s0").reference.training_parameters == 7_844_741  # type: ignore[union-attr]


def test_multiply_adds_are_the_published_ones() -> None:
    for name, published in GMACS.items():
        reference = catalog.find(name).reference
        assert reference is not None
        assert reference.macs == pytest.approx(published * 1e9, rel=0.005), name


def test_modules_add_up() -> None:
    for spec in catalog.systems():
        assert spec.reference is not None
        assert sum(spec.reference.modules.values()) == spec.reference.parameters


@pytest.mark.parametrize(
    ("text", "exact", "matches"),
    [
        ("14.60M", 14_602_953, True),
        ("14.60M", 14_605_000, False),
        ("14.60M", 14_594_999, False),
        ("0.51T", 506_243_317_760, True),
        ("31,288,169", 31_288_169, True),
        ("31,288,169", 31_288_170, False),
    ],
)
def test_a_figure_matches_what_rounds_to_it(text: str, exact: int, matches: bool) -> None:
    assert Figure(text, "test").matches(exact) is matches


def test_list_json_has_the_agreed_keys() -> None:
    rows = json.loads(run("list", "--json").stdout)
    assert [row["name"] for row in rows] == list(EXACT)
    keys = {"name", "family", "input_shape", "num_classes", "parameters", "published_parameters", "macs", "source"}
    for row in rows:
        assert keys <= row.keys()
        assert row["parameters"] == EXACT[row["name"]]
    assert next(row for row in rows if row["name"] == "stunet-l")["published_parameters"] == 440_300_000


def test_list_prints_every_system() -> None:
    printed = run("list").stdout
    for name, count in EXACT.items():
        assert name in printed
        assert f"{count:,}" in printed


def test_list_check_builds_counts_and_compares_all() -> None:
    result = run("list", "--check")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "FAIL" not in result.stdout
    for name in EXACT:
        assert f"ok   {name}" in result.stdout
    assert "@105 classes" in result.stdout


def test_list_check_fails_on_a_wrong_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    # The same command with one count of the reference changed by one.
    (spec,) = (spec for spec in catalog.systems() if spec.name == "encoder-lcnet-100")
    assert spec.reference is not None
    wrong = replace(spec, reference=replace(spec.reference, parameters=spec.reference.parameters + 1))
    monkeypatch.setattr(catalog, "systems", lambda: (wrong,))
    result = run("list", "--check")
    assert result.returncode == 1
    assert "FAIL encoder-lcnet-100" in result.stdout
    assert "Traceback" not in result.stderr


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean stunet-s"):
        catalog.find("stunet_s")


@pytest.mark.parametrize("name", ["smp:", "smp:unet", "smp:unet:", "smp:a:b:c"])
def test_a_malformed_smp_name_says_what_is_expected(name: str) -> None:
    with pytest.raises(InputError, match="ARCHITECTURE:ENCODER"):
        catalog.find(name)
