"""What each rewrite gains, alone and among the others, and the memory it takes: into docs/internals/rewrites.md.

    python -m benchmarks.ablation time ROOT [NAME...]     race the variants that ROOT has no races of
    python -m benchmarks.ablation table ROOT              put them into the page

Each variant of a network takes turns with the one that has all rewrites, in one process; its memory is that of a
process of its own. That one races itself, too: what comes out there is noise. Nothing else may run meanwhile. Each
variant takes about a minute, and a run that was stopped goes on at the next. Where the host moved the processors
between caches, either side has figures of its own.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx_ir as ir

from benchmarks.docs import put_block
from segonnx import optimize
from segonnx.artifacts.layout import MODEL
from segonnx.bench import core_latency, stats
from segonnx.bench.core_latency import CoreLatency
from segonnx.core import files, hardware, subprocesses
from segonnx.core.synthetic_inputs import Array, ParityInput
from segonnx.exporters import pipeline
from segonnx.optimize import BASELINE, OPTIONAL, search
from segonnx.optimize.choices import DEPTH_CHUNKS, Choices
from segonnx.optimize.timed_session import TimedSession
from segonnx.sources import catalog

ROOT = Path(__file__).resolve().parents[1]
BLOCK_VERSION = 1
"""Raised when what this program writes, or measures, changes."""
NAMES = ("stunet-s", "totalsegmentator", "unet-resnet18", "unet-regnetx-002", "encoder-regnetx-002")
ALGORITHMS = ("taps", "winograd", "winograd4")
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
        names = {text: algorithm for text, layer in layers.items() if algorithm in layer.algorithms}
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
class Pair:
    """A pass of a graph and one of that with all rewrites, in seconds; core-to-core latency in ns before and after."""

    variant: float
    complete: float
    before: float
    after: float


def race(path: Path, whole: Path, x: Array, latency: CoreLatency) -> list[Pair]:
    """Passes of a graph and of that with all rewrites, in turns."""
    first, second = (TimedSession(found, x, hardware.usable_cores()) for found in (path, whole))
    pairs: list[Pair] = []
    until = time.monotonic() + SECONDS
    while len(pairs) < ROUNDS or time.monotonic() < until:
        before = latency.measure() or 0.0
        variant, complete = first.sample(), second.sample()
        pairs.append(Pair(variant, complete, before, latency.measure() or 0.0))
    return pairs


def one_pass(path: Path, probe: ParityInput, modality: str, progress: subprocesses.Progress) -> None:
    """Load a graph and run it: how much memory that takes, the process tells."""
    TimedSession(path, probe.make(modality), hardware.usable_cores())


def cells(pairs: list[Pair]) -> str:
    """The median milliseconds, and how many times those of the graph with all rewrites they are, with the interval."""
    if len(pairs) < FEWEST:
        return "- | -"
    value, interval = stats.speedup([[pair.variant] for pair in pairs], [[pair.complete] for pair in pairs])
    between = "" if interval is None else f" ({interval[0]:.2f}-{interval[1]:.2f})"
    return f"{1e3 * statistics.median(pair.variant for pair in pairs):.1f} | {value:.2f}{between}"


def measure(root: Path, name: str, latency: CoreLatency) -> None:
    """Race a network's variants, and keep each race in a file of the network."""
    spec = catalog.find(name)
    stock = pipeline.export(spec, pipeline.Settings(ROOT / "artifacts")).folder / MODEL
    probe = ParityInput("noise", spec.input_shape)
    raced, memory = read(root, name)
    with tempfile.TemporaryDirectory() as folder:
        paths = variants(stock, Path(folder))
        for variant, path in paths.items():
            if variant in raced:
                continue
            print(f"{name}: {variant}", file=sys.stderr, flush=True)
            raced[variant] = race(path, paths[ALL], probe.make(spec.modality), latency)
            memory[variant] = subprocesses.call(one_pass, path, probe, spec.modality).peak_rss_bytes
            content = {"raced": {key: [asdict(pair) for pair in pairs] for key, pairs in raced.items()}}
            files.write(root / f"{name}.json", json.dumps(content | {"memory": memory}, indent=1) + "\n")


def read(root: Path, name: str) -> tuple[dict[str, list[Pair]], dict[str, int]]:
    """The races of a network's variants that were kept, and the peak memory of each."""
    path = root / f"{name}.json"
    if not path.exists():
        return {}, {}
    content = json.loads(path.read_text("utf-8"))
    return {key: [Pair(**pair) for pair in pairs] for key, pairs in content["raced"].items()}, content["memory"]


def table(name: str, raced: dict[str, list[Pair]], memory: dict[str, int]) -> str:
    """The table; turns in which the processors were moved count on neither side."""
    levels = core_latency.levels(
        [time for pairs in raced.values() for pair in pairs for time in (pair.before, pair.after)]
    )
    middle = math.inf if levels is None else math.sqrt(math.prod(levels))
    sides = {"as it was": True} if levels is None else {"one cache": True, "two caches": False}
    head = "".join(f" ms, {side} | times that with all rewrites |" for side in sides)
    lines = [f"| {name} |{head} peak memory, GB |", f"|---|{'---|---|' * len(sides)}---|"]
    for variant, pairs in raced.items():
        found = [
            cells([pair for pair in pairs if (pair.before < middle) == (pair.after < middle) == near])
            for near in sides.values()
        ]
        lines.append(f"| {variant} | {' | '.join(found)} | {memory[variant] / 1e9:.2f} |")
    return "\n".join(lines)


def main(command: str, folder: str, *names: str) -> None:
    """Race, or write the page."""
    root = Path(folder).resolve()
    if command == "time":
        root.mkdir(parents=True, exist_ok=True)
        with CoreLatency(hardware.choose_cpus(2)) as latency:
            for name in names or NAMES:
                measure(root, name, latency)
        return
    described = hardware.describe()
    where = f"{described['cpu']}, {hardware.usable_cores()} cores, ONNX Runtime {described['versions']['onnxruntime']}"
    known = {name: read(root, name) for name in NAMES}
    tables = [table(name, raced, memory) for name, (raced, memory) in known.items() if raced]
    text = "\n\n".join(
        [f"{where}; medians of at least {ROUNDS} turns and {SECONDS:.0f} s, with 95 % intervals:", *tables]
    )
    put_block(ROOT / "docs" / "internals" / "rewrites.md", "ablation", text, "benchmarks.ablation")


if __name__ == "__main__":
    from benchmarks import ablation  # noqa: PLW0406 (other processes find its functions by this name)

    ablation.main(*sys.argv[1:])
