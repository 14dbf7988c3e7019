"""Runs a bench: every runtime of a model in a process of its own, taking turns in rounds."""

from __future__ import annotations

import contextlib
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from segonnx import inputs, machine, process, runtimes
from segonnx.artifacts import testdata
from segonnx.artifacts.verify import MODEL
from segonnx.bench import plan, stats
from segonnx.bench.plan import Model, Settings
from segonnx.bench.result import OK, Result, Row
from segonnx.bench.worker import Job, serve
from segonnx.errors import SegonnxError
from segonnx.numeric import TOLERANCES, compare
from segonnx.process import Progress, Worker
from segonnx.runtimes.base import Options, Subject

ROUND_SECONDS = 0.5
"""A runtime's turn in a round lasts about this long, or one pass where that takes longer."""
MAX_PASSES = 50


def bench(
    models: list[Model],
    settings: Settings,
    x: inputs.Array | None,
    tell: Callable[[list[Row]], None],
    progress: Progress = process.silent,
) -> Result:
    """Time the models one after another.

    Args:
        models: what to time.
        settings: how.
        x: the input for all; None makes noise of each model's shape.
        tell: called with the rows of each model as they come.
        progress: told of each step.
    """
    bf16, sentence = plan.resolve_autocast(settings.autocast)
    result = Result(machine.describe() | {"threads": settings.threads}, sentence)
    for model in models:
        rows = list(_bench_model(model, settings, bf16, x, progress))
        result.rows += rows
        tell(rows)
    return result


def _bench_model(
    model: Model, settings: Settings, bf16: bool, x: inputs.Array | None, progress: Progress
) -> Iterator[Row]:
    tensor = inputs.make("noise", model.input_shape, model.modality, settings.seed) if x is None else x
    rows = [
        Row(
            model=model.name,
            family=model.family,
            backend=backend,
            parameters=model.parameters,
            macs=model.macs,
            input_shape=tensor.shape,
            input_sha256=inputs.sha256(tensor),
            images=model.images,
        )
        for backend in settings.backends
    ]
    with tempfile.TemporaryDirectory(prefix="segonnx-") as name:
        folder = Path(name)
        np.save(folder / "input.npy", tensor)
        for row in rows:
            row.status = runtimes.get(row.backend).missing() or OK
        subject = _subject(model, rows, folder, progress)
        needed = sum(plan.memory_needed(model, row.backend) for row in rows if row.status == OK)
        together = needed <= machine.available_memory()
        blocks = [rows] if together else [[row] for row in rows]
        for block in blocks:
            _run_block(model, block, settings, bf16, subject, folder, progress)
        _compare(model, rows, folder, progress)
    eager = next((row for row in rows if row.backend == "eager" and row.rounds), None)
    for row in rows:
        row.interleaved = together
        if not together and len(rows) > 1:
            row.warnings.append("not interleaved: the runtimes don't fit into memory together")
        if row.rounds and len(row.rounds) < plan.MIN_ROUNDS:
            row.warnings.append(f"only {len(row.rounds)} round{'s' * (len(row.rounds) > 1)}")
        if eager is not None and row.rounds:
            row.speedup_over_eager = stats.ratio(eager.rounds, row.rounds)
    yield from rows


def _subject(model: Model, rows: list[Row], folder: Path, progress: Progress) -> Subject:
    """What the runtimes run; rows of runtimes that can't have what they need get a status that says so."""
    needs = {row.backend: runtimes.get(row.backend).needs for row in rows if row.status == OK}
    weights = None
    if "network" in needs.values():
        users = [row for row in rows if needs.get(row.backend) == "network"]
        try:
            weights, same = _weights(model, folder, progress)
        except SegonnxError as error:
            for row in users:
                row.status = str(error)
        else:
            for row in users if not same else ():
                row.warnings.append("random weights, made again here, differ in rounding from the artifact's")
    if model.artifact is None:
        for row in rows:
            if needs.get(row.backend) == "artifact":
                row.status = f"no artifact: segonnx export {model.name}"
    return Subject(model.system, weights, None if model.artifact is None else model.artifact / MODEL)


def _weights(model: Model, folder: Path, progress: Progress) -> tuple[Path, bool]:
    """Safetensors of the weights, made again as the export made them; whether they are the artifact's bit by bit."""
    from segonnx.exporters.prepare import STATE, write_weights

    if model.system is None or model.seed is None:
        raise SegonnxError("needs the network: the artifact's weights came from a file")
    digest = process.call(write_weights, model.system, None, model.seed, folder / STATE, progress=progress).value
    return folder / STATE, model.weights_sha256 in (None, digest)


def _run_block(
    model: Model, rows: list[Row], settings: Settings, bf16: bool, subject: Subject, folder: Path, progress: Progress
) -> None:
    """Load the rows' runtimes, run the rounds, and end them all, whatever happens."""
    order = random.Random(settings.seed)  # noqa: S311 (an order, not a secret)
    with contextlib.ExitStack() as stack:
        workers: dict[str, Worker] = {}
        passes: dict[str, int] = {}
        for row in rows:
            if row.status != OK:
                continue
            progress(f"{model.name}: loading {row.backend}")
            options = Options(settings.threads, bf16 and runtimes.get(row.backend).autocasts)
            name = row.backend
            job = Job(name, subject, options, folder / "input.npy", folder / f"{name}.npy", folder / f"{name}-cache")
            worker = stack.enter_context(Worker(serve, job))
            loaded = _ask(worker, row)
            if loaded is not None:
                row.load_s, row.settings = loaded["load_s"], loaded["settings"]
                workers[row.backend] = worker
                # The pass that loading ended with, and the one that gave the logits, were the warm-up.
                passes[row.backend] = min(MAX_PASSES, max(1, int(ROUND_SECONDS / loaded["pass_s"])))
        for number in range(settings.rounds):
            turns = [row for row in rows if row.status == OK]
            order.shuffle(turns)
            for row in turns:
                progress(f"{model.name}: round {number + 1} of {settings.rounds}, {row.backend}")
                count = passes[row.backend]
                # The first pass of a turn wakes threads and caches; where passes are many it isn't counted.
                extra = 1 if count > 1 else 0
                seconds = _ask(workers[row.backend], row, "run", count + extra)
                if seconds is not None:
                    row.rounds.append(seconds[extra:])
        for row in rows:
            if row.status == OK:
                row.peak_rss_bytes = _ask(workers[row.backend], row, "end")


def _ask(worker: Worker, row: Row, *command: Any) -> Any:
    """The worker's answer to the command, or to being started; None, and the row's status says why, where it failed."""
    try:
        if command:
            with contextlib.suppress(BrokenPipeError):  # it died; receive tells how
                worker.channel.send(command)
        kind, value = worker.receive(f"{row.model} in {row.backend}")
    except SegonnxError as error:
        kind, value = "error", error
    if kind == "ok":
        return value
    row.status = str(value)
    row.rounds = []
    return None


def _compare(model: Model, rows: list[Row], folder: Path, progress: Progress) -> None:
    """Hold every runtime's logits against eager's, or against the artifact's recorded ones."""
    eager = next((row for row in rows if row.backend == "eager" and row.status == OK), None)
    if eager is not None:
        reference, name = np.load(folder / "eager.npy", mmap_mode="r"), "eager"
    elif (recorded := _recorded(model, rows)) is not None:
        reference, name = recorded, "recorded"
    else:
        return
    for row in rows:
        if row.status != OK:
            continue
        progress(f"{model.name}: comparing the logits of {row.backend}")
        difference = compare(reference, np.load(folder / f"{row.backend}.npy", mmap_mode="r"))
        row.max_abs_error, row.label_agreement = difference.max_abs_error, difference.label_agreement
        row.compared_with = name
        dtype = "float32" if row.settings.get("dtype") == "float32" else "bfloat16"
        if not difference.within(TOLERANCES[dtype]):
            row.status = f"its logits differ: {difference}"


def _recorded(model: Model, rows: list[Row]) -> inputs.Array | None:
    """PyTorch's logits from the artifact's test data, if that has the bench's input."""
    if model.artifact is None:
        return None
    data = model.artifact / testdata.FOLDER
    if inputs.sha256(testdata.read(data / "input_0.pb")) != rows[0].input_sha256:
        return None
    return testdata.read(data / "output_0.pb")
