"""``segonnx predict`` on a DICOM series: the labels of its NIfTI file, as NIfTI, DICOM SEG and RTSTRUCT."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK

import segonnx
from segonnx.commands import predict as command
from segonnx.dicom import libraries, seg
from segonnx.predict import files, images, predictor, preview, segments, series_files
from segonnx.predict.looks import Wanted
from segonnx.predict.predictor import Artifact
from tests import handmade, totalsegmentator_folders
from tests.conftest import ROOT, export, message, run
from tests.dicom import judges
from tests.dicom.series_maker import MR, PATIENT, REAL, Maker, save
from tests.dicom.test_files import packed
from tests.dicom.test_series import OBLIQUE, by_simpleitk
from tests.predict.conftest import save as save_nifti
from tests.predict.conftest import volume

pytestmark = pytest.mark.usefixtures("steps_here")

SHAPE = (9, 26, 30)


@pytest.fixture(scope="module")
def made() -> Maker:
    stored = (volume(3, SHAPE).astype(int) + 1024).clip(0, 4095).astype(np.uint16)
    return Maker(stored, spacing=(1.4, 1.6), distance=3.1, orientation=OBLIQUE)


@pytest.fixture(scope="module")
def series(made: Maker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("series") / "Doe, Jane"
    made.write(folder, order=[4, 8, 0, 2, 6, 1, 3, 7, 5])
    return folder


def as_nifti(series: Path, path: Path) -> Path:
    """The NIfTI file that SimpleITK makes of a series."""
    SimpleITK.WriteImage(by_simpleitk(series), str(path))
    return path


def done(*arguments: object) -> Any:
    result = run("predict", *arguments)
    assert result.returncode == 0, result.stderr
    return result


def test_a_series_has_the_labels_of_its_nifti_file(hand: Path, series: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = done(
        hand, series, out / "a.nii.gz", "--format", "nifti", "--format", "dicom-seg", "--format", "dicom-rtstruct",
        "--json", tmp_path / "r.json",
    )  # fmt: skip
    assert result.stdout.startswith(f"series 7: 9x26x30 -> {out / 'a.nii.gz'}, {out / 'a.seg.dcm'}, ")
    assert "2 labels have private codes (99SEGONNX), which nobody else knows: organ_1, organ_2" in result.stderr
    assert sorted(path.name for path in out.iterdir()) == ["a.nii.gz", "a.rtstruct.dcm", "a.seg.dcm"]
    done(hand, as_nifti(series, tmp_path / "image.nii.gz"), tmp_path / "b.nii.gz")
    assert (out / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    labels = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(out / "a.nii.gz")))
    assert len(np.unique(labels)) == 3
    made = pydicom.dcmread(out / "a.seg.dcm")
    segmentation = highdicom.seg.Segmentation.from_dataset(made)
    read = segmentation.get_volume(combine_segments=True).to_patient_orientation("LPH")
    for image in judges.by_dcmqi(out / "a.seg.dcm", tmp_path / "dcmqi"):
        place = SimpleITK.Resample(
            image, SimpleITK.ReadImage(str(out / "a.nii.gz")), SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor
        )
        array = SimpleITK.GetArrayFromImage(place)
        np.testing.assert_array_equal(labels[array > 0], array[array > 0])
    assert np.count_nonzero(read.array) == np.count_nonzero(labels)
    content = json.loads((hand / "manifest.json").read_text())
    (algorithm,) = made.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence
    assert "".join(algorithm.AlgorithmParameters) == f"sha256={content['digest']}"
    assert algorithm.AlgorithmVersion == content["created"]
    (row,) = json.loads((tmp_path / "r.json").read_text())
    assert row["case"] == "series 7" and row["also"] == [str(out / "a.seg.dcm"), str(out / "a.rtstruct.dcm")]
    assert row["shape"] == list(SHAPE) and row["seconds"]["read"] > 0


@pytest.mark.parametrize("reader", series_files.READERS[:4])
def test_every_reader_of_volumes_gives_the_nifti_files_labels(
    reader: str, hand: Path, series: Path, tmp_path: Path
) -> None:
    artifact = Artifact(hand, threads=1)
    from dataclasses import replace

    artifact.config = replace(artifact.config, reader=reader)
    options = files.FileOptions(formats=("dicom-seg", "nifti"), seg_type="labelmap")
    (one,) = series_files.predict(artifact, series, tmp_path / "a", options)
    assert (one.path, one.also) == (tmp_path / "a.nii.gz", (tmp_path / "a.seg.dcm",))
    nifti = as_nifti(series, tmp_path / "image.nii.gz")
    (other,) = series_files.predict(artifact, nifti, tmp_path / "b.nii.gz", files.FileOptions())
    assert one.path.read_bytes() == other.path.read_bytes()
    labels = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(one.path)))
    read = highdicom.seg.segread(tmp_path / "a.seg.dcm")
    uids = [part.SOPInstanceUID for part in _in_order(series)]
    there = read.get_pixels_by_source_instance(uids, combine_segments=True, assert_missing_frames_are_empty=True)
    np.testing.assert_array_equal(there, labels)


def _in_order(series: Path) -> list[Any]:
    reader = SimpleITK.ImageSeriesReader()
    return [pydicom.dcmread(name, stop_before_pixels=True) for name in reader.GetGDCMSeriesFileNames(str(series))]


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task of TotalSegmentator, whose images have axes of their own and whose classes have codes."""
    root = tmp_path_factory.mktemp("task")
    totalsegmentator_folders.write(root / "weights", ["body_fast"])
    export("--totalsegmentator", "body_fast", "--weights-dir", root / "weights", "--out", root / "artifacts")
    return root / "artifacts" / "totalsegmentator-body_fast"


def test_a_task_has_the_labels_of_its_nifti_file_and_codes_where_it_has_them(task: Path, tmp_path: Path) -> None:
    image = totalsegmentator_folders.phantom((44, 52, 20)).T
    made = Maker((image + 1024).clip(0, 4000).astype(np.uint16), (1.9, 1.7), 2.6, orientation=(0, -1, 0, -0.6, 0, 0.8))
    made.write(tmp_path / "in", order=np.random.default_rng(0).permutation(20).tolist())
    done(
        task,
        tmp_path / "in",
        tmp_path / "a",
        "--format",
        "nifti",
        "--format",
        "dicom-seg",
        "--format",
        "dicom-rtstruct",
    )
    done(task, as_nifti(tmp_path / "in", tmp_path / "image.nii.gz"), tmp_path / "b.nii.gz")
    ours, theirs = (SimpleITK.ReadImage(str(tmp_path / name)) for name in ("a.nii.gz", "b.nii.gz"))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(ours), SimpleITK.GetArrayFromImage(theirs))
    assert SimpleITK.GetArrayFromImage(ours).any()
    parts = judges.by_dcmqi(tmp_path / "a.seg.dcm", tmp_path / "dcmqi")
    names = [item.SegmentLabel for item in pydicom.dcmread(tmp_path / "a.seg.dcm").SegmentSequence]
    classes = {1: "body_trunc", 2: "body_extremities"}
    for value in np.unique(SimpleITK.GetArrayFromImage(ours))[1:].tolist():
        number = names.index(classes[value]) + 1
        found = judges.in_order(np.concatenate([judges.places(part, number) for part in parts]))
        np.testing.assert_allclose(found, judges.places(ours, value), atol=1e-3)
    with_masks = run("predict", task, tmp_path / "in", tmp_path / "masks", "--one-file-per-class")
    assert with_masks.returncode == 0 and (tmp_path / "masks" / "body.nii.gz").is_file()


def test_classes_have_totalsegmentators_codes_and_colours(task: Path) -> None:
    artifact = Artifact(task)
    assert artifact.task is not None
    known = {
        "category": ["SCT", "123037004", "Anatomical Structure"], "type": ["SCT", "22943007", "Trunk"],
        "modifier": ["SCT", "7771000", "Left"], "colour": [1, 2, 3],
    }  # fmt: skip
    from dataclasses import replace

    artifact.task = replace(artifact.task, codes={"body_trunc": known, "body_extremities": {"colour": [4, 5, 6]}})
    first, second = segments.of(artifact)
    assert first.codes.type.value == "22943007" and first.codes.modifier is not None and first.colour == (1, 2, 3)
    assert not second.coded and second.colour == (4, 5, 6)


def test_codes_of_a_file_go_into_the_seg(hand: Path, series: Path, tmp_path: Path) -> None:
    codes = tmp_path / "codes.csv"
    codes.write_text(
        "label,category,type,colour\norgan_1,SCT:123037004:Anatomical Structure,SCT:10200004:Liver,#dd8265\n"
        "2,SCT:123037004:Anatomical Structure,SCT:78961009:Spleen,\n"
    )
    result = done(hand, series, tmp_path / "a.dcm", "--format", "dicom-seg", "--codes", codes)
    assert "private codes" not in result.stderr
    items = pydicom.dcmread(tmp_path / "a.dcm").SegmentSequence
    assert [item.SegmentedPropertyTypeCodeSequence[0].CodeMeaning for item in items] == ["Liver", "Spleen"]
    codes.write_text(codes.read_text().replace("organ_1", "organ_9"))
    refused = run("predict", hand, series, tmp_path / "b.dcm", "--format", "dicom-seg", "--codes", codes)
    assert refused.returncode == 2
    assert "has codes of 'organ_9'; the labels are organ_1, organ_2" in message(refused)


def test_a_zip_file_is_predicted_as_its_folder(hand: Path, series: Path, tmp_path: Path) -> None:
    done(hand, packed(series, tmp_path / "in.zip", "Doe^Jane/"), tmp_path / "a.nii.gz")
    done(hand, series, tmp_path / "b.nii.gz")
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_one_of_several_series_is_chosen(hand: Path, series: Path, tmp_path: Path) -> None:
    both = tmp_path / "in"
    Maker(np.zeros((3, 26, 30), np.uint16), elements={"SeriesNumber": 12, "SeriesDescription": "Scout"}).write(
        both / "b", MR
    )
    (both / "a").symlink_to(series)
    for file in series.iterdir():
        (both / file.name).write_bytes(file.read_bytes())
    refused = run("predict", hand, both, tmp_path / "a.nii.gz")
    assert refused.returncode == 2
    assert message(refused).endswith("--series: 7: Abdomen 2.5, CT, 9 slices; 12: Scout, MR, 3 slices")
    done(hand, both, tmp_path / "a.nii.gz", "--series", 7)
    done(hand, series, tmp_path / "b.nii.gz")
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_a_second_stage_takes_a_series(hand: Path, series: Path, tmp_path: Path) -> None:
    first, second = handmade.plans(), handmade.plans()
    chosen = second["configurations"].pop("3d_fullres") | {"previous_stage": "3d_lowres"}
    second["configurations"]["3d_cascade_fullres"] = chosen
    second["configurations"]["3d_lowres"] = first["configurations"]["3d_fullres"]
    folder = handmade.write(tmp_path / "results", second, handmade.dataset(), configuration="3d_cascade_fullres")
    export("--nnunet", folder, "--out", tmp_path / "artifacts")
    (artifact,) = (tmp_path / "artifacts").iterdir()
    done(artifact, series, tmp_path / "a.nii.gz", "--previous", hand)
    done(artifact, as_nifti(series, tmp_path / "image.nii.gz"), tmp_path / "b.nii.gz", "--previous", hand)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_regions_become_segments_that_overlap(series: Path, tmp_path: Path) -> None:
    described = handmade.dataset() | {
        "labels": {"background": 0, "whole": [1, 2], "core": [2]}, "regions_class_order": [1, 2]
    }  # fmt: skip
    folder = handmade.write(tmp_path / "results", handmade.plans("Dataset997_Regions"), described)
    export("--nnunet", folder, "--out", tmp_path / "artifacts")
    (artifact,) = (tmp_path / "artifacts").iterdir()
    done(artifact, series, tmp_path / "a", "--format", "dicom-seg", "--format", "nifti")
    labels = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "a.nii.gz")))
    read = highdicom.seg.segread(tmp_path / "a.seg.dcm")
    assert [read.get_segment_description(number).segment_label for number in (1, 2)] == ["whole", "core"]
    uids = [part.SOPInstanceUID for part in _in_order(series)]
    masks = read.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True)
    np.testing.assert_array_equal(masks[..., 0] > 0, labels > 0)
    np.testing.assert_array_equal(masks[..., 1] > 0, labels == 2)
    refused = run("predict", artifact, series, tmp_path / "b.dcm", "--format", "dicom-seg", "--seg-type", "labelmap")
    assert refused.returncode == 2 and "regions overlap" in message(refused)


def test_what_can_not_be_predicted_is_refused_in_one_line(hand: Path, series: Path, tmp_path: Path) -> None:
    save_nifti(volume(), tmp_path / "ct.nii.gz")
    (tmp_path / "there.dcm").write_text("mine")
    (tmp_path / "folder.dcm").mkdir()
    (tmp_path / "empty").mkdir()
    own = tmp_path / "own"
    Maker(np.zeros((3, 26, 30), np.uint16)).write(own)
    seg_, out = ("--format", "dicom-seg"), tmp_path / "out.dcm"
    for arguments, text in (
        ((hand, tmp_path / "ct.nii.gz", out, *seg_), "--format dicom-seg is made of a DICOM series"),
        ((hand, tmp_path / "ct.nii.gz", out, "--series", "1"), "holds no series '1'|can't be read|no intact DICOM"),
        ((hand, tmp_path / "empty", tmp_path / "labels"), "holds no CASE_0000.nii.gz"),
        ((hand, series, tmp_path / "out.nii.gz", *seg_), r"would hold DICOM: call it out.seg.dcm, or the like"),
        ((hand, series, tmp_path / "there.dcm", *seg_), "--overwrite"),
        ((hand, series, tmp_path / "folder.dcm", *seg_, "--overwrite"), "is a folder"),
        ((hand, own, own / "IM0001.dcm", *seg_, "--overwrite"), "is a slice of the series, which is read"),
        ((hand, series, out, *seg_, "--probabilities"), "--probabilities goes with --format nifti"),
        ((hand, series, out, *seg_, "--evaluate", tmp_path), "--evaluate goes with --format nifti"),
        ((hand, series, tmp_path / "out.txt"), "aren't written to such files"),
    ):
        refused = run("predict", *arguments)
        assert refused.returncode == 2, refused.stderr
        told = message(refused)
        assert any(part in told for part in text.split("|")) and "\n" not in told, told
    assert not out.exists() and (tmp_path / "there.dcm").read_text() == "mine"


def test_networks_of_pictures_and_of_several_channels_take_no_series(hand: Path, series: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    artifact = Artifact(hand, threads=1)
    kept = artifact.config
    for config, line in (
        (replace(kept, reader="Tiff3DIO", file_ending=".tif"), "images are .tif; a DICOM series is a volume"),
        (replace(kept, channels=kept.channels * 2), "takes 2 channels; a DICOM series is one"),
    ):
        artifact.config = config
        with pytest.raises(segonnx.InputError, match=line):
            list(series_files.predict(artifact, series, tmp_path / "a.nii.gz", files.FileOptions()))


def test_without_the_extra_it_is_one_line(
    hand: Path, series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(libraries.NEEDED, "nowhere_to_be_found", "highdicom")
    refused = run("predict", hand, series, tmp_path / "a.nii.gz")
    assert refused.returncode == 2
    assert "highdicom, which DICOM needs, isn't installed: pip install 'segonnx[dicom]'" in message(refused)


@pytest.mark.parametrize("kind", ["good", "bad"])
def test_nothing_that_identifies_is_logged_or_named(
    kind: str,
    hand: Path,
    series: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    elements: dict[str, Any] = {"PatientName": f"{PATIENT}^^^^^^^", "PatientID": "secret " * 12, "PatientSex": "secret"}
    folder = tmp_path / "in"
    with libraries.quiet():
        headers = Maker(np.zeros((3, 26, 30), np.uint16), elements=elements).headers()
        for number, header in enumerate(headers):
            if kind == "bad":
                header.StudyDate = "secret"
            save(header, folder / f"{number}.dcm")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    named: list[str] = []
    for name in ("mkdir", "mkdtemp", "open"):
        _spy(monkeypatch, name, named)
    caplog.set_level(logging.DEBUG)
    result = run("predict", hand, folder, tmp_path / "a.dcm", "--format", "dicom-seg", "-v")
    assert result.returncode == (0 if kind == "good" else 2), result.stderr
    for text in (caplog.text, result.stderr, result.stdout, *named):
        assert "Doe" not in text and "secret" not in text and "Jane" not in text
    assert any(".a.dcm" in one for one in named)


def _spy(monkeypatch: pytest.MonkeyPatch, name: str, named: list[str]) -> None:
    import tempfile

    owner: Any = tempfile if name == "mkdtemp" else os
    real = getattr(owner, name)

    def spy(*arguments: Any, **more: Any) -> Any:
        named.append(f"{arguments} {more}")
        return real(*arguments, **more)

    monkeypatch.setattr(owner, name, spy)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real images aren't beside the repository")
@pytest.mark.slow  # the same is done in this process, with series of ours
def test_the_real_series_in_a_process_as_a_users(hand: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.dcm"
    words = [
        hand,
        REAL,
        out,
        "--format",
        "dicom-seg",
        "--preview",
        tmp_path / "a.png",
        "--statistics",
        tmp_path / "a.csv",
    ]
    command = [sys.executable, "-W", "ignore", "-m", "segonnx", "predict", *map(str, words)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr
    assert pydicom.dcmread(out).NumberOfFrames >= 20
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.dcm", "a.png"]


def test_the_choices_of_the_command_are_those_of_the_package() -> None:
    choices = {
        option.name: list(option.type.choices) for option in command.command.params if hasattr(option.type, "choices")
    }
    assert choices["formats"] == list(series_files.FORMATS)
    assert choices["seg_type"] == list(seg.KINDS)
    assert choices["layout"] == list(preview.LAYOUTS)


def test_other_sources_are_what_they_were(hand: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of many cases isn't searched for DICOM."""
    artifact = predictor.Artifact(hand, threads=1)
    save_nifti(volume(), tmp_path / "in" / "case_0000.nii.gz")
    monkeypatch.setattr("segonnx.dicom.files.is_source", lambda _: pytest.fail("it was searched"))
    for source in (tmp_path / "in", tmp_path / "in" / "case_0000.nii.gz"):
        assert not series_files.is_series(source, artifact.config, files.FileOptions(looks=Wanted()))
    assert images.ENDINGS
