"""What a receiver of an artifact uses runs without what Windows lacks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, run

# psutil's Linux form, and multiprocessing's, are imported before: on Windows they have forms of their own.
_LIKE_WINDOWS = """
import multiprocessing.popen_spawn_posix
import os
import signal
import sys

import psutil

for name in ("fcntl", "resource", "pty", "termios", "grp", "pwd"):
    sys.modules[name] = None
for name in (
    "sched_getaffinity", "sched_setaffinity", "getloadavg", "getpriority", "setpriority", "nice", "killpg", "setsid",
    "fork", "getuid", "geteuid", "mkfifo", "PRIO_PROCESS",
):
    delattr(os, name)
for name in ("SIGSTOP", "SIGCONT", "SIGHUP"):
    delattr(signal, name)
"""

_RECEIVE = """
import sys
from pathlib import Path

import numpy as np

import segonnx.artifacts.packing
import segonnx.artifacts.verify
import segonnx.cli
import segonnx.predict.predictor
from segonnx.core import hardware

try:
    import fcntl
except ImportError:
    pass
else:
    raise SystemExit("the test's own block is gone")
artifact, work = map(Path, sys.argv[1:])
packed = segonnx.artifacts.packing.pack(artifact, "zip", work / "packed.zip")
unpacked = segonnx.artifacts.packing.unpack(packed, work / "unpacked")
print(segonnx.artifacts.verify.verify(unpacked).difference)
image = np.random.default_rng(0).standard_normal((9, 20, 30), dtype=np.float32)
print(segonnx.predict.predictor.Artifact(unpacked).predict(image, (3, 1.5, 1.5)).shape)
print("niceness", hardware.describe()["niceness"])
"""


@pytest.fixture
def like_windows(tmp_path: Path) -> dict[str, str]:
    """An environment without modules and functions that Windows lacks, in child processes too."""
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "sitecustomize.py").write_text(_LIKE_WINDOWS)
    return {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path / "blocked"), str(ROOT)))}


def test_an_artifact_is_received_without_what_windows_lacks(
    hand: Path, like_windows: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "work").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", _RECEIVE, hand, tmp_path / "work"],
        env=like_windows, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    replay, shape, niceness = done.stdout.splitlines()
    assert replay.startswith("max ")
    assert shape == "(9, 20, 30)"
    assert niceness.startswith("niceness ")
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["packed.zip", "unpacked"]


def test_its_commands_run_without_what_windows_lacks(hand: Path, like_windows: dict[str, str], tmp_path: Path) -> None:
    verified = run("verify", hand, env=like_windows)
    assert verified.returncode == 0, verified.stderr
    damaged = shutil.copytree(hand, tmp_path / "damaged")
    (damaged / "README.md").write_text("changed")
    refused = run("verify", damaged, env=like_windows)
    assert refused.returncode == 1
    assert "README.md" in refused.stderr
