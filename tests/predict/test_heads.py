"""Features are averaged instead of logits, and give what logits give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from segonnx.core.ort_session import SessionSettings, open_session
from segonnx.predict import heads
from segonnx.predict.heads import Head
from segonnx.predict.predictor import Artifact
from tests import handmade
from tests.conftest import run
from tests.predict.conftest import SHAPE, SPACING, volume

FEATURES, CLASSES = 3, 7


def _many_classes(root: Path, *, regions: bool = False, configuration: str = "3d_fullres") -> Path:
    """An artifact of a network with more classes than features."""
    described = handmade.dataset(8)
    if regions:
        values = list(range(1, 9))
        described["labels"] = {"background": 0, **{f"r{value}": [value, 8] for value in values[:-1]}, "r8": 8}
        described["regions_class_order"] = values
    planned = handmade.several() if configuration == "2d" else handmade.plans()
    axes = (0, 1) if configuration == "2d" else (0, 1, 2)
    folder = handmade.write(root / "results", planned, described, configuration=configuration, mirror_axes=axes)
    done = run("export", "--nnunet", folder, "--out", root / "artifacts")
    assert done.returncode == 0, done.stderr
    (artifact,) = (root / "artifacts").iterdir()
    return artifact


@pytest.mark.usefixtures("steps_here")
@pytest.mark.parametrize(("regions", "configuration"), [(False, "3d_fullres"), (True, "3d_fullres"), (False, "2d")])
def test_features_give_the_labels_and_probabilities_that_logits_give(
    regions: bool, configuration: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _many_classes(tmp_path, regions=regions, configuration=configuration)
    late = Artifact(folder, threads=2)
    monkeypatch.setattr(heads, "split", lambda _: None)
    logits = Artifact(folder, threads=1)
    (one,), (other,) = late._members, logits._members
    assert one.network.head is not None and one.network.head.features < len(late.config.label_values)
    assert other.network.head is None
    for mirror in (False, True):
        filled = [np.empty((len(late.config.label_values), *SHAPE), np.float32) for _ in range(2)]
        found, expected = (
            artifact.predict(volume(), SPACING, mirror=mirror, probabilities=array)
            for artifact, array in zip((late, logits), filled, strict=True)
        )
        np.testing.assert_allclose(filled[0], filled[1], atol=1e-4)
        assert np.mean(found == expected) > 0.9999 and len(np.unique(expected)) > 2
        # Without probabilities, corners that agree decide.
        assert np.mean(late.predict(volume(), SPACING, mirror=mirror) == expected) > 0.9999
        assert np.mean(logits.predict(volume(), SPACING, mirror=mirror) == expected) > 0.9999


def _graph(attributes: dict[str, Any], *, kind: str = "plain") -> onnx.ModelProto:
    """A graph whose output is made by a convolution of this kind."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((CLASSES, FEATURES, 1, 1)).astype(np.float32)
    bias = rng.standard_normal(CLASSES).astype(np.float32)
    first = rng.standard_normal((FEATURES, 1, 3, 3)).astype(np.float32)
    tensors = {"first": first, "weight": weight, "bias": bias}
    nodes = [helper.make_node("Conv", ["input", "first"], ["before"], pads=[1, 1, 1, 1])]
    inputs, features, given = ["weight", "bias"], FEATURES, "before"
    if kind == "joined":  # as the rewrite of pointwise heads writes it
        tensors |= {"column": np.array([CLASSES, 1, 1, 1]), "ones": np.ones((1, 1, 5, 6), np.float32)}
        nodes += [
            helper.make_node("Reshape", ["bias", "column"], ["last"]),
            helper.make_node("Concat", ["weight", "last"], ["both"], axis=1),
            helper.make_node("Concat", ["before", "ones"], ["extended"], axis=1),
        ]
        inputs, features, given = ["both"], FEATURES + 1, "extended"
    elif kind == "few classes":
        tensors |= {"weight": weight[:2], "bias": bias[:2]}
    elif kind == "of the image":
        nodes.append(helper.make_node("ReduceMean", ["input"], ["mean"], axes=[0, 1, 2, 3], keepdims=0))
        nodes.append(helper.make_node("Mul", ["weight", "mean"], ["weights"]))
        inputs = ["weights", "bias"]
    elif kind == "wide":
        tensors["weight"] = rng.standard_normal((CLASSES, FEATURES, 3, 3)).astype(np.float32)
    elif kind == "grouped":
        tensors["weight"], attributes = weight[:, :1], {"group": FEATURES}
        tensors |= {"weight": np.concatenate([weight[:6, :1]]), "bias": bias[:6]}
    del features
    made = "before the end" if kind == "not last" else "logits"
    nodes.append(helper.make_node("Conv", [given, *inputs], [made], **attributes))
    if kind == "not last":
        nodes.append(helper.make_node("Relu", [made], ["logits"]))
    values = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 1, 5, 6])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, "c", "y", "x"])], values,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("kind", ["plain", "joined"])
@pytest.mark.parametrize("beside", [False, True])
def test_a_head_is_taken_off(kind: str, beside: bool, tmp_path: Path) -> None:
    model = _graph({"pads": [0, 0, 0, 0], "strides": [1, 1], "kernel_shape": [1, 1]}, kind=kind)
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=beside, location="model.weights", size_threshold=80)
    found = heads.split(path)
    assert found is not None
    assert found.head.features == FEATURES + (kind == "joined")
    x = np.random.default_rng(1).standard_normal((1, 1, 5, 6)).astype(np.float32)
    (expected,) = onnxruntime.InferenceSession(str(path)).run(None, {"input": x})
    session = open_session(found.model, SessionSettings(threads=1, weights=tmp_path))
    (features,) = session.run([found.output], {"input": x})
    rows = np.ascontiguousarray(features.reshape(found.head.features, -1).T)
    for logits in (found.head.logits(features.reshape(found.head.features, -1)), found.head.logits_rows(rows).T):
        np.testing.assert_allclose(logits.reshape(expected.shape), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "attributes"),
    [
        ("plain", {"strides": [2, 1]}),
        ("plain", {"pads": [0, 1, 0, 0]}),
        ("plain", {"auto_pad": "SAME_UPPER"}),
        ("few classes", {}),
        ("of the image", {}),
        ("wide", {"pads": [1, 1, 1, 1]}),
        ("grouped", {}),
        ("not last", {}),
    ],
)
def test_what_is_no_such_head_stays_in_the_graph(kind: str, attributes: dict[str, Any], tmp_path: Path) -> None:
    onnx.save(_graph(attributes, kind=kind), tmp_path / "model.onnx")
    assert heads.split(tmp_path / "model.onnx") is None
    onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))  # it is a graph


def test_a_feature_that_would_leave_float32_is_too_large() -> None:
    head = Head(np.array([[3.0, -5.0], [1.0, 1.0]], np.float32), np.array([7.0, -9.0], np.float32))
    largest = np.float32(head.largest)
    assert np.isfinite(head.logits(np.array([[largest], [-largest]], np.float32) * np.float32(0.999))).all()
    assert not np.isfinite(head.logits(np.array([[largest], [-largest]], np.float32) * np.float32(1.01))).all()
