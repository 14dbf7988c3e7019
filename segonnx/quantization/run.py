"""``segonnx quantize``: calibrate, quantize, judge, and write the artifact if the verdict allows."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from segonnx.artifacts import manifest
from segonnx.artifacts.layout import MODEL
from segonnx.artifacts.manifest import Manifest
from segonnx.artifacts.replacing import require_artifact
from segonnx.artifacts.verify import verify
from segonnx.core import files, hardware, subprocesses
from segonnx.core.ort_session import SessionSettings, model_bytes, open_session
from segonnx.core.subprocesses import Bounds, Progress
from segonnx.errors import CheckFailed, InputError, ResourceError
from segonnx.predict.resampling import AnyArray
from segonnx.quantization import cases, entries, graphs, verdict
from segonnx.quantization.cases import Case
from segonnx.quantization.graphs import Candidate
from segonnx.quantization.verdict import Verdict

REFUSED = {
    "float16": "ONNX Runtime emulates arithmetic in float16 on x64 and is slower with it; segonnx export "
    "--weights-dtype float16 stores weights so, and computes in float32",
    "dynamic": "ranges that are found while the network runs need a pass over each activation, and ONNX Runtime's "
    "convolutions take none; quantize statically, with --calibration",
}
"""What people ask for and can't work, with the reason."""
VNNI = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimd"})
"""Instruction sets that multiply int8 faster than float32; those of ARM are told by ``asimd`` alone."""
TURNS = 5
SENSITIVITY_WINDOWS = 2
RANGES = ".ranges.json"


@dataclass(frozen=True)
class Request:
    """What to quantize, and how.

    Attributes:
        artifact: the folder.
        calibration: the images, see ``cases.find``.
        out: the folder that gets the new artifact's.
        held_out: the images of the verdict; None holds one in four of ``calibration`` out.
        min_dice: the least Dice that each label must keep.
        budget: how many layers may go back to float32 where it isn't kept.
        threads: of ONNX Runtime.
        overwrite: replace an artifact that is there.
        bounds: of the processes that run the graphs.
    """

    artifact: Path
    calibration: Path
    out: Path
    held_out: Path | None = None
    min_dice: float = 0.99
    budget: int = 0
    threads: int = field(default_factory=hardware.usable_cores)
    overwrite: bool = False
    bounds: Bounds = field(default_factory=Bounds)


@dataclass(frozen=True)
class Timed:
    """What a pass of float32 and of int8 takes, in turns.

    Attributes:
        seconds: the median of each.
        peak_rss_bytes: the most memory of a process that loads it and runs it once.
        bytes: of its graph and weights.
    """

    seconds: dict[str, float]
    peak_rss_bytes: dict[str, int]
    bytes: dict[str, int]

    @property
    def speedup(self) -> float:
        """How many times faster int8 is."""
        return self.seconds["float32"] / self.seconds["int8"]


@dataclass(frozen=True)
class Quantized:
    """An artifact in int8.

    Attributes:
        folder: where it is.
        manifest: the content of its manifest.
        verdict: on the held-out images.
        timed: its time and memory beside those of float32.
        warnings: what a user should know.
        seconds: what all of it took.
    """

    folder: Path
    manifest: Manifest
    verdict: Verdict
    timed: Timed
    warnings: tuple[str, ...]
    seconds: float


def quantize(request: Request, progress: Progress = subprocesses.silent) -> Quantized:
    """Make an artifact whose convolutions compute in int8.

    Raises:
        InputError: the artifact or the images can't be used for that.
        CheckFailed: a label doesn't keep the Dice that it must. Nothing is written.
    """
    started = time.perf_counter()
    content = _checked(request, progress)
    target = request.out / content["name"]
    if os.path.lexists(target):
        if not request.overwrite:
            raise InputError(f"{target} exists: --overwrite replaces it")
        require_artifact(target)
    files.require_apart(target, request.artifact, request.calibration)
    calibration, held = _images(request, content)
    with files.staging(target) as work:
        job = _Job(request, content, calibration, held, work, progress)
        windows = job.windows()
        warnings = _warnings(calibration, windows)
        tried = job.search()
        timed = job.timed(tried)
        if timed.speedup < 1:
            warnings.append(f"int8 isn't faster here: a pass takes {1 / timed.speedup:.2f} times as long as float32's")
        progress("writing the artifact")
        made = job.write(tried, timed, len(windows))
        verify(job.folder, bounds=request.bounds, progress=progress)
        try:
            files.publish(job.folder, target, replace=request.overwrite, check=require_artifact)
        except OSError as error:
            raise ResourceError(f"can't write {target}: {error.strerror}") from error
    return Quantized(target, made, tried.verdict, timed, tuple(warnings), time.perf_counter() - started)


def _checked(request: Request, progress: Progress) -> Manifest:
    """The manifest of the artifact.

    Raises:
        InputError: it can't be quantized.
    """
    if not 0 <= request.min_dice <= 1:
        raise InputError(f"--min-dice {request.min_dice} is no Dice, which goes from 0 to 1")
    content = verify(request.artifact, replay=False, bounds=request.bounds, progress=progress).manifest
    manifest.require_one_network(content, request.artifact, "segonnx quantize")
    if "quantization" in content:
        raise InputError(f"{request.artifact} is quantized already")
    if len(content["inputs"]) > 1 or len(content["outputs"]) > 1:
        raise InputError(f"{request.artifact} has several inputs or outputs; networks of one each are quantized")
    return content


def _images(request: Request, content: Manifest) -> tuple[list[Case], list[Case]]:
    """The images to calibrate on, and the held-out ones.

    Raises:
        InputError: there are too few, or the two are of different kinds.
    """
    found = cases.find(request.artifact, content, request.calibration)
    if request.held_out is None:
        return cases.split(found, request.calibration)
    held = cases.find(request.artifact, content, request.held_out)
    if found[0].prepared != held[0].prepared:
        raise InputError(f"{request.calibration} and {request.held_out} must both hold images, or {cases.ARRAY} files")
    same = {path.resolve() for case in found for path in case.files}
    if both := next((path for case in held for path in case.files if path.resolve() in same), None):
        raise InputError(f"{both} is to be calibrated on and held out: it can be but one of them")
    return found, held


def _warnings(calibration: Sequence[Case], windows: Sequence[Path]) -> list[str]:
    found = []
    if len(calibration) < cases.FEW:
        found.append(
            f"calibrated on {len(calibration)} image{'s' if len(calibration) > 1 else ''}: values of others may lie "
            f"beyond their ranges; give {cases.FEW} or more"
        )
    if all(cases.is_noise(np.load(path)) for path in windows):
        found.append("calibrated on noise: ranges of real images are others")
    if VNNI.isdisjoint(hardware.cpu_flags()):
        found.append("this processor has no instructions for int8 (VNNI): int8 will not be faster here")
    return found


@dataclass(frozen=True)
class _Tried:
    """A quantization that was judged.

    Attributes:
        candidate: its graph.
        float32: the layers that stay float32, beside the head.
        sensitivity: for each layer, the error of the graph with it alone in int8; empty where nobody asked.
        verdict: on the held-out images.
    """

    candidate: Candidate
    float32: tuple[str, ...]
    sensitivity: Mapping[str, float]
    verdict: Verdict


@dataclass(frozen=True)
class _Job:
    """One quantization under way; ``work`` is a folder that vanishes with it."""

    request: Request
    content: Manifest
    calibration: Sequence[Case]
    held: Sequence[Case]
    work: Path
    progress: Progress

    @property
    def folder(self) -> Path:
        """The new artifact's folder, before it is published."""
        return self.work / "artifact"

    @property
    def described(self) -> Manifest:
        """The manifest as far as prediction reads it: of an artifact with one graph."""
        return {key: value for key, value in self.content.items() if key != "cpu_graph"}

    def call(self, function: Any, *arguments: Any) -> subprocesses.Outcome[Any]:
        """Run what touches the graph in a process of its own."""
        bounds = replace(self.request.bounds, mapped=model_bytes(self.request.artifact / MODEL))
        return subprocesses.call(function, *arguments, progress=self.progress, bounds=bounds)

    def windows(self) -> list[Path]:
        """Files of what the network sees of the images that it is calibrated on."""
        arguments = (self.request.artifact, self.content, self.calibration, self.work)
        found: list[Path] = self.call(_write_windows, *arguments).value
        return found

    def search(self) -> _Tried:
        """Quantize the graph, and give layers back to float32 as long as the verdict and the budget say so.

        Raises:
            CheckFailed: the verdict fails in the end.
        """
        request = self.request
        self.folder.mkdir()
        candidate: Candidate = self.call(_calibrate, request.artifact, self.work).value
        arguments = (self.content, self.held, self.work / "expected", request.threads)
        self.call(cases.label_maps, request.artifact, *arguments)
        ranked: list[str] = []
        sensitivity: dict[str, float] = {}
        count = 0
        while True:
            kept = tuple(ranked[:count])
            judged = self._judge(candidate, kept)
            if judged.least[0] >= request.min_dice:
                return _Tried(candidate, kept, sensitivity, judged)
            if count >= min(request.budget, len(candidate.layers)):
                raise CheckFailed(_missed(self.content["name"], judged, request, kept, sensitivity))
            if not sensitivity:
                sensitivity = self.call(_sensitivity, candidate, self.work, request.threads).value
                ranked = sorted(sensitivity, key=lambda layer: (-sensitivity[layer], layer))
            count = min(max(1, 2 * count), request.budget, len(ranked))

    def _judge(self, candidate: Candidate, kept: tuple[str, ...]) -> Verdict:
        layers = tuple(layer for layer in candidate.layers if layer not in kept)
        self.call(_quantize, candidate, self.work, layers, self.folder / MODEL)
        self.call(cases.label_maps, self.folder, self.described, self.held, self.work / "found", self.request.threads)
        regions = cases.evaluated(self.content, prepared=self.held[0].prepared)
        self.progress("comparing label maps")
        return verdict.judge(self.work / "expected", self.work / "found", self.held, regions)

    def timed(self, tried: _Tried) -> Timed:
        """The time and the memory of float32 and int8."""
        del tried
        float32 = self.request.artifact / manifest.cpu_model(self.content)
        paths = {"float32": float32, "int8": self.folder / MODEL}
        window, threads = self.work / "window_0.npy", self.request.threads
        seconds = self.call(_in_turns, paths, window, threads).value
        peaks = {name: self.call(_once, path, window, threads).peak_rss_bytes for name, path in paths.items()}
        sizes = {"float32": model_bytes(float32), "int8": model_bytes(self.folder / MODEL)}
        return Timed(seconds, peaks, sizes)

    def write(self, tried: _Tried, timed: Timed, windows: int) -> Manifest:
        """Write the files beside the graph, the manifest last."""
        candidate = tried.candidate
        entry = {
            "of": self.content["digest"],
            "weights": "int8",
            "activations": "uint8",
            "calibration": {"method": "MinMax", "images": len(self.calibration), "windows": windows},
            "int8": len(candidate.layers) - len(tried.float32),
            "float32": [*candidate.head, *tried.float32],
            "sensitivity": dict(tried.sensitivity),
            "verdict": {"min_dice": self.request.min_dice, **tried.verdict.entry},
            "seconds": timed.seconds,
            "peak_rss_bytes": timed.peak_rss_bytes,
            "bytes": timed.bytes,
            "machine": {"cpu": hardware.describe()["cpu"], "flags": hardware.cpu_flags(),
                        "threads": self.request.threads},
        }  # fmt: skip
        replay = self.call(entries.record, self.request.artifact, self.content, self.folder, self.request.threads).value
        made: Manifest = entries.write(self.folder, self.content, entry, replay)
        return made


def _missed(name: str, found: Verdict, request: Request, kept: Sequence[str], sensitivity: Mapping[str, float]) -> str:
    """Why nothing is written, and what to do."""
    hint = "--budget N lets the layers that hurt most stay float32"
    if kept:
        hint = f"{len(kept)} layers stayed float32, {', '.join(kept[:3])} first; a larger --budget lets more"
    elif sensitivity:
        hint = "more images to calibrate on may help"
    return f"{name}: {found}; --min-dice asks for {request.min_dice}, and nothing is written: {hint}"


def _write_windows(
    folder: Path, content: Manifest, calibration: Sequence[Case], work: Path, progress: Progress
) -> list[Path]:
    """Write what the network sees of images as ``window_i.npy``."""
    written: list[Path] = []
    for case in calibration:
        progress(f"reading {case.name}")
        for window in cases.windows(folder, content, case):
            written.append(work / f"window_{len(written)}.npy")
            np.save(written[-1], window)
    return written


def _windows(work: Path, most: int | None = None) -> list[AnyArray]:
    count = len(list(work.glob("window_*.npy")))
    return [np.load(work / f"window_{i}.npy", mmap_mode="r") for i in range(min(count, most or count))]


def _calibrate(artifact: Path, work: Path, progress: Progress) -> Candidate:
    """The graph that may be quantized; the ranges of its values are written beside it."""
    progress("preparing the graph")
    found = graphs.candidate(artifact, work)
    progress("calibrating")
    found.path.with_suffix(RANGES).write_text(json.dumps(graphs.ranges(found, _windows(work), work)))
    return found


def _ranges(candidate: Candidate) -> graphs.Ranges:
    """What ``_calibrate`` found."""
    found = json.loads(candidate.path.with_suffix(RANGES).read_text())
    return {name: (low, high) for name, (low, high) in found.items()}


def _quantize(candidate: Candidate, work: Path, layers: tuple[str, ...], path: Path, progress: Progress) -> None:
    del work
    progress(f"quantizing {len(layers)} layers")
    graphs.quantize(candidate, _ranges(candidate), layers, path)


def _sensitivity(candidate: Candidate, work: Path, threads: int, progress: Progress) -> dict[str, float]:
    """For each layer, how far outputs are from float32's where it alone is int8."""
    inputs, found = _windows(work, SENSITIVITY_WINDOWS), _ranges(candidate)
    expected = graphs.answers(candidate.path, inputs, threads)
    result = {}
    for i, layer in enumerate(candidate.layers, 1):
        progress(f"layer {i} of {len(candidate.layers)} alone in int8")
        path = work / "alone.onnx"
        graphs.quantize(candidate, found, [layer], path)
        result[layer] = graphs.distance(expected, graphs.answers(path, inputs, threads))
    return result


def _in_turns(paths: Mapping[str, Path], window: Path, threads: int, progress: Progress) -> dict[str, float]:
    """The median seconds of a pass of several graphs, in turns."""
    x = np.load(window)
    sessions = {
        name: open_session(path, SessionSettings(threads=threads, spinning="while-running"))
        for name, path in paths.items()
    }
    taken: dict[str, list[float]] = {name: [] for name in sessions}
    for turn in range(TURNS + 1):  # the first is a warm-up
        progress(f"timing, turn {turn} of {TURNS}")
        for name, session in sessions.items():
            began = time.perf_counter()
            session.run(None, {session.get_inputs()[0].name: x})
            taken[name].append(time.perf_counter() - began)
    return {name: median(seconds[1:]) for name, seconds in taken.items()}


def _once(path: Path, window: Path, threads: int, progress: Progress) -> None:
    """Load a graph and run it once: what that takes of memory is measured."""
    progress("measuring memory")
    graphs.answers(path, [np.load(window)], threads)
