"""Writes a volume as a NIfTI file, as SimpleITK does, and takes the voxels of a label map back from one.

What a network sees of a series is then what it sees of the NIfTI file that people make of it.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from segonnx.dicom.series import Grid
from segonnx.errors import ResourceError

Array = npt.NDArray[Any]


def write(array: Array, grid: Grid, path: Path) -> None:
    """Write a volume.

    Args:
        array: The voxels, (slices, rows, columns).
        grid: Where they are.
        path: The file to write.

    Raises:
        ResourceError: It can't be written.
    """
    itk: Any = importlib.import_module("SimpleITK")
    image = itk.GetImageFromArray(array)
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(grid.direction.ravel().tolist())
    try:
        itk.WriteImage(image, str(path))
    except RuntimeError as error:
        raise ResourceError(f"can't write {path}: is the disk full?") from error


def read_labels(path: Path, grid: Grid) -> Array:
    """The voxels of a label map, (slices, rows, columns) as the series has them.

    Args:
        path: The file, whose label map was made of the series' NIfTI file.
        grid: The series'.

    Raises:
        ResourceError: The file isn't on the series' grid.
    """
    itk: Any = importlib.import_module("SimpleITK")
    image = itk.ReadImage(str(path))
    array: Array = itk.GetArrayFromImage(image)
    corner = np.array(grid.shape[::-1]) - 1
    last = np.array(grid.origin) + grid.direction @ (corner * grid.spacing)
    found = np.array([image.TransformIndexToPhysicalPoint(place) for place in ([0, 0, 0], corner.tolist())])
    same = array.shape == grid.shape and np.allclose(
        found, np.array([grid.origin, last]), rtol=0, atol=0.01 * min(grid.spacing)
    )
    if not same:
        raise ResourceError(f"can't write {path.name}: the label map isn't where its series is")
    return array
