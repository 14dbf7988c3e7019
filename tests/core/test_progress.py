"""Progress on a terminal and elsewhere, with a real pseudo-terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from segonnx.core import progress
from tests.conftest import ROOT

CODE = """
import time
from segonnx.core import progress
progress.PATIENCE_S = 0.2
with progress.Display({options}) as display:
    display("thinking")
    time.sleep(0.6)
    display.echo("a result")
    display("ending")
"""


def _code(options: str = "") -> list[str]:
    return [sys.executable, "-c", CODE.format(options=options)]


def _on_terminal(out: Path, options: str = "") -> tuple[str, str]:
    """What appears on a terminal that shows standard error, and what standard output got in its file."""
    ours, theirs = pty.openpty()
    with out.open("w") as file:
        done = subprocess.Popen(_code(options), stdout=file, stderr=theirs, cwd=ROOT)
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 4096):
                shown += piece
        except OSError:  # the other end was closed
            pass
        os.close(ours)
        assert done.wait() == 0
    return shown.decode(), out.read_text()


def test_a_terminal_shows_a_moving_line_and_results_go_to_standard_output(tmp_path: Path) -> None:
    shown, printed = _on_terminal(tmp_path / "out")
    assert "thinking" in shown
    assert "a result" not in shown
    assert printed == "a result\n"


def test_where_others_write_on_the_terminal_no_line_moves(tmp_path: Path) -> None:
    shown, printed = _on_terminal(tmp_path / "out", "moving=False")
    assert shown.splitlines() == ["  thinking ..."]
    assert printed == "a result\n"


@pytest.mark.parametrize(
    ("options", "shown", "printed"), [("", "  thinking ...\n", "a result\n"), ("quiet=True", "", "")]
)
def test_elsewhere_long_steps_are_plain_lines_and_quiet_shows_none(options: str, shown: str, printed: str) -> None:
    done = subprocess.run(_code(options), capture_output=True, text=True, check=True, cwd=ROOT)
    assert (done.stderr, done.stdout) == (shown, printed)


def test_what_went_wrong_is_told_quietly_too(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.Display(quiet=True) as display:
        display.echo("a failure", err=True)
    assert capsys.readouterr() == ("", "a failure\n")
