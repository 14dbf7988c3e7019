"""Where a cluster and the storage become the limit, and what 100,000 cases cost. Writes blocks of docs/scale.md.

    python -m benchmarks.scale scheduler FOLDER [CASES...]        tasks a second, and the scheduler's memory
    python -m benchmarks.scale folder FOLDER ARTIFACT [CASES...]  what it takes to look through a folder
    python -m benchmarks.scale table FOLDER REPORT...             both blocks; REPORT is what a cohort said of itself

The scheduler and its workers are processes of this machine, and tasks sleep for no time: no network card is in it, and
no work. CASES are 10000 and 100000. Nothing else may run meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import SimpleITK

from benchmarks.docs import ROOT, put_block
from segonnx.core import cluster
from segonnx.core.subprocesses import Bounds, silent
from segonnx.predict import records
from segonnx.predict.cluster_executor import Cluster, _Worker
from segonnx.predict.files import FileOptions, Job
from segonnx.predict.pipelined import Answer, Request
from segonnx.predict.remote import Run

if TYPE_CHECKING:
    from distributed import Client, Scheduler

BLOCK_VERSION = 1
"""Raised when what this program writes, or measures, changes."""
CASES = (10_000, 100_000)
WORKERS, THREADS = 4, 2
SAMPLE = 500
"""After so many answers the scheduler is asked how many tasks it knows."""
LINKS = 50_000
"""No file may have many more names."""
LARGE = 100_000
MACHINES = (1, 16, 128)


def main() -> None:
    what, folder, rest = sys.argv[1], Path(sys.argv[2]).absolute(), sys.argv[3:]
    folder.mkdir(parents=True, exist_ok=True)
    if what == "table":
        table(folder, [Path(path) for path in rest])
        return
    found: Any
    if what == "scheduler":
        found = scheduler(folder, [int(count) for count in rest] or CASES)
    else:
        found = looked_through(folder, Path(rest[0]).absolute(), [int(count) for count in rest[1:]] or CASES)
    (folder / f"{what}.json").write_text(json.dumps(found, indent=1))
    print(json.dumps(found, indent=1))


class _Sleeping(Cluster):
    """Deals cases as the command does; each is a task that sleeps for no time."""

    def _prepare(self, worker: _Worker, share: int) -> None:
        del share
        self._events.put(partial(self._is_ready, worker))

    def _do(self, worker: _Worker, request: Request, alone: bool) -> None:
        del alone
        worker.slot.ask(time.sleep, 0.0)
        self._events.put(partial(self._hand_back, worker, Answer(request.job.case)))


def scheduler(folder: Path, counts: Sequence[int]) -> dict[str, Any]:
    """What the scheduler takes for cases that are dealt, and for tasks that are all submitted at once."""
    with _processes(folder) as (address, process), cluster.connect(address) as client:
        found: dict[str, Any] = {"empty": process.memory_info().rss, "dealt": dealt(client, process, counts[0])}
    found["at once"] = []
    for count in counts:
        with _processes(folder) as (address, process), cluster.connect(address) as client:
            found["at once"].append({"cases": count, "memory": _held(client, process, count)})
    return found


def dealt(client: Client, process: psutil.Process, count: int) -> dict[str, Any]:
    """Have so many cases done by the executor of the command."""
    recipe: dict[str, Any] = {}
    run = Run("scale", ("", None), FileOptions(), recipe, 1, Bounds(None, None), None)
    artifacts: Any = (None, None)
    left, done, known = count, 0, 0
    with _Sleeping(client, artifacts, run, progress=silent, tell=print) as executor:
        began = time.monotonic()
        while done < count:
            while left and executor.room(alone=False):
                executor.submit(Request(Job(str(left), [], Path(str(left))), Path()), alone=False)
                left -= 1
            done += executor.receive() is not None
            if done % SAMPLE == 0:
                known = max(known, client.run_on_scheduler(_known))
        seconds = time.monotonic() - began
    return {"cases": count, "seconds": seconds, "known": known, "memory": process.memory_info().rss}


def _known(dask_scheduler: Scheduler) -> int:
    return len(dask_scheduler.tasks)


def _held(client: Client, process: psutil.Process, count: int) -> int:
    """The scheduler's memory once it holds so many tasks, none of which can run."""
    futures = client.map(time.sleep, [0.0] * count, pure=False, resources={"nobody has it": 1})
    until = time.monotonic() + 600
    while client.run_on_scheduler(_known) < count:
        if time.monotonic() > until:
            raise TimeoutError(f"the scheduler doesn't know of {count} tasks")
        time.sleep(0.2)
    memory: int = process.memory_info().rss
    del futures
    return memory


@contextlib.contextmanager
def _processes(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """A scheduler and its workers, started as a user starts them. Gives its address, and its process."""
    file = folder / "scheduler.json"
    file.unlink(missing_ok=True)
    with contextlib.ExitStack() as stack:

        def start(*words: object) -> subprocess.Popen[bytes]:
            command = [sys.executable, "-m", f"distributed.cli.dask_{words[0]}", *map(str, words[1:]), "--no-dashboard"]
            with (folder / f"{words[0]}.log").open("ab") as log:
                own = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=_environment())
            stack.callback(own.wait)
            stack.callback(own.kill)
            return own

        own = start("scheduler", "--port", 0, "--scheduler-file", file)
        while not (file.exists() and file.read_text().endswith("}")):
            if own.poll() is not None:
                raise RuntimeError(f"the scheduler didn't start: {folder / 'scheduler.log'} says why")
            time.sleep(0.1)
        address = json.loads(file.read_text())["address"]
        for _ in range(WORKERS):
            start("worker", address, "--no-nanny", "--nthreads", THREADS)
        with cluster.connect(address) as client:
            client.wait_for_workers(WORKERS, timeout=120)
        yield address, psutil.Process(own.pid)


def looked_through(folder: Path, artifact: Path, counts: Sequence[int]) -> list[dict[str, Any]]:
    """What the command takes for a folder of so many cases, before any and when all are done."""
    found = []
    for count in counts:
        source, out = folder / "in", folder / "out"
        for path in (source, out):
            shutil.rmtree(path, ignore_errors=True)
        source.mkdir()
        _link(_image(folder), source, count)
        seconds, memory = _command("predict", artifact, source, out, "--part", f"1/{count}", "--threads", 1, "-q")
        _pretend_done(source, out)
        again, later = _command("predict", artifact, source, out, "--threads", 1, "-q")
        found.append({"cases": count, "seconds": seconds, "memory": memory, "again": again, "memory again": later})
        for path in (source, out):
            shutil.rmtree(path)
    return found


def _image(folder: Path) -> Path:
    path = folder / "image.nii.gz"
    if not path.exists():
        image = SimpleITK.GetImageFromArray(np.random.default_rng(0).normal(0, 200, (4, 12, 12)).astype(np.int16))
        image.SetSpacing((1.4, 3.2, 1.5))
        SimpleITK.WriteImage(image, str(path))
    return path


def _link(image: Path, source: Path, count: int) -> None:
    """Give an image so many names."""
    for number in range(count):
        path = source / f"case {number:06}_0000.nii.gz"
        if number % LINKS == 0:
            shutil.copy2(image, path)
            first = path
        else:
            os.link(first, path)


def _pretend_done(source: Path, out: Path) -> None:
    """Note each case as done, as the one that is: they have one image."""
    (path,) = (out / records.FOLDER / "done").iterdir()
    name = path.stem
    text, labels = path.read_text("utf-8"), out / f"{name}.nii.gz"
    for number, image in enumerate(sorted(source.iterdir())):
        case = image.name.removesuffix("_0000.nii.gz")
        made = out / f"{case}.nii.gz"
        if case == name:
            continue
        if number % LINKS < 2:
            shutil.copy2(labels, made)
            first = made
        else:
            os.link(first, made)
        (path.parent / f"{case}.json").write_text(text.replace(name, case), "utf-8")


def _command(*words: object) -> tuple[float, int]:
    """The seconds that a command of segonnx takes, and the peak of its own process' memory."""
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "segonnx", *map(str, words)], cwd=ROOT, env=_environment())
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    return time.monotonic() - began, usage.ru_maxrss * 1024


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def table(folder: Path, reports: Sequence[Path]) -> None:
    """Write both blocks."""
    page = ROOT / "docs" / "scale.md"
    found, looked = (json.loads((folder / f"{name}.json").read_text()) for name in ("scheduler", "folder"))
    put_block(page, "limits", limits(found, looked), "benchmarks.scale")
    done = [record for record in records.load(reports).records.values() if record["status"] == "done"]
    put_block(page, "cost", cost(done), "benchmarks.scale")


def limits(found: dict[str, Any], looked: Sequence[dict[str, Any]]) -> str:
    """Of the scheduler, and of the folder."""
    own = found["dealt"]
    lines = [
        f"{WORKERS} workers of {THREADS} threads, tasks that sleep for no time:",
        "",
        "| | tasks a second | tasks that the scheduler knows at most | its memory, MB |",
        "|---|---|---|---|",
        f"| no task | | 0 | {found['empty'] / 1e6:.0f} |",
        "| {cases:,} cases, dealt as segonnx does | {rate:.0f} | {known} | {mb:.0f} |".format(
            rate=own["cases"] / own["seconds"], mb=own["memory"] / 1e6, **own
        ),
        *(
            f"| {one['cases']:,} tasks, submitted at once as segonnx doesn't | | {one['cases']:,} | "
            f"{one['memory'] / 1e6:.0f} |"
            for one in found["at once"]
        ),
        "",
        "The command on a folder on a local disk:",
        "",
        "| cases in the folder | until the first is done, s | memory, MB | all done before: seconds | memory, MB |",
        "|---|---|---|---|---|",
        *(
            f"| {one['cases']:,} | {one['seconds']:.1f} | {one['memory'] / 1e6:.0f} | {one['again']:.1f} | "
            f"{one['memory again'] / 1e6:.0f} |"
            for one in looked
        ),
    ]
    return "\n".join(lines)


def cost(done: Sequence[dict[str, Any]]) -> str:
    """Of a case as its report has it, and of many."""
    network = sum(record["seconds"]["network"] for record in done) / len(done)
    around = sum(sum(record["seconds"].values()) for record in done) / len(done) - network
    memory = max(record["peak_memory_bytes"] for record in done)
    read, written = (
        sum(file["bytes"] for record in done for file in record[key]) / len(done) for key in ("inputs", "outputs")
    )
    hours = network * LARGE / 3600
    shape = "x".join(map(str, done[0]["shape"]))
    lines = [
        f"{len(done)} cases, the first of {shape} voxels:",
        "",
        f"| | a case | {LARGE:,} cases |",
        "|---|---|---|",
        f"| network | {network:.2f} s | {hours:,.0f} h |",
        f"| around it, most of it while the network runs | {around:.2f} s | {around * LARGE / 3600:,.0f} h |",
        f"| memory of the process, at most | {memory / 1e9:.2f} GB | the same |",
        f"| read | {read / 1e6:.2f} MB | {read * LARGE / 1e9:,.0f} GB |",
        f"| written | {written / 1e6:.3f} MB | {written * LARGE / 1e9:,.1f} GB |",
        "",
        f"| machines like this one | {LARGE:,} cases | cases a second | read, MB a second |",
        "|---|---|---|---|",
        *(
            f"| {count} | {hours / count:,.1f} h | {count / network:.1f} | {count * read / network / 1e6:.1f} |"
            for count in MACHINES
        ),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
