"""Tasks of TotalSegmentator: exported whole, and held against TotalSegmentator itself, which has an own environment."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.transform import Rotation

import segonnx
from segonnx.artifacts import layout, manifest, signature
from segonnx.cli import main
from segonnx.exporters import totalsegmentator as exporter
from segonnx.predict import images, predictor, tasks
from segonnx.predict.readers.nifti import label_table
from tests import signing_keys
from tests import totalsegmentator_folders as folders
from tests.conftest import steps_in_process

pytestmark = pytest.mark.usefixtures("steps_here")

TASKS = ("total_mr", "body_fast", "pleural_pericard_effusion")
"""Several networks and a choice of classes; blobs; a rough network, the network's own spacing, the mean of folds.
The other tasks are measured by ``benchmarks.against_totalsegmentator``."""
PAGE = Path(__file__).resolve().parents[2] / "docs" / "totalsegmentator.md"
SHAPE, SPACING = (60, 52, 44), (1.9, 1.7, 2.6)
ASKEW = Rotation.from_euler("xyz", (7, -11, 9), degrees=True).as_matrix()


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(one) for one in arguments])


def _done(*arguments: object) -> str:
    result = _run(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("totalsegmentator") / "results"
    folders.write(folder, TASKS)
    return folder


@pytest.fixture(scope="module")
def artifacts(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tasks")
    with steps_in_process():
        for task in TASKS:
            _done("export", "--totalsegmentator", task, "--weights-dir", weights, "--out", out, "-q")
    return out


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom whose axes run to the left, to the front and up, all a little askew."""
    path = tmp_path_factory.mktemp("image") / "ct.nii.gz"
    affine = np.eye(4)
    affine[:3] = np.column_stack([ASKEW @ np.diag([-SPACING[0], *SPACING[1:]]), (40.0, -31.0, 7.5)])
    image = nibabel.Nifti1Image(folders.phantom(SHAPE)[::-1].astype(np.int16), affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return path


def _volume(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nibabel.save(nibabel.Nifti1Image(values, np.diag([*SPACING, 1.0]) if affine is None else affine), path)
    return path


@pytest.mark.skipif(not folders.JUDGE.exists(), reason="TotalSegmentator isn't installed: make judges")
def test_label_maps_are_those_of_totalsegmentator(
    weights: Path, artifacts: Path, ct: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, tuple[str, list[str], dict[str, Any]]] = {
        **{task: (task, [], {"ml": True}) for task in TASKS},
        "subset": ("total_mr", ["--roi-subset", "liver,heart"], {"ml": True, "roi_subset": ["liver", "heart"]}),
        "split": ("total_mr", [], {"ml": True, "force_split": True}),
        "nothing": ("total_mr", ["--roi-subset", "prostate"], {"ml": True, "roi_subset": ["prostate"]}),
        "blobs": ("total_mr", ["--remove-small-blobs"], {"ml": True, "remove_small_blobs": True}),
        "classes": ("body_fast", ["--one-file-per-class"], {}),
    }
    inputs = dict.fromkeys(asked, ct) | {"split": _volume(tmp_path / "long.nii.gz", folders.phantom((30, 28, 96)))}
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    ending = {name: "" if name == "classes" else ".nii.gz" for name in asked}
    runs = [
        {"input": inputs[name], "output": theirs / f"{name}{ending[name]}", **folders.arguments(task), **more}
        for name, (task, _, more) in asked.items()
    ]
    found = folders.judge(tmp_path / "home", weights, runs)
    assert [one["error"] for one in found] == [None] * len(runs)
    ours.mkdir()
    for name, (task, more, _) in asked.items():
        with monkeypatch.context() as patch:
            if name == "split":
                patch.setattr(tasks, "LARGE", 0)
                patch.setattr(tasks, "LEAST_SLICES", 0)
            source, target = inputs[name], ours / f"{name}{ending[name]}"
            _done("predict", artifacts / f"totalsegmentator-{task}", source, target, "-q", *more)
        paths = sorted(theirs.glob(f"{name}/*.nii.gz")) or [theirs / f"{name}.nii.gz"]
        for path in paths:
            wanted, got = folders.read(path), folders.read(ours / path.relative_to(theirs))
            assert got.shape == wanted.shape
            assert got.get_data_dtype() == wanted.get_data_dtype() == np.uint8
            np.testing.assert_allclose(got.affine, wanted.affine, atol=1e-5)
            labels, reference = np.asarray(got.dataobj), np.asarray(wanted.dataobj)
            assert np.mean(labels == reference) >= 0.9999, name
            assert reference.any() == (name != "nothing"), name
            assert folders.label_names(got) == folders.label_names(wanted)
    assert len(np.unique(np.asarray(folders.read(theirs / "total_mr.nii.gz").dataobj))) > 5
    assert sorted(path.name for path in (ours / "classes").iterdir()) == [
        "body.nii.gz", "body_extremities.nii.gz", "body_trunc.nii.gz", "skin.nii.gz",
    ]  # fmt: skip


def test_a_task_verifies_packs_and_is_signed_for_like_any_artifact(artifacts: Path, tmp_path: Path) -> None:
    artifact = artifacts / "totalsegmentator-body_fast"
    assert "OK" in _done("verify", artifact)
    _done("pack", artifact, "--format", "zip", "--out", tmp_path / "task.zip")
    _done("unpack", tmp_path / "task.zip", "--out", tmp_path / "task")
    assert manifest.read(tmp_path / "task") == manifest.read(artifact)
    refused = _run("pack", artifact, "--format", "triton", "--out", tmp_path / "triton")
    assert refused.exit_code == 2
    assert "is a task, and --format triton takes one network" in refused.output
    pytest.importorskip("model_signing", reason="model-signing isn't installed: pip install 'segonnx[sign]'")
    private, public = signing_keys.make(tmp_path, "sender")
    _done("sign", tmp_path / "task", "--key", private)
    assert "signed by the owner of" in _done("verify", tmp_path / "task", "--key", public)
    assert (tmp_path / "task" / layout.SIGNATURE).is_file()
    (card,) = (tmp_path / "task" / member["folder"] / "README.md" for member in manifest.read(artifact)["members"])
    card.write_bytes(card.read_bytes() + b"\n")
    with pytest.raises(segonnx.VerifyError, match="isn't as the owner of"):  # the hashes would tell, too
        signature.check(tmp_path / "task", public)
    assert _run("verify", tmp_path / "task", "--key", public).exit_code == 1


def test_a_task_predicts_from_python_and_keeps_its_axes(artifacts: Path, ct: Path) -> None:
    artifact = segonnx.Artifact(artifacts / "totalsegmentator-total_mr")
    image = images.read([ct], artifact.config.reader)
    labels = artifact.predict(image.array, image.spacing)
    assert labels.shape == image.array.shape[1:]
    assert labels.dtype == np.uint8
    some = artifact.predict(image.array, image.spacing, roi_subset=["liver"])
    assert artifact.task is not None
    (liver,) = (value for value, name in artifact.task.labels.items() if name == "liver")
    assert set(np.unique(some).tolist()) == {0, liver}
    with pytest.raises(segonnx.InputError, match="no class 'livre'"):
        artifact.predict(image.array, image.spacing, roi_subset=["livre"])
    with pytest.raises(segonnx.InputError, match="mirror="):
        artifact.predict(image.array, image.spacing, mirror=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--roi-subset", "nose"], "has no class 'nose'"),
        (["--probabilities"], "gives no probabilities"),
        (["--tta"], "without mirroring"),
        (["--no-postprocess"], "leave --no-postprocess out"),
    ],
)
def test_what_a_task_cannot_do_is_one_line(
    artifacts: Path, ct: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    result = _run("predict", artifacts / "totalsegmentator-total_mr", ct, tmp_path / "out.nii.gz", *options)
    assert result.exit_code == 2
    assert message in result.output
    assert not list(tmp_path.iterdir())


def test_options_of_tasks_are_refused_of_other_artifacts(artifacts: Path, ct: Path, tmp_path: Path) -> None:
    members = artifacts / "totalsegmentator-body_fast" / "members"
    (network,) = members.iterdir()
    for option in (["--roi-subset", "liver"], ["--remove-small-blobs"], ["--one-file-per-class"]):
        result = _run("predict", network, ct, tmp_path / "out.nii.gz", *option)
        assert (result.exit_code, option[0] in result.output) == (2, True), result.output


def test_weights_that_are_missing_are_named(weights: Path, tmp_path: Path) -> None:
    some = tmp_path / "some"
    shutil.copytree(weights, some)
    (gone,) = some.glob("Dataset851_*")
    shutil.rmtree(gone)
    result = _run("export", "--totalsegmentator", "total_mr", "--weights-dir", some, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert result.output.strip().count("\n") == 0
    assert gone.name in result.output and str(some) in result.output
    assert not (tmp_path / "out").exists()


def test_without_the_rough_network_a_task_has_no_choice_of_classes(weights: Path, tmp_path: Path) -> None:
    some = tmp_path / "some"
    shutil.copytree(weights, some)
    (rough,) = some.glob("Dataset852_*")
    shutil.rmtree(rough)
    found = exporter.find("total_mr", some)
    assert any(rough.name in note for note in found.notes)
    assert [stage["name"] for stage in found.document["stages"]] == ["total_mr"]
    with pytest.raises(segonnx.InputError, match="has no rough network"):
        tasks.read(found.document).chosen(["liver"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--totalsegmentator", "nose"], "has no task 'nose'"),
        (["--totalsegmentator", "test"], "can't be exported: its network is of nnU-Net v1"),
        (["--totalsegmentator", "total", "unet-resnet18"], "give no names"),
        (["--weights-dir", "x", "unet-resnet18"], "--weights-dir goes with"),
        (["--totalsegmentator", "total", "--shape", "32,32,32"], "--shape is for one network"),
        (["--totalsegmentator", "total", "--mean", "0.5", "--std", "1"], "says how images are prepared"),
    ],
)
def test_wrong_exports_are_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = _run("export", *arguments, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.output


def test_the_tasks_are_listed_with_what_cannot_be_done() -> None:
    told = _done("list", "--totalsegmentator")
    assert "total_fastest" in told and "no: its weights" in told
    entries = json.loads(_done("list", "--totalsegmentator", "--json"))
    assert sum(entry["unsupported"] is None for entry in entries) >= 50
    assert {"name", "classes", "data_sets", "licence"} <= entries[0].keys()


def test_damaged_task_documents_are_refused(artifacts: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(artifacts / "totalsegmentator-body_fast", copy)
    document = json.loads((copy / "task.json").read_text())
    document["stages"][0]["labels"][0]["name"] = "../x"
    (copy / "task.json").write_text(json.dumps(document))
    assert "was changed" in _run("verify", copy).output or "bytes" in _run("verify", copy).output
    # Sealed anew, as a stranger may: the schema refuses a name that would be a path.
    import hashlib

    content = json.loads((copy / "manifest.json").read_text())
    data = (copy / "task.json").read_bytes()
    content["files"]["task.json"] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (copy / "manifest.json").write_bytes(manifest.seal(content))
    result = _run("verify", copy)
    assert result.exit_code != 0
    assert "task.json doesn't fit its schema" in result.output


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[st.integers(1, 9)] * 3), st.tuples(*[st.integers(1, 23)] * 3), st.integers(0, 2**16))
def test_labels_come_back_as_by_scipys_zoom(old: tuple[int, ...], new: tuple[int, ...], seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 9, old, np.uint8)
    zoom = np.array(new) / np.array(old)
    if tuple(round(a * b) for a, b in zip(old, zoom, strict=True)) != new:
        return
    expected = ndimage.zoom(labels, zoom, order=0, mode="nearest") if old != new else labels
    np.testing.assert_array_equal(tasks.nearest(labels, new), expected)


@pytest.mark.parametrize("slices", [201, 900, 1001, 1400])
def test_a_large_image_goes_through_in_thirds(slices: int) -> None:
    plane = (600, 600)
    found = list(tasks._thirds((slices, *plane)))
    if slices * 600 * 600 <= 512 * 512 * 900:
        assert found == [(slice(0, slices), slice(0, slices))]
        return
    covered = [z for _, kept in found for z in range(kept.start, kept.stop)]
    assert covered == list(range(slices))
    assert all(read.start <= kept.start and kept.stop <= read.stop for read, kept in found)
    third = slices // 3
    assert [read for read, _ in found] == [
        slice(0, third + 20), slice(third - 19, 2 * third + 20), slice(2 * third - 19, slices),
    ]  # fmt: skip


def test_the_first_of_several_volumes_is_read_with_all_digits(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(5, 6, 7, 2)) + 1e-9
    path = _volume(tmp_path / "four.nii.gz", values)
    found = images.read([path], tasks.READER).array
    np.testing.assert_array_equal(found[0], values[..., 0].T)


def test_the_table_of_labels_is_whole_xml() -> None:
    from xml.etree import ElementTree

    table = ElementTree.fromstring(label_table([(1, "liver"), (13, "a & <b>")]))
    assert [(one.attrib["Key"], one.text) for one in table.iter("Label")] == [("1", "liver"), ("13", "a & <b>")]


def test_images_that_totalsegmentator_cannot_take_are_refused(artifacts: Path, tmp_path: Path) -> None:
    artifact = artifacts / "totalsegmentator-body_fast"
    wrong = {
        "has 2 dimensions": _volume(tmp_path / "flat.nii.gz", np.zeros((9, 8), np.int16)),
        "don't fit into 32 bits": _volume(tmp_path / "large.nii.gz", np.full((20, 20, 20), 1e10)),
        "less than a voxel": _volume(tmp_path / "thin.nii.gz", np.zeros((20, 20, 1), np.int16), np.diag([1, 1, 1, 1])),
        "aren't finite": _volume(tmp_path / "nan.nii.gz", np.full((20, 20, 20), np.nan)),
    }
    for message, path in wrong.items():
        result = _run("predict", artifact, path, tmp_path / "out.nii.gz")
        assert (result.exit_code, message in result.output) == (2, True), result.output
    assert not (tmp_path / "out.nii.gz").exists()


def test_python_writes_the_names_of_the_classes(artifacts: Path, ct: Path, tmp_path: Path) -> None:
    artifact = segonnx.Artifact(artifacts / "totalsegmentator-body_fast")
    image = images.read([ct], artifact.config.reader)
    images.write(artifact.predict(image.array, image.spacing), artifact.like(image), tmp_path / "labels.nii.gz")
    names = [name for _, name, _ in folders.label_names(folders.read(tmp_path / "labels.nii.gz"))]
    assert names == ["body_trunc", "body_extremities"]
    assert artifact.memory(image.array.shape, image.spacing) > 8 * image.array.size


def test_the_lines_of_the_page_run(artifacts: Path, ct: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (lines,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    (tmp_path / "artifacts").mkdir()
    shutil.copytree(artifacts / "totalsegmentator-total_mr", tmp_path / "artifacts" / "totalsegmentator-total")
    shutil.copy(ct, tmp_path)
    monkeypatch.chdir(tmp_path)
    exec(lines, {})
    assert [name for _, name, _ in folders.label_names(folders.read(tmp_path / "labels.nii.gz"))] == ["liver"]


def test_a_document_of_another_task_is_refused(artifacts: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(artifacts / "totalsegmentator-body_fast", copy)
    content = json.loads((copy / "manifest.json").read_text()) | {"task": "total"}
    (copy / "manifest.json").write_bytes(manifest.seal(content))
    assert "is of the task body_fast, the manifest says total" in _run("verify", copy).output


def test_a_file_that_is_no_networks_is_found(artifacts: Path, tmp_path: Path) -> None:
    import hashlib

    copy = tmp_path / "copy"
    shutil.copytree(artifacts / "totalsegmentator-body_fast", copy)
    (copy / "more.txt").write_text("x")
    content = json.loads((copy / "manifest.json").read_text())
    content["files"]["more.txt"] = {"sha256": hashlib.sha256(b"x").hexdigest(), "bytes": 1}
    (copy / "manifest.json").write_bytes(manifest.seal(content))
    assert "holds more.txt, which is no member's" in _run("verify", copy).output
    content["members"] *= 2
    (copy / "manifest.json").write_bytes(manifest.seal(content))
    assert "members: one is named twice" in _run("verify", copy).output


def test_small_windows_run_side_by_side_and_give_the_same_labels(
    artifacts: Path, ct: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictor, "SMALL_WORK", 1e12)
    path = artifacts / "totalsegmentator-body_fast"
    one, two = (segonnx.Artifact(path, threads=threads) for threads in (1, 2))
    assert two.task is not None
    name = two.task.stages[-1].parts[0].folder
    assert [len(artifact._load(name).beside()) for artifact in (one, two)] == [0, 1]
    image = images.read([ct], one.config.reader)
    expected, got = (artifact.predict(image.array, image.spacing) for artifact in (one, two))
    np.testing.assert_array_equal(got, expected)
