from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from benchmarks.ablation import Pair, read, table


def test_turns_under_one_cache_and_under_two_have_columns_of_their_own() -> None:
    near, far, moved = [Pair(2, 1, 90, 90)] * 8, [Pair(2, 2, 160, 160)] * 3, [Pair(9, 1, 90, 160)]
    lines = table("net", {"stock": near + far + moved, "all": near[:2]}, {"stock": 10**9, "all": 2 * 10**9}).split("\n")
    assert lines[0].split(" | ")[1::2] == ["ms, one cache", "ms, two caches", "peak memory, GB |"]
    assert lines[2] == "| stock | 2000.0 | 2.00 (2.00-2.00) | 2000.0 | 1.00 | 1.00 |"
    assert lines[3] == "| all | - | - | - | - | 2.00 |"


def test_processors_that_stay_have_one_column() -> None:
    lines = table("net", {"stock": [Pair(2, 1, 90, 91)] * 3}, {"stock": 10**9}).split("\n")
    assert lines[0] == "| net | ms, as it was | times that with all rewrites | peak memory, GB |"
    assert lines[2] == "| stock | 2000.0 | 2.00 | 1.00 |"


def test_races_that_were_kept_are_read_again(tmp_path: Path) -> None:
    pair = Pair(2.5, 1, 90, 91)
    (tmp_path / "net.json").write_text(json.dumps({"raced": {"stock": [asdict(pair)]}, "memory": {"stock": 7}}))
    assert read(tmp_path, "net") == ({"stock": [pair]}, {"stock": 7})
    assert read(tmp_path, "other") == ({}, {})
