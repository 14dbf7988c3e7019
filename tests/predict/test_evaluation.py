"""``predict --evaluate``: the numbers of nnU-Net's own command."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
import SimpleITK

from segonnx.predict import evaluation
from segonnx.predict.evaluation import Evaluated
from tests import handmade
from tests.conftest import export, message, once, run
from tests.nnunet_commands import nnunet
from tests.predict.conftest import SHAPE, save, volume

pytestmark = pytest.mark.usefixtures("steps_here")

DATASETS: dict[str, dict[str, Any]] = {
    "labels": {"background": 0, "organ": 1, "lesion": 2, "nowhere": 3},
    "ignored": {"background": 0, "organ": 1, "lesion": 2, "ignore": 3},
    "regions": {"background": 0, "whole": [1, 2, 3], "core": [2], "edge": 3, "ignore": 4},
}


PICTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "pictures": (".png", {"background": 0, "road": 1, "roof": 2}),
    "gaps": (".bmp", {"background": 0, "road": 1, "roof": 4}),
    "overlapping": (".tif", {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}),
}
"""The endings of the files, and the labels."""


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained folder for each of ``DATASETS``, and its artifact in a folder beside them."""

    def make(root: Path) -> None:
        for number, (name, labels) in enumerate(DATASETS.items()):
            described = handmade.dataset() | {"labels": labels}
            if name == "regions":
                described["regions_class_order"] = [1, 2, 3]
            folder = handmade.write(root / name, handmade.plans(f"Dataset99{number}_{name}"), described)
            export("--nnunet", folder, "--out", root / "artifacts" / name)

    return once(tmp_path_factory, "evaluated", make)


@pytest.fixture(scope="session")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for each of ``PICTURES``, by nnU-Net's reader of pictures."""

    def make(root: Path) -> None:
        for number, (name, (ending, labels)) in enumerate(PICTURES.items()):
            planned = handmade.several(f"Dataset98{number}_{name}")
            planned |= {
                "image_reader_writer": "NaturalImage2DIO",
                "transpose_forward": [0, 1, 2],
                "transpose_backward": [0, 1, 2],
            }
            planned["configurations"]["2d"] |= {
                "normalization_schemes": ["RGBTo01Normalization"] * 3, "use_mask_for_norm": [False] * 3,
                "spacing": [1.0, 1.0],
            }  # fmt: skip
            described = {
                "channel_names": {"0": "R", "1": "G", "2": "B"}, "labels": labels, "file_ending": ending,
                "regions_class_order": [1, 2],
            }  # fmt: skip
            folder = handmade.write(root / name, planned, described, configuration="2d", mirror_axes=(0, 1))
            export("--nnunet", folder, "--out", root / "artifacts" / name)

    return once(tmp_path_factory, "pictured", make)


def drawn(seed: int, highest: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray[Any, Any]:
    """A label map in which some labels are nowhere."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, highest + 1, tuple(-(-size // 5) for size in shape))
    labels = np.kron(coarse, np.ones((5, 5, 5), int))[tuple(slice(size) for size in shape)].astype(np.uint8)
    labels[labels == seed % (highest + 1)] = 0
    return labels


def evaluated(artifact: Path, folder: Path, place: Path) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """What ``predict --evaluate`` printed and wrote of three cases, once nnU-Net's command wrote the same."""
    done = run("predict", artifact, place / "in", place / "out", "--evaluate", place / "drawn")
    assert done.returncode == 0, done.stderr
    ours = place / "ours.json"
    (place / "out" / "summary.json").rename(ours)
    nnunet(
        "nnUNetv2_evaluate_folder", place / "drawn", place / "out", "-np", 1,
        "-djfile", folder / "dataset.json", "-pfile", folder / "plans.json",
    )  # fmt: skip
    assert ours.read_text() == (place / "out" / "summary.json").read_text()
    found: dict[str, Any] = json.loads(ours.read_text())
    assert len(found["metric_per_case"]) == 3
    return done, found


@pytest.mark.parametrize("kind", list(DATASETS))
def test_the_summary_is_that_of_nnunets_command(kind: str, trained: Path, tmp_path: Path) -> None:
    (artifact,) = (trained / "artifacts" / kind).iterdir()
    (folder,) = next((trained / kind).iterdir()).iterdir()
    highest = max(value for value in DATASETS[kind].values() if isinstance(value, int))
    for case in range(3):
        save(volume(case), tmp_path / "in" / f"case{case}_0000.nii.gz")
        save(drawn(case, highest), tmp_path / "drawn" / f"case{case}.nii.gz")
    done, found = evaluated(artifact, folder, tmp_path)
    dice = found["foreground_mean"]["Dice"]
    assert f"mean Dice {dice:.4f} of 3 cases -> {tmp_path}/out/summary.json" in done.stdout
    if kind == "regions":
        assert found["mean"].keys() == {"(1, 2, 3)", "(2,)", "3"}
    if kind == "labels":
        # A label that no case has is NaN in the mean over cases and in the foreground's, as in nnU-Net.
        nowhere = [one["metrics"]["3"]["n_ref"] + one["metrics"]["3"]["n_pred"] for one in found["metric_per_case"]]
        assert math.isnan(dice) == (sum(nowhere) == 0)


def picture(array: np.ndarray[Any, Any], path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    imageio.imwrite(path, array)


@pytest.mark.parametrize("kind", list(PICTURES))
def test_the_summary_of_pictures_is_that_of_nnunets_command(kind: str, pictured: Path, tmp_path: Path) -> None:
    (artifact,) = (pictured / "artifacts" / kind).iterdir()
    (folder,) = next((pictured / kind).iterdir()).iterdir()
    ending, labels = PICTURES[kind]
    highest = max(value for value in labels.values() if isinstance(value, int))
    for case in range(3):
        colours = np.random.default_rng(case).integers(0, 256, (40, 50 + case, 3)).astype(np.uint8)
        picture(colours, tmp_path / "in" / f"case{case}_0000{ending}")
        picture(drawn(case, highest, (1, 40, 50 + case))[0], tmp_path / "drawn" / f"case{case}{ending}")
    _, found = evaluated(artifact, folder, tmp_path)
    assert found["foreground_mean"]["n_pred"] > 0
    if kind == "gaps":  # a class is what it is called, and its label maps have another number
        assert found["mean"].keys() == {"1", "4"}
        assert found["mean"]["4"]["n_ref"] > 0
        assert found["mean"]["4"]["n_pred"] == 0


def test_a_reference_in_colours_is_refused(pictured: Path, tmp_path: Path) -> None:
    """nnU-Net counts each of the colours as a label map of its own."""
    (artifact,) = (pictured / "artifacts" / "pictures").iterdir()
    colours = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    picture(colours, tmp_path / "a.png")
    picture(colours // 100, tmp_path / "drawn.png")
    words = ("predict", artifact, tmp_path / "a.png", tmp_path / "out.png")
    done = run(*words, "--evaluate", tmp_path / "drawn.png")
    assert done.returncode == 2, done.stderr
    assert "drawn.png has 3 channels; a label map has one" in message(done)


def test_metrics_of_labels_that_are_nowhere_are_no_numbers() -> None:
    empty = np.zeros((2, 3, 4), np.uint8)
    found = evaluation.compare(empty, empty, Evaluated({"1": (1,)}))["1"]
    assert math.isnan(found.pop("Dice")) and math.isnan(found.pop("IoU"))
    assert found == {"FP": 0, "TP": 0, "FN": 0, "TN": 24, "n_pred": 0, "n_ref": 0}
    summary = evaluation.Evaluation()
    summary.add(Path("a"), Path("b"), evaluation.compare(empty, empty, Evaluated({"1": (1,)})))
    assert math.isnan(summary.summary()["mean"]["1"]["Dice"])
    assert math.isnan(summary.summary()["foreground_mean"]["Dice"])


def test_one_image_is_compared_with_one_file(trained: Path, tmp_path: Path) -> None:
    (artifact,) = (trained / "artifacts" / "labels").iterdir()
    save(volume(), tmp_path / "ct.nii.gz")
    save(drawn(0, 2), tmp_path / "drawn.nii.gz")
    words = ("predict", artifact, tmp_path / "ct.nii.gz", tmp_path / "out" / "labels.nii.gz")
    done = run(*words, "--evaluate", tmp_path / "drawn.nii.gz", "--json", tmp_path / "r.json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "r.json").read_text())
    found = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "out" / "labels.nii.gz")))
    wanted = drawn(0, 2)
    assert row["metrics"]["2"]["TP"] == int(np.sum((found == 2) & (wanted == 2)))
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["metric_per_case"][0]["metrics"]["2"]["TP"] == row["metrics"]["2"]["TP"]
    again = run(*words, "--evaluate", tmp_path / "drawn.nii.gz")
    assert again.returncode == 2 and "--overwrite" in message(again)


def test_what_cannot_be_compared_is_refused_before_the_work(trained: Path, tmp_path: Path) -> None:
    (artifact,) = (trained / "artifacts" / "labels").iterdir()
    save(volume(), tmp_path / "in" / "case_0000.nii.gz")
    save(drawn(0, 2, (5, 6, 7)), tmp_path / "other" / "case.nii.gz")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "case.nii.gz").write_text("no image")
    save(drawn(0, 2), tmp_path / "out" / "case.nii.gz")
    before = (tmp_path / "out" / "case.nii.gz").read_bytes()
    for labels, more, text in (
        ("none", (), "is not a folder of label maps"),
        ("empty", (), "holds no label map case.nii.gz"),
        ("other", (), "has the shape (5, 6, 7)"),
        ("text", (), "can't be read"),
        ("out", ("--overwrite",), "would be overwritten"),
    ):
        out = tmp_path / ("out" if more else f"made-{labels}")
        done = run("predict", artifact, tmp_path / "in", out, "--evaluate", tmp_path / labels, *more)
        of_the_case = labels in ("other", "text")
        assert done.returncode == (1 if of_the_case else 2), done.stderr
        assert text in message(done).splitlines()[0]
        assert of_the_case or "\n" not in message(done)
        assert more or not [path for path in out.glob("*") if not path.name.startswith(".")]
    assert (tmp_path / "out" / "case.nii.gz").read_bytes() == before


def test_a_reference_of_another_ending_is_found(trained: Path, tmp_path: Path) -> None:
    (artifact,) = (trained / "artifacts" / "labels").iterdir()
    save(volume(), tmp_path / "in" / "case_0000.nii.gz")
    save(drawn(0, 2), tmp_path / "drawn" / "case.nrrd")
    done = run("predict", artifact, tmp_path / "in", tmp_path / "out", "--evaluate", tmp_path / "drawn", "--tta")
    assert done.returncode == 0, done.stderr
    assert "Dice 1 0." in done.stdout
