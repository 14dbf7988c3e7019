"""Runs the commands of docs/dicom.md on the real series, and puts what they print, their picture and times there.

    python -m benchmarks.dicom_page FOLDER

FOLDER gets the network, which is small: it is trained for a minute, on another patient's CT.
The series is ``../shared/images/ct_dicom``; the long one that is timed is made of copies of it.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation
from pydicom.uid import generate_uid

from benchmarks.docs import ROOT, put_block
from benchmarks.whole_images import Peak
from tests import handmade
from tests.dicom import judges

BLOCK_VERSION = 1
"""Raised when what this program writes, or measures, changes."""
NAME = "benchmarks.dicom_page"
PAGE, PICTURE = ROOT / "docs" / "dicom.md", ROOT / "docs" / "dicom-preview.png"
IMAGES = ROOT.parent / "shared" / "images"

CLASSES = {
    "liver_and_spleen": (1, 5),
    "lungs": range(10, 15),
    "muscles": range(86, 90),
    "bones": (*range(26, 51), *range(92, 117)),
}
"""By class of the network, TotalSegmentator's labels of the CT that it is trained on."""
STEPS, CROP = 150, (16, 48, 48)
"""How long it is trained, and on what parts of that CT."""
CODES = """\
label,category,type,colour
lungs,SCT:123037004:Anatomical Structure,SCT:39607008:Lung,#4fb0e8
muscles,SCT:123037004:Anatomical Structure,SCT:91727004:Skeletal muscle,#c0504d
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
LONG = 300
"""The slices of the series that is timed."""


def main(arguments: list[str]) -> None:
    folder = Path(arguments[0])
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "abdomen").exists():
        _export(folder)
    _prepare(folder)
    put_block(PAGE, "commands", "\n".join(["```", *_commands(folder), "```"]), NAME)
    shutil.copyfile(folder / "abdomen.png", PICTURE)
    put_block(PAGE, "times", "\n".join(_times(folder)), NAME)


def _export(folder: Path) -> None:
    """Make the network and its artifact."""
    planned = handmade.plans("Dataset990_Abdomen") | {"transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2]}
    one = planned["configurations"]["3d_fullres"]
    one |= {"patch_size": [16, 96, 96], "spacing": [3.0, 3.0, 3.0]}
    one["architecture"]["arch_kwargs"] |= {
        "features_per_stage": [12, 24, 36], "kernel_sizes": [[3] * 3] * 3, "strides": [[1] * 3, [1, 2, 2], [2] * 3]
    }  # fmt: skip
    planned["foreground_intensity_properties_per_channel"]["0"] |= {
        "percentile_00_5": -1000.0, "percentile_99_5": 500.0, "mean": 0.0, "std": 150.0
    }  # fmt: skip
    described = handmade.dataset() | {"labels": {"background": 0, **{name: i for i, name in enumerate(CLASSES, 1)}}}
    trained = handmade.write(folder / "results", planned, described)
    loaded: list[Any] = [nibabel.load(IMAGES / f"{name}.nii.gz") for name in ("example_ct_sm", "example_seg")]
    image, truth = (np.asarray(one.dataobj).T for one in loaded)
    labels = np.zeros(truth.shape, np.int64)
    for value, own in enumerate(CLASSES.values(), 1):
        labels[np.isin(truth, list(own))] = value
    around = [(0, 0), (AIR, AIR), (AIR, AIR)]
    _train(trained, np.pad(image, around, constant_values=-1024), np.pad(labels, around))
    steps = [{"labels_or_regions": value} for value in range(1, len(CLASSES) + 1)]
    with (folder / "postprocessing.pkl").open("wb") as file:
        pickle.dump(([remove_all_but_largest_component_from_segmentation] * len(steps), steps), file)
    _run(f"segonnx export -q --nnunet {trained} --postprocessing postprocessing.pkl --out made", folder)
    (made,) = (folder / "made").iterdir()
    made.rename(folder / "abdomen")


def _train(trained: Path, image: np.ndarray, labels: np.ndarray) -> None:
    """Train the network of a folder for a minute on parts of an image, a little lighter or darker each time."""
    import torch

    from segonnx import models
    from segonnx.sources.nnunet import plans
    from segonnx.sources.nnunet.trainers import trained_architecture

    path = trained / "fold_0" / "checkpoint_final.pth"
    content = torch.load(path, weights_only=False)
    asked = content["init_args"]
    plan = plans.plan(asked["plans"], asked["dataset_json"], asked["configuration"], trained)
    architecture = trained_architecture(plan.architecture, content["trainer_name"], plan.patch_size)
    network: Any = models.BUILDERS["nnunet"](
        architecture=architecture.name, arguments=architecture.arguments, in_channels=1, num_classes=len(CLASSES) + 1
    ).module
    network.load_state_dict(content["network_weights"])
    rng, optimizer = np.random.default_rng(0), torch.optim.Adam(network.parameters(), 3e-3)
    losses = torch.nn.CrossEntropyLoss(weight=torch.tensor([1.0, *[2.0] * len(CLASSES)]))
    network.train()
    for _ in range(STEPS):
        begin = [int(rng.integers(whole - size + 1)) for whole, size in zip(image.shape, CROP, strict=True)]
        box = tuple(slice(one, one + size) for one, size in zip(begin, CROP, strict=True))
        window = (image[box] * rng.uniform(0.9, 1.1) + rng.uniform(-30, 30)).clip(-1000, 500) / 150
        given = network(torch.from_numpy(window.astype(np.float32))[None, None])
        loss = losses(given, torch.from_numpy(np.ascontiguousarray(labels[box]))[None])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    content["network_weights"] = network.state_dict()
    torch.save(content, path)


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


def _times(folder: Path) -> Iterator[str]:
    """How long what is around the network takes, of the series and of a long one."""
    _lengthen(folder / "series", folder / "long")
    yield "| series | written | read | network and around | written | whole command | memory |"
    yield "|---|---|---|---|---|---|---|"
    for name in ("series", "long"):
        count = len(list((folder / name).iterdir()))
        for formats in (("nifti",), ("nifti", "dicom-seg"), ("nifti", "dicom-rtstruct")):
            chosen = " ".join(f"--format {one}" for one in formats)
            command = f"segonnx predict abdomen {name} out/a.nii.gz {chosen} --overwrite --json out/a.json"
            seconds, held = _watched(command, folder)
            (row,) = json.loads((folder / "out" / "a.json").read_text())
            own = row["seconds"]
            rest = sum(own.values()) - own["read"] - own["write"]
            yield (
                f"| {count} slices of 512x512, JPEG 2000 | {', '.join(formats)} | {own['read']:.1f} s | {rest:.1f} s | "
                f"{own['write']:.1f} s | {seconds:.1f} s | {held / 1e9:.1f} GB |"
            )
    shutil.rmtree(folder / "long")


def _watched(command: str, folder: Path) -> tuple[float, int]:
    """Run a command, and give its seconds and the most bytes of memory that it held with all its processes."""
    begun = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    words = [sys.executable, "-m", *command.split()]
    with subprocess.Popen(words, cwd=folder, env=environment, stdout=subprocess.DEVNULL) as running:
        peak = Peak(running.pid)
        assert running.wait() == 0
    return time.perf_counter() - begun, peak.end()


def _lengthen(series: Path, folder: Path) -> None:
    """A series of copies of another one's slices, one above another."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    headers = [pydicom.dcmread(path) for path in sorted(series.iterdir())]
    uid = generate_uid()
    for number in range(LONG):
        header = headers[number % len(headers)]
        x, y, _ = headers[0].ImagePositionPatient
        header.ImagePositionPatient = [x, y, 2.0 * number]
        header.SeriesInstanceUID, header.InstanceNumber = uid, number + 1
        header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        header.save_as(folder / f"{number:04}.dcm")


if __name__ == "__main__":
    main(sys.argv[1:])
