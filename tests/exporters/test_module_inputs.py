"""What a module is called with: inputs of a domain, inputs besides the image, open sizes, wrong arguments."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import segonnx
from segonnx.artifacts import testdata
from segonnx.core.synthetic_inputs import Array, ParityInput
from segonnx.errors import ConversionError, InputError, VerifyError
from segonnx.exporters import convert, parity_inputs, prepare
from segonnx.sources import catalog
from tests.artifacts.resealed import reseal
from tests.exporters.modules import Fn, X, run, torch_gives

pytestmark = pytest.mark.usefixtures("steps_here")

BRIGHT = torch.rand(X.shape, generator=torch.Generator().manual_seed(0)) + 0.1
DOMAINS: dict[str, Any] = {
    "log": lambda m, x: m.conv(x.log()),
    "square root": lambda m, x: m.conv(x.sqrt()),
    "gamma": lambda m, x: m.conv(x**0.45),
    "logit": lambda m, x: m.conv(torch.logit(x / 2)),
}


def kinds(done: Any) -> list[str]:
    return [one["kind"] for one in done.manifest["parity"]["inputs"]]


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_module_is_checked_on_values_that_it_takes(domain: str, tmp_path: Path) -> None:
    module = Fn(DOMAINS[domain], (3, 2))
    done = segonnx.export(module, BRIGHT, tmp_path / "it")
    assert kinds(done) == ["resampled", "constant", "example"]
    assert np.allclose(run(done.folder, BRIGHT)[0], torch_gives(module, BRIGHT).numpy(), atol=1e-4)
    recorded = testdata.read(done.folder / "test_data_set_0/input_0.pb")
    assert not np.array_equal(recorded, BRIGHT.numpy())  # whose picture may be somebody's
    assert set(recorded.ravel()) <= set(BRIGHT.numpy().ravel())
    segonnx.verify(done.folder)


def test_an_example_is_among_the_test_inputs_and_so_are_the_callers(tmp_path: Path) -> None:
    module = Fn(lambda m, x: m.conv(x), (3, 2))
    assert kinds(segonnx.export(module, X, tmp_path / "flat")) == ["noise", "phantom", "constant"]
    done = segonnx.export(module, BRIGHT, tmp_path / "it", test_inputs=[-BRIGHT, X])
    assert kinds(done) == ["noise", "phantom", "constant", "example", "test", "test"]


def test_a_flat_example_leaves_the_domain_to_test_inputs(tmp_path: Path) -> None:
    module = Fn(DOMAINS["log"], (3, 2))
    with pytest.raises(
        InputError, match="NaN or infinite values on noise, in PyTorch itself: its inputs have a domain"
    ):
        segonnx.export(module, torch.ones_like(X), tmp_path / "it")
    done = segonnx.export(module, torch.ones_like(X), tmp_path / "it", test_inputs=[BRIGHT])
    assert kinds(done) == ["resampled", "constant", "test"]


def test_values_on_which_the_module_itself_fails_are_said_to_be_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="NaN or infinite values on its example input, in PyTorch itself"):
        segonnx.export(Fn(DOMAINS["log"], (3, 2)), -BRIGHT, tmp_path / "it")
    with pytest.raises(InputError, match="on its test input, in PyTorch itself"):
        segonnx.export(Fn(DOMAINS["log"], (3, 2)), BRIGHT, tmp_path / "it", test_inputs=[-BRIGHT])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            torch.zeros(1, 3, 32, 64),
            r"a test input is \(1, 3, 32, 64\) of torch.float32, the example is \(1, 3, 32, 48\)",
        ),
        (torch.zeros(1, 1, 32, 48), r"a test input is \(1, 1, 32, 48\)"),
        (torch.zeros(1, 3, 32, 48).double(), "the test input is .* it must be float32"),
        (torch.full(X.shape, torch.nan), "the test input holds NaN"),
        ((X, X), "has other tensors than the example"),
        ("text", "the test input is a str"),
    ],
)
def test_test_inputs_are_like_the_example(given: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        segonnx.export(Fn(lambda m, x: m.conv(x), (3, 2)), X, tmp_path / "it", test_inputs=[given])


class Clicks(nn.Module):
    """A network of an image, a map of clicks and a factor, with three outputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, image: torch.Tensor, clicks: torch.Tensor, factor: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.conv(torch.cat([image, clicks], 1)) * factor.reshape(-1, 1, 1, 1)
        return {"quality": y.mean((1, 2, 3)), "mask": y, "found": (y > 0).sum((2, 3))}


CLICKS = {"factor": torch.tensor([2.0]), "image": X, "clicks": torch.rand(1, 1, 32, 48)}


@pytest.mark.parametrize("example", [CLICKS, (X, CLICKS["clicks"], CLICKS["factor"])], ids=["by name", "by place"])
@pytest.mark.parametrize("result", [None, "labels"])
def test_several_inputs_and_outputs_are_checked_each(example: Any, result: Any, tmp_path: Path) -> None:
    module = Clicks()
    done = segonnx.export(
        module, example, tmp_path / "it", output="mask", result=result, input_names=["image", "clicks", "factor"],
        output_names=["mask", "quality", "found"],
    )  # fmt: skip
    content = done.manifest
    assert [one["name"] for one in content["inputs"]] == ["image", "clicks", "factor"]
    assert [(one["name"], one["dtype"]) for one in content["outputs"]] == [
        ("mask", "uint8" if result else "float32"), ("quality", "float32"), ("found", "int64")
    ]  # fmt: skip
    assert content["parity"]["more_outputs"].keys() == {"quality", "found"}
    x = torch.randn(X.shape)
    expected = torch_gives(module, x, CLICKS["clicks"], CLICKS["factor"])
    mask, quality, found = run(done.folder, x, CLICKS["clicks"], CLICKS["factor"])
    assert np.allclose(quality, expected["quality"].numpy(), atol=1e-4)
    assert np.array_equal(found, expected["found"].numpy())
    wanted = expected["mask"].argmax(1) if result else expected["mask"]
    assert np.mean(np.abs(mask - wanted.numpy()) < 1e-3) > 0.999
    segonnx.verify(done.folder)
    card = (done.folder / "README.md").read_text("utf-8")
    assert "- **Another input:** `clicks`, float32, 1 x 1 x 32 x 48" in card
    assert "- **Another output:** `quality`, float32" in card
    names: dict[str, Any] = {}
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert code is not None
    exec(code[1].replace('"model.onnx"', repr(str(done.folder / "model.onnx"))), names)
    assert names["labels"].shape == (1, 32, 48)


def test_a_recorded_output_that_differs_is_found_whichever_it_is(tmp_path: Path) -> None:
    done = segonnx.export(Clicks(), CLICKS, tmp_path / "it", output="mask", output_names=["mask", "quality", "found"])
    for number in (1, 2):
        path = done.folder / f"test_data_set_0/output_{number}.pb"
        kept, array = path.read_bytes(), testdata.read(path)
        onnx.save_tensor(onnx.numpy_helper.from_array(array + array.dtype.type(1)), path)
        reseal(done.folder, rehash=True)
        with pytest.raises(VerifyError, match=f"output {number} of model.onnx differs from the recorded one"):
            segonnx.verify(done.folder)
        path.write_bytes(kept)


def test_open_sizes_hold_for_every_input(tmp_path: Path) -> None:
    names = ["mask", "quality", "found"]
    done = segonnx.export(
        Clicks(), CLICKS, tmp_path / "it", output="mask", output_names=names, dynamic=True, divisor=16
    )
    shapes = [one["shape"] for one in done.manifest["inputs"]]
    assert shapes[0][0] == shapes[1][0] == shapes[2][0] == "batch"
    assert shapes[0][2:] == shapes[1][2:] and all(isinstance(size, str) for size in shapes[1][2:])
    mask, quality, _ = run(done.folder, torch.randn(3, 3, 16, 80), torch.rand(3, 1, 16, 80), torch.ones(3))
    assert (mask.shape, quality.shape) == ((3, 2, 16, 80), (3,))


def test_who_has_one_input_alone_says_so(tmp_path: Path) -> None:
    from segonnx.bench import targets

    done = segonnx.export(Clicks(), CLICKS, tmp_path / "it", output="mask")
    with pytest.raises(InputError, match="takes 3 inputs; segonnx predict has images alone"):
        segonnx.Artifact(done.folder).predict(np.zeros((3, 1, 32, 48), np.float32), (1.0, 1.0, 1.0))
    with pytest.raises(InputError, match="takes 3 inputs; segonnx bench times networks of one"):
        targets.from_artifact(done.folder, lambda _: None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_names": ["a", "b"]}, "input_names= has 2 names for 3 inputs"),
        ({"input_names": ["a", "a", "b"]}, "'a' is the name of two inputs or outputs"),
        ({"input_names": "abc"}, "input_names= takes a list of names"),
        ({"input_name": "x", "input_names": ["x", "y", "z"]}, "input_name= and input_names= say the same"),
        ({"output_names": ["clicks"], "output": "mask"}, "'clicks' is the name of two"),
        ({"output_names": ["a", "b"], "output": "mask"}, "output_names= has 2 names for 3 outputs"),
        ({"output_names": ["a", " ", "b"]}, "an output needs a name of one letter or more"),
    ],
)
def test_names_that_do_not_fit_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as caught:
        segonnx.export(Clicks(), CLICKS, tmp_path / "it", **options)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({"image": X, "clicks": X}, "doesn't fit the module's forward: missing a required argument: 'factor'"),
        ({**CLICKS, "more": X}, "doesn't fit the module's forward: got an unexpected keyword argument 'more'"),
        ((X, X.double(), X), "holds a tensor of torch.float64"),
        ((X, 3), "holds a int"),
        ({}, "is a dict; it must be a tensor"),
        (torch.zeros(0, 3, 32, 32), r"\(0, 3, 32, 32\), which holds nothing: no size may be 0"),
    ],
)
def test_examples_that_do_not_fit_are_refused(example: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        segonnx.export(Clicks(), example, tmp_path / "it", output="mask")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"divisor": 0}, "divisor=0: spatial sizes are multiples of a whole number from 1"),
        ({"divisor": -4, "dynamic": True}, "divisor=-4"),
        (
            {"dynamic": True},
            r"\(1, 3, 32, 48\), and with dynamic=True its spatial sizes must be multiples of divisor=32",
        ),
        ({"input_name": "a", "output_name": "a"}, "'a' is the name of two"),
        ({"input_name": ""}, "an input needs a name"),
        ({"mean": [0.5] * 3}, "mean= goes with std="),
        ({"mean": [0.5], "std": [0.2] * 3}, "mean= gives 1 numbers and std= 3"),
        ({"mean": [0.5] * 3, "std": [0.2, 0.0, 0.2]}, "std= takes numbers of at least"),
        ({"mean": [0.5] * 3, "std": [0.2, float("nan"), 0.2]}, "mean= and std= take finite numbers"),
    ],
)
def test_wrong_arguments_are_refused_before_any_work(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Fn, "forward", lambda *_: pytest.fail("the module ran"))
    with pytest.raises(InputError, match=message):
        segonnx.export(Fn(lambda m, x: m.conv(x), (3, 2)), X, tmp_path / "it", **options)


@pytest.mark.parametrize("name", ["model.onnx", "artifact.zip", "best.pt"])
def test_a_path_that_names_a_file_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="names a file; an artifact is a folder, such as"):
        segonnx.export(Fn(lambda m, x: m.conv(x), (3, 2)), X, tmp_path / name)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 32, 8, 8)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.head = nn.ConvTranspose2d(32, 2, 8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        patches = self.patches(x)
        n, c, h, w = patches.shape
        tokens = self.layer(patches.flatten(2).transpose(1, 2))
        return self.head(tokens.transpose(1, 2).reshape(n, c, h, w))


@pytest.mark.parametrize(
    "module",
    [
        Attention(),
        nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(3, 2, 7)),
        nn.Sequential(nn.CircularPad2d(3), nn.Conv2d(3, 2, 7)),
        Fn(lambda m, x: m.conv(x), (3, 2)),
    ],
    ids=["attention", "reflected", "circular", "plain"],
)
def test_one_image_of_one_step_leaves_batch_and_sizes_open(module: nn.Module, tmp_path: Path) -> None:
    done = segonnx.export(module, torch.zeros(1, 3, 16, 16), tmp_path / "it", dynamic=True, divisor=16)
    assert [isinstance(size, str) for size in done.manifest["inputs"][0]["shape"]] == [True, False, True, True]
    for size in ((1, 3, 16, 48), (3, 3, 64, 32)):
        x = torch.randn(size)
        assert np.allclose(run(done.folder, x)[0], torch_gives(module, x).numpy(), atol=1e-4)


@pytest.mark.parametrize(
    "forward",
    [lambda m, x: m.conv(x.reshape(1, 3, 32, 48)), lambda m, x: m.conv(x) + torch.zeros(32, 48)],
    ids=["batch", "sizes"],
)
def test_a_module_of_one_size_has_no_open_ones(forward: Any, tmp_path: Path) -> None:
    with pytest.raises(
        ConversionError, match="can't be exported with open sizes: in PyTorch it fails on noise 2x3x48x64"
    ):
        segonnx.export(Fn(forward, (3, 2)), X, tmp_path / "it", dynamic=True, divisor=16)
    assert list(tmp_path.iterdir()) == []


def test_an_axis_that_torch_fixed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(convert, "_traced", lambda _spec, shape, **_: shape)  # as torch itself would trace it
    with pytest.raises(ConversionError, match="can't be exported with open sizes: torch fixed the batch at 1"):
        segonnx.export(Attention(), torch.zeros(1, 3, 48, 64), tmp_path / "it", dynamic=True, divisor=16)


def test_code_that_branches_on_values_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def branches(module: Fn, x: torch.Tensor) -> torch.Tensor:
        y = module.conv(x)
        return y if y.mean() > 0 else -y

    with pytest.raises(
        ConversionError, match=r"its code branches on values of its input.* \(test_module_inputs\.py, line"
    ):
        segonnx.export(Fn(branches, (3, 2)), X, tmp_path / "it")
    assert capfd.readouterr() == ("", "")


def test_a_network_whose_input_is_known_must_take_noise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from segonnx.errors import ParityError

    spec = catalog.find("encoder-lcnet-100")
    monkeypatch.setattr(ParityInput, "make", lambda self, _modality: np.full(self.shape, np.nan, np.float32))
    planned = (ParityInput("noise", (1, 3, 64, 64)),)
    with pytest.raises(ParityError, match="gives NaN or infinite values on noise 1x3x64x64, in PyTorch itself"):
        prepare.prepare(
            prepare.Preparation(spec, (1, 3, 64, 64), planned, tmp_path), prepare.Weights(), 1, lambda _: None
        )


def test_resampled_values_are_of_their_own_channel() -> None:
    given: Array = np.stack([np.full((4, 4), 1.0), np.arange(16).reshape(4, 4)])[None].astype(np.float32)
    drawn = parity_inputs._resampled(given, (2, 2, 8, 8), 0)
    assert np.all(drawn[:, 0] == 1) and len(np.unique(drawn[:, 1])) > 4
