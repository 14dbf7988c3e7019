"""How exact each runtime is: errors against the network in float64, of PyTorch itself, too.

    python -m benchmarks.exactness make ROOT [NAME...]     export the systems, the largest at a small shape
    python -m benchmarks.exactness check ROOT [NAME...]    run each in every runtime, and keep the errors in ROOT
    python -m benchmarks.exactness table ROOT              put them into docs/checks.md

What is there isn't made again: a run that was stopped goes on at the first runtime that has no errors yet.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks import docs
from segonnx.artifacts.layout import CPU_MODEL, MANIFEST, MODEL
from segonnx.core import files, hardware
from segonnx.core.ort_session import SessionSettings, open_session
from segonnx.core.synthetic_inputs import NAMES
from segonnx.core.synthetic_inputs import make as make_input
from segonnx.core.tolerances import TOLERANCES, compare, std_of
from segonnx.sources import catalog

BLOCK_VERSION = 2
"""Raised when what this program writes, or measures, changes."""
PAGE = docs.ROOT / "docs" / "checks.md"
SMALL = {"stunet-h": "32,64,64", "stunet-l": "32,64,64"}
"""Shapes of systems that take too much memory in float64 at their own."""
PYTORCH, PARITY = "PyTorch", "artifact, PyTorch as judge"
WAYS = (PYTORCH, "artifact", "stock graph", "OpenVINO, stock graph")
SHARE = 1 / 3
"""The part of what is allowed that numeric parity should take."""
Errors = dict[str, dict[str, float]]
"""By the kind of input: the largest error and the RMS."""


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
        kept = root / f"{name}.json"
        found: dict[str, Errors] = json.loads(kept.read_text()) if kept.exists() else {}
        for way in WAYS:
            if way not in found:
                found |= _pytorch(root / name) if way == PYTORCH else _runtime(root / name, way)
                files.write(kept, json.dumps(found, indent=1) + "\n")
                print(name, way, found[way], flush=True)
        for path in root.glob(f"{name}-*.npy"):
            path.unlink()


def _pytorch(artifact: Path) -> dict[str, Errors]:
    """The errors of PyTorch; its logits in float32 and float64 are written down."""
    import torch

    from segonnx.core.subprocesses import silent
    from segonnx.exporters.prepare import Weights, network_with_weights

    spec = catalog.find(artifact.name)
    module = network_with_weights(spec, Weights(), silent).module.eval()
    shape = _shape(artifact)
    for dtype in ("float32", "float64"):
        module.to(getattr(torch, dtype))
        for kind in NAMES:
            x = make_input(kind, shape, spec.modality).astype(dtype)
            with torch.inference_mode():
                np.save(_logits(artifact, kind, dtype), module(torch.from_numpy(x)).numpy())
    scale = _scale(artifact)
    return {PYTORCH: {kind: _error(artifact, kind, _read(artifact, kind, "float32"), scale) for kind in NAMES}}


def _runtime(artifact: Path, way: str) -> dict[str, Errors]:
    """The errors of a runtime; those of the artifact against PyTorch, too."""
    run, modality = _runner(artifact, way), catalog.find(artifact.name).modality
    errors: dict[str, Errors] = {way: {}}
    scale = _scale(artifact)
    for kind in NAMES:
        found = run(make_input(kind, _shape(artifact), modality))
        errors[way][kind] = _error(artifact, kind, found, scale)
        if way == "artifact":
            errors.setdefault(PARITY, {})[kind] = _error(artifact, kind, found, scale, "float32")
    return errors


def _shape(artifact: Path) -> tuple[int, ...]:
    return tuple(json.loads((artifact / MANIFEST).read_text())["inputs"][0]["shape"])


def _logits(artifact: Path, kind: str, dtype: str) -> Path:
    """The file of PyTorch's logits of an input."""
    return artifact.parent / f"{artifact.name}-{kind}-{dtype}.npy"


def _read(artifact: Path, kind: str, dtype: str) -> np.ndarray:
    logits: np.ndarray = np.load(_logits(artifact, kind, dtype), mmap_mode="r")
    return logits


def _scale(artifact: Path) -> float:
    """What errors are relative to, as in numeric parity: the std of the input whose logits vary most."""
    return max(std_of(_read(artifact, kind, "float64")) for kind in NAMES)


def _error(artifact: Path, kind: str, found: np.ndarray, scale: float, judge: str = "float64") -> dict[str, float]:
    difference = compare(_read(artifact, kind, judge), found, scale)
    return {"rms": difference.rms_rel_error, "max": difference.max_rel_error}


def _runner(artifact: Path, way: str) -> Callable[[np.ndarray], np.ndarray]:
    """What computes the logits of an array."""
    described = json.loads((artifact / MANIFEST).read_text())
    given, gives = described["inputs"][0]["name"], described["outputs"][0]["name"]
    if way.startswith("OpenVINO"):
        import openvino

        hints = {"INFERENCE_PRECISION_HINT": "f32", "EXECUTION_MODE_HINT": "ACCURACY"}
        compiled = openvino.Core().compile_model(artifact / MODEL, "CPU", hints)
        return lambda x: compiled([x])[0]
    file = artifact / (CPU_MODEL if way == "artifact" and (artifact / CPU_MODEL).exists() else MODEL)
    session = open_session(file, SessionSettings(threads=hardware.usable_cores()))
    return lambda x: session.run([gives], {given: x})[0]


def table(root: Path) -> str:
    """The largest errors of each system over its inputs, as markdown."""
    allowed = TOLERANCES["float32"]
    bounds = {"rms": allowed.rms_rel_error, "max": allowed.max_rel_error}
    columns = (*WAYS[:2], PARITY, *WAYS[2:])
    lines = [
        f"{docs.machine()}. Errors against float64, relative to the standard deviation: the RMS, then the largest.",
        f"Numeric parity allows {bounds['rms']:.0e} and {bounds['max']:.0e} with PyTorch as judge; more than a third",
        "of that, and of the same for the others, is in bold:",
        "",
        f"| system | {' | '.join(columns)} |",
        f"|{'---|' * (len(columns) + 1)}",
    ]
    for name in catalog.names():
        path = root / f"{name}.json"
        found = json.loads(path.read_text()) if path.exists() else {}
        if not set(columns) <= set(found):
            continue
        cells = []
        for way in columns:
            worst = {key: max(one[key] for one in found[way].values()) for key in bounds}
            text = ", ".join(f"{error:.1e}" for error in worst.values())
            within = all(error <= SHARE * bounds[key] for key, error in worst.items())
            cells.append(text if within else f"**{text}**")
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
