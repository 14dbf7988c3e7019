"""Ensembles of configurations: one artifact, whose label maps are those of nnU-Net's own ensemble command."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import SimpleITK

from benchmarks import against_nnunet
from segonnx.artifacts import manifest
from segonnx.artifacts.replacing import require_artifact
from segonnx.artifacts.verify import verify
from segonnx.errors import InputError, VerifyError
from segonnx.exporters import compound
from segonnx.exporters import ensemble as exporters
from segonnx.exporters import pipeline as pipeline_of_exports
from segonnx.exporters.nnunet import Selection
from segonnx.exporters.settings import Settings
from segonnx.predict import images, nnunet_files, pipeline
from segonnx.predict.predictor import Artifact
from tests import handmade, nnunet_folders
from tests.conftest import ROOT, message, run
from tests.nnunet_commands import nnunet
from tests.predict.conftest import SHAPE, SPACING, save, volume

pytestmark = pytest.mark.usefixtures("steps_here")


def labels_of(path: Path) -> np.ndarray[Any, Any]:
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))


def test_an_ensemble_gives_what_nnunets_command_makes_of_its_members(ensemble: Path, tmp_path: Path) -> None:
    """Each member predicts by itself; nnU-Net's own command then takes the mean of our files."""
    flat, coarse, fine = (ensemble / "members" / name for name in ("0-2d", "1-3d_lowres", "2-3d_cascade_fullres"))
    image = volume()
    image[:4] = 0  # what is cropped away counts as background in each member
    save(image, tmp_path / "in" / "case_0000.nii.gz")
    save(volume(1)[:, :20], tmp_path / "in" / "other_0000.nii.gz")
    for out, artifact, more in (("a", flat, ()), ("b", fine, ("--previous", coarse))):
        done = run("predict", artifact, tmp_path / "in", tmp_path / out, "--probabilities", *more)
        assert done.returncode == 0, done.stderr
    nnunet("nnUNetv2_ensemble", "-i", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "theirs", "-np", 1)
    done = run("predict", ensemble, tmp_path / "in", tmp_path / "ours", "--probabilities")
    assert done.returncode == 0, done.stderr
    for case in ("case", "other"):
        expected, found = (labels_of(tmp_path / who / f"{case}.nii.gz") for who in ("theirs", "ours"))
        np.testing.assert_array_equal(found, expected)
        assert len(np.unique(found)) > 1
        parts = [np.load(tmp_path / one / f"{case}.npz")["probabilities"] for one in "ab"]
        mean = np.load(tmp_path / "ours" / f"{case}.npz")["probabilities"]
        np.testing.assert_array_equal(mean, (parts[0] + parts[1]) / np.float32(2))
        assert np.any(found != labels_of(tmp_path / "a" / f"{case}.nii.gz"))
        assert np.any(found != labels_of(tmp_path / "b" / f"{case}.nii.gz"))
    # The mean is an input of nnU-Net's command, too, and without --probabilities nothing of it stays.
    nnunet("nnUNetv2_ensemble", "-i", tmp_path / "ours", "-o", tmp_path / "again", "-np", 1)
    np.testing.assert_array_equal(
        labels_of(tmp_path / "again" / "case.nii.gz"), labels_of(tmp_path / "ours/case.nii.gz")
    )
    done = run("predict", ensemble, tmp_path / "in" / "case_0000.nii.gz", tmp_path / "one" / "labels.nii.gz")
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(labels_of(tmp_path / "one/labels.nii.gz"), labels_of(tmp_path / "ours/case.nii.gz"))
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["labels.nii.gz"]
    np.testing.assert_array_equal(
        Artifact(ensemble, threads=1).predict(image, SPACING), labels_of(tmp_path / "ours/case.nii.gz")
    )


def test_geometry_in_the_pickle_is_that_of_nnunets_reader(ensemble: Path, tmp_path: Path) -> None:
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    save(volume(), tmp_path / "ct.nii.gz")
    done = run("predict", ensemble / "members/0-2d", tmp_path / "ct.nii.gz", tmp_path / "a.nii.gz", "--probabilities")
    assert done.returncode == 0, done.stderr
    _, expected = SimpleITKIO().read_images([str(tmp_path / "ct.nii.gz")])
    assert pickle.loads((tmp_path / "a.pkl").read_bytes()) == expected
    again = run("predict", ensemble / "members/0-2d", tmp_path / "ct.nii.gz", tmp_path / "a.nii", "--probabilities")
    assert again.returncode == 2 and "--overwrite" in again.stderr


@pytest.mark.parametrize("reader", ["SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient"])
def test_nnunets_readers_write_label_maps_with_our_geometry(reader: str, tmp_path: Path) -> None:
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

    save(volume(), tmp_path / "ct.nii.gz")
    theirs = recursive_find_reader_writer_by_name(reader)()
    _, expected = theirs.read_images([str(tmp_path / "ct.nii.gz")])
    image = images.read([tmp_path / "ct.nii.gz"], reader)
    found = pickle.loads(nnunet_files.properties(image))
    labels = (image.array[0] > 0).astype(np.uint8)
    for name, properties in (("ours", found), ("theirs", expected)):
        theirs.write_seg(labels, str(tmp_path / f"{name}.nii.gz"), properties)
    ours, wanted = (SimpleITK.ReadImage(str(tmp_path / f"{name}.nii.gz")) for name in ("ours", "theirs"))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(ours), SimpleITK.GetArrayFromImage(wanted))
    for what in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(ours, what)() == pytest.approx(getattr(wanted, what)(), abs=1e-5)


def test_an_ensemble_verifies_packs_and_unpacks(ensemble: Path, tmp_path: Path) -> None:
    done = run("verify", ensemble)
    assert done.returncode == 0 and "OK" in done.stdout, done.stderr
    for packing in ("zip", "oci"):
        packed, out = tmp_path / packing, tmp_path / f"from-{packing}"
        assert run("pack", ensemble, "--format", packing, "-o", packed).returncode == 0
        done = run("unpack", packed, "-o", out)
        assert done.returncode == 0, done.stderr
        assert manifest.read(out) == manifest.read(ensemble)
    for command in (
        ("pack", ensemble, "--format", "triton", "-o", tmp_path / "triton"),
        ("bench", "--artifact", ensemble, "--backend", "ort"),
    ):
        done = run(*command)
        assert done.returncode == 2 and "is an ensemble" in message(done), done.stderr
    card = (ensemble / "README.md").read_text()
    assert "members/1-3d_lowres" in card and "0 background" in card


def resealed(folder: Path, change: dict[str, Any]) -> None:
    content = manifest.read(folder)
    (folder / "manifest.json").write_bytes(manifest.seal({**content, **change}))


def test_what_is_wrong_with_an_ensemble_is_found(ensemble: Path, tmp_path: Path) -> None:
    content = manifest.read(ensemble)
    flat, coarse, fine = content["members"]

    def found(change: dict[str, Any]) -> str:
        copy = shutil.copytree(ensemble, tmp_path / "copy", copy_function=shutil.copyfile)
        resealed(copy, change)
        with pytest.raises(VerifyError) as caught:
            verify(copy, replay=False)
        shutil.rmtree(copy)
        return str(caught.value)

    assert "twice" in found({"members": [flat, flat, coarse, fine]})
    assert "counts in the mean" in found({"members": [one | {"averaged": False} for one in content["members"]]})
    assert "is no second stage" in found({"members": [flat | {"previous": coarse["folder"]}, coarse, fine]})
    assert "second stage" in found({"members": [flat, coarse, fine | {"previous": None}]})
    assert "run before" in found({"members": [flat, fine, coarse]})
    assert "no member's" in found({"members": [flat]})
    assert "is no artifact" in found({"members": [flat, coarse, fine, flat | {"folder": "members/none"}]})
    assert "schema" in found({"members": [flat | {"folder": "../elsewhere"}]})
    assert "schema" in found({"members": []})
    own = {name: entry for name, entry in content["files"].items() if name != "members/0-2d/model.onnx"}
    assert "doesn't know" in found({"files": own})


def test_a_changed_member_is_found(ensemble: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(ensemble, tmp_path / "copy", copy_function=shutil.copyfile)
    name = "members/1-3d_lowres"
    resealed(copy / name, {"labels": []})
    with pytest.raises(VerifyError, match="bytes"):
        verify(copy, replay=False)
    content = manifest.read(copy)
    data = (copy / name / "manifest.json").read_bytes()
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    resealed(copy, {"files": content["files"] | {f"{name}/manifest.json": entry}})
    with pytest.raises(VerifyError, match="differ in their labels|inference needs a value for each output"):
        verify(copy, replay=False)


def test_an_ensemble_is_kept_where_nothing_changed(dataset: Path, ensemble: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(ensemble, out / ensemble.name, copy_function=shutil.copyfile)
    words = ("export", "--nnunet", dataset, "--ensemble", "2d", "3d_cascade_fullres", "--out", out)
    done = run(*words)
    assert done.returncode == 0 and "kept" in done.stdout, done.stderr
    done = run(*words, "--dynamic")
    assert done.returncode == 2 and "--overwrite" in message(done)


def words_of(dataset: Path, out: Path) -> tuple[object, ...]:
    return ("export", "--nnunet", dataset, "--ensemble", "2d", "3d_cascade_fullres", "--out", out, "--overwrite")


def test_overwrite_replaces_another_artifact_alone(dataset: Path, ensemble: Path, tmp_path: Path) -> None:
    """Whole or damaged; a folder that holds something else stays, and so does what is read."""
    target = tmp_path / "out" / ensemble.name
    for made in (target / "thesis.txt", target / "members" / "thesis.txt"):
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_text("mine")
        (target / "manifest.json").write_text("{}")
        done = run(*words_of(dataset, tmp_path / "out"))
        assert done.returncode == 2 and "leaves it alone" in message(done) and "\n" not in message(done)
        assert made.read_text() == "mine"
        shutil.rmtree(target)
    target.symlink_to(dataset)
    done = run(*words_of(dataset, tmp_path / "out"))
    assert done.returncode == 2 and "which is read" in message(done), done.stderr
    target.unlink()
    shutil.copytree(ensemble, target, copy_function=shutil.copyfile)
    (target / "manifest.json").write_text("{}")
    require_artifact(target)
    shutil.rmtree(target / "members" / "0-2d")
    (target / "members" / "0-2d").mkdir()
    require_artifact(target)


def test_what_stands_at_the_target_at_the_end_is_looked_at(
    dataset: Path, ensemble: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may have put something there since the beginning."""
    target = tmp_path / "out" / ensemble.name

    def write(folder: Path, *_: object) -> dict[str, Any]:
        (folder / "manifest.json").write_text("{}")
        target.mkdir()
        (target / "thesis.txt").write_text("mine")
        return {}

    monkeypatch.setattr(pipeline_of_exports, "export", lambda *_: SimpleNamespace(stages={}))
    monkeypatch.setattr(compound, "_write", write)
    for more in ((), ("--overwrite",)):
        shutil.rmtree(target, ignore_errors=True)
        done = run(*words_of(dataset, tmp_path / "out")[:-1], *more)
        assert done.returncode == 2 and "\n" not in message(done), done.stderr
        assert (target / "thesis.txt").read_text() == "mine"
    assert [path.name for path in (tmp_path / "out").iterdir()] == [ensemble.name]


@pytest.mark.parametrize("which", ["member", "ensemble"])
def test_what_no_manifest_can_hold_is_refused_before_the_work(
    which: str, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_of_exports, "export", lambda *_: pytest.fail("the work began"))
    found = exporters.find(dataset, ("2d", "3d_fullres"), Selection())
    if which == "ensemble":
        found = replace(found, name="two\nlines")
    else:
        last = found.members[-1]
        spec = replace(last.network.spec, source="half \ud800")
        found = replace(found, members=(*found.members[:-1], replace(last, network=replace(last.network, spec=spec))))
    with pytest.raises(InputError, match="can't be written as an artifact"):
        exporters.export(found, Settings(out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def information(dataset: Path, *configurations: str) -> None:
    best = [
        {"configuration": one, "trainer": "nnUNetTrainer", "plans_identifier": "nnUNetPlans"} for one in configurations
    ]
    content = {"folds": [0], "best_model_or_ensemble": {"selected_model_or_models": best}}
    (dataset / "inference_information.json").write_text(json.dumps(content))


def test_the_best_ensemble_is_the_one_that_nnunet_names(dataset: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(dataset, tmp_path / dataset.name)
    with pytest.raises(InputError, match=r"has no inference_information\.json.*2d"):
        exporters.find(copy, (), Selection())
    information(copy, "2d", "3d_fullres")
    found = exporters.find(copy, (), Selection())
    assert found.name == "Dataset998_Whole-nnUNetTrainer__nnUNetPlans-ensemble-2d+3d_fullres"
    assert [member.entry for member in found.members] == [
        {"folder": "members/0-2d", "averaged": True, "previous": None},
        {"folder": "members/1-3d_fullres", "averaged": True, "previous": None},
    ]
    # A first stage that counts itself is there once, and runs first.
    information(copy, "3d_cascade_fullres", "3d_lowres")
    assert [member.entry for member in exporters.find(copy, (), Selection()).members] == [
        {"folder": "members/0-3d_lowres", "averaged": True, "previous": None},
        {"folder": "members/1-3d_cascade_fullres", "averaged": True, "previous": "members/0-3d_lowres"},
    ]
    for content, text in (
        ("{}", "doesn't fit"),
        ("[", "isn't JSON"),
        ('{"folds": [0], "best_model_or_ensemble": {"selected_model_or_models": []}}', "doesn't fit"),
    ):
        (copy / "inference_information.json").write_text(content)
        with pytest.raises(InputError, match=text):
            exporters.find(copy, (), Selection())
    shutil.rmtree(copy / "nnUNetTrainer__nnUNetPlans__3d_lowres")
    with pytest.raises(InputError, match="no trained folder of '3d_lowres'"):
        exporters.find(copy, ("3d_cascade_fullres",), Selection())


def test_what_makes_no_ensemble_is_refused_in_one_line(dataset: Path, tmp_path: Path) -> None:
    for arguments, text in (
        (("--nnunet", dataset, "--ensemble", "3d_other"), "no trained folder of '3d_other'"),
        (("--nnunet", dataset / "nnUNetTrainer__nnUNetPlans__2d", "--ensemble"), "is one configuration"),
        (("--nnunet", tmp_path, "--ensemble"), "no folder that nnU-Net trained"),
        (("--nnunet", tmp_path / "none", "--ensemble"), "is not a folder"),
        (("--nnunet", dataset, "--ensemble", "2d", "--shape", "32,32"), "--shape is for one network"),
        (("--nnunet", dataset, "--ensemble", "2d", "--output", "labels"), "--output labels is for one network"),
        (("--nnunet", dataset, "--ensemble", "2d", "--fold", "0,3"), "fold_3"),
        (("--nnunet", dataset, "--ensemble", "2d", "--fold", "x"), "--fold takes"),
        (("--ensemble", "2d"), "goes with --nnunet"),
    ):
        done = run("export", *arguments, "--out", tmp_path / "out")
        assert done.returncode == 2, done.stderr
        assert text in message(done) and "\n" not in message(done)
    assert not (tmp_path / "out").exists()


def test_configurations_of_other_labels_do_not_go_together(dataset: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(dataset, tmp_path / dataset.name)
    shutil.rmtree(copy / "nnUNetTrainer__nnUNetPlans__2d")
    handmade.write(tmp_path, handmade.several(), handmade.dataset(3), configuration="2d", mirror_axes=(0, 1))
    done = run("export", "--nnunet", copy, "--ensemble", "2d", "3d_fullres", "--out", tmp_path / "out")
    assert done.returncode == 2 and "differ in their labels" in message(done), done.stderr


def edit(model: Path, change: dict[str, Any]) -> None:
    """Change the configuration of a trained folder in the plans beside its folds."""
    planned = json.loads((model / "plans.json").read_text())
    planned["configurations"][model.name.rpartition("__")[2]] |= change
    (model / "plans.json").write_text(json.dumps(planned))


def test_an_ensemble_in_a_zip_file_of_nnunets_is_read_as_it_is(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(dataset, tmp_path / "results" / dataset.name)
    information(copy, "2d", "3d_cascade_fullres")
    models = [f"nnUNetTrainer__nnUNetPlans__{configuration}" for configuration in ("2d", "3d_cascade_fullres")]
    steps = copy / "ensembles" / f"ensemble___{models[0]}___{models[1]}___0" / "postprocessing.pkl"
    steps.parent.mkdir(parents=True)
    against_nnunet.write_postprocessing("whole", steps)
    path = tmp_path / "models.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(copy.rglob("*.*")):  # named from the folder of all data sets, as nnU-Net does
            archive.write(file, file.relative_to(tmp_path / "results"))
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    words = ("--ensemble", "--optimize", "none", "--out", tmp_path / "out")
    done = run("export", "--nnunet", path, *words)
    assert done.returncode == 0 and "the mean of 2 networks and 1 first stage" in done.stdout, done.stderr
    assert list((tmp_path / "scratch").iterdir()) == []
    (artifact,) = (tmp_path / "out").iterdir()
    content = verify(artifact).manifest
    assert [member["folder"] for member in content["members"]] == [
        "members/0-2d", "members/1-3d_lowres", "members/2-3d_cascade_fullres",
    ]  # fmt: skip
    kept = [step["keep_largest_component"] for step in content["inference"]["postprocessing"]]
    assert kept == [[1, 2], [1], [2]]
    # The data set's folder gives the same, and what is wrong with the file is said of the file.
    done = run("export", "--nnunet", copy, *words)
    assert done.returncode == 0 and "kept" in done.stdout, done.stderr
    done = run("export", "--nnunet", path, "--ensemble", "3d_other", "--out", tmp_path / "out")
    assert done.returncode == 2 and f"{path}/{dataset.name} holds no trained folder" in message(done), done.stderr


def test_what_predict_would_refuse_of_a_member_is_refused_at_export(dataset: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(dataset, tmp_path / dataset.name)
    stage = copy / "nnUNetTrainer__nnUNetPlans__3d_lowres"
    edit(stage, {"preprocessor_name": "MyPreprocessor"})
    words = ("--optimize", "none", "--out", tmp_path / "out")
    command = ("export", "--nnunet", copy, "--ensemble", "2d", "3d_cascade_fullres", *words)
    done = run(*command)
    assert done.returncode == 2, done.stderr
    assert "the preprocessor is 'MyPreprocessor'" in message(done) and "--allow-network-only" in message(done)
    assert not (tmp_path / "out").exists()
    done = run(*command, "--allow-network-only")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("MyPreprocessor") == 1
    assert f"segonnx: {stage.name}: fold_0: plans.json or dataset.json was changed after the training" in done.stderr
    (artifact,) = (tmp_path / "out").iterdir()
    assert "MyPreprocessor" in manifest.read(artifact / "members/1-3d_lowres")["network_only"]
    assert "network_only" not in manifest.read(artifact / "members/0-2d")
    assert verify(artifact).manifest["members"]
    save(volume(), tmp_path / "ct.nii.gz")
    done = run("predict", artifact, tmp_path / "ct.nii.gz", tmp_path / "labels.nii.gz")
    assert done.returncode == 2 and "MyPreprocessor" in message(done)
    # What nobody asked for isn't looked at.
    exported = mock.Mock(side_effect=InputError("enough"))
    with mock.patch.object(exporters, "export", exported):
        done = run("export", "--nnunet", copy, "--ensemble", "2d", "3d_fullres", *words)
    assert message(done) == "segonnx: enough"
    assert "changed after" not in done.stderr and exported.call_count == 1


def test_an_ensemble_takes_no_first_stage(ensemble: Path, tmp_path: Path) -> None:
    save(volume(), tmp_path / "ct.nii.gz")
    coarse = ensemble / "members" / "1-3d_lowres"
    done = run("predict", ensemble, tmp_path / "ct.nii.gz", tmp_path / "out.nii.gz", "--previous", coarse)
    assert done.returncode == 2 and "takes no --previous" in message(done)
    with pytest.raises(InputError, match="holds that stage itself"):
        Artifact(ensemble, threads=1).predict(volume(), SPACING, previous=np.zeros(SHAPE, np.uint8))


@pytest.mark.parametrize("regions", [False, True])
def test_labels_of_mean_probabilities_are_those_of_nnunet(regions: bool, loaded: Artifact) -> None:
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    labels = (
        {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3} if regions else {"background": 0, "a": 1, "b": 2}
    )
    order = [1, 2] if regions else None
    manager = LabelManager(labels, order)
    values = (1, 2) if regions else (0, 1, 2)
    probabilities = np.random.default_rng(0).random((len(values), 4, 5, 6), np.float32)
    probabilities[:, 0] = 0.5  # equal ones, and regions that don't exceed a half
    total = np.asfortranarray(3 * probabilities)
    mean = total / np.float32(3)
    found = pipeline.decide(total, 3, replace(loaded.config, regions=regions, label_values=values))
    np.testing.assert_array_equal(found, manager.convert_probabilities_to_segmentation(mean))
    np.testing.assert_array_equal(total, mean)


def test_regions_outside_of_the_crop_are_nowhere(loaded: Artifact) -> None:
    """Of labels, the background has the probability 1 there; of regions, none has any."""
    image = np.zeros((1, *SHAPE), np.float32)
    image[:, 6:11, 3:20, 7:33] = volume()[6:11, 3:20, 7:33]
    for regions, values in ((False, (0, 1, 2)), (True, (1, 2, 3))):
        chosen = replace(loaded.config, regions=regions, label_values=values)
        once_filled, twice = (np.full((3, *SHAPE), np.nan, np.float32) for _ in range(2))
        for array, add in ((once_filled, False), (twice, False), (twice, True)):
            options = pipeline.PredictOptions(add=add)
            pipeline.predict(image, SPACING, chosen, loaded._members[0].network.forward(), options, probabilities=array)
        np.testing.assert_array_equal(twice, 2 * once_filled)
        assert np.all(once_filled[:, :6] == np.array([0 if regions else 1, 0, 0])[:, None, None, None])
        assert not np.isnan(once_filled).any()


@pytest.mark.slow
def test_ensembles_of_trained_configurations_are_those_of_nnunet(tmp_path: Path) -> None:
    """Trains the configurations of a data set, lets nnU-Net find the best, and holds ensembles against its commands."""
    nnunet_folders.run("make", "whole", tmp_path, root=tmp_path)
    dataset = tmp_path / "results" / nnunet_folders.name("whole")
    steps = tmp_path / "postprocessing.pkl"
    against_nnunet.write_postprocessing("whole", steps)
    for number, configurations in enumerate(against_nnunet.ENSEMBLES.values()):
        out = tmp_path / f"artifacts{number}"
        done = run(
            "export", "--nnunet", dataset, "--ensemble", *configurations, "--fold", "0,1", "--out", out,
            "--postprocessing", steps,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        (artifact,) = out.iterdir()
        command = [sys.executable, "-m", "benchmarks.against_nnunet", "whole", "whole", dataset, artifact, steps]
        env = {**os.environ, "nnUNet_compile": "f", "PYTHONWARNINGS": "ignore"}
        words = [*map(str, command), *configurations]
        printed = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=env, check=False)
        assert printed.returncode == 0, printed.stderr[-3000:]
        found = json.loads(printed.stdout.splitlines()[-1])
        assert found["postprocessed"]["changed"] > 0
        for part in ("ensemble", "postprocessed"):
            assert found[part]["labels"] > 1
            assert found[part]["agreement"] > 0.9995
    # What nnU-Net wrote down itself is read, whatever it found best.
    information = json.loads((dataset / "inference_information.json").read_text())
    best = [one["configuration"] for one in information["best_model_or_ensemble"]["selected_model_or_models"]]
    found = exporters.find(dataset, (), Selection())
    trainings = [member.network.spec.described["training"] for member in found.members if member.averaged]
    assert sorted(one["configuration"] for one in trainings) == sorted(best)
    assert all(one["folds"] == ["0", "1"] for one in trainings)
    written = json.loads(next(dataset.glob("**/postprocessing.json")).read_text())
    assert found.steps is not None
    assert len(found.steps) == len(written["postprocessing_fns"])
