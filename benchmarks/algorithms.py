"""Which algorithms of a 3D convolution a network needs, and what rows gain in 2D.

    python -m benchmarks.algorithms NAME... [--rounds N] [--artifacts FOLDER] [--together N] [--seed N]

Each NAME is an artifact: `segonnx export NAME` makes it. Its plain graph, `model.onnx`, is rewritten here. The default
choice of algorithms is timed against each algorithm alone, against each pair of them, and against itself without one of
them; in 2D, against all rewrites but `UnrollRowsPass`. What an algorithm can't make, another that is left makes.
The graphs are timed in one process, in random order in each round. A time is the median of the rounds' ratios to the
default, with the interval of a bench. The default races a copy of itself, too: what comes out there is noise. Nothing
else may run meanwhile. It prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shutil
import statistics
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from segonnx import optimize
from segonnx.artifacts.layout import MANIFEST, MODEL
from segonnx.bench import stats
from segonnx.core import hardware, synthetic_inputs
from segonnx.core.synthetic_inputs import Array
from segonnx.optimize.algorithms import ALGORITHMS
from segonnx.optimize.choices import Choices
from segonnx.optimize.layers import RewrittenLayer
from segonnx.optimize.timed_session import TimedSession

ROOT = Path(__file__).resolve().parents[1]
PREFERENCE = ("winograd4", "winograd", "taps")
"""Of what is left, the first that can make a layer takes the place of what is missing; taps make every layer."""
DEFAULT = "default"


def variants(rewritten: optimize.Rewritten) -> dict[str, Choices]:
    """The choices to compare with the default, by name; graphs that would be the same have one name."""
    found = {f"{DEFAULT}, again": Choices()}
    if "UnrollRowsPass" in rewritten.passes:
        found["without `UnrollRowsPass`"] = Choices(without=("UnrollRowsPass",))
    if not rewritten.layers:
        return found
    used = [name for name in ALGORITHMS if any(layer.algorithm == name for layer in rewritten.layers.values())]
    offers = {f"{name} alone": {name} for name in ALGORITHMS}
    offers |= {f"without {name}": set(used) - {name} for name in used if name != "taps"}
    offers |= {f"{a} and {b}": {a, b} for a, b in itertools.combinations(ALGORITHMS, 2) if {a, b} & set(used)}
    known = {frozenset[tuple[str, str]](): DEFAULT}
    for name, offered in offers.items():
        changes = restricted(rewritten.layers, offered)
        if known.setdefault(frozenset(changes.items()), name) == name:
            found[name] = Choices(algorithms=changes)
    return found


def restricted(layers: Mapping[str, RewrittenLayer], offered: Collection[str]) -> dict[str, str]:
    """The algorithms that differ from the default if only these are offered, by their layers."""
    changes = {}
    for text, layer in layers.items():
        if layer.algorithm not in offered:
            left = [name for name in PREFERENCE if name in offered and name in layer.algorithms]
            name = left[0] if left else "taps"
            if name != layer.algorithm:
                changes[text] = name
    return changes


def race(paths: Mapping[str, Path], x: Array, rounds: int, rng: random.Random) -> dict[str, list[float]]:
    """Seconds of a pass of each graph, by round; the graphs run in random order in each round."""
    sessions = {name: TimedSession(path, x, hardware.usable_cores()) for name, path in paths.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(rounds):
        order = list(sessions)
        rng.shuffle(order)
        for name in order:
            seconds[name].append(sessions[name].sample())
    return seconds


def row(name: str, seconds: Sequence[float], default: Sequence[float], layers: str) -> str:
    """A row of the table: the median milliseconds, and how many times those of the default they are."""
    value, interval = stats.speedup([[a] for a in seconds], [[b] for b in default])
    between = "" if interval is None else f" ({interval[0]:.3f}-{interval[1]:.3f})"
    return f"| {name} | {1e3 * statistics.median(seconds):.1f} | {value:.3f}{between} | {layers} |"


def described(layers: Mapping[str, RewrittenLayer]) -> str:
    """How many convolutions each algorithm makes."""
    counts = {
        name: sum(layer.convolutions for layer in layers.values() if layer.algorithm == name) for name in ALGORITHMS
    }
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "-"


def tables(artifact: Path, rounds: int, together: int, rng: random.Random) -> Iterator[str]:
    """The lines of an artifact's table, each as soon as it is known."""
    manifest = json.loads((artifact / MANIFEST).read_text("utf-8"))
    if manifest["rewrites"]:
        raise SystemExit(f"{artifact} has no plain graph: segonnx export {manifest['name']} --overwrite")
    shape = tuple(manifest["inputs"][0]["shape"])
    x = synthetic_inputs.make("noise", shape, manifest["preprocessing"]["modality"])
    yield f"| {manifest['name']} | ms | times the default | convolutions |"
    yield "|---|---|---|---|"
    with tempfile.TemporaryDirectory() as folder:
        for path in artifact.resolve().glob(f"{MODEL}*"):
            shutil.copy(path, folder)
        made: dict[str, str] = {}

        def write(name: str, choices: Choices) -> Path:
            model = ir.load(Path(folder) / MODEL)
            made[name] = described(optimize.run(model, choices).layers)
            path = Path(folder) / f"{len(made)}.onnx"
            ir.save(model, path)
            return path

        default = write(DEFAULT, Choices())
        found = variants(optimize.run(ir.load(Path(folder) / MODEL), Choices()))
        names = list(found)
        rng.shuffle(names)
        rows: dict[str, str] = {}
        for first in range(0, len(names), together):
            group = names[first : first + together]
            print(f"{manifest['name']}: {', '.join(group)}", file=sys.stderr, flush=True)
            seconds = race({DEFAULT: default, **{name: write(name, found[name]) for name in group}}, x, rounds, rng)
            rows |= {name: row(name, seconds[name], seconds[DEFAULT], made[name]) for name in group}
        yield from (rows[name] for name in found)


def main(arguments: Sequence[str]) -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.algorithms")
    parser.add_argument("names", nargs="+", metavar="NAME", help="folder in --artifacts")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--artifacts", type=Path, default=ROOT / "artifacts")
    parser.add_argument("--together", type=int, default=3, help="graphs in memory beside the default")
    parser.add_argument("--seed", type=int, default=0, help="of the order")
    given = parser.parse_args(arguments)
    machine = hardware.describe()
    print(
        f"{machine['cpu']}, {hardware.usable_cores()} threads, ONNX Runtime {machine['versions']['onnxruntime']}; "
        f"{given.rounds} rounds, medians of the rounds' ratios with {100 * stats.LEVEL:.0f} % intervals:"
    )
    rng = random.Random(given.seed)
    for name in given.names:
        print()
        for line in tables(given.artifacts / name, given.rounds, given.together, rng):
            print(line, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
