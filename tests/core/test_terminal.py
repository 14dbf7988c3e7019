"""What strangers name never moves a terminal's cursor. The terminals are real ones."""

from __future__ import annotations

import ast
import json
import os
import pty
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import segonnx
from segonnx.core import terminal
from segonnx.errors import MAX_LINE, InputError, one_line
from tests.artifacts.resealed import reseal
from tests.conftest import ROOT, SMALL
from tests.predict.conftest import save, volume
from tests.report import results

OWNED = "\x1b]0;owned\x07\u202e\u2066\r\n\x9b2J\u2028"
"""A title, a change of the direction of reading, and lines of its own."""
BAD = frozenset("\x1b\x07\u202e\u2066\x9b\u2028")


def on_terminal(*arguments: object, program: list[str] | None = None) -> str:
    """What a command shows on a terminal that has its standard output and its errors."""
    ours, theirs = pty.openpty()
    command = [*(program or [sys.executable, "-m", "segonnx"]), *map(str, arguments)]
    env = {**os.environ, "NO_COLOR": "1", "TERM": "xterm"}
    done = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, env=env)
    os.close(theirs)
    shown = bytearray()
    try:
        while piece := os.read(ours, 65536):
            shown += piece
    except OSError:  # the other end was closed
        pass
    os.close(ours)
    done.wait()
    return shown.decode()


def test_a_line_is_one_line_that_only_shows() -> None:
    assert one_line(f"a{OWNED}b") == "a\\x1b]0;owned\\x07\\u202e\\u2066\\r\\n\\x9b2J\\u2028b"
    assert one_line("Größe 3 µm, 脳") == "Größe 3 µm, 脳"
    assert one_line("\ud800") == "\\ud800"
    for long in ("x" * 5_000_000, "\x1b" * 5_000):
        assert len(one_line(long)) <= MAX_LINE
    assert one_line(f"begin{'x' * 9999}end").startswith("begin") and one_line(f"begin{'x' * 9999}end").endswith("end")
    assert str(InputError(f"a{OWNED}b")) == one_line(f"a{OWNED}b")


def test_line_feeds_of_a_table_stay(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.lines("one\x1b[2J\ntwo")
    terminal.line("one\ntwo", err=True)
    assert capsys.readouterr() == ("one\\x1b[2J\ntwo\n", "one\\ntwo\n")


def test_a_terminal_of_few_letters_gets_them_written_out() -> None:
    code = "from segonnx.core import terminal; terminal.line('Größe')"
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=env, check=True)
    assert done.stdout == "Gr\\xf6\\xdfe\n"


def _verify(folder: Path, artifact: Path) -> tuple[object, ...]:
    (artifact / f"a{OWNED}b").touch()
    return "verify", artifact


def _verify_name(folder: Path, artifact: Path) -> tuple[object, ...]:
    reseal(artifact, lambda content: content["inputs"][0].update(name=f"a{OWNED}b"))
    return "verify", artifact


def _compare(folder: Path, artifact: Path) -> tuple[object, ...]:
    old = results.make(names=("encoder-lcnet-100",))
    old.write(folder / "old.json")
    content = json.loads((folder / "old.json").read_text())
    content["machine"]["cpu"] = f"x{OWNED}"
    (folder / "new.json").write_text(json.dumps(content))
    return "compare", folder / "old.json", folder / "new.json"


def _report(folder: Path, artifact: Path) -> tuple[object, ...]:
    result = results.make(names=("encoder-lcnet-100",))
    result.machine["cpu"] = f"x{OWNED}"
    result.write(folder / "r.json")
    return "report", folder / "r.json", "--markdown"


def _case(folder: Path, artifact: Path) -> tuple[object, ...]:
    (folder / "in").mkdir()
    save(volume(), folder / "x.nii.gz")
    (folder / "x.nii.gz").rename(folder / "in" / "a\x1b]0;owned\x07\u202e_0000.nii.gz")
    return "predict", artifact, folder / "in", folder / "out"


def _wrong_use(folder: Path, artifact: Path) -> tuple[object, ...]:
    return "unpack", folder / "a.zip", f"b{OWNED}.zip", "--out", folder / "out"


def _wrong_option(folder: Path, artifact: Path) -> tuple[object, ...]:
    return (f"--b{OWNED}",)


def _packed(folder: Path, artifact: Path) -> tuple[object, ...]:
    with zipfile.ZipFile(folder / "a.zip", "w") as made:
        made.writestr(f"a{OWNED}b", "x")
    return "unpack", folder / "a.zip", "--out", folder / "out"


@pytest.mark.parametrize(
    "make", [_verify, _verify_name, _compare, _report, _wrong_use, _wrong_option, _packed], ids=lambda one: one.__name__
)
def test_no_command_moves_the_cursor(make: Callable[..., tuple[object, ...]], artifact: Path, tmp_path: Path) -> None:
    shown = on_terminal(*make(tmp_path, artifact))
    shown = re.sub(r"\x1b\[(\?25[lh]|2K|1A)", "", shown)  # of the moving line, where a step takes long
    assert not BAD & set(shown), ascii(shown)
    assert "owned" in shown


def test_the_name_of_a_case_moves_no_cursor(hand: Path, tmp_path: Path) -> None:
    shown = on_terminal(*_case(tmp_path, hand))
    assert re.search(r"\r[^\r]*owned[^\r]*: window ", shown)  # in the moving line, too
    assert "\x1b]0;" not in shown and not {"\x07", "\u202e"} & set(shown)


PROGRESS = f"""
import time
from segonnx.core import progress
progress.PATIENCE_S = 0.05
with progress.Display() as display:
    display("reading {ascii(OWNED)[1:-1]}")
    time.sleep(0.3)
    display.echo("done {ascii(OWNED)[1:-1]}")
"""


@pytest.mark.parametrize("moving", ["True", "False"])
def test_progress_shows_text_alone(moving: str) -> None:
    code = PROGRESS.replace("Display()", f"Display(moving={moving})")
    shown = on_terminal(program=[sys.executable, "-c", code])
    assert "owned" in shown
    assert "\x1b]0;" not in shown and not {"\x07", "\u202e", "\u2066", "\x9b", "\u2028"} & set(shown)


PRINTING = {"print", "click.echo", "click.secho", "echo", "sys.stdout.write", "sys.stderr.write"}


def test_nothing_prints_but_through_one_place() -> None:
    package = Path(segonnx.__file__).parent
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in PRINTING
    }
    assert found == {"core/terminal.py"}


def test_the_small_artifact_prints_as_before(exports: Path) -> None:
    assert ": OK (6 files, " in on_terminal("verify", exports / SMALL)
