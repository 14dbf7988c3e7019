"""Folders that nnU-Net itself plans and trains on synthetic images, and its own predictor to compare with.

It runs in processes of its own: nnU-Net reads its folders from the environment, and warns a lot.

    python -m tests.nnunet_folders make KIND ROOT              make raw data, plan, preprocess, train; print the folders
    python -m tests.nnunet_folders compare FOLDER ARTIFACT FOLD[,FOLD...] [PREVIOUS]
                                                               print the artifact's errors against nnU-Net's predictor
    python -m tests.nnunet_folders agree KIND ROOT             make, export, compare
    python -m tests.nnunet_folders rows KIND ROOT [FOLD...]    the same, where the environment tells the folders
    python -m tests.nnunet_folders table ROOT [KIND...]        all of it for every kind, into docs/nnunet.md
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import multiprocessing.dummy
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.docs import put_block
from tests.conftest import export

ROOT = Path(__file__).resolve().parents[1]
BLOCK_VERSION = 1
"""Raised when what ``table`` writes, or measures, changes."""
CASES = 3
RAW, PREPROCESSED, WORKERS = "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_n_proc_DA"
"""Environment variables that nnU-Net reads its folders, and the processes of its augmentation, from."""


@dataclass(frozen=True)
class Kind:
    """A data set, and what is trained on it.

    Attributes:
        number: of the data set.
        channels: names of the input channels, which decide how they are normalised.
        shape: of an image, (z, y, x).
        spacing: in mm, (z, y, x).
        labels: of dataset.json.
        runs: configurations and folds, in the order of their training.
        trainer: nnU-Net's class.
        planner: nnU-Net's class.
        order: regions_class_order of dataset.json.
        iterations: of the one epoch.
    """

    number: int
    channels: tuple[str, ...]
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    labels: dict[str, Any]
    runs: tuple[tuple[str, str], ...]
    trainer: str = "nnUNetTrainer"
    planner: str = "ExperimentPlanner"
    order: list[int] | None = field(default=None)
    iterations: int = 8


_LABELS = {"background": 0, "organ": 1, "lesion": 2}
KINDS = {
    "plain": Kind(
        901, ("CT", "T2"), (18, 60, 52), (3.0, 1.0, 1.0), _LABELS, (("3d_fullres", "0"), ("3d_fullres", "1"))
    ),
    "regions": Kind(
        902, ("T1",), (10, 60, 56), (4.0, 1.0, 1.0), {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3},
        (("2d", "0"),), trainer="nnUNetTrainerNoMirroring", order=[1, 2],
    ),
    "flat": Kind(903, ("noNorm", "rgb_to_0_1"), (8, 56, 60), (5.0, 1.0, 1.0), _LABELS, (("2d", "all"),)),
    "residual": Kind(
        904, ("CT",), (40, 44, 36), (1.0, 1.0, 1.2), _LABELS, (("3d_fullres", "0"),), planner="nnUNetPlannerResEncM"
    ),
    "batchnorm": Kind(905, ("CT",), (32, 40, 36), (1.0, 1.0, 1.0), _LABELS, (("3d_fullres", "0"),), "nnUNetTrainerBN"),
    "cascade": Kind(
        906, ("CT",), (36, 44, 40), (1.0, 1.0, 1.0), _LABELS, (("3d_lowres", "all"), ("3d_cascade_fullres", "0"))
    ),
    # Every case needs its first stage's label map, so that stage has the folds of all.
    "whole": Kind(
        907, ("CT",), (36, 44, 40), (1.0, 1.0, 1.0), _LABELS,
        (*((configuration, fold) for configuration in ("2d", "3d_fullres", "3d_lowres") for fold in ("0", "1")),
         ("3d_lowres", "2"), ("3d_cascade_fullres", "0"), ("3d_cascade_fullres", "1")),
        iterations=4,
    ),
}  # fmt: skip
SEVERAL = ("whole",)
"""Kinds whose configurations make ensembles; the others are one network, or a cascade."""


def name(kind: str) -> str:
    """The data set's name."""
    return f"Dataset{KINDS[kind].number}_Test{kind.capitalize()}"


def folders(kind: str, root: Path) -> list[Path]:
    """The trained folders of a kind, in the order of their training."""
    one = KINDS[kind]
    plans = {"nnUNetPlannerResEncM": "nnUNetResEncUNetMPlans"}.get(one.planner, "nnUNetPlans")
    names = dict.fromkeys(f"{one.trainer}__{plans}__{configuration}" for configuration, _ in one.runs)
    return [root / "results" / name(kind) / folder for folder in names]


def run(*arguments: object, root: Path) -> str:
    """Run this file in a process of its own, and give what it printed last."""
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
        RAW: str(root / "raw"),
        PREPROCESSED: str(root / "preprocessed"),
        "nnUNet_results": str(root / "results"),
        WORKERS: "1",
        "nnUNet_def_n_proc": "1",
        "nnUNet_compile": "f",
        "MPLBACKEND": "agg",
    }
    command = [os.environ.get("NNUNET_PYTHON", sys.executable), "-m", "tests.nnunet_folders", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout.strip().splitlines()[-1]


def image(kind: str, case: int) -> tuple[np.ndarray, np.ndarray]:
    """A case's channels (C, z, y, x) and label map (z, y, x): an organ with a lesion in it."""
    one = KINDS[kind]
    rng = np.random.default_rng(1000 * one.number + case)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, size) for size in one.shape), indexing="ij", sparse=True)
    a, b, c = rng.uniform(-0.25, 0.25, 3)
    distance = ((z - a) / 0.75) ** 2 + ((y - b) / 0.6) ** 2 + ((x - c) / 0.6) ** 2
    labels = (distance < 1).astype(np.uint8) + (distance < 0.3)
    channels = []
    for index, channel in enumerate(one.channels):
        contrast = np.array([0.0, 90.0 - 30 * index, 160.0])[labels] + 12 * rng.standard_normal(one.shape)
        # What is air is 0 in an MR, so that nnU-Net crops there.
        body = (np.abs(y) < 0.9) & (np.abs(x) < 0.9) if channel != "CT" else True
        channels.append(np.clip(np.where(body, contrast + 60, 0.0), 0, 255) - (500 if channel == "CT" else 0))
    return np.stack(channels).astype(np.float32), labels


def _write_raw(kind: str) -> None:
    import SimpleITK

    one = KINDS[kind]
    folder = Path(os.environ[RAW]) / name(kind)

    def write(array: np.ndarray, path: Path) -> None:
        picture = SimpleITK.GetImageFromArray(array)
        picture.SetSpacing(one.spacing[::-1])
        SimpleITK.WriteImage(picture, str(path))

    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for case in range(CASES):
        channels, labels = image(kind, case)
        for index, channel in enumerate(channels):
            write(channel, folder / "imagesTr" / f"case{case}_{index:04}.nii.gz")
        write(labels, folder / "labelsTr" / f"case{case}.nii.gz")
    content = {
        "channel_names": {str(index): channel for index, channel in enumerate(one.channels)},
        "labels": one.labels,
        "numTraining": CASES,
        "file_ending": ".nii.gz",
    }
    if one.order is not None:
        content["regions_class_order"] = one.order
    (folder / "dataset.json").write_text(json.dumps(content))
    cases = [f"case{case}" for case in range(CASES)]
    splits = [{"train": [one for one in cases if one != left], "val": [left]} for left in cases]
    (folder / "splits_final.json").write_text(json.dumps(splits))


def _shrink(configuration: dict[str, Any]) -> None:
    """Make a planned configuration small: windows of half the size, an eighth of the features."""
    arguments = configuration["architecture"]["arch_kwargs"]
    steps = np.prod(arguments["strides"], axis=0)
    half = [
        int(max(step, size // 2 // step * step)) for size, step in zip(configuration["patch_size"], steps, strict=True)
    ]
    half[-1] = max(half[-1], 2 * int(steps[-1]))
    configuration["patch_size"] = half
    configuration["batch_size"] = 2
    arguments["features_per_stage"] = [min(count // 8, 24) for count in arguments["features_per_stage"]]


def make(kind: str) -> None:
    """Plan, preprocess and train one short epoch, with nnU-Net's own functions."""
    import torch
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api
    from nnunetv2.run.run_training import get_trainer_from_args

    one = KINDS[kind]
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 (nnU-Net draws from it)
    _write_raw(kind)
    api.extract_fingerprints([one.number], num_processes=1)
    plans_name = api.plan_experiments([one.number], one.planner)
    path = Path(os.environ[PREPROCESSED]) / name(kind) / f"{plans_name}.json"
    plans = json.loads(path.read_text())
    for configuration in plans["configurations"].values():
        if "architecture" in configuration:
            _shrink(configuration)
    if any(configuration == "3d_lowres" for configuration, _ in one.runs):  # nnU-Net plans one for large images alone
        lowres = json.loads(json.dumps(plans["configurations"]["3d_fullres"]))
        lowres |= {"spacing": [1.5, 1.5, 1.5], "data_identifier": "lowres", "next_stage": "3d_cascade_fullres"}
        plans["configurations"]["3d_lowres"] = lowres
        plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    path.write_text(json.dumps(plans))
    needed = {configuration.replace("cascade_", "") for configuration, _ in one.runs}
    api.preprocess([one.number], plans_name, sorted(needed), num_processes=(1,))
    os.environ[WORKERS] = "0"  # augment in this process; the planner needs one
    for configuration, fold in one.runs:
        trainer = get_trainer_from_args(
            name(kind), configuration, int(fold) if fold.isdecimal() else fold,
            one.trainer, plans_name, device=torch.device("cpu"),
        )  # fmt: skip
        trainer.num_epochs = 1
        trainer.num_iterations_per_epoch = one.iterations
        trainer.num_val_iterations_per_epoch = 1
        trainer.run_training()
        if configuration == "3d_lowres" or kind in SEVERAL:
            # Writes what the next stage is trained on, and what the best configuration is found by.
            trainer.perform_actual_validation(save_probabilities=kind in SEVERAL)
    if kind in SEVERAL:
        _find_best(kind)


def _find_best(kind: str) -> None:
    """Let nnU-Net find the best configuration or ensemble of those that have two folds, and its postprocessing."""
    from nnunetv2.evaluation.find_best_configuration import find_best_configuration

    configurations = dict.fromkeys(configuration for configuration, _ in KINDS[kind].runs)
    models = [{"plans": "nnUNetPlans", "configuration": one, "trainer": "nnUNetTrainer"} for one in configurations]
    find_best_configuration(KINDS[kind].number, models, num_processes=1, folds=(0, 1))


def compare(folder: Path, artifact: Path, folds: list[str], previous: Path | None = None) -> dict[str, float]:
    """Hold an artifact against nnU-Net's own predictor on a case that it wasn't trained on.

    Args:
        folder: the trained folder.
        artifact: what was exported from it.
        folds: that it holds.
        previous: the trained folder of a cascade's first stage.

    Returns:
        ``max_error`` and ``rms_error`` of the logits of a window relative to their standard deviation; ``agreement``:
        the fraction of voxels of a whole image with the same label; ``dice``: the least of any label; ``labels``: how
        many labels nnU-Net's label map has; ``agreement_float32``: where nnU-Net adds its windows up in float32, not
        in float16.
    """
    import onnxruntime
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    kind = next(kind for kind in KINDS if name(kind) in folder.parts)
    one = KINDS[kind]

    class InRuntime(torch.nn.Module):
        """The artifact in the place of nnU-Net's network."""

        def __init__(self) -> None:
            super().__init__()
            self.session = onnxruntime.InferenceSession(artifact / "model.onnx", providers=["CPUExecutionProvider"])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(self.session.run(["logits"], {"input": x.numpy()})[0])

        def load_state_dict(self, *_: object, **__: object) -> None:
            pass

    def predictor(of: Path, chosen: list[str]) -> Any:
        made = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
        made.initialize_from_trained_model_folder(str(of), chosen)
        return made

    channels, _ = image(kind, CASES)
    properties = {"spacing": list(one.spacing)}
    own = predictor(folder, folds)
    earlier = None
    if previous is not None:
        labels = predictor(previous, ["all"]).predict_single_npy_array(channels, dict(properties))
        earlier = labels[None].astype(np.int8)  # nnU-Net marks what it crops with -1
    expected = own.predict_single_npy_array(channels, dict(properties), earlier)
    with torch.inference_mode():
        inputs = own.configuration_manager.patch_size
        session = InRuntime()
        shape = session.session.get_inputs()[0].shape
        assert shape[2:] == list(inputs), (shape, inputs)
        x = torch.from_numpy(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))
        logits = torch.zeros(())
        for weights in own.list_of_parameters:
            own.network.load_state_dict(weights)
            logits = logits + own.network.eval()(x) / len(own.list_of_parameters)
        errors = (session(x) - logits) / logits.std()
    own.network, own.list_of_parameters = session, [{}]
    found = own.predict_single_npy_array(channels, dict(properties), earlier)
    with mock.patch.object(torch, "half", torch.float32):  # what the predictor adds its windows up in
        found_wide = own.predict_single_npy_array(channels, dict(properties), earlier)
        expected_wide = predictor(folder, folds).predict_single_npy_array(channels, dict(properties), earlier)
    values = [int(value) for value in np.unique(expected)]
    dice = [
        2
        * float(np.sum((expected == value) & (found == value)))
        / float(np.sum(expected == value) + np.sum(found == value))
        for value in values
    ]
    return {
        "max_error": float(errors.abs().max()),
        "rms_error": float(errors.square().mean().sqrt()),
        "agreement": float(np.mean(expected == found)),
        "agreement_float32": float(np.mean(expected_wide == found_wide)),
        "dice": min(dice),
        "labels": len(values),
        "voxels": expected.size,
    }


def agree(kind: str, root: Path, exported: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Make a kind, export what was trained by the command line, and compare: ``compare``'s answer for each artifact.

    All of it runs in one process, whose imports take longer than the rest.

    Args:
        kind: a key of ``KINDS``.
        root: of nnU-Net's folders.
        exported: values of ``--fold``; otherwise the first fold, and the mean where there are several.
    """
    rows: list[dict[str, Any]] = json.loads(run("rows", kind, root, *exported, root=root))
    return rows


def agree_here(kind: str, root: Path, exported: Sequence[str] = ()) -> list[dict[str, Any]]:
    """``agree``, in a process whose environment tells nnU-Net's folders."""
    make(kind)
    stages = folders(kind, root)
    rows = []
    for stage, folder in enumerate(stages):
        chosen = [fold for configuration, fold in KINDS[kind].runs if folder.name.endswith(f"__{configuration}")]
        for fold in exported or (chosen[:1] if len(chosen) == 1 else [chosen[0], "ensemble"]):
            out = root / "artifacts" / f"{kind}-{stage}-{fold}"
            export("--nnunet", folder, "--fold", fold, "--out", out)
            (artifact,) = out.iterdir()
            folds = ",".join(chosen) if fold == "ensemble" else fold
            found = compare(folder, artifact, folds.split(","), stages[0] if stage else None)
            rows.append({"artifact": str(artifact), "folder": folder.name, "fold": fold, **found})
    return rows


def table(root: Path, kinds: Sequence[str]) -> None:
    """Put the agreement of these kinds into docs/nnunet.md. What is measured already, in ``root``, stays."""
    lines = [
        "| data set | folder, fold | largest error | RMS error | same label | in float32 | least Dice | labels |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind in kinds:
        path = root / f"{kind}.json"
        if not path.exists():
            rows = agree(kind, root)
            path.write_text(json.dumps(rows))
        for one in json.loads(path.read_text()):
            wide = f"{100 * one['agreement_float32']:.4f} %" if "agreement_float32" in one else ""
            lines.append(
                f"| {name(kind)} | {one['folder']}, {one['fold']} | {one['max_error']:.1e} | {one['rms_error']:.1e} "
                f"| {100 * one['agreement']:.4f} % | {wide} | {one['dice']:.6f} | {one['labels']} |"
            )
    text = "\n".join(lines)
    put_block(ROOT / "docs" / "nnunet.md", "agreement", text, "tests.nnunet_folders")
    print(text)


_get_context = multiprocessing.get_context


def _threads(method: str | None = None) -> Any:
    return multiprocessing.dummy if method == "spawn" else _get_context(method)


def main(arguments: list[str]) -> None:
    command, *rest = arguments
    if command == "table":
        table(Path(rest[0]), rest[1:] or [kind for kind in KINDS if kind not in SEVERAL])
        return
    if command == "agree":
        print(json.dumps(agree(rest[0], Path(rest[1])), indent=1))
        return
    # nnU-Net prints. Its pools are of threads: its functions are the same, without a start of Python for each pool.
    with contextlib.redirect_stdout(sys.stderr), mock.patch.object(multiprocessing, "get_context", _threads):
        if command == "make":
            make(rest[0])
            result: object = [str(folder) for folder in folders(rest[0], Path(rest[1]))]
        elif command == "rows":
            result = agree_here(rest[0], Path(rest[1]), rest[2:])
        else:
            folder, artifact, folds, *previous = rest
            result = compare(Path(folder), Path(artifact), folds.split(","), Path(previous[0]) if previous else None)
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])
