"""The table of smp's networks in docs/smp.md, and each of its entries anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import smp_networks
from segonnx.sources.smp import ARCHITECTURES

pytestmark = pytest.mark.usefixtures("steps_here")


def test_the_table_names_every_network_and_none_fails() -> None:
    found = smp_networks.written()
    assert len(found) == 60
    assert all(one.startswith((smp_networks.PASSES, "smp refuses: ")) for one in found.values())


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("encoder", smp_networks.ENCODERS)
def test_every_architecture_on_encoders_of_five_families(architecture: str, encoder: str, tmp_path: Path) -> None:
    expected = smp_networks.written()[architecture, encoder]
    assert smp_networks.outcome(architecture, encoder, tmp_path) == expected


def test_the_reasons_stand_below_the_table_once_each() -> None:
    found = {(a, e): smp_networks.PASSES for a in ARCHITECTURES for e in smp_networks.ENCODERS}
    found["DPT", "resnet18"] = found["DPT", "mit_b0"] = "smp refuses: too old"
    found["FPN", "mit_b0"] = "smp refuses: too small"
    text = smp_networks.table(found)
    assert text.count("no (1)") == 1 and text.count("no (2)") == 2
    assert text.endswith("57 of 60 pass. The others:\n\n1. smp refuses: too small\n2. smp refuses: too old")
