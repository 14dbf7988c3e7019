"""What each rewrite gains, alone and among the others, and the memory it takes: into docs/internals/rewrites.md.

    python -m benchmarks.ablation [NAME...]

Each variant of a network takes turns with the one that has all rewrites, in one process; its memory is that of a
process of its own. That one races itself, too: what comes out there is noise. Nothing else may run meanwhile. Where
the host moved the processors between caches, either side has figures of its own.
"""

from __future__ import annotations

import math
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from benchmarks.docs import replace
from segonnx import optimize
from segonnx.artifacts.layout import MODEL
from segonnx.bench import core_latency, stats
from segonnx.bench.core_latency import Exchange
from segonnx.core import hardware, subprocesses
from segonnx.core.synthetic_inputs import Array, ParityInput
from segonnx.exporters import pipeline
from segonnx.optimize import BASELINE, OPTIONAL, search
from segonnx.optimize.choices import DEPTH_CHUNKS, Choices
from segonnx.optimize.timed_session import TimedSession
from segonnx.sources import catalog

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("stunet-s", "totalsegmentator", "unet-resnet18", "unet-regnetx-002", "encoder-regnetx-002")
ALGORITHMS = ("taps", "winograd", "winograd4", "winograd4_matmul")
ROUNDS = 9
SECONDS = 12.0
"""Short passes take more turns than ``ROUNDS``: as many as this time holds."""
FEWEST = 3
"""Fewer turns are no figure."""
ALL = "all rewrites"


def variants(stock: Path, folder: Path) -> dict[str, Path]:
    """The graphs to compare, by name, beside the weights that they share."""
    for path in stock.parent.glob(f"{MODEL}*"):
        shutil.copy(path, folder)
    rewritten = optimize.run(ir.load(folder / MODEL), Choices())
    passes, layers = [name for name in OPTIONAL if name in rewritten.passes], rewritten.layers
    chosen = {"baseline": BASELINE, ALL: Choices()}
    if len(passes) > 1:
        for name in passes:
            chosen[f"`{name}` alone"] = Choices(without=tuple(set(OPTIONAL) - {name}))
            chosen[f"all but `{name}`"] = Choices(without=(name,))
    for algorithm in ALGORITHMS if layers else ():
        able = {text: layer for text, layer in layers.items() if algorithm in layer.algorithms}
        names = {text: algorithm for text, layer in able.items() if layer.algorithm != "stacked"}
        chosen[f"all, convolutions by {algorithm}"] = Choices(algorithms=names)
    for count in search.DEPTH_CHUNKS if layers else ():
        if count != DEPTH_CHUNKS:
            chosen[f"all, depth chunks: {count}"] = Choices(depth_chunks=count)
    paths = {}
    for number, (name, choices) in enumerate(chosen.items()):
        model = ir.load(folder / MODEL)
        optimize.run(model, choices)
        paths[name] = folder / f"{number}.onnx"
        ir.save(model, paths[name])
    return paths


@dataclass
class Turn:
    """A pass of a graph, in seconds, one of that with all rewrites, and the flag's nanoseconds before and after."""

    mine: float
    its: float
    before: float
    after: float


def race(path: Path, whole: Path, x: Array, flag: Exchange) -> list[Turn]:
    """Passes of a graph and of that with all rewrites, in turns."""
    one, other = (TimedSession(found, x, hardware.usable_cores()) for found in (path, whole))
    turns: list[Turn] = []
    until = time.monotonic() + SECONDS
    while len(turns) < ROUNDS or time.monotonic() < until:
        before = flag.measure() or 0.0
        mine, its = one.sample(), other.sample()
        turns.append(Turn(mine, its, before, flag.measure() or 0.0))
    return turns


def one_pass(path: Path, probe: ParityInput, modality: str, progress: subprocesses.Progress) -> None:
    """Load a graph and run it: how much memory that takes, the process tells."""
    TimedSession(path, probe.make(modality), hardware.usable_cores())


def cells(turns: list[Turn]) -> str:
    """The median milliseconds, and how many times those of the graph with all rewrites they are, with the interval."""
    if len(turns) < FEWEST:
        return "- | -"
    value, interval = stats.speedup([[one.mine] for one in turns], [[one.its] for one in turns])
    between = "" if interval is None else f" ({interval[0]:.2f}-{interval[1]:.2f})"
    return f"{1e3 * statistics.median(one.mine for one in turns):.1f} | {value:.2f}{between}"


def measure(name: str, flag: Exchange) -> str:
    """A table of a network's variants, by whether the processors shared a cache."""
    spec = catalog.find(name)
    settings = pipeline.Settings(ROOT / "artifacts" / "stock", optimize="none")
    stock = pipeline.export(spec, settings).folder / MODEL
    probe = ParityInput("noise", spec.input_shape)
    raced: dict[str, list[Turn]] = {}
    memory = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = variants(stock, Path(folder))
        for one, path in paths.items():
            print(f"{name}: {one}", file=sys.stderr, flush=True)
            raced[one] = race(path, paths[ALL], probe.make(spec.modality), flag)
            memory[one] = subprocesses.call(one_pass, path, probe, spec.modality).peak_rss_bytes
    return table(name, raced, memory)


def table(name: str, raced: dict[str, list[Turn]], memory: dict[str, int]) -> str:
    """The table; turns in which the processors were moved count on neither side."""
    levels = core_latency.levels(
        [time for turns in raced.values() for turn in turns for time in (turn.before, turn.after)]
    )
    middle = math.inf if levels is None else math.sqrt(math.prod(levels))
    sides = {"as it was": True} if levels is None else {"one cache": True, "two caches": False}
    head = "".join(f" ms, {side} | times that with all rewrites |" for side in sides)
    lines = [f"| {name} |{head} peak memory, GB |", f"|---|{'---|---|' * len(sides)}---|"]
    for one, turns in raced.items():
        found = [
            cells([turn for turn in turns if (turn.before < middle) == (turn.after < middle) == near])
            for near in sides.values()
        ]
        lines.append(f"| {one} | {' | '.join(found)} | {memory[one] / 1e9:.2f} |")
    return "\n".join(lines)


def main(names: list[str]) -> None:
    """Measure, print, and write the page."""
    described = hardware.describe()
    where = f"{described['cpu']}, {hardware.usable_cores()} cores, ONNX Runtime {described['versions']['onnxruntime']}"
    tables = []
    with Exchange(hardware.choose_cpus(2)) as flag:
        for name in names or NAMES:
            tables.append(measure(name, flag))
            print(tables[-1], flush=True)
    text = "\n\n".join(
        [f"{where}; medians of at least {ROUNDS} turns and {SECONDS:.0f} s, with 95 % intervals:", *tables]
    )
    replace(ROOT / "docs" / "internals" / "rewrites.md", "ablation", text)


if __name__ == "__main__":
    from benchmarks import ablation  # noqa: PLW0406 (other processes find its functions by this name)

    ablation.main(sys.argv[1:])
