"""Damages artifacts in every way that we could think of, and kills commands at random moments. Run by ``make faults``.

Writes what was found to docs/reliability.md; the exit code is 1 where damage wasn't found, or a half result passed.
``tests/benchmarks/test_faults.py`` runs a small part of it.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
import os
import pickle
import random
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import SimpleITK
from onnx import TensorProto, helper

from benchmarks import faults_documents, writing_faults
from benchmarks.docs import put_block
from segonnx.artifacts import layout, manifest, packing
from segonnx.artifacts.layout import CPU_MODEL, MODEL
from segonnx.artifacts.verify import verify
from segonnx.core import hardware, subprocesses
from segonnx.core.files import sha256
from segonnx.core.subprocesses import Bounds
from segonnx.errors import SegonnxError, StageError
from segonnx.exporters.assemble import share_weights
from segonnx.predict import images
from segonnx.sources import catalog
from tests import handmade
from tests.conftest import ROOT, message, tiny_system

PAGE = ROOT / "docs" / "reliability.md"
BLOCK_VERSION = 2
"""Raised when what this program writes, or measures, changes."""
SYSTEM = "encoder-mobilenetv3-small"
MUTATIONS, KILLS = 1000, 100
LIMIT_SECONDS = 20.0
"""A step of a check that takes longer than this is ended, and must be reported."""

Mutation = Callable[[Path, random.Random], None]


# Damage. Each function changes the artifact in a folder.


def flip(artifact: Path, rng: random.Random) -> None:
    """Another bit in a byte."""
    path = _any(artifact, rng)
    with path.open("r+b") as file:
        place = rng.randrange(path.stat().st_size)
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ (1 << rng.randrange(8))]))


def truncate(artifact: Path, rng: random.Random) -> None:
    """A file that ends early."""
    path = _any(artifact, rng)
    os.truncate(path, rng.randrange(path.stat().st_size))


def append(artifact: Path, rng: random.Random) -> None:
    """A file that goes on."""
    with _any(artifact, rng).open("ab") as file:
        file.write(rng.randbytes(rng.randint(1, 100)))


def remove(artifact: Path, rng: random.Random) -> None:
    """A file that isn't there."""
    _any(artifact, rng).unlink()


def add(artifact: Path, rng: random.Random) -> None:
    """A file that doesn't belong."""
    place = rng.choice([artifact, artifact / "test_data_set_0"])
    (place / rng.choice(["extra", ".hidden", "model.onnx.data.1", "MODEL.ONNX"])).write_bytes(b"x")


def rename(artifact: Path, rng: random.Random) -> None:
    """A file under another name."""
    path = _any(artifact, rng)
    path.rename(path.with_name(path.name.upper() + "_"))


def swap(artifact: Path, rng: random.Random) -> None:
    """Two files in each other's place."""
    one, other = rng.sample(_files(artifact), 2)
    aside = artifact / "aside"
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def link(artifact: Path, rng: random.Random) -> None:
    """A file, or the folder of the test data, that is a link to the same bytes elsewhere."""
    path = rng.choice([*_files(artifact), artifact / "test_data_set_0"])
    outside = artifact.parent / "outside"
    path.rename(outside)
    path.symlink_to(outside)


def hard_link(artifact: Path, rng: random.Random) -> None:
    """A file that has a second name elsewhere."""
    os.link(_any(artifact, rng, but=layout.MANIFEST), artifact.parent / "outside")


def unsealed(artifact: Path, rng: random.Random) -> None:
    """A value in the manifest, without a new digest."""
    content = _manifest(artifact)
    _change(content, rng)
    (artifact / layout.MANIFEST).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


def untyped(artifact: Path, rng: random.Random) -> None:
    """A key of the manifest that is missing or of another type, with a new digest."""
    content = _manifest(artifact)
    key = rng.choice(sorted(set(manifest.schema()["required"]) - {"digest"}))
    if rng.random() < 0.5:
        del content[key]
    else:
        content[key] = rng.choice([True, 0.5, [[]]])  # None is what some keys may be
    _seal(artifact, content)


def misstated(artifact: Path, rng: random.Random) -> None:
    """A hash, a size, or a name of a file that the manifest gives wrong, with a new digest."""
    content = _manifest(artifact)
    name = rng.choice(sorted(content["files"]))
    entry = content["files"][name]
    kind = rng.choice(["sha256", "bytes", "name"])
    if kind == "sha256":
        entry["sha256"] = hashlib.sha256(rng.randbytes(8)).hexdigest()
    elif kind == "bytes":
        entry["bytes"] += rng.choice([-1, 1, 10**18])
    else:
        content["files"][rng.choice(["../../etc/passwd", "/etc/passwd", "other"])] = content["files"].pop(name)
    _seal(artifact, content)


def unreadable(artifact: Path, rng: random.Random) -> None:
    """A manifest that is no JSON, too deep, too large, or no text."""
    data = rng.choice([b"", b"{", b"[" * 10**6, b" " * (manifest.MAX_BYTES + 1), b"\xff\xfe", b"null", b"NaN", b"[]"])
    (artifact / layout.MANIFEST).write_bytes(data)


def misshapen(artifact: Path, rng: random.Random) -> None:
    """An input or output that the manifest describes wrong, all hashes new."""
    content = _manifest(artifact)
    tensor = content[rng.choice(["inputs", "outputs"])][0]
    key = rng.choice(["name", "shape", "dtype"])
    tensor[key] = {"name": "other", "shape": [1, 10**9], "dtype": "float64"}[key]
    _seal(artifact, content)


def cyclic(artifact: Path, rng: random.Random) -> None:
    """A graph whose node waits for itself, all hashes new."""

    def change(model: onnx.ModelProto) -> None:
        node = rng.choice(model.graph.node)
        node.input[0] = node.output[0]

    _edit(artifact, change)


def unknown_operator(artifact: Path, rng: random.Random) -> None:
    """An operator that isn't in the standard, all hashes new."""

    def change(model: onnx.ModelProto) -> None:
        node = rng.choice(model.graph.node)
        node.op_type, node.domain = rng.choice([("Evil", ""), ("Evil", "com.evil"), ("FusedConv", "com.microsoft")])

    _edit(artifact, change)


def huge(artifact: Path, rng: random.Random) -> None:
    """A tensor that says it is huge, all hashes new."""

    def change(model: onnx.ModelProto) -> None:
        weight = rng.choice([one for one in model.graph.initializer if one.dims])
        weight.dims[0] = rng.choice([2**31, 2**40, 2**62, -1])

    _edit(artifact, change)


def elsewhere(artifact: Path, rng: random.Random) -> None:
    """Weights that lie in a file outside, or beyond its end, all hashes new."""

    def change(model: onnx.ModelProto) -> None:
        weight = max(model.graph.initializer, key=lambda one: len(one.raw_data))
        size = len(weight.raw_data)
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        location = rng.choice(["../outside", "/etc/passwd", "../../../../../../etc/passwd", "README.md", "none", ""])
        (artifact.parent / "outside").write_bytes(bytes(size))
        offset = rng.choice(["0", str(2**40), "-1"])
        for key, value in (("location", location), ("offset", offset), ("length", str(size))):
            weight.external_data.add(key=key, value=value)

    _edit(artifact, change)


def other_weights(artifact: Path, rng: random.Random) -> None:
    """Weights that are all another's, all hashes new: only the replay can tell."""

    def change(model: onnx.ModelProto) -> None:
        weight = max(model.graph.initializer, key=lambda one: len(one.raw_data))
        values = onnx.numpy_helper.to_array(weight)
        weight.raw_data = (values[::-1] * rng.choice([-1, 2])).astype(values.dtype).tobytes()

    _edit(artifact, change)


def other_answer(artifact: Path, rng: random.Random) -> None:
    """Recorded logits, or the input, that are another's, all hashes new: only the replay can tell."""
    path = artifact / "test_data_set_0" / rng.choice(["input_0.pb", "output_0.pb"])
    tensor = TensorProto.FromString(path.read_bytes())
    values = onnx.numpy_helper.to_array(tensor)
    tensor.raw_data = values[..., ::-1].copy().tobytes()
    path.write_bytes(tensor.SerializeToString())
    _seal(artifact, _rehashed(artifact))


def broken_answer(artifact: Path, rng: random.Random) -> None:
    """Recorded logits that are no tensor, of another shape, or say that they are huge, all hashes new."""
    path = artifact / "test_data_set_0" / rng.choice(["input_0.pb", "output_0.pb"])
    kind = rng.choice(["bytes", "shape", "huge"])
    if kind == "bytes":
        path.write_bytes(rng.randbytes(50))
    else:
        dims = [1, 7] if kind == "shape" else [2**40, 2**20]
        path.write_bytes(TensorProto(data_type=1, dims=dims, raw_data=bytes(28)).SerializeToString())
    _seal(artifact, _rehashed(artifact))


def other_graph(artifact: Path, rng: random.Random) -> None:
    """Another network altogether, with the same input and output, all hashes new: only the replay can tell."""
    model = onnx.load(artifact / MODEL)
    x, y = model.graph.input[0], model.graph.output[0]
    size = y.type.tensor_type.shape.dim[1].dim_value
    value = helper.make_tensor("value", TensorProto.FLOAT, [1, size], [rng.random() for _ in range(size)])
    nodes = [
        helper.make_node("ReduceMean", [x.name], ["mean"], keepdims=0),
        helper.make_node("Add", ["mean", "value"], [y.name]),
    ]
    onnx.save(helper.make_model(helper.make_graph(nodes, "other", [x], [y], [value])), artifact / MODEL)
    _seal(artifact, _rehashed(artifact))


def consistent(artifact: Path, rng: random.Random) -> None:
    """A licence, a label or the card, all hashes new: who wrote the hashes could write this, and nothing can tell."""
    if rng.random() < 0.5:
        (artifact / "README.md").write_text("# Trust me\n")
    content = _rehashed(artifact)
    content["weights"]["licence"] = "mine"
    _seal(artifact, content)


def loosened(artifact: Path, rng: random.Random) -> None:
    """Other weights, with a tolerance that lets them pass, all hashes new."""
    other_weights(artifact, rng)
    content = _manifest(artifact)
    content["parity"]["tolerance"].update(max_rel_error=1e9, rms_rel_error=1e9, label_agreement=0.0)
    _seal(artifact, content)


def no_number(artifact: Path, rng: random.Random) -> None:
    """A manifest that holds what only some programs take for JSON: NaN, infinity, half a character, depth."""
    data = (artifact / layout.MANIFEST).read_bytes()
    value = rng.choice([b"NaN", b"1e999", b"-Infinity", b'"\\ud800"', b"[" * 900 + b"]" * 900, b"9" * 5000])
    (artifact / layout.MANIFEST).write_bytes(data.replace(b'"seed": 0', b'"seed": ' + value, 1))


def strange_name(artifact: Path, rng: random.Random) -> None:
    """A file whose name is no text, has two lines, or moves a terminal's cursor."""
    name = rng.choice([b"\xff\xfe", b"two\nlines", b"\x1b[2J", b"a" * 255, "\u202etxt".encode()])
    (artifact / os.fsdecode(name)).touch()


def deep(artifact: Path, rng: random.Random) -> None:
    """A folder that doesn't belong: empty, or hundreds in each other."""
    place = os.open(rng.choice([artifact, artifact / "test_data_set_0"]), os.O_RDONLY)
    for _ in range(rng.choice([1, 300])):
        os.mkdir("d", dir_fd=place)
        inner = os.open("d", os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = inner
    os.close(place)


def special(artifact: Path, rng: random.Random) -> None:
    """A pipe or a socket in place of a file."""
    path = _any(artifact, rng)
    path.unlink()
    if rng.random() < 0.5:
        os.mkfifo(path)
    else:
        os.mknod(path, 0o600 | stat.S_IFSOCK)


def many_nodes(artifact: Path, rng: random.Random) -> None:
    """A graph with tens of thousands of nodes more, which add 0.001 each, all hashes new: only the replay can tell."""

    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1e-3, np.float32), "little"))
        last = model.graph.output[0].name
        for node in model.graph.node:
            node.output[:] = ["before" if name == last else name for name in node.output]
        model.graph.node.append(helper.make_node("ReduceMean", ["before"], ["step0"], keepdims=0))
        count = rng.choice([10_000, 20_000])
        for index in range(count):
            model.graph.node.append(helper.make_node("Add", [f"step{index}", "little"], [f"step{index + 1}"]))
        model.graph.node.append(helper.make_node("Add", ["before", f"step{count}"], [last]))

    _edit(artifact, change)


def greedy(artifact: Path, rng: random.Random) -> None:
    """A graph that asks for more memory than there is, all hashes new."""

    def change(model: onnx.ModelProto) -> None:
        size = rng.choice([2**36, 2**40, 2**60])
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([size], np.int64), "size"))
        x = model.graph.input[0].name
        for node in model.graph.node:
            node.input[:] = ["greedy" if name == x else name for name in node.input]
        nodes = [
            helper.make_node("ConstantOfShape", ["size"], ["all"]),
            helper.make_node("ReduceMax", ["all"], ["none"], keepdims=0),
            helper.make_node("Add", [x, "none"], ["greedy"]),
        ]
        kept = list(model.graph.node)
        del model.graph.node[:]
        model.graph.node.extend(nodes + kept)

    _edit(artifact, change)


def endless(artifact: Path, rng: random.Random) -> None:
    """A graph with a loop that ends after years, all hashes new."""
    model = onnx.load(artifact / MODEL, load_external_data=False)
    x, y = model.graph.input[0], model.graph.output[0]
    shape = [dim.dim_value for dim in y.type.tensor_type.shape.dim]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("before", "after")]
    scalars = [helper.make_tensor_value_info("index", TensorProto.INT64, []), *(
        helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("go", "on")
    )]  # fmt: skip
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Neg", ["before"], ["after"])],
        "body", [scalars[0], scalars[1], values[0]], [scalars[2], values[1]],
    )  # fmt: skip
    parts = [
        helper.make_tensor("times", TensorProto.INT64, [], [2**62]),
        helper.make_tensor("shape", TensorProto.INT64, [len(shape)], shape),
    ]
    nodes = [
        helper.make_node("ReduceMean", [x.name], ["mean"], keepdims=0),
        helper.make_node("Expand", ["mean", "shape"], ["start"]),
        helper.make_node("Loop", ["times", "", "start"], [y.name], body=body),
    ]
    made = helper.make_model(helper.make_graph(nodes, "endless", [x], [y], parts), opset_imports=model.opset_import)
    made.ir_version = model.ir_version
    onnx.save(made, artifact / MODEL)
    _seal(artifact, _rehashed(artifact))


def foreign_data(artifact: Path, rng: random.Random) -> None:
    """Test data whose values lie in another file, all hashes new."""
    path = artifact / "test_data_set_0" / rng.choice(["input_0.pb", "output_0.pb"])
    tensor = TensorProto.FromString(path.read_bytes())
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=rng.choice(["/etc/passwd", "../../model.onnx", "README.md"]))
    path.write_bytes(tensor.SerializeToString())
    _seal(artifact, _rehashed(artifact))


DAMAGE: dict[str, Mutation] = {
    one.__name__: one
    for one in (
        flip, truncate, append, remove, add, rename, swap, link, hard_link, unsealed, untyped, misstated, unreadable,
        misshapen, cyclic, unknown_operator, huge, elsewhere, other_weights, other_answer, broken_answer, other_graph,
        loosened, no_number, strange_name, deep, special, many_nodes, greedy, endless, foreign_data,
    )
}  # fmt: skip
"""What must be found."""
SLOW = ("endless",)
"""What is found when time is up."""
BEYOND: dict[str, Mutation] = {"consistent": consistent}
"""What can't be, by anybody who has only the artifact."""


def _files(artifact: Path) -> list[Path]:
    return sorted(path for path in artifact.rglob("*") if path.is_file())


def _any(artifact: Path, rng: random.Random, but: str = "") -> Path:
    return rng.choice([path for path in _files(artifact) if path.name != but])


def _manifest(artifact: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((artifact / layout.MANIFEST).read_bytes())
    return content


def _seal(artifact: Path, content: dict[str, Any]) -> None:
    (artifact / layout.MANIFEST).write_bytes(manifest.seal(content))


def _rehashed(artifact: Path) -> dict[str, Any]:
    content = _manifest(artifact)
    content["files"] = {
        name: {"sha256": sha256(artifact / name), "bytes": (artifact / name).stat().st_size}
        for name in content["files"]
    }
    return content


def _edit(artifact: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    """Change the model, whose weights move into it, and seal all."""
    model = onnx.load(artifact / MODEL)
    change(model)
    (artifact / MODEL).write_bytes(model.SerializeToString())
    _seal(artifact, _rehashed(artifact))


def _change(content: dict[str, Any], rng: random.Random) -> None:
    """Another value somewhere in the manifest."""
    place: Any = content
    key: Any = rng.choice(sorted(content))
    while isinstance(place[key], (dict, list)) and place[key]:
        place = place[key]
        key = rng.choice(sorted(place)) if isinstance(place, dict) else rng.randrange(len(place))
    place[key] = "other" if place[key] != "other" else "another"


# What is found of it.


@dataclass(frozen=True)
class Outcome:
    """What became of one damaged artifact.

    Attributes:
        artifact: its name.
        kind: of the damage.
        seed: of it.
        found_by: the step of the check that found it; None where none did.
        wrong: what else went wrong: an exception that isn't meant for users, another exit code, a file outside, time.
        seconds: that the check took.
    """

    artifact: str
    kind: str
    seed: int
    found_by: str | None
    wrong: str | None
    seconds: float


def damage(artifact: Path, kind: str, seed: int) -> Outcome:
    """Damage a copy of the artifact, and verify that."""
    steps: list[str] = []
    with _damaged(artifact, kind, seed) as copy:
        before = _tree(copy.parent)
        began = time.monotonic()
        found, wrong = None, None
        try:
            verify(copy, bounds=Bounds(timeout=LIMIT_SECONDS), progress=lambda step: steps.append(step.split()[0]))
        except SegonnxError as error:
            found = steps[-1] if steps else "looking"
            wrong = _unfit(error.exit_code, str(error))
        except BaseException as error:  # noqa: BLE001 (whatever it is, the page must tell)
            wrong = f"{type(error).__name__}: {str(error)[:200]}"
        seconds = time.monotonic() - began
        if _tree(copy.parent) != before:
            wrong = "it changed files"
    return Outcome(artifact.name, kind, seed, found, wrong, seconds)


def damage_apart(artifact: Path, kind: str, seed: int) -> Outcome:
    """The same with the command, as its user has it: what ended or held up the process that looked, ends another."""
    with _damaged(artifact, kind, seed) as copy:
        before = _tree(copy.parent)
        began = time.monotonic()
        command = [sys.executable, "-m", "segonnx", "verify", str(copy), "--timeout", str(LIMIT_SECONDS)]
        found, wrong = None, None
        try:
            done = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=4 * LIMIT_SECONDS
            )
        except subprocess.TimeoutExpired:
            wrong = "it hangs"
        else:
            found = "ending" if done.returncode else None
            wrong = _unfit(done.returncode, message(done)) if done.returncode else None
        seconds = time.monotonic() - began
        if _tree(copy.parent) != before:
            wrong = "it changed files"
    return Outcome(artifact.name, kind, seed, found, wrong, seconds)


@contextlib.contextmanager
def _damaged(artifact: Path, kind: str, seed: int) -> Iterator[Path]:
    """A damaged copy, with a folder around it in which nothing else may change."""
    with tempfile.TemporaryDirectory(prefix="segonnx-faults-") as name:
        copy = shutil.copytree(artifact, Path(name) / "around" / "artifact")
        (DAMAGE | BEYOND)[kind](copy, random.Random(seed))
        yield copy


def _unfit(exit_code: int, message: str) -> str | None:
    """What is wrong with the way in which damage was reported."""
    if exit_code != 1 or len(message.splitlines()) != 1 or len(message) > 2000 or "Traceback" in message:
        return f"exit code {exit_code}: {message[:200]!r}"
    return None


def _tree(root: Path) -> list[tuple[str, int]]:
    """What is in a folder, with when each thing was changed."""
    return sorted(
        (f"{parent}/{name}", os.stat(name, dir_fd=place, follow_symlinks=False).st_mtime_ns)
        for parent, folders, files, place in os.fwalk(root)
        for name in folders + files
    )


def _serve(channel: Connection) -> None:
    """Damage what the campaign says, all in one process: none is made anew for each check."""
    subprocesses.call = _in_process  # type: ignore[assignment]
    while True:
        channel.send(damage(*channel.recv()))


def _in_process(
    function: Callable[..., Any], *args: Any, progress: subprocesses.Progress, bounds: Bounds
) -> subprocesses.Outcome[Any]:
    try:
        bounds.hold()
        return subprocesses.Outcome(function(*args, progress), 0, 0)
    except Exception as error:
        raise subprocesses.translate(error) from error


def campaign(artifacts: Sequence[Path], number: int) -> list[Outcome]:
    """``number`` damaged artifacts, every kind equally often, but few of those that take long."""
    kinds = [kind for kind in DAMAGE if kind not in SLOW]
    jobs = [(artifacts[seed % len(artifacts)], kind, seed) for seed, kind in enumerate([*SLOW] * 2)]
    jobs += [
        (artifacts[seed % len(artifacts)], kinds[seed // len(artifacts) % len(kinds)], seed)
        for seed in range(len(jobs), number)
    ]
    left = iter(jobs)
    lock = threading.Lock()

    def start() -> subprocesses.Worker:
        with lock:  # a process starts with its parent's __main__ put aside
            return subprocesses.Worker(_serve)

    def lane(_: int) -> list[Outcome]:
        found: list[Outcome] = []
        worker = start()
        while True:
            with lock:
                job = next(left, None)
            if job is None:
                worker.close()
                return found
            try:
                if job[1] in SLOW:
                    raise StageError("it is known to take long")
                worker.channel.send(job)
                found.append(worker.receive("the check", LIMIT_SECONDS))
            except StageError:
                worker.close()
                found.append(damage_apart(*job))
                worker = start()

    with ThreadPoolExecutor(hardware.usable_cores()) as pool:
        return [one for its in pool.map(lane, range(hardware.usable_cores())) for one in its]


def external(artifact: Path, target: Path) -> Path:
    """A copy of the artifact with its weights in a file of their own, as large networks have them."""
    shutil.copytree(artifact, target)
    model = onnx.load(target / MODEL)
    (target / MODEL).unlink()
    onnx.save(model, target / MODEL, save_as_external_data=True, location=f"{MODEL}.data", size_threshold=1024)
    if (target / CPU_MODEL).exists():
        share_weights(target)
    content = _manifest(target)
    content["files"][f"{MODEL}.data"] = {}
    _seal(target, content)
    _seal(target, _rehashed(target))
    return target


# Kills.


@dataclass(frozen=True)
class Stock:
    """What the commands that are killed work on.

    Attributes:
        artifact: to pack.
        packed: the same as a zip file.
        predictor: an artifact that predicts, and an image for it; None where ``predict`` isn't killed.
    """

    artifact: Path
    packed: Path
    predictor: tuple[Path, Path] | None = None


def commands(stock: Stock, work: Path) -> dict[str, tuple[list[object], Path]]:
    """What is killed, by name: the command, and what it makes."""
    made = {
        "export": (["export", SYSTEM, "--out", work / "made"], work / "made" / SYSTEM),
        "pack": (["pack", stock.artifact, "--format", "zip", "--out", work / "made.zip"], work / "made.zip"),
        "unpack": (["unpack", stock.packed, "--out", work / "made" / "artifact"], work / "made" / "artifact"),
    }
    if stock.predictor is not None:
        made["predict"] = (["predict", *stock.predictor, work / "labels.nii.gz"], work / "labels.nii.gz")
    return made


def kill(stock: Stock, name: str, share: float, whole_seconds: float) -> str | None:
    """Kill a command after a share of the time that it takes; what is wrong with what it left, if anything.

    Args:
        stock: to work on.
        name: of the command.
        share: of its time.
        whole_seconds: its time.
    """
    with tempfile.TemporaryDirectory(prefix="segonnx-faults-") as folder_name:
        work = Path(folder_name)
        arguments, made = commands(stock, work)[name]
        command = [sys.executable, "-m", "segonnx", *map(str, arguments)]
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        ) as running:
            time.sleep(share * whole_seconds)
            running.kill()
        if not made.exists():
            return None
        try:
            if name == "pack":
                packing.unpack(made, work / "again")
            elif name == "predict":
                assert stock.predictor is not None
                if images.read([made]).array.shape != images.read([stock.predictor[1]]).array.shape:
                    return f"{name} killed at {100 * share:.0f} %: a label map of another shape"
            else:
                verify(made, replay=False)
        except SegonnxError as error:
            return f"{name} killed at {100 * share:.0f} %: {error}"
    return None


def kills(stock: Stock, number: int, names: Sequence[str]) -> dict[str, list[str | None]]:
    """``number`` kills, spread over the commands and over their time."""
    rng = random.Random(0)
    result: dict[str, list[str | None]] = defaultdict(list)
    seconds = {}
    for name in names:
        with tempfile.TemporaryDirectory(prefix="segonnx-faults-") as work:
            began = time.monotonic()
            command = [sys.executable, "-m", "segonnx", *map(str, commands(stock, Path(work))[name][0])]
            subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
            seconds[name] = time.monotonic() - began
    for index in range(number):
        name = names[index % len(names)]
        result[name].append(kill(stock, name, rng.uniform(0.05, 1.05), seconds[name]))
    return result


def predictor(work: Path) -> tuple[Path, Path]:
    """A small artifact that predicts, and an image for it."""
    results = handmade.write(work / "results", handmade.plans(), handmade.dataset())
    command = [sys.executable, "-m", "segonnx", "export", "--nnunet", str(results), "--out", str(work / "predictor")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (artifact,) = (work / "predictor").iterdir()
    picture = SimpleITK.GetImageFromArray(np.random.default_rng(0).normal(0, 200, (40, 60, 60)).astype(np.int16))
    SimpleITK.WriteImage(picture, str(work / "image.nii.gz"))
    return artifact, work / "image.nii.gz"


def ensemble(work: Path) -> Path:
    """A small ensemble of two configurations, whose images are those of ``predictor``."""
    for configuration, axes in (("2d", (0, 1)), ("3d_fullres", (0, 1, 2))):
        handmade.write(
            work / "whole", handmade.several(), handmade.dataset(), configuration=configuration, mirror_axes=axes
        )
    command = [sys.executable, "-m", "segonnx", "export", "--nnunet", str(work / "whole" / "Dataset998_Whole")]
    command += ["--ensemble", "2d", "3d_fullres", "--out", str(work / "ensemble")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (artifact,) = (work / "ensemble").iterdir()
    return artifact


@dataclass(frozen=True)
class Campaign:
    """The parts of the campaign, each of which may have been done by an earlier run.

    Attributes:
        work: a folder for what they work on.
        kept: a folder that keeps what each part found; None keeps nothing.
    """

    work: Path
    kept: Path | None

    def part(self, name: str) -> Any:
        """What a part found: now, or in an earlier run."""
        path = None if self.kept is None else self.kept / f"{name}.pickle"
        if path is not None and path.exists():
            return pickle.loads(path.read_bytes())
        began = time.monotonic()
        found = PARTS[name](self)
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
        if path is not None:
            path.write_bytes(pickle.dumps(found))
        return found

    @functools.cached_property
    def artifacts(self) -> list[Path]:
        """Two small artifacts, one with its weights in a file of their own."""
        small, other = _exported(self.work)
        artifacts = [small, external(other, self.work / f"{other.name}-external")]
        for artifact in artifacts:
            verify(artifact)
        return artifacts

    @functools.cached_property
    def predictor(self) -> tuple[Path, Path]:
        """See ``predictor``."""
        return predictor(self.work)

    def damage(self) -> list[Outcome]:
        """Damaged artifacts that must be found."""
        return campaign(self.artifacts, MUTATIONS)

    def beyond(self) -> list[Outcome]:
        """Those that can't be."""
        return [damage(self.artifacts[0], kind, seed) for kind in BEYOND for seed in range(10)]

    def kills(self) -> dict[str, list[str | None]]:
        """Killed commands."""
        small = self.artifacts[0]
        stock = Stock(small, packing.pack(small, "zip", self.work / "packed.zip"), self.predictor)
        return kills(stock, KILLS, list(commands(stock, self.work)))

    def documents(self) -> list[faults_documents.Trial]:
        """Documents of strangers."""
        (self.work / "documents").mkdir()
        material = faults_documents.prepare(self.work / "documents", self.predictor[0], ensemble(self.work))
        return faults_documents.campaign(material)

    def writing(self) -> list[writing_faults.Row]:
        """What writes."""
        return writing_faults.campaign(self.artifacts[0], self.predictor[0], self.work)


PARTS: dict[str, Callable[[Campaign], Any]] = {
    "damage": Campaign.damage,
    "beyond": Campaign.beyond,
    "kills": Campaign.kills,
    "documents": Campaign.documents,
    "writing": Campaign.writing,
}
"""The parts of the campaign, by name."""


def main() -> None:
    """Run all, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="Keep each part's outcome, and take what is there.")
    parser.add_argument("--part", action="append", choices=PARTS, help="Run this part alone, and write no page.")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="segonnx-faults-") as name:
        its = Campaign(Path(name), asked.keep)
        found = {part: its.part(part) for part in asked.part or PARTS}
    wrong = _wrong(found)
    if not asked.part:
        parts = [
            page(found["damage"], found["beyond"], found["kills"]),
            faults_documents.page(found["documents"]),
            writing_faults.page(found["writing"]),
        ]
        put_block(PAGE, "faults", "\n".join(parts), "benchmarks.faults")
    print("\n".join([*wrong, f"{len(wrong)} ended as they shouldn't"]))
    sys.exit(bool(wrong))


def _wrong(found: Mapping[str, Any]) -> list[str]:
    """A line for everything that ended as it shouldn't."""
    damaged, tried = found.get("damage", []), found.get("documents", [])
    lines = [
        f"{one.kind} (seed {one.seed}): {one.wrong or 'not found'}" for one in damaged if one.wrong or not one.found_by
    ]
    lines += [why for its in found.get("kills", {}).values() for why in its if why]
    lines += [f"{one.command} of {one.kind} {one.seed}: {one.wrong}" for one in tried if one.wrong is not None]
    return [*lines, *(why for row in found.get("writing", []) for why in row.wrong)]


def _exported(work: Path) -> tuple[Path, Path]:
    from segonnx.exporters import pipeline

    settings = pipeline.Settings(out=work)
    return pipeline.export(catalog.find(SYSTEM), settings).folder, pipeline.export(tiny_system(), settings).folder


def page(outcomes: Sequence[Outcome], beyond: Sequence[Outcome], killed: dict[str, list[str | None]]) -> str:
    """The block of docs/reliability.md."""
    rows = []
    for kind, function in DAMAGE.items():
        its = [one for one in outcomes if one.kind == kind]
        by = Counter(one.found_by for one in its if one.found_by)
        told = ", ".join(f"{step} {count}" for step, count in by.most_common())
        found = sum(one.found_by is not None and one.wrong is None for one in its)
        rows.append(f"| {str(function.__doc__).strip()} | {len(its)} | {found} | {told} |")
    found = sum(one.found_by is not None and one.wrong is None for one in outcomes)
    wrong = sum(one.wrong is not None for one in outcomes)
    names = ", ".join(sorted({f"`{one.artifact}`" for one in outcomes}))
    apart = sum(one.found_by == "ending" for one in outcomes)
    slowest = max(one.seconds for one in outcomes)
    kill_rows = "\n".join(
        f"| {name} | {len(its)} | {sum(why is not None for why in its)} |" for name, its in killed.items()
    )
    return f"""Written by `make faults` on {hardware.usable_cores()} cores of {hardware.describe()["cpu"]}.

## Damage

{len(outcomes)} damaged copies of artifacts ({names}), each from a seed:
`segonnx verify` found {found}, each in one line with exit code 1. {wrong} ended in another way: a crash, another exit
code, a changed file, a step of more than {LIMIT_SECONDS:.0f} s. The slowest took {slowest:.0f} s.

For speed many checks share a process, with a step's time bounded from outside. {apart} were done by the
command, with a process for each step: those that take long, and those that ended or held up the shared one.

| damage | tried | found | found while |
|---|---|---|---|
{chr(10).join(rows)}

"all hashes new" means that the manifest was written anew to fit: who can do that can also change what nothing in the
folder contradicts. Of {len(beyond)} such changes (a licence, the card)
{sum(one.found_by is not None for one in beyond)} were found, and none can be: compare the manifest's digest with the
sender's.

## Kills

Each command was killed (SIGKILL) at a random moment of its time; what it left was then verified.

| command | kills | half results that passed or were left |
|---|---|---|
{kill_rows}
"""


if __name__ == "__main__":
    import importlib

    importlib.import_module("benchmarks.faults").main()  # by its name, for worker processes to find its functions
