"""The command line: help, errors and exit codes, the options that commands share, and the package's public face."""

from __future__ import annotations

import json
import logging
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import click
import pytest

import segonnx
from segonnx import errors, runtimes
from segonnx.artifacts import manifest, packing
from segonnx.artifacts.verify import Verified
from segonnx.bench import plan, result
from segonnx.cli import COMMANDS
from segonnx.commands import bench, export, options, pack
from segonnx.exporters import settings
from segonnx.optimize import Optimize
from segonnx.sources import catalog
from segonnx.sources.nnunet import folder
from tests.conftest import ROOT, SMALL, run
from tests.report import results

HEAVY = ("torch", "onnxruntime", "onnx", "numpy", "timm", "rich.table")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    printed = run(command, "--help").stdout
    assert f"segonnx {command}" in printed


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_documented(command: str) -> None:
    text = "\n".join(path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    assert f"segonnx {command}" in text


@pytest.mark.parametrize("arguments", [["--help"], ["export", "--help"], ["bench", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = f"from segonnx.cli import main\ntry:\n    main({arguments!r})\nexcept SystemExit:\n    pass"
    assert _heavy_after(code) == "[]"


@pytest.mark.parametrize("code", ["import segonnx", "from segonnx.runtimes import NAMES, DEFAULTS"])
def test_the_package_and_the_names_of_runtimes_import_nothing_heavy(code: str) -> None:
    assert _heavy_after(code) == "[]"


def _heavy_after(code: str) -> str:
    code = f"import sys\n{code}\nprint([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stderr.strip()


def test_choices_are_those_of_the_library() -> None:
    assert get_args(Optimize) == export.OPTIMIZE
    assert settings.CPUS == export.CPUS
    assert get_args(settings.OutputKind) == export.OUTPUTS
    assert get_args(folder.Which) == export.CHECKPOINTS
    assert get_args(plan.Autocast) == bench.AUTOCAST
    assert tuple(packing.FORMATS) == pack.PACKINGS
    assert set(bench.FAMILIES) <= set(catalog.FAMILIES)


def test_runtimes_have_the_names_that_they_are_found_by() -> None:
    assert [runtimes.get(name).name for name in runtimes.NAMES] == list(runtimes.NAMES)
    assert set(runtimes.DEFAULTS) <= set(runtimes.NAMES)


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
        (["bench", SMALL, "--shape", "64,,64"], "--shape takes whole numbers, for example"),
        (
            ["bench", SMALL, "--threads", "0"],
            "--threads takes whole numbers above 0, for example 1 or 1,2,4; found '0'",
        ),
        (["bench", SMALL, "--batch", "1,two"], "--batch takes whole numbers above 0"),
        (["bench", SMALL, "--precision", "3 %%"], "--precision takes a percentage, for example 3%; found '3 %%'"),
        (["compare", "a.json", "b.json", "--fail-above", "-1"], "--fail-above takes a percentage"),
        (["compare", "a.json", "b.json", "--fail-above", "nan"], "--fail-above takes a percentage"),
        (["report", "a.json"], "--html"),
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


@pytest.mark.parametrize("arguments", [["--debug", "export", "stunet-x"], ["export", "stunet-x", "--debug"]])
def test_debug_shows_the_traceback(arguments: list[str]) -> None:
    shown = run(*arguments, process=True)
    assert shown.returncode == 1
    assert "Traceback" in shown.stderr
    assert "InputError" in shown.stderr


def test_debug_holds_for_a_wrong_value_before_it() -> None:
    with pytest.raises(errors.InputError, match="--shape"):
        run("export", SMALL, "--shape", "large", "--debug")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_the_options_of_the_group(command: str) -> None:
    printed = run(command, "--help").stdout
    assert all(f"{option} " in printed for option in ("--debug", "-q, --quiet", "-v, --verbose"))


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "list"])
def test_every_command_that_makes_something_writes_json_into_a_file(command: str) -> None:
    assert "--json FILE" in run(command, "--help").stdout


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (options.Shape(), "64,128,128", (64, 128, 128)),
        (options.Shape(), "64x128x128", (64, 128, 128)),
        (options.Numbers(), "2,1,2", (2, 1)),
        (options.Percentage(), "3%", 0.03),
        (options.Percentage(), "0.5", 0.5),
    ],
)
def test_values_are_read(kind: click.ParamType[Any], text: str, value: object) -> None:
    assert kind(text) == value
    assert kind(value) == value


def test_verify_quietly_verbosely_and_into_json(exports: Path, tmp_path: Path) -> None:
    artifact = exports / SMALL
    loud = run("verify", artifact, "--json", tmp_path / "new" / "v.json")
    assert loud.stdout.startswith(f"{artifact}: OK (")
    assert loud.stderr == ""
    (row,) = json.loads((tmp_path / "new" / "v.json").read_text())
    assert row["digest"] == manifest.read(artifact)["digest"]
    assert row["status"] == "ok" and row["replay"]["label_agreement"] == 1
    for quietly in (("verify", artifact, "-q"), ("--quiet", "verify", artifact)):
        quiet = run(*quietly)
        assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    for verbosely in (("verify", artifact, "-v"), ("--verbose", "verify", artifact), ("-v", "verify", artifact, "-v")):
        told = run(*verbosely)
        assert told.stdout == loud.stdout
        assert told.stderr.count("segonnx.worker: process ") == 4  # two start and end
    assert logging.getLogger("segonnx").level == logging.NOTSET
    assert len(logging.getLogger("segonnx").handlers) == 1  # the one that says nothing


def test_what_failed_is_in_the_json_and_told_quietly(artifact: Path, tmp_path: Path) -> None:
    (artifact / "README.md").write_text("changed")
    failed = run("verify", artifact, "-q", "--json", tmp_path / "v.json")
    assert failed.returncode == 1
    assert failed.stderr.startswith("segonnx: ") and failed.stderr.count("\n") == 1
    (row,) = json.loads((tmp_path / "v.json").read_text())
    assert row == {"artifact": str(artifact), "status": "failed", "error": failed.stderr.strip()[len("segonnx: ") :]}


def test_export_tells_of_stages_passes_and_workers(tmp_path: Path) -> None:
    done = run(
        "export", "smp:unet:tu-regnetx_002", "-v", "--shape", "64,64", "-o", tmp_path, "--json", tmp_path / "e.json"
    )
    assert done.returncode == 0, done.stderr
    assert "segonnx.exporters.steps: convert took " in done.stderr
    assert "segonnx.optimize: " in done.stderr  # which runs in a process of its own
    assert " changed the graph: " in done.stderr
    assert "segonnx.worker: process " in done.stderr
    (row,) = json.loads((tmp_path / "e.json").read_text())
    assert row["folder"] == str(tmp_path / "smp-unet-tu-regnetx_002")


def test_pack_and_unpack_quietly_and_into_json(exports: Path, tmp_path: Path) -> None:
    zipped, out = tmp_path / "a.zip", tmp_path / "a"
    done = run("pack", exports / SMALL, "--format", "zip", "-o", zipped, "-q", "--json", tmp_path / "p.json")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    packed = json.loads((tmp_path / "p.json").read_text())
    assert (packed["format"], packed["path"], packed["files"]) == ("zip", str(zipped), 1)
    assert packed["bytes"] == zipped.stat().st_size
    done = run("unpack", zipped, "-o", out, "--json", tmp_path / "u.json")
    assert done.stdout == f"{zipped}: intact -> {out}\n"
    unpacked = json.loads((tmp_path / "u.json").read_text())
    assert unpacked == {"packed": str(zipped), "artifact": str(out), "digest": manifest.read(out)["digest"]}


def test_reports_and_comparisons_go_where_they_are_asked_to(tmp_path: Path) -> None:
    first, second = results.make(("stunet-s",)), results.make(("unet-resnet18",))
    first.write(tmp_path / "1.json")
    second.write(tmp_path / "2.json")
    done = run("report", tmp_path / "1.json", tmp_path / "2.json", "--json", tmp_path / "both.json", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    both = result.read(tmp_path / "both.json")
    assert both.rows == [*first.rows, *second.rows]
    run("report", tmp_path / "1.json", "-o", tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    printed = run("compare", tmp_path / "1.json", tmp_path / "1.json")
    done = run("compare", tmp_path / "1.json", tmp_path / "1.json", "-o", tmp_path / "new" / "table.txt")
    assert done.stdout == ""
    assert (tmp_path / "new" / "table.txt").read_text() == printed.stdout


@pytest.mark.usefixtures("copied_workers")
def test_a_quiet_bench_prints_its_tables_alone(exports: Path) -> None:
    words = ("bench", "--artifact", exports / SMALL, "--backend", "ort", "--rounds", 1, "--no-ceilings")
    quiet = run(*words, "-q")
    assert quiet.returncode == 0, quiet.stderr
    assert f"{SMALL} ort: " not in quiet.stdout
    assert "95 %" in quiet.stdout
    assert quiet.stderr == ""
    told = run(*words, "--no-roofline", "--verbose")
    assert f"{SMALL} ort: " in told.stdout
    assert f"segonnx.bench.session: {SMALL}: ort loaded in " in told.stderr


def test_the_public_face() -> None:
    expected = {name for name in vars(errors) if isinstance(getattr(errors, name), type)}
    assert set(segonnx.__all__) == {"Artifact", "__version__", "export", "quantize", "verify", *expected}
    assert all(getattr(segonnx, name).__doc__ for name in segonnx.__all__)
    assert segonnx.InputError is errors.InputError
    with pytest.raises(AttributeError, match="nothing"):
        segonnx.nothing  # noqa: B018


def test_verify_of_the_package_is_that_of_the_command(artifact: Path) -> None:
    found = segonnx.verify(str(artifact), threads=1)
    assert isinstance(found, Verified)
    assert found.manifest["name"] == SMALL and found.difference is not None
    assert segonnx.verify(artifact, replay=False).difference is None
    (artifact / "README.md").write_text("changed")
    with pytest.raises(segonnx.VerifyError, match="README.md"):
        segonnx.verify(artifact, replay=False)


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
    rounds = ("--rounds", 2, "--processes", 1, "--no-roofline")
    benched = run("bench", "--artifact", exports / SMALL, *rounds, env=without_torch)
    assert benched.returncode == 0, benched.stderr
    assert f"{SMALL} eager: PyTorch isn't installed: pip install 'segonnx[export]'" in benched.stdout
    assert f"{SMALL} ort:" in benched.stdout
    assert " ms" in benched.stdout
