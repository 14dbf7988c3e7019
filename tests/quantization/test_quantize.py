"""``segonnx quantize``: what it makes, and that its verdict finds what is wrong."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper
from torch import nn

import segonnx
from segonnx.bench import result, targets
from segonnx.bench import run as bench
from segonnx.bench.plan import Settings
from segonnx.bench.result import OK, Precision
from segonnx.bench.rounds import Rule
from segonnx.core import hardware
from segonnx.core.tolerances import TOLERANCES
from segonnx.errors import CheckFailed, InputError, VerifyError
from segonnx.quantization import cases, graphs, run
from segonnx.quantization.run import Request
from segonnx.report import charts
from tests import handmade
from tests.artifacts.resealed import reseal
from tests.conftest import export, message
from tests.conftest import run as command
from tests.predict.conftest import save, volume

pytestmark = pytest.mark.usefixtures("steps_here")

SIZE = 48


def blobs(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An image (1, 1, y, x) of smooth blobs with some noise, and where they are."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE]
    image = np.zeros((SIZE, SIZE))
    for _ in range(3):
        at, width = random.uniform(8, SIZE - 8, 2), random.uniform(4, 8)
        image = np.maximum(image, np.exp(-((y - at[0]) ** 2 + (x - at[1]) ** 2) / (2 * width**2)))
    noisy = image + 0.03 * random.standard_normal(image.shape)
    return noisy[None, None].astype(np.float32), (image > 0.5)[None].astype(np.int64)


class Net(nn.Module):
    """Four convolutions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.third = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).relu()
        x = self.second(x).relu()
        given: torch.Tensor = self.head(self.third(x).relu())
        return given


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An artifact of a network that was trained to find blobs, and a folder of images of them."""
    from tests.conftest import steps_in_process

    root = tmp_path_factory.mktemp("trained")
    net = Net()
    images, labels = zip(*(blobs(seed) for seed in range(100, 116)), strict=True)
    x, y = torch.from_numpy(np.concatenate(images)), torch.from_numpy(np.concatenate(labels))
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(120):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    (root / "images").mkdir()
    for seed in range(12):
        np.save(root / "images" / f"{seed:02}.npy", blobs(seed)[0])
    with steps_in_process():
        made = segonnx.export(net, torch.from_numpy(blobs(0)[0]), root / "blobs", labels=("nothing", "blob"))
    return made.folder, root / "images"


def request(trained: tuple[Path, Path], out: Path, **how: object) -> Request:
    return Request(trained[0], trained[1], out, threads=2, **how)  # type: ignore[arg-type]


def test_a_network_in_int8_keeps_its_labels(trained: tuple[Path, Path], tmp_path: Path) -> None:
    artifact, images = trained
    done = command("quantize", artifact, "--calibration", images, "--out", tmp_path, "--json", tmp_path / "q.json")
    assert done.returncode == 0, done.stderr
    made = tmp_path / "blobs"
    content = segonnx.verify(made).manifest
    entry = content["quantization"]
    assert (entry["int8"], entry["float32"]) == (3, ["head.weight"])
    assert entry["calibration"] == {"method": "MinMax", "images": 9, "windows": 9}
    assert entry["verdict"]["images"] == 3
    assert 0.99 <= entry["verdict"]["worst_dice"] <= entry["verdict"]["dice"]["1"] <= 1
    assert entry["bytes"]["int8"] < entry["bytes"]["float32"]
    operators = {node.op_type for node in onnx.load(made / "model.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear", "Conv"} <= operators
    assert json.loads((tmp_path / "q.json").read_text())["verdict"] == entry["verdict"]
    assert "3 layers in int8, 1 in float32; Dice of int8 against float32" in done.stdout
    assert "**Computes in int8:** 3 convolutions" in (made / "README.md").read_text()
    assert content["parity"]["tolerance"]["dtype"] == "int8"
    packed = tmp_path / "a.zip"
    assert command("pack", made, "--format", "zip", "--out", packed).returncode == 0
    assert command("verify", made, "--backend", "openvino").returncode == 0
    again = command("quantize", artifact, "--calibration", images, "--out", tmp_path)
    assert (again.returncode, message(again)) == (2, f"segonnx: {made} exists: --overwrite replaces it")
    twice = command("quantize", made, "--calibration", images, "--out", tmp_path / "twice")
    assert "is quantized already" in message(twice)


def narrowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ranges of what the third layer gives are a tenth of what they should be."""
    damage(monkeypatch, 0.1)


def scaled(times: float) -> Callable[[pytest.MonkeyPatch], None]:
    """What lets the scale of the third layer's weight in the file be off by a factor."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        own = graphs.quantize

        def quantize(candidate: graphs.Candidate, found: graphs.Ranges, layers: tuple[str, ...], path: Path) -> None:
            own(candidate, found, layers, path)
            model = onnx.load(path)
            (scale,) = (one for one in model.graph.initializer if one.name == "third.weight_scale")
            scale.CopyFrom(
                onnx.numpy_helper.from_array(np.float32(times) * onnx.numpy_helper.to_array(scale), scale.name)
            )
            onnx.save(model, path)

        monkeypatch.setattr(graphs, "quantize", quantize)

    return patch


@pytest.mark.parametrize("damaged", [narrowed, scaled(10.0), scaled(0.1)], ids=["ranges", "scale10", "scale0.1"])
def test_a_damaged_calibration_is_caught(
    damaged: Callable[[pytest.MonkeyPatch], None],
    trained: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    damaged(monkeypatch)
    with pytest.raises(CheckFailed, match=r"blobs: Dice of int8 .* --min-dice asks for 0.99, and nothing is written"):
        run.quantize(request(trained, tmp_path))
    assert not list(tmp_path.iterdir())
    done = command("quantize", trained[0], "--calibration", trained[1], "--out", tmp_path)
    assert done.returncode == 1


def damage(monkeypatch: pytest.MonkeyPatch, times: float) -> None:
    """Let the scale of what the third layer gives be off by a factor."""
    own = graphs.ranges

    def ranges(candidate: graphs.Candidate, *arguments: object) -> graphs.Ranges:
        found: graphs.Ranges = own(candidate, *arguments)  # type: ignore[arg-type]
        (third,) = candidate.layers["third.weight"]
        node = next(one for one in onnx.load(candidate.path).graph.node if one.name == third)
        relu = next(one for one in onnx.load(candidate.path).graph.node if node.output[0] in one.input)
        for name in (node.output[0], relu.output[0]):
            if name in found:
                low, high = found[name]
                found[name] = (times * low, times * high)
        return found

    monkeypatch.setattr(graphs, "ranges", ranges)


def test_the_layer_that_hurts_goes_back_to_float32(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(monkeypatch, 0.1)
    done = run.quantize(request(trained, tmp_path, budget=2))
    entry = done.manifest["quantization"]
    assert entry["float32"] == ["head.weight", "third.weight"]
    assert max(entry["sensitivity"], key=entry["sensitivity"].get) == "third.weight"
    assert set(entry["sensitivity"]) == {"first.weight", "second.weight", "third.weight"}
    assert done.verdict.least[0] >= 0.99


def test_a_replay_has_a_bound(trained: tuple[Path, Path], tmp_path: Path) -> None:
    made = run.quantize(request(trained, tmp_path)).folder
    allowed = segonnx.verify(made).manifest["parity"]["tolerance"]
    assert TOLERANCES["float32"].rms_rel_error <= allowed["rms_rel_error"] <= TOLERANCES["int8"].rms_rel_error

    def loosen(content: dict[str, object]) -> None:
        content["parity"]["tolerance"]["rms_rel_error"] = 0.9  # type: ignore[index]

    def pretend(content: dict[str, object]) -> None:
        content["parity"]["tolerance"] = {"dtype": "float32", **asdict(TOLERANCES["float32"])}  # type: ignore[index]

    for change in (loosen, pretend):
        reseal(made, change)
        with pytest.raises(VerifyError, match="allows its replay .* more than segonnx does"):
            segonnx.verify(made)


def test_another_scale_in_the_file_is_found_by_the_replay(trained: tuple[Path, Path], tmp_path: Path) -> None:
    made = run.quantize(request(trained, tmp_path)).folder
    model = onnx.load(made / "model.onnx")
    for tensor in model.graph.initializer:
        if tensor.name.endswith("_scale") and "third" in tensor.name:
            tensor.CopyFrom(onnx.numpy_helper.from_array(10 * onnx.numpy_helper.to_array(tensor), tensor.name))
    onnx.save(model, made / "model.onnx")
    reseal(made, rehash=True)
    with pytest.raises(VerifyError, match="the replay of model.onnx differs"):
        segonnx.verify(made)


def test_the_bench_takes_int8_as_it_is(trained: tuple[Path, Path], tmp_path: Path) -> None:
    made = run.quantize(request(trained, tmp_path)).folder
    target = targets.from_artifact(made, lambda _: None)
    assert target.computes == "int8"
    rows = bench.bench([target], Settings(("ort", "openvino"), (1,), Rule(rounds=1)), None, lambda _: None).rows
    assert [row.status for row in rows] == [OK, OK]
    found = segonnx.verify(made).manifest["quantization"]["verdict"]
    precision = Precision(
        "int8", (made / "model.onnx").stat().st_size, found["label_agreement"], min(found["dice"].values())
    )
    assert {row.precision for row in rows} == {precision}


def test_a_bench_of_one_network_in_two_precisions(trained: tuple[Path, Path], tmp_path: Path) -> None:
    made = run.quantize(request(trained, tmp_path / "q")).folder
    out, plan = tmp_path / "r.json", tmp_path / "plan.json"
    asked = ("--artifact", trained[0], "--artifact", made, "--backend", "ort", "--rounds", 1, "--no-roofline")
    done = command("bench", *asked, "--plan-out", plan)
    assert done.returncode == 0, done.stderr
    done = command("bench", "--plan", plan, "--artifact", trained[0], "--artifact", made, "--json", out)
    assert done.returncode == 0, done.stderr
    read = result.read(out)
    assert [(row.model, row.network) for row in read.rows] == [("blobs", "blobs"), ("blobs int8", "blobs")]
    assert "least Dice" in done.stdout
    assert [chart.section for chart in charts.charts(read)].count("Precision against speed") == 1
    twice = command("bench", *asked, "--artifact", made)
    assert "would have rows of one name, blobs int8" in message(twice)


def test_a_trained_folder_goes_through_predicts_preprocessing(tmp_path: Path) -> None:
    folder = handmade.write(tmp_path / "results", handmade.plans(), handmade.dataset(4))
    export("--nnunet", folder, "--out", tmp_path / "a")
    (artifact,) = (tmp_path / "a").iterdir()
    (tmp_path / "images").mkdir()
    for i in range(4):
        save(volume(i, (14, 30, 40)), tmp_path / "images" / f"c{i}_0000.nii.gz")
    done = run.quantize(Request(artifact, tmp_path / "images", tmp_path / "q", min_dice=0.0, threads=2))
    assert done.manifest["quantization"]["calibration"]["windows"] > 3
    assert done.manifest["inference"] == segonnx.verify(artifact).manifest["inference"]
    labels = tmp_path / "labels.nii.gz"
    assert command("predict", done.folder, tmp_path / "images" / "c0_0000.nii.gz", labels).returncode == 0
    assert labels.exists()


@pytest.mark.slow  # a folder of nnU-Net, above, is quantized, too
def test_a_network_of_volumes_keeps_its_norms_whole(tmp_path: Path) -> None:
    from dataclasses import replace

    from segonnx.exporters import pipeline
    from segonnx.exporters.pipeline import Settings as How
    from tests.conftest import tiny_system

    spec = replace(tiny_system(), options={"depth": 1, "width": 8}, name="volumes")
    made = pipeline.export(spec, How(tmp_path / "a", shape=(32, 32, 64), weights_dtype="float16"))
    (tmp_path / "x").mkdir()
    random = np.random.default_rng(0)
    for i in range(2):
        np.save(tmp_path / "x" / f"{i}.npy", random.standard_normal((1, 1, 32, 32, 64)).astype(np.float32))
    done = run.quantize(Request(made.folder, tmp_path / "x", tmp_path / "q", min_dice=0.0, threads=2))
    key = "InstanceNormalization"
    assert done.manifest["operators"][key] == made.manifest["operators"][key] > 1
    assert any("calibrated on noise" in warning for warning in done.warnings)
    assert any("calibrated on 1 image" in warning for warning in done.warnings)
    assert "storage" not in done.manifest["weights"]


def test_a_processor_without_int8_is_told_of(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "cpu_flags", lambda: ["avx2"])
    warnings = run.quantize(request(trained, tmp_path)).warnings
    assert any("no instructions for int8 (VNNI)" in warning for warning in warnings)


@pytest.mark.parametrize(
    ("kind", "why"), [("float16", "emulates"), ("dynamic", "statically"), ("int4", "there is int8")]
)
def test_what_cant_work_is_refused_with_the_reason(
    kind: str, why: str, trained: tuple[Path, Path], tmp_path: Path
) -> None:
    done = command("quantize", trained[0], "--calibration", trained[1], "--out", tmp_path, "--to", kind)
    assert done.returncode == 2
    assert message(done).startswith(f"segonnx: --to {kind}: ")
    assert why in message(done)


def _one(images: Path, folder: Path) -> Path:
    (folder / "one").mkdir()
    (folder / "one" / "0.npy").write_bytes((images / "00.npy").read_bytes())
    return folder / "one"


def _broken(images: Path, folder: Path) -> Path:
    _one(images, folder)
    (folder / "one" / "1.npy").write_bytes(b"\x93NUMPY")
    return folder / "one"


def _wrong(images: Path, folder: Path) -> Path:
    _one(images, folder)
    np.save(folder / "one" / "1.npy", np.zeros((1, 1, SIZE, SIZE + 1), np.float32))
    return folder / "one"


def _nan(images: Path, folder: Path) -> Path:
    _one(images, folder)
    np.save(folder / "one" / "1.npy", np.full((1, 1, SIZE, SIZE), np.nan, np.float32))
    return folder / "one"


def _empty(images: Path, folder: Path) -> Path:
    _one(images, folder)
    np.save(folder / "one" / "1.npy", np.zeros((1, 1, SIZE, SIZE), np.float32))
    return folder / "one"


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (_one, "holds 1 image: one to calibrate on"),
        (_broken, "isn't a .npy file"),
        (_wrong, "the network takes float32"),
        (_nan, "NaN or infinite"),
        (_empty, "float32 finds no label in the held-out images"),
    ],
)
def test_images_that_tell_nothing_are_refused(
    make: Callable[[Path, Path], Path], why: str, trained: tuple[Path, Path], tmp_path: Path
) -> None:
    source = make(trained[1], tmp_path)
    with pytest.raises(InputError, match=why):
        run.quantize(Request(trained[0], source, tmp_path / "out", threads=2))
    assert not (tmp_path / "out" / "blobs").exists()


def test_an_image_is_calibrated_on_or_held_out(trained: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="it can be but one of them"):
        run.quantize(request(trained, tmp_path, held_out=trained[1] / "00.npy"))
    with pytest.raises(InputError, match="is no Dice"):
        run.quantize(request(trained, tmp_path, min_dice=99.0))


def test_one_image_in_four_is_held_out() -> None:
    found = [cases.Case(str(i), (Path(f"{i}.npy"),)) for i in range(9)]
    calibration, held = cases.split(found, Path())
    assert [one.name for one in held] == ["0", "4", "8"]
    assert len(calibration) == 6
    calibration, held = cases.split(found[:2], Path())
    assert (len(calibration), len(held)) == (1, 1)


def test_onnx_runtime_computes_every_layer_in_8_bits(tmp_path: Path) -> None:
    """A residual block: a value with two users, sums, pooling, upsampling and a Concat between convolutions."""
    random = np.random.default_rng(0)
    tensors = [onnx.numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")]

    def convolution(name: str, x: str, inputs: int = 8) -> onnx.NodeProto:
        tensors.append(
            onnx.numpy_helper.from_array(random.standard_normal((8, inputs, 3, 3)).astype(np.float32), f"{name}.weight")
        )
        return helper.make_node("Conv", [x, f"{name}.weight"], [name], pads=[1, 1, 1, 1])

    nodes = [
        convolution("stem", "x", 1),
        helper.make_node("Relu", ["stem"], ["first"]),
        helper.make_node("MaxPool", ["first"], ["pooled"], kernel_shape=[2, 2], strides=[2, 2]),
        convolution("one", "pooled"),
        helper.make_node("Relu", ["one"], ["positive"]),
        convolution("two", "positive"),
        helper.make_node("Add", ["two", "pooled"], ["sum"]),
        helper.make_node("Resize", ["sum", "", "scales"], ["larger"], mode="nearest"),
        helper.make_node("Concat", ["larger", "first"], ["both"], axis=1),
        convolution("three", "both", 16),
        convolution("head", "three"),
    ]
    given = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 1, 16, 16])]
    wanted = [helper.make_tensor_value_info("head", onnx.TensorProto.FLOAT, [1, 8, 16, 16])]
    graph = helper.make_graph(nodes, "block", given, wanted, tensors)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "model.onnx"
    )
    candidate = graphs.candidate(tmp_path, tmp_path)
    assert (len(candidate.layers), candidate.head) == (4, ("head.weight",))
    x = random.standard_normal((1, 1, 16, 16)).astype(np.float32)
    found = graphs.ranges(candidate, [x], tmp_path)
    operators = {}
    for part in (list(candidate.layers), ["two.weight"]):
        graphs.quantize(candidate, found, part, tmp_path / "int8.onnx")
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(tmp_path / "fused.onnx")
        onnxruntime.InferenceSession(str(tmp_path / "int8.onnx"), options, providers=["CPUExecutionProvider"])
        operators[len(part)] = Counter(node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node)
    whole, alone = operators[4], operators[1]
    assert (whole["QLinearConv"], whole["Conv"] + whole["FusedConv"]) == (4, 1)
    assert (whole["QLinearAdd"], whole["QLinearConcat"]) == (1, 1)
    assert alone["QLinearConv"] == 1
    assert (alone["QLinearAdd"], alone["QLinearConcat"]) == (0, 0)
    expected, made = (graphs.answers(path, [x], 1) for path in (tmp_path / "model.onnx", tmp_path / "int8.onnx"))
    assert graphs.distance(expected, made) < 0.1


def test_thin_convolutions_of_volumes_stay_float32(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for middle in (16, 8):
        sizes = [1, 16, middle, 16, 2]
        tensors, nodes = [], []
        for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
            weight = random.standard_normal((outputs, inputs, 3, 3, 3)).astype(np.float32)
            tensors.append(onnx.numpy_helper.from_array(weight, f"{i}.weight"))
            nodes.append(helper.make_node("Conv", [f"x{i}", f"{i}.weight"], [f"x{i + 1}"], pads=[1] * 6))
        tensors.append(onnx.numpy_helper.from_array(np.ones((2, 2, 1, 1, 1), np.float32), "end"))
        nodes.append(helper.make_node("ConvTranspose", ["x4", "end"], ["x5"]))  # which is the head
        given = [helper.make_tensor_value_info("x0", onnx.TensorProto.FLOAT, [1, 1, 4, 8, 8])]
        wanted = [helper.make_tensor_value_info("x5", onnx.TensorProto.FLOAT, [1, 2, 4, 8, 8])]
        graph = helper.make_graph(nodes, "volumes", given, wanted, tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.save(model, tmp_path / "model.onnx")
        found = graphs.candidate(tmp_path, tmp_path)
        if middle == 16:
            assert (set(found.layers), set(found.head)) == ({"1.weight", "2.weight"}, {"0.weight", "3.weight"})
        else:  # nothing else would be left
            assert (len(found.layers), found.head) == (4, ())
