from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

import segonnx as segonnx_package
from segonnx.bench import fitting, plan, roofline, run, session, stats, targets
from segonnx.bench import result as result_file
from segonnx.bench.plan import Settings
from segonnx.bench.result import OK, Result
from segonnx.bench.rounds import Rule
from segonnx.bench.session import Session
from segonnx.commands import bench_targets
from segonnx.core import hardware, subprocesses, synthetic_inputs
from segonnx.core.subprocesses import Bounds
from segonnx.errors import InputError, VerifyError
from segonnx.exporters import pipeline
from segonnx.runtimes.base import Operator
from segonnx.sources import catalog
from segonnx.sources.catalog import ModelSpec
from tests.bench import fakes
from tests.conftest import ROOT, SMALL, message, steps_in_process
from tests.conftest import run as segonnx

pytestmark = pytest.mark.usefixtures("copied_workers")


BLOCK_SECONDS = 0.05


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and profiles are a tenth as long."""
    monkeypatch.setattr(session, "BLOCK_SECONDS", BLOCK_SECONDS)
    monkeypatch.setattr(session, "PROFILE_SECONDS", 0.3)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("eager", "ort", "openvino"), id="quick"),
        # torch.compile takes a minute; tests/runtimes compiles a smaller network.
        pytest.param(("eager", "compile", "ort", "openvino"), id="all", marks=pytest.mark.slow),
    ],
)
def result(request: pytest.FixtureRequest, exports: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the command line writes for the small reference system in these runtimes, in a process of its own."""
    path = tmp_path_factory.mktemp("bench") / "result.json"
    backends = (
        [word for name in request.param for word in ("--backend", name)] if "compile" not in request.param else []
    )
    rounds = ["--threads", 1, "--processes", 1, "--rounds", 8, "--no-roofline", *backends]
    words = ["bench", SMALL, "--artifacts", exports, *rounds, "--json", path]
    code = (
        "import json, sys\nfrom segonnx.bench import session\nfrom segonnx.cli import main\n"
        f"if __name__ == '__main__':\n session.BLOCK_SECONDS = {BLOCK_SECONDS}\n"
        f" try: main({list(map(str, words))!r})\n"
        " finally: print(json.dumps(sorted({'torch', 'openvino', 'onnxruntime'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", cwd=ROOT, check=True)
    content = json.loads(path.read_text())
    *printed, imported = done.stdout.splitlines()
    content["printed"] = "\n".join(printed)
    content["imported"] = json.loads(imported)
    content["backends"] = list(request.param)
    return content


def test_every_runtime_has_a_row_on_the_same_input(result: dict[str, Any]) -> None:
    rows = result["rows"]
    assert [row["backend"] for row in rows] == result["backends"]
    assert len({row["input_sha256"] for row in rows}) == 1
    assert rows[0]["input_sha256"] == synthetic_inputs.sha256(synthetic_inputs.make("noise", (1, 3, 512, 512), "RGB"))
    for row in rows:
        assert row["status"] == OK
        assert row["interleaved"]
        assert len(row["samples_per_round"]) == len(row["started_s"]) == stats.MIN_ROUNDS
        assert row["stopped"] == "rounds"
        assert row["threads_seen"]["busy"] == 1
        assert row["cpus"] == hardware.choose_cpus(1)
        assert row["gflops"] == pytest.approx(2 * row["macs"] / row["median_s"] / 1e9)
        assert row["ns_per_voxel"] == pytest.approx(1e9 * row["median_s"] / 512**2)
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
    for row in rows[1:]:
        assert row["speedup_ci95"][0] <= row["speedup_over_eager"] <= row["speedup_ci95"][1]
        assert row["verdict"] in {"faster", "slower", "no difference"}
    assert len(result["ratios"]) == len(rows) * (len(rows) - 1) / 2
    assert result["settings"]["rounds"] == 8
    assert result["machine"]["versions"]["onnxruntime"]


def test_the_benchs_own_process_stays_small(result: dict[str, Any]) -> None:
    assert result["imported"] == []


def test_the_table_has_the_sources_columns_and_figures(result: dict[str, Any]) -> None:
    printed = result["printed"]
    for column in ("params", "time", "img/s", "efficiency", "vs eager", "img/s*", "efficiency*"):
        assert column in printed
    assert "measured on another machine" in printed
    assert "float32" in printed
    assert [line.split()[:3] for line in printed.splitlines() if line.startswith(SMALL) and "M " in line] == [
        [SMALL, "2.54M", backend] for backend in result["backends"]
    ]


@pytest.mark.slow  # an export and a bench
def test_rounded_weights_may_differ_from_eagers_by_what_rounding_does(
    tmp_path: Path,
) -> None:
    with steps_in_process():
        how = pipeline.Settings(tmp_path, shape=(64, 64), weights_dtype="bfloat16")
        made = pipeline.export(catalog.find(SMALL), how)
    settings = Settings(("eager", "ort"), (1,), Rule(rounds=1))
    target = bench_targets.from_artifact(made.folder, lambda _: None)
    _, ort = run.bench([target], settings, None, lambda _: None).rows
    assert ort.status == OK
    assert ort.compared_with == "eager"
    assert ort.max_abs_error is not None
    assert ort.max_abs_error > 1e-3  # float32's own error is a hundredth of that
    _, ort = run.bench([replace(target, effect=None)], settings, None, lambda _: None).rows
    assert ort.status.startswith("its logits differ")
    alone = run.bench([target], replace(settings, backends=("ort",)), None, lambda _: None).rows[0]
    assert (alone.status, alone.compared_with) == (OK, "recorded")


def test_an_artifact_is_held_against_its_recorded_logits(exports: Path) -> None:
    model = bench_targets.from_artifact(exports / SMALL, lambda _: None)
    done = run.bench([model], Settings(("ort",), (1,), Rule(rounds=1)), None, lambda _: None)
    assert done.rows[0].compared_with == "recorded"
    assert done.rows[0].label_agreement == 1
    assert "only 1 round" in done.rows[0].warnings


def test_weights_that_were_made_on_another_machine_are_warned_of(exports: Path) -> None:
    model = replace(bench_targets.from_artifact(exports / SMALL, lambda _: None), weights_sha256="0" * 64)
    done = run.bench([model], Settings(("eager", "ort"), (1,), Rule(rounds=1)), None, lambda _: None)
    assert [row.status for row in done.rows] == [OK, OK]
    assert ["differ in rounding" in " ".join(row.warnings) for row in done.rows] == [True, False]


def test_weights_from_a_file_cannot_be_made_again(exports: Path) -> None:
    model = targets.from_artifact(exports / SMALL, lambda _: None)
    done = run.bench([model], Settings(("eager", "ort"), (1,), Rule(rounds=1)), None, lambda _: None)
    assert "weights came from a file" in done.rows[0].status
    assert done.rows[1].status == OK
    assert done.rows[1].compared_with == "recorded"


def test_a_given_input_is_used(exports: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", synthetic_inputs.make("phantom", (1, 3, 512, 512), "RGB"))
    arguments = ["--artifact", exports / SMALL, "--backend", "ort", "--rounds", 1, "--no-ceilings", "--profile"]
    done = segonnx("bench", *arguments, "--input", tmp_path / "x.npy", "--json", tmp_path / "r.json")
    assert done.returncode == 0, done.stderr
    row = json.loads((tmp_path / "r.json").read_text())["rows"][0]
    assert row["input_sha256"] == synthetic_inputs.sha256(np.load(tmp_path / "x.npy"))
    assert row["max_abs_error"] is None  # nothing to hold it against
    assert any(one["kind"] == "convolution" and one["calls"] > 0 for one in row["profile"])


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
    model = bench_targets.from_artifact(exports / SMALL, lambda _: None)
    with pytest.raises(InputError, match=message):
        targets.read_input(tmp_path / "x.npy", [model])


def test_a_damaged_artifact_is_not_timed(artifact: Path) -> None:
    with (artifact / "model.onnx").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    with pytest.raises(VerifyError):
        bench_targets.from_artifact(artifact, lambda _: None)


def test_the_bounds_of_a_bench_hold_for_the_check_of_its_artifacts(
    exports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []

    def look(*_: object, bounds: object, **__: object) -> None:
        seen.append(bounds)
        raise VerifyError("enough")

    monkeypatch.setattr(targets, "verify", look)
    for named in (("--artifact", exports / SMALL), (SMALL, "--artifacts", exports)):
        done = segonnx("bench", *named, "--backend", "ort", "--timeout", 7, "--max-memory", "3GB")
        assert done.returncode == 1 and "enough" in done.stderr, done.stderr
    with pytest.raises(VerifyError):
        bench_targets.from_system(
            catalog.find(SMALL), exports, Settings(("ort-stock",), (1,), timeout_s=7, max_memory=3 * 10**9),
            lambda _: None, lambda _: None,
        )  # fmt: skip
    assert seen == [Bounds(7, 3 * 10**9)] * 3


@pytest.mark.usefixtures("steps_here")
def test_a_system_without_artifact_is_exported_first(little: ModelSpec, tmp_path: Path) -> None:
    made: list[pipeline.Exported] = []
    settings = Settings(("ort-stock", "ort"), (2,), Rule(rounds=1))
    model = bench_targets.from_system(little, tmp_path, settings, made.append, lambda _: None)
    assert [exported.folder for exported in made] == [tmp_path / little.name] == [model.artifact]
    assert bench_targets.from_system(little, tmp_path, settings, made.append, lambda _: None) == model
    assert len(made) == 1
    assert [row.status for row in run.bench([model], settings, None, lambda _: None).rows] == [OK, OK]
    former = replace(model, rewritten=True)  # an artifact of when they held one graph
    stock, ours = run.bench([former], settings, None, lambda _: None).rows
    assert stock.status == "the artifact's one graph is rewritten: export it anew for a plain one, too"
    assert ours.status == OK
    rows = run.bench([replace(model, artifact=None)], settings, None, lambda _: None).rows
    assert [row.status for row in rows] == [f"no artifact: segonnx export {little.name}"] * 2


@pytest.fixture(scope="module")
def of_a_module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("module") / "net"
    with steps_in_process():
        return segonnx_package.export(torch.nn.Conv2d(3, 2, 3, padding=1), torch.zeros(1, 3, 16, 16), folder).folder


@pytest.fixture
def small_roofline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The roofline peaks are those of a small matrix, and measured in this process."""
    measure = roofline.measure

    def measured(*arguments: Any) -> dict[str, Any]:
        with steps_in_process():
            return measure(*arguments)

    monkeypatch.setattr(roofline, "SIZE", 64)
    monkeypatch.setattr(roofline, "MIN_BYTES", 2**20)
    monkeypatch.setattr(roofline, "MAX_BYTES", 2**20)
    monkeypatch.setattr(subprocesses, "bind", lambda _: None)
    monkeypatch.setattr(roofline, "measure", measured)


@pytest.mark.usefixtures("small_roofline")
def test_a_module_s_artifact_is_timed_in_what_can_run_it(of_a_module: Path, tmp_path: Path) -> None:
    rounds = ("--threads", 1, "--rounds", 1, "--processes", 1)
    done = segonnx("bench", "--artifact", of_a_module, *rounds, "--json", tmp_path / "r.json")
    assert done.returncode == 0, done.stderr
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("segonnx: ")]
    assert "net: without eager and compile: PyTorch has no network to run, since the artifact's" in said
    result = json.loads((tmp_path / "r.json").read_bytes())
    assert [(row["backend"], row["status"]) for row in result["rows"]] == [("ort", "ok"), ("openvino", "ok")]
    assert result["settings"]["backends"] == ["ort", "openvino"]
    assert [one["threads"] for one in result["ceilings"]] == [1]


def test_each_target_has_the_runtimes_that_can_time_it(of_a_module: Path, exports: Path) -> None:
    settings = Settings(("eager", "ort"), (1,), Rule(rounds=1))
    silent = lambda _: None  # noqa: E731
    module, own = (bench_targets.from_artifact(folder, silent) for folder in (of_a_module, exports / SMALL))
    (module, said), (own, nothing) = (fitting.fitted(target, settings) for target in (module, own))
    assert said is not None and nothing is None
    assert (module.backends, own.backends) == (("ort",), None)
    assert fitting.used([module], settings).backends == ("ort",)
    assert fitting.used([module, own], settings).backends == ("eager", "ort")
    known = dict.fromkeys(settings.backends, fakes.Steady)
    rows = run.bench([replace(module, recorded=None)], settings, None, silent, known=known).rows
    assert [row.backend for row in rows] == ["ort"]


def test_a_runtime_that_was_named_and_can_t_is_refused_before_any_work(of_a_module: Path, tmp_path: Path) -> None:
    words = ("bench", SMALL, "--artifacts", tmp_path, "--artifact", of_a_module, "--backend", "ort")
    done = segonnx(*words, "--backend", "eager")
    assert done.returncode == 2 and "\n" not in message(done)
    assert f"eager can't time {of_a_module}: PyTorch has no network to run" in message(done)
    assert not list(tmp_path.iterdir())


def test_openvino_on_a_graph_for_onnx_runtime_is_warned_of(tmp_path: Path) -> None:
    known = {"openvino": fakes.Steady, "openvino-stock": fakes.Steady}
    settings = Settings(tuple(known), (1,), Rule(rounds=1))
    for derives in (True, False):
        model = replace(fakes.target(tmp_path), derives=derives)
        rows = run.bench([model], settings, None, lambda _: None, known=known).rows
        assert [any("laid out for" in warning for warning in row.warnings) for row in rows] == [derives, False]


@pytest.mark.parametrize(
    ("rewrites", "expected"),
    [
        (["UnrollDepthPass", "PointwiseHeadPass"], True),
        (["UnrollRowsPass", "PointwiseHeadPass"], True),
        (["WinogradPhasesPass", "PointwiseHeadPass"], True),
        (["PointwiseHeadPass"], False),
        ([], False),
    ],
)
def test_which_artifacts_derive_weights(rewrites: list[str], expected: bool) -> None:
    assert targets.derives(rewrites) is expected


def test_memory_is_planned_for_the_weights_that_a_runtime_derives(tmp_path: Path) -> None:
    model = fakes.target(tmp_path)
    derives = replace(model, derives=True)
    assert plan.memory_needed(derives, "ort") == plan.memory_needed(model, "ort") + 6 * model.parameters
    assert plan.memory_needed(derives, "ort-stock") == plan.memory_needed(model, "ort-stock")
    former = replace(derives, rewritten=True)
    assert plan.memory_needed(former, "ort-stock") == plan.memory_needed(model, "ort-stock") + 6 * model.parameters


def fake_bench(folder: Path, *backends: str, rounds: int | None = 3, timeout_s: float = 60) -> Result:
    settings = Settings(backends, (1,), Rule(rounds=rounds), timeout_s=timeout_s)
    return run.bench([fakes.target(folder)], settings, None, lambda _: None, known=fakes.KNOWN)


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("unloadable", "this model is too strange"),
        ("raising", "gone astray"),
        ("killed", "killed by SIGKILL (the machine may have run out of memory)"),
        ("hanging", "took more than 2 s"),
        ("absent", "absent isn't installed: pip install absent"),
    ],
)
def test_a_runtime_that_fails_has_a_row_and_the_others_go_on(name: str, status: str, tmp_path: Path) -> None:
    broken, steady = fake_bench(tmp_path, name, "steady", timeout_s=2 if name == "hanging" else 60).rows
    assert status in broken.status
    assert broken.as_dict()["median_s"] is None
    assert broken.rounds == [] and broken.started_s == []
    assert steady.status == OK
    assert len(steady.rounds) == len(steady.started_s) == 3
    assert steady.stopped == "rounds"


@pytest.mark.serial
def test_times_warm_up_threads_and_ratios_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "BLOCK_SECONDS", 0.2)
    done = fake_bench(tmp_path, "steady", "quick", "slow", rounds=None)
    steady, quick, slow = done.rows
    assert steady.stopped == "precision"
    assert len(steady.rounds) >= stats.MIN_ROUNDS
    assert 17 <= len(steady.rounds[0]) <= 20  # a fifth of a second of passes
    assert len(slow.rounds[0]) == 1
    assert len(quick.warmup_s) >= 1 + 20 + 21  # the first pass, a turn, and the round before the rounds
    for row in done.rows:
        assert row.warmed_up
        assert len(row.warmup_s) >= 2
        assert row.threads_seen is not None and row.threads_seen["busy"] == 1 <= row.threads_seen["total"]
        assert row.cpus == hardware.choose_cpus(1)
        assert row.load_s is not None and row.compile_s is not None and row.first_result_s is not None
        assert 0 <= row.compile_s <= row.load_s < row.first_result_s
        assert row.cpu_s is not None and row.cpu_s >= 0
        assert row.memory_bytes == 4 * 10**6 + 4 * 12 + 4 * 20
    assert [(one.baseline, one.backend) for one in done.ratios] == [
        ("steady", "quick"), ("steady", "slow"), ("quick", "slow"),
    ]  # fmt: skip
    assert [one.verdict for one in done.ratios] == ["faster", "slower", "slower"]
    assert done.overhead.keys() == {"wall_s", "timed_s", "parent_cpu_s", "parent_peak_rss_bytes"}
    assert done.overhead["timed_s"] == sum(sum(row.samples_s) for row in done.rows) < done.overhead["wall_s"]


@pytest.mark.serial
def test_every_runtime_runs_in_several_processes(tmp_path: Path) -> None:
    settings = Settings(("steady", "quick"), (1,), Rule(rounds=8), processes=3)
    done = run.bench([fakes.target(tmp_path)], settings, None, lambda _: None, known=fakes.KNOWN)
    for row in done.rows:
        assert row.rounds_per_process == [3, 3, 2]
        assert len(row.rounds) == len(row.started_s) == 8
        assert row.started_s == sorted(row.started_s)
        assert row.stopped == "rounds"
        assert not any("processes differ" in warning for warning in row.warnings)
    (ratio,) = done.ratios
    assert ratio.ci95 is not None and ratio.ci95[0] <= ratio.speedup <= ratio.ci95[1]
    assert ratio.verdict == "faster"
    alone = fake_bench(tmp_path, "steady", rounds=8).rows[0]
    assert "1 process: how much processes differ isn't in its intervals" in alone.warnings


@pytest.mark.serial
def test_processes_that_differ_end_the_rounds_and_widen_the_interval(tmp_path: Path) -> None:
    settings = Settings(("paced",), (1,), Rule(), processes=3)
    row = run.bench([fakes.target(tmp_path)], settings, None, lambda _: None, known=fakes.KNOWN).rows[0]
    assert row.stopped == "processes"
    assert row.ci95_s is not None and row.ci95_s[1] / row.ci95_s[0] > 1.1


def test_the_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    settings = Settings(("steady", "raising"), (1,), Rule(rounds=7), profile=True)
    done = run.bench([fakes.target(tmp_path)], settings, None, lambda _: None, known=fakes.KNOWN)
    done.write(tmp_path / "result.json")
    assert result_file.read(tmp_path / "result.json") == done
    assert done.rows[0].profile == [Operator("Sleep", "other", 1, fakes.Steady.seconds)]
    assert done.rows[1].profile is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["rows"][0].update(median_s="fast"), "rows/0/median_s"),
        (lambda content: content.pop("machine"), "'machine' is a required property"),
        (lambda content: content.update(surprise=1), "surprise"),
        (lambda content: content.update(schema_version=1), "older segonnx"),
    ],
)
def test_a_file_that_is_no_result_is_refused(
    change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path
) -> None:
    content = fake_bench(tmp_path, "steady", rounds=1).as_dict()
    change(content)
    path = tmp_path / "result.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        result_file.read(path)
    path.write_text("{")
    with pytest.raises(InputError, match="isn't JSON"):
        result_file.read(path)
    with pytest.raises(InputError, match="can't be read"):
        result_file.read(tmp_path / "none.json")


@pytest.mark.serial
def test_a_runtime_that_never_rests_takes_nothing_from_the_others(tmp_path: Path) -> None:
    """Its processor time stands still outside its blocks."""
    assert _rested(tmp_path)


@pytest.mark.serial
@pytest.mark.slow  # it shows that the test above can fail
def test_a_runtime_that_isnt_paused_takes_time_from_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocesses.Worker, "pause", lambda _: None)
    assert not _rested(tmp_path)


def _rested(folder: Path) -> bool:
    """Whether the spinning runtime's process took hardly any processor time while the other one had its blocks."""
    spent = []
    run_block = Session.run_block

    def monitored(own: Session, slot: Any) -> Any:
        spinning = psutil.Process(pids["spinning"]) if len(pids) == 2 else None
        before = sum(spinning.cpu_times()[:2]) if spinning else 0.0
        passes = run_block(own, slot)
        pids[slot.row.backend] = slot.worker.pid
        if spinning and slot.row.backend == "slow":
            spent.append(sum(spinning.cpu_times()[:2]) - before)
        return passes

    pids: dict[str, int] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "run_block", monitored)
        fake_bench(folder, "spinning", "slow", rounds=2)
    assert spent
    return max(spent) < 0.2 * fakes.Slow.seconds


@pytest.mark.serial
def test_workers_are_bound_and_loads_beside_them_are_warned_of(tmp_path: Path) -> None:
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(hardware.usable_cores())]
    try:
        loaded = fake_bench(tmp_path, "slow").rows[0]
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
    assert any("other programs took" in warning for warning in loaded.warnings)


def test_ctrl_c_keeps_the_rounds_and_leaves_no_process(exports: Path, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    command = [
        sys.executable, "-m", "segonnx", "bench", SMALL, "--artifacts", exports, "--backend", "ort", "--precision",
        "0.0001%", "--max-time", "1000", "--threads", "1", "--no-ceilings", "--json", path,
    ]  # fmt: skip
    with subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        # A shell starts its background jobs deaf to Ctrl-C, and so would be what these tests start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as bench:
        try:
            workers = _wait_for(lambda: [p for p in _children(bench.pid) if p.status() == psutil.STATUS_STOPPED])
            time.sleep(3)
            bench.send_signal(signal.SIGINT)
            out, err = bench.communicate(timeout=60)
        finally:
            bench.kill()
    assert bench.returncode == 130, err
    row = result_file.read(path).rows[0]
    assert row.stopped == "interrupted"
    assert len(row.rounds) >= 1
    assert "interrupted" in out
    assert not psutil.wait_procs(workers, timeout=10)[1]


def test_paused_workers_die_with_a_bench_that_is_killed(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from tests.bench import fakes; from segonnx.bench import run, plan, rounds;"
        "run.bench([fakes.target(Path('x'))], plan.Settings(('slow', 'steady'), (1,), rounds.Rule(rounds=999)), None,"
        "lambda _: None, known=fakes.KNOWN)"
    )
    with subprocess.Popen([sys.executable, "-c", f"if __name__ == '__main__':\n exec({code!r})"], cwd=ROOT) as bench:
        workers = _wait_for(lambda: found if len(found := _children(bench.pid)) >= 3 else None)
        _wait_for(lambda: any(p.status() == psutil.STATUS_STOPPED for p in workers))
        bench.kill()
    assert not psutil.wait_procs(workers, timeout=10)[1]


def _children(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def _wait_for(look: Callable[[], Any]) -> Any:
    for _ in range(600):
        if found := look():
            return found
        time.sleep(0.1)
    raise AssertionError("it did not happen within a minute")


def test_logits_that_differ_are_no_result(exports: Path) -> None:
    model = bench_targets.from_artifact(exports / SMALL, lambda _: None)
    settings = Settings(("wrong", "steady"), (1,), Rule(rounds=1))
    wrong, other = run.bench([model], settings, None, lambda _: None, known=fakes.KNOWN).rows
    assert wrong.status.startswith("its logits differ: max")
    assert other.status == "its logits have the shape (1, 5, 4), expected (1, 1000)"


def test_autocast_says_what_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "cpu_flags", lambda: ["avx2"])
    assert plan.resolve_autocast("off") == (False, "autocast off: every runtime computes in float32")
    bf16, why = plan.resolve_autocast("auto")
    assert not bf16
    assert "doesn't multiply bfloat16" in why
    with pytest.raises(InputError, match="--autocast bf16"):
        plan.resolve_autocast("bf16")
    monkeypatch.setattr(hardware, "cpu_flags", lambda: ["avx2", "avx512_bf16"])
    for mode in ("auto", "bf16"):
        bf16, why = plan.resolve_autocast(mode)
        assert bf16
        assert "multiplies bfloat16" in why


def test_runtimes_that_do_not_fit_together_run_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert plan.resident_groups({"a": 4, "b": 5, "c": 3, "d": 20}, 10) == [["a", "b"], ["c"], ["d"]]
    one = plan.memory_needed(fakes.target(tmp_path), "steady")
    monkeypatch.setattr(hardware, "available_memory", lambda: 2 * one)
    done = fake_bench(tmp_path, "steady", "equal", "quick")
    assert [row.status for row in done.rows] == [OK] * 3
    assert [ratio.interleaved for ratio in done.ratios] == [True, False, False]
    assert [row.interleaved for row in done.rows] == [False, False, False]
    assert all(any("not interleaved" in warning for warning in row.warnings) for row in done.rows)
    first, second, third = (row.started_s for row in done.rows)
    assert max(first[-1], second[-1]) < third[0]


def test_the_machine_is_described() -> None:
    described = hardware.describe()
    assert described["cpu"]
    assert described["memory_bytes"] > 10**9
    assert described["usable_cores"] >= 1
    assert set(described["flags"]) <= set(hardware._FLAGS)
    assert hardware.available_memory() <= described["memory_bytes"]
