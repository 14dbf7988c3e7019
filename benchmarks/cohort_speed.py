"""What a cohort takes beside its network. Writes a block of docs/cohorts.md, and the report that docs/scale.md needs.

    python -m benchmarks.cohort_speed FOLDER [ROUNDS [CASES]]

The same command does one case and then CASES (24) of them, ROUNDS times (3), on an idle machine. What one case takes
beyond its steps is the start: Python, the check of the artifact, loading. Of the others' time the network's own is what
can't be saved.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import SimpleITK

from benchmarks import whole_cases
from benchmarks.docs import ROOT, put_block
from tests import handmade

BLOCK_VERSION = 1
"""Raised when what this program writes, or measures, changes."""
CASES = 24
WINDOW = (64, 64, 64)
SHAPE, SPACING = (96, 128, 128), (3.0, 1.5, 1.5)
FEATURES = (16, 32, 64, 128)
CLASSES = 5
ROUNDS = 3
REPORT = "report.jsonl"


def main() -> None:
    folder = Path(sys.argv[1])
    rounds, count = (*map(int, sys.argv[2:]), *(ROUNDS, CASES)[len(sys.argv) - 2 :])
    artifact = material(folder, count)
    found = sorted((measured(artifact, folder, count) for _ in range(rounds)), key=lambda one: float(one["ratio"]))
    print(json.dumps(found, indent=1))
    put_block(ROOT / "docs" / "cohorts.md", "speed", text(found, count), "benchmarks.cohort_speed")


def material(folder: Path, count: int) -> Path:
    """An artifact, and cases for it; they are made once."""
    artifact = folder / "artifact"
    if not artifact.exists():
        planned = handmade.plans("Dataset920_Speed")
        planned |= {"transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2]}
        configuration = planned["configurations"]["3d_fullres"]
        configuration |= {"patch_size": list(WINDOW), "spacing": list(SPACING)}
        stages = len(FEATURES)
        configuration["architecture"]["arch_kwargs"] |= {
            "n_stages": stages,
            "features_per_stage": list(FEATURES),
            "kernel_sizes": [[3] * 3] * stages,
            "strides": [[1] * 3, *([2] * 3 for _ in range(stages - 1))],
            "n_conv_per_stage": [2] * stages,
            "n_conv_per_stage_decoder": [2] * (stages - 1),
        }
        trained = handmade.write(folder / "results", planned, handmade.dataset(CLASSES - 1), mirror_axes=None)
        _segonnx("export", "--nnunet", trained, "--out", folder / "artifacts")
        next((folder / "artifacts").iterdir()).rename(artifact)
    for name, first in (("one", 1), ("all", count)):
        (folder / name).mkdir(exist_ok=True)
        for number in range(first):
            path = folder / name / f"case {number:02}_0000.nii.gz"
            if not path.exists():
                made, _ = whole_cases.image(SHAPE, SPACING, number, CLASSES)
                image = SimpleITK.GetImageFromArray(made)
                image.SetSpacing(SPACING[::-1])
                SimpleITK.WriteImage(image, str(path))
    return artifact


def measured(artifact: Path, folder: Path, count: int) -> dict[str, Any]:
    """One case, and then all of them."""
    one, (first,) = _run(artifact, folder, "one")
    whole, cases = _run(artifact, folder, "all")
    start = one - sum(first["seconds"].values())
    network = sum(record["seconds"]["network"] for record in cases)
    files = first["seconds"]["read"] + first["seconds"]["write"]
    around = sum(sum(record["seconds"].values()) for record in cases) - network
    assert len(cases) == count
    return {
        "whole": whole, "start": start, "network": network, "files": files, "around": around,
        "ratio": (whole - start) / (network + files),
    }  # fmt: skip


def text(rounds: list[dict[str, Any]], count: int) -> str:
    """What is put into the page, of rounds from the best to the worst."""
    found = rounds[len(rounds) // 2]
    shape = "x".join(map(str, SHAPE))
    return (
        f"{count} cases of {shape} voxels took {found['whole'] - found['start']:.1f} s after a start of "
        f"{found['start']:.1f} s. The network alone took {found['network']:.1f} s of it, and reading and writing one\n"
        f"case {found['files']:.2f} s: the cohort took **{found['ratio']:.3f} times** as long as these two. What is "
        f"around the network took {found['around']:.1f} s,\n"
        f"most of it while the network ran. Median of rounds: {len(rounds)}, from {rounds[0]['ratio']:.3f} to "
        f"{rounds[-1]['ratio']:.3f}."
    )


def _run(artifact: Path, folder: Path, name: str) -> tuple[float, list[dict[str, Any]]]:
    """Seconds of the command, and the report of the cases."""
    out, report = folder / f"{name} out", folder / f"{name} {REPORT}"
    shutil.rmtree(out, ignore_errors=True)
    report.unlink(missing_ok=True)
    began = time.monotonic()
    _segonnx("predict", artifact, folder / name, out, "--report", report, "-q")
    seconds = time.monotonic() - began
    return seconds, [json.loads(line) for line in report.read_text("utf-8").splitlines()]


def _segonnx(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "segonnx", *map(str, words)], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
