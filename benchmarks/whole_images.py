"""Times whole images from file to file by turns: nnU-Net, nnU-Net with OpenVINO in its network's place, segonnx.

    python -m benchmarks.whole_images make ROOT [CASE...]         train, make and export what is raced and isn't there
    python -m benchmarks.whole_images race ROOT [CASE...] [WAY...]  race them, or a large one's WAYs alone, and keep in
                                                                  ROOT what was measured
    python -m benchmarks.whole_images table ROOT                  put what was measured into docs/predict.md, beside
                                                                  what it tells of other cases on the same machine

BEFORE, the segonnx that today's is compared with, is checked out below ROOT. Run it on an idle machine.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks import docs, whole_cases
from segonnx.core import hardware
from tests import nnunet_folders

BLOCK_VERSION = 1
"""Raised when what this program writes, or measures, changes."""
PAGE = docs.ROOT / "docs" / "predict.md"
BEFORE = "498423e"
"""The commit that had logits blended, and splines by SciPy."""
ROUNDS = 3
"""How often a small case is raced."""
WAYS = {
    "nnunet": "nnU-Net",
    "openvino": "nnU-Net, network in OpenVINO",
    "before": f"segonnx at {BEFORE}",
    "now": "segonnx",
}
SMALL = [kind for kind in nnunet_folders.KINDS if kind not in nnunet_folders.SEVERAL]
"""Folders of the tests, which are raced in warm processes."""
LARGE = {
    "totalsegmentator, smaller": ("smaller", whole_cases.CLASSES),
    "totalsegmentator": ("totalsegmentator", whole_cases.CLASSES),
    "long": ("long", whole_cases.CLASSES),
    "long, few classes": ("few", 5),
}
"""Made folders, which are raced from the command's start to its end."""
BACK = ("resample back", "decide", "back", "postprocess")
PREPARE = ("read", "prepare", "resample")
EVERY_S, REST = 0.1, 30
"""How often memory is looked at, and how many times as long as a look took no other is taken: the system counts pages
on one of the processors, for hundredths of a second where there are many."""
COLUMNS = (
    "case", "way", "seconds", "faster", "start", "prepare", "network", "blend", "back", "write", "around", "memory",
    "same label",
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a case is.

    Attributes:
        folders: The trained folder of each stage.
        folds: The fold of each.
        source: The folder of the image.
        artifacts: By ``before`` and ``now``: the artifact of each stage.
    """

    folders: tuple[str, ...]
    folds: tuple[str, ...]
    source: str
    artifacts: dict[str, tuple[str, ...]]


def environment(root: Path, way: str) -> dict[str, str]:
    """The environment of a way's processes: which segonnx they import."""
    path = before(root) if way == "before" else docs.ROOT
    return {**os.environ, "PYTHONPATH": str(path), "PYTHONWARNINGS": "ignore", "nnUNet_compile": "f"}


def before(root: Path) -> Path:
    """The checkout of ``BEFORE``."""
    return root / "before"


def make(root: Path, cases: Sequence[str]) -> dict[str, Place]:
    """Make what is raced in these cases, where it isn't there."""
    root.mkdir(parents=True, exist_ok=True)
    if not before(root).exists():
        command = ["git", "worktree", "add", "--detach", str(before(root)), BEFORE]
        subprocess.run(command, cwd=docs.ROOT, check=True, capture_output=True)
    places = {}
    for kind in (one for one in SMALL if one in cases):
        folders = nnunet_folders.folders(kind, root)
        if not (folders[-1] / f"fold_{nnunet_folders.KINDS[kind].runs[-1][1]}").exists():
            nnunet_folders.run("make", kind, root, root=root)
        runs = nnunet_folders.KINDS[kind].runs
        folds = [next(fold for name, fold in runs if one.name.endswith(f"__{name}")) for one in folders]
        source = root / "whole" / kind / "in"
        if not source.exists():
            _write_tiled(kind, source)
        places[kind] = _exported(root, kind, folders, folds, source)
    for case, (name, classes) in LARGE.items():
        if case not in cases:
            continue
        folder = root / "whole" / case.replace(", ", "-").replace(" ", "-")
        if not (folder / "in" / "case_0000.nii.gz").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            whole_cases.write(folder, name, classes)
        (trained,) = (folder / "results").glob("*/*")
        places[case] = _exported(root, folder.name, [trained], ["0"], folder / "in")
    return places


def _write_tiled(kind: str, folder: Path) -> None:
    """An image three times as wide and high as the trained ones, on a grid that must be resampled."""
    import SimpleITK

    folder.mkdir(parents=True)
    image, _ = nnunet_folders.image(kind, nnunet_folders.CASES)
    spacing = [0.8 * size for size in nnunet_folders.KINDS[kind].spacing]
    for index, channel in enumerate(np.tile(image, (1, 1, 3, 3))):
        picture = SimpleITK.GetImageFromArray(channel)
        picture.SetSpacing(spacing[::-1])
        SimpleITK.WriteImage(picture, str(folder / f"case_{index:04}.nii.gz"))


def _exported(root: Path, name: str, folders: Sequence[Path], folds: Sequence[str], source: Path) -> Place:
    artifacts: dict[str, tuple[str, ...]] = {}
    for way in ("before", "now"):
        made = []
        for number, (folder, fold) in enumerate(zip(folders, folds, strict=True)):
            out = root / "whole" / name / f"{way}-{number}"
            if not out.exists() or not any(out.iterdir()):
                command = [sys.executable, "-m", "segonnx", "export", "--nnunet", folder, "--fold", fold, "--out", out]
                subprocess.run([*map(str, command)], cwd=root, env=environment(root, way), check=True)
            made.append(str(next(out.iterdir())))
        artifacts[way] = tuple(made)
    return Place(tuple(map(str, folders)), tuple(folds), str(source), artifacts)


class Peak:
    """The most memory that a process held, with all that it started.

    Args:
        pid: The process.
        kind: ``rss`` counts a page once for each process that has it, ``pss`` once.
    """

    def __init__(self, pid: int, kind: str = "rss") -> None:
        self.bytes, self._kind = 0, kind
        self._process, self._ended = psutil.Process(pid), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        took = 0.0
        while not self._ended.wait(max(EVERY_S, REST * took)):
            began, total = time.perf_counter(), 0
            try:
                for one in (self._process, *self._process.children(recursive=True)):
                    total += getattr(one.memory_full_info() if self._kind == "pss" else one.memory_info(), self._kind)
            except psutil.Error:
                pass
            self.bytes = max(self.bytes, total)
            took = time.perf_counter() - began

    def end(self) -> int:
        """Stop looking, and give the peak."""
        self._ended.set()
        self._thread.join()
        return self.bytes


@contextmanager
def _worker(root: Path, way: str, spec: dict[str, Any]) -> Iterator[tuple[Callable[[], dict[str, Any]], Peak]]:
    """A process that predicts when it is asked to."""
    path = root / "whole" / f"{way}.json"
    path.write_text(json.dumps(spec))
    kind = "segonnx" if way in ("before", "now") else way
    command = [sys.executable, str(docs.ROOT / "benchmarks" / "whole_ways.py"), kind, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(root, way), cwd=root,
        preexec_fn=_bounded,  # noqa: PLW1509
    ) as process:  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        peak = Peak(process.pid)

        def ask() -> dict[str, Any]:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            answer = process.stdout.readline()
            return json.loads(answer) if answer else {}

        try:
            assert json.loads(process.stdout.readline()) == "ready"
            yield ask, peak
        finally:
            process.stdin.close()
            process.wait()
            peak.end()


def _bounded() -> None:
    """Let a process that asks for too much fail, and not the machine."""
    most = int(0.9 * hardware.available_memory())
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def race_small(root: Path, place: Place, *, mirror: bool) -> dict[str, Any]:
    """Race a small case, each way in a process that stays: rounds by turns, after one to warm up."""
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    peaks: dict[str, int] = {}
    targets = {way: root / "whole" / "out" / way for way in WAYS}
    with ExitStack() as stack:
        asks = {}
        for way in WAYS:
            shutil.rmtree(targets[way], ignore_errors=True)
            targets[way].mkdir(parents=True)
            asks[way] = stack.enter_context(_worker(root, way, _spec(place, way, targets[way], mirror=mirror)))
        for number in range(ROUNDS + 1):
            for way, (ask, peak) in asks.items():
                answer = ask()
                if number:
                    found[way].append(answer)
                peaks[way] = peak.bytes
    rows = {}
    for way, rounds in found.items():
        steps = {
            name: statistics.median([one["steps"].get(name, 0.0) for one in rounds]) for name in rounds[0]["steps"]
        }
        seconds = [one["seconds"] for one in rounds]
        rows[way] = {"seconds": statistics.median(seconds), "every": seconds, "steps": steps, "peak": peaks[way]}
    return _compared(rows, {way: _labels(target) for way, target in targets.items()})


def _spec(place: Place, way: str, target: Path, *, mirror: bool) -> dict[str, Any]:
    return {
        "folders": place.folders, "folds": place.folds, "artifacts": place.artifacts.get(way, ()),
        "source": place.source, "target": str(target), "mirror": mirror,
    }  # fmt: skip


def race_large(root: Path, place: Place, ways: Sequence[str]) -> dict[str, Any]:
    """Race a large case once, each way from its start to its end."""
    rows: dict[str, Any] = {}
    labels: dict[str, Any] = {}
    for way in ways:
        target = root / "whole" / "out" / way
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        began = time.perf_counter()
        if way in ("before", "now"):
            rows[way] = _command(root, way, place, target)
        else:
            with _worker(root, way, _spec(place, way, target, mirror=False)) as (ask, peak):
                answer = ask()
                rows[way] = {"steps": answer.get("steps", {}), "failed": not answer, "peak": peak.bytes}
        rows[way]["seconds"] = time.perf_counter() - began
        rows[way]["steps"]["start"] = rows[way]["seconds"] - sum(rows[way]["steps"].values())
        labels[way] = None if rows[way].get("failed") else _labels(target)
        print(way, json.dumps(rows[way]), flush=True)
    return _compared(rows, labels)


def _command(root: Path, way: str, place: Place, target: Path) -> dict[str, Any]:
    """``segonnx predict``, as a user calls it."""
    report = target / "report.json"
    command = [
        sys.executable, "-m", "segonnx", "predict", place.artifacts[way][0],
        Path(place.source) / "case_0000.nii.gz", target / "case.nii.gz", "--json", report,
    ]  # fmt: skip
    with subprocess.Popen([*map(str, command)], cwd=root, env=environment(root, way)) as process:
        peak = Peak(process.pid)
        process.wait()
    failed = process.returncode != 0
    steps = {} if failed else json.loads(report.read_text())[0]["seconds"]
    return {"steps": steps, "failed": failed, "peak": peak.end()}


def _labels(folder: Path) -> Any:
    import SimpleITK

    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(folder / "case.nii.gz")))


def _compared(rows: dict[str, Any], labels: dict[str, Any]) -> dict[str, Any]:
    """The rows, with the share of voxels that have the label of the first way that has a label map."""
    first = next(one for one in labels.values() if one is not None)
    for way, row in rows.items():
        row["same"] = None if labels[way] is None else float(np.mean(labels[way] == first))
    return rows


def race(root: Path, words: Sequence[str]) -> None:
    """Race the cases that words name, or all, large ones in the ways that words name, or all; keep that in ROOT."""
    path = root / "whole.json"
    every = json.loads(path.read_text()) if path.exists() else {}
    ways = [word for word in words if word in WAYS] or list(WAYS)
    cases = [word for word in words if word not in WAYS] or [*SMALL, *LARGE]
    places = make(root, cases)
    for case in cases:
        if case in LARGE:
            every[case] = race_large(root, places[case], ways)
        else:
            every[case] = {
                word: race_small(root, places[case], mirror=mirror)
                for word, mirror in (("mirrored", True), ("plain", False))
            }
        every["machine"] = docs.machine()
        path.write_text(json.dumps(every, indent=1))


def table(root: Path, there: str = "") -> str:
    """What was measured, as markdown.

    Args:
        root: holds what was measured.
        there: the table so far, whose rows of other cases stay where they are of this machine.
    """
    path = root / "whole.json"
    every = json.loads(path.read_text()) if path.exists() else {}
    measured: dict[str, list[str]] = {}
    for case, found in every.items():
        if case == "machine":
            continue
        for word, rows in found.items() if case in SMALL else (("", found),):
            told = f"{nnunet_folders.name(case)}, {word}" if word else case
            first = rows.get("nnunet", {})
            measured[told] = [_row(told, way, row, first) for way, row in rows.items()]
    machine = every.get("machine", "no machine yet")
    if f" {machine}. " in there.partition("|")[0].replace("\n", " "):
        kept: dict[str, list[str]] = {}
        for line in there.splitlines():
            if line.startswith("| ") and not line.startswith("| case |"):
                kept.setdefault(line.split(" | ")[0].removeprefix("| "), []).append(line)
        measured = kept | measured
    lines = [
        f"Seconds on {machine}. Of the tests' folders, medians of {ROUNDS} rounds in",
        "processes that stay; of the others once, from the command's start to its end.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{'---|' * len(COLUMNS)}",
        *(line for lines in measured.values() for line in lines),
    ]
    return "\n".join([*lines, ""])


def _row(case: str, way: str, row: dict[str, Any], first: dict[str, Any]) -> str:
    if row.get("failed"):
        return f"| {case} | {WAYS[way]} | the memory ran out {'| ' * (len(COLUMNS) - 3)}|"
    steps, seconds = row["steps"], row["seconds"]
    around = seconds - steps["network"]
    faster = f"{first['seconds'] / seconds:.1f}x" if first and not first.get("failed") else ""
    columns = [
        steps.get("start", 0.0), sum(steps.get(one, 0.0) for one in PREPARE), steps["network"],
        steps.get("blend", 0.0), sum(steps.get(one, 0.0) for one in BACK), steps.get("write", 0.0), around,
    ]  # fmt: skip
    told = " | ".join(f"{one:.2f}" for one in columns)
    return (
        f"| {case} | {WAYS[way]} | {seconds:.2f} | {faster} | {told} | {row['peak'] / 1e9:.2f} GB "
        f"| {100 * row['same']:.4f} % |"
    )


def main(command: str, root: str, *words: str) -> None:
    """Run one of the commands."""
    if command == "make":
        make(Path(root).resolve(), words or (*SMALL, *LARGE))
    elif command == "race":
        race(Path(root).resolve(), words)
    else:
        docs.put_block(PAGE, "whole", table(Path(root).resolve(), docs.content(PAGE, "whole")), __spec__.name)


if __name__ == "__main__":
    main(*sys.argv[1:])
