"""What a user says of pictures and classes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segonnx.artifacts import manifest
from segonnx.errors import InputError
from segonnx.exporters import naming, pipeline
from segonnx.exporters.pipeline import Settings
from segonnx.sources import catalog
from segonnx.sources.catalog import ModelSpec
from tests.conftest import message, run

UNET = replace(catalog.find("unet-mobilenetv3-small"), num_classes=3)


@pytest.mark.parametrize("text", [
    "background\nliver\ntumour\n", "\ufeffbackground\r\nliver\r\ntumour", '["background", "liver", "tumour"]',
    ' {"2": "tumour", "0": "background", "1": "liver"}', '{"tumour": 2, "liver": 1, "background": 0}',
])  # fmt: skip
def test_names_are_read_from_lines_and_json(text: str, tmp_path: Path) -> None:
    (tmp_path / "names").write_text(text, "utf-8")
    labels = naming.read_labels(tmp_path / "names")
    assert dict(labels) == {0: "background", 1: "liver", 2: "tumour"}
    entries = naming.named(UNET, labels).described["labels"]
    assert [entry["name"] for entry in entries] == ["background", "liver", "tumour"]
    assert [entry["value"] for entry in entries] == [0, 1, 2]


@pytest.mark.parametrize(("text", "message"), [
    ("[1, 2]", "must hold a list of names"), ("[", "isn't JSON"), ('{"a": 1, "b": 1}', "must hold a list of names"),
    ('{"1": {}}', "must hold a list of names"), ('{"-1": "a"}', "must hold a list of names"), (b"\xff\xfe", "UTF-8"),
    ("a" * (naming.MAX_BYTES + 1), "is larger than"), (None, "can't be read"),
])  # fmt: skip
def test_files_of_something_else_are_refused(text: Any, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "names").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message) as caught:
        naming.read_labels(tmp_path / "names")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("labels", "message"), [
    ({0: "a", 1: "b"}, "has 3 classes; --labels names 2"), ({0: "a", 1: "b", 2: "c", 3: "d"}, "--labels names 4"),
    ({}, "--labels names 0"), ({0: "a", 1: "b", 255: "c"}, "names the value 255; the classes of .* are 0 to 2"),
    ({0: "a", 1: " ", 2: "c"}, "an empty name: of class 1"), ({0: "a", 1: "b", 2: "a"}, "names two classes 'a'"),
])  # fmt: skip
def test_names_that_fit_no_network_are_refused(labels: dict[int, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        naming.named(UNET, labels)


@pytest.mark.parametrize("labels", [{0: "polyp"}, {1: "polyp"}, {0: "background", 1: "polyp"}])
def test_the_one_name_of_one_class_is_of_value_1(labels: dict[int, str]) -> None:
    entries = naming.named(replace(UNET, num_classes=1), labels).described["labels"]
    assert entries == [{"name": "polyp", "value": 1, "labels": [1]}]


@pytest.mark.parametrize(("labels", "message"), [
    ({0: "a", 1: "b", 2: "c"}, "has 1 class; --labels names 3; one class has"), ({2: "a"}, "names the value 2"),
])  # fmt: skip
def test_one_class_has_one_name(labels: dict[int, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        naming.named(replace(UNET, num_classes=1), labels)


@pytest.mark.parametrize(("mean", "std", "message"), [
    ((0.5,), None, "--mean goes with --std"), (None, (0.5,), "--std goes with --mean"),
    ((0.5, 0.5), (1.0,), "--mean gives 2 numbers and --std 1"), ((0.5,) * 3, (1.0, 0.0, 1.0), "at least 1e-06"),
    ((0.5, 0.5, 1e9), (1.0,) * 3, "finite numbers"), ((0.5, math.nan, 0.5), (1.0,) * 3, "finite numbers"),
    ((0.5,), (1.0,), "takes 3 channels; --mean and --std give 1"),
])  # fmt: skip
def test_numbers_that_normalise_no_picture_are_refused(mean: Any, std: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        naming.normalised(UNET, mean, std)


def test_volumes_are_no_pictures(tiny: ModelSpec) -> None:
    with pytest.raises(InputError, match="takes no pictures"):
        naming.normalised(tiny, (0.5,), (0.5,))
    assert naming.normalised(tiny, None, None) is tiny
    assert naming.named(tiny, None) is tiny


@pytest.mark.usefixtures("steps_here")
def test_a_picture_is_prepared_as_the_user_said(tmp_path: Path) -> None:
    """On a network of other channels than three, of which nothing tells how it is prepared."""
    from PIL import Image

    spec = replace(catalog.find("smp:fpn:tu-resnet10t"), num_classes=2, options={
        "architecture": "fpn", "encoder": "tu-resnet10t", "in_channels": 1,
    }, input_shape=(1, 1, 64, 64))  # fmt: skip
    labels = {0: "background", 1: "cell"}
    settings = Settings(tmp_path, shape=(64, 64), mean=(0.25,), std=(0.5,), labels=labels)
    done = pipeline.export(spec, settings)
    content = manifest.read(done.folder)
    assert (content["preprocessing"]["mean"], content["preprocessing"]["std"]) == ([0.25], [0.5])
    assert [entry["name"] for entry in content["labels"]] == ["background", "cell"]
    assert pipeline.export(spec, settings).kept
    with pytest.raises(InputError, match=r"other arguments \(.*mean.*\)"):
        pipeline.export(spec, replace(settings, mean=(0.5,)))
    assert "0 background, 1 cell" in (done.folder / "README.md").read_text()
    grey = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    Image.fromarray(grey).save(tmp_path / "case.png")
    result = run("predict", done.folder, tmp_path / "case.png", tmp_path / "labels.png")
    assert result.returncode == 0, result.stderr
    import onnxruntime

    session = onnxruntime.InferenceSession(done.folder / "model.onnx", providers=["CPUExecutionProvider"])
    x = ((grey / 255 - 0.25) / 0.5).astype(np.float32)[None, None]
    expected = session.run(None, {"input": x})[0].argmax(1)[0]
    assert (np.asarray(Image.open(tmp_path / "labels.png")) == expected).mean() > 0.999


@pytest.mark.parametrize(("arguments", "said"), [
    (["--mean", "0.5"], "--mean goes with --std"), (["--mean", "a,b", "--std", "1"], "--mean takes numbers"),
    (["--mean", "0.5,inf", "--std", "1,1"], "--mean takes numbers"),
    (["--mean", "0.5", "--std", "0.5"], "takes 3 channels; --mean and --std give 1"),
    (["--labels", "LICENSE"], "has 117 classes; --labels names"), (["--labels", "nowhere"], "can't be read"),
    (["--weights-prefix", "net."], "--weights-prefix PREFIX goes with --weights FILE"),
])  # fmt: skip
def test_wrong_use_is_one_line_before_any_work(arguments: list[str], said: str, tmp_path: Path) -> None:
    done = run("export", "unet-mobilenetv3-small", *arguments, "--out", tmp_path)
    assert done.returncode == 2
    assert said in message(done) and len(message(done).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_says_it_itself_is_not_contradicted(tmp_path: Path) -> None:
    for arguments in (["--labels", "x"], ["--mean", "1", "--std", "1"]):
        done = run("export", "--nnunet", tmp_path, *arguments)
        assert (done.returncode, len(message(done).splitlines())) == (2, 1)
        assert f"leave {arguments[0]} out" in done.stderr


def test_labels_stand_in_the_order_of_their_values(tmp_path: Path) -> None:
    (tmp_path / "names.json").write_text(json.dumps({"1": "b", "0": "a", "2": "c"}))
    found = naming.named(UNET, naming.read_labels(tmp_path / "names.json"))
    assert [one["name"] for one in found.described["labels"]] == ["a", "b", "c"]
