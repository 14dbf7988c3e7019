"""The scripts of docs/scale.md do what the page says: each is run as it stands there, on tiny cases."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from tests.predict.test_cohort import lines, made, make

PAGE = ROOT / "docs" / "scale.md"
CASES = [f"case {number:02}" for number in range(6)]


def blocks(heading: str, language: str) -> list[str]:
    """The blocks of code in a section of the page."""
    section = PAGE.read_text("utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)


@pytest.fixture
def site(hand: Path, tmp_path: Path) -> Path:
    """A folder with an artifact and a cohort, as the page calls them."""
    shutil.copytree(hand, tmp_path / "artifact")
    make(tmp_path / "cohort", *CASES)
    return tmp_path


def environment(folder: Path, **more: str) -> dict[str, str]:
    """With the commands of this environment, and this source."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    cache = {"XDG_CACHE_HOME": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    return {**os.environ, **cache, "PATH": path, **more}


def sh(script: str, folder: Path, **more: str) -> str:
    done = subprocess.run(
        ["bash", "-euc", script], check=False, cwd=folder, env=environment(folder, **more), capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextlib.contextmanager
def running(command: str, folder: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command that runs until the block ends; it is the head of its processes, which get the signal, too."""
    with log.open("wb") as file, subprocess.Popen(
        ["bash", "-c", f"exec {command}"], cwd=folder, env=environment(folder), stdout=file, stderr=file,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            yield process
            assert process.poll() is None, log.read_text()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)


def test_the_job_array_of_slurm(site: Path) -> None:
    script, last = blocks("SLURM", "bash")
    assert script.startswith("#!/bin/bash\n#SBATCH ")
    parts = {}
    for number in "12":
        told = {"SLURM_ARRAY_TASK_ID": number, "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_CPUS_PER_TASK": "1"}
        assert sh(script, site, **told).startswith(f"part {number} of 2: 3 of 6 cases; the others are other processes'")
        parts[number] = {line["case"] for line in lines(site / f"part{number}.jsonl")}
    assert parts["1"] | parts["2"] == set(CASES) and not parts["1"] & parts["2"]
    assert "6 of 6 cases are done, 6 of them before" in sh(last, site)
    assert "6 of 6" in (site / "cohort.html").read_text("utf-8")


@pytest.mark.slow  # its container's command does what the job array above does
def test_the_indexed_job_of_kubernetes(site: Path) -> None:
    (text,) = blocks("Kubernetes", "yaml")
    job: dict[str, Any] = yaml.safe_load(text)
    assert job["kind"] == "Job" and job["spec"]["completionMode"] == "Indexed"
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    told = {one["name"]: one["value"] for one in container["env"]}
    assert told == {"PARTS": str(job["spec"]["completions"])}
    assert container["command"] == ["bash", "-c"] and pod["restartPolicy"] == "Never"
    assert [mount["name"] for mount in container["volumeMounts"]] == [volume["name"] for volume in pod["volumes"]]
    (script,) = container["args"]
    for index in "01":
        said = sh(script.replace("/data/", f"{site}/"), site, JOB_COMPLETION_INDEX=index, PARTS="2")
        assert said.startswith(f"part {int(index) + 1} of 2: 3 of 6 cases")
    assert made(site / "labels").keys() == {f"{case}.nii.gz" for case in CASES}


@pytest.mark.slow  # processes of Dask that start; cohorts on clusters have tests of their own
def test_three_workstations(site: Path) -> None:
    scheduler, worker, client = (block.strip() for block in blocks("Three workstations", "bash"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    here = {"HOST": "127.0.0.1", "8786": port}
    scheduler, worker, client = (
        re.sub("HOST|8786", lambda found: here[found[0]], command) for command in (scheduler, worker, client)
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(running(f"{scheduler} --no-dashboard", site, site / "scheduler.log"))
        until = time.monotonic() + 60
        while "Scheduler at" not in (site / "scheduler.log").read_text():
            assert time.monotonic() < until
            time.sleep(0.1)
        for number in range(3):
            stack.enter_context(running(f"{worker} --no-dashboard", site, site / f"worker{number}.log"))
        said = sh(client, site)
    assert sum(line.startswith("case") for line in said.splitlines()) == 6
    assert {line["status"] for line in lines(site / "cohort.jsonl")} == {"done"}
    assert made(site / "labels").keys() == {f"{case}.nii.gz" for case in CASES}
