"""Programs that know nothing of segonnx replay an artifact whose weights are in a file of their own."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import faults
from segonnx.artifacts import manifest
from tests.conftest import ROOT, SMALL

pytestmark = pytest.mark.slow

EXAMPLES = ROOT / "examples"
HEADERS = "com.github.asus4.onnxruntime"
"""A package that holds ``onnxruntime_c_api.h``, which onnxruntime's own lack."""


def npm(package: str, folder: Path) -> Path:
    """Install a package into a folder; skips the test where that can't be."""
    if shutil.which("npm") is None:
        pytest.skip("npm isn't installed (apt-get install nodejs npm)")
    command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", package]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"npm can't install {package}: {done.stderr.strip().splitlines()[-1]}")
    return folder


@pytest.fixture(scope="module")
def external(exports: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return faults.external(exports / SMALL, tmp_path_factory.mktemp("external") / SMALL)


def replay(command: list[str], artifact: Path, cwd: Path = ROOT) -> float:
    """Run a client; the error that it prints, which must be within the manifest's tolerance."""
    done = subprocess.run([*command, str(artifact)], capture_output=True, text=True, check=False, cwd=cwd)
    assert done.returncode == 0, done.stderr
    error = float(done.stdout)
    assert error <= manifest.read(artifact)["parity"]["tolerance"]["max_rel_error"]
    return error


def broken(artifact: Path, target: Path) -> Path:
    """A copy of the artifact that expects other logits."""
    import onnx

    shutil.copytree(artifact, target)
    path = target / "test_data_set_0" / "output_0.pb"
    tensor = onnx.load_tensor(path)
    onnx.save_tensor(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * 1.1, "logits"), path)
    return target


def check(command: list[str], artifact: Path, tmp_path: Path, cwd: Path = ROOT) -> None:
    """The artifact replays, and a copy that expects other logits doesn't."""
    replay(command, artifact, cwd)
    other = broken(artifact, tmp_path / "broken")
    done = subprocess.run([*command, str(other)], capture_output=True, text=True, check=False, cwd=cwd)
    assert done.returncode == 1, done.stderr


def test_onnxruntime_for_node(external: Path, tmp_path: Path) -> None:
    check(["node", str(EXAMPLES / "replay.mjs")], external, tmp_path, npm("onnxruntime-node", tmp_path))


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="OpenVINO isn't installed")
def test_openvino(external: Path, tmp_path: Path) -> None:
    check([sys.executable, str(EXAMPLES / "replay_openvino.py")], external, tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("polygraphy") is None, reason="polygraphy isn't installed")
def test_polygraphy(external: Path, tmp_path: Path) -> None:
    command = ["bash", str(EXAMPLES / "replay_polygraphy.sh")]
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run([*command, str(external)], capture_output=True, text=True, check=False, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    other = broken(external, tmp_path / "broken")
    done = subprocess.run([*command, str(other)], capture_output=True, text=True, check=False, cwd=tmp_path, env=env)
    assert done.returncode == 1


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc isn't installed")
def test_onnxruntime_for_c(external: Path, tmp_path: Path) -> None:
    import onnxruntime

    header = next(npm(HEADERS, tmp_path).rglob("onnxruntime_c_api.h"))
    (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    (tmp_path / "libonnxruntime.so.1").symlink_to(library)
    program = tmp_path / "replay"
    command = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", program, EXAMPLES / "replay.c", "-I", header.parent,
               tmp_path / "libonnxruntime.so.1", f"-Wl,-rpath,{tmp_path}", "-lm"]  # fmt: skip
    subprocess.run([*map(str, command)], check=True)
    check([str(program)], external, tmp_path)
    tensor = tmp_path / "broken" / "test_data_set_0" / "output_0.pb"
    whole = tensor.read_bytes()
    for wrong in (b"", whole[:7], whole[:-1], b"\xff" * 30, whole.replace(b"\x10\x01", b"\x10\x0b", 1)):
        tensor.write_bytes(wrong)
        done = subprocess.run([program, tmp_path / "broken"], capture_output=True, text=True, check=False)
        assert done.returncode == 2, done.stderr
        assert done.stderr.count("\n") == 1
