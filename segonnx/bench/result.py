"""The result of a bench, as one JSON file; ``result.schema.json`` says what stands in it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from segonnx.artifacts.manifest import PrecisionKind
from segonnx.bench import stats
from segonnx.core import documents, files
from segonnx.errors import InputError
from segonnx.runtimes.base import Operator
from segonnx.sources import catalog

OK = "ok"
SCHEMA_VERSION = 5
MAX_BYTES = 2**27
"""A larger file isn't read."""
MAX_SAMPLES, MAX_ROUNDS = 4_000_000, 500_000
"""Of all rows together: a result with more isn't read, because its intervals would take hours."""

CaseKey = tuple[str, tuple[int, ...], int]
"""What must be equal for two rows to be compared: model, input shape and threads."""
WeightsKind = Literal["seeded", "published", "file"]
"""Whose weights a model holds: random ones of a seed, those that its authors publish, or a user's file."""
FLOAT32: PrecisionKind = "float32"

_KEYS = {"core_latency_ns": "exchange_ns", "warmed_up": "steady", "roofline_peaks": "ceilings"}
"""Fields whose keys in the file have other names, which programs that read results know."""


@dataclass(frozen=True)
class Published:
    """What others published of a network, measured elsewhere.

    Attributes:
        parameters: the most precise published count.
        dsc_percent: Dice score in percent, with the published weights.
        time_ms: milliseconds per pass.
        images_per_s: images, or slices of 512x512, per second.
        efficiency: ``images_per_s`` per million parameters.
    """

    parameters: int | None = None
    dsc_percent: float | None = None
    time_ms: float | None = None
    images_per_s: float | None = None
    efficiency: float | None = None


@dataclass(frozen=True)
class Precision:
    """What an artifact holds its weights in, and what its manifest says that this does.

    Attributes:
        kind: the type.
        bytes: of its graphs and weights.
        labels_equal: the least fraction of voxels of an image that get the label of float32; None for float32.
        least_dice: the least Dice of a label against float32; None where nobody compared label maps.
    """

    kind: PrecisionKind
    bytes: int
    labels_equal: float | None = None
    least_dice: float | None = None


@dataclass
class Row:
    """One model in one runtime, on one input with one number of threads.

    Attributes:
        model: its name.
        family: a key of ``catalog.FAMILIES``.
        backend: the runtime's name.
        parameters: exact count.
        macs: multiply-adds of a pass on this input.
        input_shape: (N, C, spatial...).
        input_sha256: of the input's bytes.
        images: how many images a pass counts for.
        weights: whose weights the model holds; None where an older file doesn't tell.
        artifact: the digest of the artifact's manifest; None where there is no artifact, or an older file doesn't tell.
        published: what others published of this model on this input; None where nothing may be compared with it.
        precision: of the artifact; None where the runtime runs none, or an older file doesn't tell.
        threads: how many threads the runtime was asked to use.
        status: ``ok``, or why there are no times.
        settings: what the runtime was set to, where it matters for time.
        rounds: seconds of every timed pass, by round.
        rounds_per_process: how many rounds each of its processes ran, one process after another.
        started_s: when each round's block began, in seconds since the bench did.
        core_latency_ns: core-to-core latency before each round's block; empty where it wasn't measured.
        warmup_s: seconds of the passes before them, the first one of the process among them.
        warmed_up: whether the warm-up ended because its passes had become alike.
        stopped: why no more rounds were run: ``precision``, ``max-time``, ``rounds`` or ``interrupted``; ``processes``
            where the rounds agree and the processes don't, so that more rounds would not narrow the intervals.
        load_s: seconds until the model was ready, in the first process, which had not imported the library yet:
            importing, reading, optimising and compiling.
        compile_s: the part of ``load_s`` that optimised or compiled.
        first_result_s: ``load_s`` and the first pass.
        cpu_s: processor seconds of a pass, all threads together.
        peak_rss_bytes: the most resident memory of a worker.
        memory_bytes: what a pass must move at least: weights, input and logits, once each.
        threads_seen: threads of the worker, counted from outside: ``total``, and ``busy`` those that worked in the
            timed passes.
        cpus: the processors that all its threads were bound to, seen from outside.
        max_abs_error: largest difference from eager's logits, or from the recorded ones where eager didn't run; None
            for an artifact that gives labels.
        label_agreement: fraction of voxels with the same label as there.
        compared_with: ``eager`` or ``recorded``.
        speedup_over_eager: eager's time over this one's, the median of the rounds' ratios.
        speedup_ci95: its 95 % confidence interval.
        verdict: ``faster``, ``slower`` or ``no difference``, against eager.
        interleaved: whether the blocks of all runtimes of this case alternated.
        profile: time by operator, from passes of their own; None where it wasn't asked for.
        warnings: what a reader should know.
    """

    model: str
    family: str
    backend: str
    parameters: int
    macs: int
    input_shape: tuple[int, ...]
    input_sha256: str
    images: float
    weights: WeightsKind | None = None
    artifact: str | None = None
    published: Published | None = None
    precision: Precision | None = None
    threads: int = 1
    status: str = OK
    settings: dict[str, str] = field(default_factory=dict)
    rounds: list[list[float]] = field(default_factory=list)
    rounds_per_process: list[int] = field(default_factory=list)
    started_s: list[float] = field(default_factory=list)
    core_latency_ns: list[float] = field(default_factory=list)
    warmup_s: list[float] = field(default_factory=list)
    warmed_up: bool | None = None
    stopped: str | None = None
    load_s: float | None = None
    compile_s: float | None = None
    first_result_s: float | None = None
    cpu_s: float | None = None
    peak_rss_bytes: int | None = None
    memory_bytes: int | None = None
    threads_seen: dict[str, int] | None = None
    cpus: list[int] | None = None
    max_abs_error: float | None = None
    label_agreement: float | None = None
    compared_with: str | None = None
    speedup_over_eager: float | None = None
    speedup_ci95: tuple[float, float] | None = None
    verdict: str | None = None
    interleaved: bool = True
    profile: list[Operator] | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def case(self) -> CaseKey:
        """What it shares with the rows that it is compared with."""
        return self.model, self.input_shape, self.threads

    @property
    def network(self) -> str:
        """The model's name without the precision that tells it from others of the name."""
        return self.model if self.precision is None else self.model.removesuffix(f" {self.precision.kind}")

    @property
    def samples_s(self) -> list[float]:
        """Seconds of every pass, in the order in which they ran."""
        return [seconds for block in self.rounds for seconds in block]

    @property
    def median_s(self) -> float | None:
        """Median seconds of a pass."""
        return stats.median(self.samples_s) if self.rounds else None

    @property
    def ci95_s(self) -> tuple[float, float] | None:
        """Its 95 % confidence interval; None of one round, which doesn't say how far the next would be."""
        return stats.ci95(self.rounds, self.rounds_per_process) if len(self.rounds) > 1 else None

    @property
    def images_per_s(self) -> float | None:
        """Images per second."""
        return self.images / self.median_s if self.median_s else None

    @property
    def efficiency(self) -> float | None:
        """Images per second and million parameters."""
        return self.images_per_s / (self.parameters / 1e6) if self.images_per_s else None

    @property
    def gflops(self) -> float | None:
        """Billions of floating-point operations per second that the published method needs, two per multiply-add."""
        return 2 * self.macs / self.median_s / 1e9 if self.median_s else None

    @property
    def ns_per_voxel(self) -> float | None:
        """Nanoseconds per voxel or pixel of the input."""
        voxels = self.input_shape[0] * math.prod(self.input_shape[2:])
        return 1e9 * self.median_s / voxels if self.median_s else None

    def as_dict(self) -> dict[str, Any]:
        """The row as it stands in the file."""
        content = {_KEYS.get(key, key): value for key, value in asdict(self).items()}
        content.pop("rounds")
        return content | {
            "samples_s": self.samples_s,
            "samples_per_round": [len(block) for block in self.rounds],
            "median_s": self.median_s,
            "ci95_s": self.ci95_s,
            "images_per_s": self.images_per_s,
            "efficiency": self.efficiency,
            "gflops": self.gflops,
            "ns_per_voxel": self.ns_per_voxel,
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Row:
        """The row that ``as_dict`` gave."""
        keys = {each.name: _KEYS.get(each.name, each.name) for each in fields(cls)}
        known = {name: content[key] for name, key in keys.items() if key in content}
        samples = iter(content["samples_s"])
        known["rounds"] = [[next(samples) for _ in range(count)] for count in content["samples_per_round"]]
        known["input_shape"] = tuple(content["input_shape"])
        if content["speedup_ci95"] is not None:
            known["speedup_ci95"] = tuple(content["speedup_ci95"])
        if content["profile"] is not None:
            known["profile"] = [Operator(**operator) for operator in content["profile"]]
        if content.get("published") is not None:
            known["published"] = Published(**content["published"])
        if content.get("precision") is not None:
            known["precision"] = Precision(**content["precision"])
        return cls(**known)


@dataclass(frozen=True)
class Ratio:
    """How many times faster one runtime is than another on the same case, from the rounds that both ran.

    Attributes:
        model, input_shape, threads: the case.
        baseline: the runtime whose time is the numerator.
        backend: the runtime whose time is the denominator: above 1 it is the faster one.
        speedup: the median of the rounds' ratios.
        ci95: its 95 % confidence interval; None where there are too few rounds for one.
        verdict: ``faster``, ``slower``, or ``no difference`` where the interval holds 1; None without an interval.
        rounds: how many there were.
        interleaved: whether their blocks alternated; if not, what changed on the machine in between is in it, too.
    """

    model: str
    input_shape: tuple[int, ...]
    threads: int
    baseline: str
    backend: str
    speedup: float
    ci95: tuple[float, float] | None
    verdict: str | None
    rounds: int
    interleaved: bool


@dataclass
class Result:
    """What a bench gave.

    Attributes:
        machine: as ``hardware.describe`` gives it.
        settings: how the bench ran.
        autocast: a sentence on the number type.
        rows: one per model, input, number of threads and runtime.
        ratios: every pair of runtimes, by case.
        roofline_peaks: what the machine can do at most, by number of threads: ``threads``, ``sgemm_gflops``,
            ``sgemm_library``, ``bandwidth_gb_s`` (copying memory, read and written bytes together).
        overhead: what the bench itself took: ``wall_s``, ``timed_s`` (inside timed passes), ``parent_cpu_s``,
            ``parent_peak_rss_bytes``.
        interrupted: the user stopped it.
        warnings: about the machine and the whole run.
        created: when, in UTC.
    """

    machine: dict[str, Any]
    autocast: str
    rows: list[Row] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    ratios: list[Ratio] = field(default_factory=list)
    roofline_peaks: list[dict[str, Any]] = field(default_factory=list)
    overhead: dict[str, float] = field(default_factory=dict)
    interrupted: bool = False
    warnings: list[str] = field(default_factory=list)
    created: str = ""

    def families(self) -> dict[str, str]:
        """The families that it has rows of, each with its title, in the catalogue's order."""
        present = dict.fromkeys(row.family for row in self.rows)
        keys = [key for key in catalog.FAMILIES if key in present]
        keys += [key for key in present if key not in catalog.FAMILIES]
        return {key: catalog.FAMILIES.get(key, key) for key in keys}

    def as_dict(self) -> dict[str, Any]:
        """The content of the file."""
        content: dict[str, Any] = {"schema_version": SCHEMA_VERSION}
        for each in fields(self):
            content[_KEYS.get(each.name, each.name)] = getattr(self, each.name)
        content["rows"] = [row.as_dict() for row in self.rows]
        content["ratios"] = [asdict(ratio) for ratio in self.ratios]
        return content

    def write(self, path: Path) -> None:
        """Write the file whole or not at all.

        Raises:
            ResourceError: it can't be written.
        """
        # Halves of characters, which a file's name in a message may hold, must not end hours of work.
        text = json.dumps(self.as_dict(), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
        files.write(path, text.encode(errors="replace"))


def read(path: Path) -> Result:
    """The result in a file, checked against the schema and against itself.

    Files of version 2 don't tell whose weights a row is of: nothing published is compared with such a row.

    Raises:
        InputError: there is none, or it isn't one.
    """
    return parse(documents.read(path, MAX_BYTES), path)


def parse(content: Any, where: Path | str) -> Result:
    """The result in a document, checked against the schema and against itself.

    Args:
        content: what the document holds. It is taken apart.
        where: what it is, for messages.

    Raises:
        InputError: it isn't one.
    """
    if isinstance(content, dict) and content.get("schema_version") == 1:
        raise InputError(f"{where} was written by an older segonnx, without the rounds' times: run the bench again")
    if (wrong := documents.misfit(content, schema(), contradiction)) is not None:
        raise InputError(f"{where} isn't the result of a bench: at {wrong}")
    content.pop("schema_version")
    content["rows"] = [Row.from_dict(row) for row in content["rows"]]
    content["ratios"] = [
        Ratio(**{**ratio, "input_shape": tuple(ratio["input_shape"]), "ci95": ratio["ci95"] and tuple(ratio["ci95"])})
        for ratio in content["ratios"]
    ]
    return Result(**{each.name: content[_KEYS.get(each.name, each.name)] for each in fields(Result)})


def contradiction(content: dict[str, Any]) -> str | None:
    """The first place where a result that fits its schema contradicts itself, and why; None where it doesn't."""
    seen = set()
    for i, row in enumerate(content["rows"]):
        if (wrong := _uneven(row)) is not None:
            return f"rows/{i}/{wrong}"
        which = (row["model"], *row["input_shape"], row["threads"], row["backend"])
        if which in seen:
            return f"rows/{i}: {row['model'][:100]!r} in {row['backend'][:100]!r} is there twice"
        seen.add(which)
    for key, most in (("samples_s", MAX_SAMPLES), ("samples_per_round", MAX_ROUNDS)):
        if (count := sum(len(row[key]) for row in content["rows"])) > most:
            return f"rows: {count:,} numbers of {key} are more than {most:,}"
    for i, ratio in enumerate(content["ratios"]):
        if ratio["baseline"] == ratio["backend"]:
            return f"ratios/{i}: {ratio['backend'][:100]!r} is compared with itself"
        if ratio["ci95"] is not None and ratio["ci95"][0] > ratio["ci95"][1]:
            return f"ratios/{i}/ci95: its ends are in the wrong order"
    return None


def _uneven(row: dict[str, Any]) -> str | None:
    """Which of a row's lists don't go together."""
    rounds = len(row["samples_per_round"])
    if sum(row["samples_per_round"]) != len(row["samples_s"]):
        return f"samples_per_round: {sum(row['samples_per_round'])}, and {len(row['samples_s'])} samples_s"
    processes = row.get("rounds_per_process", [])
    if processes and sum(processes) != rounds:
        return f"rounds_per_process: {sum(processes)}, and {rounds} rounds"
    for key in ("started_s", "exchange_ns"):
        if len(row.get(key, [])) not in ((0, rounds) if key == "exchange_ns" else (rounds,)) and row["status"] == OK:
            return f"{key}: {len(row.get(key, []))}, and {rounds} rounds"
    interval = row["speedup_ci95"]
    if interval is not None and interval[0] > interval[1]:
        return "speedup_ci95: its ends are in the wrong order"
    return None


def schema() -> dict[str, Any]:
    """The JSON Schema of a result."""
    content: dict[str, Any] = documents.packaged("segonnx.bench", "result.schema.json")
    return content
