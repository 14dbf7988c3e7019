"""Weights in 16 bits: which are rounded, that the file holds just those, and what the checks find that is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

import segonnx
from segonnx.artifacts.layout import CPU_MODEL, MODEL
from segonnx.core.tolerances import Difference
from segonnx.errors import InputError, ParityError
from segonnx.exporters import accounting, pipeline, resources, rounding, steps
from segonnx.exporters.pipeline import Settings
from segonnx.exporters.provenance import Origin
from segonnx.exporters.rounding import FEW_AXES, OTHER, RANGE, SHARED, UNIT, Rounded
from segonnx.sources.catalog import ModelSpec
from tests import handmade
from tests.conftest import export, message
from tests.conftest import run as command
from tests.exporters.modules import Fn, X, run, torch_gives

pytestmark = pytest.mark.usefixtures("steps_here")

DTYPES = ("float16", "bfloat16")
KINDS = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16, "float32": TensorProto.FLOAT}


def stored(path: Path) -> dict[str, int]:
    """The type of each initializer of a graph."""
    graph = onnx.load(path, load_external_data=False).graph
    return {tensor.name: tensor.data_type for tensor in graph.initializer}


def storage(folder: Path) -> dict[str, Any]:
    """What the manifest says of 16 bits."""
    content: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    found: dict[str, Any] = content["weights"]["storage"]
    return found


class Norms(nn.Module):
    """Convolutions of both kinds with a BatchNorm behind them, and one with none."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.ConvTranspose2d(8, 6, 2, stride=2),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 4, 3, padding=1),
        )
        for layer in self.layers:
            if isinstance(layer, nn.BatchNorm2d):
                for tensor in (layer.weight, layer.bias, layer.running_mean):
                    nn.init.normal_(tensor)  # type: ignore[arg-type]
                nn.init.uniform_(layer.running_var, 0.5, 2.0)  # type: ignore[arg-type]
        norm: Any = self.layers[1]
        norm.weight.data[0] = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        given: torch.Tensor = self.layers(x)
        return given


@pytest.mark.parametrize("dtype", ["float16", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_a_network_of_volumes_is_half_as_large_and_both_graphs_share_it(
    dtype: str, little: ModelSpec, tiny: ModelSpec, tmp_path: Path
) -> None:
    for spec in (little, tiny):
        how = Settings(tmp_path, weights_dtype=dtype, output="labels" if spec is tiny else "logits")  # type: ignore[arg-type]
        made = pipeline.export(spec, how)
        said = made.manifest["weights"]["storage"]
        graphs = [MODEL, CPU_MODEL] if "cpu_graph" in made.manifest else [MODEL]
        for file in graphs:
            kinds = stored(made.folder / file)
            assert sum(kind == KINDS[dtype] for kind in kinds.values()) == said["tensors"]
        held = sum(numpy_helper.to_array(one, str(made.folder)).nbytes for one in _rounded(made.folder / MODEL, dtype))
        assert held == 2 * said["numbers"]
        assert said["numbers"] + said["float32"][FEW_AXES] >= made.manifest["parameters"]["used"]
        assert OTHER not in said["float32"]
        assert said["effect"]["rms_rel_error"] > made.manifest["parity"]["rms_rel_error"]
        assert f"**Stored in:** {dtype}" in (made.folder / "README.md").read_text()
        assert segonnx.verify(made.folder).manifest["files"] == made.manifest["files"]
    assert (made.folder / CPU_MODEL).exists()
    own = onnx.load(made.folder / CPU_MODEL, load_external_data=False).graph.initializer
    inside = [one for one in own if one.data_type == KINDS[dtype] and not one.external_data]
    assert all(len(one.raw_data) <= 1024 for one in inside)


def _rounded(path: Path, dtype: str) -> list[onnx.TensorProto]:
    return [one for one in onnx.load(path).graph.initializer if one.data_type == KINDS[dtype]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_file_computes_what_pytorch_does_with_rounded_weights(dtype: str, tmp_path: Path) -> None:
    module: Any = Norms()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    made = segonnx.export(module, X, tmp_path / "a", weights_dtype=dtype)  # type: ignore[arg-type]
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert storage(made.folder)["tensors"] == 3
    x = torch.randn(1, 3, 32, 48)
    own = torch_gives(module, x).numpy()
    (found,) = run(made.folder, x)
    factor = module.layers[1].weight / torch.sqrt(module.layers[1].running_var + 1e-5)
    kind = getattr(torch, dtype)
    with torch.no_grad():
        for place in (0, 3):
            norm = module.layers[place + 1]
            factor = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).reshape(
                (-1, 1, 1, 1) if place == 0 else (1, -1, 1, 1)
            )
            weight = module.layers[place].weight
            weight.copy_(torch.where(factor != 0, (weight * factor).to(kind).float() / factor, weight))
        module.layers[6].weight.copy_(module.layers[6].weight.to(kind).float())
    assert np.abs(torch_gives(module, x).numpy() - found).max() < 2e-3 * own.std()
    assert np.abs(own - found).max() > 1e-4 * own.std()


def test_the_reference_is_the_network_with_rounded_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = Difference(0.0, 0.0, 0.0, 1.0, 0.0)
    monkeypatch.setattr(steps, "network_answers", lambda *_: nothing)
    with pytest.raises(ParityError, match="numeric parity failed on noise"):
        segonnx.export(Norms(), X, tmp_path / "a", weights_dtype="bfloat16")
    assert not (tmp_path / "a").exists()


def test_what_a_type_has_no_digits_for_stays_float32(tmp_path: Path) -> None:
    module: Any = Fn(lambda self, x: self.conv(self.conv(x / 70000), 1) + self.conv(self.conv(x * 1e7, 2), 3),
                (3, 4), (4, 3), (3, 4), (4, 3))  # fmt: skip
    with torch.no_grad():
        module.convs[0].weight.mul_(500000)
        module.convs[2].weight.mul_(1e-7)
    made = segonnx.export(module, X, tmp_path / "a", weights_dtype="float16")
    kinds = stored(made.folder / MODEL)
    assert {name for name, kind in kinds.items() if kind == KINDS["float16"]} == {"convs.1.weight", "convs.3.weight"}
    assert storage(made.folder)["float32"][RANGE] == 2 * 3 * 4 * 9
    made = segonnx.export(module, X, tmp_path / "b", weights_dtype="bfloat16")
    assert RANGE not in storage(made.folder)["float32"]


@pytest.mark.parametrize(
    ("numbers", "why"),
    [
        (np.full((2, 2), 1e5), RANGE),
        (np.full((2, 2), 3e-8), RANGE),
        (np.zeros((2, 2)), None),
        (np.full((2, 2), 65504.0), None),
        (np.full((2, 2), 2.0**-14), None),
        (np.array([[1.0, 1e-9]]), FEW_AXES),
        (np.array([[1.0, 1e-9]] * 2), None),
    ],
)
def test_rounding_keeps_to_its_bound(numbers: np.ndarray, why: str | None) -> None:
    numbers = numbers.astype(np.float32)
    if why == FEW_AXES:
        assert sum(size > 1 for size in numbers.shape) < 2
        return
    assert rounding.is_kept(numbers, "float16") == why
    assert rounding.is_kept(numbers, "bfloat16") is None


def test_layers_that_share_or_equal_a_weight(tmp_path: Path) -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        given: torch.Tensor = self.conv(self.conv(self.conv(self.conv(x), 1), 1), 2)
        return given

    module: Any = Fn(forward, (3, 3), (3, 3), (3, 3))
    module.convs[2].weight = module.convs[1].weight
    module.convs[0].weight.data = module.convs[1].weight.data.clone()
    made = segonnx.export(module, X, tmp_path / "a", weights_dtype="bfloat16")
    assert SHARED not in storage(made.folder)["float32"]


def test_matrices_that_the_graph_holds_transposed(tmp_path: Path) -> None:
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.norm, self.last = nn.Linear(3, 16), nn.LayerNorm(16), nn.Linear(16, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            given: torch.Tensor = self.last(self.norm(self.first(x.movedim(1, -1))))
            return given.movedim(-1, 1)

    made = segonnx.export(Mixer(), X, tmp_path / "a", weights_dtype="float16")
    assert storage(made.folder)["numbers"] == 3 * 16 + 16 * 4


@pytest.mark.parametrize("opset", [17, 23])
def test_open_sizes_and_other_opsets(opset: int, tmp_path: Path) -> None:
    made = segonnx.export(Norms(), X, tmp_path / "a", weights_dtype="float16", opset=opset, dynamic=True, divisor=16)
    assert storage(made.folder)["tensors"] == 3
    larger = torch.randn(2, 3, 64, 48)
    assert run(made.folder, larger)[0].shape == (2, 4, 128, 96)


class Damaged:
    """An artifact in the making whose file is changed before it is accounted for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, change: Callable[[onnx.TensorProto], None]) -> None:
        own = accounting.account

        def account(path: Path, *arguments: Any) -> accounting.Account:
            model = onnx.load(path)
            tensor = max(model.graph.initializer, key=lambda one: int(np.prod(one.dims)))
            change(tensor)
            onnx.save(model, path)
            return own(path, *arguments)

        monkeypatch.setattr(accounting, "account", account)


def _next(tensor: onnx.TensorProto) -> None:
    """The largest number is two steps of float16 larger."""
    numbers = numpy_helper.to_array(tensor).copy()
    place = numbers.argmax()
    numbers.flat[place] = np.nextafter(np.nextafter(numbers.flat[place], np.float16(9)), np.float16(9))
    tensor.CopyFrom(numpy_helper.from_array(numbers, tensor.name))


def _other(tensor: onnx.TensorProto) -> None:
    """The numbers are bfloat16, where the export is of float16."""
    numbers = numpy_helper.to_array(tensor).astype(ml_dtypes.bfloat16)
    tensor.CopyFrom(numpy_helper.from_array(numbers, tensor.name))


@pytest.mark.parametrize(
    ("change", "says"), [(_next, "isn't the network's, rounded to float16"), (_other, "in bfloat16, and it should be")]
)
@pytest.mark.parametrize("folded", [False, True])
def test_a_weight_that_isnt_the_rounded_one_is_found(
    change: Callable[[onnx.TensorProto], None],
    says: str,
    folded: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Damaged(monkeypatch, change)
    module = Norms() if folded else Fn(lambda self, x: self.conv(x), (3, 8))
    with pytest.raises(ParityError, match=says):
        segonnx.export(module, X, tmp_path / "a", weights_dtype="float16", optimize="none")


def test_a_folded_weight_is_held_to_half_a_step() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((4, 3, 3, 3)).astype(np.float32)
    norm = {name: rng.uniform(0.5, 1.5, 4).astype(np.float32) for name in ("w", "b", "m", "v")}
    origin = Origin("batch_norm_weight", ("conv", "", "w", "b", "m", "v"), 1e-5, 0)
    read = {"conv": weight, **norm}.__getitem__
    factor = (norm["w"].astype(np.float64) / np.sqrt(norm["v"].astype(np.float64) + 1e-5)).reshape(-1, 1, 1, 1)
    right = rounding.rounded((weight * factor).astype(np.float32), "float16")
    accounting._explain_rounded("conv", right, origin, read, "float16")
    wrong = right.copy()
    wrong[0, 0, 0, 0] = np.nextafter(np.nextafter(wrong[0, 0, 0, 0], np.float16(9)), np.float16(9))
    with pytest.raises(ParityError, match="rounded to float16"):
        accounting._explain_rounded("conv", wrong, origin, read, "float16")
    assert UNIT["float16"] == np.finfo(np.float16).eps / 2
    assert UNIT["bfloat16"] == float(ml_dtypes.finfo(ml_dtypes.bfloat16).eps) / 2
    assert rounding.TINIEST["float16"] == np.finfo(np.float16).smallest_subnormal
    assert rounding.TINIEST["bfloat16"] == float(ml_dtypes.finfo(ml_dtypes.bfloat16).smallest_subnormal)


def test_a_network_that_overflows_with_rounded_weights_is_refused(tmp_path: Path) -> None:
    class Edge(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 1)
            self.conv.bias = None
            self.conv.weight.data[:] = torch.tensor([0.99999, 0.0, 0.0]).reshape(1, 3, 1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            given: torch.Tensor = self.conv(0 * x + 1)
            return x[:, :2] / (1 - given)

    with pytest.raises(ParityError, match="NaN or infinite values on .* with its weights in float16"):
        segonnx.export(Edge(), X, tmp_path / "a", weights_dtype="float16")


def test_arguments_are_looked_at_first(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="weights_dtype='int8' is none of float32, float16, bfloat16"):
        segonnx.export(Norms(), X, tmp_path / "a", weights_dtype="int8")  # type: ignore[arg-type]
    assert command("export", "unet-resnet18", "--weights-dtype", "int8").returncode == 2


def test_memory_for_the_copies_is_asked_for(tiny: ModelSpec) -> None:
    large = replace(tiny, parameters=10**9)
    more = resources.memory_needed(large, large.input_shape, rounded=True)
    assert more - resources.memory_needed(large, large.input_shape) == 4 * 10**9


def test_a_trained_folder_in_16_bits_is_predicted_packed_and_verified(tmp_path: Path) -> None:
    folder = handmade.write(tmp_path / "results", handmade.plans(), handmade.dataset(8))
    printed = export("--nnunet", folder, "--out", tmp_path / "a", "--weights-dtype", "float16")
    assert "float16 weights against float32: max" in printed
    (artifact,) = (tmp_path / "a").iterdir()
    loaded = segonnx.Artifact(artifact)
    x = np.random.default_rng(0).standard_normal((1, 12, 40, 48)).astype(np.float32)
    labels = loaded.predict(x, (3.0, 1.5, 1.5))
    assert labels.shape == (12, 40, 48)
    assert loaded.channels < len(loaded.manifest["labels"])
    packed = tmp_path / "a.zip"
    assert command("pack", artifact, "--format", "zip", "--out", packed).returncode == 0
    assert command("unpack", packed, "--out", tmp_path / "again").returncode == 0
    kept = export("--nnunet", folder, "--out", tmp_path / "a", "--weights-dtype", "float16")
    assert "kept" in kept
    refused = command("export", "--nnunet", folder, "--out", tmp_path / "a")
    assert "made with other arguments (weights_dtype)" in message(refused)


def test_twins_of_a_rounded_parameter() -> None:
    own = torch.arange(6.0).reshape(2, 3)
    parameters = {"a": own, "b": own.clone(), "c": own + 1}
    origins = {"a": Origin("parameter", ("a",))}
    assert rounding._twins(["a"], origins, parameters) == {"b": "a"}
    assert Rounded("float16", {"a": "a"}, 6, {}, {"b": "a"}).twins == {"b": "a"}
