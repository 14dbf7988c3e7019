"""What each type of operator takes in the artifact on ONNX Runtime and in OpenVINO, into docs/performance.md.

    python -m benchmarks.profiles ARTIFACT...

For what is behind OpenVINO: each runtime's own profiler, which slows passes down. Nothing else may run meanwhile.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from benchmarks import docs
from segonnx.artifacts.layout import CPU_MODEL, MANIFEST, MODEL
from segonnx.core import hardware
from segonnx.core.synthetic_inputs import make
from segonnx.runtimes.base import Operator, Options, Runnable, Runtime
from segonnx.runtimes.openvino import OpenVinoStockRuntime
from segonnx.runtimes.ort import OrtRuntime

BLOCK_VERSION = 1
"""Raised when what this program writes, or measures, changes."""
PAGE = docs.ROOT / "docs" / "performance.md"
RUNTIMES: tuple[type[Runtime], ...] = (OrtRuntime, OpenVinoStockRuntime)
SECONDS = 3.0
"""About what the passes of a profile take together."""
WARM = 3
"""Passes before a profile."""
LEAST = 0.01
"""Types of a smaller part of the time are taken together."""


def profiled(runtime: Runtime, artifact: Path) -> list[Operator]:
    """What the operators of a runtime take in a pass on noise."""
    described = json.loads((artifact / MANIFEST).read_text())
    shape = tuple(described["inputs"][0]["shape"])
    cpu = artifact / CPU_MODEL
    runnable = Runnable(shape, model=artifact / MODEL, cpu_model=cpu if cpu.exists() else None)
    runtime.load(runnable, Options(hardware.usable_cores(), profile=True))
    x = make("noise", shape, "other")
    runtime.prepare(x)
    start = time.perf_counter()
    for _ in range(WARM):
        runtime.run(x)
    passes = max(WARM, round(SECONDS * WARM / (time.perf_counter() - start)))
    found = runtime.profile(x, passes)
    runtime.close()
    return found


def cell(found: list[Operator]) -> str:
    """The milliseconds of a pass, and of each type that matters."""
    total = sum(operator.seconds for operator in found)
    shown = [operator for operator in found if operator.seconds >= LEAST * total]
    parts = [f"{operator.operator} {1e3 * operator.seconds:.2f}" for operator in shown]
    rest = total - sum(operator.seconds for operator in shown)
    return f"{1e3 * total:.1f} | {', '.join([*parts, f'others {1e3 * rest:.2f}'])}"


def main(artifacts: list[str]) -> None:
    """Profile artifacts, and write the page."""
    lines = ["| network | runtime | ms | ms of each type of operator |", "|---|---|---|---|"]
    for artifact in map(Path, artifacts):
        for kind in RUNTIMES:
            lines.append(f"| {artifact.name} | {kind.name} | {cell(profiled(kind(), artifact))} |")
            print(lines[-1], flush=True)
    docs.put_block(PAGE, "profiles", "\n".join([f"{docs.machine()}:", "", *lines, ""]), __spec__.name)


if __name__ == "__main__":
    main(sys.argv[1:])
