"""Predicts cases one after another in a process that reads the next one and writes the last one meanwhile.

Memory then holds one more image as it was read, and one more label map, than that of one case.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from segonnx.core import subprocesses
from segonnx.core.subprocesses import Progress
from segonnx.errors import SegonnxError
from segonnx.predict import claims, evaluation, files, images, records
from segonnx.predict.bounded import Verified
from segonnx.predict.evaluation import Evaluated, Metrics
from segonnx.predict.files import Case, FileOptions, Job, Predicted
from segonnx.predict.predictor import Artifact
from segonnx.predict.records import Recipe, Record
from segonnx.predict.resampling import AnyArray

DEPTH = 3
"""So many cases are in the process at most: one is written, one is in the network, and one is read."""


@dataclass(frozen=True)
class Request:
    """A case that is to be done.

    Attributes:
        job: What is to be done.
        target: The folder of the label maps.
        made: The files to make.
        clean: Nothing stands in their place, and nothing is to stay there if the case fails.
        claim: The file of the claim on the case. None if there is none.
        compare: The case is done: only compare its label map.
        warnings: What is known of the case already, a line each.
    """

    job: Job
    target: Path
    made: tuple[Path, ...] = ()
    clean: bool = False
    claim: Path | None = None
    compare: bool = False
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What came of a case.

    Attributes:
        case: The case's name. Empty once the networks are loaded.
        predicted: The case, if its files are written.
        record: What is noted of it, if it is done.
        metrics: How well it agrees with its reference, if it was compared.
        error: Why it failed, if it did.
        lost: It is another process's now.
        again: The process died while it had several cases: it is worth trying alone.
        died: The machine's process died that had it, and what it had in hand is not known to be the reason.
        alone: Of ``died``: it had nothing else in hand.
    """

    case: str
    predicted: Predicted | None = None
    record: Record | None = None
    metrics: dict[str, Metrics] | None = None
    error: SegonnxError | None = None
    lost: bool = False
    again: bool = False
    died: bool = False
    alone: bool = False


def serve(
    requests: Iterator[Request],
    answer: Callable[[Answer], None],
    artifacts: tuple[Verified, Verified | None],
    options: FileOptions,
    recipe: Recipe,
    threads: int | None,
    timeout: float | None,
    progress: Progress,
) -> None:
    """Do the cases that are asked for, and answer each. The first answer comes once the networks are loaded.

    Args:
        requests: The cases, as they come.
        answer: Takes an answer, from any thread.
        artifacts: What to predict with: the artifact, and of a cascade the first stage.
        options: How the files are predicted.
        recipe: What of that is noted.
        threads: The number of ONNX Runtime's threads. None takes all cores.
        timeout: The most seconds that loading or a window may take. None lets their size decide.
        progress: A progress callback.
    """
    import onnxruntime  # noqa: F401 (its import isn't the graph's time)

    progress("loading the artifact")
    loaded, first = (
        None if one is None else Artifact.verified(one.folder, one.manifest, threads, timeout) for one in artifacts
    )
    assert loaded is not None
    answer(Answer(""))
    _Pipeline(loaded, first, options, recipe, answer, progress).run(requests)


class _Pipeline:
    """Three threads: one reads, this one runs the networks, one writes."""

    def __init__(
        self,
        artifact: Artifact,
        previous: Artifact | None,
        options: FileOptions,
        recipe: Recipe,
        answer: Callable[[Answer], None],
        progress: Progress,
    ) -> None:
        self._artifact, self._previous, self._options, self._recipe = artifact, previous, options, recipe
        self._answer, self._progress = answer, progress
        self._names = {entry["value"]: entry["name"] for entry in artifact.described["labels"]}

    def run(self, requests: Iterator[Request]) -> None:
        """Do the cases."""
        writing: Future[None] | None = None
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
            coming = reader.submit(self._next, requests)
            while (found := coming.result()) is not None:
                coming = reader.submit(self._next, requests)
                request, case = found
                del found
                subprocesses.reset_peak()
                with self._failures(request):
                    labels = files.compute(self._artifact, case, self._options, self._previous, self._progress)
                    peak = subprocesses.peak_rss_bytes()
                    if not files.writes_of_image(request.job, self._options):
                        case = replace(case, image=replace(case.image, array=np.empty(0)))
                    if writing is not None:
                        writing.result()
                    writing = writer.submit(self._write, request, case, labels, peak)
                    del labels
                del case

    def _next(self, requests: Iterator[Request]) -> tuple[Request, Case] | None:
        """Read the next case that can be read; None after the last one."""
        for request in requests:
            with self._failures(request):
                if request.compare:
                    self._answer(Answer(request.job.case, metrics=self._compared(request.job)))
                else:
                    return request, files.read(self._artifact, request.job, self._options)
        return None

    def _write(self, request: Request, case: Case, labels: AnyArray, peak: int) -> None:
        """Write the files of a case, and then what is noted of it."""
        with self._failures(request):
            if request.claim is not None:
                claims.require_held(request.claim)
            predicted = files.write(self._artifact, case, labels, self._options)
            record = self._record(request, case, predicted, self._found(labels), peak)
            records.write(request.target, record)
            self._answer(Answer(request.job.case, predicted, record, predicted.metrics))

    def _found(self, labels: AnyArray) -> dict[str, int]:
        """The voxels of each label that a label map has, but for the background."""
        counts = np.zeros(int(labels.max()) + 1, np.int64)
        for plane in labels:
            counts += np.bincount(plane.ravel(), minlength=len(counts))
        return {str(self._names.get(value, value)): int(count) for value, count in enumerate(counts) if value and count}

    def _record(self, request: Request, case: Case, predicted: Predicted, found: dict[str, int], peak: int) -> Record:
        warnings = [*request.warnings, *([] if found else ["no label was found"])]
        return records.new(
            request.job.case,
            "done",
            self._recipe,
            inputs=[records.described(path, path.name) for path in request.job.channels],
            outputs=[records.described(path, records.name_of(path, request.target)) for path in request.made],
            shape=list(predicted.shape),
            spacing=[float(size) for size in case.image.spacing],
            seconds={step: round(seconds, 4) for step, seconds in predicted.seconds.items()},
            peak_memory_bytes=peak,
            labels=found,
            warnings=warnings,
            metrics=None if predicted.metrics is None else evaluation.jsonable(predicted.metrics),
        )

    def _compared(self, job: Job) -> dict[str, Metrics]:
        """Compare the label map of a case that is done with the one that is right."""
        assert job.reference is not None
        reader = self._artifact.config.reader
        labels, reference = (images.read([path], reader).array for path in (job.path, job.reference))
        files.require_like(reference, labels.shape[1:], job.reference, str(job.path))
        return evaluation.compare(reference[0], labels[0], Evaluated.of(self._artifact.described))

    @contextlib.contextmanager
    def _failures(self, request: Request) -> Iterator[None]:
        """Answer for the case that fails in the block, and take away what was written of it."""
        try:
            yield
        except claims.LostError as error:
            self._answer(Answer(request.job.case, error=error, lost=True))
        except Exception as error:  # noqa: BLE001 (whatever it was, the other cases go on)
            for path in request.made if request.clean else ():
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
            if request.clean and request.job.masks:
                with contextlib.suppress(OSError):
                    request.job.path.rmdir()
            self._answer(Answer(request.job.case, error=subprocesses.translate(error)))
