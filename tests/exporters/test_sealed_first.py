"""What an artifact can't hold is refused before the work, not after a minute of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import segonnx
from segonnx.core import subprocesses
from segonnx.errors import InputError
from segonnx.exporters import nnunet, pipeline
from segonnx.exporters.nnunet import Selection
from segonnx.exporters.steps import SpecSteps
from segonnx.sources.catalog import ModelSpec
from tests import handmade
from tests.conftest import SMALL, message, run

TUNING: dict[str, Any] = {
    "kept": "tuned", "without": [], "forms": {}, "medians_s": {"tuned": 1.0},
    "search": {"complete": True, "races": 1, "layers": [], "seconds": 1.0},
    "machine": {"cpu": "x", "threads": 1, "onnxruntime": "1"},
}  # fmt: skip


@pytest.fixture
def no_step_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of an export fails the test: what is refused is refused before."""

    def call(*_: object, **__: object) -> None:
        raise AssertionError("a step ran")

    monkeypatch.setattr(subprocesses, "call", call)


def tuning(**changes: Any) -> str:
    return json.dumps({"tuning": {**TUNING, **changes}})


@pytest.mark.usefixtures("no_step_runs")
@pytest.mark.parametrize(
    "text",
    [
        tuning(medians_s={"tuned": float("nan")}),
        tuning(medians_s={"tuned": 1.0}).replace("1.0", "1e999"),
        tuning(medians_s={"tuned": 10**400}),
        tuning(medians_s={"\ud800": 1.0}),
        tuning(machine={**TUNING["machine"], "cpu": "\udfff"}),
        tuning(search={**TUNING["search"], "seconds": -1.0}),
        tuning(lanes=2.0),
        tuning(forms={"x" * 1000: "taps"}),
        tuning(forms={"16->32": "x" * 5_000_000}),
        "[" * 100 + "]" * 100,
    ],
)
def test_a_tuning_that_no_manifest_holds_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(text)
    done = run("export", SMALL, "--tuning", tmp_path / "t.json", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "\n" not in message(done) and len(message(done)) < 1100
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_step_runs")
def test_a_seed_of_more_digits_than_programs_read_is_refused(tmp_path: Path) -> None:
    done = run("export", SMALL, "--seed", 10**30, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "can't be written as an artifact: its manifest.json isn't JSON that every program reads" in message(done)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_step_runs")
@pytest.mark.parametrize(
    ("more", "place"),
    [
        ({"labels": ["a", "\ud800"]}, "half a character|surrogates"),
        ({"labels": ["a", "x" * 301]}, "labels/1/name"),
        ({"labels": ["a\nb", "c"]}, "labels/0/name"),
        ({"name": ".."}, "name"),
        ({"name": "a/b"}, "name"),
        ({"licence": "\ud800"}, "surrogates"),
        ({"licence": "\x1b[2J"}, "weights/licence"),
        ({"unused": {"head.*": "\ud800"}}, "surrogates"),
        ({"input_name": 'x"\n'}, "inputs/0/name"),
        ({"output_name": "\ud800"}, "surrogates"),
    ],
)
def test_words_of_a_caller_are_looked_at_before_the_work(more: dict[str, Any], place: str, tmp_path: Path) -> None:
    module = torch.nn.Conv2d(3, 2, 3, padding=1)
    with pytest.raises(InputError, match=f"can't be written as an artifact: its manifest.*({place})") as caught:
        segonnx.export(module, torch.zeros(1, 3, 64, 64), tmp_path / "out", **more)
    assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("planned", "described", "said"),
    [
        ({}, {"labels": {"background": 0, "\ud800": 1, "b": 2}}, "half a character"),
        ({"plans_name": "\udfff"}, {}, "half a character"),
        ({}, {"channel_names": {"0": "\ud800"}}, "half a character"),
        ({}, {"labels": {"background": 0, "a\u202eb": 1, "c": 2}}, "labels"),
        ({"foreground_intensity_properties_per_channel": {}}, {}, "'mean' is a required property"),
    ],
)
def test_words_of_a_plan_are_looked_at_before_the_work(
    planned: dict[str, Any], described: dict[str, Any], said: str, tmp_path: Path
) -> None:
    folder = handmade.write(tmp_path, handmade.plans(), handmade.dataset())
    path = folder / "fold_0" / "checkpoint_final.pth"
    content = torch.load(path, weights_only=False)
    content["init_args"].update(plans=None, dataset_json=None)  # as older checkpoints: the files count
    torch.save(content, path)
    for name, changes in (("plans.json", planned), ("dataset.json", described)):
        (folder / name).write_text(json.dumps({**json.loads((folder / name).read_text()), **changes}))
    with pytest.raises(InputError, match=said) as caught:
        (found,) = nnunet.read(folder, {"0": path}, Selection(), subprocesses.silent)
        export_stops(found.spec, tmp_path / "out", path)
    assert "\n" not in str(caught.value)


def export_stops(spec: ModelSpec, out: Path, checkpoint: Path) -> None:
    """Export, and fail the test if a step of it runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocesses, "call", lambda *_, **__: pytest.fail("a step ran"))
        patch.setattr(SpecSteps, "adapt", lambda _, spec: spec)
        pipeline.export(spec, pipeline.Settings(out=out, checkpoints=(checkpoint,)))


def test_a_checkpoint_whose_own_notes_are_no_json_is_taken_for_one_without(tmp_path: Path) -> None:
    folder = handmade.write(tmp_path, handmade.plans(), handmade.dataset())
    path = folder / "fold_0" / "checkpoint_final.pth"
    content = torch.load(path, weights_only=False)
    for notes in ({"a": "\ud800"}, {"a": float("nan")}, {"a": 10**400}, [1], {1: {2: 3}}):
        content["init_args"]["plans"] = notes
        torch.save(content, path)
        (found,) = nnunet.read(folder, {"0": path}, Selection(), subprocesses.silent)
        assert found.spec.family == "nnunet"
