"""A made-up result of a bench, as real ones are: noise, drift, rows that failed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from segonnx.bench import stats, targets
from segonnx.bench.machines import Machines
from segonnx.bench.result import Precision, Ratio, Result, Row
from segonnx.runtimes.base import Operator
from segonnx.sources import catalog

FACTORS = {"eager": 1.0, "compile": 0.8, "ort": 0.5, "openvino": 0.5}
"""Time of a runtime, as part of eager's."""
MACHINE: dict[str, Any] = {
    "cpu": "Example CPU",
    "architecture": "x86_64",
    "usable_cores": 2,
    "flags": ["avx2"],
    "memory_bytes": 16 * 10**9,
    "governor": None,
    "versions": {"onnxruntime": "1.32.0", "torch": "2.15.0"},
}


def make(
    names: tuple[str, ...] = (), factors: dict[str, float] | None = None, seed: int = 0, rounds: int = 9
) -> Result:
    """A result of these systems, or of all.

    Args:
        names: of the systems.
        factors: time of each runtime, as part of eager's.
        seed: of the noise.
        rounds: of every runtime.
    """
    rng = np.random.default_rng(seed)
    factors = FACTORS if factors is None else factors
    result = Result(
        machine={**MACHINE},
        autocast="autocast off: every runtime computes in float32",
        settings={"threads": [2], "backends": list(factors), "autocast": "off"},
        roofline_peaks=[{"threads": 2, "sgemm_gflops": 300.0, "sgemm_library": "NumPy 2", "bandwidth_gb_s": 30.0}],
        overhead={"wall_s": 100.0, "timed_s": 60.0, "parent_cpu_s": 2.0, "parent_peak_rss_bytes": 10**8},
        created="2026-01-01T00:00:00+00:00",
    )
    for number, spec in enumerate(s for s in catalog.systems() if not names or s.name in names):
        assert spec.reference is not None
        rows = []
        for backend, factor in factors.items():
            base = factor * spec.reference.macs / 5e10
            passes = 1 if base > 0.5 else 8
            times = base * rng.lognormal(0, 0.02, (rounds, passes)) * np.linspace(1, 1.05, rounds)[:, None]
            rows.append(
                Row(
                    model=spec.name,
                    family=spec.family,
                    backend=backend,
                    parameters=spec.reference.parameters,
                    macs=spec.reference.inference_macs,
                    input_shape=spec.input_shape,
                    input_sha256="0" * 64,
                    images=4 if spec.family == "3d" else 1,
                    weights="seeded",
                    published=targets.published(spec, spec.input_shape, "seeded"),
                    threads=2,
                    settings={"dtype": "float32", "outputs": "fresh for every run", "version": "1"},
                    rounds=times.tolist(),
                    started_s=[100.0 * number + 10 * i for i in range(rounds)],
                    warmup_s=[2 * base, base],
                    warmed_up=True,
                    stopped="precision",
                    load_s=2.0,
                    compile_s=1.0,
                    first_result_s=2.5,
                    cpu_s=1.9 * base,
                    peak_rss_bytes=10**9,
                    memory_bytes=4 * spec.reference.parameters + 10**7,
                    threads_seen={"total": 5, "busy": 2},
                    cpus=[0, 1],
                    max_abs_error=1e-5,
                    label_agreement=1.0,
                    compared_with="eager",
                )
            )
        for i, a in enumerate(rows):
            for b in rows[i + 1 :]:
                value, interval = stats.speedup(a.rounds, b.rounds)
                verdict = stats.verdict(interval)
                result.ratios.append(
                    Ratio(a.model, a.input_shape, 2, a.backend, b.backend, value, interval, verdict, rounds, True)
                )
                if a.backend == "eager":
                    b.speedup_over_eager, b.speedup_ci95, b.verdict = value, interval, verdict
        result.rows += rows
    return result


def alone(result: Result) -> Machines:
    """A result of one machine, as those of several are shown."""
    return Machines([result])


def elsewhere(result: Result, **facts: Any) -> Result:
    """The result as another machine's, which differs in these facts and is half as fast."""
    rows = [replace(row, rounds=[[2 * s for s in one] for one in row.rounds]) for row in result.rows]
    return replace(result, machine={**result.machine, **facts}, rows=rows)


def failed(row: Row, status: str) -> Row:
    """The row as if its runtime had failed."""
    return Row(
        model=row.model,
        family=row.family,
        backend=row.backend,
        parameters=row.parameters,
        macs=row.macs,
        input_shape=row.input_shape,
        input_sha256=row.input_sha256,
        images=row.images,
        weights=row.weights,
        published=row.published,
        threads=row.threads,
        status=status,
    )


def profiled(row: Row) -> Row:
    """The row with a profile."""
    operators = [Operator("Conv", "convolution", 10, 0.6), Operator("Relu", "activation", 9, 0.2)]
    return replace(row, profile=operators)


def in_precisions(result: Result) -> Result:
    """The result as one of three artifacts of each network: in float32, float16 storage and int8."""
    made = []
    for precision in (
        Precision("float32", 40_000_000),
        Precision("float16 storage", 20_000_000, 0.99998),
        Precision("int8", 10_000_000, 0.998, 0.9912),
    ):
        for row in result.rows:
            name = row.model if precision.kind == "float32" else f"{row.model} {precision.kind}"
            held = precision if row.backend in ("ort", "openvino") else None
            if held is not None or precision.kind == "float32":
                made.append(replace(row, model=name, precision=held))
    return replace(result, rows=made, ratios=[])
