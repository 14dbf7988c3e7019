"""Documents of strangers that their schemas allow, through the commands that read them. Run by ``make faults``.

Each is a real document, changed in a few places that a seed chooses so that it still fits its schema, with hashes and
digest made anew. No command may end in anything but an exit code of 0, 1 or 2, with one line where it isn't 0.
``tests/test_fuzz.py`` runs a small part of it.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import SimpleITK
import torch

from segonnx.artifacts import layout, manifest, packing
from segonnx.bench import machines, plan_file, result, targets
from segonnx.bench.machines import Machines
from segonnx.bench.plan import Settings
from segonnx.commands import bench_plan
from segonnx.core import hardware, subprocesses
from segonnx.errors import SegonnxError, StageError
from segonnx.exporters import manifest_entries, nnunet, pipeline
from segonnx.exporters.nnunet import Selection
from segonnx.predict import preprocessing
from segonnx.sources.nnunet import plans
from tests import fuzz, handmade
from tests.conftest import message, run, steps_in_process
from tests.report import results

NUMBERS = {
    "manifest": 1000, "ensemble": 100, "result": 500, "machines": 200, "bench plan": 300, "plans": 300,
    "checkpoint": 300,
}  # fmt: skip
"""How many documents of each kind the campaign makes."""
LIMIT_SECONDS = 60.0
"""All commands on one document."""
LIMIT_BYTES = 4 * 10**9
"""The most memory that a process may have held which makes all of them, PyTorch included."""
MEMORY = 2**21
"""What predict is told that the machine has: enough for the image, and too little to spend minutes on one document."""


@dataclass(frozen=True)
class Material:
    """The real documents, and what goes with them.

    Attributes:
        artifact: predicts.
        ensemble: of networks of the same images.
        image: fits it.
        result: of a bench.
        trained: a folder that nnU-Net trained.
    """

    artifact: Path
    ensemble: Path
    image: Path
    result: Path
    trained: Path


@dataclass(frozen=True)
class Trial:
    """One command on one document.

    Attributes:
        kind: of the document, a key of ``NUMBERS``.
        command: which command, or which part of it.
        seed: of the document.
        code: the exit code; None where it ended in another way.
        wrong: what was wrong with its end, if anything.
        seconds: that it took.
    """

    kind: str
    command: str
    seed: int
    code: int | None
    wrong: str | None
    seconds: float


def prepare(work: Path, artifact: Path, ensemble: Path) -> Material:
    """Make what there isn't yet.

    Args:
        work: an empty folder.
        artifact: of ``tests.handmade``'s network.
        ensemble: of its configurations.
    """
    image = SimpleITK.GetImageFromArray(np.random.default_rng(0).normal(0, 200, (9, 12, 14)).astype(np.int16))
    image.SetSpacing((1.5, 1.5, 3.0))
    SimpleITK.WriteImage(image, str(work / "image.nii.gz"))
    results.make(names=("encoder-lcnet-100", "stunet-s")).write(work / "result.json")
    trained = handmade.write(work / "trained", handmade.plans(), handmade.dataset())
    return Material(artifact, ensemble, work / "image.nii.gz", work / "result.json", trained)


def trials(material: Material, kind: str, seed: int) -> list[Trial]:
    """Make a document, and give it to every command that reads its kind."""
    rng = random.Random(f"{kind} {seed}")
    with tempfile.TemporaryDirectory(prefix="segonnx-faults-") as name, steps_in_process():
        work = Path(name) / "around" / "work"
        work.mkdir(parents=True)
        acts = _ACTS[kind](material, rng, work)
        found = [_trial(kind, command, seed, act) for command, act in acts.items()]
        known = {name, *(str(path) for path in (work.parent, work, *(work / one for one in _NAMES)))}
        strange = [
            path for place in (Path(name), work.parent, work) for path in place.iterdir() if str(path) not in known
        ]
    wrong = [f"{path.name!r} was written" for path in strange]
    if (peak := subprocesses.peak_rss_bytes()) > LIMIT_BYTES:
        wrong.append(f"{peak / 1e9:.1f} GB of memory were taken")
    return [*found, *(Trial(kind, "one of them", seed, None, what, 0.0) for what in wrong)]


_NAMES = (
    *packing.FORMATS, "artifact", "trained", "labels.nii.gz", "result.json", "page.html", "again.json", "compared.json",
)  # fmt: skip
"""What the commands read and may write."""


Act = Callable[[], tuple[int, str]]
"""Runs something, and gives its exit code and what it said on standard error."""


def _trial(kind: str, command: str, seed: int, act: Act) -> Trial:
    began = time.monotonic()
    code, wrong = None, None
    try:
        code, said = act()
        if code not in (0, 1, 2):
            wrong = f"exit code {code}: {said[:200]!r}"
        elif len(said.splitlines()) > 1 or len(said) > 2000 or (code == 2 and not said):
            wrong = f"not one line: {said[:200]!r}"
    except BaseException as error:  # noqa: BLE001 (whatever it is, the page must tell)
        wrong = f"{type(error).__name__}: {str(error)[:200]}"
    return Trial(kind, command, seed, code, wrong, time.monotonic() - began)


def _command(*arguments: object) -> Act:
    def act() -> tuple[int, str]:
        done = run(*arguments)
        return done.returncode, message(done)

    return act


def _call(function: Callable[[], object]) -> Act:
    def act() -> tuple[int, str]:
        try:
            function()
        except SegonnxError as error:
            return error.exit_code, str(error)
        return 0, ""

    return act


def _manifests(material: Material, rng: random.Random, work: Path) -> dict[str, Act]:
    artifact = shutil.copytree(material.artifact, work / "artifact")
    path = artifact / layout.MANIFEST
    path.write_bytes(manifest.seal(fuzz.changed(json.loads(path.read_bytes()), manifest.schema(), rng)))
    return _artifact(artifact, material, work)


def _ensembles(material: Material, rng: random.Random, work: Path) -> dict[str, Act]:
    """An ensemble whose own manifest, or that of a member, is changed."""
    folder = shutil.copytree(material.ensemble, work / "artifact")
    content = json.loads((folder / layout.MANIFEST).read_bytes())
    if rng.random() < 0.5:
        content = fuzz.changed(content, manifest.compound_schema(), rng)
    else:
        name = f"{rng.choice(content['members'])['folder']}/{layout.MANIFEST}"
        data = manifest.seal(fuzz.changed(json.loads((folder / name).read_bytes()), manifest.schema(), rng))
        (folder / name).write_bytes(data)
        content["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (folder / layout.MANIFEST).write_bytes(manifest.seal(content))
    return _artifact(folder, material, work)


def _artifact(artifact: Path, material: Material, work: Path) -> dict[str, Act]:
    """Every command that reads an artifact."""
    predict = _command("predict", artifact, material.image, work / "labels.nii.gz")

    def predict_in_little() -> tuple[int, str]:
        with mock.patch.object(preprocessing, "hardware", SimpleNamespace(available_memory=lambda: MEMORY)):
            return predict()

    packings = {
        f"pack {form}": _command("pack", artifact, "--format", form, "--out", work / form) for form in packing.FORMATS
    }
    bench = _call(lambda: targets.from_artifact(artifact, subprocesses.silent))
    return {"verify": _command("verify", artifact), "predict": predict_in_little, **packings, "bench": bench}


def _results(material: Material, rng: random.Random, work: Path) -> dict[str, Act]:
    path = work / "result.json"
    path.write_text(json.dumps(fuzz.changed(json.loads(material.result.read_bytes()), result.schema(), rng)))
    page, again = work / "page.html", work / "again.json"
    return {
        "report": _command("report", path, "--html", page, "--json", again, "--markdown"),
        "compare": _command("compare", material.result, path, "--force", "--json", work / "compared.json"),
    }


def _machines(material: Material, rng: random.Random, work: Path) -> dict[str, Act]:
    """Two machines: the file, or what it holds of one of them, is changed."""
    one = result.read(material.result)
    content = json.loads(json.dumps(Machines([one, results.elsewhere(one, cpu="Other CPU")]).as_dict()))
    if rng.random() < 0.2:
        content = fuzz.changed(content, machines.schema(), rng)
    else:
        number = rng.randrange(2)
        content["machines"][number] = fuzz.changed(content["machines"][number], result.schema(), rng)
    path, page, again = work / "result.json", work / "page.html", work / "again.json"
    path.write_text(json.dumps(content))
    return {
        "report": _command("report", path, "--html", page, "--json", again, "--markdown"),
        "compare": _command("compare", material.result, path, "--force", "--json", work / "compared.json"),
    }


def _bench_plans(material: Material, rng: random.Random, work: Path) -> dict[str, Act]:
    """A plan of the artifact, up to the moment at which it would be timed."""
    target = targets.from_artifact(material.artifact, subprocesses.silent)
    plan = plan_file.of([target], Settings(("ort", "openvino"), (1,)), every_core=bool(rng.randrange(2)))
    content = fuzz.changed(json.loads(json.dumps(plan.as_dict())), plan_file.schema(), rng)
    path = work / "result.json"
    path.write_text(json.dumps(content))

    def read() -> None:
        found = plan_file.read(path)
        folders = plan_file.find(found.networks, (material.artifact,), work)
        bench_plan.planned(found, folders, None, subprocesses.silent)

    return {"bench": _call(read)}


def plans_schema() -> dict[str, Any]:
    """The schema of plans.json with those of its parts, as ``plans.plan`` holds them against it."""
    network = plans._ARCHITECTURE["properties"] | {"arch_kwargs": plans._CONVOLUTIONAL}
    architecture = plans._ARCHITECTURE | {"properties": network}
    configuration = plans._CONFIGURATION | {
        "properties": plans._CONFIGURATION["properties"] | {"architecture": architecture}
    }
    every = plans._PLANS["properties"]["configurations"] | {"additionalProperties": configuration}
    return plans._PLANS | {"properties": plans._PLANS["properties"] | {"configurations": every}}


def _plans(material: Material, rng: random.Random, work: Path) -> dict[str, Act]:
    folder = shutil.copytree(material.trained, work / "trained")
    for name, schema in rng.choice([[(plans.PLANS, plans_schema())], [(plans.DATASET, plans._DATASET)]]):
        (folder / name).write_text(json.dumps(fuzz.changed(json.loads((folder / name).read_bytes()), schema, rng)))

    def forget(content: dict[str, Any]) -> None:
        content["init_args"].update(plans=None, dataset_json=None)  # what the files say counts

    return {"export": _reader(folder, forget)}


def _checkpoints(material: Material, rng: random.Random, work: Path) -> dict[str, Act]:
    folder = shutil.copytree(material.trained, work / "trained")
    return {"export": _reader(folder, lambda content: _change_checkpoint(content, rng))}


def _reader(folder: Path, change: Callable[[dict[str, Any]], object]) -> Act:
    """Export's readers on a folder whose checkpoint is changed, and the seal of a manifest of what they found."""
    path = folder / "fold_0" / "checkpoint_final.pth"
    content = torch.load(path, weights_only=False)
    change(content)
    torch.save(content, path)

    def read() -> None:
        for found in nnunet.read(folder, {"0": path}, Selection(), subprocesses.silent):
            settings = pipeline.Settings(out=folder, checkpoints=found.checkpoints)
            shape = pipeline.input_shape(found.spec, None)
            made_with = manifest_entries.arguments(found.spec, settings, shape, random_weights=False)
            manifest_entries.require_writable(found.spec, settings, made_with, shape, random_weights=False)

    return _call(read)


_STRANGE: Sequence[Any] = (
    None, 0, -1, 2**70, 1.5, float("nan"), True, "", "x", "\ud800", "x" * 10**6, b"\xff", [], [[]], {}, {"a": 1},
    {1: {2: 3}}, (0, 5), (0, 0), [True], [1.0], "012", "nnUNetTrainerBN", "nnUNet_Primus_L_Trainer", "3d_lowres",
    torch.zeros(2), {"x": torch.zeros(2)}, np.float64(1.0),
)  # fmt: skip
_TENSORS: Sequence[Callable[[torch.Tensor], Any]] = (
    lambda tensor: tensor.double(),
    lambda tensor: tensor.to(torch.int8),
    lambda tensor: tensor.to(torch.complex64),
    lambda tensor: tensor > 0,
    lambda tensor: tensor[:0],
    lambda tensor: tensor[None],
    lambda tensor: tensor.flatten()[:1].expand(2**40),
    lambda tensor: tensor * torch.nan,
    lambda tensor: tensor.to_sparse(),
    torch.nn.Parameter,
    lambda tensor: tensor.numpy(),
    lambda tensor: tensor.sum(),
)


def _change_checkpoint(content: dict[str, Any], rng: random.Random) -> None:
    """Other things than nnU-Net writes, in one to three places of a checkpoint."""
    for _ in range(rng.randint(1, 3)):
        place: Any = rng.choice([content, content.get("init_args"), content.get("network_weights")])
        if not isinstance(place, dict) or not place:
            continue
        key = rng.choice([*place])
        kind = rng.random()
        if kind < 0.15:
            del place[key]
        elif kind < 0.3:
            place[rng.choice(["", "x" * 1000, "a\nb", "\x1b[2J", 7, (1, 2), *place])] = place[key]
        elif isinstance(place[key], torch.Tensor):
            place[key] = rng.choice(_TENSORS)(place[key])
        else:
            place[key] = rng.choice(_STRANGE)


_ACTS: dict[str, Callable[[Material, random.Random, Path], dict[str, Act]]] = {
    "manifest": _manifests,
    "ensemble": _ensembles,
    "result": _results,
    "machines": _machines,
    "bench plan": _bench_plans,
    "plans": _plans,
    "checkpoint": _checkpoints,
}


def campaign(material: Material, numbers: Mapping[str, int] | None = None) -> list[Trial]:
    """Trials of so many documents of each kind, on all processors."""
    numbers = NUMBERS if numbers is None else numbers
    jobs: Iterator[tuple[str, int]] = iter([(kind, seed) for kind, count in numbers.items() for seed in range(count)])
    lock = threading.Lock()

    def start() -> subprocesses.Worker:
        with lock:  # a process starts with its parent's __main__ put aside
            return subprocesses.Worker(serve)

    def lane(_: int) -> list[Trial]:
        found: list[Trial] = []
        worker = start()
        while True:
            with lock:
                job = next(jobs, None)
            if job is None:
                worker.close()
                return found
            try:
                worker.channel.send((material, *job))
                found += worker.receive("the trial", LIMIT_SECONDS)
            except StageError as error:
                worker.close()
                found.append(Trial(*job[:1], "one of them", job[1], None, str(error), LIMIT_SECONDS))
                worker = start()

    with ThreadPoolExecutor(hardware.usable_cores()) as pool:
        return [one for its in pool.map(lane, range(hardware.usable_cores())) for one in its]


def serve(channel: Connection) -> None:
    """Make the trials that the campaign asks for, all in one process."""
    while True:
        channel.send(trials(*channel.recv()))


_TITLES = {
    "manifest": "manifests, hashes made anew",
    "ensemble": "manifests of ensembles and of their members, hashes made anew",
    "result": "results of a bench",
    "machines": "results of several machines",
    "bench plan": "plans of a bench",
    "plans": "plans.json or dataset.json of nnU-Net",
    "checkpoint": "checkpoints of nnU-Net",
}


def page(found: Sequence[Trial]) -> str:
    """The part of docs/reliability.md."""
    rows = []
    for kind, title in _TITLES.items():
        its = [one for one in found if one.kind == kind]
        codes = Counter(one.code for one in its if one.wrong is None)
        wrong = sum(one.wrong is not None for one in its)
        count, commands = len({one.seed for one in its}), ", ".join(dict.fromkeys(one.command for one in its))
        rows.append(f"| {title} | {count} | {commands} | {codes[0]} | {codes[1]} | {codes[2]} | {wrong} |")
    return f"""## Documents

Real documents, each changed by a seed in up to {fuzz.CHANGES} places so that its schema still allows it, were given to
every command that reads them. "otherwise" is a traceback, another exit code, more than one line, more than
{LIMIT_SECONDS:.0f} s, more than {LIMIT_BYTES / 1e9:.0f} GB of memory, or a file that isn't the command's.

| documents | made | read by | exit code 0 | 1 | 2 | otherwise |
|---|---|---|---|---|---|---|
{chr(10).join(rows)}
"""
