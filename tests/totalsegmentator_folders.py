"""TotalSegmentator's weights in its own layout, made without it: small networks, whose label maps have regions.

python -m tests.totalsegmentator_folders FOLDER TASK...    write the weights that these tasks need
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segonnx.sources import totalsegmentator
from segonnx.sources.totalsegmentator import Network, Task
from tests import handmade

ROOT = Path(__file__).resolve().parents[1]
JUDGE = ROOT / ".venv-totalsegmentator" / "bin" / "python"
"""The Python that has TotalSegmentator."""

ORGANS = {
    "liver": (60, (0.68, 0.45, 0.45), (0.22, 0.24, 0.16)),
    "spleen": (120, (0.26, 0.36, 0.45), (0.12, 0.14, 0.12)),
    "lung_upper_lobe_left": (-780, (0.3, 0.5, 0.72), (0.15, 0.22, 0.12)),
    "lung_lower_lobe_right": (-660, (0.7, 0.5, 0.7), (0.15, 0.22, 0.1)),
    "heart": (180, (0.48, 0.66, 0.64), (0.12, 0.14, 0.1)),
    "aorta": (240, (0.5, 0.42, 0.6), (0.05, 0.06, 0.25)),
    "kidney_right": (-40, (0.7, 0.25, 0.3), (0.09, 0.09, 0.1)),
    "vertebrae_L1": (420, (0.5, 0.22, 0.4), (0.1, 0.09, 0.06)),
    "vertebrae_C5": (360, (0.5, 0.3, 0.86), (0.08, 0.09, 0.04)),
    "autochthon_left": (0, (0.34, 0.14, 0.4), (0.1, 0.07, 0.2)),
    "rib_left_5": (300, (0.14, 0.5, 0.6), (0.05, 0.2, 0.04)),
    "brain": (30, (0.5, 0.55, 0.94), (0.16, 0.2, 0.05)),
    "skull": (480, (0.32, 0.6, 0.9), (0.05, 0.16, 0.06)),
    "hip_left": (150, (0.3, 0.4, 0.12), (0.12, 0.12, 0.08)),
}
"""By class: density, centre and radii (x, y, z), as fractions of the image. Each has a smaller copy beside it."""
FAT, AIR = -100, -1000
PATCH = (32, 48, 48)
FEATURES = (8, 16)


def phantom(shape: Sequence[int], *, seed: int = 0, noise: float = 4.0) -> np.ndarray:
    """A CT of a body with organs, float64 (x, y, z)."""
    labels = organs(shape)
    densities = np.array([AIR, FAT, *(density for density, _, _ in ORGANS.values())], float)
    drawn = np.random.default_rng(seed).normal(0, noise, tuple(shape))
    return np.round(densities[labels] + drawn)


def organs(shape: Sequence[int]) -> np.ndarray:
    """What the voxels (x, y, z) of the phantom are: 0 air, 1 fat, and from 2 on the organs."""
    x, y, z = np.meshgrid(*((np.arange(size) + 0.5) / size for size in shape), indexing="ij", sparse=True)
    labels = (((x - 0.5) / 0.47) ** 2 + ((y - 0.45) / 0.42) ** 2 < 1).astype(np.uint8) * np.ones(tuple(shape), np.uint8)
    for number, (_, centre, radii) in enumerate(ORGANS.values(), 2):
        for part, (shift, size) in enumerate(((0.0, 1.0), (0.3, 0.3))):
            near = sum(
                ((axis - (middle + (0 if part == 0 else shift * (0.5 - middle)))) / (radius * size)) ** 2
                for axis, middle, radius in zip((x, y, z), centre, radii, strict=True)
            )
            labels[(near < 1) & ((labels == 1) | (part == 0))] = number
    return labels


def found_by(classes: Iterable[tuple[int, str]]) -> dict[int, int]:
    """By the phantom's organ, the label of a network that finds it: of its name, or else the next one."""
    named = list(ORGANS)
    known = {2 + named.index(name): value for value, name in classes if name in ORGANS}
    return known or {2 + place: value for place, (value, _) in zip(range(len(named)), classes, strict=False)}


def write(
    weights: Path, tasks: Iterable[str], *, features: Sequence[int] = FEATURES, patch: Sequence[int] = PATCH
) -> None:
    """Write the weights that tasks need, where they aren't there.

    Args:
        weights: The folder of all data sets.
        tasks: Names of tasks.
        features: Of each stage of the networks.
        patch: The window of the networks.
    """
    for name in tasks:
        task = totalsegmentator.find(name)
        for other in (task.crop, task.subset, task.entries["within"]):
            if other is not None and other["task"] != name:
                write(weights, [other["task"]], features=features, patch=patch)
        for network in task.networks:
            if not (weights / network.folder / network.trained).exists():
                _write(weights, task, network, features, patch)


def _write(weights: Path, task: Task, network: Network, features: Sequence[int], patch: Sequence[int]) -> None:
    trainer, plans_name, configuration = network.trained.split("__")
    classes = _classes(task, network)
    planned = handmade.plans(network.folder) | {
        "plans_name": plans_name, "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2]
    }  # fmt: skip
    one = planned["configurations"].pop("3d_fullres")
    spacing = task.entries["spacing"]
    one |= {"patch_size": list(patch), "spacing": [3.0, 1.5, 1.5] if spacing is None else list(reversed(spacing))}
    stages = len(features)
    one["architecture"]["arch_kwargs"] |= {
        "n_stages": stages,
        "features_per_stage": list(features),
        "kernel_sizes": [[3] * 3] * stages,
        "strides": [[1] * 3, *([[2] * 3] * (stages - 1))],
        "n_conv_per_stage": [1 if stages == 2 else 2] * stages,
        "n_conv_per_stage_decoder": [1 if stages == 2 else 2] * (stages - 1),
    }
    planned["configurations"][configuration] = one
    planned["foreground_intensity_properties_per_channel"]["0"] |= {
        "percentile_00_5": -1000.0, "percentile_99_5": 600.0, "mean": 0.0, "std": 200.0
    }  # fmt: skip
    highest = max(classes)
    folds = ("0", "1") if network.folds is None else tuple(map(str, network.folds))
    trained = handmade.write(
        weights, planned, handmade.dataset(highest), trainer=trainer, configuration=configuration, folds=folds
    )
    window = phantom(patch[::-1], seed=1)
    truth = np.zeros(organs(patch[::-1]).max() + 1, int)
    for organ, value in found_by(sorted(classes.items())).items():
        truth[organ] = value
    labels = truth[organs(patch[::-1])]
    for fold in folds:
        handmade.fit_head(trained, fold, ((window.T.clip(-1000, 600)) / 200).astype(np.float32), labels.T, highest + 1)


def _classes(task: Task, network: Network) -> dict[int, str]:
    """A network's own labels, and the names of their classes."""
    names = {label["value"]: label["name"] for label in task.labels}
    own = {value: f"auxiliary_{value}" for value in task.entries["drop"]} | names
    if network.labels is not None:
        return {int(value): names[whole] for value, whole in network.labels.items()}
    return {value: own.get(value, f"other_{value}") for value in range(1, max(own) + 1)}


def judge(
    home: Path, weights: Path, runs: Sequence[dict[str, Any]], *, processes: bool = False, wide: bool = True
) -> list[dict[str, Any]]:
    """Run TotalSegmentator's own Python API.

    Args:
        home: A folder for its settings.
        weights: The folder of all data sets.
        runs: For each run the arguments of its function ``totalsegmentator``.
        processes: Let nnU-Net start the processes that it does; without, all is done in one.
        wide: Let nnU-Net add its windows up in float32 instead of float16.

    Returns:
        For each run ``seconds``, ``peak`` in bytes (0 where all is done in one process), and the ``error``, if any.
    """
    home.mkdir(parents=True, exist_ok=True)
    (home / "config.json").write_text(
        json.dumps({"totalseg_id": "none", "send_usage_stats": False, "statistics_disclaimer_shown": True})
    )
    (home / "runs.json").write_text(json.dumps({"processes": processes, "wide": wide, "runs": list(runs)}, default=str))
    env = {
        **os.environ, "TOTALSEG_HOME_DIR": str(home), "TOTALSEG_WEIGHTS_PATH": str(weights),
        "PYTHONWARNINGS": "ignore", "nnUNet_compile": "f", "MPLBACKEND": "agg",
    }  # fmt: skip
    command = [str(JUDGE), str(ROOT / "tests" / "totalsegmentator_judge.py"), str(home / "runs.json")]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=home, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found: list[dict[str, Any]] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def read(path: Path) -> Any:
    """An image, as nibabel has it."""
    import nibabel

    return nibabel.load(path)


def label_names(image: Any) -> list[tuple[str, str, str]]:
    """The table of labels in the header of nibabel's image, as programs read it: key, name, and how red it is shown."""
    from xml.etree import ElementTree

    found = []
    for extension in image.header.extensions:
        content = extension.get_content()
        root = ElementTree.fromstring(content if isinstance(content, bytes) else content.encode())
        found += [(one.attrib["Key"], one.text or "", one.attrib["Red"]) for one in root.iter("Label")]
    return found


def arguments(task: str) -> dict[str, Any]:
    """What TotalSegmentator's function takes for a task as segonnx names it."""
    for mode in ("fastest", "fast"):
        if task.endswith(f"_{mode}"):
            return {"task": task.removesuffix(f"_{mode}"), mode: True}
    return {"task": task}


if __name__ == "__main__":
    write(Path(sys.argv[1]), sys.argv[2:])
