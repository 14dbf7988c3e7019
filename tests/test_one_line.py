"""Whatever goes wrong is one line with an exit code, also where nobody expected it."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from segonnx.artifacts import verify as verifier
from segonnx.cli import BROKEN_PIPE, COMMANDS, INTERNAL
from segonnx.commands import options
from segonnx.errors import InputError
from tests.conftest import ROOT, SMALL, run

ARGUMENTS: dict[str, tuple[str, ...]] = {
    "list": (),
    "export": (SMALL,),
    "verify": ("docs",),
    "sign": ("docs", "--key", "key"),
    "predict": ("docs", "image.nii.gz", "labels.nii.gz"),
    "pack": ("docs", "--format", "zip", "-o", "a.zip"),
    "unpack": ("a.zip", "-o", "a"),
    "quantize": ("docs", "--calibration", "images", "-o", "a"),
    "bench": (SMALL,),
    "compare": ("a.json", "b.json"),
    "report": ("a.json", "--markdown"),
}
"""Each command, with arguments that let it begin."""


def break_(monkeypatch: pytest.MonkeyPatch, command: str, error: BaseException) -> None:
    """Let a command fail as soon as it begins."""
    import importlib

    found: click.Command = importlib.import_module(f"segonnx.commands.{command}").command

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(found, "callback", fail)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_error_that_nobody_expected_is_one_line(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    break_(monkeypatch, command, KeyError("two\nlines"))
    done = run(command, *ARGUMENTS[command])
    assert done.returncode == INTERNAL == 70
    assert done.stderr.startswith("segonnx: something went wrong that shouldn't: KeyError: ")
    assert done.stderr.endswith(" (--debug shows where)\n")
    assert done.stderr.count("\n") == 1 and done.stdout == ""
    for debugging in ((command, *ARGUMENTS[command], "--debug"), ("--debug", command, *ARGUMENTS[command])):
        with pytest.raises(KeyError):
            run(*debugging)


@pytest.mark.parametrize(
    ("error", "exit_code", "line"),
    [
        (RecursionError("maximum recursion depth exceeded"), 70, "RecursionError: maximum recursion depth exceeded"),
        (ValueError(), 70, "shouldn't: ValueError (--debug"),
        (MemoryError(), 2, "segonnx: the memory ran out\n"),
        (ImportError("a.so: failed to map segment from shared object"), 2, "segonnx: the memory ran out\n"),
        (OSError(28, "No space left on device"), 2, "segonnx: the disk is full"),
        (PermissionError(13, "Permission denied", "/root/x"), 2, "segonnx: no permission: /root/x\n"),
        (FileNotFoundError(2, "No usable temporary directory found in ['/tmp']"), 2, "TMPDIR names another\n"),
        (OSError(27, "File too large"), 2, "segonnx: a limit of this system is reached: File too large\n"),
        (InputError("as usual"), 2, "segonnx: as usual\n"),
        (KeyboardInterrupt(), 130, "segonnx: interrupted\n"),
    ],
)
def test_errors_have_their_exit_codes(
    error: BaseException, exit_code: int, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_(monkeypatch, "list", error)
    done = run("list")
    assert done.returncode == exit_code
    assert line in done.stderr and done.stderr.count("\n") == 1


def test_a_command_that_can_not_be_imported_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "segonnx.commands.list", None)
    for arguments in (["list"], ["--help"], ["list", "--help"]):
        done = run(*arguments)
        assert done.returncode == INTERNAL
        assert "ModuleNotFoundError: " in done.stderr and done.stderr.count("\n") == 1


def test_debug_shows_the_traceback_of_what_nobody_expected(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['segonnx.commands.list'] = None\n")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    assert "Traceback" in run("list", "--debug", env=env).stderr
    assert "Traceback" not in run("list", env=env).stderr


def _with_output(how: str, *arguments: object) -> tuple[int, str]:
    """Run a command whose standard output is closed, full, or read by nobody."""
    words = " ".join(f"'{word}'" for word in (sys.executable, "-m", "segonnx", *arguments))
    if how == "unread":
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run(
            ["sh", "-c", words], stdout=writing, stderr=subprocess.PIPE, text=True, check=False, cwd=ROOT
        )
        os.close(writing)
    else:
        redirected = {"closed": ">&-", "full": ">/dev/full", "all closed": "<&- >&- 2>&-"}[how]
        done = subprocess.run(
            ["sh", "-c", f"{words} {redirected}"], capture_output=True, text=True, check=False, cwd=ROOT
        )
    return done.returncode, done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a file that is always full")
@pytest.mark.parametrize("arguments", [["list"], ["list", "--json"], ["--help"], ["verify", "--help"], ["verify", "A"]])
def test_an_output_that_takes_nothing_is_one_line(arguments: list[str], exports: Path) -> None:
    words = [str(exports / SMALL) if word == "A" else word for word in arguments]
    assert _with_output("full", *words) == (
        2, "segonnx: can't write to standard output: No space left on device\n"
    )  # fmt: skip
    assert _with_output("closed", *words) == (2, "segonnx: can't write to standard output: Bad file descriptor\n")
    assert _with_output("unread", *words) == (BROKEN_PIPE, "")


def test_errors_that_nobody_can_hear_keep_their_exit_code() -> None:
    assert _with_output("all closed", "verify", "nowhere") == (2, "")
    assert _with_output("all closed", "list") == (2, "")


def _limited(limit: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    words = " ".join(f"'{word}'" for word in (sys.executable, "-m", "segonnx", *arguments))
    return subprocess.run(
        ["sh", "-c", f"ulimit {limit}; {words}"], capture_output=True, text=True, check=False, cwd=ROOT
    )


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux'")
@pytest.mark.parametrize("megabytes", [80, 120, 160, 220, 300])
def test_little_memory_is_one_line(megabytes: int, exports: Path) -> None:
    done = _limited(f"-v {megabytes}000", "verify", exports / SMALL)
    assert "Traceback" not in done.stderr
    if done.returncode:
        assert done.returncode in (1, 2)
        assert done.stderr.count("\n") == 1 and done.stderr.startswith("segonnx: ")


@pytest.mark.parametrize("command", ["verify", "pack", "predict"])
def test_without_a_folder_for_temporary_files_it_is_one_line(
    command: str, hand: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "nowhere")])
    more = {"verify": (), "pack": ("--format", "zip", "-o", tmp_path / "a.zip"), "predict": ("a.nii", "b.nii")}[command]
    done = run(command, hand, *more)
    assert done.returncode == 2
    assert done.stderr == "segonnx: no folder for temporary files can be written to: TMPDIR names another\n"


def test_an_interrupt_has_its_exit_code(exports: Path) -> None:
    command = [sys.executable, "-m", "segonnx", "verify", str(exports / SMALL), "-v"]
    # A shell starts its background jobs deaf to Ctrl-C, and so would be what these tests start.
    hear = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=hear) as running:  # noqa: PLW1509
        assert running.stderr is not None
        next(line for line in running.stderr if line.endswith(" started\n"))
        running.send_signal(signal.SIGINT)
        said = running.stderr.read()
    assert running.returncode == options.INTERRUPTED
    assert said.splitlines()[-1] == "segonnx: interrupted" and "Traceback" not in said


@pytest.mark.parametrize(
    ("text", "size"), [("8GB", 8 * 10**9), ("1.5 gib", 3 * 2**29), ("500MB", 5 * 10**8), ("4096", 4096), ("2k", 2000)]
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert options.Size()(text) == size
    assert options.Size()(size) == size


@pytest.mark.parametrize("text", ["0", "-1GB", "many", "1e9", "8 XB", "", "nan", "9" * 15 + "TB"])
def test_other_sizes_are_refused_in_one_line(text: str) -> None:
    done = run("verify", "docs", "--max-memory", text)
    assert done.returncode == 2
    assert "--max-memory takes a size above 0, for example 8GB or 500MB; found" in done.stderr


@pytest.mark.parametrize("command", ["export", "verify", "sign", "predict", "pack", "unpack", "bench"])
def test_commands_that_run_what_strangers_made_take_bounds(command: str) -> None:
    printed = run(command, "--help").stdout
    assert "--timeout SECONDS" in printed and "--max-memory SIZE" in printed


def test_bounds_are_those_of_the_checks(hand: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    real: Callable[..., Any] = verifier.verify

    def verify(*arguments: Any, **named: Any) -> Any:
        given.append(named["bounds"])
        return real(*arguments, **named)

    monkeypatch.setattr("segonnx.artifacts.packing.verify", verify)
    zipped = tmp_path / "a.zip"
    for words in (("pack", hand, "--format", "zip", "-o", zipped), ("unpack", zipped, "-o", tmp_path / "a")):
        done = run(*words, "--timeout", 50, "--max-memory", "2GB")
        assert done.returncode == 0, done.stderr
    assert [(bounds.timeout, bounds.memory) for bounds in given] == [(50, 2 * 10**9)] * 2
