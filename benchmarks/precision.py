"""What float32, weights in 16 bits and int8 take, and what they do to labels: into docs/precision.md.

    python -m benchmarks.precision FLOAT32 [FLOAT16] [INT8] -- FLOAT32 ...

Each row of the table is an artifact: first one in float32, then those that were made of the same network by
`segonnx export --weights-dtype` and `segonnx quantize`, then `--` and the next network. Times are medians of passes in
turns, on the recorded test input; each peak of memory is that of a process which loads the graph and runs it once.
Nothing else may run meanwhile.
"""

from __future__ import annotations

import functools
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.docs import put_block
from segonnx.artifacts import layout, manifest, testdata
from segonnx.core import file_runs, hardware, subprocesses
from segonnx.core.ort_session import model_bytes

ROOT = Path(__file__).resolve().parents[1]
BLOCK_VERSION = 1
"""Raised when what this program writes, or measures, changes."""
PASSES = 9
VNNI = {"avx512_vnni", "avx_vnni", "amx_int8"}


def runtimes() -> list[str]:
    """The runtimes that are installed."""
    return [name for name in file_runs.NAMES if importlib.util.find_spec(file_runs.LIBRARIES[name].module)]


def graph(folder: Path, runtime: str) -> Path:
    """The graph that a runtime is at its best with."""
    content = manifest.read(folder)
    return folder / (manifest.cpu_model(content) if runtime == "ort" else layout.MODEL)


def peak(path: Path, x: np.ndarray, name: str, runtime: str, progress: subprocesses.Progress) -> None:
    """Load a graph and run it once."""
    del progress
    file_runs.opened(runtime, path, hardware.usable_cores())({name: x})


def in_turns(runs: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """Median seconds of each."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(PASSES):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - began)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def stored_as(content: Mapping[str, Any]) -> str:
    """How an artifact holds its weights."""
    if "quantization" in content:
        return "int8"
    return str(content["weights"].get("storage", {}).get("dtype", "float32"))


def kept(content: Mapping[str, Any]) -> tuple[str, str]:
    """The part of labels that stays, and the least Dice; of random weights neither says anything of trained ones."""
    if "quantization" in content:
        verdict = content["quantization"]["verdict"]
        agreement, dice = verdict["label_agreement"], f"{min(verdict['dice'].values()):.4f}"
    else:
        agreement, dice = content["weights"].get("storage", {}).get("effect", {}).get("label_agreement", 1.0), ""
    if content["weights"]["seed"] is not None:
        return "random", ""
    return f"{100 * agreement:.3f} %", dice


def measure(folders: Sequence[Path]) -> list[str]:
    """The rows of one network."""
    threads = hardware.usable_cores()
    contents = {folder: manifest.read(folder) for folder in folders}
    x = testdata.read(folders[0] / layout.INPUT)
    name = contents[folders[0]]["inputs"][0]["name"]
    seconds: dict[str, dict[str, float]] = {}
    for runtime in runtimes():
        opened = {str(folder): file_runs.opened(runtime, graph(folder, runtime), threads) for folder in folders}
        seconds[runtime] = in_turns({key: functools.partial(run, {name: x}) for key, run in opened.items()})
        del opened
    rows = []
    for folder, content in contents.items():
        memory = subprocesses.call(peak, graph(folder, "ort"), x, name, "ort").peak_rss_bytes
        times = " | ".join(
            f"{1e3 * seconds[one][str(folder)]:,.0f}" if one in seconds else "" for one in file_runs.NAMES
        )
        same, dice = kept(content)
        rows.append(
            f"| {content['name']} | {stored_as(content)} | {model_bytes(folder / layout.MODEL) / 1e6:,.1f} | {times} "
            f"| {memory / 1e9:.2f} | {same} | {dice} |"
        )
    return rows


def main(words: Sequence[str]) -> None:
    """Measure, and write the table."""
    groups: list[list[Path]] = [[]]
    for word in words:
        if word == "--":
            groups.append([])
        else:
            groups[-1].append(Path(word))
    machine, flags = hardware.describe(), hardware.cpu_flags()
    lines = [
        f"{machine['cpu']}, {hardware.usable_cores()} threads, flags {' '.join(flags)}"
        + ("" if VNNI & set(flags) else "; **without VNNI int8 isn't faster**")
        + f"; medians of {PASSES} passes in turns.",
        "",
        "| network | precision | MB | ms, ONNX Runtime | ms, OpenVINO | peak GB | labels equal | least Dice |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for folders in groups:
        lines += measure(folders)
    put_block(ROOT / "docs" / "precision.md", "precision", "\n".join(lines), "benchmarks.precision")


if __name__ == "__main__":
    from benchmarks import precision  # noqa: PLW0406 (other processes find its functions by this name)

    precision.main(sys.argv[1:])
