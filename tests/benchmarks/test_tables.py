"""The tables that benchmarks make of what they kept."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import exactness, tuning


def test_errors_above_a_third_are_bold(tmp_path: Path) -> None:
    ways = (*exactness.WAYS, exactness.PARITY)
    errors = {way: {"noise": {"rms": 1e-5, "max": 1e-4}, "constant": {"rms": 2e-5, "max": 9e-5}} for way in ways}
    errors["stock graph"]["constant"]["rms"] = 3.4e-5
    (tmp_path / "stunet-h.json").write_text(json.dumps(errors))
    (tmp_path / "stunet-s.json").write_text(json.dumps({exactness.PYTORCH: errors[exactness.PYTORCH]}))
    rows = [line for line in exactness.table(tmp_path).splitlines() if line.startswith("| stunet")]
    within = "2.0e-05, 1.0e-04"
    assert rows == [f"| stunet-h at 32,64,64 | {within} | {within} | {within} | **3.4e-05, 1.0e-04** | {within} |"]


def test_a_tuning_is_shown_with_its_last_race(tmp_path: Path) -> None:
    medians = {"stock": 3, "default": 2}
    kept = {
        "a": {"kept": "tuned", "without": ["X"], "forms": {}, "lanes": 4, "medians_s": {**medians, "tuned": 1}},
        "b": {"kept": "default", "without": [], "forms": {}, "lanes": 2, "medians_s": medians},
    }
    for name, entry in kept.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(json.dumps({"tuning": entry}))
    rows = tuning.table(tmp_path).splitlines()[4:]
    assert rows == [
        "| a | 2000.0 | 1.50x | 1000.0 | 2.00x | without X, 4 depth chunks |",
        "| b | 2000.0 | 1.50x | - | - | default |",
    ]
