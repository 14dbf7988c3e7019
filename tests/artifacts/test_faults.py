"""A small part of ``make faults``."""

from __future__ import annotations

from pathlib import Path

import pytest

from segonnx.artifacts import packing
from tests import faults
from tests.conftest import SMALL


@pytest.mark.parametrize("kind", faults.DAMAGE)
def test_damage_is_found(kind: str, exports: Path) -> None:
    for seed in range(2):
        outcome = faults.damage(exports / SMALL, kind, seed)
        assert outcome.found_by is not None
        assert outcome.wrong is None


def test_what_fits_together_is_not_found_and_the_page_says_so(exports: Path) -> None:
    outcome = faults.damage(exports / SMALL, "consistent", 0)
    assert (outcome.found_by, outcome.wrong) == (None, None)
    page = faults.page([faults.damage(exports / SMALL, "flip", 0)], [outcome], {"pack": [None, "half"]})
    assert "`segonnx verify` found 1, each in" in page
    assert "Of 1 such changes (a licence, the card)\n0 were found" in page
    assert "| pack | 2 | 1 |" in page


def test_kills_leave_nothing_or_all(exports: Path, tmp_path: Path) -> None:
    packed = packing.pack(exports / SMALL, "zip", tmp_path / "packed.zip")
    killed = faults.kills(exports / SMALL, packed, 6, ("pack", "unpack"))
    assert [len(its) for its in killed.values()] == [3, 3]
    assert not [why for its in killed.values() for why in its if why]
