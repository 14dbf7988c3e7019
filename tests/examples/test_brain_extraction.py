"""The example of a trained network on a real image."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import scipy.ndimage
import SimpleITK
import torch
from PIL import Image

from segonnx.artifacts import layout
from segonnx.predict import images
from tests.conftest import ROOT

EXAMPLE = ROOT / "examples" / "brain_extraction.py"


def installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


needs_files = pytest.mark.skipif(
    not (installed("deepbet") and installed("nilearn")),
    reason="deepbet and nilearn aren't installed: pip install --no-deps -c constraints.txt deepbet nilearn",
)


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("brain_extraction", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def start(*arguments: object, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the example as its user would, with a folder in front of what Python imports."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, filter(None, (path, ROOT))))}
    command: list[str | Path] = [sys.executable, EXAMPLE, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)


@needs_files
@pytest.mark.slow
def test_the_artifacts_give_torchs_mask_on_the_images_grid(example: ModuleType, tmp_path: Path) -> None:
    done = start("--artifacts", tmp_path / "artifacts", "--results", tmp_path / "results", "--rounds", 1)
    assert done.returncode == 0, done.stderr

    same = re.findall(r"^  (.+): (\S+) % of (\S+) voxels the same, (\d+) differ$", done.stdout, re.MULTILINE)
    assert [(name, differ) for name, _, _, differ in same] == [
        ("deepbet-box", "0"),
        ("deepbet-mask", "0"),
        ("the brain mask", "0"),
    ]
    differences = re.findall(r"probabilities differ by (\S+) at most", done.stdout)
    assert len(differences) == 2 and max(map(float, differences)) < 1e-5
    dice = re.search(r"^Dice against nilearn's brain mask.*: (\S+)$", done.stdout, re.MULTILINE)
    assert dice is not None and float(dice[1]) > 0.97
    for name in ("deepbet-box", "deepbet-mask"):
        assert (tmp_path / "artifacts" / name / layout.MODEL).is_file()

    image = SimpleITK.ReadImage(str(example.packaged("nilearn", example.TEMPLATE)))
    mask = SimpleITK.ReadImage(str(tmp_path / "results" / "brain_mask.nii.gz"))
    for geometry in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(mask, geometry)() == getattr(image, geometry)()
    brain = SimpleITK.GetArrayFromImage(mask)
    assert set(np.unique(brain)) == {0, 1}
    own = SimpleITK.GetArrayFromImage(image)
    assert example.dice(brain, own > example.BRAIN * own.max()) == pytest.approx(float(dice[1]), abs=1e-4)
    assert f"The brain: {np.count_nonzero(brain) / 1000:.0f} ml" in done.stdout

    picture = np.asarray(Image.open(tmp_path / "results" / "brain_mask.png"))
    assert picture.ndim == 3 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 100
    assert (picture[..., 0] > picture[..., 2]).mean() > 0.2  # the mask's colour


@needs_files
@pytest.mark.parametrize("which", ["BOX", "MASK"])
def test_the_module_is_deepbets(example: ModuleType, which: str) -> None:
    module, scripted = example.load(getattr(example, which)[0])
    ours, theirs = module.state_dict(), scripted.state_dict()
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}
    assert sum(parameter.numel() for parameter in module.parameters()) == 2_126_258
    x = torch.randn(1, 1, 64, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(module(x).softmax(1), scripted(x), atol=1e-6, rtol=0)


@needs_files
def test_the_mask_is_deepbets(example: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """deepbet's own code, on an image whose axes run otherwise."""
    for name in ("cc3d", "nibabel", "pandas", "tqdm"):  # what deepbet imports, and nnU-Net has brought
        pytest.importorskip(name)
    filler = ModuleType("fill_voids")
    monkeypatch.setattr(filler, "fill", scipy.ndimage.binary_fill_holes, raising=False)
    monkeypatch.setitem(sys.modules, "fill_voids", filler)
    deepbet = importlib.import_module("deepbet.bet")

    template = SimpleITK.ReadImage(str(example.packaged("nilearn", example.TEMPLATE)))
    path = tmp_path / "t1.nii.gz"
    SimpleITK.WriteImage(SimpleITK.DICOMOrient(template, "PSL"), str(path))
    _, expected, _ = deepbet.BrainExtraction(no_gpu=True).run(str(path))

    read = images.read([path], "NibabelIOWithReorient")
    extraction = example.Extraction(read.array[0].transpose(2, 1, 0))
    box = extraction.box(example.eager(example.load(example.BOX[0])[0])(extraction.small))
    mask = extraction.mask(box, example.eager(example.load(example.MASK[0])[0])(extraction.inside(box)))
    images.write(mask.transpose(2, 1, 0), read, tmp_path / "mask.nii.gz")
    own = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "mask.nii.gz")))
    np.testing.assert_array_equal(own, np.asarray(expected.dataobj).transpose(2, 1, 0))
    assert own.mean() > 0.1


@needs_files
def test_weights_of_another_shape_are_refused(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.jit.script(torch.nn.Sequential(torch.nn.Conv3d(1, 16, 7))).save(tmp_path / "other.pt")
    monkeypatch.setattr(example, "packaged", lambda *_: tmp_path / "other.pt")
    with pytest.raises(RuntimeError, match="init.0.weight"):
        example.load(example.BOX[0])


@pytest.mark.parametrize(("old", "new"), [(197, 128), (233, 128), (128, 256), (163, 256), (256, 163), (7, 7)])
def test_resizing_takes_the_voxels_that_torch_takes(example: ModuleType, old: int, new: int) -> None:
    volume = np.arange(old, dtype=np.float32)[:, None, None] * np.ones((1, 2, 3), np.float32)
    expected = torch.nn.functional.interpolate(torch.from_numpy(volume)[None, None], (new, 4, 5), mode="nearest-exact")
    np.testing.assert_array_equal(example.resize(volume, (new, 4, 5)), expected[0, 0].numpy())


def test_normalised_intensities_have_deepbets_mean_and_deviation(example: ModuleType) -> None:
    volume = np.random.default_rng(0).normal(100, 30, (20, 20, 20)).astype(np.float32)
    result = example.normalise(volume, 50, 150)
    assert result.dtype == np.float32
    assert result.mean() == pytest.approx(0.449, abs=1e-5) and result.std(ddof=1) == pytest.approx(0.226, abs=1e-5)
    assert np.count_nonzero(result == result.min()) == np.count_nonzero(volume <= 50)
    assert np.count_nonzero(result == result.max()) == np.count_nonzero(volume >= 150)


def test_the_mask_is_the_largest_part_without_holes_back_in_the_image(example: ModuleType) -> None:
    extraction = example.Extraction(np.random.default_rng(0).random((40, 50, 60)))
    small = np.zeros((128, 128, 128), np.uint8)
    small[32:96, 32:96, 32:96] = 1
    small[0:9, 0:9, 0:9] = 1  # another part
    box = extraction.box(small)
    assert box == (slice(8, 32), slice(10, 40), slice(12, 48))  # the part, and a tenth of it at each side
    labels = np.zeros((256, 256, 256), np.uint8)
    labels[40:200, 40:200, 40:200] = 1
    labels[100:140, 100:140, 100:140] = 0
    labels[0:20] = 1
    mask = extraction.mask(box, labels)
    assert mask.shape == (40, 50, 60) and mask.dtype == np.uint8
    where = np.argwhere(mask)
    low, high = where.min(0), where.max(0) + 1
    assert mask[tuple(map(slice, low, high))].all()
    np.testing.assert_allclose(low, [8 + 24 * 40 / 256, 10 + 30 * 40 / 256, 12 + 36 * 40 / 256], atol=1)
    np.testing.assert_allclose(high, [8 + 24 * 200 / 256, 10 + 30 * 200 / 256, 12 + 36 * 200 / 256], atol=1)


def test_an_image_without_a_brain_is_refused(example: ModuleType) -> None:
    with pytest.raises(ValueError, match="no contrast"):
        example.Extraction(np.ones((8, 8, 8)))
    extraction = example.Extraction(np.random.default_rng(0).random((8, 8, 8)))
    with pytest.raises(ValueError, match="no brain"):
        extraction.box(np.zeros((128, 128, 128), np.uint8))


def test_the_picture_shows_three_planes_with_the_mask_in_colour(example: ModuleType, tmp_path: Path) -> None:
    volume = np.full((20, 30, 40), 100.0, np.float32)
    mask = np.zeros(volume.shape, np.uint8)
    mask[5:15, 10:20, 20:40] = 1  # half of the last axis: the upper one
    example.draw(volume, mask, (1.0, 2.0, 3.0), tmp_path / "new" / "picture.png")
    picture = np.asarray(Image.open(tmp_path / "new" / "picture.png"))
    assert picture.shape == (2 * 120, 2 * (60 + 20 + 20), 3)  # two pixels a millimetre; the third plane is lower
    coloured = picture[..., 0] > picture[..., 2]
    sagittal = coloured[:, :120]
    assert sagittal[:120].mean() == pytest.approx(1 / 3, abs=0.01) and not sagittal[120:].any()


@pytest.mark.parametrize(
    "package",
    ["deepbet", pytest.param("nilearn", marks=[needs_files, pytest.mark.slow])],  # the other one's message
)
def test_a_missing_package_is_one_line(package: str, tmp_path: Path) -> None:
    hide = f"""
import importlib.metadata as metadata

find = metadata.distribution
def distribution(name):
    if name == "{package}":
        raise metadata.PackageNotFoundError(name)
    return find(name)
metadata.distribution = distribution
"""
    (tmp_path / "sitecustomize.py").write_text(hide)
    done = start("--artifacts", tmp_path, "--results", tmp_path, path=tmp_path)
    assert done.returncode == 2 and not done.stdout
    assert re.fullmatch(rf"brain_extraction: {package}'s .+: pip install --no-deps .+ deepbet nilearn\n", done.stderr)


def test_what_must_be_installed_is_pinned() -> None:
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    assert "deepbet==1.0.2" in pinned
    assert any(line.startswith("nilearn==") for line in pinned)
