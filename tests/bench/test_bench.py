from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segonnx import inputs, machine, runtimes
from segonnx.bench import plan, run, stats, subjects
from segonnx.bench.plan import Model, Settings
from segonnx.bench.result import OK, Row
from segonnx.catalog import System
from segonnx.errors import InputError, VerifyError
from segonnx.exporters import pipeline
from segonnx.runtimes.base import Options, Runtime, Subject
from tests.conftest import SMALL
from tests.conftest import run as segonnx


@pytest.fixture(scope="module")
def result(exports: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the command line writes for the small reference system in all runtimes."""
    path = tmp_path_factory.mktemp("bench") / "result.json"
    done = segonnx("bench", SMALL, "--artifacts", exports, "--threads", 1, "--json", path)
    assert done.returncode == 0, done.stderr
    content = json.loads(path.read_text())
    content["printed"] = done.stdout
    return content


def test_every_runtime_has_a_row_on_the_same_input(result: dict[str, Any]) -> None:
    rows = result["rows"]
    assert [row["backend"] for row in rows] == ["eager", "compile", "ort"]
    assert len({row["input_sha256"] for row in rows}) == 1
    assert rows[0]["input_sha256"] == inputs.sha256(inputs.make("noise", (1, 3, 512, 512), "RGB"))
    for row in rows:
        assert row["status"] == OK
        assert row["interleaved"]
        assert len(row["samples_per_round"]) == plan.MIN_ROUNDS
        assert sum(row["samples_per_round"]) == len(row["samples_s"])
        assert row["median_s"] == pytest.approx(np.median(row["samples_s"]))
        assert row["ci95_s"][0] <= row["median_s"] <= row["ci95_s"][1]
        assert row["images_per_s"] == pytest.approx(1 / row["median_s"])
        assert row["efficiency"] == pytest.approx(row["images_per_s"] / 2.542856)
        assert row["load_s"] > 0
        assert row["peak_rss_bytes"] > 10**7
        assert row["label_agreement"] == 1
        assert row["compared_with"] == "eager"
        assert row["max_abs_error"] < 1e-3
    assert rows[0]["speedup_over_eager"] == 1
    assert result["machine"]["threads"] == 1
    assert result["machine"]["versions"]["onnxruntime"]


def test_the_table_has_the_sources_columns_and_figures(result: dict[str, Any]) -> None:
    printed = result["printed"]
    for column in ("params", "time", "img/s", "efficiency", "vs eager", "img/s*", "efficiency*"):
        assert column in printed
    assert "measured on another machine" in printed
    assert "float32" in printed
    assert [line.split()[:3] for line in printed.splitlines() if line.startswith(SMALL) and "M " in line] == [
        [SMALL, "2.54M", backend] for backend in ("eager", "compile", "ort")
    ]


def test_an_artifact_is_held_against_its_recorded_logits(exports: Path) -> None:
    model = subjects.from_artifact(exports / SMALL, lambda _: None)
    done = run.bench([model], Settings(("ort",), 1, rounds=1), None, lambda _: None)
    assert done.rows[0].compared_with == "recorded"
    assert done.rows[0].label_agreement == 1
    assert done.rows[0].warnings == ["only 1 round"]


def test_weights_that_were_made_on_another_machine_are_warned_of(exports: Path) -> None:
    model = replace(subjects.from_artifact(exports / SMALL, lambda _: None), weights_sha256="0" * 64)
    done = run.bench([model], Settings(("eager", "ort"), 1, rounds=1), None, lambda _: None)
    assert [row.status for row in done.rows] == [OK, OK]
    assert ["differ in rounding" in " ".join(row.warnings) for row in done.rows] == [True, False]


def test_weights_from_a_file_cannot_be_made_again(exports: Path) -> None:
    model = replace(subjects.from_artifact(exports / SMALL, lambda _: None), seed=None)
    done = run.bench([model], Settings(("eager", "ort"), 1, rounds=1), None, lambda _: None)
    assert "weights came from a file" in done.rows[0].status
    assert done.rows[1].status == OK
    assert done.rows[1].compared_with == "recorded"


def test_a_given_input_is_used(exports: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", inputs.make("phantom", (1, 3, 512, 512), "RGB"))
    arguments = ["--artifact", exports / SMALL, "--backend", "ort", "--rounds", 1, "--input", tmp_path / "x.npy"]
    done = segonnx("bench", *arguments, "--json", tmp_path / "r.json")
    assert done.returncode == 0, done.stderr
    row = json.loads((tmp_path / "r.json").read_text())["rows"][0]
    assert row["input_sha256"] == inputs.sha256(np.load(tmp_path / "x.npy"))
    assert row["max_abs_error"] is None  # nothing to hold it against


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((1, 3, 32, 32), np.float32), "has the shape"),
        (np.zeros((1, 3, 512, 512), np.float64), "float32"),
        (np.array([{}]), "isn't a .npy file of numbers"),
        (None, "isn't a .npy file"),
    ],
)
def test_a_wrong_input_is_refused(content: Any, message: str, exports: Path, tmp_path: Path) -> None:
    if content is not None:
        np.save(tmp_path / "x.npy", content)
    model = subjects.from_artifact(exports / SMALL, lambda _: None)
    with pytest.raises(InputError, match=message):
        subjects.read_input(tmp_path / "x.npy", [model])


def test_a_damaged_artifact_is_not_timed(artifact: Path) -> None:
    with (artifact / "model.onnx").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    with pytest.raises(VerifyError):
        subjects.from_artifact(artifact, lambda _: None)


def test_a_system_without_artifact_is_exported_first(tiny: System, tmp_path: Path) -> None:
    made: list[pipeline.Exported] = []
    settings = Settings(("ort",), 2)
    model = subjects.from_system(tiny, tmp_path, settings, made.append, lambda _: None)
    assert [one.folder for one in made] == [tmp_path / tiny.name]
    assert model.artifact == tmp_path / tiny.name
    assert subjects.from_system(tiny, tmp_path, settings, made.append, lambda _: None).artifact == model.artifact
    assert len(made) == 1


class Broken(Runtime):
    """A runtime that fails in the way that its subject's weights name."""

    name = "broken"
    needs = "artifact"

    @classmethod
    def missing(cls) -> str | None:
        return None

    def load(self, subject: Subject, options: Options, example: inputs.Array) -> None:
        self.runs = 0
        assert subject.model is not None
        self.way = subject.model.parent.name
        if self.way == "load":
            raise ValueError("this model is too strange")

    def run(self, x: inputs.Array) -> inputs.Array:
        self.runs += 1
        if self.runs > 3:
            if self.way == "crash":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("gone astray")
        time.sleep(0.6)
        return np.zeros((1, 5, 4), np.float32)

    def close(self) -> None:
        pass

    def describe(self) -> dict[str, str]:
        return {"dtype": "float32"}


class Steady(Broken):
    """One that works."""

    name = "steady"

    def load(self, subject: Subject, options: Options, example: inputs.Array) -> None:
        pass

    def run(self, x: inputs.Array) -> inputs.Array:
        return np.zeros((1, 5, 4), np.float32)


class Absent(Steady):
    """One that isn't installed."""

    name = "absent"

    @classmethod
    def missing(cls) -> str | None:
        return "absent isn't installed: pip install absent"


@pytest.mark.parametrize(
    ("way", "status"),
    [
        ("load", "this model is too strange"),
        ("raise", "gone astray"),
        ("crash", "killed by SIGKILL"),
    ],
)
def test_a_runtime_that_fails_has_a_row_and_the_others_go_on(
    way: str, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {kind.name: kind for kind in (Broken, Steady, Absent)}
    monkeypatch.setattr(run.runtimes, "get", known.__getitem__)
    monkeypatch.setattr(run, "serve", serve_fakes)
    monkeypatch.setattr(run, "_recorded", lambda *_: None)
    model = Model("fake", "2d", 10**6, 10**6, (1, 3, 4), "RGB", artifact=tmp_path / way)
    told: list[Row] = []
    result = run.bench([model], Settings(("broken", "steady", "absent"), 1), None, told.extend)
    broken, steady, absent = result.rows
    assert told == result.rows
    assert status in broken.status
    assert broken.as_dict()["median_s"] is None
    assert steady.status == OK
    assert len(steady.rounds) == plan.MIN_ROUNDS
    assert absent.status == "absent isn't installed: pip install absent"


def serve_fakes(channel: Any, job: Any) -> None:
    """A worker that knows the fakes."""
    from segonnx.bench.worker import serve

    fakes = {kind.name: kind for kind in (Broken, Steady)}
    runtimes.get = fakes.__getitem__  # type: ignore[assignment]  # in this process alone
    serve(channel, job)


def test_logits_that_differ_are_no_result(tmp_path: Path) -> None:
    reference, other = np.random.default_rng(0).standard_normal((2, 1, 5, 4)).astype(np.float32)
    model = Model("fake", "2d", 10**6, 10**6, (1, 3, 4), "RGB")
    rows = [
        Row("fake", "2d", backend, 10**6, 10**6, (1, 3, 4), "", 1, settings={"dtype": "float32"})
        for backend in ("eager", "ort")
    ]
    np.save(tmp_path / "eager.npy", reference)
    np.save(tmp_path / "ort.npy", other)
    run._compare(model, rows, tmp_path, lambda _: None)
    assert rows[0].status == OK
    assert rows[1].status.startswith("its logits differ")


def test_autocast_says_what_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpu_flags", lambda: ["avx2"])
    assert plan.resolve_autocast("off") == (False, "autocast off: every runtime computes in float32")
    bf16, why = plan.resolve_autocast("auto")
    assert not bf16
    assert "doesn't multiply bfloat16" in why
    with pytest.raises(InputError, match="--autocast bf16"):
        plan.resolve_autocast("bf16")
    monkeypatch.setattr(machine, "cpu_flags", lambda: ["avx2", "avx512_bf16"])
    for mode in ("auto", "bf16"):
        bf16, why = plan.resolve_autocast(mode)  # type: ignore[arg-type]
        assert bf16
        assert "multiplies bfloat16" in why


def test_models_that_do_not_fit_together_run_one_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {kind.name: kind for kind in (Steady, Broken)}
    monkeypatch.setattr(run.runtimes, "get", known.__getitem__)
    monkeypatch.setattr(run, "serve", serve_fakes)
    monkeypatch.setattr(run, "_recorded", lambda *_: None)
    monkeypatch.setattr(machine, "available_memory", lambda: 10**9)
    model = Model("fake", "2d", 10**6, 10**6, (1, 3, 4), "RGB", artifact=tmp_path / "raise")
    result = run.bench([model], Settings(("steady", "broken"), 1, rounds=1), None, lambda _: None)
    assert result.rows[0].status == OK
    assert not result.rows[0].interleaved
    assert any("not interleaved" in warning for warning in result.rows[0].warnings)


def test_statistics() -> None:
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(100):
        samples = rng.lognormal(0, 0.2, 25)
        low, high = stats.ci95(samples.tolist())
        inside += low <= 1 <= high
    assert inside >= 88
    # A drift that both share leaves the ratio as it is.
    drift = np.linspace(1, 2, 9)
    assert stats.ratio([[2 * d] for d in drift], [[d] for d in drift]) == pytest.approx(2)
    assert stats.median([3, 1, 2]) == 2


def test_the_machine_is_described() -> None:
    described = machine.describe()
    assert described["cpu"]
    assert described["memory_bytes"] > 10**9
    assert described["usable_cores"] >= 1
    assert set(described["flags"]) <= set(machine._FLAGS)
    assert machine.available_memory() <= described["memory_bytes"]
