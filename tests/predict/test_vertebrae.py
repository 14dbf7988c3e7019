"""What is done to label maps behind the networks, against TotalSegmentator's own functions."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segonnx.predict import tasks, vertebrae
from tests import totalsegmentator_folders as folders

JUDGE = """
import sys
import numpy as np
from totalsegmentator import postprocessing as own

given = np.load(sys.argv[1])
names = {value: f"vertebrae_{value}" for value in range(1, 7)} | {1: "vertebrae_C1", 6: "vertebrae_L5"}
found = {}
for name in given.files:
    labels, spacing = given[name], tuple(np.float32(one) for one in (1.5, 1.5, 1.5))
    if name != "noise":  # where it fails: it finds one body less than it counted
        found[f"{name}_number"] = own.postprocess_vertebrae_pp(
            labels.copy(), names, voxel_volume=np.prod(spacing), voxel_spacing=spacing, min_size_mm3=100
        )
    askew = tuple(np.float32(one) for one in (0.9, 1.3, 3.0))
    found[f"{name}_grow"] = own.dilate_vertebrae_labels(labels.copy(), names, askew, 2)
    found[f"{name}_largest"] = own.keep_largest_blob_multilabel(labels.copy(), names, ["vertebrae_2"], quiet=True)
    found[f"{name}_small"] = own.remove_small_blobs_multilabel(
        labels.copy(), names, list(names.values()), interval=[200 / 3.375, 1e10], quiet=True
    )
    found[f"{name}_outside"] = own.remove_outside_of_mask(labels.copy(), labels == 3, addon=2)
np.savez(sys.argv[2], **found)
"""


def bodies(*heights: int, labels: list[int], touching: bool) -> np.ndarray:
    """Vertebrae (x, y, z) above each other, and specks; two labels share one of them where ``touching``."""
    made = np.zeros((20, 18, 60), np.uint8)
    for height, value in zip(heights, labels, strict=True):
        made[6:14, 5:12, height : height + 5] = value
    made[1, 1, 1] = labels[0]
    if touching:
        made[6:14, 5:8, heights[0] : heights[0] + 5] = labels[1]
    return made


@pytest.mark.skipif(not folders.JUDGE.exists(), reason="TotalSegmentator isn't installed: make judges")
def test_label_maps_are_changed_as_by_totalsegmentator(tmp_path: Path) -> None:
    cases: dict[str, Any] = {
        "apart": bodies(4, 20, 40, labels=[5, 4, 2], touching=False),
        "low": bodies(4, 20, 40, labels=[6, 4, 2], touching=True),
        "high": bodies(10, 25, 50, labels=[3, 2, 1], touching=True),
        "middle": bodies(10, 25, 50, labels=[5, 4, 3], touching=True),
        "noise": np.random.default_rng(0).integers(0, 7, (12, 13, 14)).astype(np.uint8),
    }
    np.savez(tmp_path / "given.npz", **cases)
    command = [str(folders.JUDGE), "-c", JUDGE, str(tmp_path / "given.npz"), str(tmp_path / "found.npz")]
    subprocess.run(command, check=True, capture_output=True)
    expected, values = np.load(tmp_path / "found.npz"), list(range(1, 7))
    for name, labels in cases.items():
        ours = {key: np.ascontiguousarray(labels.T) for key in ("number", "grow", "largest", "small", "outside")}
        ours["number"] = vertebrae.number(ours["number"], values, np.full(3, 1.5, np.float32), 100.0, 3.0)
        ours["grow"] = vertebrae.grow(ours["grow"], values, np.array([3.0, 1.3, 0.9], np.float32), 2.0)
        tasks._clean(ours["largest"], tasks.Step((2,), None), 3.375)
        tasks._clean(ours["small"], tasks.Step(tuple(values), 200.0), 3.375)
        around = tasks.Around("any", (3,), (10.0,))
        tasks._drop_outside(ours["outside"], ours["outside"].copy(), around, np.full(3, 5.0, np.float32))
        for key in (key for key in ours if f"{name}_{key}" in expected):
            np.testing.assert_array_equal(ours[key].T, expected[f"{name}_{key}"], err_msg=f"{name} {key}")
