"""Results of several machines: what is of one kind comes together, and no figure is of two kinds."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from segonnx.bench import comparison, machines
from segonnx.bench.machines import Machines
from segonnx.bench.result import Result
from segonnx.errors import InputError
from segonnx.report import tables
from tests.conftest import message, run
from tests.report import results

OTHERS: dict[str, dict[str, Any]] = {
    "another processor": {"cpu": "Other CPU"},
    "no name": {"cpu": ""},
    "a name with a space more": {"cpu": "Example CPU "},
    "a name with what doesn't show": {"cpu": "Example\u200b CPU"},
    "a name in other letters": {"cpu": "example cpu"},
    "the same name on another architecture": {"architecture": "aarch64"},
    "the same name with more flags": {"flags": ["avx2", "avx512f"]},
    "the same name with fewer flags": {"flags": []},
    "the same name without flags": {"flags": None},
    "other cores": {"usable_cores": 4},
    "other memory": {"memory_bytes": 8 * 10**9},
    "a virtual one": {"virtual": True},
    "another version of a runtime": {"versions": {**results.MACHINE["versions"], "onnxruntime": "1.31.0"}},
    "a runtime less": {"versions": {"onnxruntime": "1.32.0"}},
    "another Python": {"python": "3.12.1"},
}


def described(**facts: Any) -> dict[str, Any]:
    """The made-up machine with other facts; those that are None are missing."""
    return {key: value for key, value in {**results.MACHINE, **facts}.items() if key == "governor" or value is not None}


def test_results_of_one_machine_are_shown_together() -> None:
    one, other = results.make(("stunet-s",)), results.make(("unet-resnet18",))
    other.warnings = ["hot"]
    both = machines.merge([one, other])
    assert both.rows == one.rows + other.rows
    assert both.ratios == one.ratios + other.ratios
    assert both.roofline_peaks == one.roofline_peaks
    assert both.overhead["wall_s"] == 200
    assert both.overhead["parent_peak_rss_bytes"] == 10**8
    assert both.warnings == ["hot"]
    assert machines.merge([one]) == one
    with pytest.raises(InputError, match="two of these results hold stunet-s in eager"):
        machines.merge([one, one])
    other.machine["cpu"] = "Other CPU"
    with pytest.raises(InputError, match="are of two machines: cpu was Example CPU, is Other CPU"):
        machines.merge([one, other])


@pytest.mark.parametrize("what", OTHERS)
def test_rows_of_another_kind_of_machine_are_never_mixed(what: str, tmp_path: Path) -> None:
    one = results.make(("stunet-s",))
    other = replace(results.elsewhere(one), machine=described(**OTHERS[what]))
    with pytest.raises(InputError, match="are of two machines"):
        machines.merge([one, other])
    for path, result in (("1.json", one), ("2.json", other)):
        result.write(tmp_path / path)
    done = run("report", tmp_path / "1.json", tmp_path / "2.json", "--json", tmp_path / "both.json", "--markdown")
    assert done.returncode == 0, done.stderr
    both = machines.read(tmp_path / "both.json")
    assert [result.rows for result in both.results] == [one.rows, other.rows]
    assert [row.median_s for row in both.results[1].rows] == [2 * (row.median_s or 0) for row in one.rows]
    assert [result.ratios for result in both.results] == [one.ratios, other.ratios]
    first, second = both.titles
    assert first != second and first.strip() == first and second.strip() == second
    printed = tables.by_processor(both, "3d").splitlines()
    assert len([line for line in printed if first in line and second not in line]) >= 4
    assert len([line for line in printed if line.startswith("stunet-s")]) == 8
    assert done.stdout.count("| stunet-s |") == 8


def test_other_threads_of_one_machine_are_other_rows() -> None:
    one = results.make(("stunet-s",))
    other = replace(one, rows=[replace(row, threads=1) for row in one.rows], ratios=[])
    both = machines.together([Machines([one]), Machines([other])])
    (merged,) = both.results
    assert merged.rows == one.rows + other.rows
    assert len({(row.case, row.backend) for row in merged.rows}) == 8
    assert [row.median_s for row in merged.rows] == 2 * [row.median_s for row in one.rows]


def test_the_same_rows_of_one_kind_are_refused_and_not_averaged() -> None:
    one = results.make(("stunet-s",))
    again = replace(results.make(("stunet-s",), seed=1), machine={**one.machine, "memory_bytes": 15.9e9})
    other = results.elsewhere(one, cpu="Other CPU")
    with pytest.raises(InputError, match="two of these results hold stunet-s in eager on 2 cores of Example CPU"):
        machines.together([Machines([one, other]), Machines([again])])


def test_titles_tell_machines_of_one_name_apart() -> None:
    flags = described(flags=["avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16"])
    older = described(versions={"onnxruntime": "1.31.0", "torch": "2.15.0"})
    every = [described(), flags, described(memory_bytes=64 * 10**9), older, described(), described(cpu=" ")]
    assert machines.titles(every) == [
        "2 cores of Example CPU, without amx_bf16 avx512_bf16 avx512_vnni and 1 more, 16 GB, onnxruntime 1.32.0",
        "2 cores of Example CPU, with amx_bf16 avx512_bf16 avx512_vnni and 1 more",
        "2 cores of Example CPU, without amx_bf16 avx512_bf16 avx512_vnni and 1 more, 64 GB",
        "2 cores of Example CPU, without amx_bf16 avx512_bf16 avx512_vnni and 1 more, 16 GB, onnxruntime 1.31.0",
        "2 cores of Example CPU, without amx_bf16 avx512_bf16 avx512_vnni and 1 more, 16 GB, onnxruntime 1.32.0 (2)",
        "2 cores of an unknown processor",
    ]
    assert machines.titles([described(usable_cores=1)]) == ["1 core of Example CPU"]
    pretending = [described(), described(cpu="Example CPU (2)"), described()]
    assert len(set(machines.titles(pretending))) == 3
    assert all("\x1b" not in title for title in machines.titles([described(cpu="\x1b[2J" * 99), described()]))


def test_what_is_not_the_same_work_is_told() -> None:
    one = results.make(("stunet-s", "unet-resnet18"))
    other = results.elsewhere(one, cpu="Other CPU")
    assert Machines([one, other]).differing() == []
    one.rows[1].artifact, other.rows[0].artifact = "1" * 64, "2" * 64
    other.rows[4].input_sha256 = "3" * 64
    other.rows[5].macs = 7
    here, there = "2 cores of Example CPU", "2 cores of Other CPU"
    told = [f"{model} has another {what} on {there} than on {here}: the work isn't the same" for model, what in (
        ("stunet-s", "artifact"), ("unet-resnet18", "input"), ("unet-resnet18", "size"))]  # fmt: skip
    assert Machines([one, other]).differing() == told
    assert told[0] in tables.machine_notes(Machines([one, other]))


def test_the_file_of_one_machine_is_that_of_a_result(tmp_path: Path) -> None:
    one = results.make(("stunet-s",))
    one.write(tmp_path / "one.json")
    Machines([one]).write(tmp_path / "again.json")
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "again.json").read_bytes()
    Machines([one], ["another one died"]).write(tmp_path / "told.json")
    assert machines.read(tmp_path / "told.json") == Machines([one], ["another one died"])


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "no machine": lambda content: content.update(machines=[]),
    "machines that are none": lambda content: content.update(machines=[[]]),
    "machines without end": lambda content: content.update(machines=[{}] * 101),
    "a warning that is a number": lambda content: content.update(warnings=[1]),
    "another version": lambda content: content.update(schema_version=2),
    "another key": lambda content: content.update(more=1),
    "a row twice in the second": lambda content: content["machines"][1]["rows"].append(
        content["machines"][1]["rows"][0]
    ),
    "a machine twice": lambda content: content["machines"].append(content["machines"][0]),
    "a machine in a machine": lambda content: content.update(machines=[copy.deepcopy(content)]),
    "a median that is a text": lambda content: content["machines"][1]["rows"][0].update(median_s="fast"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_strange_file_is_refused_in_one_line(what: str, tmp_path: Path) -> None:
    one = results.make(("encoder-lcnet-100",))
    content = json.loads(json.dumps(Machines([one, results.elsewhere(one, cpu="Other CPU")]).as_dict()))
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps(content))
    CHANGES[what](content)
    bad.write_text(json.dumps(content))
    assert run("report", good, "--html", tmp_path / "page.html").returncode == 0
    for command in (["report", bad, "--html", tmp_path / "bad.html"], ["compare", good, bad, "--force"]):
        done = run(*command)
        assert done.returncode == 2, done.stdout
        assert "\n" not in message(done) and len(message(done)) < 1100
    assert not (tmp_path / "bad.html").exists()


def test_the_bounds_hold_for_all_machines_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = results.make(("encoder-lcnet-100",))
    Machines([one, results.elsewhere(one, cpu="Other CPU")]).write(tmp_path / "r.json")
    count = sum(len(row.samples_s) for row in one.rows)
    monkeypatch.setattr("segonnx.bench.result.MAX_SAMPLES", count)
    with pytest.raises(InputError, match=f"holds {2 * count:,} samples, more than {count:,}"):
        machines.read(tmp_path / "r.json")


def slowed(result: Result, factor: float) -> Result:
    """The result of another run in which every pass takes so much longer."""
    return replace(
        result, rows=[replace(row, rounds=[[factor * s for s in one] for one in row.rounds]) for row in result.rows]
    )


def test_each_machine_is_held_against_itself() -> None:
    here = results.make(("stunet-s",))
    there = results.elsewhere(here, cpu="Other CPU")
    found = comparison.compare_machines(Machines([here, there]), Machines([slowed(there, 1.2), here]))
    assert {(title, change.verdict) for title, change in found.changes} == {
        ("2 cores of Example CPU", "no difference"),
        ("2 cores of Other CPU", "slower"),
    }
    assert len(found.regressions) == 4
    printed = tables.comparison(found)
    assert len([line for line in printed.splitlines() if "2 cores of Other CPU" in line and "regression" in line]) == 4
    assert "4 of 8 rows slower by more than 5 %, or failed: stunet-s eager on 2 cores of Other CPU, " in printed
    content = found.as_dict()
    assert content["regressions"] == 4 and content["machines"].keys() == {title for title, _ in found.changes}


def test_a_machine_of_one_result_alone_is_told() -> None:
    here = results.make(("stunet-s",))
    there, third = results.elsewhere(here, cpu="Other CPU"), results.elsewhere(here, cpu="Third CPU")
    found = comparison.compare_machines(Machines([here, there]), Machines([here, third]))
    assert (found.only_old, found.only_new) == (["2 cores of Other CPU"], ["2 cores of Third CPU"])
    assert "only in the old result: 2 cores of Other CPU" in tables.comparison(found)
    assert not found.regressions
    forced = comparison.compare_machines(Machines([here, there]), Machines([here, third]), force=True)
    assert len(forced.changes) == 8
    assert "cpu was Other CPU, is Third CPU" in tables.comparison(forced)
    with pytest.raises(
        InputError, match="no machine in common: the old one has 2 cores of Example CPU; 2 cores of Oth"
    ):
        comparison.compare_machines(Machines([here, there]), Machines([third]))


def test_versions_are_compared_where_no_third_machine_is_alike() -> None:
    versions = {**results.MACHINE["versions"], "onnxruntime": "1.33.0"}
    old, new = results.make(("stunet-s",)), results.elsewhere(results.make(("stunet-s",)), versions=versions)
    elsewhere = results.elsewhere(old, cpu="Other CPU")
    found = comparison.compare_machines(Machines([old, elsewhere]), Machines([new, elsewhere]))
    assert len(found.machines) == 2 and not found.only_old
    assert [own.versions for own in found.machines.values()] == [{}, {"onnxruntime": ("1.32.0", "1.33.0")}]
    newest = results.elsewhere(old, versions={**versions, "onnxruntime": "1.34.0"})
    unsure = comparison.compare_machines(Machines([old, elsewhere]), Machines([new, newest, elsewhere]))
    assert [*unsure.machines] == ["2 cores of Other CPU"]
    assert unsure.only_old == ["2 cores of Example CPU"]
    assert len(unsure.only_new) == 2


def test_the_commands_take_results_of_several_machines(tmp_path: Path) -> None:
    here = results.make(("stunet-s",))
    both = Machines([here, results.elsewhere(here, cpu="Other CPU")])
    both.write(tmp_path / "both.json")
    same = run("compare", tmp_path / "both.json", tmp_path / "both.json", "--markdown", "--json", tmp_path / "c.json")
    assert same.returncode == 0
    assert same.stdout.startswith("| model | input | processor | threads | runtime |")
    assert json.loads((tmp_path / "c.json").read_text())["regressions"] == 0
    third = results.elsewhere(here, cpu="Third CPU")
    third.write(tmp_path / "third.json")
    done = run("report", tmp_path / "both.json", tmp_path / "third.json", "--json", tmp_path / "all.json")
    assert done.returncode == 0, done.stderr
    assert len(machines.read(tmp_path / "all.json").results) == 3
    twice = run("report", tmp_path / "all.json", tmp_path / "third.json", "--json", tmp_path / "twice.json")
    assert twice.returncode == 2 and "2 cores of Third CPU" in twice.stderr
