"""What `--tune` gains over the default on this machine, into docs/performance.md.

    python -m benchmarks.tuning make ROOT [NAME...]     export networks with --tune, where that isn't done
    python -m benchmarks.tuning table ROOT              put what their manifests say into the page

The last race of a tuning is what counts: the stock graph, the default and what was found, in turns. Nothing else may
run meanwhile.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks import docs
from segonnx.artifacts.layout import MANIFEST
from segonnx.optimize.choices import DEPTH_CHUNKS

BLOCK_VERSION = 2
"""Raised when what this program writes, or measures, changes."""
PAGE = docs.ROOT / "docs" / "performance.md"
NAMES = ("stunet-s", "unet-regnetx-002", "encoder-mobilenetv3-small")
"""A network of each family."""
SECONDS = 180


def make(root: Path, names: tuple[str, ...]) -> None:
    """Export with --tune."""
    for name in names:
        if not (root / name).exists():
            command = [sys.executable, "-m", "segonnx", "export", name, "-q", "--tune", "--tune-time", str(SECONDS)]
            subprocess.run([*command, "--out", str(root)], check=True, cwd=docs.ROOT)


def table(root: Path) -> str:
    """What was chosen and how much faster it is, as markdown."""
    lines = ["| network | default, ms | times the stock graph | tuned, ms | times the default | what was chosen |"]
    lines.append("|---|---|---|---|---|---|")
    for path in sorted(root.glob(f"*/{MANIFEST}")):
        tuning = json.loads(path.read_text("utf-8"))["tuning"]
        medians = tuning["medians_s"]
        default, stock, tuned = medians["default"], medians["stock"], medians.get("tuned")
        found = ["-", "-"] if tuned is None else [f"{1e3 * tuned:.1f}", f"{default / tuned:.2f}x"]
        chosen = [f"without {name}" for name in tuning["without"]]
        chosen += [f"layers with another algorithm: {len(tuning['forms'])}"] if tuning["forms"] else []
        chosen += [f"{tuning['lanes']} depth chunks"] if tuning["lanes"] != DEPTH_CHUNKS else []
        cells = [path.parent.name, f"{1e3 * default:.1f}", f"{stock / default:.2f}x", *found]
        kept = tuning["kept"] if tuning["kept"] != "tuned" else ", ".join(chosen)
        lines.append(f"| {' | '.join([*cells, kept])} |")
    return "\n".join([f"{docs.machine()}; {SECONDS} s for each search:", "", *lines, ""])


def main(command: str, folder: str, *names: str) -> None:
    """Run one of the commands."""
    root = Path(folder).resolve()
    root.mkdir(parents=True, exist_ok=True)
    if command == "table":
        docs.put_block(PAGE, "tuning", table(root), __spec__.name)
    else:
        make(root, names or NAMES)


if __name__ == "__main__":
    main(*sys.argv[1:])
