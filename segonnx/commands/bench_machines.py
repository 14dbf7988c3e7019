"""``segonnx bench --scheduler``: a plan on one machine of every kind whose worker has a slot for it."""

from __future__ import annotations

import contextlib
import platform
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segonnx.artifacts import transfer
from segonnx.artifacts.transfer import Ask, Parcel
from segonnx.bench import machines, run
from segonnx.bench.machines import Machines
from segonnx.bench.plan_file import Network, Plan
from segonnx.bench.result import Result
from segonnx.commands import bench_plan
from segonnx.commands.bench_plan import Work
from segonnx.core import cluster, hardware, slots, subprocesses
from segonnx.core.cluster import Member
from segonnx.core.slots import Crew, Slot, WorkerGoneError
from segonnx.core.subprocesses import Progress
from segonnx.errors import InputError, ResourceError, SegonnxError

if TYPE_CHECKING:
    from distributed import Client

RESOURCE = "bench"
"""The resource of a worker that may time: one a machine."""
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Machine:
    """A machine that is timed.

    Attributes:
        member: its worker.
        described: as ``hardware.describe`` gives it.
        host: the same for all workers of one machine, in containers or not.
        title: tells it from the others that are timed.
    """

    member: Member
    described: dict[str, Any]
    host: str
    title: str = ""


@dataclass(frozen=True)
class Part:
    """What one network of a plan gave on one machine.

    Attributes:
        result: its rows, with the machine.
        failed: a line for each row that failed, though its runtime is there.
    """

    result: Result
    failed: list[str]


@dataclass
class Found:
    """What a plan gave.

    Attributes:
        parts: of all machines.
        missing: a line for each machine that lacks rows.
        interrupted: the user stopped it.
    """

    parts: list[Part] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    interrupted: bool = False

    @property
    def failed(self) -> list[str]:
        """A line for each row that failed, and for each machine that lacks rows."""
        return [line for part in self.parts for line in part.failed] + self.missing

    def machines(self) -> Machines:
        """The result of all machines."""
        told = ["interrupted: what had been measured until then is here"] if self.interrupted else []
        whole = machines.together(Machines([part.result]) for part in self.parts)
        return Machines(whole.results, [*told, *self.missing])


OnPart = Callable[[str, Part], object]
"""Called with the title of a machine and what a network gave there, as it comes."""


def chosen(client: Client, progress: Progress) -> list[Machine]:
    """The first machine of each kind that has a slot.

    Args:
        client: connected to the scheduler.
        progress: progress callback.

    Raises:
        InputError: no worker has a slot.
        ResourceError: the scheduler is gone.
    """
    members = [member for member in cluster.members(client) if member.resources.get(RESOURCE, 0) >= 1]
    if not members:
        raise InputError(
            f"no worker of the scheduler has the resource {RESOURCE}: start one on each machine with `dask worker "
            f'ADDRESS --nthreads 1 --resources "{RESOURCE}=1"`'
        )
    crew = Crew()
    found: dict[str, Machine] = {}

    def ask(member: Member) -> None:
        with contextlib.suppress(WorkerGoneError):  # then it isn't there
            described, host = Slot(client, member, crew.stop, {RESOURCE: 1}).ask(describe)
            found[member.address] = Machine(member, described, host)

    progress(f"waiting for a slot on {', '.join(member.address for member in members)}")
    crew.run(partial(ask, member) for member in members)
    first: list[Machine] = []
    for machine in sorted(found.values(), key=lambda own: (str(own.described["cpu"]), own.member.address)):
        if all(machines.unlike(one.described, machine.described) for one in first):
            first.append(machine)
    titles = machines.titles([one.described for one in first])
    return [Machine(one.member, one.described, one.host, title) for one, title in zip(first, titles, strict=True)]


def bench(client: Client, timed: Sequence[Machine], work: Work, on_part: OnPart, progress: Progress) -> Found:
    """Run a plan on machines, at most one worker of each at a time.

    An interrupt from the keyboard ends it on all of them; what networks gave until then is kept. A worker that dies, or
    a scheduler, takes away what it hadn't given yet.

    Args:
        client: connected to the scheduler.
        timed: the machines.
        work: the plan, and where its artifacts are here.
        on_part: gets what comes, as it comes.
        progress: progress callback.
    """
    found, crew = Found(), Crew()
    hosts: dict[str, list[Machine]] = defaultdict(list)
    for machine in timed:
        hosts[machine.host].append(machine)

    def receive(machine: Machine, part: Part) -> None:
        found.parts.append(part)
        on_part(machine.title, part)

    def lack(machine: Machine, networks: Sequence[Network], why: object) -> None:
        names = ", ".join(network.name for network in networks)
        found.missing.append(f"{machine.title} has no rows of {names}: {why}")

    def tell(prefix: str, step: str, /) -> None:
        crew.say(partial(progress, prefix + step))

    def time_one(machine: Machine) -> None:
        slot = Slot(client, machine.member, crew.stop, {RESOURCE: 1})
        for number, part in enumerate(parts):
            (network,) = part.networks

            step = partial(tell, f"{machine.title}: {network.name}: ")
            try:
                given = cargo.bring(slot.ask, network, step)
                step("timing")
                done = slot.ask(time_part, part, given)
            except WorkerGoneError as error:
                crew.say(partial(lack, machine, work.plan.networks[number:], error))
                return
            except SegonnxError as error:
                if client.status != "running":
                    raise
                crew.say(partial(lack, machine, [network], error))
            else:
                crew.say(partial(receive, machine, done))

    def time_all(one_host: Sequence[Machine]) -> None:
        for machine in one_host:
            time_one(machine)

    parts = work.plan.parts()
    with Cargo(work) as cargo:
        try:
            crew.run(partial(time_all, own) for own in hosts.values())
        except KeyboardInterrupt:
            found.interrupted = True
        except ResourceError as error:
            found.missing.append(str(error))
    return found


class Cargo(contextlib.AbstractContextManager["Cargo"]):
    """What machines need of this one: the artifacts of a plan, and its input."""

    def __init__(self, work: Work) -> None:
        self._stack = contextlib.ExitStack()
        bounds = work.plan.settings.bounds
        self._parcels = {
            target.digest: self._stack.enter_context(Parcel(target.artifact, target.digest, bounds))
            for target in work.targets
            if target.artifact is not None and target.digest is not None
        }
        self._input: Path | None = None
        if work.x is not None:
            folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="segonnx-"))
            self._input = Path(folder) / "input.npy"
            np.save(self._input, work.x)

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def bring(self, ask: Ask, network: Network, progress: Progress) -> Path | None:
        """See to it that a machine has what a network needs. Returns where the input for all is there, if there is one.

        Raises:
            SegonnxError: it can't be brought.
        """
        if network.artifact is not None:
            self._parcels[network.artifact].bring(ask, progress)
        return None if self._input is None else transfer.share(ask, self._input, progress)


def describe() -> tuple[dict[str, Any], str]:
    """What this machine is, and what all of its workers call it."""
    try:
        host = _BOOT.read_text("ascii").strip()
    except OSError:  # not Linux
        host = platform.node()
    return hardware.describe(), host


def time_part(plan: Plan, given: Path | None) -> Part:
    """Run a plan of one network here, on a worker of a cluster, in a process that ends with the task.

    Args:
        plan: the plan.
        given: file of the input for all.
    """
    return subprocesses.call(_time_part, plan, given, progress=slots.while_wanted).value


def _time_part(plan: Plan, given: Path | None, progress: Progress) -> Part:
    digests = [one.artifact for one in plan.networks if one.artifact is not None]
    with contextlib.ExitStack() as stack:
        folders = {digest: stack.enter_context(transfer.in_use(digest)) for digest in digests}
        work = bench_plan.planned(plan, folders, given, progress)
        result = run.bench(work.targets, plan.here(), work.x, lambda _: None, progress)
    return Part(result, bench_plan.failed(result))
