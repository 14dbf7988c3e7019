"""Claims: which process has which case of a folder in hand, so that no two do the same, and none waits for a dead one.

A run has a file whose age tells whether it lives, and each of its cases a file that names the run. A claim of a dead
run isn't removed: the next one has the next number. Making a file that isn't there yet is the one thing that storage
shared by machines does at once, and locks are what it may not have.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import platform
import threading
import uuid
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_args

import psutil

from segonnx.core import documents, files
from segonnx.errors import ResourceError, SegonnxError

HEARTBEAT_S = 10.0
"""How often a run says that it lives."""
EXPIRED_S = 120.0
"""The age at which a run is dead that isn't known to be: storage may tell of a file a minute late."""
ATTEMPTS = 2
"""So many processes may die with a case alone in hand, before it is left."""
RUNS = "runs"
"""The folder for the files of runs, in that of the claims."""
MAX_BYTES = 2**12
"""No claim's file is larger."""
_UNMADE = ".claim-"
"""How the name of a file begins that a run makes a claim of."""
Sign = Literal["none", "among others", "alone"]
"""What the death of a claim's run says of the case: nothing; that it may be why; or that nothing else was in hand."""
_LOGGER = logging.getLogger("segonnx.claims")


class State(Enum):
    """What came of asking for a case."""

    TAKEN = "it is ours"
    ELSEWHERE = "a process that lives has it"
    SUSPECT = "a process died with it"
    LEFT = "so many processes died with it alone in hand that nobody tries it again"


@dataclass(frozen=True)
class Answer:
    """What came of asking for a case.

    Attributes:
        state: Whether it is ours, or why not.
        begun: An earlier run that is dead began it: what stands at its place may be that one's.
    """

    state: State
    begun: bool = False


class Claims:
    """The claims of this run on the cases of a folder. A context manager: what is still held at its end is given up.

    Args:
        folder: The folder for claims; it is made.
        carried: The cases are in this process, or one that dies with it: where it dies, they may be why.
        name: The run's, which no other one has. None makes one.
    """

    def __init__(self, folder: Path, *, carried: bool = True, name: str | None = None) -> None:
        self._folder, self._carried = folder, carried
        self._runs = folder / RUNS
        self._name = name or uuid.uuid4().hex
        self._held: dict[str, int] = {}
        self._seen: dict[str, float] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True)

    def __enter__(self) -> Claims:
        try:
            self._runs.mkdir(parents=True, exist_ok=True)
            self._beat()
            self._clear_runs()
        except OSError as error:
            raise ResourceError(f"can't write to {self._folder}: {error.strerror or error}") from error
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            for case, number in self._held.items():
                self.path(case, number).write_text(self._text("none"), "ascii")
            (self._runs / self._name).unlink(missing_ok=True)

    def path(self, case: str, number: int) -> Path:
        """The file of a claim."""
        return self._folder / f"{case}.{number}"

    def take(self, case: str, *, suspect: bool = False) -> Answer:
        """Ask for a case.

        Args:
            case: The case's name.
            suspect: Take it although a process died with it. It is alone in hand, then.

        Raises:
            ResourceError: The folder can't be written to.
        """
        number, suspected, dead = 1, False, 0
        while True:
            try:
                found = self._claim(case, number)
                if found is None:
                    if dead >= ATTEMPTS:
                        return Answer(State.LEFT)
                    if suspected and not suspect:
                        return Answer(State.SUSPECT)
                    if self._make(case, number, "alone" if suspect else "among others"):
                        return Answer(State.TAKEN, begun=number > 1)
                    continue  # another was quicker
            except OSError as error:
                raise ResourceError(f"can't write to {self._folder}: {error.strerror or error}") from error
            if found["run"] == self._name:
                return Answer(State.TAKEN, begun=number > 1)
            if self._lives(found["run"], self.path(case, number)):
                return Answer(State.ELSEWHERE)
            suspected = suspected or found["death"] != "none"
            dead += found["death"] == "alone"
            number += 1

    def held(self, case: str) -> Path | None:
        """The file of our claim; None where we have none."""
        return self.path(case, self._held[case]) if case in self._held else None

    def release(self, case: str) -> None:
        """Give up a case that is done, or failed, with all earlier claims on it."""
        number = self._held.pop(case)
        for each in range(1, number + 1):
            with contextlib.suppress(OSError):
                self.path(case, each).unlink()

    def tidy(self, case: str) -> None:
        """Remove what dead runs claimed of a case that is done."""
        number = 1
        while (found := self._claim(case, number)) is not None and not self._lives(
            found["run"], self.path(case, number)
        ):
            with contextlib.suppress(OSError):
                self.path(case, number).unlink()
            number += 1

    def died(self, case: str, *, alone: bool) -> None:
        """Say that a process of another machine died with a case of ours in hand, and give it up.

        Args:
            case: The case's name.
            alone: It had nothing else in hand.
        """
        sign: Sign = "alone" if alone else "among others"
        with contextlib.suppress(OSError):
            self.path(case, self._held.pop(case)).write_text(self._text(sign, run="died"), "ascii")

    def moves(self, case: str) -> bool:
        """Whether the run that has a case was seen to say twice that it lives: it isn't worth waiting for."""
        number = 1
        while (found := self._claim(case, number + 1)) is not None:
            number += 1
        found = self._claim(case, number)
        if found is None:
            return False
        age = _modified(self._runs / found["run"])
        before = self._seen.setdefault(found["run"], age)
        return age > before

    def _make(self, case: str, number: int, sign: Sign) -> bool:
        """Make the file of a claim, whole or not at all; False where it is there."""
        path, text = self.path(case, number), self._text(sign if self._carried else "none")
        unmade = self._runs / f"{_UNMADE}{self._name}"
        try:
            unmade.write_text(text, "ascii")
            try:
                os.link(unmade, path)
            except FileExistsError:
                raise
            except OSError:  # storage without hard links: one that is killed here leaves a cut claim
                with path.open("x", encoding="ascii") as file:
                    file.write(text)
        except FileExistsError:
            return False
        finally:
            unmade.unlink(missing_ok=True)
        self._held[case] = number
        return True

    def _text(self, death: Sign, *, run: str | None = None) -> str:
        return json.dumps({"run": run or self._name, "death": death}) + "\n"

    def _claim(self, case: str, number: int) -> dict[str, Any] | None:
        """What a claim says; None where there is none. One that was cut is a sign, and of a run that isn't known."""
        path = self.path(case, number)
        if not os.path.lexists(path):
            return None
        with contextlib.suppress(SegonnxError):
            content = documents.read(path, MAX_BYTES)
            if isinstance(content, dict) and type(content.get("run")) is str and content.get("death") in get_args(Sign):
                return content
        return {"run": "", "death": "among others"}

    def _lives(self, run: str, claim: Path) -> bool:
        """Whether a run isn't known to be dead."""
        path = self._runs / Path(run).name if run else claim
        try:
            content = documents.read(path, MAX_BYTES) if run else {}
        except SegonnxError:
            if not os.path.lexists(path):
                return False  # it ended and left no word
            content = {}
        here = isinstance(content, dict) and content.get("where") == _where()
        if here and not _runs_here(content.get("process"), content.get("began")):
            return False
        return self._beat() - _modified(path) < EXPIRED_S  # a process of this machine may stand still for ever, too

    def _beat(self) -> float:
        """Say that this run lives. The answer is the time as the storage has it, which may not be this machine's."""
        path = self._runs / self._name
        try:
            os.utime(path)
        except FileNotFoundError:
            process = psutil.Process()
            content = {"where": _where(), "process": process.pid, "began": process.create_time()}
            files.write(path, json.dumps(content | {"host": platform.node()}) + "\n")
            os.utime(path)
        return _modified(path)

    def _live(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            try:
                self._beat()
            except (OSError, SegonnxError) as error:
                _LOGGER.info("the claims can't be kept: %s", error)

    def _clear_runs(self) -> None:
        """Remove the files of runs that are dead: a claim that names one that isn't there is a dead one's."""
        for path in self._runs.iterdir():
            run = path.name.removeprefix(_UNMADE)
            if not run.startswith(".") and run != self._name and not self._lives(run, path):
                path.unlink(missing_ok=True)


def require_held(claim: Path) -> None:
    """See to it that a claim holds: nobody took it over while this process stood still.

    Args:
        claim: The file of the claim.

    Raises:
        LostError: Somebody did.
    """
    base, number = claim.name.rsplit(".", 1)
    if not claim.exists() or claim.with_name(f"{base}.{int(number) + 1}").exists():
        raise LostError(f"another process took {base} over")


class LostError(SegonnxError):
    """A case is another process's now."""


def _modified(path: Path) -> float:
    """When a file was last written to; opening it makes shared storage look. 0 where it isn't there."""
    try:
        with files.opened(path, follow=False) as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return 0.0


@functools.cache
def _where() -> str:
    """What processes have in common that can look for each other by their numbers."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').stat().st_ino}"
    return platform.node()


def _runs_here(process: object, began: object) -> bool:
    """Whether a process of this machine runs that had this number when it began."""
    if type(process) is not int or type(began) is not float:
        return False
    try:
        found = psutil.Process(process)
        return abs(found.create_time() - began) < 1.0 and found.status() not in (
            psutil.STATUS_ZOMBIE,  # it was killed, and nobody has asked how it ended
            psutil.STATUS_DEAD,
        )
    except psutil.Error:
        return False
