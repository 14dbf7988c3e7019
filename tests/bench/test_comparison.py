from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from segonnx.bench import comparison
from segonnx.bench.result import Result, Row
from segonnx.errors import InputError
from tests.conftest import run
from tests.report import results

NAMES = ("stunet-s", "unet-resnet18")


def slowed(result: Result, factor: float, backend: str = "ort", seed: int = 1) -> Result:
    """The result of another run, in which one runtime takes ``factor`` times as long."""
    rng = np.random.default_rng(seed)

    def again(row: Row) -> Row:
        by = factor if row.backend == backend else 1.0
        return replace(row, rounds=[[s * by * rng.lognormal(0, 0.005) for s in one] for one in row.rounds])

    return replace(result, rows=[again(row) for row in result.rows], machine={**result.machine})


def test_a_slower_runtime_is_found_and_no_other() -> None:
    old = results.make(NAMES)
    found = comparison.compare(old, slowed(old, 1.2))
    assert {(one.model, one.backend) for one in found.regressions} == {(name, "ort") for name in NAMES}
    for one in found.changes:
        assert one.speedup is not None and one.ci95 is not None
        assert one.ci95[0] <= one.speedup <= one.ci95[1]
        if one.backend == "ort":
            assert one.verdict == "slower"
            assert one.speedup == pytest.approx(1 / 1.2, rel=0.03)
        else:
            assert one.verdict == "no difference"


def test_what_is_slower_by_less_than_allowed_is_no_regression() -> None:
    old = results.make(NAMES)
    assert not comparison.compare(old, slowed(old, 1.2), fail_above=0.3).regressions
    assert not comparison.compare(old, slowed(old, 0.5)).regressions
    assert {one.verdict for one in comparison.compare(old, slowed(old, 0.5)).changes} == {"faster", "no difference"}


def test_a_row_that_fails_is_a_regression_and_one_that_had_failed_is_not() -> None:
    old = results.make(NAMES)
    new = replace(old, rows=[results.failed(old.rows[0], "killed"), *old.rows[1:]])
    (failed,) = comparison.compare(old, new).regressions
    assert (failed.verdict, failed.old_s, failed.new_s) == ("failed", old.rows[0].median_s, None)
    assert not comparison.compare(new, old).regressions


def test_too_few_rounds_give_no_verdict() -> None:
    old = results.make(NAMES, rounds=3)
    found = comparison.compare(old, slowed(old, 2))
    assert {one.verdict for one in found.changes} == {None}
    assert not found.regressions


def test_rows_of_one_alone_and_versions_are_told() -> None:
    old = results.make(NAMES)
    new = results.make(("stunet-s", "stunet-b"))
    new.machine["versions"] = {**old.machine["versions"], "onnxruntime": "1.33.0", "scipy": "1"}
    found = comparison.compare(old, new)
    assert len(found.changes) == 4
    assert [name.split()[0] for name in found.only_old] == ["unet-resnet18"] * 4
    assert [name.split()[0] for name in found.only_new] == ["stunet-b"] * 4
    assert found.versions == {"onnxruntime": ("1.32.0", "1.33.0"), "scipy": (None, "1")}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda r: r.machine.update(cpu="Other CPU"), "cpu was Example CPU, is Other CPU"),
        (lambda r: r.machine.update(usable_cores=4), "usable_cores was 2, is 4"),
        (lambda r: r.machine.update(flags=["avx2", "avx512f"]), "flags was avx2, is avx2 avx512f"),
        (lambda r: r.machine.update(memory_bytes=8 * 10**9), "memory was 16.0 GB, is 8.0 GB"),
        (lambda r: setattr(r, "autocast", "autocast bf16"), "autocast was"),
        (lambda r: setattr(r.rows[0], "input_sha256", "1" * 64), "had another input"),
        (lambda r: r.rows[0].settings.update(outputs="bound"), "outputs was fresh for every run, is bound"),
    ],
)
def test_what_was_measured_otherwise_is_refused(change: Callable[[Result], object], reason: str) -> None:
    old, new = results.make(NAMES), results.make(NAMES)
    change(new)
    with pytest.raises(InputError, match=reason):
        comparison.compare(old, new)
    assert any(reason in ignored for ignored in comparison.compare(old, new, force=True).ignored)


def test_other_threads_have_no_row_in_common() -> None:
    old = results.make(NAMES)
    new = replace(old, rows=[replace(row, threads=1) for row in old.rows])
    with pytest.raises(InputError, match="no row in common"):
        comparison.compare(old, new, force=True)


def test_another_library_version_is_no_reason_to_refuse() -> None:
    old, new = results.make(NAMES), results.make(NAMES)
    new.rows[0].settings["version"] = "2"
    assert not comparison.compare(old, new).ignored


def test_the_command_and_its_exit_codes(tmp_path: Path) -> None:
    old = results.make(NAMES)
    old.write(tmp_path / "old.json")
    slowed(old, 1.2).write(tmp_path / "slow.json")
    other = results.make(NAMES)
    other.machine["cpu"] = "Other CPU"
    other.write(tmp_path / "other.json")

    same = run("compare", tmp_path / "old.json", tmp_path / "old.json")
    assert same.returncode == 0
    assert "0 of 8 rows slower" in same.stdout
    slower = run("compare", tmp_path / "old.json", tmp_path / "slow.json", "--json", tmp_path / "out" / "c.json")
    assert slower.returncode == 1
    assert "2 of 8 rows slower by more than 5 %, or failed: stunet-s ort, unet-resnet18 ort" in slower.stdout
    assert json.loads((tmp_path / "out" / "c.json").read_text())["regressions"] == 2
    assert run("compare", tmp_path / "old.json", tmp_path / "slow.json", "--fail-above", "0.5").returncode == 0
    refused = run("compare", tmp_path / "old.json", tmp_path / "other.json")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1 and "Other CPU" in refused.stderr
    assert run("compare", tmp_path / "old.json", tmp_path / "other.json", "--force").returncode == 0
    assert run("compare", tmp_path / "old.json", tmp_path / "none.json").returncode == 2
    assert run("compare", tmp_path / "old.json", tmp_path / "old.json", "--fail-above", "much").returncode == 2
    assert run("compare", tmp_path / "old.json", tmp_path / "old.json", "--markdown").stdout.startswith("| model |")
