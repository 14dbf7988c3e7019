"""What each rewrite gains, alone and among the others, and the memory it takes: into docs/performance.md.

    python -m tests.exporters.ablation [NAME...]

All variants of a network take turns in one process; their memory is that of a process with one variant alone. Nothing
else may run meanwhile.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx_ir as ir

from segonnx import catalog, machine, process
from segonnx.artifacts.verify import MODEL
from segonnx.exporters import pipeline, rewrites
from segonnx.exporters.probes import Probe
from segonnx.exporters.rewrites.choices import OPTIONAL, STOCK, Choices
from segonnx.exporters.tune import Session
from tools.update_docs import replace

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("stunet-s", "totalsegmentator", "stunet-b", "unet-resnet18")
FORMS = ("taps", "winograd", "winograd4")
ROUNDS = 9


def variants(stock: Path, folder: Path) -> dict[str, Path]:
    """The graphs to compare, by name, beside the weights that they share."""
    for path in stock.parent.glob(f"{MODEL}*"):
        shutil.copy(path, folder)
    changed, found = rewrites.run(ir.load(folder / MODEL), Choices())
    passes = [name for name in OPTIONAL if name in changed]
    chosen = {"stock": STOCK, "all rewrites": Choices()}
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


def seconds(paths: dict[str, Path], probe: Probe, modality: str, progress: process.Progress) -> dict[str, float]:
    """The median time of a pass of each graph; all take turns."""
    x = probe.make(modality)
    sessions = {}
    out: np.ndarray | None = None
    for name, path in paths.items():
        progress(f"loading {name}")
        sessions[name] = Session(str(path), x, machine.usable_cores(), out)
        out = sessions[name].out
    rounds = []
    for number in range(ROUNDS):
        progress(f"round {number + 1} of {ROUNDS}")
        rounds.append({name: session.sample() for name, session in sessions.items()})
    return {name: statistics.median(one[name] for one in rounds) for name in paths}


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
        progress = lambda step: print(f"{name}: {step}", file=sys.stderr, flush=True)  # noqa: E731
        times = process.call(seconds, paths, probe, system.modality, progress=progress).value
        memory = {
            one: process.call(one_pass, path, probe, system.modality).peak_rss_bytes for one, path in paths.items()
        }
    lines = [f"| {name} | ms | stock / it | peak memory, GB | of stock's |", "|---|---|---|---|---|"]
    lines += [
        f"| {one} | {1e3 * time:.0f} | {times['stock'] / time:.2f}x | {memory[one] / 1e9:.2f} | "
        f"{memory[one] / memory['stock']:.2f}x |"
        for one, time in times.items()
    ]
    return "\n".join(lines)


def main(names: list[str]) -> None:
    """Measure, print, and write the page."""
    described = machine.describe()
    where = f"{described['cpu']}, {machine.usable_cores()} cores, ONNX Runtime {described['versions']['onnxruntime']}"
    tables = []
    for name in names or NAMES:
        tables.append(measure(name))
        print(tables[-1], flush=True)
    text = "\n\n".join([f"{where}; medians of {ROUNDS} turns:", *tables])
    replace(ROOT / "docs" / "performance.md", "ablation", text)


if __name__ == "__main__":
    main(sys.argv[1:])
