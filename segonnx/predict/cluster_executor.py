"""Does the cases of a cohort on the workers of a cluster. The client deals: no worker has more than it can do at once.

Dask's scheduler then knows of as many tasks as workers have in hand, however large the cohort is, and a case whose
worker dies comes back to the client, which counts that.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from segonnx.artifacts import transfer
from segonnx.artifacts.transfer import Ask, Parcel
from segonnx.core import cluster, files
from segonnx.core.cluster import Member, SchedulerGoneError
from segonnx.core.slots import Slot, StoppedError, WorkerGoneError
from segonnx.core.subprocesses import Progress
from segonnx.errors import InputError, ResourceError, SegonnxError, StageError, first_line
from segonnx.predict import claims, pipelined, records, remote
from segonnx.predict.bounded import Verified
from segonnx.predict.pipelined import Answer, Request
from segonnx.predict.remote import Run, UnknownRunError

if TYPE_CHECKING:
    from distributed import Client

LOOK_S = 2.0
"""How often is looked for workers that came or went."""
SETTLED_S = 5.0
"""So long after a worker's death other workers are still there: it wasn't the cluster that was shut down."""
PORTERS = 8
"""So many cases' files are on their way to or from workers at the same time."""
CLOSE_S = 5.0
"""How long workers may take to forget a run."""
PATIENCE_S = 60.0
"""How long no worker may be there, unless the user says otherwise."""
UNREADY = 30
"""So many workers may die one after another while they get ready."""
FAILURES = 2
"""So often a worker may fail for a reason that isn't a case's, before it isn't used."""


@dataclass(eq=False)
class _Worker:
    """A worker, as the client sees it.

    Attributes:
        member: The worker.
        slot: Asks it.
        there: It hasn't gone.
        ready: It has the artifacts.
        useless: Why it can't do cases of this run; empty if it can.
        failures: How often it couldn't do one, for another reason than the case.
        alone: What it has in hand must be alone.
        in_hand: The cases that it has.
    """

    member: Member
    slot: Slot = field(init=False)
    there: bool = True
    ready: bool = False
    useless: str = ""
    failures: int = 0
    alone: bool = False
    in_hand: set[str] = field(default_factory=set)

    def is_there(self) -> bool:
        """Whether it hasn't gone."""
        return self.there

    def room(self, *, alone: bool) -> bool:
        """Whether it can take a case."""
        if not (self.ready and self.there) or self.alone:
            return False
        return len(self.in_hand) < (1 if alone else min(self.member.threads, pipelined.DEPTH))


class Cluster:
    """An executor on the workers of a cluster.

    Args:
        client: Connected to the scheduler.
        artifacts: What to predict with: the artifact, and of a cascade the first stage.
        run: What workers are told of the run.
        progress: A progress callback.
        tell: Gets a line for each worker that can't be used, and where none is left.
        patience: The seconds for which no worker may be there.
    """

    def __init__(
        self,
        client: Client,
        artifacts: tuple[Verified, Verified | None],
        run: Run,
        *,
        progress: Progress,
        tell: Callable[[str], object],
        patience: float = PATIENCE_S,
    ) -> None:
        self._client, self._run, self._progress, self._tell = client, run, progress, tell
        self._patience, self._left_alone, self._unready = patience, 0.0, 0
        self._folders = [(one.folder, one.manifest["digest"]) for one in artifacts if one is not None]
        self._workers: dict[str, _Worker] = {}
        self._answers: deque[Answer] = deque()
        self._died: deque[tuple[float, Answer]] = deque()
        self._events: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._stack = contextlib.ExitStack()
        self._hosts: dict[str, threading.Lock] = defaultdict(threading.Lock)
        self._porters = threading.Semaphore(PORTERS)

    def __enter__(self) -> Cluster:
        self._parcels = [
            self._stack.enter_context(Parcel(folder, digest, self._run.bounds)) for folder, digest in self._folders
        ]
        self._look()
        self._thread(self._watch)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        there = [worker.member.address for worker in self._workers.values() if worker.there]
        if there and self._client.status == "running":
            closing = self._thread(partial(self._close, there))
            closing.join(CLOSE_S)
        self._stack.__exit__(kind, error, trace)

    def _close(self, addresses: list[str]) -> None:
        """Have workers forget the run, and end what they do of it."""
        with contextlib.suppress(Exception):  # they may be gone, and so may the scheduler
            self._client.run(remote.close, self._run.name, workers=addresses, on_error="ignore")

    def room(self, *, alone: bool) -> bool:
        """See ``Executor``."""
        return any(worker.room(alone=alone) for worker in self._workers.values())

    def submit(self, request: Request, *, alone: bool) -> None:
        """See ``Executor``."""
        free = [worker for worker in self._workers.values() if worker.room(alone=alone)]
        worker = min(free, key=lambda worker: len(worker.in_hand))
        worker.in_hand.add(request.job.case)
        worker.alone = alone
        self._thread(partial(self._do, worker, request, alone))

    def receive(self) -> Answer | None:
        """See ``Executor``.

        Raises:
            ResourceError: The scheduler is gone, or no worker was there for too long.
            InputError: No worker can be used.
        """
        if not self._answers:
            if not any(worker.ready and worker.there for worker in self._workers.values()):
                self._progress("waiting for a worker that is ready")
            self._require_worker()
            with contextlib.suppress(queue.Empty):
                self._events.get(timeout=LOOK_S)()
        return self._answers.popleft() if self._answers else None

    def _require_worker(self) -> None:
        """See to it that a worker is there, or was not long ago.

        Raises:
            ResourceError: None was for too long.
            InputError: Those that are there can't be used.
        """
        if any(worker.there and not worker.useless for worker in self._workers.values()):
            self._left_alone = 0.0
        elif not self._left_alone:
            self._left_alone = time.monotonic()
            gone = "left" if self._workers else "there"
            where = cluster.address_of(self._client)
            self._tell(f"no worker is {gone} at {where}: waiting {self._patience:g} s for one")
        elif time.monotonic() - self._left_alone > self._patience:
            for worker in self._workers.values():
                if worker.there:
                    raise InputError(f"no worker can be used; {worker.member.address}: {worker.useless}")
            where = cluster.address_of(self._client)
            raise ResourceError(
                f"no worker was there at {where} for {self._patience:g} s: start one, and run this again"
            )

    def _thread(self, work: Callable[[], object]) -> threading.Thread:
        """Run something in a thread. What it raises ends the run: nobody else would hear of it."""

        def run() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 (the thread that receives raises it)
                self._events.put(partial(self._raise, error))

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def _raise(self, error: BaseException) -> None:
        raise error

    def _watch(self) -> None:
        """Look for workers that came or went, now and then."""
        while not self._stop.wait(LOOK_S):
            found = cluster.members(self._client)
            known = {address for address, worker in list(self._workers.items()) if worker.there}
            if known != {member.address for member in found} or (self._died and found):
                self._events.put(partial(self._see, found))

    def _look(self) -> None:
        self._see(cluster.members(self._client))

    def _see(self, found: list[Member]) -> None:
        """Take note of the workers that are there, and have those that are new get ready."""
        while found and self._died and time.monotonic() - self._died[0][0] > SETTLED_S:
            self._answers.append(self._died.popleft()[1])
        addresses = {member.address for member in found}
        for worker in self._workers.values():
            worker.there = worker.there and worker.member.address in addresses
        shares: dict[str, int] = defaultdict(int)
        for member in found:
            shares[member.host] += 1
        for member in found:
            known = self._workers.get(member.address)
            if known is None or not known.there:
                worker = _Worker(member)
                worker.slot = Slot(self._client, member, self._stop, there=worker.is_there)
                self._workers[member.address] = worker
                self._thread(partial(self._prepare, worker, shares[member.host]))

    def _prepare(self, worker: _Worker, share: int) -> None:
        """Bring a worker the artifacts, which its machine keeps, and have it load them."""
        try:
            with self._hosts[worker.member.host]:
                for parcel in self._parcels:
                    parcel.bring(worker.slot.ask)
            self._load(worker, share)
        except StoppedError:
            return
        except WorkerGoneError:
            self._events.put(partial(self._died_unready, worker))
        except SchedulerGoneError:
            raise
        except Exception as error:  # noqa: BLE001 (whatever it was, the others go on)
            self._events.put(partial(self._give_up, worker, error))
        else:
            self._events.put(partial(self._is_ready, worker))

    def _load(self, worker: _Worker, share: int) -> None:
        """Have a worker load the artifacts. What it starts for that may be killed, and is started once more."""
        try:
            worker.slot.ask(remote.prepare, self._run, share)
        except WorkerGoneError:
            raise
        except StageError:
            worker.slot.ask(remote.prepare, self._run, share)

    def _is_ready(self, worker: _Worker) -> None:
        worker.ready, self._unready = True, 0

    def _died_unready(self, worker: _Worker) -> None:
        """Take note of a worker that died while it got ready.

        Raises:
            ResourceError: Too many did.
        """
        self._unready += 1
        if self._unready >= UNREADY:
            raise ResourceError(f"{UNREADY} workers died one after another while they got ready: do they have memory?")
        self._forget(worker)

    def _fails(self, worker: _Worker, error: Exception) -> None:
        """Take note of a worker that couldn't do a case, for a reason that isn't the case's. See ``_give_up``."""
        worker.failures += 1
        if worker.failures >= FAILURES:
            self._give_up(worker, error)

    def _give_up(self, worker: _Worker, error: Exception) -> None:
        """Take note of a worker that can't be used.

        Raises:
            InputError: No other one is left.
        """
        if not worker.useless:
            worker.ready, worker.useless = False, first_line(error)
            self._tell(f"the worker {worker.member.address} isn't used: {error}")
        if all(other.useless for other in self._workers.values()):
            raise InputError(f"no worker can be used; {worker.member.address}: {error}")

    def _do(self, worker: _Worker, request: Request, alone: bool) -> None:
        """Have a worker do a case, and hand on what came of it."""
        case = request.job.case
        try:
            if self._run.seen is None:
                answer = self._sent(worker.slot.ask, request, alone=alone)
            else:
                answer = worker.slot.ask(remote.do, self._run.name, request, alone)
        except StoppedError:
            return
        except claims.LostError as error:
            answer = Answer(case, error=error, lost=True)
        except (WorkerGoneError, UnknownRunError):
            died = StageError(f"the worker {worker.member.address} died with it")
            answer = Answer(case, error=died, died=True, alone=len(worker.in_hand) == 1)
            self._events.put(partial(self._forget, worker))  # another process may have the address
        except SchedulerGoneError:
            raise
        except Exception as error:  # noqa: BLE001 (it isn't the case's: those are answers)
            self._events.put(partial(self._fails, worker, error))
            ours = error if isinstance(error, SegonnxError) else StageError(str(error))
            answer = Answer(case, error=ours, again=True)
        self._events.put(partial(self._hand_back, worker, answer))

    def _forget(self, worker: _Worker) -> None:
        worker.there = False
        self._look()

    def _hand_back(self, worker: _Worker, answer: Answer) -> None:
        if answer.died:  # it stays in the hands of the dead worker: who else was there isn't forgotten
            self._died.append((time.monotonic(), answer))
            return
        worker.in_hand.discard(answer.case)
        worker.alone = worker.alone and bool(worker.in_hand)
        self._answers.append(answer)

    def _sent(self, ask: Ask, request: Request, *, alone: bool) -> Answer:
        """Have a case done whose files are sent, and whose label map is sent back."""
        job = request.job
        read = [job.path] if request.compare else job.channels
        with self._porters:
            sent = {path: transfer.send(ask, path) for path in (*read, *([job.reference] if job.reference else []))}
        given: tuple[Answer, Path] = ask(remote.do_sent, self._run.name, request, sent, alone)
        answer, there = given
        try:
            if answer.record is None or answer.predicted is None:
                return answer
            if request.claim is not None:
                claims.require_held(request.claim)
            with self._porters:
                made = [
                    self._fetched(ask, there, entry, request.target)
                    for entry in reversed(answer.record["outputs"])  # the file that names the others comes last
                ]
            record = answer.record | {
                "inputs": [records.described(path, path.name) for path in job.channels],
                "outputs": made[::-1],
            }
            records.write(request.target, record)
            return replace(answer, record=record, predicted=replace(answer.predicted, path=job.path))
        except SegonnxError as error:
            if isinstance(error, (WorkerGoneError, SchedulerGoneError, claims.LostError)):
                raise
            return Answer(job.case, error=error)
        except OSError as error:
            return Answer(job.case, error=ResourceError(f"can't write {job.path}: {error.strerror or error}"))
        finally:
            with contextlib.suppress(SegonnxError):
                ask(remote.forget, there)

    def _fetched(self, ask: Ask, there: Path, entry: dict[str, object], target: Path) -> dict[str, object]:
        """Get a file that a worker made. The answer is how a record has it.

        Raises:
            StageError: Other bytes came.
            ResourceError: It can't be written.
        """
        name, size = str(entry["file"]), int(str(entry["bytes"]))
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.staging(path) as folder:
            made = folder / path.name
            with made.open("xb") as file:
                for offset in range(0, size, transfer.BLOCK):
                    file.write(ask(transfer.read, there / name, offset))
            if files.sha256(made) != entry["sha256"]:
                raise StageError(f"{path} came with other bytes than the worker made")
            files.publish(made, path, check=files.require_replaceable)
        return records.described(path, name)
