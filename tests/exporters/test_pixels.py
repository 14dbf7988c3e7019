"""``--input uint8-nhwc`` and ``uint8-nchw``: artifacts that take pictures of 8 bits, from export to prediction."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (as everybody calls it)
from torch import nn

import segonnx
from segonnx.artifacts import layout, manifest, packing, testdata
from segonnx.artifacts.packing import bundle, triton
from segonnx.artifacts.verify import verify
from segonnx.bench import targets
from segonnx.core import synthetic_inputs
from segonnx.core.pixels import Layout, Pixels, arranged, channels_first
from segonnx.errors import InputError, ParityError, VerifyError
from segonnx.exporters import parity_inputs, pipeline, pixels
from segonnx.exporters.pipeline import Settings, folder_name
from segonnx.exporters.preprocessing import of as entry_of
from segonnx.optimize.pixels import PixelsPass
from segonnx.predict import config, preprocessing
from segonnx.predict.preprocessing import Times
from segonnx.sources import catalog
from segonnx.sources.catalog import ModelSpec
from tests.artifacts.resealed import reseal
from tests.conftest import message, run
from tests.exporters.modules import Fn, torch_gives

pytestmark = pytest.mark.usefixtures("steps_here")

NAME = "smp:fpn:tu-resnet10t"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LAYOUTS: tuple[Layout, ...] = ("NHWC", "NCHW")
EVERY = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16).repeat(3, 1)
"""A picture with every number that a byte can be, in each colour."""


def user(picture: np.ndarray[Any, Any], mean: Any = MEAN, std: Any = STD) -> torch.Tensor:
    """What somebody writes in PyTorch for pictures (N, C, H, W)."""
    numbers = [torch.tensor(one)[:, None, None] for one in (mean, std)]
    x: torch.Tensor = (torch.from_numpy(picture) / 255 - numbers[0]) / numbers[1]
    return x


def runs(model: Any, x: np.ndarray[Any, Any], name: str = "input") -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    found: np.ndarray[Any, Any] = session.run(None, {name: x})[0]
    return found


class Decoder(nn.Module):
    """Upsampling in front of a convolution with few outputs, which a rewrite puts in another order."""

    def __init__(self, channels: int = 3, classes: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Conv2d(channels, 16, 3, 2, 1), nn.Conv2d(16, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(F.interpolate(self.stem(x), scale_factor=2, mode="nearest"))
        return y


def network(first: ir.Value) -> ir.Model:
    """A graph that gives what it takes, so that the numbers in front of a network are seen."""
    same = ir.node("Identity", [first])
    same.outputs[0].name, same.outputs[0].shape, same.outputs[0].type = "logits", first.shape, first.type
    return ir.Model(ir.Graph([first], [same.outputs[0]], nodes=[same], opset_imports={"": 20}, name="g"), ir_version=9)


def value(*shape: int | str, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
    return ir.Value(name="input", shape=ir.Shape(shape), type=ir.TensorType(dtype))


@pytest.mark.parametrize("order", LAYOUTS)
def test_the_pass_gives_the_very_bits_of_pytorch_and_of_predict(order: Layout) -> None:
    known = Pixels(order, MEAN, STD)
    model = network(value("n", 3, "h", "w"))
    PixelsPass(known)(model)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    (x,) = proto.graph.input
    assert x.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    sizes = [dim.dim_param or dim.dim_value for dim in x.type.tensor_type.shape.dim]
    assert sizes == {"NHWC": ["n", "h", "w", 3], "NCHW": ["n", 3, "h", "w"]}[order]
    assert proto.graph.node[0].op_type == "Cast"  # nothing else takes bytes in TensorRT
    found = runs(proto.SerializeToString(), arranged(EVERY, order))
    assert np.array_equal(found, user(EVERY).numpy())
    assert np.array_equal(found, known.normalised(EVERY))
    assert np.array_equal(known.nearest(found), EVERY)
    for channel, numbers in enumerate(EVERY[0].astype(np.float32)):
        statistics = {"mean": MEAN[channel], "std": STD[channel]}
        how = config.ChannelNormalization(config.PICTURE, use_mask=False, statistics=statistics)
        preprocessing._normalise_voxels(numbers, how)
        assert np.array_equal(numbers, found[0, channel])


@pytest.mark.parametrize("first", [
    value("n", 4, "h", "w"), value("n", "c", "h", "w"), value(1, 3, 8, 8, 8),
    value("n", 3, "h", "w", dtype=ir.DataType.UINT8),
])  # fmt: skip
def test_the_pass_takes_no_other_graph(first: ir.Value) -> None:
    with pytest.raises(ir.passes.PreconditionError, match=r"in place|take the place of an input \(N, 3, H, W\)"):
        PixelsPass(Pixels("NHWC", MEAN, STD))(network(first))


def test_shapes_go_there_and_back() -> None:
    known = Pixels("NHWC", MEAN, STD)
    assert known.shape((2, 3, 64, 96)) == [2, 64, 96, 3]
    assert channels_first(["n", "h", "w", 3], "NHWC") == ["n", 3, "h", "w"]
    assert channels_first((2, 3, 4), None) == [2, 3, 4]
    assert replace(known, layout="NCHW").shape((2, 3, 64, 96)) == channels_first((2, 3, 64, 96), "NCHW")


def test_test_pictures_hold_all_that_bytes_can() -> None:
    shape = (2, 3, 64, 96)
    noise, phantom, flat = (synthetic_inputs.pictures(name, shape) for name in synthetic_inputs.NAMES)
    assert {one.dtype.name for one in (noise, phantom, flat)} == {"uint8"}
    assert {one.shape for one in (noise, phantom, flat)} == {shape}
    assert np.unique(noise).size == 256
    assert phantom.min() == 0 and phantom.max() > 150 and np.ptp(flat) == 0
    # The phantom is the same as that of networks on float, in steps of a byte.
    shown = user(phantom).numpy()
    assert np.abs(shown - synthetic_inputs.phantom(shape, "RGB")).max() < 0.51 / 255 / min(STD)
    with pytest.raises(ValueError, match="no input is called"):
        synthetic_inputs.pictures("nothing", shape)


@pytest.mark.parametrize("order", LAYOUTS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_module_gets_what_its_pictures_are(order: Layout, dynamic: bool, tmp_path: Path) -> None:
    kind: Any = f"uint8-{order.lower()}"
    module, example = Decoder(), torch.randn(1, 3, 64, 96)
    done = segonnx.export(
        module, example, tmp_path / "it", mean=MEAN, std=STD, input_kind=kind, dynamic=dynamic, check_with="openvino"
    )
    content = done.manifest
    (x,), given = content["inputs"], content["preprocessing"]
    assert (x["dtype"], x["layout"], given["in_graph"], given["mean"]) == ("uint8", order, True, [*MEAN])
    assert (content["arguments"]["input"], content["arguments"]["shape"]) == (kind, [1, 3, 64, 96])
    assert manifest.image_shape(content)[1] == 3
    assert manifest.checked_shape(content) == [1, 3, 64, 96]
    graphs = [content, content["cpu_graph"]] if "cpu_graph" in content else [content]
    assert len(graphs) == 2 or dynamic
    for graph in graphs:
        operators = graph["operators"]
        assert (operators["Cast"], operators["Sub"], operators["Div"]) == (1, 1, 2)
        assert operators.get("Transpose", 0) == (1 if order == "NHWC" else 0)
    kinds = [one["kind"] for one in content["parity"]["inputs"]]
    assert kinds == ["noise", "phantom", "constant", *(["noise", "phantom"] if dynamic else []), "example"]
    assert content["parity"]["also"][0]["runtime"] == "openvino"
    recorded = testdata.read(done.folder / layout.INPUT)
    assert recorded.dtype == np.uint8
    assert recorded.shape == ((1, 64, 96, 3) if order == "NHWC" else (1, 3, 64, 96))
    assert {one.runtime for one in segonnx.verify(done.folder, backend=["ort", "openvino"]).also} == {"openvino"}
    picture = np.random.default_rng(1).integers(0, 256, (1, 3, 64, 96), np.uint8)
    expected = torch_gives(module, user(picture)).numpy()
    for model in manifest.models(content):
        found = runs(done.folder / model, arranged(picture, order))
        assert np.abs(found - expected).max() < 1e-4 * expected.std(), model


def test_only_the_image_is_a_picture(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Decoder(4)

        def forward(self, image: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.body(torch.cat([image, depth], 1))
            return y

    module = Two()
    given = {"image": torch.randn(1, 3, 32, 32), "depth": torch.rand(1, 1, 32, 32)}
    folder = segonnx.export(module, given, tmp_path / "it", mean=MEAN, std=STD, input_kind="uint8-nhwc").folder
    image, depth = verify(folder).manifest["inputs"]
    assert (image["dtype"], image["shape"]) == ("uint8", [1, 32, 32, 3])
    assert depth == {"name": "depth", "shape": [1, 1, 32, 32], "dtype": "float32"}
    picture = np.random.default_rng(0).integers(0, 256, (1, 3, 32, 32), np.uint8)
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, {"input": arranged(picture, "NHWC"), "depth": given["depth"].numpy()})[0]
    expected = torch_gives(module, user(picture), given["depth"]).numpy()
    assert np.abs(found - expected).max() < 1e-4 * expected.std()


def test_a_module_whose_input_has_a_domain_is_checked_on_pictures_of_it(tmp_path: Path) -> None:
    module = Fn(lambda m, x: m.conv((x - 0.2).log()), (3, 2))
    example = 0.3 + 0.7 * torch.rand(1, 3, 32, 48)
    done = segonnx.export(module, example, tmp_path / "it", mean=[0.0] * 3, std=[1.0] * 3, input_kind="uint8-nchw")
    parity = done.manifest["parity"]["inputs"]
    assert [one["kind"] for one in parity] == ["resampled", "constant", "example"]
    assert testdata.read(done.folder / layout.INPUT).min() >= 76  # 0.3 of 255


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    return catalog.find(NAME)


@pytest.fixture(scope="module")
def plain(spec: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network on float32."""
    return pipeline.export(spec, Settings(tmp_path_factory.mktemp("plain"), shape=(64, 96))).folder


@pytest.fixture(scope="module")
def bytewise(spec: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network with the same weights, on pictures."""
    out = tmp_path_factory.mktemp("bytewise")
    done = run("export", NAME, "--shape", "64,96", "--input", "uint8-nhwc", "--out", out)
    assert done.returncode == 0, done.stderr
    return out / folder_name(catalog.find(NAME))


def test_the_weights_are_those_of_the_network_on_float(plain: Path, bytewise: Path) -> None:
    one, other = manifest.read(plain), manifest.read(bytewise)
    assert one["weights"]["sha256"] == other["weights"]["sha256"]
    assert one["parameters"] == other["parameters"]
    assert "in_graph" not in one["preprocessing"] and "layout" not in one["inputs"][0]
    assert one["preprocessing"]["mean"] == other["preprocessing"]["mean"] == [*MEAN]
    more = {"Cast": 1, "Div": 2, "Sub": 1, "Transpose": 1}
    assert all(other["operators"][name] - one["operators"].get(name, 0) == count for name, count in more.items())


def test_an_artifact_with_these_arguments_is_kept_and_no_other(bytewise: Path) -> None:
    again = ("export", NAME, "--shape", "64,96", "--out", bytewise.parent)
    kept = run(*again, "--input", "uint8-nhwc")
    assert kept.returncode == 0 and "kept" in kept.stdout
    for other in ("float", "uint8-nchw"):
        refused = run(*again, "--input", other)
        assert refused.returncode == 2
        assert "made with other arguments (" in message(refused) and "input" in message(refused)


@pytest.mark.parametrize("result", ["labels", "probabilities"])
def test_the_graph_may_end_in_labels_too(result: Any, tmp_path: Path) -> None:
    module = Decoder()
    folder = segonnx.export(
        module, torch.zeros(1, 3, 64, 96), tmp_path / "it", mean=MEAN, std=STD, input_kind="uint8-nhwc", result=result
    ).folder
    content = verify(folder).manifest
    assert len(manifest.models(content)) == 2
    picture = np.random.default_rng(1).integers(0, 256, (1, 3, 64, 96), np.uint8)
    expected = torch_gives(module, user(picture))
    for model in manifest.models(content):
        found = runs(folder / model, arranged(picture, "NHWC"))
        if result == "labels":
            assert np.mean(found == expected.argmax(1).numpy()) > 0.999
        else:
            assert np.abs(found - expected.softmax(1).numpy()).max() < 1e-4


def test_the_card_shows_lines_that_run(bytewise: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = (bytewise / layout.CARD).read_text("utf-8")
    assert "`input`, uint8, 1 x 64 x 96 x 3 as (N, H, W, C) in the order R, G, B; pictures of 8 bits" in card
    lines = card.split("```python\n")[1].split("```")[0]
    assert "np.zeros((1, 64, 96, 3), np.uint8)" in lines
    monkeypatch.chdir(bytewise)
    scope: dict[str, Any] = {}
    exec(lines, scope)
    assert scope["labels"].shape == (1, 64, 96)


def test_other_programs_are_told_of_bytes(bytewise: Path, tmp_path: Path) -> None:
    packing.pack(bytewise, "triton", tmp_path / "triton")
    given = next((tmp_path / "triton").rglob("config.pbtxt")).read_text().split("output")[0]
    assert "data_type: TYPE_UINT8" in given and "dims: [1, 64, 96, 3]" in given
    packing.pack(bytewise, "bundle", tmp_path / "bundle")
    data = json.loads((tmp_path / "bundle" / "configs" / "metadata.json").read_bytes())
    image = data["network_data_format"]["inputs"]["image"]
    assert (image["num_channels"], image["spatial_shape"], image["dtype"]) == (3, [64, 96], "uint8")
    assert image["value_range"] == [0, 255]


def test_open_sizes_are_told_in_the_order_of_the_pictures(tmp_path: Path) -> None:
    done = segonnx.export(
        Decoder(), torch.zeros(1, 3, 32, 32), tmp_path / "it", mean=MEAN, std=STD, input_kind="uint8-nhwc", dynamic=True
    )
    given = triton.config(done.manifest).split("output")[0]
    assert "max_batch_size: 8" in given and "dims: [-1, -1, 3]" in given
    image = bundle.metadata(done.manifest)["network_data_format"]["inputs"]["image"]
    assert (image["num_channels"], image["spatial_shape"]) == (3, ["*", "*"])


@pytest.mark.slow  # an encoder of timm's, whole
def test_a_folder_of_smp_brings_its_encoders_mean(tmp_path: Path) -> None:
    import segmentation_models_pytorch as smp

    torch.manual_seed(0)
    network = smp.FPN("tu-tf_efficientnet_lite0", encoder_weights=None, classes=2, encoder_depth=3).eval()
    network.save_pretrained(tmp_path / "saved")
    settings = ("--shape", "64,64", "--input", "uint8-nchw", "--out", tmp_path / "out")
    done = run("export", "--smp", tmp_path / "saved", *settings)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "out").iterdir()
    given = manifest.read(folder)["preprocessing"]
    assert (given["mean"], given["in_graph"], given["input_space"]) == ([0.5] * 3, True, "RGB")
    picture = np.random.default_rng(1).integers(0, 256, (1, 3, 64, 64), np.uint8)
    expected = torch_gives(network, user(picture, [0.5] * 3, [0.5] * 3)).numpy()
    assert np.abs(runs(folder / "model.onnx", picture) - expected).max() < 1e-3 * expected.std()


def test_a_bench_says_that_it_times_float(bytewise: Path) -> None:
    with pytest.raises(InputError, match="takes pictures of 8 bits; segonnx bench times networks on float32"):
        targets.from_artifact(bytewise, lambda _: None)
    done = run("bench", "--artifact", bytewise)
    assert (done.returncode, len(message(done).splitlines())) == (2, 1)


@pytest.mark.parametrize("size", [(64, 96), (150, 131), (40, 50), (70, 30)])
def test_pictures_get_the_labels_of_the_network_on_float(
    size: tuple[int, int], plain: Path, bytewise: Path, tmp_path: Path
) -> None:
    from PIL import Image

    smooth = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
    Image.fromarray(smooth).resize(size[::-1], Image.Resampling.BICUBIC).save(tmp_path / "in.png")
    labels, probabilities = [], []
    for number, folder in enumerate((plain, bytewise)):
        done = run("predict", folder, tmp_path / "in.png", tmp_path / f"{number}.png", "--probabilities")
        assert done.returncode == 0, done.stderr
        labels.append(np.asarray(Image.open(tmp_path / f"{number}.png")))
        probabilities.append(np.load(tmp_path / f"{number}.npz")["probabilities"])
    padded = any(have < need for have, need in zip(size, (64, 96), strict=True))
    # What fills up a window is the mean, and in bytes what is nearest to it.
    assert np.mean(labels[0] == labels[1]) > (0.98 if padded else 0.9999)
    assert np.abs(probabilities[0] - probabilities[1]).max() < (0.05 if padded else 1e-5)
    assert len(np.unique(labels[0])) > 3


def test_numbers_that_are_no_bytes_are_refused_by_predict(bytewise: Path) -> None:
    artifact = segonnx.Artifact(bytewise)
    with pytest.raises(InputError, match=r"must lie in 0\.\.255"):
        artifact.predict(np.full((3, 1, 64, 96), 256.0), (1.0, 1.0, 1.0))
    exact = np.random.default_rng(0).integers(0, 255, (3, 1, 64, 96))
    rounded = artifact.predict(exact + 0.4, (1.0, 1.0, 1.0))
    assert np.array_equal(rounded, artifact.predict(exact, (1.0, 1.0, 1.0)))


def cropped(content: dict[str, Any]) -> None:
    for key in ("mean", "std"):
        content["preprocessing"][key] = content["preprocessing"][key][:2]


@pytest.mark.parametrize(("change", "said"), [
    (lambda c: c["preprocessing"].pop("in_graph"), "the graph takes uint8, the manifest says that it doesn't"),
    (lambda c: c["preprocessing"].update(in_graph=False), "in_graph"),
    (lambda c: [c["preprocessing"].pop(key) for key in ("mean", "std")], "'mean' is a dependency of 'in_graph'"),
    (lambda c: c["inputs"][0].pop("layout"), "'layout' is a required property"),
    (lambda c: c["inputs"][0].update(layout="NWHC"), "is not one of ['NHWC', 'NCHW']"),
    (lambda c: c["inputs"][0].update(layout="NCHW"), "preprocessing/mean: 3 numbers for 64 channels"),
    (lambda c: c["inputs"][0].update(dtype="float32"), "inputs/0"),
    (lambda c: c["inputs"][0].update(shape=[1, 64, 96, 3, 1]), "inputs/0/shape"),
    (cropped, "preprocessing/mean: 2 numbers for 3 channels"),
    (lambda c: c["parity"]["inputs"][0].update(shape=[1, 3, 64, 96]), "parity/inputs/0/shape: [1, 3, 64, 96] is no"),
])  # fmt: skip
def test_manifests_that_contradict_themselves_are_found(change: Any, said: str, bytewise: Path) -> None:
    content = manifest.read(bytewise)
    manifest.parse(manifest.seal(content), Path("manifest.json"))
    changed = copy.deepcopy(content)
    change(changed)
    with pytest.raises(VerifyError) as caught:
        manifest.parse(manifest.seal(changed), Path("manifest.json"))
    assert said in str(caught.value)


def test_a_float_graph_is_no_graph_of_pictures(plain: Path, bytewise: Path, tmp_path: Path) -> None:
    import shutil

    artifact = shutil.copytree(plain, tmp_path / plain.name)
    known = manifest.read(bytewise)

    def claim(content: dict[str, Any]) -> None:
        content["inputs"], content["preprocessing"] = known["inputs"], known["preprocessing"]
        content["parity"]["inputs"] = known["parity"]["inputs"]

    reseal(artifact, claim)
    with pytest.raises(VerifyError, match=r"model.onnx has the inputs .*float32"):
        verify(artifact)


@pytest.mark.parametrize("which", ["pixels/mean", "pixels/std", "float32_255.0"])
def test_a_graph_that_prepares_pictures_otherwise_fails_the_replay(which: str, bytewise: Path, tmp_path: Path) -> None:
    import shutil

    artifact = shutil.copytree(bytewise, tmp_path / bytewise.name)
    model = onnx.load(artifact / "model.onnx")
    constant = next(one for one in model.graph.initializer if one.name == which)
    numbers = onnx.numpy_helper.to_array(constant) * np.float32(0.9)
    constant.CopyFrom(onnx.numpy_helper.from_array(numbers, which))
    onnx.save(model, artifact / "model.onnx")
    reseal(artifact, rehash=True)
    with pytest.raises(VerifyError, match=r"the replay of model.onnx differs"):
        verify(artifact)


def test_a_pass_that_prepares_otherwise_fails_the_export(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(PixelsPass, "_constant", staticmethod(
        lambda build, what, numbers: build.constant(what, np.array(numbers[::-1], np.float32).reshape(1, -1, 1, 1))
    ))  # fmt: skip
    with pytest.raises(ParityError, match="numeric parity failed on noise"):
        segonnx.export(Decoder(), torch.zeros(1, 3, 32, 32), tmp_path / "it", mean=MEAN, std=STD,
                       input_kind="uint8-nhwc")  # fmt: skip
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("arguments", "said"), [
    (("stunet-s",), "is for 2D networks that see pictures, and stunet-s takes volumes: leave it out"),
    ((NAME, "totalsegmentator"), "totalsegmentator takes volumes"),
    (("--nnunet", "nowhere"), "nnU-Net's images are prepared in other ways: leave it out"),
    ((NAME, "--mean", "0.5", "--std", "0.5"), "takes 3 channels; --mean and --std give 1"),
])  # fmt: skip
def test_what_takes_no_pictures_is_one_line_before_any_work(arguments: Any, said: str, tmp_path: Path) -> None:
    done = run("export", *arguments, "--input", "uint8-nhwc", "--out", tmp_path / "out")
    assert (done.returncode, len(message(done).splitlines())) == (2, 1)
    assert said in message(done)
    assert not (tmp_path / "out").exists()


def other(channels: int, **more: Any) -> ModelSpec:
    options = {"architecture": "fpn", "encoder": "resnet18", "in_channels": channels}
    made = catalog.find("smp:fpn:resnet18")
    return replace(made, options=options, input_shape=(1, channels, 64, 64), num_classes=2, **more)


def test_nothing_is_put_into_the_graph_that_nobody_knows(tmp_path: Path) -> None:
    settings = Settings(tmp_path, shape=(64, 64), input="uint8-nchw")
    with pytest.raises(InputError, match="nothing tells those of smp:fpn:resnet18's pictures: give --mean and --std"):
        pipeline.export(other(4, modality="other"), settings)
    with pytest.raises(InputError, match="of up to 16 channels; smp:fpn:resnet18 takes more"):
        pixels.require(other(17), "uint8-nhwc")
    known = {"modality": "RGB", "note": "", "mean": [*MEAN], "std": [*STD]}
    for strange in ({"input_space": "BGR"}, {"input_range": [0, 255]}):
        described = {"preprocessing": {**known, "input_space": "RGB", "input_range": [0, 1], **strange}}
        with pytest.raises(InputError, match="is for RGB from 0 to 1, and smp:fpn:resnet18 was trained on"):
            pixels.taken(other(3, described=described), "uint8-nhwc")
    with pytest.raises(InputError, match="of RGB from 0 to 1|images that nnU-Net prepares"):
        pixels.require(other(3, family="nnunet"), "uint8-nhwc")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("example", "more", "said"), [
    (torch.zeros(1, 3, 32, 32), {}, "give mean= and std="),
    (torch.zeros(1, 3, 32, 32, 32), {}, "input_kind= uint8-nhwc is for 2D networks that see pictures"),
    (torch.zeros(1, 3, 32, 32), {"input_kind": "uint8"}, "takes float, uint8-nhwc, uint8-nchw; found 'uint8'"),
])  # fmt: skip
def test_modules_are_told_by_their_arguments(example: Any, more: Any, said: str, tmp_path: Path) -> None:
    conv = nn.Conv2d(3, 2, 3, padding=1) if example.ndim == 4 else nn.Conv3d(3, 2, 3, padding=1)
    with pytest.raises(InputError) as caught:
        segonnx.export(conv, example, tmp_path / "it", **{"input_kind": "uint8-nhwc", **more})
    assert said in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_four_channels_and_their_own_mean(tmp_path: Path) -> None:
    mean, std = (0.4, 0.5, 0.6, 0.0), (0.2, 0.3, 0.4, 1.0)
    folder = segonnx.export(
        Decoder(4), torch.zeros(1, 4, 64, 64), tmp_path / "it", mean=mean, std=std, input_kind="uint8-nhwc"
    ).folder
    assert verify(folder).manifest["inputs"][0]["shape"] == [1, 64, 64, 4]
    assert "(N, H, W, C); pictures" in (folder / layout.CARD).read_text("utf-8")


@pytest.mark.slow
def test_a_tuning_is_made_and_taken(spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGONNX_CACHE", str(tmp_path / "cache"))
    settings = Settings(tmp_path / "tuned", shape=(32, 32), input="uint8-nhwc", tune=True, tune_time=1.0)
    tuned = pipeline.export(spec, settings)
    assert tuned.manifest["tuning"]["kept"] in ("stock", "default", "tuned")
    verify(tuned.folder)
    taken = replace(settings, out=tmp_path / "taken", tune=False, tuning=tuned.folder / layout.MANIFEST)
    assert pipeline.export(spec, taken).manifest["inputs"][0]["layout"] == "NHWC"


def test_what_pytorch_and_the_graph_are_given_are_the_same_picture(spec: ModelSpec) -> None:
    taken = pixels.taken(spec, "uint8-nhwc")
    test_input = parity_inputs.plan(taken, (1, 3, 64, 96), dynamic=False)[0]
    theirs = parity_inputs.graph_feeds(test_input, taken)["input"]
    assert (theirs.shape, theirs.dtype.name) == ((1, 64, 96, 3), "uint8")
    assert np.array_equal(user(theirs.transpose(0, 3, 1, 2)).numpy(), parity_inputs.feeds(test_input, taken)["input"])
    assert pixels.taken(spec, "float") is spec and pixels.taken(taken, "uint8-nhwc") is taken


def test_artifacts_on_float_are_as_they_were(spec: ModelSpec) -> None:
    test_input = parity_inputs.plan(spec, (1, 3, 64, 96), dynamic=False)[1]
    assert np.array_equal(parity_inputs.graph_feeds(test_input, spec)["input"], test_input.make("RGB"))
    assert parity_inputs.graph_shape(test_input, spec) == [1, 3, 64, 96]
    assert "in_graph" not in entry_of(spec)


def test_predict_knows_the_place_of_the_channels(bytewise: Path) -> None:
    how = config.read(manifest.read(bytewise), bytewise)
    assert (how.window, how.pixel_layout) == ((64, 96), "NHWC")
    image = np.random.default_rng(0).integers(0, 256, (3, 1, 64, 96), np.uint8)
    prepared = preprocessing.prepare(image, (1.0, 1.0, 1.0), how, None, Times()).array
    from segonnx.predict import pixels as windows

    assert np.array_equal(windows.given(prepared.reshape(1, 3, 64, 96), how), arranged(image[None, :, 0], "NHWC"))
