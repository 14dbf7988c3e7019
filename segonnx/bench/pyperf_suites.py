"""A result as pyperf's files, one suite per runtime, for ``pyperf compare_to``, ``hist``, ``stats`` and ``check``."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segonnx.bench.result import OK, Result, Row
from segonnx.core import files
from segonnx.errors import InputError

if TYPE_CHECKING:
    import pyperf


def require(out: Path) -> None:
    """See to it that ``write`` will work.

    Raises:
        InputError: pyperf isn't installed.
        ResourceError: the folder can't be written to.
    """
    try:
        import pyperf  # noqa: F401
    except ImportError:
        raise InputError("pyperf isn't installed: pip install 'segonnx[pyperf]'") from None
    files.require_writable(out / "suite.json")


def write(result: Result, out: Path) -> list[Path]:
    """Write ``out/BACKEND.json`` for every runtime with times; files of that name are replaced.

    A round is one of pyperf's runs; the first one holds the warm-up's passes, too.

    Raises:
        InputError: pyperf isn't installed.
        ResourceError: a file can't be written.
    """
    require(out)
    import pyperf

    paths = []
    for backend in dict.fromkeys(row.backend for row in result.rows):
        rows = [row for row in result.rows if row.backend == backend and row.status == OK and row.rounds]
        if not rows:
            continue
        suite = pyperf.BenchmarkSuite([_benchmark(row, result) for row in rows])
        with tempfile.TemporaryDirectory() as name:
            suite.dump(str(Path(name) / "suite.json"))
            content = (Path(name) / "suite.json").read_bytes()
        paths.append(out / f"{backend}.json")
        files.write(paths[-1], content)
    return paths


def _benchmark(row: Row, result: Result) -> pyperf.Benchmark:
    import pyperf

    metadata: dict[str, Any] = {
        "name": _name(row, result),
        "unit": "second",
        "loops": 1,
        "cpu_model_name": str(result.machine["cpu"]),
        "segonnx_backend": row.backend,
        "segonnx_threads": row.threads,
        "segonnx_input": "x".join(map(str, row.input_shape)),
        "segonnx_input_sha256": row.input_sha256,
        **{f"{package}_version": version for package, version in result.machine["versions"].items()},
    }
    return pyperf.Benchmark(
        [
            pyperf.Run(
                block,
                warmups=[(1, seconds) for seconds in row.warmup_s] if number == 0 else None,
                metadata=metadata,
                collect_metadata=False,
            )
            for number, block in enumerate(row.rounds)
        ]
    )


def _name(row: Row, result: Result) -> str:
    """The model, and what else tells its cases apart."""
    cases = {other.case for other in result.rows if other.model == row.model}
    name = row.model
    if len({shape for _, shape, _ in cases}) > 1:
        name += f" {'x'.join(map(str, row.input_shape))}"
    if len({threads for _, _, threads in cases}) > 1:
        name += f" {row.threads} threads"
    return name
