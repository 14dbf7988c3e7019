"""The result of a bench, as one JSON file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from segonnx.artifacts import folder
from segonnx.bench import stats

OK = "ok"


@dataclass
class Row:
    """One model in one runtime.

    Attributes:
        model: its name.
        family: a key of ``catalog.FAMILIES``.
        backend: the runtime's name.
        status: ``ok``, or why there are no times.
        parameters: exact count.
        macs: multiply-adds of a pass.
        input_shape: (N, C, spatial...).
        input_sha256: of the input's bytes.
        images: how many images a pass counts for.
        settings: of the runtime, those that matter for time.
        rounds: seconds of every pass, by round.
        load_s: seconds from a process that has imported nothing yet to the first result: importing the library,
            reading, optimising or compiling, and the first pass.
        peak_rss_bytes: the most resident memory of the worker.
        max_abs_error: largest difference from eager's logits, or from the recorded ones where eager didn't run.
        label_agreement: fraction of voxels with the same label as there.
        compared_with: ``eager`` or ``recorded``.
        speedup_over_eager: eager's time over this one's, the median of the rounds' ratios.
        interleaved: whether the runtimes of this model took turns.
        warnings: what a reader should know.
    """

    model: str
    family: str
    backend: str
    parameters: int
    macs: int
    input_shape: tuple[int, ...]
    input_sha256: str
    images: int
    status: str = OK
    settings: dict[str, str] = field(default_factory=dict)
    rounds: list[list[float]] = field(default_factory=list)
    load_s: float | None = None
    peak_rss_bytes: int | None = None
    max_abs_error: float | None = None
    label_agreement: float | None = None
    compared_with: str | None = None
    speedup_over_eager: float | None = None
    interleaved: bool = True
    warnings: list[str] = field(default_factory=list)

    @property
    def samples_s(self) -> list[float]:
        """Seconds of every pass, in the order in which they ran."""
        return [seconds for one in self.rounds for seconds in one]

    @property
    def median_s(self) -> float | None:
        """Median seconds of a pass."""
        return stats.median(self.samples_s) if self.rounds else None

    @property
    def images_per_s(self) -> float | None:
        """Images per second."""
        return self.images / self.median_s if self.median_s else None

    @property
    def efficiency(self) -> float | None:
        """Images per second and million parameters."""
        return self.images_per_s / (self.parameters / 1e6) if self.images_per_s else None

    def as_dict(self) -> dict[str, Any]:
        """The row as it stands in the file."""
        content = asdict(self)
        content.pop("rounds")
        return content | {
            "samples_s": self.samples_s,
            "samples_per_round": [len(one) for one in self.rounds],
            "median_s": self.median_s,
            "ci95_s": stats.ci95(self.samples_s) if self.rounds else None,
            "images_per_s": self.images_per_s,
            "efficiency": self.efficiency,
        }


@dataclass
class Result:
    """A whole bench.

    Attributes:
        machine: as ``machine.describe`` gives it, with the threads.
        autocast: a sentence on the number type.
        rows: one per model and runtime.
    """

    machine: dict[str, Any]
    autocast: str
    rows: list[Row] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Write the file whole or not at all.

        Raises:
            ResourceError: it can't be written.
        """
        content = {
            "schema_version": 1,
            "machine": self.machine,
            "autocast": self.autocast,
            "rows": [row.as_dict() for row in self.rows],
        }
        folder.write(path, json.dumps(content, indent=1) + "\n")
