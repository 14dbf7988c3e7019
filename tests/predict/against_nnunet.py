"""Holds `segonnx predict` against nnU-Net's own predictor, on the folders of ``tests.nnunet_folders``.

    python -m tests.predict.against_nnunet agree KIND FOLDER ARTIFACT FOLD [PREVIOUS]
                                                                    print how far label maps and probabilities agree
    python -m tests.predict.against_nnunet race KIND FOLDER ARTIFACT FOLD
                                                                    print the seconds of both, by turns

Runs in processes of its own, like that.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from segonnx.predict.artifact import Artifact
from segonnx.predict.pipeline import Times
from tests import nnunet_folders

ROUNDS = 5


def predictor(folder: Path, fold: str, *, mirror: bool) -> Any:
    """nnU-Net's own, which adds its windows up in float32."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    torch.half = torch.float32
    made = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False, use_mirroring=mirror)
    made.initialize_from_trained_model_folder(str(folder), [fold])  # type: ignore[arg-type]
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
        theirs, expected = predictor(folder, fold, mirror=mirror).predict_single_npy_array(
            image, {"spacing": list(spacing)}, None if first is None else first[None], None, True
        )
        probabilities = np.empty(expected.shape, np.float32)
        found = ours.predict(image, spacing, previous=first, probabilities=probabilities, mirror=mirror)
        values = np.unique(theirs)
        dice = [
            2 * np.sum((theirs == value) & (found == value)) / (np.sum(theirs == value) + np.sum(found == value))
            for value in values
        ]
        agreement = float(np.mean(theirs == found))
        difference = float(np.max(np.abs(probabilities - expected)))
        result[word] = {
            "agreement": agreement, "dice": float(min(dice)), "labels": len(values), "probabilities": difference,
        }  # fmt: skip
    return result


def race(kind: str, folder: Path, artifact: Path, fold: str) -> dict[str, Any]:
    """Seconds of both from an array to its label map without mirroring, by turns, medians; and our steps."""
    image, _ = nnunet_folders.image(kind, nnunet_folders.CASES)
    image = np.tile(image, (1, 4, 4, 4))
    spacing = nnunet_folders.KINDS[kind].spacing
    own, ours = predictor(folder, fold, mirror=False), Artifact(artifact)
    seconds: dict[str, list[float]] = {"nnU-Net": [], "segonnx": []}
    times = Times()
    for _ in range(ROUNDS):
        began = time.perf_counter()
        own.predict_single_npy_array(image, {"spacing": list(spacing)})
        middle = time.perf_counter()
        ours.predict(image, spacing, times=times)
        seconds["nnU-Net"].append(middle - began)
        seconds["segonnx"].append(time.perf_counter() - middle)
    ratios = [a / b for a, b in zip(*seconds.values(), strict=True)]
    return {
        "shape": image.shape,
        **{name: statistics.median(its) for name, its in seconds.items()},
        "ratio": statistics.median(ratios),
        "steps": {name: its / ROUNDS for name, its in times.seconds.items()},
    }


if __name__ == "__main__":
    command, kind, folder, artifact, fold, *more = sys.argv[1:]
    made = (agree if command == "agree" else race)(kind, Path(folder), Path(artifact), fold, *map(Path, more))
    print(json.dumps(made))
