"""What a receiver does, with what a receiver has: a fresh installation without torch."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from segonnx.predict.predictor import Artifact
from tests.conftest import ROOT, SMALL, run
from tests.predict.conftest import SPACING, save, volume

pytestmark = pytest.mark.slow

NEEDS_MORE = (
    "segonnx sign artifacts/stunet-s --key sender.key",  # the extra `sign`: tests/artifacts/test_signature.py
    "segonnx verify artifacts/stunet-s --key sender.pub",
    "segonnx predict FINE ct.nii.gz labels.nii.gz --previous COARSE",  # a cascade: tests/predict/test_predict.py
)
"""Documented commands that want more than is here, and where they run."""

Run = Callable[[str], subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a virtual environment with ``segonnx[predict]`` alone."""
    venv = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    install: list[str | Path] = ["install", "--quiet", "-c", ROOT / "constraints.txt", f"{ROOT}[predict]"]
    subprocess.run([sys.executable, "-m", "pip", "--python", venv / "bin" / "python", *install], check=True)
    return venv / "bin" / "python"


@pytest.fixture
def receiver(python: Path, tmp_path: Path) -> Run:
    """Runs a line in an empty folder, with the installed programs alone."""
    env = {"PATH": str(python.parent), "HOME": str(tmp_path), "TMPDIR": os.environ.get("TMPDIR", "/tmp")}

    def execute(line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(shlex.split(line), cwd=tmp_path, env=env, capture_output=True, text=True, check=False)

    return execute


def send(artifact: Path, path: Path) -> None:
    """Pack with the sender's installation."""
    done = run("pack", artifact, "--format", "zip", "--out", path)
    assert done.returncode == 0, done.stderr


def documented(page: str) -> Iterator[str]:
    """The commands of a page, without comments."""
    for block in re.findall(r"```\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL):
        yield from (line.split("#")[0].strip() for line in block.splitlines() if line.startswith("segonnx "))


def test_a_receiver_needs_no_torch(hand: Path, exports: Path, python: Path, receiver: Run, tmp_path: Path) -> None:
    ran = []

    def do(line: str) -> str:
        done = receiver(line)
        assert done.returncode == 0, (line, done.stderr)
        ran.append(line)
        return done.stdout

    code = "import importlib.util, segonnx; print(segonnx.__file__, importlib.util.find_spec('torch'))"
    found = do(f"python -c {shlex.quote(code)}")
    assert found.startswith(str(python.parents[1])) and found.endswith(" None\n")

    send(hand, tmp_path / "stunet-s.zip")  # the documents' name for it
    do("segonnx unpack stunet-s.zip --out artifacts/stunet-s")
    assert "replay" in do("segonnx verify artifacts/stunet-s")
    (tmp_path / "stunet-s.zip").unlink()
    do("segonnx pack artifacts/stunet-s --format zip --out stunet-s.zip")
    for form in ("oci", "triton", "bundle"):
        do(f"segonnx pack artifacts/stunet-s --format {form} --out packed-{form}")
    do("segonnx unpack packed-oci --out artifacts/again")

    (tmp_path / "artifacts" / "stunet-s").rename(tmp_path / "ARTIFACT")
    save(volume(), tmp_path / "ct.nii.gz")
    save(volume(1), tmp_path / "imagesTs" / "case_0000.nii.gz")
    do("segonnx predict ARTIFACT ct.nii.gz labels.nii.gz")
    do("segonnx predict ARTIFACT imagesTs/ labels/ --tta")
    own = Artifact(hand)
    for name, expected in (
        ("labels.nii.gz", own.predict(volume(), SPACING)),
        ("labels/case.nii.gz", own.predict(volume(1), SPACING, mirror=True)),
    ):
        labels = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / name)))
        np.testing.assert_array_equal(labels, expected)
        assert len(np.unique(labels)) > 1

    (tmp_path / "labels").rename(tmp_path / "labelsTs")
    do("segonnx predict ARTIFACT imagesTs/ labels/ --evaluate labelsTs/")
    assert 0 < json.loads((tmp_path / "labels" / "summary.json").read_text())["foreground_mean"]["Dice"] <= 1

    send(exports / SMALL, tmp_path / "encoder.zip")
    do(f"segonnx unpack encoder.zip --out artifacts/{SMALL}")
    assert "replay" in do(f"segonnx verify artifacts/{SMALL}")
    assert "ort" in do(f"segonnx bench --artifact artifacts/{SMALL} --backend ort --processes 1 --max-time 5")

    assert {*documented("shipping.md"), *documented("predict.md")} - {*NEEDS_MORE} <= {*ran}


def test_what_needs_more_says_what_to_install(hand: Path, receiver: Run, tmp_path: Path) -> None:
    send(hand, tmp_path / "stunet-s.zip")
    assert receiver("segonnx unpack stunet-s.zip --out artifacts/stunet-s").returncode == 0
    (tmp_path / "sender.key").write_text("")
    for line in ("segonnx sign artifacts/stunet-s --key sender.key", f"segonnx export {SMALL}"):
        done = receiver(line)
        assert done.returncode == 2, done.stderr
        assert "pip install 'segonnx[" in done.stderr and done.stderr.count("\n") == 1
