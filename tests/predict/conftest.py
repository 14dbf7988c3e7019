"""What the tests of predictions share: an artifact that is loaded, and images for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from segonnx.predict.predictor import Artifact
from segonnx.predict.resampling import AnyArray

SHAPE, SPACING = (20, 26, 40), (1.5, 3.2, 1.4)


@pytest.fixture(scope="session")
def loaded(hand: Path) -> Artifact:
    return Artifact(hand, threads=1)


def volume(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> AnyArray:
    return np.random.default_rng(seed).normal(0, 200, shape).astype(np.int16)


def save(array: AnyArray, path: Path) -> SimpleITK.Image:
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(SPACING[::-1][: image.GetDimension()])
    if image.GetDimension() == 3:
        image.SetOrigin((-5.0, 7.0, 30.0))
        image.SetDirection((0, 1, 0, 1, 0, 0, 0, 0, -1))
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(image, str(path))
    return image
