"""Choosing rewrites by timing them: what is chosen, recorded, replayed and refused. No test asserts a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from segonnx import optimize
from segonnx.artifacts.verify import verify
from segonnx.core.synthetic_inputs import ParityInput
from segonnx.errors import InputError
from segonnx.exporters import pipeline
from segonnx.exporters.pipeline import Settings
from segonnx.optimize import choices, search, unroll_depth
from segonnx.optimize.choices import OPTIONAL, STOCK, Choices
from segonnx.sources.catalog import ModelSpec
from tests.conftest import run


@pytest.fixture(scope="module")
def tiny(tiny: ModelSpec) -> ModelSpec:
    """At half the depth: fewer slices, a smaller graph."""
    return replace(tiny, input_shape=(1, 1, 32, 64, 64))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("SEGONNX_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def tuned(tiny: ModelSpec, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tuned")
    return pipeline.export(tiny, Settings(out, tune=True, tune_time=20)).folder


@pytest.fixture(scope="module")
def stock(tiny: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pipeline.export(tiny, Settings(tmp_path_factory.mktemp("stock"), optimize="none")).folder / "model.onnx"


def test_what_was_chosen_is_in_the_manifest(tuned: Path) -> None:
    tuning = verify(tuned).manifest["tuning"]
    medians = tuning["medians_s"]
    assert tuning["kept"] == min(medians, key=medians.__getitem__)
    assert {"stock", "default"} <= set(medians) <= {"stock", "default", "tuned"}
    assert tuning["machine"]["threads"] >= 1
    assert tuning["search"]["races"] > 0
    rewritten = verify(tuned).manifest["rewrites"]
    assert not set(rewritten) & set(tuning["without"])
    assert "StableInstanceNormPass" in rewritten or "UnrollDepthPass" in rewritten


@pytest.mark.parametrize("lanes", [1, 2])
def test_every_form_of_every_layer_runs_alone(lanes: int, stock: Path) -> None:
    found = optimize.run(ir.load(stock), Choices(lanes=lanes))[1]
    one = search._Search(stock, ParityInput("noise", (1, 1, 32, 64, 64)).make("CT"), 2, float("inf"), lambda _: None)
    raced = set()
    for text, layer in found.items():
        for form in layer.forms if len(layer.forms) > 1 else ():
            unroll = unroll_depth.UnrollDepthPass({text: form}, lanes)
            unroll(search._alone(layer.layer))
            assert unroll.found[text].form == form  # in its own network, too, the layer goes by this text
        if len(layer.forms) > 1 and layer.layer.kernel not in raced:
            raced.add(layer.layer.kernel)
            seconds = one._race_forms(layer, lanes)
            assert set(seconds) == set(layer.forms) and all(value > 0 for value in seconds.values())
    assert any("(x2)" in text for text in found) and any("+" in text for text in found)


def test_a_tuning_is_replayed(tiny: ModelSpec, tuned: Path, tmp_path: Path) -> None:
    settings = Settings(tmp_path, tuning=tuned / "manifest.json")
    again = pipeline.export(tiny, settings)
    assert (again.folder / "model.onnx").read_bytes() == (tuned / "model.onnx").read_bytes()
    assert again.manifest["tuning"] == verify(tuned).manifest["tuning"]
    assert pipeline.export(tiny, settings).kept
    with pytest.raises(InputError, match="made with other arguments"):
        pipeline.export(tiny, Settings(tmp_path))


def test_the_same_graph_is_tuned_once(tiny: ModelSpec, tuned: Path, cache: Path, tmp_path: Path) -> None:
    (kept,) = cache.iterdir()
    steps: list[str] = []
    again = pipeline.export(tiny, Settings(tmp_path, tune=True, tune_time=20, seed=1), steps.append)
    assert "taking the tuning of an earlier export" in steps
    assert again.manifest["tuning"] == verify(tuned).manifest["tuning"]
    assert search._load(kept) == again.manifest["tuning"]
    kept.write_text(kept.read_text()[:100])
    assert search._load(kept) is None


def paces(seconds: Callable[[Choices], float]) -> Callable[[search._Search, Choices], Any]:
    """Makes sessions whose passes take what a table says of their choices."""

    def session(one: search._Search, chosen: Choices) -> Any:
        one._rewrite(chosen)
        taken = seconds(chosen)
        return type("Session", (), {"sample": lambda _: taken})()

    return session


def find(stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: Callable[[Choices], float]) -> Any:
    """A search over the tiny network in which alone, each layer is fastest by its last form."""
    for path in stock.parent.glob("model.onnx*"):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(search._Search, "_session", paces(seconds))
    monkeypatch.setattr(
        search._Search, "_race_forms", lambda _, one, __: {form: 1 / (1 + i) for i, form in enumerate(one.forms)}
    )
    x = ParityInput("noise", (1, 1, 32, 64, 64)).make("CT")
    return search._Search(tmp_path / "model.onnx", x, 1, float("inf"), lambda _: None)


def test_the_whole_graph_decides(stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(chosen: Choices) -> float:
        forms = list(chosen.forms.values())
        if chosen.without:
            return 3.0
        # In its place winograd4_matmul gains, each time; stacked, which wins alone too, loses.
        return 2.0 - 0.01 * forms.count("winograd4_matmul") + 0.1 * forms.count("stacked")

    one = find(stock, tmp_path, monkeypatch, seconds)
    found = one.choose(Choices())
    assert set(found.forms.values()) == {"winograd4_matmul"}
    tuning = one.settle(Choices(), found)
    assert tuning["kept"] == "tuned"
    assert choices.parse(tuning, "it") == found
    # Every layer that has the form.
    model = ir.load(stock)
    layers = optimize.run(model, Choices())[1]
    last = "winograd4_matmul"
    can = {text for text, layer in layers.items() if layer.forms[-1] == last and layer.form != last}
    assert can
    assert set(found.forms) == can


@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_the_fastest_number_of_lanes_is_chosen(
    lanes: int, stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = find(stock, tmp_path, monkeypatch, lambda chosen: 9.0 if chosen.without else 1 + abs(chosen.lanes - lanes))
    found = one.choose(Choices())
    assert found == Choices(lanes=lanes)
    assert choices.parse(one.settle(Choices(), found), "it") == found


@pytest.mark.parametrize("name", OPTIONAL)
def test_a_rewrite_that_loses_is_left_out(
    name: str, stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seconds(chosen: Choices) -> float:
        return (1.0 if name in chosen.without else 2.0) - 0.01 * len(chosen.forms)

    one = find(stock, tmp_path, monkeypatch, seconds)
    changed, _ = one._rewrite(Choices())
    found = one.choose(Choices())
    assert found.without == ((name,) if name in changed else ())
    # The forms are those of the layers that are there without it.
    assert set(found.forms) <= set(one._rewrite(found)[1])
    assert bool(found.forms) == (name != "UnrollDepthPass")


def test_the_stock_graph_stays_where_it_is_faster(stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = find(stock, tmp_path, monkeypatch, lambda chosen: 1.0 if chosen == STOCK else 2.0)
    tuning = one.settle(Choices(), one.choose(Choices()))
    assert tuning["kept"] == "stock"
    assert choices.parse(tuning, "it") == STOCK
    assert tuple(tuning["without"]) == OPTIONAL


def test_the_search_ends_with_its_time(stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = find(stock, tmp_path, monkeypatch, lambda _: 1.0)
    one._deadline = 0.0
    tuning = one.settle(Choices(), one.choose(Choices()))
    assert tuning["search"] == {"complete": False, "races": 0, "layers": []}


@pytest.mark.parametrize("growth", [1.0, 1.1, 1.2, 1.5])
def test_the_growth_of_weights_is_bounded(stock: Path, growth: float) -> None:
    def grown(found: dict[str, unroll_depth.Found]) -> float:
        now = before = 0.0
        for one in found.values():
            count = one.convolutions * one.layer.outputs * sum(channels for channels, _ in one.layer.sources)
            before += 27 * count if one.layer.kernel == (3, 3, 3) else count
            times = {"winograd": 4 / 3, "winograd4": 2, "winograd4_matmul": 2}.get(one.form, 1)
            now += times * (27 * count if one.layer.kernel == (3, 3, 3) else count)
        return now / before

    free = optimize.run(ir.load(stock), Choices())[1]
    found = optimize.run(ir.load(stock), Choices(max_weight_growth=growth))[1]
    assert grown(free) > 1.2  # the lower bounds bind
    assert grown(found) <= growth
    if growth == 1.5:
        assert found == free
    if growth == 1.1:
        large = max(free, key=lambda text: free[text].layer.size)
        assert found[large] == free[large]  # where the weights work most


def entry(**changes: Any) -> str:
    """A manifest with a tuning, some of whose keys are others; None leaves one out."""
    tuning = {
        "kept": "tuned", "without": [], "forms": {}, "medians_s": {"stock": 2.0, "tuned": 1.0},
        "search": {"complete": True, "races": 1, "layers": [], "seconds": 1.0},
        "machine": {"cpu": "some", "threads": 2, "onnxruntime": "1.32.0"},
    }  # fmt: skip
    return json.dumps({"tuning": {key: value for key, value in (tuning | changes).items() if value is not None}})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "isn't JSON"),
        ("[]", "holds no tuning"),
        ("[" * 100_000, "isn't JSON"),
        ('{"name": "x"}', "holds no tuning"),
        (entry(forms=[]), "at forms: [] is not of type 'object'"),
        (entry(kept=None), "'kept' is a required property"),
        (entry(medians_s={"stock": 0}), "at medians_s/stock"),
        (entry(without=["StableInstanceNormPass"]), "may leave out"),
        (entry(forms={"a": "os.system"}), "asks for the form 'os.system'"),
        (entry(forms={"a": ["taps"]}), "at forms/a"),
        (entry(lanes=0), "at lanes: 0 is less than the minimum of 1"),
        (entry(lanes=65), "at lanes: 65 is greater than the maximum of 64"),
        (entry(lanes="2"), "at lanes: '2' is not of type 'integer'"),
    ],
)
def test_a_file_without_a_tuning_is_refused(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(content)
    done = run("export", "stunet-s", "--tuning", path, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_tuning_from_before_there_were_lanes_has_one(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(entry())
    assert choices.parse(choices.read(path), "it") == Choices(lanes=1)


def test_the_tuning_of_another_network_is_refused(tiny: ModelSpec, tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(entry(forms={"1->4 k3 s1 p1 128x128x128": "taps"}))
    with pytest.raises(InputError, match="another network's: there is no convolution 1->4"):
        pipeline.export(tiny, Settings(tmp_path / "out", tuning=path))
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tune", "--tuning", "x.json"], "give one"),
        (["--tune", "--optimize", "none"], "leaves nothing to choose"),
        (["--tune", "--dynamic"], "times one shape"),
        (["--tune-time", "5"], "goes with --tune"),
        (["--max-weight-growth", "0.5"], "0.5"),
        (["--tuning", "missing.json"], "can't be read"),
    ],
)
def test_what_goes_together(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = run("export", "encoder-lcnet-100", *arguments, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "out").exists()
