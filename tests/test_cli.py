from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from segonnx.cli import COMMANDS
from tests.conftest import ROOT, SMALL, run

HEAVY = ("torch", "onnxruntime", "onnx", "numpy", "timm", "rich.table")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    printed = run(command, "--help").stdout
    assert f"segonnx {command}" in printed


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_documented(command: str) -> None:
    text = "\n".join(path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    assert f"segonnx {command}" in text


@pytest.mark.parametrize("arguments", [["--help"], ["export", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom segonnx.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export"], "--all"),
        (["export", "stunet-x"], "did you mean stunet-"),
        (["export", SMALL, "--shape", "512,500"], "multiples of 32"),
        (["export", SMALL, "--shape", "512,-512"], "multiples of 32"),
        (["export", SMALL, "--shape", "large"], "whole numbers"),
        (["export", SMALL, "--shape", "64,128,128"], "takes 2 spatial sizes"),
        (["export", "smp:unet:resnet3"], "did you mean resnet"),
        (["export", "smp:unnet:resnet34"], "did you mean unet"),
        (["export", SMALL, "--weights", "nowhere.pth"], "nowhere.pth"),
        (["export", SMALL, "stunet-s", "--weights", "nowhere.pth"], "name one system"),
        (["export", SMALL, "--out", "/proc/artifacts"], "/proc"),
        (["export", SMALL, "--out", "README.md/artifacts"], "README.md"),
        (["verify", "nowhere"], "nowhere"),
        (["bench", "--all", SMALL], "--all"),
        (["bench", SMALL, "--json", "README.md/result.json"], "README.md"),
        (["export", SMALL, "--json", "docs"], "it is a folder"),
        (["bench", "--artifact", "docs"], "docs"),
        (["bench", SMALL, "--backend", "tensorrt"], "tensorrt"),
    ],
)
def test_wrong_use_is_one_clear_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    out = [] if "--out" in arguments or arguments[0] != "export" else ["--out", str(tmp_path / "out")]
    result = run(*arguments, *out)
    assert result.returncode in (1, 2) if arguments[:2] == ["bench", "--artifact"] else result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 4  # click shows the usage, too
    assert not any(path.is_dir() for path in tmp_path.rglob("*") if path.name != "out")


def test_too_little_memory_for_the_largest_model_is_said_before_the_work(tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (8 * 10**9, 8 * 10**9))

    result = run("export", "stunet-h", "--out", tmp_path / "out", preexec_fn=limit)
    assert result.returncode == 2
    assert "stunet-h needs about" in result.stderr
    assert "8.0 GB are available" in result.stderr
    assert not (tmp_path / "out").exists()


def test_debug_shows_the_traceback() -> None:
    result = run("--debug", "export", "stunet-x", process=True)
    assert "Traceback" in result.stderr
    assert "InputError" in result.stderr


def test_commands_that_need_torch_say_so_without_it(without_torch: dict[str, str], tmp_path: Path) -> None:
    for arguments in (["export", SMALL, "--out", tmp_path / "out"], ["list", "--check"]):
        result = run(*arguments, env=without_torch)
        assert result.returncode == 2
        assert "pip install 'segonnx[export]'" in result.stderr


def test_commands_for_artifacts_work_without_torch(without_torch: dict[str, str], exports: Path) -> None:
    assert run("--help", env=without_torch).returncode == 0
    assert run("list", env=without_torch).returncode == 0
    verified = run("verify", exports / SMALL, env=without_torch)
    assert verified.returncode == 0, verified.stderr
    asked = run("bench", "--artifact", exports / SMALL, "--backend", "eager", env=without_torch)
    assert asked.returncode == 2
    assert asked.stderr == "segonnx: PyTorch isn't installed: pip install 'segonnx[export]'\n"
    benched = run("bench", "--artifact", exports / SMALL, "--rounds", 2, env=without_torch)
    assert benched.returncode == 0, benched.stderr
    assert f"{SMALL} eager: PyTorch isn't installed: pip install 'segonnx[export]'" in benched.stdout
    assert f"{SMALL} ort:" in benched.stdout
    assert " ms" in benched.stdout
