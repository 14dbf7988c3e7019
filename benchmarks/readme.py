"""Puts the first example and the speeds into README.md, and the demo's printout into its page.

    python -m benchmarks.readme example
    python -m benchmarks.readme speed RESULT.json...
    python -m benchmarks.readme demo DEMO_OUTPUT

`example` runs the commands of the first example and shows what they print. `speed` makes the table of speed-ups and the
pictures of measured results. `demo` takes what `make demo` printed.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.docs import ROOT, put_block
from segonnx.bench import machines, result
from segonnx.bench.machines import Machines
from segonnx.bench.result import OK, Result
from segonnx.report import picture

BLOCK_VERSION = 1
"""Raised when what this program writes, or measures, changes."""

EXAMPLE = ("segonnx export unet-resnet18", "segonnx verify artifacts/unet-resnet18")
"""The commands of the first example."""
README = ROOT / "README.md"
DEMO = ROOT / "docs" / "demo.md"
PICTURE = ROOT / "docs" / "speedup.svg"
NAME = "benchmarks.readme"


def main(arguments: Sequence[str]) -> None:
    """Write the part that the first argument names."""
    match arguments:
        case ["example"]:
            put_block(README, "example", example(), NAME)
        case ["speed", *paths] if paths:
            measured = machines.merge([result.read(Path(path)) for path in paths])
            described = measured.machine
            where = f"{described['usable_cores']} cores of {described['cpu']}"
            put_block(README, "speed", table(measured), NAME, where)
            for path, dark in ((PICTURE, False), (PICTURE.with_stem(f"{PICTURE.stem}-dark"), True)):
                path.write_text(picture.speedups_svg(Machines([measured]), dark=dark), "utf-8")
        case ["demo", path]:
            put_block(DEMO, "demo", f"```\n{Path(path).read_text('utf-8').strip()}\n```", NAME)
        case _:
            raise SystemExit(__doc__)


def example() -> str:
    """The commands, each with what it prints, as they run in an empty folder."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for command in EXAMPLE:
            done = subprocess.run(
                ["bash", "-o", "pipefail", "-c", command], cwd=folder, env=environment, capture_output=True, text=True,
                check=True,
            )  # fmt: skip
            lines += [f"$ {command}", done.stdout.strip()]
    return "\n".join(["```", *lines, "```"])


def table(measured: Result) -> str:
    """The speed-ups over eager by family: the geometric mean over its networks, and the least and the greatest.

    Args:
        measured: a result with eager and the runtimes of ``RUNTIMES``; networks that lack one are left out.
    """
    described = measured.machine
    where = f"{measured.rows[0].threads} threads of {described['cpu']} ({', '.join(described['flags'])})"
    lines = [
        f"Times faster than PyTorch eager, in float32, with {where}:",
        "",
        f"| networks | {' | '.join(picture.RUNTIMES.values())} |",
        "|---" * (1 + len(picture.RUNTIMES)) + "|",
    ]
    for family, title in measured.families().items():
        rows: dict[str, dict[str, float]] = {}
        for row in measured.rows:
            if row.family == family and row.status == OK and row.speedup_over_eager is not None:
                rows.setdefault(row.model, {})[row.backend] = row.speedup_over_eager
        complete = {model: ways for model, ways in rows.items() if ways.keys() >= picture.RUNTIMES.keys()}
        if not complete:
            continue
        cells = []
        for backend in picture.RUNTIMES:
            ratios = [ways[backend] for ways in complete.values()]
            span = f" ({min(ratios):.1f} to {max(ratios):.1f})" if len(ratios) > 1 else ""
            cells.append(f"{statistics.geometric_mean(ratios):.1f}x{span}")
        names = ", ".join(complete)
        lines.append(f"| {title}: {names} | {' | '.join(cells)} |")
    versions = described["versions"]
    lines += ["", f"torch {versions['torch']}, onnxruntime {versions['onnxruntime']}, openvino {versions['openvino']}."]
    return "\n".join(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
