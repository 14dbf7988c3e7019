"""Rows of the table of agreement with nnU-Net (``benchmarks.against_nnunet``), one for each way to resample.

    python -m benchmarks.resamplers ROOT            train, export and predict below ROOT; print the rows

A trained folder's plans are edited for each, which nnU-Net's own predictor then takes, too.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import nnunet_folders

KIND, FOLD = "plain", "0"
SPLINES, TORCH = "resample_data_or_seg_to_shape", "resample_torch_fornnunet"
ALWAYS: dict[str, Any] = {"force_separate_z": True}
APART: dict[str, Any] = {"force_separate_z": None, "separate_z_anisotropy_threshold": 1.5}
RESAMPLERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "splines of order 3 and 0, an axis apart above 1.5": (
        SPLINES, {**APART, "order": 3, "order_z": 0}, {**APART, "order": 1, "order_z": 0},
    ),
    "splines of order 1, an axis always apart": (
        SPLINES, {**ALWAYS, "order": 1, "order_z": 1}, {**ALWAYS, "order": 1, "order_z": 1},
    ),
    "as nnUNetPlannerResEncL_torchres plans": (TORCH, {"force_separate_z": False}, {"force_separate_z": False}),
    "torch, an axis apart above 1.5": (TORCH, APART, APART),
    "torch, bicubic, an axis apart linear": (
        TORCH, {**APART, "mode": "bicubic", "aniso_axis_mode": "linear"}, {**APART, "aniso_axis_mode": "linear"},
    ),
    "torch, nearest": (
        TORCH, {**ALWAYS, "mode": "nearest-exact"}, {**ALWAYS, "mode": "nearest"},
    ),
    "not resampled": ("no_resampling_hack", {}, {}),
}  # fmt: skip
"""What the table calls each: nnU-Net's function, and its arguments for images and for logits."""


def rows(root: Path, run: Callable[..., str]) -> list[str]:
    """The rows, as markdown.

    Args:
        root: the folder of nnU-Net's folders, where the kind is trained if it isn't.
        run: runs a module in a process of its own, and gives the last line that it printed.
    """
    (folder,) = nnunet_folders.folders(KIND, root)
    if not (folder / f"fold_{FOLD}").exists():
        nnunet_folders.run("make", KIND, root, root=root)
    result = []
    for number, (word, (function, image, logits)) in enumerate(RESAMPLERS.items()):
        place = root / "predict" / f"resampler-{number}"
        edited = place / folder.parent.name / folder.name
        if not (place / "artifacts").exists():
            shutil.copytree(folder, edited, dirs_exist_ok=True)
            _edit(edited / "plans.json", folder.name.rpartition("__")[2], function, image, logits)
            run("segonnx", "export", "--nnunet", edited, "--fold", FOLD, "--out", place / "artifacts")
        (artifact,) = (place / "artifacts").iterdir()
        found = json.loads(run("benchmarks.against_nnunet", "agree", KIND, edited, artifact, FOLD))["resampled"]
        result.append(
            f"| {nnunet_folders.name(KIND)} | on another grid, {word} | {100 * found['agreement']:.4f} % "
            f"| {found['dice']:.6f} | {found['probabilities']:.1e} |"
        )
    return result


def _edit(path: Path, configuration: str, function: str, image: dict[str, Any], logits: dict[str, Any]) -> None:
    plans = json.loads(path.read_text())
    labels = {} if function == "no_resampling_hack" else {"is_seg": True}
    for what, arguments in (("data", image), ("seg", labels), ("probabilities", logits)):
        plans["configurations"][configuration] |= {
            f"resampling_fn_{what}": function,
            f"resampling_fn_{what}_kwargs": arguments,
        }
    path.write_text(json.dumps(plans))


if __name__ == "__main__":
    from benchmarks import against_nnunet

    print("\n".join(rows(Path(sys.argv[1]), against_nnunet.run)))
