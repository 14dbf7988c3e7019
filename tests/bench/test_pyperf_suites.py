"""pyperf itself reads what is written for it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from segonnx.bench import pyperf_suites
from segonnx.errors import InputError
from tests.report import results

NAMES = ("stunet-s", "unet-resnet18")


@pytest.fixture(scope="module")
def suites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pyperf") / "new"
    result = results.make(NAMES, {"eager": 1.0, "ort": 0.5, "compile": 0.8})
    result.rows = [results.failed(row, "no") if row.backend == "compile" else row for row in result.rows]
    paths = pyperf_suites.write(result, folder)
    assert [path.name for path in paths] == ["eager.json", "ort.json"]  # no row of compile is ok
    return folder


def pyperf(*arguments: object) -> str:
    command = [sys.executable, "-m", "pyperf", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_compare_to(suites: Path) -> None:
    printed = pyperf("compare_to", suites / "eager.json", suites / "ort.json")
    for name in NAMES:
        assert f"{name}: Mean" in printed
    assert printed.count("faster") >= 2


def test_hist_stats_and_metadata(suites: Path) -> None:
    assert "#" in pyperf("hist", suites / "ort.json")
    printed = pyperf("stats", suites / "ort.json")
    assert "Number of run with values: 9" in printed
    metadata = pyperf("metadata", suites / "ort.json")
    assert "cpu_model_name: Example CPU" in metadata
    assert "segonnx_backend: ort" in metadata
    assert "onnxruntime_version: 1.32.0" in metadata


def test_check_judges_the_samples(suites: Path, tmp_path: Path) -> None:
    assert "stable" in pyperf("check", suites / "ort.json")
    wild = results.make(("stunet-s",), {"ort": 1.0}, rounds=5)
    wild.rows[0].rounds = [[1.0], [9.0], [2.0], [8.0], [1.0]]
    pyperf_suites.write(wild, tmp_path)
    assert "may be unstable" in pyperf("check", tmp_path / "ort.json")


def test_samples_and_warm_ups_are_ours(suites: Path) -> None:
    import pyperf as library

    benchmark = library.BenchmarkSuite.load(str(suites / "ort.json")).get_benchmark("unet-resnet18")
    row = next(row for row in results.make(NAMES, {"eager": 1.0, "ort": 0.5, "compile": 0.8}).rows
               if (row.model, row.backend) == ("unet-resnet18", "ort"))  # fmt: skip
    assert [list(one.values) for one in benchmark.get_runs()] == row.rounds
    assert [seconds for _, seconds in benchmark.get_runs()[0].warmups] == row.warmup_s


def test_sweeps_have_names_of_their_own(tmp_path: Path) -> None:
    import pyperf as library

    result = results.make(("stunet-s",), {"ort": 1.0})
    result.rows += [replace(result.rows[0], threads=1), replace(result.rows[0], input_shape=(1, 1, 32, 64, 64))]
    pyperf_suites.write(result, tmp_path)
    assert set(library.BenchmarkSuite.load(str(tmp_path / "ort.json")).get_benchmark_names()) == {
        "stunet-s 1x1x64x128x128 2 threads",
        "stunet-s 1x1x64x128x128 1 threads",
        "stunet-s 1x1x32x64x64 2 threads",
    }


def test_without_pyperf_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyperf", None)
    with pytest.raises(InputError, match=r"pip install 'segonnx\[pyperf\]'"):
        pyperf_suites.require(tmp_path)
