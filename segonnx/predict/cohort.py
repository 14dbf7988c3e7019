"""Predicts the cases of a folder: what is done stays, a case that fails doesn't end the run, and a killed run goes on.

What a case was made of, what was made of it and how is noted beside the label maps, once they are written
(``records``). What a run has in hand is claimed by files (``claims``).
"""

from __future__ import annotations

import heapq
import os
import time
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from segonnx._version import __version__
from segonnx.artifacts.manifest import Manifest
from segonnx.core import files, subprocesses
from segonnx.core.subprocesses import Progress
from segonnx.errors import CheckFailed, InputError, ResourceError, SegonnxError
from segonnx.predict import evaluation, nnunet_files, predictor, records
from segonnx.predict import files as case_files
from segonnx.predict.bounded import Verified
from segonnx.predict.claims import RUNS, Claims, State
from segonnx.predict.config import InferenceConfig
from segonnx.predict.evaluation import SUMMARY, Metrics
from segonnx.predict.executors import Executor
from segonnx.predict.files import FileOptions, Inputs, Job, Predicted
from segonnx.predict.pipelined import Request
from segonnx.predict.records import FOLDER, Recipe, Record, Report
from segonnx.predict.tasks import Task

POLL_S = 1.0
"""How often is looked for what other processes have in hand, once nothing else is left."""

Status = Literal["done", "before", "failed", "refused", "left", "elsewhere"]
"""What came of a case: done now or before; not done, for a reason; or in the hands of another process."""
NOT_DONE: tuple[Status, ...] = ("failed", "refused", "left")
"""What shouldn't be."""


@dataclass(frozen=True)
class Ended:
    """What came of a case.

    Attributes:
        case: The case's name.
        status: What came of it.
        predicted: The case, if it is done now.
        error: Why it isn't done, if it should be.
    """

    case: str
    status: Status
    predicted: Predicted | None = None
    error: SegonnxError | None = None


@dataclass(frozen=True)
class CohortOptions:
    """How the cases of a folder are gone through.

    Attributes:
        part: Which part of how many is done, counted from 1. None does all.
        fail_fast: The first case that fails ends the run.
        report: The file that gets a line for each case that ended.
    """

    part: tuple[int, int] | None = None
    fail_fast: bool = False
    report: Path | None = None


@dataclass(frozen=True)
class _Described:
    """What is known of an artifact that isn't loaded; see ``files.Described``."""

    described: Manifest
    config: InferenceConfig
    task: Task | None


@dataclass(frozen=True)
class _Item:
    """A case that is to be done.

    Attributes:
        job: What is to be done.
        alone: It is done with no other one beside it.
        begun: A process of ours began it, and died: what stands at its place is ours.
        compare: It is done, and to be compared.
        warnings: What is known of it already, a line each.
    """

    job: Job
    alone: bool = False
    begun: bool = False
    compare: bool = False
    warnings: tuple[str, ...] = ()


def recipe(artifacts: tuple[Verified, Verified | None], options: FileOptions) -> Recipe:
    """What decides on the labels of a case, beside its image.

    Args:
        artifacts: What to predict with: the artifact, and of a cascade the first stage.
        options: How the files are predicted.
    """
    artifact, previous = artifacts
    return {
        "artifact": artifact.manifest["digest"],
        "previous": None if previous is None else previous.manifest["digest"],
        "options": {
            "mirror": options.mirror and bool(artifact.config.mirror_axes),
            "step": artifact.config.step if options.step is None else options.step,
            "postprocess": options.postprocess and bool(artifact.config.postprocessing),
            "nan_as_zero": options.nan_as_zero,
            "probabilities": options.probabilities,
            "roi_subset": None if options.roi_subset is None else list(options.roi_subset),
            "remove_small_blobs": options.remove_small_blobs,
            "one_file_per_class": options.one_file_per_class,
        },
    }


def deal(sizes: Sequence[int], part: int, parts: int) -> list[int]:
    """Deal cases into parts of about the same size: the largest first, each to the part that has least.

    Args:
        sizes: The size of each case, in the order of their names.
        part: The part that is wanted, counted from 1.
        parts: How many parts there are.

    Returns:
        The numbers of its cases, in their order.
    """
    heap = [(0, number) for number in range(1, parts + 1)]
    mine = []
    for case in sorted(range(len(sizes)), key=lambda case: (-sizes[case], case)):
        size, number = heap[0]
        heapq.heapreplace(heap, (size + max(1, sizes[case]), number))
        if number == part:
            mine.append(case)
    return sorted(mine)


def _names(folder: Path) -> set[str]:
    """The names in a folder; none where there is none."""
    try:
        with os.scandir(folder) as found:
            return {entry.name for entry in found}
    except OSError:
        return set()


class Cohort:
    """The cases of a folder.

    Args:
        artifacts: What to predict with: the artifact, and of a cascade the first stage.
        source: A folder of files ``CASE_0000.nii.gz``, ``CASE_0001.nii.gz``, ...
        target: A folder that gets a file of each case's name.
        options: How the files are predicted.
        how: How the cases are gone through.
        progress: A progress callback.

    Attributes:
        cases: The number of cases in the folder.
        mine: The number of those that this process does.
        part: Which part of how many they are. None if all are done.
        recipe: What is noted of how they are predicted.
        name: The run's, which no other one has.
        mark: A file beside the label maps that is there as long as the run.
        ended: What came of each of them, as far as it has ended.

    Raises:
        InputError: There is no case, or something is wrong that isn't a case's.
    """

    def __init__(
        self,
        artifacts: tuple[Verified, Verified | None],
        source: Path,
        target: Path,
        options: FileOptions,
        how: CohortOptions,
        progress: Progress = subprocesses.silent,
    ) -> None:
        artifact, previous = artifacts
        self._target, self._options, self._how, self._progress = target, options, how, progress
        described, task = predictor.described(artifact.folder, artifact.manifest)
        self._artifact = _Described(described, artifact.config, task)
        case_files.require(self._artifact, options, previous=previous is not None, several=True)
        if options.evaluate is not None and how.part is not None:
            raise InputError("--evaluate compares all cases: leave it out of the parts, and --part out of a last run")
        self._described = nnunet_files.descriptions(described) if options.probabilities else {}
        for name, content in self._described.items():
            case_files.require_same(target / name, content, options)
        self.part, self.recipe = how.part, recipe(artifacts, options)
        self.name, self._folder = uuid.uuid4().hex, target / FOLDER / "claims"
        self.mark = self._folder / RUNS / self.name
        self._report = None if how.report is None else Report(how.report)
        self.ended: dict[str, Ended] = {}
        self._metrics: dict[str, dict[str, Metrics]] = {}
        self._why: dict[str, str] = {}
        self._todo: deque[_Item] = deque()
        self._alone: deque[_Item] = deque()
        self._elsewhere: list[_Item] = []
        self._in_hand: dict[str, _Item] = {}
        self._began: float | None = None
        self._bytes_done = 0
        progress("looking for cases")
        self._list(source)

    def _list(self, source: Path) -> None:
        """List the cases of this part."""
        wrong: dict[str, str] = {}
        found = case_files.jobs(self._artifact, source, self._target, self._options, wrong)
        self._inputs = Inputs(found)
        if self._options.evaluate is not None:
            self._inputs.require_free(self._target / SUMMARY, overwrite=self._options.overwrite)
        sizes = {job.case: sum(self._inputs.bytes[file] for file in job.channels) for job in found}
        sizes |= dict.fromkeys(wrong.keys() - sizes.keys(), 0)
        names = sorted(sizes)
        self.cases = len(names)
        if self._how.part is not None:
            names = [names[number] for number in deal([sizes[name] for name in names], *self._how.part)]
        mine = set(names)
        self.mine, self._sizes = len(names), {name: sizes[name] for name in names}
        self._wrong = {name: said for name, said in sorted(wrong.items()) if name in mine}
        self._jobs = [job for job in sorted(found, key=lambda job: job.case) if job.case in mine]

    @property
    def not_done(self) -> list[Ended]:
        """What should be done and isn't."""
        return [ended for ended in self.ended.values() if ended.status in NOT_DONE]

    def remaining_s(self) -> float | None:
        """The seconds that are left, if cases take as long by their size as those that ended; None before any has."""
        if self._began is None or not self._bytes_done:
            return None
        left = [*self._todo, *self._alone, *self._in_hand.values()]
        bytes_left = sum(self._sizes[item.job.case] for item in left if not item.compare)
        return (time.monotonic() - self._began) * bytes_left / self._bytes_done

    def predict(self, executor: Executor, *, carried: bool = True) -> Iterator[Ended]:
        """Do the cases.

        Args:
            executor: What does them. It is entered and left.
            carried: Whether it dies with this process.

        Yields:
            Each case, once it has ended.

        Raises:
            SegonnxError: Something is wrong that isn't a case's; a case failed, and that is to end the run; or every
                case is refused, which is wrong use: it names the first.
        """
        held: list[Ended] = []
        only_refused = True
        for ended in self._predict(executor, carried=carried):
            held.append(ended)
            only_refused = only_refused and ended.status == "refused"
            if not only_refused:
                yield from held
                held.clear()
        if held:
            others = f" ({len(held) - 1:,} more cases are refused)" if len(held) > 1 else ""
            raise InputError(f"{held[0].error}{others}")
        self._write_summary()

    def _predict(self, executor: Executor, *, carried: bool) -> Iterator[Ended]:
        for name, said in self._wrong.items():
            yield self._not_done(name, "refused", InputError(said))
        if not self._jobs:
            return
        with Claims(self._folder, carried=carried, name=self.name) as self._claims:
            yield from self._look()
            with executor:
                while True:
                    yield from self._feed(executor)
                    if self._in_hand or self._todo or self._alone:
                        yield from self._receive(executor)
                    elif not self._wait():
                        break
            for item in self._elsewhere:
                yield self._end(item.job.case, "elsewhere")

    def _look(self) -> Iterator[Ended]:
        """Find out which cases are done."""
        noted, claimed = _names(self._target / FOLDER / "done"), _names(self._folder)
        for number, job in enumerate(self._jobs):
            if number % 100 == 0:
                self._progress(f"looking for what is done: {number:,} of {self.mine:,}")
            if f"{job.case}.json" not in noted or (record := self._done(job)) is None:
                self._todo.append(_Item(job))
                continue
            if f"{job.case}.1" in claimed:
                self._claims.tidy(job.case)
            if job.reference is None:
                yield self._before(job, record)
            else:
                self._todo.append(_Item(job, compare=True))

    def _done(self, job: Job) -> Record | None:
        """What is noted of a case that is done as it would be done now; None where it isn't."""
        record = records.read(self._target, job.case)
        if record is None:
            return None
        why = records.differs(record, self.recipe)
        why = why or records.changed(record, self._target, {path.name: path for path in job.channels})
        why = why or records.lacks(record, self._target, job.made(self._artifact.config, self._options))
        if self._options.overwrite and record["segonnx"] != __version__:
            why = f"made by segonnx {record['segonnx']}"
        if why is None:
            return record
        self._why[job.case] = why
        return None

    def _feed(self, executor: Executor) -> Iterator[Ended]:
        """Submit cases while there is room: those that a process died with, or that found no memory, last and alone."""
        while self._todo and executor.room(alone=False):
            yield from self._begin(self._todo.popleft(), executor)
        while not self._todo and self._alone and executor.room(alone=True):
            yield from self._begin(self._alone.popleft(), executor)

    def _begin(self, item: _Item, executor: Executor) -> Iterator[Ended]:
        """Claim a case and submit it, unless it is done, another process's, or in the way of something."""
        job = item.job
        if item.compare:
            self._submit(Request(job, self._target, compare=True), item, executor)
            return
        answer = self._claims.take(job.case, suspect=item.alone)
        if answer.state is State.ELSEWHERE:
            self._elsewhere.append(item)
        elif answer.state is State.SUSPECT:
            self._alone.append(replace(item, alone=True, warnings=("a process died with it before",)))
        elif answer.state is State.LEFT:
            if (record := self._done(job)) is not None:  # and died before it gave up the case
                self._claims.tidy(job.case)
                yield self._before(job, record)
                return
            # What stands there may be a dead process's, or by now a user's own: it stays.
            there = [path for path in job.made(self._artifact.config, self._options) if os.path.lexists(path)]
            said = (
                f"two processes died with it alone in hand: to have it tried again, remove {self._folder / job.case}.*"
                + "".join(f" and {path}" for path in there)
            )
            yield self._not_done(job.case, "left", CheckFailed(said))
        elif (record := self._done(job)) is not None:  # another process was quicker
            self._claims.release(job.case)
            yield self._before(job, record)
        else:
            try:
                made = self._require_free(job, ours=item.begun or answer.begun)
            except SegonnxError as error:
                self._claims.release(job.case)
                yield self._not_done(job.case, "refused", error)
                return
            claim = self._claims.held(job.case)
            request = Request(job, self._target, made, not self._options.overwrite, claim, warnings=item.warnings)
            self._submit(request, item, executor)

    def _submit(self, request: Request, item: _Item, executor: Executor) -> None:
        self._began = self._began or time.monotonic()
        self._in_hand[item.job.case] = item
        executor.submit(request, alone=item.alone)

    def _require_free(self, job: Job, *, ours: bool) -> tuple[Path, ...]:
        """See to it that a case's files can be written.

        Args:
            job: The case.
            ours: What stands in their place was left by a process of ours that died.

        Returns:
            The files.

        Raises:
            InputError: Something stands there that is to stay.
        """
        made = job.made(self._artifact.config, self._options)
        for path in made:
            try:
                self._inputs.require_free(path, overwrite=self._options.overwrite or ours)
            except InputError as error:
                if job.case in self._why and not self._options.overwrite:
                    raise InputError(f"{path} exists, {self._why[job.case]}: --overwrite replaces it") from error
                raise
        return tuple(made)

    def _receive(self, executor: Executor) -> Iterator[Ended]:
        """Wait for an answer, and note what it says."""
        if (answer := executor.receive()) is None:
            return
        item = self._in_hand.pop(answer.case)
        if answer.error is None:
            if answer.metrics is not None:
                self._metrics[answer.case] = answer.metrics
            if item.compare:
                yield self._end(answer.case, "before")
                return
            self._claims.release(answer.case)
            for name, content in self._described.items():
                case_files.require_same(self._target / name, content, self._options)
                files.write(self._target / name, content)
            self._described = {}
            yield self._end(answer.case, "done", answer.predicted, record=answer.record)
        elif answer.lost:
            self._claims.release(answer.case)
            self._elsewhere.append(item)
        elif answer.died:
            if not item.compare:
                self._claims.died(answer.case, alone=answer.alone)
            self._again(item, f"tried again alone: {answer.error}")
        elif subprocesses.ran_out_of_disk(answer.error):
            raise answer.error
        elif answer.again or (isinstance(answer.error, ResourceError) and not item.alone):
            self._again(item, f"tried again alone: {answer.error}")
        else:
            if not item.compare:
                self._claims.release(answer.case)
            yield self._not_done(answer.case, "failed", answer.error)

    def _again(self, item: _Item, why: str) -> None:
        """Try a case again, last and alone."""
        self._alone.append(replace(item, alone=True, begun=True, warnings=(*item.warnings, why)))

    def _wait(self) -> bool:
        """Wait a moment for what other processes have in hand. False where nothing is, that is worth waiting for."""
        items = [item for item in self._elsewhere if not self._claims.moves(item.job.case)]
        if not items:
            return False
        self._progress(f"waiting for {len(items)} cases that other processes have in hand")
        time.sleep(POLL_S)
        self._todo.extend(items)
        self._elsewhere = [item for item in self._elsewhere if item not in items]
        return True

    def _before(self, job: Job, record: Record) -> Ended:
        if self._report is not None:
            known = self._report.known.get(job.case)
            if known is None or known["status"] != "done" or known["ended"] != record["ended"]:
                self._report.append(record, self.cases)
        return self._end(job.case, "before")

    def _not_done(self, case: str, status: Literal["failed", "refused", "left"], error: SegonnxError) -> Ended:
        """Note a case that should be done and isn't.

        Raises:
            SegonnxError: That is to end the run.
        """
        record = records.new(case, status, self.recipe, error=str(error))
        ended = self._end(case, status, error=error, record=record)
        if self._how.fail_fast:
            raise error
        return ended

    def _end(
        self,
        case: str,
        status: Status,
        predicted: Predicted | None = None,
        error: SegonnxError | None = None,
        record: Record | None = None,
    ) -> Ended:
        if record is not None and self._report is not None:
            self._report.append(record, self.cases)
        if status in ("done", "failed"):
            self._bytes_done += self._sizes[case]
        self.ended[case] = Ended(case, status, predicted, error)
        return self.ended[case]

    def _write_summary(self) -> None:
        """Write how well all label maps agree with those that are right, if they were compared."""
        compared = evaluation.Evaluation()
        for job in self._jobs:
            if job.case in self._metrics:
                assert job.reference is not None
                compared.add(job.reference, job.path, self._metrics[job.case])
        if compared.cases:
            files.write(self._target / SUMMARY, compared.text())
