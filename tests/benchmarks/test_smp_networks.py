"""The table of smp's networks in docs/smp.md, and each of its entries anew."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import smp_networks
from segonnx.sources.smp import ARCHITECTURES
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("steps_here")


def _table() -> dict[tuple[str, str], str]:
    """What docs/smp.md says of each network."""
    text = (ROOT / "docs" / "smp.md").read_text("utf-8")
    reasons = dict(re.findall(r"^(\d+)\. (.*)$", text, re.MULTILINE))
    rows = {
        row.split(" | ")[0].strip("| "): row.strip("| ").split(" | ")[1:] for row in text.splitlines() if " | " in row
    }
    found = {}
    for architecture in ARCHITECTURES:
        for encoder, cell in zip(smp_networks.ENCODERS, rows[architecture], strict=True):
            number = re.fullmatch(r"no \((\d+)\)", cell)
            found[architecture, encoder] = cell if number is None else reasons[number[1]]
    return found


KNOWN = {("PSPNet", "tu-swin_tiny_patch4_window7_224")}
"""Pools in uneven windows, by a table that torch computes from the shape alone, which is taken for weights."""


def test_the_table_names_every_network_and_what_fails_is_known() -> None:
    found = _table()
    assert len(found) == 60
    assert all(one.startswith((smp_networks.PASSES, "smp refuses: ", "fails: ")) for one in found.values())
    assert {network for network, one in found.items() if one.startswith("fails: ")} <= KNOWN


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("encoder", smp_networks.ENCODERS)
def test_every_architecture_on_encoders_of_five_families(architecture: str, encoder: str, tmp_path: Path) -> None:
    expected = _table()[architecture, encoder]
    found = smp_networks.outcome(architecture, encoder, tmp_path)
    assert found == expected or (found == smp_networks.PASSES and (architecture, encoder) in KNOWN)


def test_the_reasons_stand_below_the_table_once_each() -> None:
    found = {(a, e): smp_networks.PASSES for a in ARCHITECTURES for e in smp_networks.ENCODERS}
    found["DPT", "resnet18"] = found["DPT", "mit_b0"] = "smp refuses: too old"
    found["FPN", "mit_b0"] = "smp refuses: too small"
    text = smp_networks.table(found)
    assert text.count("no (1)") == 1 and text.count("no (2)") == 2
    assert text.endswith("57 of 60 pass. The others:\n\n1. smp refuses: too small\n2. smp refuses: too old")
