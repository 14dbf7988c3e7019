"""The plan of a bench: written here, run elsewhere, and read as a stranger's."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segonnx.artifacts import manifest
from segonnx.bench import machines, plan_file, session
from segonnx.bench.plan import Settings
from segonnx.bench.plan_file import Network, Plan
from segonnx.bench.rounds import Rule
from segonnx.core import hardware, synthetic_inputs
from segonnx.errors import InputError
from segonnx.runtimes.base import Options
from tests import fuzz
from tests.conftest import SMALL, message, run

ROUNDS = ("--backend", "ort", "--rounds", 2, "--processes", 1, "--no-roofline")
SHAPE = (1, 3, 512, 512)


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch: pytest.MonkeyPatch, copied_workers: None) -> None:
    monkeypatch.setattr(session, "BLOCK_SECONDS", 0.05)


@pytest.fixture
def plan(exports: Path, tmp_path: Path) -> Path:
    """The plan of a short bench of the small system, as the command writes it."""
    path = tmp_path / "plan.json"
    done = run("bench", SMALL, "--artifacts", exports, *ROUNDS, "--threads", 1, "--plan-out", path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"1 network in ort with 1 threads -> {path}\n"
    return path


def content_of(plan: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(plan.read_text())
    return content


def test_a_plan_holds_all_that_decides_what_is_run(plan: Path, exports: Path) -> None:
    content = content_of(plan)
    digest = manifest.read(exports / SMALL)["digest"]
    assert content["networks"] == [
        {"name": SMALL, "artifact": digest, "input_shape": [1, 3, 512, 512], "backends": ["ort"]}
    ]
    assert content["settings"] == {
        "backends": ["ort"], "threads": [1], "precision": 0.03, "max_time_s": 300, "rounds": 2, "seed": 0,
        "processes": 1, "timeout_s": 1800.0, "max_memory": None, "autocast": "off", "input_seed": 0,
        "input_sha256": None, "profile": False, "roofline": False, "diagnose": False,
        "options": {"outputs": "bound", "spinning": True, "arena": True, "graph_optimization": "all"},
    }  # fmt: skip
    assert str(exports) not in plan.read_text()  # nor any other place of this machine


@pytest.mark.parametrize(
    "settings",
    [
        Settings(("ort",), (1,)),
        Settings(
            ("openvino", "eager"),
            (4, 1),
            Rule(0.01, 7.5, None, 3),
            processes=5,
            timeout_s=9.5,
            max_memory=10**9,
            autocast="auto",
            seed=8,
            options=Options(1, outputs="fresh", spinning=False, arena=False, graph_optimization="basic"),
            profile=True,
            roofline=True,
            diagnose=True,
        ),
    ],
)
def test_a_plan_is_read_as_it_was_written(settings: Settings, tmp_path: Path) -> None:
    networks = (Network("a", "0" * 64, SHAPE, settings.backends), Network("a", None, (1, 3, 64, 64), settings.backends))
    made = Plan(networks, settings, input_sha256="1" * 64)
    made.write(tmp_path / "plan.json")
    assert plan_file.read(tmp_path / "plan.json") == made
    assert made.here() == settings
    everywhere = replace(made, every_core=True, settings=replace(settings, threads=(1,)))
    everywhere.write(tmp_path / "plan.json")
    assert content_of(tmp_path / "plan.json")["settings"]["threads"] is None
    assert plan_file.read(tmp_path / "plan.json") == everywhere
    assert everywhere.here().threads == (hardware.usable_cores(),)
    first, second = made.parts()
    assert (first.networks, second.networks) == (networks[:1], networks[1:])
    assert (first.settings.roofline, second.settings.roofline) == (settings.roofline, False)


def test_a_plan_runs_by_hand_and_the_results_of_machines_come_together(
    plan: Path, exports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run("bench", "--plan", plan, "--artifacts", exports, "--json", tmp_path / "here.json")
    assert done.returncode == 0, done.stderr
    (here,) = machines.read(tmp_path / "here.json").results
    (row,) = here.rows
    assert (row.model, row.backend, len(row.rounds), row.threads) == (SMALL, "ort", 2, 1)
    assert row.artifact == content_of(plan)["networks"][0]["artifact"]
    # Another machine has the artifact in another place, and another processor.
    elsewhere = tmp_path / "other machine" / "small"
    shutil.copytree(exports / SMALL, elsewhere)
    described = {**hardware.describe(), "cpu": "Another CPU", "flags": ["neon"]}
    monkeypatch.setattr(hardware, "describe", lambda: described)
    empty = tmp_path / "nothing"
    done = run(
        "bench", "--plan", plan, "--artifact", elsewhere, "--artifacts", empty, "--json", tmp_path / "there.json"
    )
    assert done.returncode == 0, done.stderr
    done = run(
        "report", tmp_path / "here.json", tmp_path / "there.json", "--json", tmp_path / "both.json", "--markdown"
    )
    assert done.returncode == 0, done.stderr
    both = machines.read(tmp_path / "both.json")
    assert [len(one.rows) for one in both.results] == [1, 1]
    assert both.results[0].rows == [row]
    assert both.differing() == []
    lines = [line for line in done.stdout.splitlines() if line.startswith(f"| {SMALL} |")]
    assert len(lines) == 2 and "of Another CPU |" in lines[1]


def test_another_artifact_is_one_line(plan: Path, artifact: Path, tmp_path: Path) -> None:
    content = manifest.read(artifact)
    (artifact / "README.md").write_text("another card")
    words = ("bench", "--plan", plan, "--artifacts", tmp_path / "none")
    damaged = run(*words, "--artifact", artifact)
    assert damaged.returncode == 1 and "README.md" in message(damaged) and message(damaged).count("\n") == 0
    content["files"]["README.md"] = {
        "bytes": len("another card"), "sha256": hashlib.sha256(b"another card").hexdigest(),
    }  # fmt: skip
    (artifact / "manifest.json").write_bytes(manifest.seal(content))
    other = run(*words, "--artifact", artifact)
    assert other.returncode == 2
    wanted = content_of(plan)["networks"][0]["artifact"]
    assert message(other) == (
        f"segonnx: {artifact} is another artifact than the plan's: its digest is "
        f"{manifest.read(artifact)['digest'][:16]}..., the plan's {wanted[:16]}...: "
        "bring that one here, and name it with --artifact"
    )
    missing = run(*words)
    assert missing.returncode == 2 and message(missing).count("\n") == 0
    assert f"doesn't hold the plan's {SMALL} of digest {wanted[:16]}" in message(missing)


def test_artifacts_are_found_in_folders_of_folders(plan: Path, exports: Path, tmp_path: Path) -> None:
    read = plan_file.read(plan)
    shutil.copytree(exports / SMALL, tmp_path / "a" / "1x3x64x64" / "other name")
    (tmp_path / "a" / "damaged").mkdir()
    (tmp_path / "a" / "damaged" / "manifest.json").write_text("{")
    found = plan_file.find(read.networks, (), tmp_path / "a")
    assert found == {read.networks[0].artifact: tmp_path / "a" / "1x3x64x64" / "other name"}


def test_what_the_plan_says_is_said_nowhere_else(plan: Path) -> None:
    for words in (["--threads", 2], ["--all"], [SMALL], ["--max-time", 300], ["--no-roofline"], ["--plan-out", plan]):
        done = run("bench", "--plan", plan, *words)
        assert done.returncode == 2
        named = "NAME" if words == [SMALL] else words[0]
        assert message(done) == f"segonnx: --plan says what is run: leave {named} out"


def test_the_input_is_the_plans(exports: Path, tmp_path: Path) -> None:
    x = synthetic_inputs.make("noise", SHAPE, "RGB", 7)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", x + 1)
    words = ("--artifacts", exports, "--json", tmp_path / "r.json")
    done = run("bench", SMALL, *ROUNDS, "--input", tmp_path / "x.npy", *words[:2], "--plan-out", tmp_path / "plan.json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1 network in ort with all cores -> ")
    left_out = run("bench", "--plan", tmp_path / "plan.json", *words)
    assert left_out.returncode == 2 and "--input FILE names it" in message(left_out)
    other = run("bench", "--plan", tmp_path / "plan.json", *words, "--input", tmp_path / "y.npy")
    assert other.returncode == 2 and "isn't the plan's input" in message(other)
    assert run("bench", "--plan", tmp_path / "plan.json", *words, "--input", tmp_path / "x.npy").returncode == 0
    (row,) = machines.read(tmp_path / "r.json").results[0].rows
    assert row.input_sha256 == synthetic_inputs.sha256(x)
    assert row.threads == hardware.usable_cores()
    content = content_of(tmp_path / "plan.json")
    content["settings"]["input_sha256"] = None
    (tmp_path / "plan.json").write_text(json.dumps(content))
    none = run("bench", "--plan", tmp_path / "plan.json", *words, "--input", tmp_path / "x.npy")
    assert none.returncode == 2 and "leave --input out" in message(none)


@pytest.mark.slow  # a bench; test_cli.py has one whose runtimes are missing, without a plan
def test_runtimes_that_are_missing_elsewhere_are_rows_that_say_so(
    plan: Path, exports: Path, tmp_path: Path, without_torch: dict[str, str]
) -> None:
    content = content_of(plan)
    for place in (content["settings"], content["networks"][0]):
        place["backends"] = ["eager", "ort"]
    plan.write_text(json.dumps(content))
    done = run("bench", "--plan", plan, "--artifacts", exports, "--json", tmp_path / "r.json", env=without_torch)
    assert done.returncode == 0, done.stderr
    eager, ort = machines.read(tmp_path / "r.json").results[0].rows
    assert eager.status == "PyTorch isn't installed: pip install 'segonnx[export]'"
    assert ort.status == "ok"


def test_rows_that_nobody_could_tell_apart_are_refused(exports: Path, artifact: Path) -> None:
    done = run("bench", "--artifact", exports / SMALL, "--artifact", artifact, *ROUNDS)
    assert done.returncode == 2
    assert f"{exports / SMALL} and {artifact} would have rows of one name, {SMALL} on 1x3x512x512" in message(done)


def settings(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["settings"].update(values)


def network(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["networks"][0].update(values)


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "no networks": lambda content: content.update(networks=[]),
    "a network twice": lambda content: content["networks"].append(content["networks"][0]),
    "networks without end": lambda content: content.update(networks=content["networks"] * 2001),
    "another key": lambda content: content.update(command="rm -r /"),
    "another version": lambda content: content.update(schema_version=2),
    "a path as a digest": network(artifact="../../etc/passwd"),
    "a network of another name": network(name="stunet-s"),
    "a name that moves the cursor": network(name="\x1b[2J" * 50, artifact="0" * 64),
    "no artifact of what isn't a reference system": network(name="smp:unet:resnet34", artifact=None),
    "no artifact of nothing": network(name="nothing", artifact=None),
    "another shape": network(input_shape=[1, 3, 64, 64]),
    "a shape of nothing": network(input_shape=[0, 3, 64, 64]),
    "a runtime that isn't known": lambda content: (
        settings(backends=["tensorrt"])(content), network(backends=["tensorrt"])(content)
    ),
    "a runtime that isn't the plan's": network(backends=["openvino"]),
    "a runtime twice": settings(backends=["ort", "ort"]),
    "no threads": settings(threads=[]),
    "threads without end": settings(threads=[10**9]),
    "threads that are a text": settings(threads="all"),
    "a precision of nothing": settings(precision=0),
    "rounds without end": settings(rounds=10**6),
    "processes without end": settings(processes=10**6),
    "a seed of 70 bits": settings(seed=2**70),
    "an option of nobody's": settings(options={"arena": "on"}),
    "time that is NaN": settings(max_time_s=float("nan")),
    "an input that isn't there": settings(input_sha256="0" * 64),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_a_strangers_plan_is_refused_in_one_line(what: str, plan: Path, exports: Path, tmp_path: Path) -> None:
    content = content_of(plan)
    CHANGES[what](content)
    plan.write_text(json.dumps(content))
    done = run("bench", "--plan", plan, "--artifacts", exports, "--json", tmp_path / "r.json")
    assert done.returncode == 2, done.stdout
    assert "\n" not in message(done) and len(message(done)) < 1100
    assert message(done).isprintable()
    assert not (tmp_path / "r.json").exists()


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 10**5, b" " * (plan_file.MAX_BYTES + 1)])
def test_what_is_no_plan_is_refused_in_one_line(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes(data)
    done = run("bench", "--plan", tmp_path / "plan.json")
    assert done.returncode == 2
    assert "\n" not in message(done) and str(tmp_path / "plan.json") in message(done)
    assert run("bench", "--plan", tmp_path).returncode == 2
    assert run("bench", "--plan", tmp_path / "none.json").returncode == 2


def test_every_plan_that_the_schema_allows_is_read_or_refused(plan: Path, exports: Path, tmp_path: Path) -> None:
    content = content_of(plan)
    read, refused = 0, []
    for seed in range(200):
        changed = fuzz.changed(content, plan_file.schema(), random.Random(seed))
        try:
            found = plan_file.parse(changed, plan)
            folders = plan_file.find(found.networks, (), exports)
        except InputError as error:
            refused.append(str(error))
            continue
        assert folders.keys() == {one.artifact for one in found.networks} - {None}
        found.write(tmp_path / "again.json")
        assert plan_file.read(tmp_path / "again.json") == found
        read += 1
    assert read > 20 and refused
    assert not [said for said in refused if "\n" in said]
