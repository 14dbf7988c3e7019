"""How exact each runtime is: errors against the network in float64, of PyTorch itself, too.

python -m benchmarks.exactness make ROOT [NAME...]     export the systems, the largest at a small shape
python -m benchmarks.exactness check ROOT [NAME...]    run each in every runtime, and keep the errors in ROOT
python -m benchmarks.exactness table ROOT              put them into docs/checks.md
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import docs
from segonnx.artifacts.layout import CPU_MODEL, MODEL
from segonnx.core.ort_session import SessionSettings, open_session
from segonnx.core.synthetic_inputs import NAMES
from segonnx.core.synthetic_inputs import make as make_input
from segonnx.core.tolerances import TOLERANCES, compare
from segonnx.sources import catalog

BLOCK_VERSION = 1
"""Raised when what this program writes, or measures, changes."""
PAGE = docs.ROOT / "docs" / "checks.md"
SMALL = {"stunet-h": "32,64,64", "stunet-l": "32,64,64"}
"""Shapes of systems that take too much memory in float64 at their own."""
WAYS = ("PyTorch", "artifact", "stock graph", "OpenVINO, stock graph")


def make(root: Path, names: tuple[str, ...]) -> None:
    """Export systems that aren't there."""
    for name in names:
        if not (root / name).exists():
            shape = ["--shape", SMALL[name]] if name in SMALL else []
            command = [sys.executable, "-m", "segonnx", "export", name, "-q", *shape, "--out", str(root)]
            subprocess.run(command, check=True, cwd=docs.ROOT)


def check(root: Path, names: tuple[str, ...]) -> None:
    """Run systems in every runtime."""
    for name in names:
        found = {way: dict(_errors(root / name, way)) for way in ("reference", *WAYS)}
        found.pop("reference")
        (root / f"{name}.json").write_text(json.dumps(found, indent=1))
        print(name, {way: max(one["rms"] for one in errors.values()) for way, errors in found.items()}, flush=True)


def _errors(artifact: Path, way: str) -> Iterator[tuple[str, dict[str, float]]]:
    """By the kind of input: errors of a way to run an artifact's network. The reference writes its logits down."""
    described = json.loads((artifact / "manifest.json").read_text())
    shape, modality = tuple(described["inputs"][0]["shape"]), catalog.find(described["name"]).modality
    run = _runner(artifact, described, way)
    for kind in NAMES:
        x = make_input(kind, shape, modality)
        exact = artifact.parent / f"{artifact.name}-{kind}.npy"
        found = run(x)
        if way == "reference":
            np.save(exact, found)
            continue
        difference = compare(np.load(exact, mmap_mode="r"), found)
        yield kind, {"max": difference.max_rel_error, "rms": difference.rms_rel_error}


def _runner(artifact: Path, described: dict[str, Any], way: str) -> Any:
    """What computes the logits of an array."""
    given, gives = described["inputs"][0]["name"], described["outputs"][0]["name"]
    if way in ("artifact", "stock graph"):
        file = artifact / (CPU_MODEL if way == "artifact" and (artifact / CPU_MODEL).exists() else MODEL)
        session = open_session(file, SessionSettings(threads=2))
        return lambda x: session.run([gives], {given: x})[0]
    if way.startswith("OpenVINO"):
        import openvino

        hints = {"INFERENCE_PRECISION_HINT": "f32", "EXECUTION_MODE_HINT": "ACCURACY"}
        compiled = openvino.Core().compile_model(artifact / MODEL, "CPU", hints)
        return lambda x: compiled([x])[0]
    return _torch(described["name"], np.float64 if way == "reference" else np.float32)


def _torch(name: str, dtype: type) -> Any:
    import torch

    from segonnx.core.subprocesses import silent
    from segonnx.exporters.prepare import Weights, network_with_weights

    module = network_with_weights(catalog.find(name), Weights(), silent).module.eval()
    if dtype is np.float64:
        module.double()

    def run(x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            found: np.ndarray = module(torch.from_numpy(x.astype(dtype))).numpy()
        return found

    return run


def table(root: Path) -> str:
    """The largest errors of each system over its inputs, as markdown."""
    allowed = TOLERANCES["float32"]
    bounds = f"{allowed.rms_rel_error:.0e}, {allowed.max_rel_error:.0e}"
    lines = [
        f"{docs.machine()}. Errors against float64, relative to the standard deviation: the RMS, then the largest.",
        f"Between the artifact and PyTorch {bounds} are allowed:",
        "",
        f"| system | {' | '.join(WAYS)} |",
        f"|{'---|' * (len(WAYS) + 1)}",
    ]
    for name in catalog.names():
        path = root / f"{name}.json"
        if path.exists():
            found = json.loads(path.read_text())
            cells = [
                ", ".join(f"{max(one[kind] for one in found[way].values()):.1e}" for kind in ("rms", "max"))
                for way in WAYS
            ]
            lines.append(f"| {name}{' at ' + SMALL[name] if name in SMALL else ''} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def main(command: str, folder: str, *names: str) -> None:
    """Run one of the commands."""
    root, chosen = Path(folder).resolve(), names or tuple(catalog.names())
    root.mkdir(parents=True, exist_ok=True)
    if command == "table":
        docs.put_block(PAGE, "exactness", table(root), __spec__.name)
    else:
        {"make": make, "check": check}[command](root, chosen)


if __name__ == "__main__":
    main(*sys.argv[1:])
