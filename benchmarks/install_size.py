"""Measures what an installation weighs, and writes it into docs/shipping.md: python -m benchmarks.install_size.

Makes a fresh virtual environment for each row, with the versions of constraints.txt, in a temporary folder.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path
from statistics import median

from benchmarks.docs import put_block
from segonnx.core import hardware

ROOT = Path(__file__).parents[1]
BLOCK_VERSION = 1
"""Raised when what this program writes, or measures, changes."""
EXTRAS = ("", "[predict]")
IMPORTS = 5
PROGRAMS = {
    "`import segonnx`": ("-c", "import segonnx"),
    "`import segonnx.predict.predictor`": ("-c", "import segonnx.predict.predictor"),
    "`segonnx --version`": ("-m", "segonnx", "--version"),
}


def main() -> None:
    described = hardware.describe()
    columns = ["`pip install`", "packages", "site-packages", *PROGRAMS]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for extra in EXTRAS:
        with tempfile.TemporaryDirectory() as folder:
            lines.append(_row(extra, Path(folder)))
            print(lines[-1])
    machine_line = f"{described['usable_cores']} cores of {described['cpu']}, Python {described['python']}"
    lines += ["", f"Times are medians of {IMPORTS} processes each, Python's own start included, on {machine_line}."]
    lines += ["segonnx itself counts as a package; torch isn't among them."]
    put_block(ROOT / "docs" / "shipping.md", "sizes", "\n".join(lines), "benchmarks.install_size")


def _row(extra: str, folder: Path) -> str:
    """Install, count, weigh and time."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    install: list[str | Path] = ["install", "--quiet", "-c", ROOT / "constraints.txt", f"{ROOT}{extra}"]
    subprocess.run([sys.executable, "-m", "pip", "--python", python, *install], check=True)
    (packages,) = (folder / "lib").glob("python*/site-packages")
    names = {one.name.lower() for one in distributions(path=[str(packages)])}
    assert "segonnx" in names and "torch" not in names, names
    size = sum(path.lstat().st_size for path in packages.rglob("*") if path.is_file())
    times = [f"{1e3 * _seconds(python, command, folder):.0f} ms" for command in PROGRAMS.values()]
    return f"| `segonnx{extra}` | {len(names)} | {size / 1e6:.0f} MB | {' | '.join(times)} |"


def _seconds(python: Path, command: Sequence[str], folder: Path) -> float:
    """The median time of a process, after one that nobody times."""
    times = []
    for _ in range(1 + IMPORTS):
        began = time.perf_counter()
        subprocess.run([python, "-I", *command], check=True, cwd=folder, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - began)
    return median(times[1:])


if __name__ == "__main__":
    main()
