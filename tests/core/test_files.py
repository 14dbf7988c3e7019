from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from segonnx.core import files
from segonnx.errors import ResourceError
from tests.conftest import ROOT


def test_staging_is_cleared_and_files_appear_completely(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), files.staging(tmp_path / "a" / "b") as work:
        (work / "half").write_text("x")
        raise ZeroDivisionError
    assert os.listdir(tmp_path / "a") == []
    with files.staging(tmp_path / "a" / "b") as work:
        (work / "new").mkdir()
        (work / "new" / "file").write_text("2")
        files.publish(work / "new", tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b" / "file").read_text() == "2"
    assert os.listdir(tmp_path / "a") == ["b"]
    files.write(tmp_path / "file", "content")
    with pytest.raises(ResourceError, match="can't write"):
        files.write(tmp_path / "nowhere" / "file", "content")


def test_a_file_that_cannot_be_written_is_said_before_the_work(tmp_path: Path) -> None:
    files.require_writable(tmp_path / "new" / "file")
    assert os.listdir(tmp_path / "new") == []
    with pytest.raises(ResourceError, match="it is a folder"):
        files.require_writable(tmp_path / "new")
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="can't write"):
        files.require_writable(tmp_path / "file" / "below")


def test_too_little_disk_is_said_before_the_work(tmp_path: Path) -> None:
    files.require_space(1, tmp_path, "it", "free some")
    with pytest.raises(ResourceError, match=r"it needs about 1000000000.00 GB of disk, .* GB free: free some"):
        files.require_space(10**18, tmp_path, "it", "free some")


STAGE = """
import sys
from pathlib import Path

from segonnx.core import files

with files.staging(Path(sys.argv[1])) as work:
    print(work, flush=True)
    sys.stdin.read()
"""


def test_a_staging_folder_goes_with_its_process(tmp_path: Path) -> None:
    """One that is in use stays; one whose process was killed is cleared by whoever comes next."""
    with subprocess.Popen(
        [sys.executable, "-c", STAGE, tmp_path / "a"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as owner:
        assert owner.stdout is not None
        folder = Path(owner.stdout.readline().strip())
        with files.staging(tmp_path / "b"):
            assert folder.is_dir()
        owner.send_signal(signal.SIGKILL)
    assert folder.is_dir()
    with files.staging(tmp_path / "b"):
        assert not folder.exists()


def test_without_locks_nothing_is_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".a.x.partial").mkdir()
    (tmp_path / ".a.x.partial" / ".lock").write_text("locked")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "fcntl", None)
        with files.staging(tmp_path / "b") as work:
            assert work.is_dir()
        assert os.listdir(tmp_path) == [".a.x.partial"]
    with files.staging(tmp_path / "b"):
        pass
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_not_locked_yet_stays(tmp_path: Path) -> None:
    (tmp_path / ".a.x.partial").mkdir()
    (tmp_path / ".a.x.partial" / ".lock").write_text("")
    with files.staging(tmp_path / "b"):
        assert (tmp_path / ".a.x.partial").is_dir()


def test_publishing_replaces_what_is_there(tmp_path: Path) -> None:
    for content in ("1", "2"):
        with files.staging(tmp_path / "a") as work:
            (work / "made").mkdir()
            (work / "made" / "file").write_text(content)
            files.publish(work / "made", tmp_path / "a")
    assert (tmp_path / "a" / "file").read_text() == "2"
    assert os.listdir(tmp_path) == ["a"]
