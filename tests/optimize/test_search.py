"""Choosing rewrites by timing them: what is chosen, recorded, replayed and refused. No test asserts a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from segonnx import optimize
from segonnx.artifacts.verify import verify
from segonnx.core import synthetic_inputs
from segonnx.core.synthetic_inputs import Array
from segonnx.errors import InputError
from segonnx.exporters import pipeline
from segonnx.exporters.pipeline import Settings
from segonnx.optimize import BASELINE, OPTIONAL, Rewritten, single_layer, timed_session, tuning
from segonnx.optimize.algorithms import ALGORITHMS
from segonnx.optimize.choices import Choices
from segonnx.optimize.layers import RewrittenLayer
from segonnx.optimize.search import Search
from segonnx.optimize.unroll_depth import UnrollDepthPass
from segonnx.sources.catalog import ModelSpec
from tests.conftest import run
from tests.optimize.test_tuning import entry

pytestmark = pytest.mark.usefixtures("steps_here")


TUNE_S = 3.0
"""What a search of the whole graph may take."""


def noise(tiny: ModelSpec) -> Array:
    return synthetic_inputs.make("noise", tiny.input_shape, "CT")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where searches look for earlier ones. Their samples are short."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("SEGONNX_CACHE", str(folder))
        patch.setattr(timed_session, "SAMPLE_S", 0.005)
        yield folder


@pytest.fixture(scope="module")
def tuned(tiny: ModelSpec, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tuned")
    return pipeline.export(tiny, Settings(out, tune=True, tune_time=TUNE_S)).folder


@pytest.fixture(scope="module")
def stock(tiny: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pipeline.export(tiny, Settings(tmp_path_factory.mktemp("stock"), optimize="none")).folder / "model.onnx"


def test_what_was_chosen_is_in_the_manifest(tuned: Path) -> None:
    made = verify(tuned).manifest["tuning"]
    medians = made["medians_s"]
    assert made["kept"] == min(medians, key=medians.__getitem__)
    assert {"stock", "default"} <= set(medians) <= {"stock", "default", "tuned"}
    assert made["machine"]["threads"] >= 1
    assert made["search"]["races"] > 0 or not made["search"]["complete"]  # a slow machine has no time for any
    content = verify(tuned).manifest
    rewritten = content.get("cpu_graph", content)["rewrites"]  # the plain graph may be the fastest of so small a one
    assert not set(rewritten) & set(made["without"])
    assert "StableInstanceNormPass" in rewritten or "UnrollDepthPass" in rewritten or "cpu_graph" not in content


@pytest.mark.parametrize("chunks", [1, 2])
@pytest.mark.usefixtures("cache")
def test_every_algorithm_of_every_layer_runs_alone(chunks: int, stock: Path, tiny: ModelSpec) -> None:
    layers = optimize.run(ir.load(stock), Choices(depth_chunks=chunks)).layers
    search = Search(stock, noise(tiny), 2, float("inf"), lambda _: None)
    raced = set()
    for text, layer in layers.items():
        for name in layer.algorithms if len(layer.algorithms) > 1 else ():
            unroll = UnrollDepthPass({text: name}, chunks)
            unroll(single_layer.model_of(layer.layer))
            assert unroll.layers[text].algorithm == name  # in its own network, too, the layer goes by this text
        if len(layer.algorithms) > 1 and layer.layer.kernel not in raced:
            raced.add(layer.layer.kernel)
            seconds = search.race_algorithms(layer, chunks)
            assert set(seconds) == set(layer.algorithms) and all(value > 0 for value in seconds.values())
    assert any("(x2)" in text for text in layers) and any("+" in text for text in layers)


def test_a_tuning_is_replayed(tiny: ModelSpec, tuned: Path, tmp_path: Path) -> None:
    settings = Settings(tmp_path, tuning=tuned / "manifest.json")
    again = pipeline.export(tiny, settings)
    assert (again.folder / "model.cpu.onnx").read_bytes() == (tuned / "model.cpu.onnx").read_bytes()
    assert again.manifest["tuning"] == verify(tuned).manifest["tuning"]
    assert pipeline.export(tiny, settings).kept
    with pytest.raises(InputError, match="made with other arguments"):
        pipeline.export(tiny, Settings(tmp_path))


def test_the_same_graph_is_tuned_once(tiny: ModelSpec, tuned: Path, cache: Path, tmp_path: Path) -> None:
    (kept,) = cache.iterdir()
    steps: list[str] = []
    again = pipeline.export(tiny, Settings(tmp_path, tune=True, tune_time=TUNE_S, seed=1), steps.append)
    assert "taking the tuning of an earlier export" in steps
    assert again.manifest["tuning"] == verify(tuned).manifest["tuning"]
    assert tuning.load(kept) == again.manifest["tuning"]
    kept.write_text(kept.read_text()[:100])
    assert tuning.load(kept) is None


@pytest.fixture(scope="module")
def rewritten(stock: Path) -> Callable[[Choices], Rewritten]:
    """The rewrites of the tiny network by choices, each made once."""
    known: dict[str, Rewritten] = {}

    def rewrite(chosen: Choices) -> Rewritten:
        key = repr(replace(chosen, algorithms=dict(sorted(chosen.algorithms.items()))))
        if key not in known:
            known[key] = optimize.run(ir.load(stock), chosen)
        return known[key]

    return rewrite


Seconds = Callable[[Choices], float]
Searching = Callable[[Seconds], Search]


def paces(seconds: Seconds) -> Callable[[Search, Choices], Any]:
    """Makes sessions whose passes take what a table says of their choices."""

    def session(search: Search, chosen: Choices) -> Any:
        search.rewrite(chosen)
        taken = seconds(chosen)
        return type("Session", (), {"sample": lambda _: taken})()

    return session


@pytest.fixture
def searching(
    tiny: ModelSpec, rewritten: Callable[[Choices], Rewritten], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Searching:
    """Makes a search over the tiny network in which alone, each layer is fastest by its last algorithm."""

    def race(_: Search, layer: RewrittenLayer, __: int) -> dict[str, float]:
        return {name: 1 / (1 + i) for i, name in enumerate(layer.algorithms)}

    def make(seconds: Seconds) -> Search:
        monkeypatch.setattr(Search, "session", paces(seconds))
        return Search(tmp_path / "model.onnx", noise(tiny), 1, float("inf"), lambda _: None)

    monkeypatch.setattr(Search, "rewrite", lambda _, chosen: rewritten(chosen))
    monkeypatch.setattr(Search, "race_algorithms", race)
    return make


def test_the_whole_graph_decides(rewritten: Callable[[Choices], Rewritten], searching: Searching) -> None:
    def seconds(chosen: Choices) -> float:
        names = list(chosen.algorithms.values())
        if chosen.without:
            return 3.0
        # In its place winograd4 gains, each time; taps, which win alone too, lose.
        return 2.0 - 0.01 * names.count("winograd4") + 0.1 * names.count("taps")

    search = searching(seconds)
    found = search.choose(Choices())
    assert set(found.algorithms.values()) == {"winograd4"}
    made = search.settle(Choices(), found)
    assert made["kept"] == "tuned"
    assert tuning.parse(made, "it") == found
    # Every layer that has the algorithm.
    layers = rewritten(Choices()).layers
    last = "winograd4"
    can = {text for text, layer in layers.items() if layer.algorithms[-1] == last and layer.algorithm != last}
    assert can
    assert set(found.algorithms) == can


@pytest.mark.parametrize("chunks", [1, 2, 4])
def test_the_fastest_number_of_chunks_is_chosen(chunks: int, searching: Searching) -> None:
    def seconds(chosen: Choices) -> float:
        return 9.0 if chosen.without else 1 + abs(chosen.depth_chunks - chunks)

    search = searching(seconds)
    found = search.choose(Choices())
    assert found == Choices(depth_chunks=chunks)
    assert tuning.parse(search.settle(Choices(), found), "it") == found


@pytest.mark.parametrize("name", OPTIONAL)
def test_a_rewrite_that_loses_is_left_out(name: str, searching: Searching) -> None:
    def seconds(chosen: Choices) -> float:
        return (1.0 if name in chosen.without else 2.0) - 0.01 * len(chosen.algorithms)

    search = searching(seconds)
    changed = search.rewrite(Choices()).passes
    found = search.choose(Choices())
    assert found.without == ((name,) if name in changed else ())
    # The algorithms are those of the layers that are there without it.
    assert set(found.algorithms) <= set(search.rewrite(found).layers)
    assert bool(found.algorithms) == (name != "UnrollDepthPass")


def test_the_baseline_stays_where_it_is_faster(searching: Searching) -> None:
    search = searching(lambda chosen: 1.0 if chosen == BASELINE else 2.0)
    made = search.settle(Choices(), search.choose(Choices()))
    assert made["kept"] == "stock"
    assert tuning.parse(made, "it") == BASELINE
    assert tuple(made["without"]) == OPTIONAL


def test_the_search_ends_with_its_time(searching: Searching) -> None:
    search = searching(lambda _: 1.0)
    search.deadline = 0.0
    made = search.settle(Choices(), search.choose(Choices()))
    assert made["search"] == {"complete": False, "races": 0, "layers": []}


@pytest.mark.parametrize("growth", [1.0, 1.1, 1.2, 1.5])
def test_the_growth_of_weights_is_bounded(rewritten: Callable[[Choices], Rewritten], growth: float) -> None:
    def grown(layers: Mapping[str, RewrittenLayer]) -> float:
        now = before = 0.0
        for layer in layers.values():
            count = layer.convolutions * layer.layer.outputs * sum(channels for channels, _ in layer.layer.sources)
            count *= 27 if layer.layer.kernel == (3, 3, 3) else 1
            before += count
            now += ALGORITHMS[layer.algorithm].weight_growth * count
        return now / before

    free = rewritten(Choices()).layers
    bounded = rewritten(Choices(max_weight_growth=growth)).layers
    assert grown(free) > 1.2  # the lower bounds bind
    assert grown(bounded) <= growth
    if growth == 1.5:
        assert bounded == free
    if growth == 1.1:
        large = max(free, key=lambda text: free[text].layer.size)
        assert bounded[large] == free[large]  # where the weights work most


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
