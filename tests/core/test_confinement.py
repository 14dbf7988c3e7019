"""A confined process opens nothing of the machine's but its folder and libraries."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from segonnx.core import confinement, subprocesses
from segonnx.core.subprocesses import Progress

needs_landlock = pytest.mark.skipif(not confinement.possible(), reason="this system has no Landlock (Linux 5.13)")


def attempts(folder: Path, outside: Path, port: int, _: Progress) -> dict[str, str]:
    """What a confined process is kept from, each with what came of it."""
    open_before = outside.open("rb")
    assert confinement.confine(folder)
    tried: dict[str, Callable[[], object]] = {
        "read what is open": open_before.read,
        "read inside": (folder / "mine").read_bytes,
        "write inside": lambda: (folder / "new").write_bytes(b"x"),
        "import": lambda: __import__("lib2to3.pgen2.driver"),
        "read outside": outside.read_bytes,
        "read by a link": (folder / "link").read_bytes,
        "list outside": lambda: list(outside.parent.iterdir()),
        "read a system's file": Path("/etc/passwd").read_bytes,
        "read a process": Path("/proc/self/environ").read_bytes,
        "write outside": lambda: (outside.parent / "new").write_bytes(b"x"),
        "remove outside": outside.unlink,
        "link inside to outside": lambda: (folder / "hard").hardlink_to(outside),
        "start a program": lambda: subprocess.run([sys.executable, "-c", ""], check=True),
        "connect": lambda: socket.create_connection(("127.0.0.1", port), 5),
    }
    found = {}
    for what, act in tried.items():
        try:
            act()
            found[what] = "done"
        except OSError as error:
            found[what] = type(error).__name__
    return found


@needs_landlock
def test_nothing_outside_is_reached(tmp_path: Path) -> None:
    folder, outside = tmp_path / "inside", tmp_path / "outside" / "secret"
    for path in (folder / "mine", outside):
        path.parent.mkdir()
        path.write_bytes(b"x")
    (folder / "link").symlink_to(outside)
    with socket.create_server(("127.0.0.1", 0)) as server:
        found = subprocesses.call(attempts, folder, outside, server.getsockname()[1]).value
    done = {what for what, how in found.items() if how == "done"}
    assert done == {"read what is open", "read inside", "write inside", "import"}, found
    assert {how for what, how in found.items() if what not in done} <= {"PermissionError", "OSError"}
    assert outside.read_bytes() == b"x" and not (outside.parent / "new").exists()


def test_a_system_without_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confinement, "_version", lambda: -1)
    assert not confinement.possible()
    assert not confinement.confine(tmp_path)
    assert Path("/etc").exists() and list(tmp_path.parent.iterdir())
