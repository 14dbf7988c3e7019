from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.postprocessing.remove_connected_components import (
    apply_postprocessing,
    remove_all_but_largest_component_from_segmentation,
)

from segonnx.predict import postprocessing
from segonnx.predict.predictor import Artifact
from tests import handmade
from tests.conftest import export, once, run
from tests.nnunet_commands import nnunet
from tests.predict.conftest import SPACING, save, volume

pytestmark = pytest.mark.usefixtures("steps_here")
KEEP = remove_all_but_largest_component_from_segmentation


@given(
    st.integers(0, 10**6),
    st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3), max_size=4),
    st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9)),
    st.floats(0.05, 0.6),
)
@settings(max_examples=60, deadline=None)
def test_label_maps_are_those_of_nnunets_function(
    seed: int, steps: list[list[int]], shape: tuple[int, ...], density: float
) -> None:
    """Also several components of one size, labels that are nowhere, and the background."""
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random(shape) < density, rng.integers(1, 5, shape), 0).astype(np.uint8)
    before = labels.copy()
    expected = apply_postprocessing(labels, [KEEP] * len(steps), [{"labels_or_regions": tuple(step)} for step in steps])
    np.testing.assert_array_equal(postprocessing.apply(labels, steps), expected)
    np.testing.assert_array_equal(labels, before)


def test_voxels_that_share_a_corner_are_connected() -> None:
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[0, 0, 0] = labels[1, 1, 1] = 1
    labels[3, 3, 3] = 1
    expected = labels.copy()
    expected[3, 3, 3] = 0
    np.testing.assert_array_equal(postprocessing.keep_largest_component(labels, (1,)), expected)


def postprocessed(folder: Path, *labels: Any) -> Path:
    """Write a postprocessing as nnU-Net does, whose labels are NumPy's numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "postprocessing.pkl").open("wb") as file:
        pickle.dump(([KEEP] * len(labels), [{"labels_or_regions": one} for one in labels]), file)
    return folder / "postprocessing.pkl"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained folder for which nnU-Net determined a postprocessing."""

    def make(root: Path) -> None:
        folder = handmade.write(root, handmade.plans("Dataset997_Post"), handmade.dataset(3))
        postprocessed(
            folder / "crossval_results_folds_0", [np.int64(1), np.int64(2), np.int64(3)], np.int64(1), np.int64(3)
        )

    (folder,) = (once(tmp_path_factory, "postprocessed", make) / "Dataset997_Post").iterdir()
    return folder


@pytest.fixture(scope="module")
def artifact(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("artifacts")
    export("--nnunet", trained, "--out", out)
    (made,) = out.iterdir()
    return made


def labels_of(path: Path) -> Any:
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))


def test_label_maps_are_those_of_nnunets_command(artifact: Path, trained: Path, tmp_path: Path) -> None:
    content = json.loads((artifact / "manifest.json").read_text())
    steps = [[1, 2, 3], [1], [3]]
    assert content["inference"]["postprocessing"] == [{"keep_largest_component": step} for step in steps]
    save(volume(), tmp_path / "in" / "case_0000.nii.gz")
    for out, more in (("plain", ["--no-postprocess"]), ("ours", []), ("asked", ["--postprocess"])):
        done = run("predict", artifact, tmp_path / "in", tmp_path / out, *more)
        assert done.returncode == 0, done.stderr
    nnunet(
        "nnUNetv2_apply_postprocessing", "-i", tmp_path / "plain", "-o", tmp_path / "theirs", "-np", 1,
        "-pp_pkl_file", trained / "crossval_results_folds_0/postprocessing.pkl",
        "-plans_json", trained / "plans.json", "-dataset_json", trained / "dataset.json",
    )  # fmt: skip
    found = labels_of(tmp_path / "ours" / "case.nii.gz")
    np.testing.assert_array_equal(found, labels_of(tmp_path / "theirs" / "case.nii.gz"))
    np.testing.assert_array_equal(found, labels_of(tmp_path / "asked" / "case.nii.gz"))
    plain = labels_of(tmp_path / "plain" / "case.nii.gz")
    assert np.any(found != plain)
    loaded = Artifact(artifact, threads=1)
    np.testing.assert_array_equal(loaded.predict(volume(), SPACING), found)
    np.testing.assert_array_equal(loaded.predict(volume(), SPACING, postprocess=False), plain)


def test_an_artifact_without_postprocessing_says_so_where_it_is_asked_for(hand: Path, tmp_path: Path) -> None:
    save(volume(), tmp_path / "ct.nii.gz")
    for name, more in (("a", []), ("b", ["--postprocess"])):
        done = run("predict", hand, tmp_path / "ct.nii.gz", tmp_path / f"{name}.nii.gz", *more)
        assert done.returncode == 0
        assert ("--postprocess changes nothing" in done.stderr) == bool(more)
    np.testing.assert_array_equal(labels_of(tmp_path / "a.nii.gz"), labels_of(tmp_path / "b.nii.gz"))


def test_an_ensemble_carries_its_own_postprocessing(trained: Path, tmp_path: Path) -> None:
    from segonnx.exporters import ensemble, nnunet
    from segonnx.sources.nnunet.ensemble import Choice

    dataset = shutil.copytree(trained.parent, tmp_path / trained.parent.name)
    one = dataset / trained.name
    other = dataset / "nnUNetTrainer__nnUNetPlans__3d_other"
    shutil.copytree(one, other)
    names = f"{other.name}___{one.name}"
    selection = nnunet.Selection()
    assert ensemble._postprocessing(Choice(dataset, (one, other), None), (_network(),), selection) is None
    path = postprocessed(dataset / "ensembles" / f"ensemble___{names}___0", (1, 2), (2,))
    choice = Choice(dataset, (one, other), None)
    assert ensemble._postprocessing(choice, (_network(),), selection) == path


def _network() -> Any:
    from types import SimpleNamespace

    return SimpleNamespace(spec=SimpleNamespace(described={"training": {"folds": ["0"]}}))
