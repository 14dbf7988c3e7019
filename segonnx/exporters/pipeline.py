"""The one path from a system to an artifact: prepare, convert, assemble, measure, write.

Each step runs in a process of its own, so that no two hold the weights at once, and tells its peak of memory.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from segonnx._version import __version__
from segonnx.artifacts import card, layout, manifest, sbom
from segonnx.artifacts.layout import MODEL
from segonnx.artifacts.manifest import Manifest
from segonnx.artifacts.verify import describe, verify
from segonnx.core import files, hardware, subprocesses
from segonnx.core.files import sha256
from segonnx.core.subprocesses import Progress
from segonnx.core.tolerances import TOLERANCES
from segonnx.errors import CheckpointError, InputError, ResourceError, VerifyError
from segonnx.exporters import labels, parity_inputs
from segonnx.exporters.accounting import Account
from segonnx.exporters.assemble import Converted, assemble
from segonnx.exporters.convert import convert, convert_network
from segonnx.exporters.parity import DTYPE, RUNTIME, STEADY_RUNTIME, Measured, Output, measure
from segonnx.exporters.prepare import STATE, Prepared, Weights, adapt, prepare, prepare_network
from segonnx.optimize.choices import Choices
from segonnx.optimize.search import tune
from segonnx.optimize.tuning import parse as choices_of
from segonnx.optimize.tuning import read as read_tuning
from segonnx.sources.catalog import ModelSpec

if TYPE_CHECKING:
    from segonnx.models.base import BuiltModel
    from segonnx.optimize import Optimize

T = TypeVar("T")

TUNE_S = 600.0
"""Seconds that the search of ``--tune`` may take, where nothing else is said."""


@dataclass(frozen=True)
class Settings:
    """How to export.

    Attributes:
        out: the folder that artifacts are made in.
        checkpoints: files of weights, one for each part of the network that has its own; random weights from ``seed``
            where there are none.
        trust: run the code that a file of weights brings.
        pretrained: take the weights that the network's library publishes.
        seed: of random weights.
        shape: spatial sizes of the input, where they aren't the system's.
        batch: instances per pass.
        dynamic: leave batch and spatial sizes open.
        optimize: which rewrites to apply; ``none`` gives the graph as torch wrote it.
        tune: choose the rewrites by timing them on this machine.
        tune_time: seconds that the search may take.
        tuning: a manifest whose choices are taken, instead of the package's.
        max_weight_growth: the most that the forms of 3D convolutions may let their weights grow, times.
        output: ``labels``: the graph ends in an ArgMax over the classes.
        overwrite: replace an artifact that was made with other arguments.
        threads: of PyTorch and ONNX Runtime.
        folder: the artifact's folder in ``out``, where it isn't called after the system.
    """

    out: Path
    checkpoints: tuple[Path, ...] = ()
    trust: bool = False
    pretrained: bool = False
    seed: int = 0
    shape: tuple[int, ...] | None = None
    batch: int = 1
    dynamic: bool = False
    optimize: Optimize = "cpu"
    tune: bool = False
    tune_time: float = TUNE_S
    tuning: Path | None = None
    max_weight_growth: float | None = None
    output: Output = "logits"
    overwrite: bool = False
    threads: int = field(default_factory=hardware.usable_cores)
    folder: str | None = None

    @property
    def weights(self) -> Weights:
        """Where the weights come from."""
        return Weights(self.checkpoints, self.trust, self.pretrained, self.seed)


@dataclass(frozen=True)
class Stage:
    """One step of an export: its seconds, and the most memory that its process held."""

    seconds: float
    peak_rss_bytes: int


@dataclass(frozen=True)
class Exported:
    """What an export gave.

    Attributes:
        folder: the artifact.
        manifest: its content.
        kept: it was there already, made with the same arguments, and is whole.
        stages: by name; empty if it was kept.
        seconds: in all.
    """

    folder: Path
    manifest: Manifest
    kept: bool
    stages: dict[str, Stage]
    seconds: float

    @property
    def peak_rss_bytes(self) -> int:
        return max((stage.peak_rss_bytes for stage in self.stages.values()), default=0)


def export(
    spec: ModelSpec, settings: Settings, progress: Progress = subprocesses.silent, built: BuiltModel | None = None
) -> Exported:
    """Export one system to ``settings.out/NAME``.

    Args:
        spec: what to export.
        settings: how.
        progress: told of each step.
        built: the caller's own, in its inference form. It stays in this process, which then prepares and converts it;
            nothing is kept of what is there already. None builds the system's network.

    Raises:
        InputError: an argument is wrong, an artifact with other arguments is there, or the machine lacks something.
        ParityError: the network isn't the published one, or its ONNX file computes something else. Nothing is written.
    """
    started = time.perf_counter()
    target = settings.out / (settings.folder or folder_name(spec))
    stages: dict[str, Stage] = {}

    def stage(name: str, function: Callable[..., T], *args: Any) -> T:
        outcome = subprocesses.call(function, *args, progress=progress)
        stages[name] = Stage(round(outcome.seconds, 3), outcome.peak_rss_bytes)
        return outcome.value

    def here(name: str, function: Callable[..., T], *args: Any) -> T:
        begun = time.perf_counter()
        try:
            value = function(*args, progress)
        except Exception as error:
            raise subprocesses.translate(error) from error
        stages[name] = Stage(round(time.perf_counter() - begun, 3), subprocesses.peak_rss_bytes())
        return value

    _require_tunable(settings)
    tuning = None if settings.tuning is None else read_tuning(settings.tuning)
    if settings.checkpoints or settings.pretrained:
        spec = stage("adapt", adapt, spec, settings.weights)
    if settings.output == "labels":
        labels.require(spec)
    shape = input_shape(spec, settings.shape, settings.batch)
    seeded = built is None and settings.weights.random
    arguments = _arguments(spec, settings, shape, tuning) | ({} if seeded else {"seed": None})
    if built is not None and os.path.lexists(target) and not settings.overwrite:
        raise InputError(f"{target} exists: overwrite=True replaces it")
    if (kept := _existing(target, arguments, settings, progress)) is not None:
        return Exported(target, kept, True, {}, time.perf_counter() - started)
    planned = parity_inputs.plan(spec, shape, dynamic=settings.dynamic)
    _require_memory(spec, shape, times=2 if settings.tune else 1)
    with files.staging(target) as work:
        _require_disk(spec, shape, work)
        artifact = work / "artifact"
        artifact.mkdir()
        if built is None:
            prepared = stage("prepare", prepare, spec, settings.weights, shape, planned, work, settings.threads)
        else:
            prepared = here("prepare", prepare_network, built, spec.modality, shape, planned, work)

        def converting(name: str, optimize: Optimize, choices: Choices, path: Path) -> Converted:
            how = (spec, shape, settings.dynamic, optimize, choices)
            if built is None:
                return stage(name, convert, *how, work, path)
            return here(name, convert_network, built, *how, path)

        if settings.tune:
            converting("stock", "none", Choices(), work / "stock.onnx")
            search = (planned[0].make(spec.modality), settings.max_weight_growth, settings.threads, settings.tune_time)
            tuning = stage("tune", tune, work / "stock.onnx", *search)
            for path in work.glob("stock.onnx*"):
                path.unlink()
        choices = Choices() if tuning is None else choices_of(tuning, "the tuning")
        choices = replace(choices, max_weight_growth=settings.max_weight_growth)
        converted = converting("convert", settings.optimize, choices, work / MODEL)
        account = stage("assemble", assemble, work / MODEL, converted, work / STATE, artifact)
        (work / STATE).unlink()
        steady = settings.optimize == "none"
        checks = (planned, spec.modality, work, steady)
        measured = stage("measure", measure, artifact, *checks, settings.output, settings.threads)
        if settings.output == "labels":
            name = spec.output or settings.output
            converted = stage("labels", labels.put, artifact, converted, name, *checks, settings.threads)
        progress("hashing the artifact")
        weights = _weights(spec, settings, prepared, seeded=seeded)
        content = _manifest(spec, settings, artifact, arguments, prepared, weights, converted, account, measured)
        content |= {} if tuning is None else {"tuning": tuning}
        (artifact / layout.CARD).write_text(card.render(content), encoding="utf-8")
        (artifact / layout.SBOM).write_text(sbom.render(spec.name), encoding="utf-8")
        content["files"] = _files(artifact)
        manifest.validate({**content, "digest": "0" * 64})
        (artifact / layout.MANIFEST).write_bytes(manifest.seal(content))
        progress("writing the artifact")
        files.publish(artifact, target)
    return Exported(target, content, False, stages, time.perf_counter() - started)


def folder_name(spec: ModelSpec) -> str:
    """The name of a system's artifact folder."""
    return spec.name.replace(":", "-").replace("/", "-")


def input_shape(spec: ModelSpec, spatial: tuple[int, ...] | None, batch: int = 1) -> tuple[int, ...]:
    """The system's input shape with another batch size and other spatial sizes.

    Raises:
        InputError: their number is wrong, or the network can't take them.
    """
    if spatial is None:
        return (batch, *spec.input_shape[1:])
    wanted = len(spec.input_shape) - 2
    axes = "D,H,W" if wanted == 3 else "H,W"
    if len(spatial) != wanted:
        raise InputError(f"{spec.name} takes {wanted} spatial sizes, {axes}; --shape gives {len(spatial)}")
    for size, step in zip(spatial, spec.divisors, strict=True):
        if size <= 0 or size % step:
            alike = len(set(spec.divisors)) == 1
            each = step if alike else f"{','.join(map(str, spec.divisors))} along the axes"
            raise InputError(
                f"{spec.name} takes spatial sizes that are positive multiples of {each}; --shape has {size}"
            )
    if (wanted == 3 or spec.family == "nnunet") and spatial == spec.divisors:
        raise InputError(f"{spec.name} needs more than one voxel at its deepest level: double a size of --shape")
    return (batch, spec.input_shape[1], *spatial)


def memory_needed(spec: ModelSpec, shape: tuple[int, ...]) -> int:
    """Bytes that the largest process of an export takes, rounded up from measured peaks.

    The weights and a quarter (they're mapped from a file, and once loaded by the runtime), and once more where the
    runtime derives others from them; six times the logits (what the widest layers and the comparison hold); and a
    gigabyte for the libraries.
    """
    from segonnx.optimize.unroll_depth import MAX_BYTES

    parameters = spec.reference.training_parameters if spec.reference is not None else spec.parameters
    logits = 4 * shape[0] * spec.num_classes * math.prod(shape[2:])
    return (9 if 4 * parameters <= MAX_BYTES else 5) * parameters + 6 * logits + 10**9


def _require_tunable(settings: Settings) -> None:
    asked = settings.tune or settings.tuning is not None or settings.max_weight_growth is not None
    if settings.tune and settings.tuning is not None:
        raise InputError("--tune chooses the rewrites, --tuning FILE names those that were chosen: give one")
    if asked and settings.optimize == "none":
        raise InputError(
            "--optimize none leaves nothing to choose: --tune, --tuning and --max-weight-growth go without"
        )
    if settings.tune and settings.dynamic:
        raise InputError("--tune times one shape: give the shape that you'll run most with --shape, without --dynamic")


def _require_memory(spec: ModelSpec, shape: tuple[int, ...], times: int = 1) -> None:
    needed, available = times * memory_needed(spec, shape), hardware.available_memory()
    if needed > available:
        raise ResourceError(
            f"{spec.name} needs about {needed / 1e9:.1f} GB of memory to export, {available / 1e9:.1f} GB are "
            "available: close other programs, use a larger machine, or a smaller --shape"
        )


def _require_disk(spec: ModelSpec, shape: tuple[int, ...], work: Path) -> None:
    parameters = spec.reference.training_parameters if spec.reference is not None else spec.parameters
    logits = 4 * shape[0] * spec.num_classes * math.prod(shape[2:])
    # The weights as safetensors and as ONNX (twice while they move inside), the logits of the probes and as test data.
    needed = 4 * parameters * (2 if 4 * parameters > 2**30 else 3) + 4 * logits + 10**7
    files.require_space(needed, work, spec.name, "free some space, or choose another folder with --out")


def _arguments(
    spec: ModelSpec, settings: Settings, shape: tuple[int, ...], tuning: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    try:
        digests = [sha256(path) for path in settings.checkpoints]
    except OSError as error:
        raise CheckpointError(f"{error.filename} can't be read: {error.strerror}") from error
    arguments = {
        "name": spec.name,
        "shape": list(shape),
        "dynamic": settings.dynamic,
        "optimize": settings.optimize,
        "seed": settings.seed,
        "checkpoint_sha256": None if not digests else digests[0] if len(digests) == 1 else digests,
    }
    if settings.pretrained:
        arguments["pretrained"] = True
    if settings.tune:
        arguments["tune"] = True
    if tuning is not None:
        arguments["tuning_sha256"] = hashlib.sha256(json.dumps(tuning, sort_keys=True).encode()).hexdigest()
    if settings.max_weight_growth is not None:
        arguments["max_weight_growth"] = settings.max_weight_growth
    if settings.output == "labels":
        arguments["output"] = "labels"
    if settings.trust:
        arguments["trusted"] = True
    if spec.described:
        text = json.dumps([spec.options, spec.described], sort_keys=True)
        arguments["plans_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    return arguments


def _existing(target: Path, arguments: dict[str, Any], settings: Settings, progress: Progress) -> Manifest | None:
    """The manifest of the artifact at ``target`` if it is to be kept; None if there is none or it is to be replaced."""
    if not os.path.lexists(target) or settings.overwrite:
        return None
    try:
        found = verify(target, replay=False, progress=progress).manifest
    except VerifyError as error:
        raise InputError(f"{target} exists and isn't a whole artifact ({error}): --overwrite replaces it") from error
    if found["arguments"] != arguments:
        made = found["arguments"]
        changed = ", ".join(key for key in arguments | made if made.get(key) != arguments.get(key))
        raise InputError(f"{target} exists, made with other arguments ({changed}): --overwrite replaces it")
    return found


def _files(artifact: Path) -> dict[str, dict[str, Any]]:
    paths = sorted(path for path in artifact.rglob("*") if path.is_file())
    return {
        path.relative_to(artifact).as_posix(): {"sha256": sha256(path), "bytes": path.stat().st_size} for path in paths
    }


def _manifest(
    spec: ModelSpec,
    settings: Settings,
    artifact: Path,
    arguments: dict[str, Any],
    prepared: Prepared,
    weights: dict[str, Any],
    converted: Converted,
    account: Account,
    measured: list[Measured],
) -> Manifest:
    import onnx

    graph = onnx.load(str(artifact / MODEL), load_external_data=False).graph
    differences = [one.difference for one in measured]
    return {
        "schema_version": manifest.SCHEMA_VERSION,
        "name": spec.name,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "family": spec.family,
        "source": spec.source,
        "parameters": {
            "count": prepared.parameters,
            "reference": spec.reference.parameters if spec.reference is not None else None,
            "published": spec.published_parameters,
            "published_figures": [
                {"text": figure.text, "source": figure.source, "num_classes": figure.num_classes}
                for figure in spec.published
            ],
            **asdict(account),
        },
        "macs": prepared.macs,
        "inputs": [describe(value) for value in graph.input],
        "outputs": [{**describe(value), **_kind(spec, settings)} for value in graph.output],
        "opset": converted.opset,
        "ir_version": converted.ir_version,
        "operators": converted.operators,
        "weights": weights,
        "preprocessing": PREPROCESSING.get(spec.modality, {}),
        "labels": [],
        **{key: value for key, value in spec.described.items() if key != "inference" or settings.output == "logits"},
        "parity": {
            "inputs": [
                {"kind": one.probe.kind, "shape": list(one.probe.shape), "sha256": one.sha256, **asdict(one.difference)}
                for one in measured
            ],
            "max_abs_error": max(d.max_abs_error for d in differences),
            "max_rel_error": max(d.max_rel_error for d in differences),
            "rms_rel_error": max(d.rms_rel_error for d in differences),
            "label_agreement": min(d.label_agreement for d in differences),
            "tolerance": {"dtype": DTYPE, **asdict(TOLERANCES[DTYPE])},
            "reference": "PyTorch",
            "runtime": RUNTIME if settings.optimize == "cpu" else STEADY_RUNTIME,
            "passed": True,
        },
        "rewrites": list(converted.rewrites),
        "files": {},
        "producer": hardware.versions() | {"segonnx": __version__},
        "arguments": arguments,
    }


def _kind(spec: ModelSpec, settings: Settings) -> dict[str, Any]:
    """What the manifest says of an output that isn't logits."""
    return {"kind": "labels", "classes": max(2, spec.num_classes)} if settings.output == "labels" else {}


def _weights(spec: ModelSpec, settings: Settings, prepared: Prepared, *, seeded: bool) -> dict[str, Any]:
    files = " and ".join(f"file {_short(path)}" for path in settings.checkpoints)
    source = spec.weights_source or files
    weights = {
        "source": f"seeded random weights (seed {settings.seed}); they predict nothing" if seeded else source,
        "sha256": prepared.weights_sha256,
        "licence": "apache-2.0" if seeded else spec.licence,
        "seed": settings.seed if seeded else None,
    }
    return {**weights, "trusted": True} if settings.trust and settings.checkpoints else weights


def _short(path: Path) -> str:
    """The file's name, with its fold's."""
    return f"{path.parent.name}/{path.name}" if path.parent.name.startswith("fold_") else path.name


PREPROCESSING: dict[str, dict[str, Any]] = {
    "CT": {"modality": "CT", "note": "CT intensities, clipped and normalised as the network was trained"},
    "RGB": {
        "modality": "RGB",
        "note": "RGB scaled to 0..1, then normalised per channel with ImageNet's mean and standard deviation",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    },
    "other": {"modality": "other", "note": "as the network was trained"},
}
