"""What two graphs over one set of weights take on the disk, and to load and run: into decision 0103.

    python -m benchmarks.two_graphs NAME...

Each NAME is an artifact in ``artifacts``. Its graph for CPUs, which points into `model.onnx`, is timed against a copy
with the weights inside, in turns. Each load has a process of its own, since a process's first is what users wait for.
Nothing else may run meanwhile.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import onnx

from benchmarks.docs import put_block
from segonnx.artifacts.layout import CPU_MODEL, MODEL
from segonnx.artifacts.manifest import read
from segonnx.core import hardware, subprocesses, synthetic_inputs
from segonnx.core.ort_session import SessionSettings, model_bytes, open_session
from segonnx.optimize.timed_session import TimedSession

ROOT = Path(__file__).resolve().parents[1]
BLOCK_VERSION = 1
"""Raised when what this program writes, or measures, changes."""
LOADS = 9
PASSES = 15


def load(path: Path, progress: subprocesses.Progress) -> float:
    """Seconds of making a session."""
    import onnxruntime  # noqa: F401 (its import isn't the graph's time)

    del progress
    began = time.perf_counter()
    open_session(path, SessionSettings(threads=hardware.usable_cores()))
    return time.perf_counter() - began


def measure(name: str) -> str:
    """A line of the table."""
    folder = ROOT / "artifacts" / name
    content = read(folder)
    x = synthetic_inputs.make("noise", tuple(content["inputs"][0]["shape"]), content["preprocessing"]["modality"])
    with tempfile.TemporaryDirectory() as scratch:
        inside = Path(scratch) / MODEL
        large = (folder / f"{MODEL}.data").exists()
        model = onnx.load(folder / CPU_MODEL)
        onnx.save(model, inside, save_as_external_data=large, location=f"{MODEL}.data")
        paths = {"plain": folder / MODEL, "shared": folder / CPU_MODEL, "inside": inside}
        loads: dict[str, list[float]] = {key: [] for key in paths}
        for _ in range(LOADS):
            for key, path in paths.items():
                loads[key].append(subprocesses.call(load, path).value)
        sessions = {key: TimedSession(path, x, hardware.usable_cores()) for key, path in paths.items()}
        passes: dict[str, list[float]] = {key: [] for key in sessions}
        for _ in range(PASSES):
            for key, session in sessions.items():
                passes[key].append(session.sample())
        both = model_bytes(folder / MODEL)
        plain = both - (folder / CPU_MODEL).stat().st_size
        copies = plain + model_bytes(inside)
    nodes = [len(onnx.load(path, load_external_data=False).graph.node) for path in (folder / MODEL, folder / CPU_MODEL)]
    middle = {key: statistics.median(found) for key, found in loads.items()}
    ratio = statistics.median(a / b for a, b in zip(passes["shared"], passes["inside"], strict=True))
    faster = statistics.median(a / b for a, b in zip(passes["plain"], passes["shared"], strict=True))
    return (
        f"| {name} | {nodes[0]:,} / {nodes[1]:,} | {plain / 1e6:.1f} | {both / 1e6:.1f} | {copies / 1e6:.1f} "
        f"| {1e3 * middle['plain']:.0f} | {1e3 * middle['shared']:.0f} | {1e3 * middle['inside']:.0f} "
        f"| {ratio:.2f} | {faster:.2f} |"
    )


def main(names: Sequence[str]) -> None:
    """Measure, and write the table."""
    machine = hardware.describe()
    how = (
        f"{machine['cpu']}, {hardware.usable_cores()} threads, ONNX Runtime {machine['versions']['onnxruntime']}; "
        f"medians of {LOADS} loads and {PASSES} passes in turns."
    )
    head = (
        "| model | nodes, plain / for CPUs | MB, plain alone | MB, both over one set | MB, two copies "
        "| ms to load, plain | ms to load, for CPUs | the same with its weights inside "
        "| times its pass | plain pass, times that for CPUs |"
    )
    lines = [how, "", head, "|---|---|---|---|---|---|---|---|---|---|", *map(measure, names)]
    path = ROOT / "docs" / "decisions" / "0103-two-graphs.md"
    put_block(path, "two_graphs", "\n".join(lines), "benchmarks.two_graphs")


if __name__ == "__main__":
    from benchmarks import two_graphs  # noqa: PLW0406 (other processes find its functions by this name)

    two_graphs.main(sys.argv[1:])
