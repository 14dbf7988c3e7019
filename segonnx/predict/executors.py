"""What does the cases of a cohort on this machine: a process that has bounds, and is started anew where it dies."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from dataclasses import replace
from types import TracebackType
from typing import Protocol

from segonnx.core import subprocesses
from segonnx.core.subprocesses import Bounds, Conversation, Progress
from segonnx.errors import ResourceError, StageError
from segonnx.predict import pipelined
from segonnx.predict.bounded import Verified
from segonnx.predict.files import FileOptions
from segonnx.predict.pipelined import Answer, Request
from segonnx.predict.records import Recipe


class Executor(Protocol):
    """What does cases. A context manager."""

    def __enter__(self) -> Executor: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def room(self, *, alone: bool) -> bool:
        """Whether a case can be submitted; ``alone`` so that a process has no other one beside it."""

    def submit(self, request: Request, *, alone: bool) -> None:
        """Have a case done."""

    def receive(self) -> Answer | None:
        """The next answer, once it is there. None where there may be room now that wasn't before.

        Raises:
            SegonnxError: Something is wrong that isn't a case's.
        """


class Local:
    """An executor on this machine. One thread receives, and any may submit.

    Args:
        artifacts: What to predict with: the artifact, and of a cascade the first stage.
        options: How the files are predicted.
        recipe: What of that is noted.
        threads: The number of ONNX Runtime's threads. None takes all cores.
        bounds: Of the process. Its ``timeout`` holds for loading, a window, and each other step.
        progress: A progress callback. It gets the name of each step.
    """

    def __init__(
        self,
        artifacts: tuple[Verified, Verified | None],
        options: FileOptions,
        recipe: Recipe,
        *,
        threads: int | None,
        bounds: Bounds,
        progress: Progress,
    ) -> None:
        mapped = sum(artifact.mapped for artifact in artifacts if artifact is not None)
        self._bounds = replace(bounds, mapped=mapped)
        self._arguments = (artifacts, options, recipe, threads, bounds.timeout)
        self._progress = progress
        self._lock = threading.Lock()
        self._stack = contextlib.ExitStack()
        self._talk: Conversation[Request, Answer] | None = None
        self._loaded = self._alone = False
        self._in_hand: dict[str, Request] = {}
        self._dead: deque[Answer] = deque()

    def __enter__(self) -> Local:
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._stack.__exit__(kind, error, trace)
            self._stack, self._talk = contextlib.ExitStack(), None
            self._in_hand.clear()

    def room(self, *, alone: bool) -> bool:
        """See ``Executor``."""
        most = 1 if alone or self._alone else pipelined.DEPTH
        return not self._dead and len(self._in_hand) < most

    def submit(self, request: Request, *, alone: bool) -> None:
        """See ``Executor``."""
        with self._lock:
            self._alone = alone
            self._in_hand[request.job.case] = request
            if self._talk is not None:
                self._talk.send(request)

    @property
    def busy(self) -> bool:
        """Whether there is an answer to come."""
        return bool(self._dead or self._in_hand)

    def receive(self) -> Answer:
        """See ``Executor``."""
        if self._dead:
            return self._dead.popleft()
        talk = self._talk or self._start()
        try:
            self._load(talk)
            answer = talk.receive()
        except (StageError, ResourceError) as error:
            if not self._loaded:
                raise
            with self._lock:
                self._stack.__exit__(type(error), error, error.__traceback__)
                self._stack, self._talk = contextlib.ExitStack(), None
                self._dead.extend(Answer(case, error=error, again=len(self._in_hand) > 1) for case in self._in_hand)
                self._in_hand.clear()
            if not self._dead:
                raise
            return self._dead.popleft()
        with self._lock:
            del self._in_hand[answer.case]
        return answer

    def load(self) -> None:
        """Have the networks loaded, in the thread that receives.

        Raises:
            SegonnxError: They can't be.
        """
        self._load(self._talk or self._start())

    def _load(self, talk: Conversation[Request, Answer]) -> None:
        if not self._loaded:
            talk.receive()
            self._loaded = True

    def kill(self) -> None:
        """End the process at once. Whoever receives hears of it; the next case starts it anew."""
        talk = self._talk
        if talk is not None:
            talk.kill()

    def _start(self) -> Conversation[Request, Answer]:
        """Start the process, in the thread that receives: on Linux it lives as long as the thread that started it."""
        talk = subprocesses.converse(pipelined.serve, *self._arguments, progress=self._progress, bounds=self._bounds)
        with self._lock:
            self._talk = self._stack.enter_context(talk)
            self._loaded = False
            for request in self._in_hand.values():
                self._talk.send(request)
            return self._talk
