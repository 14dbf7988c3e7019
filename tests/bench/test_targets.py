"""What a target, and so every row, tells of its network: nothing published stands beside what nobody published."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from segonnx.bench import result, targets
from segonnx.bench.plan import Case, Settings, Target
from segonnx.bench.recorder import Recorder
from segonnx.bench.result import Published, Result, Row
from segonnx.commands import bench_targets
from segonnx.core import subprocesses, synthetic_inputs
from segonnx.errors import InputError
from segonnx.exporters import pipeline, prepare
from segonnx.report import charts, tables
from segonnx.sources import catalog
from tests.bench import fakes
from tests.conftest import tiny_system
from tests.report import results

SPEC = catalog.find("stunet-b")


def manifest(**changes: Any) -> dict[str, Any]:
    """What an export of stunet-b writes, as far as a bench reads it."""
    assert SPEC.reference is not None
    content = {
        "name": SPEC.name,
        "family": SPEC.family,
        "source": SPEC.source,
        "parameters": {"count": SPEC.reference.parameters},
        "macs": SPEC.reference.inference_macs,
        "inputs": [{"name": "input", "shape": list(SPEC.input_shape), "dtype": "float32"}],
        "outputs": [{"name": "logits", "shape": [1, SPEC.num_classes, *SPEC.input_shape[2:]], "dtype": "float32"}],
        "weights": {"seed": 0, "sha256": "0" * 64},
        "preprocessing": {"modality": "CT"},
        "parity": {"inputs": [{"shape": list(SPEC.input_shape)}]},
        "rewrites": [],
        "arguments": {},
        "digest": "2" * 64,
    }
    return content | changes


@pytest.fixture
def target_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(**changes: Any) -> Target:
        monkeypatch.setattr(targets, "verify", lambda *_, **__: SimpleNamespace(manifest=manifest(**changes)))
        return targets.from_artifact(Path("artifact"), lambda _: None, lambda spec, seed: (spec, seed))  # type: ignore[arg-type, return-value]

    return make


FILE = {"weights": {"seed": None, "sha256": "1" * 64}}
TIMES = {"time_ms": 804, "images_per_s": 5.0, "efficiency": 0.09}


def test_random_weights_of_a_reference_system_carry_what_was_published_of_it(target_of: Any) -> None:
    target = target_of()
    assert target.weights == "seeded"
    assert target.published == Published(parameters=58_270_000, dsc_percent=87.12, **TIMES)
    assert target.network == (SPEC, 0)


def test_weights_from_a_file_have_the_architectures_times_and_no_dice(target_of: Any) -> None:
    target = target_of(**FILE)
    assert target.weights == "file"
    assert target.published == Published(parameters=58_270_000, dsc_percent=None, **TIMES)
    assert target.network is None


def test_weights_that_the_authors_publish_are_told(target_of: Any) -> None:
    assert target_of(**FILE, arguments={"pretrained": True}).weights == "published"


@pytest.mark.parametrize(
    "changes",
    [
        {"family": "module"},
        {"source": "module Mine"},
        {"parameters": {"count": 58_000_000}},
        {"outputs": [{"name": "logits", "shape": [1, 5, 64, 128, 128], "dtype": "float32"}]},
        {"parity": {"inputs": [{"shape": [1, 1, 32, 64, 64]}]}},
    ],
)
def test_another_network_of_the_name_has_nothing_published(changes: dict[str, Any], target_of: Any) -> None:
    assert target_of().published is not None
    assert target_of(**changes).published is None


def test_a_system_without_artifact_has_what_was_published(tmp_path: Path) -> None:
    target = targets.from_spec(SPEC, lambda spec, seed: (spec, seed))  # type: ignore[arg-type, return-value]
    assert target.published == targets.published(SPEC, SPEC.input_shape, "seeded")


def row_of(target: Target) -> Row:
    """The row of a target as a bench makes it, with made-up times."""
    case = Case(target, 1, Settings(("steady",), (1,)), False, fakes.KNOWN, (0,))
    x = synthetic_inputs.make("noise", target.input_shape, target.modality)
    (row,) = Recorder(case, x, 0.0).rows
    return replace(row, backend="ort", rounds=[[1.0]] * 8, started_s=[0.0] * 8, rounds_per_process=[8])


@pytest.mark.parametrize(("weights", "dice"), [({}, 87.12), (FILE, None)])
def test_the_report_draws_a_published_dice_of_random_weights_alone(
    weights: dict[str, Any], dice: float | None, target_of: Any, tmp_path: Path
) -> None:
    """A user's own weights in stunet-b aren't those that the Dice was published of."""
    others = results.make(("stunet-s",), {"ort": 1.0})
    found = replace(others, rows=[*others.rows, row_of(target_of(**weights))])
    found.write(tmp_path / "result.json")
    read = result.read(tmp_path / "result.json")
    drawn = [chart for chart in charts.charts(read) if chart.section == "Accuracy against speed"]
    assert ([87.12] if drawn else []) == ([] if dice is None else [dice])
    if drawn:
        values = {value["model"]: value["dsc"] for value in drawn[0].spec["data"]["values"]}
        assert values == {"stunet-s": 83.74, "stunet-b": 87.12}
    assert "804 ms" in tables.family(read, "3d")  # the architecture's times hold for both


@pytest.mark.usefixtures("steps_here")
def test_a_users_network_of_the_name_is_exported_timed_and_compared_with_nothing(tmp_path: Path) -> None:
    """A whole way: a small network called stunet-b, weights from a file, its artifact, its row."""
    spec = replace(tiny_system(), name="stunet-b")
    subprocesses.call(prepare.write_weights, spec, 1, tmp_path / "mine.safetensors")
    settings = pipeline.Settings(tmp_path, checkpoints=(tmp_path / "mine.safetensors",))
    target = bench_targets.from_artifact(pipeline.export(spec, settings).folder, lambda _: None)
    assert (target.name, target.weights, target.published, target.network) == ("stunet-b", "file", None, None)
    others = results.make(("stunet-s", "totalsegmentator"), {"ort": 1.0})
    drawn = charts.charts(replace(others, rows=[*others.rows, row_of(target)]))
    (chart,) = (chart for chart in drawn if chart.section == "Accuracy against speed")
    assert {value["model"] for value in chart.spec["data"]["values"]} == {"stunet-s", "totalsegmentator"}


def as_version_2(content: dict[str, Any]) -> dict[str, Any]:
    """The same result as an older segonnx wrote it."""
    old = json.loads(json.dumps(content)) | {"schema_version": 2}
    for row in old["rows"]:
        del row["weights"], row["published"], row["artifact"], row["precision"]
    return old


def test_results_of_version_2_are_read_and_claim_nothing_published(tmp_path: Path) -> None:
    made: Result = results.make(("stunet-s", "stunet-b"))
    path = tmp_path / "old.json"
    path.write_text(json.dumps(as_version_2(made.as_dict())))
    read = result.read(path)
    assert read.rows == [replace(row, weights=None, published=None) for row in made.rows]
    assert (read.ratios, read.roofline_peaks) == (made.ratios, made.roofline_peaks)
    assert not any(chart.section == "Accuracy against speed" for chart in charts.charts(read))
    assert any(chart.section == "Accuracy against speed" for chart in charts.charts(made))
    assert "stunet-b" in tables.family(read, "3d")


def test_results_of_version_3_must_tell_whose_weights_they_are_of(tmp_path: Path) -> None:
    content = as_version_2(results.make(("stunet-s",)).as_dict()) | {"schema_version": 3}
    (tmp_path / "bad.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="'weights' is a required property"):
        result.read(tmp_path / "bad.json")


def test_results_of_version_3_are_read_and_those_of_version_4_must_tell_the_artifact(tmp_path: Path) -> None:
    made = results.make(("stunet-s",))
    content = json.loads(json.dumps(made.as_dict()))
    for row in content["rows"]:
        del row["artifact"]
    (tmp_path / "r.json").write_text(json.dumps(content | {"schema_version": 3}))
    assert result.read(tmp_path / "r.json").rows == made.rows
    (tmp_path / "r.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="'artifact' is a required property"):
        result.read(tmp_path / "r.json")
