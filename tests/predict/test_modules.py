"""Pictures predicted by networks that ``segonnx.export`` exported with a mean and a standard deviation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
import torch

import segonnx
from segonnx.predict.predictor import Artifact
from tests.conftest import run
from tests.exporters.modules import Fn, torch_gives

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
Y = torch.Tensor


def _each(y: Y) -> Y:
    """The label of classes that overlap: the last one that is there."""
    labels = torch.zeros(y.shape[0], *y.shape[2:], dtype=torch.int64)
    for number in range(y.shape[1]):
        labels[y[:, number] > 0.5] = number + 1
    return labels


KINDS: dict[str, tuple[Callable[[Fn, Y], Y], int, Callable[[Y], Y]]] = {
    "one logit": (lambda m, x: m.conv(x), 1, lambda y: y[:, 0] > 0),
    "a sigmoid": (lambda m, x: m.conv(x).sigmoid(), 1, lambda y: y[:, 0] > 0.5),
    "logits": (lambda m, x: m.conv(x), 3, lambda y: y.argmax(1)),
    "a softmax": (lambda m, x: m.conv(x).softmax(1), 3, lambda y: y.argmax(1)),
    "sigmoids": (lambda m, x: m.conv(x).sigmoid(), 3, _each),
}


@pytest.mark.usefixtures("steps_here")
@pytest.mark.parametrize("kind", KINDS)
def test_the_label_map_of_a_picture_is_the_modules_own(kind: str, tmp_path: Path) -> None:
    forward, classes, decide = KINDS[kind]
    module = Fn(forward, (3, classes))
    names = [f"class {number}" for number in range(classes)]
    folder = segonnx.export(module, torch.zeros(1, 3, 32, 48), tmp_path / "it", mean=MEAN, std=STD, labels=names).folder
    colours = np.random.default_rng(1).integers(0, 255, (32, 48, 3)).astype(np.uint8)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(colours, isVector=True), str(tmp_path / "in.png"))
    done = run("predict", folder, tmp_path / "in.png", tmp_path / "out.png", "--probabilities")
    assert done.returncode == 0, done.stderr
    found = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "out.png")))
    x = (torch.from_numpy(colours).permute(2, 0, 1)[None] / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(
        STD
    )[:, None, None]
    given = torch_gives(module, x)
    expected = decide(given)[0].numpy()
    assert np.mean(found == expected) > 0.999 and len(np.unique(found)) > 1
    probabilities = np.load(tmp_path / "out.npz")["probabilities"][:, 0]
    if "logit" in kind:
        given = given.sigmoid() if classes == 1 else given.softmax(1)
    assert np.allclose(probabilities, given[0].numpy(), atol=1e-4)


@pytest.mark.usefixtures("steps_here")
def test_without_a_mean_predict_says_what_lacks(tmp_path: Path) -> None:
    folder = segonnx.export(Fn(lambda m, x: m.conv(x), (3, 2)), torch.zeros(1, 3, 32, 48), tmp_path / "it").folder
    with pytest.raises(segonnx.InputError, match="its manifest doesn't say how images are prepared"):
        Artifact(folder).predict(np.zeros((3, 1, 32, 48), np.float32), (1.0, 1.0, 1.0))


def test_probabilities_of_nnunets_networks_are_not_averaged(hand: Path, tmp_path: Path) -> None:
    from segonnx.artifacts import manifest
    from segonnx.predict import config

    content: Any = manifest.read(hand)
    content["outputs"][0] |= {"kind": "probabilities", "decision": "argmax"}
    with pytest.raises(segonnx.InputError, match="windows are averaged by their logits"):
        config.read(content, hand)
