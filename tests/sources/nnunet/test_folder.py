"""Which checkpoints a folder holds that nnU-Net trained. Nothing reads them here: empty files do."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from segonnx.errors import InputError
from segonnx.sources.nnunet import folder as trained_folder


def _make(root: Path) -> Path:
    """A folder in nnU-Net's layout with two folds and one of all data."""
    model = root / "Dataset999_Hand" / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    for fold in ("fold_0", "fold_1", "fold_all"):
        (model / fold).mkdir(parents=True)
        (model / fold / "checkpoint_final.pth").write_bytes(b"")
    for name in ("plans.json", "dataset.json"):
        (model / name).write_text("{}")
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return _make(tmp_path / "trained")


def test_a_wrong_folder_is_named_with_what_is_there(folder: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    data = results / "Dataset001_Two"
    for configuration in ("2d", "3d_fullres"):
        shutil.copytree(folder, data / f"nnUNetTrainer__nnUNetPlans__{configuration}")
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.zip").write_bytes(b"PK")
    for place, message in {
        tmp_path / "nowhere": "nowhere is not a folder",
        tmp_path / "empty": "neither it nor a folder in it holds plans.json",
        tmp_path / "model.zip": "is a file: give the folder",
        folder / "fold_0": "is one fold: give .* with --fold 0",
        data: "holds 2 trained folders; name one, or the configuration with --configuration: nnUNetTrainer__",
        results: "holds the results of 1 data sets; name one: Dataset001_Two",
    }.items():
        with pytest.raises(InputError, match=message) as caught:
            trained_folder.locate(place)
        assert "\n" not in str(caught.value)
    assert trained_folder.locate(data, "2d").name.endswith("__2d")
    with pytest.raises(InputError, match="no trained folder of '3d_lowres'; it has nnUNet"):
        trained_folder.locate(data, "3d_lowres")


def test_a_missing_part_is_named(folder: Path) -> None:
    find = trained_folder.find_checkpoints
    with pytest.raises(InputError, match="has no fold_3; it has fold_0, fold_1, fold_all"):
        find(folder, "3", "final")
    with pytest.raises(InputError, match=r"fold_0 lacks checkpoint_best.pth; it has .*; --checkpoint final takes"):
        find(folder, "0", "best")
    shutil.rmtree(folder / "fold_1")
    with pytest.raises(InputError, match="at least two numbered folds of .*; found fold_0"):
        find(folder, "ensemble", "final")
    (folder / "fold_0" / "checkpoint_final.pth").rename(folder / "fold_0" / "checkpoint_latest.pth")
    with pytest.raises(InputError, match="it has checkpoint_latest.pth: the training has not ended"):
        find(folder, "0", "final")
    (folder / "fold_0" / "checkpoint_latest.pth").unlink()
    with pytest.raises(InputError, match="it has no checkpoint"):
        find(folder, "0", "final")
    assert list(find(folder, None, "final")) == ["all"]
    shutil.rmtree(folder / "fold_0")
    shutil.rmtree(folder / "fold_all")
    with pytest.raises(InputError, match="has no folds"):
        find(folder, None, "final")
    (folder / "dataset.json").unlink()
    with pytest.raises(InputError, match="lacks dataset.json"):
        find(folder, None, "final")
