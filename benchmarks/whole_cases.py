"""Folders in nnU-Net's layout and images for ``benchmarks.whole_images``: as large as real ones, made in a minute.

    python -m benchmarks.whole_cases FOLDER NAME [CLASSES]   write a trained folder and an image below FOLDER

Networks have random weights but for the head, which is fitted to the organs of one made image, so that label maps look
like label maps: regions with smooth surfaces.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tests import handmade


@dataclass(frozen=True)
class Case:
    """A network and an image.

    Attributes:
        features: The features of each stage of the network.
        kernels: The kernel of each stage.
        convolutions: How many each stage has.
        shape: The image's (z, y, x).
        spacing: The image's, in mm.
    """

    features: tuple[int, ...]
    kernels: tuple[int, ...]
    convolutions: int
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]


_TOTAL = Case((32, 64, 128, 256, 320, 320), (3,) * 6, 2, (200, 256, 256), (3.0, 1.5, 1.5))
_LONG = Case((32, 32, 64), (1, 3, 3), 1, (800, 512, 512), (1.0, 0.8, 0.8))
CASES = {
    "totalsegmentator": _TOTAL,
    "smaller": replace(_TOTAL, shape=(80, 180, 180)),
    "long": _LONG,
    "few": replace(_LONG, kernels=(3, 3, 3)),
}
"""``totalsegmentator`` has the size of its network, and ``smaller`` an image that nnU-Net has the memory for in 24 GB;
``long`` a small network, and much around it. ``few`` is for few classes: with a first kernel of 1 a flat image is all
rounding after a norm, and a head of few classes, whose logits vary little, makes more of it than export allows.
"""
CLASSES = 117
WINDOW, SPACING = (128, 128, 128), (1.5, 1.5, 1.5)
RIDGE = 0.3
"""How much of the unit matrix the fit of the head adds, in variances of the features."""


def image(shape: tuple[int, ...], spacing: tuple[float, ...], seed: int, classes: int = CLASSES) -> tuple[Any, Any]:
    """A CT of a body with organs, and its label map: ellipsoids, each of its own density."""
    rng = np.random.default_rng(seed)
    size = np.array(shape) * spacing
    labels = np.zeros(shape, np.uint8)
    densities = np.concatenate([[-60], rng.permutation(np.linspace(-150, 400, classes - 1))])
    axes = [(np.arange(count) + 0.5) * mm for count, mm in zip(shape, spacing, strict=True)]
    for number in range(1, classes):
        centre = size * rng.uniform(0.15, 0.85, 3)
        radius = min(size) * rng.uniform(0.04, 0.16, 3)
        box = [np.flatnonzero(np.abs(axis - at) < reach) for axis, at, reach in zip(axes, centre, radius, strict=True)]
        if not all(map(len, box)):
            continue
        near = [((axis[one] - at) / reach) ** 2 for axis, one, at, reach in zip(axes, box, centre, radius, strict=True)]
        inside = near[0][:, None, None] + near[1][:, None] + near[2] < 1
        labels[np.ix_(*box)][inside] = number
        part = labels[box[0][0] : box[0][-1] + 1, box[1][0] : box[1][-1] + 1, box[2][0] : box[2][-1] + 1]
        part[inside] = number
    made = np.empty(shape, np.int16)
    y, x = ((axis / axis[-1] - 0.5) / 0.47 for axis in axes[1:])
    body = y[:, None] ** 2 + x**2 < 1
    for z, plane in enumerate(labels):
        plane[~body] = 0
        made[z] = np.where(body, densities[plane], -1000) + rng.normal(0, 1, plane.shape)
    return made, labels


def write(folder: Path, name: str, classes: int = CLASSES) -> Path:
    """Write the trained folder and the image of a case.

    Returns:
        The trained folder. The image is ``FOLDER/in/case_0000.nii.gz``.
    """
    import SimpleITK

    case = CASES[name]
    planned = handmade.plans(f"Dataset{910 + len(name)}_{name.capitalize()}{classes}")
    planned |= {"transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2]}
    configuration = planned["configurations"]["3d_fullres"]
    configuration |= {"patch_size": list(WINDOW), "spacing": list(SPACING)}
    stages = len(case.features)
    configuration["architecture"]["arch_kwargs"] |= {
        "n_stages": stages,
        "features_per_stage": list(case.features),
        "kernel_sizes": [[size] * 3 for size in case.kernels],
        "strides": [[1] * 3, *([2] * 3 for _ in range(stages - 1))],
        "n_conv_per_stage": [case.convolutions] * stages,
        "n_conv_per_stage_decoder": [case.convolutions] * (stages - 1),
    }
    statistics = planned["foreground_intensity_properties_per_channel"]["0"]
    statistics |= {"percentile_00_5": -1000.0, "percentile_99_5": 500.0, "mean": 40.0, "std": 200.0}
    trained = handmade.write(folder / "results", planned, handmade.dataset(classes - 1), mirror_axes=None)
    _fit(trained, classes)
    made, _ = image(case.shape, case.spacing, 1, classes)
    (folder / "in").mkdir(exist_ok=True)
    picture = SimpleITK.GetImageFromArray(made)
    picture.SetSpacing(case.spacing[::-1])
    SimpleITK.WriteImage(picture, str(folder / "in" / "case_0000.nii.gz"))
    return trained


def _fit(trained: Path, classes: int) -> None:
    """Fit the head to the organs of a made window."""
    made, labels = image(WINDOW, SPACING, 2, classes)
    seen = ((made.astype(np.float32)).clip(-1000, 500) - 40) / 200
    handmade.fit_head(trained, "0", seen, labels, classes, ridge=RIDGE)


if __name__ == "__main__":
    print(write(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:])))
