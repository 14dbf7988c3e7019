"""Shows what is going on: a moving line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
from types import TracebackType

from segonnx.process import Progress

PATIENCE_S = 10.0
"""Where output isn't a terminal, a step is told of once it has lasted this long."""


class Display:
    """A ``Progress`` that people see, on standard error."""

    def __init__(self) -> None:
        self._timer: threading.Timer | None = None
        self._status = None
        if sys.stderr.isatty():
            from rich.console import Console

            self._status = Console(stderr=True).status("starting")

    def __call__(self, step: str, /) -> None:
        if self._status is not None:
            self._status.update(step)
            return
        self._cancel()
        self._timer = threading.Timer(PATIENCE_S, lambda: print(f"  {step} ...", file=sys.stderr, flush=True))
        self._timer.daemon = True
        self._timer.start()

    def within(self, prefix: str) -> Progress:
        """A Progress whose steps begin with ``prefix``."""
        return lambda step: self(prefix + step)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def __enter__(self) -> Display:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cancel()
        if self._status is not None:
            self._status.stop()
