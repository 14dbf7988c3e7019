"""A small part of ``make faults``."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import faults, writing_faults
from segonnx.artifacts import packing
from segonnx.artifacts.verify import verify
from tests.conftest import SMALL


@pytest.fixture(scope="module")
def artifacts(exports: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The small artifact, and the same with its weights in a file of their own."""
    return [exports / SMALL, faults.external(exports / SMALL, tmp_path_factory.mktemp("external") / "external")]


def test_damage_is_found(artifacts: list[Path]) -> None:
    verify(artifacts[1])
    outcomes = faults.campaign(artifacts, 2 * len(faults.DAMAGE))
    assert len(outcomes) == 2 * len(faults.DAMAGE)
    assert {one.kind for one in outcomes} == faults.DAMAGE.keys()
    assert not [one for one in outcomes if one.found_by is None or one.wrong]


def test_what_fits_together_is_not_found_and_the_page_says_so(artifacts: list[Path]) -> None:
    outcome = faults.damage(artifacts[0], "consistent", 0)
    assert (outcome.found_by, outcome.wrong) == (None, None)
    page = faults.page([faults.damage(artifacts[0], "flip", 0)], [outcome], {"pack": [None, "half"]})
    assert "`segonnx verify` found 1, each in" in page
    assert "Of 1 such changes (a licence, the card)\n0 were found" in page
    assert "| pack | 2 | 1 |" in page


@pytest.mark.slow
def test_kills_leave_nothing_or_all(artifacts: list[Path], tmp_path: Path) -> None:
    packed = packing.pack(artifacts[0], "zip", tmp_path / "packed.zip")
    stock = faults.Stock(artifacts[0], packed, faults.predictor(tmp_path))
    killed = faults.kills(stock, 6, ("pack", "unpack", "predict"))
    assert sum(map(len, killed.values())) == 6
    assert not [why for its in killed.values() for why in its if why]


def test_damaged_archives_end_in_one_line(artifacts: list[Path], tmp_path: Path) -> None:
    packed = (
        packing.pack(artifacts[0], "zip", tmp_path / "whole.zip"),
        packing.pack(artifacts[0], "oci", tmp_path / "whole.oci"),
    )
    row = writing_faults.archives(packed, 4 * len(writing_faults.DAMAGE))
    assert (row.tried, row.wrong) == (36, [])


def test_processes_that_write_at_once_lose_nothing() -> None:
    row = writing_faults.races(200)
    assert (row.tried, row.wrong) == (200, [])


@pytest.mark.slow
def test_kills_while_replacing_lose_nothing(artifacts: list[Path], tmp_path: Path) -> None:
    packed = packing.pack(artifacts[0], "zip", tmp_path / "whole.zip")
    row = writing_faults.replacements(artifacts[0], packed, 6)
    assert (row.tried, row.wrong) == (6, [])


def test_the_page_counts_wrong_ends() -> None:
    page = writing_faults.page([writing_faults.Row("races", 1200, ["one", "two"])])
    assert "| races | 1,200 | 2 |" in page


def test_an_archive_that_ends_wrong_is_told(
    artifacts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = packing.pack(artifacts[0], "zip", tmp_path / "whole.zip")

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(packing, "unpack", fail)
    assert "ZeroDivisionError" in str(writing_faults.unpack_damaged([packed], 0))
