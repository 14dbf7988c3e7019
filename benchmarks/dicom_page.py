"""Runs the commands of docs/dicom.md on the real series, and puts what they print and their picture there.

    python -m benchmarks.dicom_page FOLDER

FOLDER gets the network, which is small: its last layer alone is fitted, to another patient's CT.
The series is ``../shared/images/ct_dicom``.
"""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation

from benchmarks.docs import ROOT, put_block
from tests import handmade
from tests.dicom import judges

BLOCK_VERSION = 1
"""Raised when what this program writes, or measures, changes."""
NAME = "benchmarks.dicom_page"
PAGE, PICTURE = ROOT / "docs" / "dicom.md", ROOT / "docs" / "dicom-preview.png"
IMAGES = ROOT.parent / "shared" / "images"

CLASSES = {
    "soft_tissue": (*range(1, 10), 18, 19, *range(51, 69), *range(79, 91)),
    "bones": (*range(26, 51), *range(92, 117)),
}
"""By class of the network, TotalSegmentator's labels of the CT that it is fitted to."""
CODES = """\
label,category,type,colour
bones,SCT:123037004:Anatomical Structure,SCT:272673000:Bone,#f1d691
"""
COMMANDS = (
    "segonnx predict abdomen series abdomen.dcm --format dicom-seg --codes codes.csv --preview abdomen.png",
    "segonnx predict abdomen series.zip out/abdomen --format nifti --format dicom-seg --format dicom-rtstruct",
    "segonnx predict abdomen series out/labels.nii.gz --statistics out/abdomen.csv",
    "cat out/abdomen.csv",
    "segonnx predict abdomen series labels.dcm --format dicom-seg --seg-type labelmap --codes codes.csv",
    "dciodvfy abdomen.dcm",
    "segimage2itkimage --inputDICOM abdomen.dcm --outputDirectory . -t nii",
    "segonnx predict abdomen gap labels.nii.gz",
)
"""What the page shows, in the order in which it runs."""
AIR = 20
"""The voxels of air that are put around the CT that the network is fitted to."""


def main(arguments: list[str]) -> None:
    folder = Path(arguments[0])
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "abdomen").exists():
        _export(folder)
    _prepare(folder)
    put_block(PAGE, "commands", "\n".join(["```", *_commands(folder), "```"]), NAME)
    shutil.copyfile(folder / "abdomen.png", PICTURE)


def _export(folder: Path) -> None:
    """Make the network and its artifact."""
    planned = handmade.plans("Dataset990_Abdomen") | {"transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2]}
    one = planned["configurations"]["3d_fullres"]
    one |= {"patch_size": [16, 96, 96], "spacing": [3.0, 3.0, 3.0]}
    one["architecture"]["arch_kwargs"] |= {
        "features_per_stage": [24, 32, 48], "kernel_sizes": [[3] * 3] * 3, "strides": [[1] * 3] * 3
    }  # fmt: skip
    planned["foreground_intensity_properties_per_channel"]["0"] |= {
        "percentile_00_5": -1000.0, "percentile_99_5": 500.0, "mean": 0.0, "std": 150.0
    }  # fmt: skip
    described = handmade.dataset() | {"labels": {"background": 0, **{name: i for i, name in enumerate(CLASSES, 1)}}}
    trained = handmade.write(folder / "results", planned, described)
    image, truth = (
        np.asarray(nibabel.nifti1.load(IMAGES / f"{name}.nii.gz").dataobj).T
        for name in ("example_ct_sm", "example_seg")
    )
    labels = np.zeros(truth.shape, int)
    for value, own in enumerate(CLASSES.values(), 1):
        labels[np.isin(truth, list(own))] = value
    around = [(0, 0), (AIR, AIR), (AIR, AIR)]
    window = np.pad(image, around, constant_values=-1024).clip(-1000, 500) / 150
    handmade.fit_head(trained, "0", window.astype(np.float32), np.pad(labels, around), len(CLASSES) + 1)
    steps = [{"labels_or_regions": [*range(1, len(CLASSES) + 1)]}]  # what isn't connected to the body goes
    with (folder / "postprocessing.pkl").open("wb") as file:
        pickle.dump(([remove_all_but_largest_component_from_segmentation], steps), file)
    _run(f"segonnx export -q --nnunet {trained} --postprocessing postprocessing.pkl --out made", folder)
    (made,) = (folder / "made").iterdir()
    made.rename(folder / "abdomen")


def _prepare(folder: Path) -> None:
    """Put beside the artifact what the commands read, and take away what they write."""
    for name in ("series", "gap", "out"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for path in (*folder.glob("*.dcm"), *folder.glob("*.nii*"), *folder.glob("*.png"), *folder.glob("*.json")):
        path.unlink()
    for name in ("series", "gap"):
        shutil.copytree(IMAGES / "ct_dicom", folder / name)
    (folder / "gap" / "slice_07.dcm").unlink()
    shutil.make_archive(str(folder / "series"), "zip", folder / "series")
    (folder / "codes.csv").write_text(CODES)


def _run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    paths = (str(Path(sys.executable).parent), str(Path(judges.DCIODVFY).parent), os.environ["PATH"])
    environment = os.environ | {"PATH": os.pathsep.join(paths), "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def _commands(folder: Path) -> Iterator[str]:
    """The commands, each with what it prints."""
    for command in COMMANDS:
        done = _run(command, folder)
        printed = [line for line in (done.stdout + done.stderr).splitlines() if line and not line.endswith(" ...")]
        assert command == COMMANDS[-1] or done.returncode == 0 or command.startswith("dciodvfy"), done.stderr
        yield f"$ {command}"
        yield from (printed if command.startswith(("segonnx", "cat", "dciodvfy")) else printed[-1:])


if __name__ == "__main__":
    main(sys.argv[1:])
