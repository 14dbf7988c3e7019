"""What each rewrite gains, alone and among the others, and the memory it takes: into docs/performance.md.

    python -m tests.exporters.ablation [NAME...]

Each variant of a network takes turns with the one that has all rewrites, in one process; its memory is that of a
process of its own. That one races itself, too: what comes out there is noise. Nothing else may run meanwhile.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import onnx_ir as ir

from segonnx import catalog, machine, process
from segonnx.artifacts.verify import MODEL
from segonnx.bench import stats
from segonnx.exporters import pipeline, rewrites
from segonnx.exporters.probes import Probe
from segonnx.exporters.rewrites.choices import OPTIONAL, STOCK, Choices
from segonnx.exporters.tune import Session
from tools.update_docs import replace

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("stunet-s", "totalsegmentator", "stunet-b", "unet-resnet18", "unet-regnetx-002", "encoder-mobilenetv3-small")
FORMS = ("taps", "winograd", "winograd4", "winograd4_matmul")
ROUNDS = 9
SECONDS = 12.0
"""Short passes take more turns than ``ROUNDS``: as many as this time holds."""
ALL = "all rewrites"


def variants(stock: Path, folder: Path) -> dict[str, Path]:
    """The graphs to compare, by name, beside the weights that they share."""
    for path in stock.parent.glob(f"{MODEL}*"):
        shutil.copy(path, folder)
    changed, found = rewrites.run(ir.load(folder / MODEL), Choices())
    passes = [name for name in OPTIONAL if name in changed]
    chosen = {"stock": STOCK, ALL: Choices()}
    if len(passes) > 1:
        for name in passes:
            chosen[f"`{name}` alone"] = Choices(without=tuple(set(OPTIONAL) - {name}))
            chosen[f"all but `{name}`"] = Choices(without=(name,))
    for form in FORMS if found else ():
        forms = {text: form for text, layer in found.items() if form in layer.forms and layer.form != "stacked"}
        chosen[f"all, convolutions as {form}"] = Choices(forms=forms)
    paths = {}
    for number, (name, choices) in enumerate(chosen.items()):
        model = ir.load(folder / MODEL)
        rewrites.run(model, choices)
        paths[name] = folder / f"{number}.onnx"
        ir.save(model, paths[name])
    return paths


def race(path: Path, whole: Path, probe: Probe, modality: str, progress: process.Progress) -> tuple[float, str]:
    """The median seconds of a graph, and of how many times its turns took those of the graph with all rewrites."""
    x = probe.make(modality)
    one, other = (Session(str(found), x, machine.usable_cores()) for found in (path, whole))
    mine: list[list[float]] = []
    its: list[list[float]] = []
    until = time.monotonic() + SECONDS
    while len(mine) < ROUNDS or time.monotonic() < until:
        mine.append([one.sample()])
        its.append([other.sample()])
    value, interval = stats.speedup(mine, its)
    assert interval is not None  # ROUNDS are enough for one
    return statistics.median(seconds for (seconds,) in mine), f"{value:.2f} ({interval[0]:.2f}-{interval[1]:.2f})"


def one_pass(path: Path, probe: Probe, modality: str, progress: process.Progress) -> None:
    """Load a graph and run it: how much memory that takes, the process tells."""
    Session(str(path), probe.make(modality), machine.usable_cores())


def measure(name: str) -> str:
    """A table of a network's variants."""
    system = catalog.find(name)
    settings = pipeline.Settings(ROOT / "artifacts" / "stock", optimize="none")
    stock = pipeline.export(system, settings).folder / MODEL
    probe = Probe("noise", system.input_shape)
    with tempfile.TemporaryDirectory() as folder:
        paths = variants(stock, Path(folder))
        lines = [f"| {name} | ms | times that with all rewrites | peak memory, GB |", "|---|---|---|---|"]
        for one, path in paths.items():
            print(f"{name}: {one}", file=sys.stderr, flush=True)
            taken, ratio = process.call(race, path, paths[ALL], probe, system.modality).value
            memory = process.call(one_pass, path, probe, system.modality).peak_rss_bytes
            lines.append(f"| {one} | {1e3 * taken:.1f} | {ratio} | {memory / 1e9:.2f} |")
    return "\n".join(lines)


def main(names: list[str]) -> None:
    """Measure, print, and write the page."""
    described = machine.describe()
    where = f"{described['cpu']}, {machine.usable_cores()} cores, ONNX Runtime {described['versions']['onnxruntime']}"
    tables = []
    for name in names or NAMES:
        tables.append(measure(name))
        print(tables[-1], flush=True)
    text = "\n\n".join(
        [f"{where}; medians of at least {ROUNDS} turns and {SECONDS:.0f} s, with 95 % intervals:", *tables]
    )
    replace(ROOT / "docs" / "performance.md", "ablation", text)


if __name__ == "__main__":
    from tests.exporters import ablation  # noqa: PLW0406 (other processes find its functions by this name)

    ablation.main(sys.argv[1:])
