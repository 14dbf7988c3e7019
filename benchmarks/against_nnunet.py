"""Holds `segonnx predict` against nnU-Net's own predictor, on the folders of ``tests.nnunet_folders``.

    python -m benchmarks.against_nnunet agree KIND FOLDER ARTIFACT FOLD [PREVIOUS]
                                                    print how far label maps and probabilities agree
    python -m benchmarks.against_nnunet whole KIND DATASET ARTIFACT POSTPROCESSING CONFIGURATION...
                                                    print how far the label maps of an ensemble agree with nnU-Net's
    python -m benchmarks.against_nnunet read ROOT   print the same from file to file, for each of nnU-Net's readers
    python -m benchmarks.against_nnunet readers ROOT
                                                    train, export and read, into docs/predict.md
    python -m benchmarks.against_nnunet table ROOT
                                                    all of it, for every kind: both tables of agreement in
                                                    docs/predict.md

Runs in processes of its own, like that. ``benchmarks.race_nnunet`` takes the times, for which a machine must be idle.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import resamplers
from benchmarks.docs import put_block
from segonnx.predict import files, images
from segonnx.predict.predictor import Artifact
from tests import nnunet_folders
from tests.nnunet_commands import nnunet

PAGE = nnunet_folders.ROOT / "docs" / "predict.md"
BLOCK_VERSION = 2
"""Raised when what this program writes, or measures, changes."""
READERS = {
    "SimpleITKIO": ("batchnorm", ".gipl", "axes in another order"),
    "SimpleITKIOWithReorient": ("batchnorm", ".nrrd", "axes in another order"),
    "NibabelIO": ("batchnorm", ".nii.gz", "sheared sform"),
    "NibabelIOWithReorient": ("batchnorm", ".nii", "neither sform nor qform"),
    "Tiff3DIO": ("batchnorm", ".tif", "a spacing beside it"),
    "NaturalImage2DIO": ("flat", ".tif", "300 dpi"),
}
"""Of each reader: the kind of the folder that it reads for, and what the file is."""


def predictor(folder: Path, folds: Sequence[str], *, mirror: bool, wide: bool) -> Any:
    """nnU-Net's own; ``wide`` lets it add its windows up in float32 instead of float16."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    if wide:
        torch.half = torch.float32
    made = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False, use_mirroring=mirror)
    made.initialize_from_trained_model_folder(str(folder), list(folds))
    return made


def agree(kind: str, folder: Path, artifact: Path, fold: str, previous: Path | None = None) -> dict[str, Any]:
    """How far the results for an image agree: with mirroring, without, and on a grid that must be resampled.

    Args:
        kind: of the folder.
        folder: that nnU-Net trained.
        artifact: made of it.
        fold: which one.
        previous: the first stage's artifact, whose label map both get.

    Returns:
        By ``mirrored``, ``plain`` and ``resampled``: ``agreement``, the fraction of voxels with the same label;
        ``dice``, the least of any label; ``labels``, how many labels nnU-Net's map has; ``probabilities``, the largest
        difference.
    """
    image, _ = nnunet_folders.image(kind, nnunet_folders.CASES)
    own = nnunet_folders.KINDS[kind].spacing
    ours = Artifact(artifact)
    result = {}
    for word, mirror, scales in (
        ("mirrored", True, (1, 1, 1)),
        ("plain", False, (1, 1, 1)),
        ("resampled", False, (0.7, 1.3, 0.9)),
    ):
        spacing = tuple(size * scale for size, scale in zip(own, scales, strict=True))
        first = None if previous is None else Artifact(previous).predict(image, spacing)
        theirs, expected = predictor(folder, [fold], mirror=mirror, wide=True).predict_single_npy_array(
            image, {"spacing": list(spacing)}, None if first is None else first[None].astype(np.int16), None, True
        )
        probabilities = np.empty(expected.shape, np.float32)
        found = ours.predict(image, spacing, previous=first, probabilities=probabilities, mirror=mirror)
        difference = float(np.max(np.abs(probabilities - expected)))
        result[word] = _agreement(theirs, found) | {"probabilities": difference}
    return result


@dataclass(frozen=True)
class Run:
    """A trained folder, and how nnU-Net predicts with it.

    Attributes:
        model: the name of the trained folder.
        folds: that are averaged.
        averaged: whether it counts in the ensemble; a first stage alone doesn't.
        after: the trained folder of the first stage, which is a run before this one.
    """

    model: str
    folds: tuple[str, ...]
    averaged: bool = True
    after: str | None = None


def whole(kind: str, dataset: Path, artifact: Path, steps: Path, runs: Sequence[Run]) -> dict[str, Any]:
    """How far an ensemble's label maps agree with those that nnU-Net's predictor and its own commands make.

    Two images are predicted: one as trained on, one of another shape on another grid.

    Args:
        kind: of the data set.
        dataset: the folder of the data set's results.
        artifact: the ensemble, which carries the postprocessing.
        steps: the file of the postprocessing; see ``write_postprocessing``.
        runs: what nnU-Net runs, in order.

    Returns:
        By ``ensemble`` and ``postprocessed``: ``agreement``, the fraction of voxels with the same label; ``dice``, the
        least of any label; ``labels``, how many labels nnU-Net's maps have. ``postprocessed`` has ``changed``, too: how
        many voxels nnU-Net's postprocessing changed.
    """
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        _write_images(kind, work / "in")
        with contextlib.redirect_stdout(io.StringIO()):  # it prints
            for run in runs:
                _predict(dataset / run.model, run, work)
            averaged = [work / run.model for run in runs if run.averaged]
            nnunet("nnUNetv2_ensemble", "-i", *averaged, "-o", work / "theirs", "-np", 1)
            nnunet(
                "nnUNetv2_apply_postprocessing", "-i", work / "theirs", "-o", work / "kept", "-np", 1,
                "-pp_pkl_file", steps, "-plans_json", averaged[0] / "plans.json",
            )  # fmt: skip
        ours = Artifact(artifact)
        for out, postprocess in (("ours", False), ("ours_kept", True)):
            settings = files.FileOptions(mirror=True, postprocess=postprocess)
            list(files.predict(ours, work / "in", work / out, settings))
        theirs, kept, found, found_kept = (_label_maps(work / out) for out in ("theirs", "kept", "ours", "ours_kept"))
        return {
            "ensemble": _agreement(theirs, found),
            "postprocessed": _agreement(kept, found_kept) | {"changed": int(np.sum(theirs != kept))},
        }


def write_postprocessing(kind: str, path: Path) -> None:
    """Write a postprocessing.pkl as nnU-Net does: it keeps the largest component of all labels, then of each."""
    from nnunetv2.postprocessing.remove_connected_components import (
        remove_all_but_largest_component_from_segmentation as keep_largest,
    )

    labels = [value for value in nnunet_folders.KINDS[kind].labels.values() if value]
    steps = [labels, *labels]
    with path.open("wb") as file:
        pickle.dump(([keep_largest] * len(steps), [{"labels_or_regions": step} for step in steps]), file)


def _write_images(kind: str, folder: Path) -> None:
    import SimpleITK

    folder.mkdir()
    spacing = np.array(nnunet_folders.KINDS[kind].spacing)
    for case, scale in enumerate(((1, 1, 1), (0.7, 1.3, 0.9))):
        image, _ = nnunet_folders.image(kind, nnunet_folders.CASES + case)
        for index, channel in enumerate(image if not case else image[:, 2:, :, 5:]):
            picture = SimpleITK.GetImageFromArray(channel)
            picture.SetSpacing((spacing * scale)[::-1].tolist())
            SimpleITK.WriteImage(picture, str(folder / f"case{case}_{index:04}.nii.gz"))


def _predict(model: Path, run: Run, work: Path) -> None:
    (work / run.model).mkdir()
    made = predictor(model, run.folds, mirror=True, wide=True)
    before = None if run.after is None else str(work / run.after)
    made.predict_from_files_sequential(
        str(work / "in"), str(work / run.model), save_probabilities=True, folder_with_segs_from_prev_stage=before
    )


def _label_maps(folder: Path) -> Any:
    """The labels of all cases of a folder, one behind the other."""
    import SimpleITK

    paths = sorted(folder.glob("*.nii.gz"))
    return np.concatenate([SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))).ravel() for path in paths])


def readers(root: Path) -> dict[str, Any]:
    """How far label maps agree, from file to file, where nnU-Net's plans name each of its readers.

    Args:
        root: where the kinds of ``READERS`` were made.

    Returns:
        By the reader's name: ``agreement`` and ``dice``, as ``agree`` gives them, and ``same``: the files are the same.
    """
    result = {}
    for reader, (kind, ending, _) in READERS.items():
        with tempfile.TemporaryDirectory() as name:
            work = Path(name)
            folder, fold = _read_by(reader, kind, ending, root, work)
            for side in ("in", "theirs"):
                (work / side).mkdir()
            _write_image(reader, kind, ending, work / "in")
            paths = [str(path) for path in sorted((work / "in").glob(f"*{ending}"))]
            with contextlib.redirect_stdout(io.StringIO()):  # it prints
                predictor(folder, (fold,), mirror=False, wide=True).predict_from_files_sequential(
                    [paths], [str(work / "theirs" / "case")]
                )
            run("segonnx", "export", "--nnunet", folder, "--fold", fold, "--out", work / "artifacts")
            (artifact,) = (work / "artifacts").iterdir()
            list(files.predict(Artifact(artifact), work / "in", work / "ours", files.FileOptions()))
            expected, found = (
                images.read([work / side / f"case{ending}"], reader).array for side in ("theirs", "ours")
            )
            contents = [
                gzip.decompress(data) if ending.endswith(".gz") else data
                for data in ((work / side / f"case{ending}").read_bytes() for side in ("theirs", "ours"))
            ]
        result[reader] = {**_agreement(expected, found), "same": contents[0] == contents[1]}
    return result


def _agreement(expected: Any, found: Any) -> dict[str, Any]:
    """Of label maps: the fraction of voxels with the same label, the least Dice, and how many labels are expected."""
    values = np.unique(expected)
    dice = [
        2 * np.sum((expected == value) & (found == value)) / (np.sum(expected == value) + np.sum(found == value))
        for value in values
    ]
    return {"agreement": float(np.mean(expected == found)), "dice": float(min(dice)), "labels": len(values)}


def _read_by(reader: str, kind: str, ending: str, root: Path, work: Path) -> tuple[Path, str]:
    """A copy of a trained folder whose plans name another reader, and its fold."""
    import torch

    (folder, *_), (_, fold) = nnunet_folders.folders(kind, root), nnunet_folders.KINDS[kind].runs[0]
    copy = work / folder.parent.name / folder.name
    copy.mkdir(parents=True)
    for file in ("plans.json", "dataset.json"):
        content = json.loads((folder / file).read_text())
        content |= {"image_reader_writer": reader} if file == "plans.json" else {"file_ending": ending}
        (copy / file).write_text(json.dumps(content))
    path = Path(f"fold_{fold}", "checkpoint_final.pth")
    checkpoint = torch.load(folder / path, weights_only=False)
    checkpoint["init_args"]["plans"]["image_reader_writer"] = reader
    checkpoint["init_args"]["dataset_json"]["file_ending"] = ending
    (copy / path).parent.mkdir()
    torch.save(checkpoint, copy / path)
    return copy, fold


def _write_image(reader: str, kind: str, ending: str, folder: Path) -> None:
    """An image that the kind's network wasn't trained on, in a file that only its reader reads so."""
    import nibabel
    import SimpleITK
    import tifffile

    channels, _ = nnunet_folders.image(kind, nnunet_folders.CASES)
    spacing = [0.8 * size for size in nnunet_folders.KINDS[kind].spacing]
    for index, channel in enumerate(channels):
        path = folder / f"case_{index:04}{ending}"
        if reader.startswith("SimpleITKIO"):
            picture = SimpleITK.GetImageFromArray(channel.astype(np.int16))
            picture.SetSpacing(spacing[::-1])
            picture.SetDirection((0, 1, 0, 1, 0, 0, 0, 0, -1))
            SimpleITK.WriteImage(picture, str(path))
        elif reader.startswith("NibabelIO"):
            affine = np.diag([*spacing[::-1], 1])
            affine[1, 2] = 0.14
            image = nibabel.Nifti1Image(channel.astype(np.int16).transpose(2, 1, 0), affine)
            if reader.endswith("WithReorient"):
                image.set_sform(None, 0)
                image.set_qform(None, 0)
            image.to_filename(path)
        elif reader == "Tiff3DIO":
            tifffile.imwrite(path, channel.astype(np.int16))
            (folder / "case.json").write_text(json.dumps({"spacing": spacing}))
        else:
            middle = channel[len(channel) // 2].astype(np.uint8)
            tifffile.imwrite(path, middle, resolution=(300, 300), resolutionunit=2)


def table(root: Path) -> str:
    """Train and export every kind below ``root``, where that isn't done, and write how all agree as markdown."""
    lines = [
        "| data set | image | same label | least Dice | probabilities differ by up to |",
        "|---|---|---|---|---|",
    ]
    words = {"mirrored": "as trained on, mirrored", "plain": "as trained on", "resampled": "on another grid"}
    for kind in nnunet_folders.KINDS:
        if kind in nnunet_folders.SEVERAL:
            continue
        folder, fold, artifacts = exported(kind, root)
        *previous, artifact = artifacts
        for word, row in json.loads(run(__spec__.name, "agree", kind, folder, artifact, fold, *previous)).items():
            lines.append(
                f"| {nnunet_folders.name(kind)} | {words[word]} | {100 * row['agreement']:.4f} % | {row['dice']:.6f} "
                f"| {row['probabilities']:.1e} |"
            )
    lines += _whole_rows(root)
    lines += resamplers.rows(root, run)
    return "\n".join([*lines, ""])


def exported(kind: str, root: Path) -> tuple[Path, str, list[Path]]:
    """Train and export a kind that is one network or a cascade, where that isn't done.

    Args:
        kind: a key of ``nnunet_folders.KINDS``.
        root: of nnU-Net's folders.

    Returns:
        The trained folder, that of a cascade's last stage; its fold; and the artifacts of all stages.
    """
    _make(kind, root)
    artifacts: list[Path] = []
    for folder in nnunet_folders.folders(kind, root):
        runs = nnunet_folders.KINDS[kind].runs
        (fold, *_) = (fold for configuration, fold in runs if folder.name.endswith(f"__{configuration}"))
        out = root / "predict" / f"{kind}-{len(artifacts)}"
        run("segonnx", "export", "--nnunet", folder, "--fold", fold, "--out", out)
        artifacts += out.iterdir()
    return folder, fold, artifacts


ENSEMBLES = {
    "2d and 3d_fullres": ("2d", "3d_fullres"),
    "3d_lowres and the cascade": ("3d_lowres", "3d_cascade_fullres"),
    "2d and the cascade, 3d_lowres inside": ("2d", "3d_cascade_fullres"),
}
"""Ensembles that are compared, by what the table calls them."""


def _whole_rows(root: Path) -> list[str]:
    """Rows of the table for ensembles, and for postprocessing."""
    (kind,) = nnunet_folders.SEVERAL
    dataset = root / "results" / nnunet_folders.name(kind)
    if not (dataset / "inference_information.json").exists():
        nnunet_folders.run("make", kind, root, root=root)
    steps = root / "predict" / "postprocessing.pkl"
    steps.parent.mkdir(exist_ok=True)
    write_postprocessing(kind, steps)
    rows = []
    for number, (word, configurations) in enumerate(ENSEMBLES.items()):
        out = root / "predict" / f"{kind}-{number}"
        run(
            "segonnx", "export", "--nnunet", dataset, "--ensemble", *configurations, "--fold", "0,1", "--out", out,
            "--postprocessing", steps,
        )  # fmt: skip
        (artifact,) = out.iterdir()
        found = json.loads(run(__spec__.name, "whole", kind, dataset, artifact, steps, *configurations))
        what = f"| {nnunet_folders.name(kind)} | {word}, two folds each, mirrored"
        for part, said in (("ensemble", ""), ("postprocessed", ", postprocessed")):
            row = found[part]
            rows.append(f"{what}{said} | {100 * row['agreement']:.4f} % | {row['dice']:.6f} | |")
    return rows


def runs_of(configurations: Sequence[str]) -> list[Run]:
    """What nnU-Net runs for an ensemble of these configurations, with two folds each."""
    names = {one: f"nnUNetTrainer__nnUNetPlans__{one}" for one in (*configurations, "3d_lowres")}
    cascade = "3d_cascade_fullres" in configurations
    stages = ["3d_lowres"] if cascade and "3d_lowres" not in configurations else []
    return [
        Run(
            names[one], ("0", "1"), averaged=one in configurations,
            after=names["3d_lowres"] if one == "3d_cascade_fullres" else None,
        )
        for one in (*stages, *configurations)
    ]  # fmt: skip


def readers_table(root: Path) -> str:
    """Train the kinds of ``READERS`` below ``root``, where that isn't done, and write ``readers`` as markdown."""
    for kind in dict.fromkeys(kind for kind, *_ in READERS.values()):
        _make(kind, root)
    rows = [
        "| nnU-Net's reader | data set | file | same label | least Dice | label map's file |",
        "|---|---|---|---|---|---|",
    ]
    for reader, row in json.loads(run(__spec__.name, "read", root)).items():
        kind, ending, word = READERS[reader]
        rows.append(
            f"| `{reader}` | {nnunet_folders.name(kind)} | `{ending}`, {word} | {100 * row['agreement']:.4f} % "
            f"| {row['dice']:.6f} | {'the same' if row['same'] else 'other'} bytes |"
        )
    return "\n".join([*rows, ""])


def _make(kind: str, root: Path) -> None:
    """Let nnU-Net train a kind, where that isn't done."""
    (folder, *_), ((_, fold), *_) = nnunet_folders.folders(kind, root), nnunet_folders.KINDS[kind].runs
    if not (folder / f"fold_{fold}").exists():
        nnunet_folders.run("make", kind, root, root=root)


def run(module: str, *arguments: object) -> str:
    """Run a module in a process of its own, and give the last line that it printed."""
    env = {**os.environ, "nnUNet_compile": "f", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=nnunet_folders.ROOT, env=env, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1]


def main(command: str, *rest: str) -> None:
    """Run one of the commands."""
    if command == "table":
        made = table(Path(rest[0])), readers_table(Path(rest[0]))
        for mark, content in zip(("nnunet", "readers"), made, strict=True):
            put_block(PAGE, mark, content, "benchmarks.against_nnunet")
        return
    if command == "whole":
        kind, dataset, artifact, steps, *configurations = rest
        print(json.dumps(whole(kind, Path(dataset), Path(artifact), Path(steps), runs_of(configurations))))
        return
    if command == "read":
        print(json.dumps(readers(Path(rest[0]))))
        return
    if command == "readers":
        put_block(PAGE, "readers", readers_table(Path(rest[0])), "benchmarks.against_nnunet")
        return
    kind, folder, artifact, fold, *previous = rest
    print(json.dumps(agree(kind, Path(folder), Path(artifact), fold, *map(Path, previous))))


if __name__ == "__main__":
    main(*sys.argv[1:])
