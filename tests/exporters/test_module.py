"""``segonnx.export``: a caller's own module as an artifact."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import SimpleITK
import torch
from torch import nn

import segonnx
from segonnx.artifacts.verify import verify
from segonnx.errors import ConversionError, InputError, ParityError, SegonnxError
from segonnx.exporters import module_checks
from segonnx.exporters.module_inputs import Call
from tests.conftest import ROOT, run

pytestmark = pytest.mark.usefixtures("steps_here")

X = torch.zeros(1, 3, 64, 64)


class Net(nn.Module):
    """What users write: normalised weights, a buffer, dropout, a residual, several sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.linspace(0.5, 1.5, 24).view(1, 24, 1, 1))
        self.stem = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 24, 3, padding=1))
        self.norm = nn.BatchNorm2d(24)
        self.down = nn.Conv2d(24, 24, 3, 2, 1, groups=4, bias=False)
        self.drop = nn.Dropout2d(0.5)
        self.head = nn.Conv2d(48, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm(self.stem(x) * self.scale))
        z = nn.functional.interpolate(self.drop(self.down(y)), size=y.shape[2:], mode="bilinear")
        return self.head(torch.cat((y, z), 1))


class Volume(nn.Module):
    """A 3D network that gives its answers by name."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv3d(1, 16, 3, padding=1), nn.InstanceNorm3d(16, affine=True), nn.LeakyReLU())
        self.head, self.aux = nn.Conv3d(16, 3, 1), nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.body(x)
        return {"aux": self.aux(y.mean((2, 3, 4))), "out": self.head(y)}


def _logits(folder: Path, x: torch.Tensor) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    result: np.ndarray[Any, Any] = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    return result


def test_a_module_in_training_becomes_an_artifact_and_stays_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Net().train()
    module.norm.eval()  # as if it were frozen
    flags = {name: child.training for name, child in module.named_modules()}
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    labels = ["background", "liver", "spleen", "kidney"]
    done = segonnx.export(
        module, X, tmp_path / "mine", labels=labels, licence="mit", dynamic=True, divisor=2, input_name="image",
        output_name="scores", threads=2,
    )  # fmt: skip
    assert flags == {name: child.training for name, child in module.named_modules()}
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    manifest = verify(tmp_path / "mine").manifest
    assert done.folder == tmp_path / "mine"
    assert manifest["name"] == "mine"
    assert [label["name"] for label in manifest["labels"]] == labels
    assert manifest["weights"]["licence"] == "mit"
    assert manifest["weights"]["seed"] is None
    assert manifest["source"] == "module Net"
    assert (manifest["inputs"][0]["name"], manifest["outputs"][0]["name"]) == ("image", "scores")
    assert manifest["inputs"][0]["shape"][1] == 3
    parameters = manifest["parameters"]
    assert parameters["count"] == sum(parameter.numel() for parameter in module.parameters())
    assert parameters["used"] + parameters["folded"] == parameters["count"]
    module.eval()
    for size in ((1, 3, 64, 64), (2, 3, 70, 38)):
        x = torch.randn(size)
        with torch.inference_mode():
            assert np.allclose(_logits(done.folder, x), module(x).numpy(), atol=1e-4)
    with pytest.raises(InputError, match="overwrite=True"):
        segonnx.export(module, X, tmp_path / "mine")


def test_one_output_of_a_3d_module_is_taken(tmp_path: Path) -> None:
    module = Volume()
    x = torch.zeros(1, 1, 16, 16, 16)
    with pytest.raises(InputError, match="several outputs: choose one with output=KEY, where KEY is 'aux' or 'out'"):
        segonnx.export(module, x, tmp_path / "volume")
    done = segonnx.export(module, x, tmp_path / "volume", output="out")
    assert done.manifest["parameters"]["unused_reasons"] == {"output 'out' doesn't need it": 34}
    x = torch.randn(1, 1, 16, 16, 16)
    with torch.inference_mode():
        assert np.allclose(_logits(done.folder, x), module.eval()(x)["out"].numpy(), atol=1e-4)


def test_parameters_that_are_not_used_need_a_reason(tmp_path: Path) -> None:
    module = Given(lambda y: y)
    module.deep_head = nn.Conv2d(2, 2, 1)
    with pytest.raises(InputError, match=r"never runs deep_head, .*: say why, with unused=\{'deep_head\.\*': "):
        segonnx.export(module, X, tmp_path / "deep")
    done = segonnx.export(module, X, tmp_path / "deep", unused={r"deep_head\..*": "for training"})
    assert done.manifest["parameters"]["unused_reasons"] == {"for training": 6}


def test_tensors_in_a_list_hide_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As MONAI's DynUNet keeps them: they are copied, and torch has nothing to say of it."""
    module = Given(lambda y: y)
    vars(module)["heads"] = [torch.zeros(1)] * 2
    module.deep_head = nn.Conv2d(2, 2, 1)
    with pytest.raises(InputError, match=r"never runs deep_head"):
        segonnx.export(module, X, tmp_path / "kept")
    assert capfd.readouterr() == ("", "")


def test_what_torch_says_of_tensors_without_numbers_stays_unsaid(capfd: pytest.CaptureFixture[str]) -> None:
    """Which parameters are needed can't be told of a module that copies tensors on its way; it is exported without."""
    offset = torch.zeros(1)
    module = Given(lambda y: y + copy.deepcopy(offset))
    assert module_checks.needed(module, Call((X,), (None,))) is None
    assert capfd.readouterr() == ("", "")


SCRIPT = """
import torch
from torch import nn

class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3, padding=1)
        self.act = lambda x: x.relu()  # can't be pickled
    def forward(self, x):
        return self.act(self.conv(x))

print("started")
module = Mine()
"""


def test_the_lines_of_the_readme_run_in_a_script_without_a_guard(tmp_path: Path) -> None:
    (lines,) = re.findall(r"```python\n(import segonnx\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(lines.split("\n\n")[-1].splitlines()) == 4  # and the import: five
    (tmp_path / "script.py").write_text(SCRIPT + lines)
    result = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(r"started\nartifacts/mine [\d.e-]+\n", result.stdout)
    assert verify(tmp_path / "artifacts" / "mine", replay=False)
    colours = np.random.default_rng(0).integers(0, 255, (512, 512, 3)).astype(np.uint8)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(colours, isVector=True), str(tmp_path / "photo.png"))
    (typed,) = re.findall(r"# segonnx (predict .*)", lines)
    command, *paths = typed.split()
    done = run(command, *(tmp_path / path for path in paths))
    assert done.returncode == 0, done.stderr
    mask = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "mask.png")))
    assert mask.shape == (512, 512) and set(np.unique(mask)) == {0, 1}


def test_importing_segonnx_imports_nothing_heavy() -> None:
    heavy = ("torch", "numpy", "onnx", "timm")
    code = f"import sys, segonnx; print(segonnx.export.__name__, [n for n in {heavy} if n in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "export []\n"


class Restless(nn.Module):
    """Its answer is another at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.conv(x) * self.calls


class AlwaysDropping(nn.Module):
    """Drops in inference, too, as networks that sample their uncertainty do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(self.conv(x), 0.5, training=True)


@pytest.mark.parametrize("module", [Restless(), AlwaysDropping()])
def test_a_module_whose_file_computes_something_else_is_a_parity_error(module: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ParityError, match="numeric parity failed"):
        segonnx.export(module, X, tmp_path / "it")
    assert list(tmp_path.iterdir()) == []


class Branching(nn.Module):
    """What runs depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) if x.mean() > 0 else -self.conv(x)


def test_a_module_that_torch_cannot_convert_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="torch can't express branching in ONNX") as caught:
        segonnx.export(Branching(), X, tmp_path / "branching")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


class Given(nn.Module):
    """Gives what it is told to."""

    def __init__(self, given: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)
        self.given = given

    def forward(self, x: torch.Tensor) -> Any:
        return self.given(self.conv(x))


def _with(**attributes: Any) -> nn.Module:
    module = Given(lambda y: y)
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


def _nan() -> nn.Module:
    module = Given(lambda y: y)
    module.conv.weight.data[0] = torch.nan
    return module


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (Given(lambda y: (y, y)), {}, "several outputs: choose one with output=KEY, where KEY is a number from 0 to 1"),
        (Given(lambda y: {"out": y}), {"output": "mask"}, "gives no output 'mask' \\(output=\\): 'out'"),
        (Given(lambda _: "text"), {}, "gives a str, not a tensor"),
        (Given(lambda y: y.argmax(1)), {}, r"of torch\.int64; it must be float32 .* say result='labels'"),
        (Given(lambda y: y.mean()), {}, r"gives \(\) for 1 images: it must be \(N, classes"),
        (Given(lambda y: y.no_such), {}, "fails on the example input"),
        (Given(lambda y: y).half(), {}, r"conv\.weight is of torch\.float16; .* module\.float\(\)"),
        (_nan(), {}, r"conv\.weight holds NaN"),
        (_with(extra=nn.LazyConv2d(2, 1)), {}, r"extra\.weight has no values yet"),
        (_with(table=torch.rand(100)), {}, "table is a tensor that no state_dict holds: use register_buffer"),
        (Given(lambda y: y).to("meta"), {}, r"conv\.weight is on meta: give module\.cpu\(\)"),
        (lambda x: x, {}, r"a function is no torch\.nn\.Module"),
        (Given(lambda y: y), {"example": torch.zeros(3, 64, 64)}, r"\(3, 64, 64\) of torch.float32; it must be"),
        (Given(lambda y: y), {"example": torch.zeros(1, 3, 8, 8).double()}, "it must be float32"),
        (Given(lambda y: y), {"example": (X, X)}, "fails on the example input: .* takes 2 positional arguments"),
        (Given(lambda y: y), {"labels": ["one"]}, "has 2 classes; labels= names 1"),
    ],
)
def test_what_cannot_be_exported_is_said_in_one_line(
    module: Any, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    example = options.pop("example", X)
    with pytest.raises(InputError, match=message) as caught:
        segonnx.export(module, example, tmp_path / "it", **options)
    assert isinstance(caught.value, SegonnxError)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_one_class_that_a_flat_image_hardly_moves_is_exported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 1, 1))
    done = segonnx.export(module, X, tmp_path / "binary")
    flat = next(one for one in done.manifest["parity"]["inputs"] if one["kind"] == "constant")
    assert flat["spread"] < 1e-6  # its errors mean nothing relative to that
    assert flat["max_rel_error"] < 1e-4


@pytest.mark.slow  # folders of smp are exported by fast tests
def test_an_smp_model_agrees_with_itself(tmp_path: Path) -> None:
    import segmentation_models_pytorch as smp

    torch.manual_seed(0)
    model = smp.Unet("resnet18", encoder_weights=None, classes=3, decoder_channels=(32, 16, 16, 8, 8))
    model.freeze_encoder()
    done = segonnx.export(model, torch.zeros(1, 3, 64, 96), tmp_path / "unet", optimize="none")
    x = torch.rand(1, 3, 64, 96)
    with torch.inference_mode():
        expected = model.eval()(x).numpy()
    found = _logits(done.folder, x)
    assert np.abs(found - expected).max() <= 1e-4 * expected.std()
    assert {o.domain for o in onnx.load(done.folder / "model.onnx").opset_import} == {""}
