"""Manifests and images of strangers: predict ends, in one line and in bounds of time and memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK

from segonnx.artifacts import layout, manifest
from segonnx.errors import CheckFailed, InputError
from segonnx.predict import preprocessing, sliding_window
from segonnx.predict.predictor import Artifact
from segonnx.predict.resampling import AnyArray
from segonnx.predict.workers import Workers
from tests.conftest import message, run
from tests.predict.conftest import save, volume

pytestmark = pytest.mark.usefixtures("steps_here")

Content = dict[str, Any]
CHANGES: dict[str, Callable[[Content], object]] = {
    "no spacing": lambda c: c["preprocessing"].pop("spacing"),
    "no resampling": lambda c: c["preprocessing"].pop("resampling"),
    "a patch of two sizes": lambda c: c["inference"].update(patch_size=[8, 16]),
    "axes 0, 0, 0": lambda c: c["preprocessing"].update(transpose_forward=[0, 0, 0]),
    "transposes that don't match": lambda c: c["preprocessing"].update(transpose_backward=[0, 1, 2]),
    "order x": lambda c: c["preprocessing"]["resampling"]["data"]["arguments"].update(order="x"),
    "order 9": lambda c: c["preprocessing"]["resampling"]["data"]["arguments"].update(order=9),
    "no intensities": lambda c: c["preprocessing"]["channels"][0].update(intensities={}),
    "a deviation below 0": lambda c: c["preprocessing"]["channels"][0]["intensities"].update(std=-1),
    "no labels": lambda c: c.update(labels=[]),
    "too many labels": lambda c: c["labels"].append(c["labels"][0]),
    "a label of 10^9": lambda c: c["labels"][1].update(value=10**9),
    "a step of 1e-9": lambda c: c["inference"].update(tile_step_size=1e-9),
    "a sigma of 1e9": lambda c: c["inference"].update(gaussian_sigma_scale=1e9),
    "an ending that leaves the folder": lambda c: c["preprocessing"].update(file_ending="/../../x.nii.gz"),
}


def changed(hand: Path, tmp_path: Path, change: Callable[[Content], object]) -> Path:
    artifact = shutil.copytree(hand, tmp_path / "artifact")
    content = json.loads((artifact / layout.MANIFEST).read_bytes())
    change(content)
    (artifact / layout.MANIFEST).write_bytes(manifest.seal(content))
    return artifact


@pytest.mark.parametrize("what", CHANGES)
def test_a_recipe_that_can_not_be_followed_is_refused(what: str, hand: Path, tmp_path: Path) -> None:
    artifact = changed(hand, tmp_path, CHANGES[what])
    save(volume(), tmp_path / "in" / "a_0000.nii.gz")
    for source, target in (
        (tmp_path / "in", tmp_path / "out"),
        (tmp_path / "in" / "a_0000.nii.gz", tmp_path / "o.nii"),
    ):
        done = run("predict", artifact, source, target)
        assert done.returncode == 1
        assert "\n" not in message(done) and "doesn't fit its schema" in message(done)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifact", "in"]


def test_an_artifact_of_version_1_predicts(hand: Path, tmp_path: Path) -> None:
    artifact = changed(hand, tmp_path, lambda content: content.update(schema_version=1))
    save(volume(), tmp_path / "a.nii.gz")
    assert run("predict", artifact, tmp_path / "a.nii.gz", tmp_path / "old.nii.gz").returncode == 0
    assert run("predict", hand, tmp_path / "a.nii.gz", tmp_path / "new.nii.gz").returncode == 0
    old, new = (SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(tmp_path / f"{x}.nii.gz")) for x in ("old", "new"))
    assert np.array_equal(old, new)


def test_a_spacing_that_asks_for_more_memory_than_there_is_is_refused(hand: Path, tmp_path: Path) -> None:
    artifact = changed(hand, tmp_path, lambda content: content["preprocessing"].update(spacing=[1e-4] * 3))
    save(volume(), tmp_path / "a.nii.gz")
    done = run("predict", artifact, tmp_path / "a.nii.gz", tmp_path / "o.nii.gz")
    assert done.returncode == 2
    assert "at the network's spacing, which take about" in message(done) and "GB of memory" in message(done)


@pytest.mark.parametrize("spacing", [(1e4, 1e4, 3e4), (1e6, 1.0, 1.0), (1e9, 1e9, 1e9)])
def test_an_image_of_huge_voxels_is_refused(spacing: tuple[float, ...], loaded: Artifact) -> None:
    with pytest.raises(InputError, match="at the network's spacing, which take about"):
        loaded.predict(np.ones((10, 20, 30), np.int16), spacing)


@pytest.mark.parametrize("spacing", [(1e300, 1.0, 1.0), (1e-300, 1.0, 1.0), (float("inf"), 1.0, 1.0), (0.0, 1.0, 1.0)])
def test_a_spacing_beyond_sense_is_refused(spacing: tuple[float, ...], loaded: Artifact) -> None:
    with pytest.raises(InputError, match="it must be three positive numbers"):
        loaded.predict(np.ones((10, 20, 30), np.int16), spacing)


def test_memory_counts_the_window_where_that_is_the_larger(loaded: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of open sizes whose plan has a window of a terabyte, say."""
    from dataclasses import replace

    monkeypatch.setattr(preprocessing, "hardware", SimpleNamespace(available_memory=lambda: 10**9))
    image = np.ones((1, 4, 4, 4), np.float32)
    for window in ((8, 16, 24), (4096, 4096, 4096)):
        config = replace(loaded.config, window=window, spacing=(1.5, 1.5, 1.5))
        times = preprocessing.Times()
        if window[0] == 8:
            assert preprocessing.prepare(image, (1.5, 1.5, 1.5), config, None, times).array.shape == image.shape
        else:
            with pytest.raises(InputError, match="1.0 GB are available"):
                preprocessing.prepare(image, (1.5, 1.5, 1.5), config, None, times)


def windows(forward: sliding_window.Forward, shape: tuple[int, ...], step: float) -> list[AnyArray]:
    image = np.ones((1, *shape), np.float32)
    how = sliding_window.Windows(1, (4, 4, 4), step, 0.125)
    return [one.copy() for some in sliding_window.averaged(image, forward, how, Workers()) for one in some]


@pytest.mark.parametrize("step", [1e-9, 1e-300, 5e-324])
def test_the_smallest_step_is_half_a_voxel(step: float) -> None:
    assert len(sliding_window.starts(10, 4, step)) == 13
    assert len(windows(lambda x: x, (5, 4, 4), step)) == 5


def test_more_windows_than_a_day_has_are_refused() -> None:
    with pytest.raises(InputError, match=r"takes 3,861,225 windows, more than 1,000,000: take a larger step"):
        windows(lambda x: x, (4, 986, 986), 1e-9)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_are_no_labels(value: float) -> None:
    def forward(x: AnyArray) -> AnyArray:
        x = x.copy()
        x[..., 0, 0, 0] = value
        return x

    with pytest.raises(CheckFailed, match="logits that aren't finite numbers"):
        windows(forward, (4, 4, 4), 0.5)
