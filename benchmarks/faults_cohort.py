"""Cohorts under kills: on a cluster of Dask, and in parts without one. Writes its blocks of docs/reliability.md.

    python -m benchmarks.faults_cohort cluster|parts|table FOLDER

Each campaign is 1,000 tiny good cases, 20 that can't be read, and 2 that kill the process that takes them. Processes
are killed (SIGKILL) at random moments, and commands that were killed are started anew until all is done. Then every
file is held against those of a run without faults.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import SimpleITK
from dask import config

from benchmarks.docs import ROOT, put_block
from segonnx.core import cluster as dask
from segonnx.core import files
from segonnx.errors import SegonnxError
from segonnx.predict import records
from tests import handmade
from tests.clusters import cluster

BLOCK_VERSION = 2
GOOD, UNREADABLE, DEADLY = 1000, 20, 2
WORKERS, WORKER_KILLS, CLIENT_KILLS = 4, 25, 5
SHAPE = (4, 12, 12)
LIMIT_S = 900.0
"""A campaign that hasn't ended by then has failed: a command waits for ever."""
ASK_S = 10.0
"""How long workers may take to tell their numbers."""
HEADER = (
    "", "kills of workers or networks", "kills of commands", "good cases whose file is that of a run without faults",
    "unreadable cases reported", "deadly cases left", "good cases left by two kills", "wrong ends", "seconds",
)  # fmt: skip
KILLER = """
import os, sys

def hook(event, args):
    if event == "open" and "deadly" in str(args[0]) and "_0000" in str(args[0]):
        os.kill(os.getppid(), 9)
        os.kill(os.getpid(), 9)  # or it is done before the system has noticed the death of its parent

sys.addaudithook(hook)
"""


def main() -> None:
    what, folder = sys.argv[1], Path(sys.argv[2])
    if what == "table":
        table(folder)
        return
    artifact = material(folder)
    found = {"cluster": on_a_cluster, "parts": in_parts}[what](artifact, folder)
    (folder / f"{what}.json").write_text(json.dumps(found, indent=1))
    print(json.dumps(found, indent=1))


def material(folder: Path) -> Path:
    """The cases, an artifact, and what a run without faults makes of them. It is made once."""
    artifact = folder / "artifact"
    if not artifact.exists():
        results = handmade.write(folder / "results", handmade.plans(), handmade.dataset())
        _run("export", "--nnunet", results, "--out", folder / "artifacts")
        next((folder / "artifacts").iterdir()).rename(artifact)
    source = folder / "in"
    if not source.exists():
        source.mkdir()
        rng = np.random.default_rng(0)
        for number in range(GOOD):
            image = SimpleITK.GetImageFromArray(rng.normal(0, 200, SHAPE).astype(np.int16))
            image.SetSpacing((1.4, 3.2, 1.5))
            SimpleITK.WriteImage(image, str(source / f"good {number:04}_0000.nii.gz"))
    if not (folder / "right").exists():
        _run("predict", artifact, source, folder / "right", "--threads", 1, "-q")
    for number in range(UNREADABLE):
        (source / f"bad {number:02}_0000.nii.gz").write_bytes(b"no image" * number)
    for number in range(DEADLY):
        shutil.copyfile(source / "good 0000_0000.nii.gz", source / f"deadly {number}_0000.nii.gz")
    (folder / "site").mkdir(exist_ok=True)
    (folder / "site" / "sitecustomize.py").write_text(KILLER)
    return artifact


def on_a_cluster(artifact: Path, folder: Path) -> dict[str, Any]:
    """A cluster of four workers; workers and the client are killed."""
    place = folder / "cluster"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    env = {"PYTHONPATH": str(folder / "site")}
    # A local cluster drops a worker that isn't back in 15 s: a second kill while it starts would take it away for good.
    config.set({"distributed.deploy.lost-worker-timeout": "1 hour"})
    with cluster(place, [str(number) for number in range(WORKERS)], threads=2, env=env) as address:

        def worker() -> int | None:
            with contextlib.suppress(TimeoutError, SegonnxError), dask.connect(address) as client:
                asked = dask.apart(lambda: client.run(os.getpid, on_error="ignore"))
                pids = list(asked.result(ASK_S).values())
                return random.choice(pids) if pids else None
            return None

        words = ["predict", artifact, folder / "in", place / "out", "--threads", 1, "--scheduler", address]
        words += ["--report", place / "report.jsonl", "-q"]
        return campaign([words], place, folder, worker, WORKER_KILLS, CLIENT_KILLS)


def in_parts(artifact: Path, folder: Path) -> dict[str, Any]:
    """Four processes, a part each, without Dask; they and the processes of their networks are killed."""
    place = folder / "parts"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    commands = []
    for part in range(1, WORKERS + 1):
        words = ["predict", artifact, folder / "in", place / "out", "--threads", 1, "--part", f"{part}/{WORKERS}"]
        commands.append([*words, "--report", place / f"report {part}.jsonl", "-q"])

    def network() -> int | None:
        own = [child.pid for child in psutil.Process().children(recursive=True) if _runs_networks(child)]
        return random.choice(own) if own else None

    return campaign(commands, place, folder, network, WORKER_KILLS, CLIENT_KILLS, {"PYTHONPATH": str(folder / "site")})


def _runs_networks(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return "spawn_main" in " ".join(process.cmdline())
    return False


def campaign(
    commands: Sequence[Sequence[object]],
    place: Path,
    folder: Path,
    victim: Callable[[], int | None],
    kills: int,
    own_kills: int,
    env: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Run commands until they end by themselves, and kill them and others meanwhile.

    Args:
        commands: Of segonnx. One that was killed is started anew.
        place: What they write to: ``out``, and reports.
        folder: The material.
        victim: Gives a process to kill that isn't one of the commands.
        kills: How often it is asked for one.
        own_kills: How many of the commands are killed.
        env: More of the commands' environment.
    """
    random.seed(0)
    began = time.monotonic()
    todo = [False] * kills + [True] * own_kills
    random.shuffle(todo)
    running = {number: _start(words, env, place / f"said {number}") for number, words in enumerate(commands)}
    died = 0
    ended: list[str] = []
    while running:
        if time.monotonic() - began > LIMIT_S:
            ended.append(f"{len(running)} commands didn't end in {LIMIT_S:g} s")
            for process in running.values():
                process.kill()
            break
        time.sleep(random.uniform(0.5, 3.0))
        if todo:
            which = todo[-1]
            alive = [process.pid for process in running.values() if process.poll() is None]
            pid = (random.choice(alive) if alive else None) if which else victim()
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    todo.pop()
        for number, process in list(running.items()):
            if process.poll() is None:
                continue
            del running[number]
            said = place / f"said {number}"
            whole = process.returncode == 0 or b"cases aren't done" in said.read_bytes()
            if not whole:  # killed by us or by a deadly case, or left without the process that checks or loads
                died += 1
                if process.returncode != -signal.SIGKILL:
                    ended.append(f"exit code {process.returncode}: {said.read_text().strip()[-400:]}")
                running[number] = _start(commands[number], env, said)
    seconds = time.monotonic() - began
    told = records.load(sorted(place.glob("*.jsonl"))).records
    twice = [case for case, record in told.items() if case.startswith("good") and record["status"] != "done"]
    for case in twice:  # two kills hit it while it was tried alone. It is tried once more.
        for path in (*(place / "out" / records.FOLDER / "claims").glob(f"{case}.*"), place / "out" / f"{case}.nii.gz"):
            path.unlink(missing_ok=True)
    for words in commands if twice else ():
        _start(words, None, place / "said").wait()
    _let_ten_minutes_pass(place / "out")
    found = checked(place, folder)
    if env is None or running:  # a client of a cluster has no process of its own that a kill could hit
        found["wrong"] += ended
        found["wrong ends"] += len(ended)
    return found | {
        "ended otherwise": ended, "kills": kills, "kills of commands": own_kills, "commands that died": died,
        "not made": len(todo), "good cases hit twice": len(twice), "seconds": round(seconds, 1),
    }  # fmt: skip


def _let_ten_minutes_pass(out: Path) -> None:
    """What a kill left between the making of a scratch folder and its mark is removed by who writes there later."""
    old = time.time() - 2 * files.UNMARKED_S
    for path in out.glob(".*"):
        os.utime(path, (old, old))
    with files.staging(out / "later"):
        pass


def checked(place: Path, folder: Path) -> dict[str, Any]:
    """Hold what is there against what is right."""
    out, wrong = place / "out", []
    right = {path.name: path.read_bytes() for path in (folder / "right").glob("*.nii.gz")}
    made = {path.name: path.read_bytes() for path in out.glob("*.nii.gz")}
    wrong += [f"{name} is missing" for name in right.keys() - made.keys()]
    wrong += [f"{name} differs" for name in right.keys() & made.keys() if right[name] != made[name]]
    wrong += [f"{name} shouldn't be" for name in made.keys() - right.keys()]
    reports = records.load(sorted(place.glob("*.jsonl")))
    told = {case: record["status"] for case, record in reports.records.items()}
    expected = {name.removesuffix(".nii.gz"): "done" for name in right}
    expected |= {f"bad {number:02}": "failed" for number in range(UNREADABLE)}
    expected |= {f"deadly {number}": "left" for number in range(DEADLY)}
    wrong += [f"{case} is {told.get(case)} in the report, not {status}"
              for case, status in expected.items() if told.get(case) != status]  # fmt: skip
    wrong += [f"{case} is in the report" for case in told.keys() - expected.keys()]
    for name, data in right.items():
        record = records.read(out, name.removesuffix(".nii.gz"))
        if record is None or record["outputs"][0]["bytes"] != len(data):
            wrong.append(f"{name} isn't noted")
    left = [path.name for path in out.iterdir() if path.name.startswith(".") and path.name != records.FOLDER]
    claims = [path.name for path in (out / records.FOLDER / "claims").iterdir() if path.is_file()]
    wrong += [f"{name} was left" for name in left]
    wrong += [f"the claim {name} was left" for name in claims if not name.startswith("deadly")]
    return {
        "good": len(right), "good and right": sum(made.get(name) == data for name, data in right.items()),
        "unreadable": sum(told.get(f"bad {number:02}") == "failed" for number in range(UNREADABLE)),
        "deadly": sum(told.get(f"deadly {number}") == "left" for number in range(DEADLY)),
        "wrong": sorted(wrong)[:50], "wrong ends": len(wrong),
    }  # fmt: skip


def table(folder: Path) -> None:
    """Write what the campaigns found into docs/reliability.md."""
    titles = {
        "cluster": f"{WORKERS} workers of Dask; workers and the client were killed",
        "parts": f"{WORKERS} parts without Dask; commands and the processes of their networks were killed",
    }
    lines = [
        f"{GOOD:,} tiny cases, {UNREADABLE} that can't be read, {DEADLY} that kill whoever takes them:",
        "",
        f"| {' | '.join(HEADER)} |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, title in titles.items():
        found = json.loads((folder / f"{name}.json").read_text())
        lines.append(
            f"| {title} | {found['kills']} | {found['kills of commands']} | "
            f"{found['good and right']:,} of {found['good']:,} | "
            f"{found['unreadable']} of {UNREADABLE} | {found['deadly']} of {DEADLY} | "
            f"{found['good cases hit twice']} | {found['wrong ends']} | {found['seconds']:.0f} |"
        )
    put_block(ROOT / "docs" / "reliability.md", "cohorts", "\n".join(lines), "benchmarks.faults_cohort")


def _start(words: Sequence[object], env: dict[str, str] | None, said: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, **(env or {})}
    if env:
        environment["PYTHONPATH"] = os.pathsep.join([env["PYTHONPATH"], str(ROOT)])
    command = [sys.executable, "-m", "segonnx", *map(str, words)]
    with said.open("wb") as file:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=file)


def _run(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "segonnx", *map(str, words)], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
