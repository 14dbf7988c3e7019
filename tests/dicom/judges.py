"""Programs of others that judge: dcm2niix, dcmqi, plastimatch, and dciodvfy of Debian's dicom3tools."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

ROOT = Path(__file__).resolve().parents[2]
DCIODVFY = shutil.which("dciodvfy") or str(ROOT / ".dicom3tools" / "usr" / "bin" / "dciodvfy")
needs_dciodvfy = pytest.mark.skipif(
    not Path(DCIODVFY).exists(), reason="dciodvfy isn't installed: make judges, or apt-get install dicom3tools"
)


def _program(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def errors(path: Path) -> list[str]:
    """What dciodvfy finds wrong with a file. It knows the standard of 2022."""
    done = subprocess.run([DCIODVFY, str(path)], capture_output=True, text=True, check=False)
    assert done.stderr, done
    return [line for line in done.stderr.splitlines() if line.startswith("Error")]


def by_dcm2niix(series: Path, path: Path) -> None:
    """Write the NIfTI file that dcm2niix makes of a series."""
    command = [_program("dcm2niix"), "-z", "n", "-b", "n", "-f", path.stem, "-o", path.parent, series]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and path.is_file(), done.stdout + done.stderr


def by_dcmqi(path: Path, folder: Path) -> list[SimpleITK.Image]:
    """The images that dcmqi makes of a SEG: of segments that overlap, an image each."""
    folder.mkdir()
    command = [
        _program("segimage2itkimage"),
        "--inputDICOM",
        path,
        "--outputDirectory",
        folder,
        "-t",
        "nrrd",
        "-p",
        "s",
    ]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return [SimpleITK.ReadImage(str(one)) for one in sorted(folder.glob("s-*.nrrd"))]


def by_plastimatch(path: Path, series: Path, folder: Path) -> dict[str, SimpleITK.Image]:
    """The masks that plastimatch makes of an RTSTRUCT on the grid of its series, by their names."""
    command = [
        _program("plastimatch"), "convert", "--input", path, "--referenced-ct", series, "--output-prefix", folder,
        "--prefix-format", "nrrd",
    ]  # fmt: skip
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return {one.stem: SimpleITK.ReadImage(str(one)) for one in folder.glob("*.nrrd")}


def places(image: SimpleITK.Image, value: int) -> np.ndarray:
    """The places in mm of the voxels of an image that have a value, (voxels, 3), in order."""
    found = np.argwhere(SimpleITK.GetArrayFromImage(image) == value)[:, ::-1]
    return in_order(np.array([image.TransformIndexToPhysicalPoint(one.tolist()) for one in found]).reshape(-1, 3))


def in_order(found: np.ndarray) -> np.ndarray:
    """Places, sorted so that the same ones stand beside each other."""
    return found[np.lexsort(np.round(found, 2).T)]
