"""The checks after conversion must find what is wrong: each test damages a converted network and sees them fail."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from segonnx.artifacts.graph_sessions import RUNTIME, STABLE_NORM_RUNTIME
from segonnx.core.synthetic_inputs import ParityInput
from segonnx.errors import ParityError
from segonnx.exporters import accounting, parity_inputs
from segonnx.exporters.assemble import Converted, assemble
from segonnx.exporters.convert import Conversion, convert
from segonnx.exporters.parity import Parity, ParityCheck, measure
from segonnx.exporters.prepare import STATE, Preparation, Weights, prepare
from segonnx.exporters.provenance import Origin
from segonnx.optimize import stable_instance_norm
from segonnx.optimize.choices import Choices
from segonnx.sources import catalog
from segonnx.sources.catalog import ModelSpec

pytestmark = pytest.mark.usefixtures("steps_here")


@dataclass
class Case:
    spec: ModelSpec
    folder: Path
    artifact: Path
    converted: Converted
    inputs: tuple[ParityInput, ...]

    def change(self, name: str, change: Callable[[np.ndarray], np.ndarray], file: str = "model.onnx") -> None:
        """Replace an initializer of a graph of the artifact."""
        path = self.artifact / file
        model = onnx.load(path)
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), name))
        onnx.save(model, path)

    def measure(self) -> dict[str, Parity]:
        check = ParityCheck(self.inputs, self.spec, self.folder, threads=2)
        return measure(self.artifact, check, None, lambda _: None)

    def account(self, file: str = "model.onnx") -> accounting.Account:
        converted = self.converted
        return accounting.account(
            self.artifact / file, self.folder / STATE, converted.parameters, converted.graphs[file].origins,
            converted.unused, lambda _: None,
        )  # fmt: skip


def _make(spec: ModelSpec, folder: Path, optimize: Literal["cpu", "none"] = "cpu") -> Case:
    artifact = folder / "artifact"
    artifact.mkdir()
    planned = parity_inputs.plan(spec, spec.input_shape, dynamic=False)
    prepare(Preparation(spec, spec.input_shape, planned, folder), Weights(), 2, lambda _: None)
    path = folder / "model.onnx"
    converted = convert(Conversion(spec, spec.input_shape, False, optimize, Choices(), path), lambda _: None)
    assemble(path, converted, folder / STATE, artifact, lambda _: None)
    return Case(spec, folder, artifact, converted, planned)


@pytest.fixture(scope="module")
def made(tiny: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    encoder = catalog.find("encoder-mobilenetv3-small")
    return {
        "3d": _make(tiny, tmp_path_factory.mktemp("3d")),
        "2d": _make(replace(encoder, input_shape=(1, 3, 128, 128)), tmp_path_factory.mktemp("2d")),
    }


@pytest.fixture
def case(request: pytest.FixtureRequest, made: dict[str, Case], tmp_path: Path) -> Case:
    original = made[request.param]
    shutil.copytree(original.folder, tmp_path / "case")
    return replace(original, folder=tmp_path / "case", artifact=tmp_path / "case" / "artifact")


both = pytest.mark.parametrize("case", ["3d", "2d"], indirect=True)
volumes = pytest.mark.parametrize("case", ["3d"], indirect=True)
images = pytest.mark.parametrize("case", ["2d"], indirect=True)


def _one_percent(array: np.ndarray) -> np.ndarray:
    """One weight, the largest, 1 % larger."""
    flat = array.reshape(-1)
    flat[np.abs(flat).argmax()] *= 1.01
    return array


def _swap(array: np.ndarray) -> np.ndarray:
    """The first two output channels swapped."""
    array[[0, 1]] = array[[1, 0]]
    return array


@both
def test_an_undamaged_network_passes(case: Case) -> None:
    case.measure()
    for file in case.converted.graphs:
        account = case.account(file)
        assert account.used + account.folded + account.unused == sum(
            np.prod(np.asarray(shape), dtype=int) for shape in _shapes(case).values()
        )


@volumes
def test_the_graph_for_cpus_has_its_weights_in_the_other(case: Case) -> None:
    plain, rewritten = ((case.artifact / file).stat().st_size for file in ("model.onnx", "model.cpu.onnx"))
    assert rewritten < plain / 5
    graph = onnx.load(case.artifact / "model.cpu.onnx", load_external_data=False).graph
    places = [{entry.key: entry.value for entry in tensor.external_data} for tensor in graph.initializer]
    assert {place["location"] for place in places if place} == {"model.onnx"}
    held = {tensor.name: tensor for tensor in onnx.load(case.artifact / "model.onnx").graph.initializer}
    data = (case.artifact / "model.onnx").read_bytes()
    for tensor, place in zip(graph.initializer, places, strict=True):
        if place:
            offset, length = int(place["offset"]), int(place["length"])
            assert data[offset : offset + length] == held[tensor.name].raw_data


@volumes
def test_both_graphs_share_a_file_of_large_weights(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    _assemble_again(case, monkeypatch, 0)
    names = {path.name for path in case.artifact.iterdir()}
    assert names == {"model.onnx", "model.onnx.data", "model.cpu.onnx"}
    for file in ("model.onnx", "model.cpu.onnx"):
        graph = onnx.load(case.artifact / file, load_external_data=False).graph
        places = {entry.value for t in graph.initializer for entry in t.external_data if entry.key == "location"}
        assert places == {"model.onnx.data"}
        case.account(file)
    case.measure()


def _assemble_again(case: Case, monkeypatch: pytest.MonkeyPatch, external_bytes: int) -> None:
    """The last step of the conversion, with another bound on the weights that move into ``model.onnx``."""
    shutil.rmtree(case.artifact)
    case.artifact.mkdir()
    monkeypatch.setattr("segonnx.exporters.assemble.EXTERNAL_BYTES", external_bytes)
    assemble(case.folder / "model.onnx", case.converted, case.folder / STATE, case.artifact, lambda _: None)


@volumes
def test_a_graph_for_cpus_that_is_wrong_is_seen(case: Case) -> None:
    case.change("seg_outputs.4.weight", _one_percent, "model.cpu.onnx")
    with pytest.raises(ParityError, match="numeric parity failed on .*: model.cpu.onnx in ONNX Runtime differs"):
        case.measure()
    assert case.account()
    with pytest.raises(ParityError, match="isn't the network's"):
        case.account("model.cpu.onnx")


def _shapes(case: Case) -> dict[str, list[int]]:
    from safetensors import safe_open

    with safe_open(case.folder / STATE, "numpy") as tensors:
        return {name: tensors.get_slice(name).get_shape() for name in case.converted.parameters}


@volumes
@pytest.mark.parametrize(
    "name",
    [
        "conv_blocks_context.0.0.conv2.weight",
        "conv_blocks_context.1.0.norm1.weight",
        "upsample_layers.4.conv.weight",
        "conv_blocks_localization.4.0.conv1.weight",
        "seg_outputs.4.weight",
    ],
)
def test_one_weight_off_by_a_percent_is_seen_in_3d(case: Case, name: str) -> None:
    case.change(name, _one_percent)
    with pytest.raises(ParityError, match="numeric parity failed"):
        case.measure()


@images
@pytest.mark.parametrize("name", ["conv_stem.weight", "blocks.1.0.conv_pw.weight", "blocks.2.0.conv_dw.weight"])
def test_one_weight_off_by_a_percent_is_seen_in_2d(case: Case, name: str) -> None:
    case.change(name, _one_percent)
    with pytest.raises(ParityError, match="numeric parity failed"):
        case.measure()


@images
@pytest.mark.parametrize("name", ["conv_head.weight", "classifier.weight"])
def test_a_layer_off_by_a_percent_is_seen_where_one_of_its_million_weights_is_not(case: Case, name: str) -> None:
    case.change(name, lambda array: array * np.float32(1.01))
    with pytest.raises(ParityError, match="numeric parity failed"):
        case.measure()


@volumes
@pytest.mark.parametrize(
    "name", ["conv_blocks_context.2.0.conv1.weight", "conv_blocks_context.5.0.norm2.bias", "seg_outputs.4.bias"]
)
def test_two_swapped_channels_are_seen_in_3d(case: Case, name: str) -> None:
    case.change(name, _swap)
    with pytest.raises(ParityError, match="numeric parity failed"):
        case.measure()


@images
@pytest.mark.parametrize("name", ["conv_stem.weight", "conv_stem.weight_bias", "blocks.1.0.conv_pw.weight"])
def test_two_swapped_channels_are_seen_in_2d(case: Case, name: str) -> None:
    case.change(name, _swap)
    with pytest.raises(ParityError, match="numeric parity failed"):
        case.measure()


@both
def test_the_last_bit_of_any_weight_is_accounted_for(case: Case) -> None:
    name = next(name for name, origin in case.converted.plain.origins.items() if origin.kind == "parameter")
    case.change(name, lambda array: np.nextafter(array, np.float32(np.inf)))
    with pytest.raises(ParityError, match="bit by bit"):
        case.account()


@images
@pytest.mark.parametrize("suffix", ["weight", "weight_bias"])
def test_a_wrong_batch_norm_is_accounted_for(case: Case, suffix: str) -> None:
    case.change(f"conv_stem.{suffix}", _one_percent)
    with pytest.raises(ParityError, match=f"conv_stem.{suffix}.*BatchNorm"):
        case.account()


@both
def test_a_missing_parameter_needs_a_reason(case: Case) -> None:
    converted = case.converted
    case.converted = replace(converted, unused={})
    if converted.unused:
        with pytest.raises(ParityError, match="seg_outputs.0.weight isn't in the ONNX file, and no reason is known"):
            case.account()
    name = next(name for name, origin in converted.plain.origins.items() if origin.kind == "parameter")
    model = onnx.load(case.artifact / "model.onnx")
    kept = [tensor for tensor in model.graph.initializer if tensor.name != name]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    onnx.save(model, case.artifact / "model.onnx")
    case.converted = converted
    with pytest.raises(ParityError, match="isn't in the ONNX file, and no reason is known"):
        case.account()


@both
@pytest.mark.parametrize("origin", [None, Origin("constant")])
@pytest.mark.parametrize("shape", [(100,), (1, 100)])
def test_a_tensor_without_explanation_is_refused(case: Case, shape: tuple[int, ...], origin: Origin | None) -> None:
    model = onnx.load(case.artifact / "model.onnx")
    hidden = np.arange(100, dtype=np.float32).reshape(shape)
    model.graph.initializer.append(numpy_helper.from_array(hidden, "hidden"))
    onnx.save(model, case.artifact / "model.onnx")
    if origin is not None:
        plain = case.converted.plain
        case.converted = replace(case.converted, plain=replace(plain, origins={**plain.origins, "hidden": origin}))
    with pytest.raises(ParityError, match="hidden.*doesn't explain"):
        case.account()


@both
def test_other_names_of_input_and_output_are_refused(case: Case) -> None:
    model = onnx.load(case.folder / "model.onnx")
    model.graph.input[0].name = "x"
    for node in model.graph.node:
        node.input[:] = ["x" if name == "input" else name for name in node.input]
    onnx.save(model, case.folder / "model.onnx")
    with pytest.raises(ParityError, match="expected \\['input', 'logits'\\]"):
        assemble(case.folder / "model.onnx", case.converted, case.folder / STATE, case.artifact, lambda _: None)


@both
def test_an_invalid_graph_is_refused(case: Case) -> None:
    model = onnx.load(case.folder / "model.onnx")
    model.graph.node[0].op_type = "Convolution"
    onnx.save(model, case.folder / "model.onnx")
    with pytest.raises(ParityError, match="isn't valid ONNX"):
        assemble(case.folder / "model.onnx", case.converted, case.folder / STATE, case.artifact, lambda _: None)


def test_the_test_inputs_have_the_size_of_the_file() -> None:
    spec = catalog.find("stunet-h")
    planned = parity_inputs.plan(spec, spec.input_shape, dynamic=False)
    assert [test_input.shape for test_input in planned] == [spec.input_shape] * 3
    assert [test_input.kind for test_input in planned] == ["noise", "phantom", "constant"]


def test_the_plain_graph_is_spared_onnx_runtimes_norm(
    tiny: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = _make(tiny, tmp_path, "none")
    assert case.converted.graphs.keys() == {"model.onnx"}
    assert "InstanceNormalization" in case.converted.plain.operators
    assert case.converted.plain.rewrites == ()
    assert case.measure()["model.onnx"].runtime == STABLE_NORM_RUNTIME
    shutil.rmtree(case.artifact / "test_data_set_0")
    with monkeypatch.context() as patch, pytest.raises(ParityError, match="numeric parity failed"):
        patch.setattr(stable_instance_norm, "with_exact_sums", lambda _: None)
        case.measure()
    case.change("seg_outputs.4.weight", _one_percent)
    with pytest.raises(ParityError, match="numeric parity failed"):
        case.measure()


@images
def test_a_graph_without_such_norms_runs_as_it_is(case: Case) -> None:
    assert {parity.runtime for parity in case.measure().values()} == {RUNTIME}
