"""Holds tasks against TotalSegmentator itself: labels, seconds and memory, from file to file.

    python -m benchmarks.against_totalsegmentator make ROOT [TASK...]    small networks of every task, and total's own
    python -m benchmarks.against_totalsegmentator tasks ROOT [TASK...]   small networks, every task
    python -m benchmarks.against_totalsegmentator whole ROOT             the task total at its own size, in turns
    python -m benchmarks.against_totalsegmentator table ROOT             put what was measured into the page

ROOT gets weights, artifacts and label maps. TotalSegmentator's environment is made by ``make judges``.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from benchmarks import docs
from benchmarks.whole_images import Peak
from segonnx.sources import totalsegmentator
from tests import totalsegmentator_folders as folders

BLOCK_VERSION = 2
"""Raised when what this program writes, or measures, changes."""
PAGE = docs.ROOT / "docs" / "totalsegmentator.md"
IMAGES = docs.ROOT.parent / "shared" / "images"
PHANTOM = ((96, 84, 32), (0.9, 0.9, 3.0))
"""The phantom's shape (x, y, z), and its spacing in mm; it lies askew, and its axes run to the left and up."""
ROUNDS = 2
"""How often the task is run at its own size, each way by turns."""
COLUMNS = (
    "task, image", "labels found", "same label", "in float32", "least Dice", "shape, affine, names", "seconds, theirs",
    "ours", "memory, theirs", "ours",
)  # fmt: skip
FEATURES, PATCH = (32, 64, 128, 256, 320, 320), (128, 128, 128)
"""The networks of TotalSegmentator at 1.5 mm."""


def make(root: Path, names: tuple[str, ...]) -> tuple[str, ...]:
    """Make the networks of tasks and export them, where they aren't there; the names of the tasks."""
    chosen = names or tuple(task.name for task in totalsegmentator.tasks() if task.unsupported is None)
    for name in chosen:
        folders.write(root / "small", [name])
        _export(name, root / "small", root)
    return chosen


def tasks(root: Path, names: tuple[str, ...]) -> None:
    """Run tasks of small networks by both, and keep in ROOT how far the label maps agree, and what each took."""
    chosen, images = make(root, names), _images(root)
    pairs = [(name, *one) for name in chosen for one in _of(name, images)]
    folders.judge(root / "home", root / "small", [_run(root, "wide", *pair) for pair in pairs])
    every = _kept(root)
    for name, kind, image in pairs:
        theirs = _judged(_run(root, "theirs", name, kind, image), root / "small", root)
        ours = _predict(name, image, _labels(root, "ours", name, kind), root)
        row: dict[str, Any] = {"error": theirs["error"] or ours["error"], "theirs": theirs, "ours": ours}
        if row["error"] is None:
            row |= _agreement(root, name, kind)
            row["wide"] = _agreement(root, name, kind, "wide")
        every["tasks"][f"{name}, {kind}"] = row
        _keep(root, every)


def _run(root: Path, whose: str, name: str, kind: str, image: Path) -> dict[str, Any]:
    """The arguments of TotalSegmentator's function."""
    return {"input": image, "output": _labels(root, whose, name, kind), "ml": True, **folders.arguments(name)}


def whole(root: Path) -> None:
    """Run ``total`` with networks of its own size by both in turns, until ``ROUNDS`` rounds are kept in ROOT."""
    weights, name = _export_whole(root), "total"
    image, every = IMAGES / "example_ct.nii.gz", _kept(root)
    found = every.setdefault("whole", {"theirs": [], "ours": []})
    while len(found["ours"]) < ROUNDS:
        target = _labels(root / "whole", "theirs", name, "ct")
        theirs = _judged({"input": image, "output": target, "ml": True, "task": name}, weights, root)
        ours = _predict(name, image, _labels(root / "whole", "ours", name, "ct"), root / "whole")
        found["theirs"].append(theirs)
        found["ours"].append(ours)
        found |= _agreement(root / "whole", name, "ct")
        _keep(root, every)


def _export_whole(root: Path) -> Path:
    """Make and export ``total`` with networks of its own size, where they aren't there; the folder of the weights."""
    weights = root / "whole-weights"
    folders.write(weights, ["total"], features=FEATURES, patch=PATCH)
    _export("total", weights, root / "whole")
    return weights


def _images(root: Path) -> dict[str, Path]:
    """The images by their kinds."""
    path = root / "phantom.nii.gz"
    if not path.exists():
        root.mkdir(parents=True, exist_ok=True)
        shape, spacing = PHANTOM
        angle = np.deg2rad(8)
        turned = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
        affine = np.eye(4)
        affine[:3, :3] = turned @ np.diag([-spacing[0], spacing[1], spacing[2]])
        nibabel.save(nibabel.Nifti1Image(folders.phantom(shape)[::-1].astype(np.int16), affine), path)
    real = {kind: IMAGES / f"example_{kind}_sm.nii.gz" for kind in ("ct", "mr")}
    return {"phantom": path, **{kind: image for kind, image in real.items() if image.exists()}}


def _of(task: str, images: dict[str, Path]) -> list[tuple[str, Path]]:
    """The images of a task, with their kinds: the phantom, and for total and body a real one."""
    own = totalsegmentator.find(task)
    kinds = ["phantom", *([own.modality.lower()] if task.startswith(("total", "body")) else [])]
    return [(kind, images[kind]) for kind in kinds if kind in images]


def _export(name: str, weights: Path, root: Path) -> None:
    if not (root / "artifacts" / f"totalsegmentator-{name}").exists():
        command = [
            sys.executable, "-m", "segonnx", "export", "-q", "--totalsegmentator", name, "--weights-dir", weights,
            "--out", root / "artifacts",
        ]  # fmt: skip
        subprocess.run([*map(str, command)], check=True, cwd=docs.ROOT)


def _labels(root: Path, whose: str, name: str, kind: str) -> Path:
    path = root / whose / f"{name}-{kind}.nii.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _judged(run: dict[str, Any], weights: Path, root: Path) -> dict[str, Any]:
    """TotalSegmentator as a user calls it: in a process of its own, with the processes that nnU-Net starts."""
    began = time.perf_counter()
    (found,) = folders.judge(root / "home", weights, [run], processes=True, wide=False)
    return found | {"seconds": time.perf_counter() - began}


def _predict(name: str, image: Path, target: Path, root: Path) -> dict[str, Any]:
    """``segonnx predict`` as a user calls it."""
    command = [
        sys.executable, "-m", "segonnx", "predict", "-q", "--overwrite",
        root / "artifacts" / f"totalsegmentator-{name}", image, target,
    ]  # fmt: skip
    began = time.perf_counter()
    with subprocess.Popen([*map(str, command)], cwd=docs.ROOT, env=dict(os.environ)) as process:
        peak = Peak(process.pid, "pss")
        process.wait()
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "peak": peak.end(), "error": process.returncode or None}


def _agreement(root: Path, name: str, kind: str, theirs_in: str = "theirs") -> dict[str, Any]:
    """How far the label maps agree, and whether shape, affine and names are the same."""
    paths = [_labels(root, whose, name, kind) for whose in (theirs_in, "ours")]
    theirs, ours = (folders.read(path) for path in paths)
    expected, found = (np.asarray(image.dataobj) for image in (theirs, ours))
    values = np.union1d(np.unique(expected), np.unique(found))
    dice = []
    for one in values:
        a, b = expected == one, found == one
        dice.append(2 * np.sum(a & b) / (np.sum(a) + np.sum(b)))
    return {
        "same": float(np.mean(expected == found)),
        "dice": float(min(dice)),
        "labels": len(np.unique(expected)) - 1,
        "geometry": bool(theirs.shape == ours.shape and np.allclose(theirs.affine, ours.affine, atol=1e-5)),
        "names": folders.label_names(theirs) == folders.label_names(ours),
    }


def _kept(root: Path) -> dict[str, Any]:
    path = root / "results.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"tasks": {}}
    return found


def _keep(root: Path, every: dict[str, Any]) -> None:
    every["machine"] = docs.machine()
    (root / "results.json").write_text(json.dumps(every, indent=1))


def tasks_table(every: dict[str, Any]) -> str:
    """Every task, as markdown."""
    measured = {name.partition(", ")[0] for name in every["tasks"]}
    supported = [task for task in totalsegmentator.tasks() if task.unsupported is None]
    of = f"{len(measured)} of {len(supported)} tasks; the least Dice is in float32:"
    lines = [
        f"{every['machine']}, TotalSegmentator {totalsegmentator.version()}; {of}",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{'---|' * len(COLUMNS)}",
    ]
    for name, row in sorted(every["tasks"].items(), key=lambda item: _place(item[0])):
        if row["error"] is not None:
            lines.append(f"| {name} | {row['error']} |" + " |" * (len(COLUMNS) - 2))
            continue
        same = "the same" if row["geometry"] and row["names"] else "differ"
        lines.append(
            f"| {name} | {row['labels']} | {100 * row['same']:.4f} % | {100 * row['wide']['same']:.4f} % "
            f"| {row['wide']['dice']:.6f} | {same} | {' | '.join(_taken(row))} |"
        )
    return "\n".join([*lines, ""])


def _taken(row: dict[str, Any]) -> list[str]:
    """What a task took: seconds of both, and memory of both."""
    both = row["theirs"], row["ours"]
    return [*(f"{one['seconds']:.1f}" for one in both), *(f"{one['peak'] / 1e9:.2f} GB" for one in both)]


def _place(row: str) -> tuple[int, str]:
    order = [task.name for task in totalsegmentator.tasks()]
    name, _, kind = row.partition(", ")
    return order.index(name), kind


def whole_table(every: dict[str, Any]) -> str:
    """``total`` at its own size, as markdown."""
    found = every["whole"]
    seconds, memory = (
        {whose: statistics.median(one[key] for one in found[whose]) for whose in ("theirs", "ours")}
        for key in ("seconds", "peak")
    )
    turns = "one turn each" if len(found["ours"]) == 1 else f"medians of {len(found['ours'])} turns"
    faster = f"{seconds['theirs'] / seconds['ours']:.1f}x"
    taken = {whose: f"{one / 1e9:.2f} GB" for whose, one in memory.items()}
    lines = [
        f"{every['machine']}, TotalSegmentator {totalsegmentator.version()}; {turns}:",
        "",
        "| | seconds | memory | same label |",
        "|---|---|---|---|",
        f"| TotalSegmentator on the CPU | {seconds['theirs']:.0f} | {taken['theirs']} | |",
        f"| `segonnx predict` | {seconds['ours']:.0f} ({faster}) | {taken['ours']} | {100 * found['same']:.4f} % |",
    ]
    return "\n".join([*lines, ""])


def main(command: str, root: str, *names: str) -> None:
    """Run one of the commands."""
    folder = Path(root).resolve()
    if command == "make":
        make(folder, names)
        _export_whole(folder)
    elif command == "tasks":
        tasks(folder, names)
    elif command == "whole":
        whole(folder)
    else:
        every = _kept(folder)
        if every["tasks"]:
            docs.put_block(PAGE, "tasks", tasks_table(every), __spec__.name)
        if "whole" in every:
            docs.put_block(PAGE, "whole-task", whole_table(every), __spec__.name)


if __name__ == "__main__":
    main(*sys.argv[1:])
