"""Manifests of strangers: what the schema, and what it can't say, refuse; and that manifests of before are read."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segonnx.artifacts import layout, manifest
from segonnx.errors import InputError, VerifyError

Content = dict[str, Any]
OLD: Content = json.loads(Path(__file__).with_name("manifest-1.json").read_bytes())
"""As segonnx 0.1.0 wrote it, when manifests were of version 1, for a network of nnU-Net's."""


def refused(content: Content) -> str:
    with pytest.raises(VerifyError) as caught:
        manifest.parse(manifest.seal(content), Path("manifest.json"))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1100
    return str(caught.value)


def current() -> Content:
    return copy.deepcopy(OLD) | {"schema_version": manifest.SCHEMA_VERSION}


def labelled() -> Content:
    """The same network as an artifact that gives labels."""
    content = current()
    y = content["outputs"][0]
    y.update(name="labels", dtype="uint8", kind="labels", classes=y["shape"].pop(1))
    del content["inference"]
    return content


def pictures() -> Content:
    """A network for pictures, whose sizes are open."""
    content = current()
    for key in ("inference", "training"):
        del content[key]
    content["labels"] = []
    content["preprocessing"] = {"modality": "RGB", "note": "", "mean": [0.5] * 3, "std": [0.2] * 3}
    content["inputs"][0]["shape"] = ["batch", 3, "height", "width"]
    content["outputs"][0]["shape"] = ["batch", 5, "height", "width"]
    for one in content["parity"]["inputs"]:
        one["shape"] = [2, 3, 64, 96]
    return content


@pytest.mark.parametrize("content", [OLD, current(), labelled(), pictures()])
def test_what_exports_write_is_read(content: Content) -> None:
    data = manifest.sealed(content, "it")
    assert manifest.parse(data, Path("manifest.json"))["name"] == OLD["name"]


def test_a_manifest_of_version_1_may_lack_what_it_had_no_place_for() -> None:
    assert OLD["schema_version"] == 1
    content = copy.deepcopy(OLD)
    del content["files"][layout.SBOM], content["parity"]["runtime"], content["weights"]["seed"]
    content["name"] = "mine/and/yours"
    manifest.parse(manifest.seal(content), Path("manifest.json"))
    refused(content | {"schema_version": 2})


def tensor(which: str, **values: Any) -> Callable[[Content], object]:
    return lambda content: content[which][0].update(values)


def given(**values: Any) -> Callable[[Content], object]:
    return lambda content: content["preprocessing"].update(values)


def intensity(**values: Any) -> Callable[[Content], object]:
    return lambda content: content["preprocessing"]["channels"][0]["intensities"].update(values)


def inference(**values: Any) -> Callable[[Content], object]:
    return lambda content: content["inference"].update(values)


def resampling(what: str, **values: Any) -> Callable[[Content], object]:
    return lambda content: content["preprocessing"]["resampling"][what]["arguments"].update(values)


def tolerance(**values: Any) -> Callable[[Content], object]:
    return lambda content: content["parity"]["tolerance"].update(values)


def listed(name: str) -> Callable[[Content], object]:
    return lambda content: content["files"].update({name: content["files"]["model.onnx"]})


CHANGES: list[tuple[str, Callable[[Content], object]]] = [
    # what is missing
    *[
        ("preprocessing: '", lambda content, key=key: content["preprocessing"].pop(key))
        for key in (
            "preprocessor", "image_reader_writer", "file_ending", "transpose_forward", "transpose_backward", "spacing",
            "resampling",
        )
    ],
    ("inference: without preprocessing/channels", lambda content: content["preprocessing"].pop("channels")),
    ("labels: none", lambda content: content.update(labels=[])),
    ("'source' is a required property", lambda content: content.pop("source")),
    ("'family' is a required property", lambda content: content.pop("family")),
    ("intensities: 'mean' is a required property", lambda c: c["preprocessing"]["channels"][0].update(intensities={})),
    ("std: -1.0 is less than the minimum of 0", intensity(std=-1.0)),
    ("percentile_00_5 is above", intensity(percentile_00_5=251.0)),
    # sizes and axes
    ("inference/patch_size: 2 sizes for 3 axes", inference(patch_size=[8, 16])),
    ("patch_size", inference(patch_size=[8.0, 16, 24])),
    ("patch_size: [65536, 65536, 65536] are more", inference(patch_size=[65536] * 3)),
    ("spacing: [1.0] is too short", given(spacing=[1.0])),
    ("is no permutation", given(transpose_forward=[0, 0, 0])),
    ("transpose_backward: [2, 0, 1] doesn't undo", given(transpose_backward=[2, 0, 1])),
    ("mirror_axes", inference(mirror_axes=[0, 0])),
    ("mirror_axes", inference(mirror_axes=[3])),
    ("inputs/0/shape", tensor("inputs", shape=[1, 1, 8.0, 16, 24])),
    ("inputs/0/shape", tensor("inputs", shape=[1, 1, 2**31, 16, 24])),
    ("are more than 68,719,476,736 numbers", tensor("inputs", shape=[1, 1, 2**20, 2**20, 24])),
    ("the number of channels is open", tensor("inputs", shape=[1, "c", 8, 16, 24])),
    ("parity/inputs/0/shape: [1, 1, 8, 16, 24] is no", tensor("inputs", shape=[1, 1, 8, 16, 32])),
    ("parity/inputs/0/shape", lambda content: content["parity"]["inputs"][0].update(shape=[1, 1, "d", 16, 24])),
    ("inputs", lambda content: content["inputs"].append(content["inputs"][0])),
    ("inputs/0/dtype", tensor("inputs", dtype="float64")),
    ("outputs/0: it gives uint8, the manifest says logits", tensor("outputs", dtype="uint8")),
    ("outputs/0/dtype", tensor("outputs", dtype="complex64")),
    ("has no number of classes", tensor("outputs", shape=[1, "classes", 8, 16, 24])),
    ("preprocessing/channels: 2, and 0 labels, for 1 channels", lambda c: c["preprocessing"]["channels"].append(c["preprocessing"]["channels"][0])),  # noqa: E501
    ("for 1 channels", given(previous_stage={"configuration": "3d_lowres", "labels": [1, 2]})),
    ("is there twice", given(previous_stage={"configuration": "3d_lowres", "labels": [1, 1]})),
    ("mean: 3 numbers for 1 channels", given(mean=[0.5] * 3, std=[0.5] * 3)),
    ("'std' is a dependency of 'mean'", given(mean=[0.5])),
    # numbers that take time or memory without end, or none
    ("tile_step_size", inference(tile_step_size=1e-9)),
    ("gaussian_sigma_scale", inference(gaussian_sigma_scale=1e9)),
    ("gaussian_sigma_scale", inference(gaussian_sigma_scale=1e-300)),
    ("spacing", given(spacing=[1e-300, 1.0, 1.0])),
    ("order", resampling("data", order="x")),
    ("order", resampling("data", order=9)),
    ("order_z", resampling("seg", order_z=-1)),
    ("force_separate_z", resampling("probabilities", force_separate_z="yes")),
    ("value: 1000000000 is greater", lambda content: content["labels"][1].update(value=10**9)),
    ("labels: two have the same value", lambda content: content["labels"][1].update(value=0)),
    ("labels: 4 entries for 3 output channels", lambda content: content["labels"].append(content["labels"][0])),
    ("inference/nonlin: softmax, and regions is True", inference(regions=True)),
    ("seed", lambda content: content["weights"].update(seed=-1)),
    # what lets wrong weights pass
    ("tolerance/dtype", tolerance(dtype="bfloat16", max_rel_error=1.0, rms_rel_error=0.05, label_agreement=0.9)),
    ("tolerance/max_rel_error", tolerance(max_rel_error=1e9)),
    ("rms_rel_error: 0.01 is more than the tolerance", lambda content: content["parity"].update(rms_rel_error=0.01)),
    ("label_agreement: 0.5 is less", lambda content: content["parity"]["inputs"][1].update(label_agreement=0.5)),
    # texts that become paths, or lines of other languages
    *[("name", lambda content, name=name: content.update(name=name)) for name in ("", ".", "..", "a\nb", "x" * 256)],
    *[("name", lambda content, name=name: content.update(name=name)) for name in ("/etc", "a/b", "..\\x", "\x1b[2J")],
    *[("file_ending", given(file_ending=ending)) for ending in ("/../../x", "", ".", "..", ".nii\n", ".nii/x", "nii")],
    *[("inputs/0/name", tensor("inputs", name=name)) for name in ('x"', "x'", "x`", "x\\", "x\n", "", "x" * 301)],
    *[("files", listed(name)) for name in ("../x", "/etc/passwd", "a b", "a//b", ".x", "a\n", "C:x", "a\\b", "x/.y")],
    ("files: manifest.json can't be listed", listed("manifest.json")),
    ("files: model.sig can't be listed", listed("model.sig")),
    ("files: 'model.onnx' and 'MODEL.onnx' would be one", listed("MODEL.onnx")),
    ("files: 'Model.ONNX/x' lies in another file", listed("Model.ONNX/x")),
    ("files: they take more bytes", lambda c: [listed(f"f{i}")(c) for i in range(1000)] + [f.update(bytes=2**53) for f in c["files"].values()]),  # noqa: E501
    ("bytes", lambda content: content["files"]["model.onnx"].update(bytes=1e3)),
    ("licence", lambda content: content["weights"].update(licence="\u202eevil")),
    ("source", lambda content: content.update(source="x" * 5_000_000)),
    ("created", lambda content: content.update(created="yesterday")),
    ("arguments", lambda content: content["arguments"].update({"\x1b[2J": 1})),
]  # fmt: skip


@pytest.mark.parametrize(("message", "change"), CHANGES)
@pytest.mark.parametrize("version", [1, 2])
def test_what_readers_could_not_use_is_refused(message: str, change: Callable[[Content], object], version: int) -> None:
    content = current() | {"schema_version": version}
    change(content)
    if version == 1 and message.startswith("mean: 3 numbers"):
        return  # which networks of one channel had, and nothing follows
    if version == 1 and content["name"] in ("/etc", "a/b", "..\\x"):
        return  # names of folders were made of it with other letters
    assert message in refused(content)


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("labels: 3 entries for 4 output channels", tensor("outputs", classes=4)),
        ("outputs/0: it gives float32, the manifest says labels", tensor("outputs", dtype="float32")),
        ("outputs/0: ", lambda content: content["outputs"][0].pop("kind")),
    ],
)
def test_labels_that_do_not_go_together_are_refused(message: str, change: Callable[[Content], object]) -> None:
    content = labelled()
    change(content)
    assert message in refused(content)


def test_labels_of_one_class_have_two_values_and_one_name() -> None:
    content = labelled()
    content["outputs"][0]["classes"] = 2
    content["labels"] = content["labels"][:1]
    manifest.parse(manifest.seal(content), Path("manifest.json"))


@pytest.mark.parametrize("std", [0.0, -1.0, 1e-300])
def test_pictures_are_not_divided_by_nothing(std: float) -> None:
    content = pictures()
    content["preprocessing"]["std"][1] = std
    assert "preprocessing/std/1" in refused(content)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800", 2**64, {1, 2}])
def test_what_no_file_holds_is_refused_before_it_is_written(value: object) -> None:
    content = current()
    content["arguments"]["seed"] = value
    with pytest.raises(InputError, match="mine can't be written as an artifact: its manifest") as caught:
        manifest.sealed(content, "mine")
    assert "\n" not in str(caught.value)


ENSEMBLE: Content = {
    "schema_version": 2,
    "name": "an ensemble",
    "created": "2026-01-01T00:00:00+00:00",
    "source": "the mean of a and b",
    "weights": {"source": "see the members' manifests", "licence": "apache-2.0"},
    "members": [{"folder": "members/0-2d", "averaged": True, "previous": None}],
    "inference": {},
    "files": {"README.md": {"sha256": "0" * 64, "bytes": 1}},
    "producer": {"segonnx": "0.1.0"},
    "arguments": {"members": []},
    "digest": "0" * 64,
}
"""The manifest of an ensemble."""
ENTRY = {"sha256": "0" * 64, "bytes": 1}


@pytest.mark.parametrize(
    ("place", "change"),
    [
        ("name", {"name": ".."}),
        ("name", {"name": "a/b"}),
        ("name", {"name": "x" * 256}),
        ("name", {"name": "\x1b[2J"}),
        ("created", {"created": "yesterday"}),
        ("source", {"source": "two\nlines"}),
        ("source", {"source": "x" * 4001}),
        ("weights/source", {"weights": {"source": "\u202e", "licence": "mit"}}),
        ("weights/licence", {"weights": {"source": "", "licence": "x" * 301}}),
        ("files", {"files": {"../x": ENTRY}}),
        ("files", {"files": {"a/" * 200_000 + "x": ENTRY}}),
        ("files", {"files": {"manifest.json": ENTRY}}),
        ("files", {"files": {"a": ENTRY, "A": ENTRY}}),
        ("files", {"files": {"a": ENTRY, "a/b": ENTRY}}),
        ("files/a/bytes", {"files": {"a": {**ENTRY, "bytes": 2**60}}}),
        ("producer", {"producer": {"two words": "1"}}),
        ("producer/a", {"producer": {"a": "x" * 301}}),
        ("arguments", {"arguments": {"\n": 1}}),
        ("arguments", {"arguments": {f"a{i}": i for i in range(101)}}),
    ],
)
def test_the_manifest_of_an_ensemble_has_the_bounds_of_a_network_s(place: str, change: Content) -> None:
    manifest.validate(ENSEMBLE)
    with pytest.raises(VerifyError, match=f"doesn't fit its schema at {place}:"):
        manifest.validate({**ENSEMBLE, **change})
