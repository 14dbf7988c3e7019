"""The plain graph is replayed as export ran it: with norms that lose no digits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import segonnx
from segonnx.artifacts import graph_sessions, layout, testdata
from segonnx.core.ort_session import SessionSettings
from segonnx.errors import VerifyError
from tests.artifacts.resealed import reseal

pytestmark = pytest.mark.usefixtures("copied_workers")

SHAPE = (1, 1, 64, 128, 128)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A network whose norm takes values that are far from zero and near each other."""
    torch.manual_seed(0)
    first = nn.Conv3d(1, 4, 3, padding=1)
    assert first.bias is not None
    nn.init.constant_(first.bias, 8.0)
    norm = nn.InstanceNorm3d(4, affine=True)
    return nn.Sequential(first, norm, nn.LeakyReLU(), nn.Conv3d(4, 2, 3, padding=1)).eval()


def _record(artifact: Path, x: np.ndarray, y: np.ndarray) -> None:
    """Make an input and an output the artifact's test data."""
    shutil.rmtree(artifact / layout.TEST_DATA)
    testdata.write(artifact, {"input": x}, {"logits": y}, atol=1e-3, rtol=1e-3)
    reseal(artifact, rehash=True)


@pytest.mark.parametrize("opset", [17, 20])
def test_verify_replays_the_plain_graph_as_export_ran_it(opset: int, network: nn.Module, tmp_path: Path) -> None:
    artifact = tmp_path / "it"
    segonnx.export(network, torch.zeros(SHAPE), artifact, optimize="none", opset=opset)
    parity = json.loads((artifact / layout.MANIFEST).read_text())["parity"]
    assert parity["runtime"] == graph_sessions.STABLE_NORM_RUNTIME
    # Weights in a file of their own, as large networks have them, and an image on which ONNX Runtime's norm loses more.
    model = onnx.load(artifact / layout.MODEL)
    weights = f"{layout.MODEL}.data"
    onnx.save(
        model, artifact / layout.MODEL, save_as_external_data=True, location=weights, size_threshold=0,
        convert_attribute=True,
    )  # fmt: skip
    x = np.random.default_rng(0).normal(0, 0.1, SHAPE).astype(np.float32)
    with torch.no_grad():
        y = network(torch.from_numpy(x)).numpy()
    _record(artifact, x, y)
    before = sorted(path.name for path in artifact.iterdir())
    assert segonnx.verify(artifact).weights == (weights,)
    assert sorted(path.name for path in artifact.iterdir()) == before

    reseal(artifact, lambda content: content["parity"].update(runtime=graph_sessions.RUNTIME))
    with pytest.raises(VerifyError, match=r"the replay of model\.onnx differs from the recorded logits"):
        segonnx.verify(artifact)

    reseal(artifact, lambda content: content["parity"].update(runtime=graph_sessions.STABLE_NORM_RUNTIME))
    _record(artifact, x, 1.01 * y)
    with pytest.raises(VerifyError, match=r"the replay of model\.onnx differs from the recorded logits"):
        segonnx.verify(artifact)


def test_a_graph_without_large_norms_runs_as_it_is(artifact: Path) -> None:
    session, runtime = graph_sessions.open_plain(artifact / layout.MODEL, SessionSettings(threads=1))
    assert runtime == graph_sessions.RUNTIME
    assert session.get_inputs()[0].name == "input"
