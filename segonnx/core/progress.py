"""Shows what is going on: a moving line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
from types import TracebackType
from typing import TYPE_CHECKING

from segonnx.core import terminal
from segonnx.core.subprocesses import Progress
from segonnx.errors import one_line

if TYPE_CHECKING:
    from rich.live import Live

PATIENCE_S = 10.0
"""Where output isn't a terminal, a step is printed once it has lasted this long."""


class Display:
    """A ``Progress`` that people see, on standard error; results go past it to standard output with ``echo``.

    Args:
        quiet: show no steps, and of the lines only those that go to standard error.
        moving: show the step in a moving line where standard error is a terminal. False where others write there, too.
    """

    def __init__(self, *, quiet: bool = False, moving: bool = True) -> None:
        self._quiet = quiet
        self._timer: threading.Timer | None = None
        self._live: Live | None = None
        if moving and not quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            # Standard output may go elsewhere: it must not be drawn into the moving line.
            self._live = Live(
                console=Console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=False
            )

    def __call__(self, step: str, /) -> None:
        if self._live is not None:
            from rich.spinner import Spinner
            from rich.text import Text

            self._live.update(Spinner("dots", Text(one_line(step))))
            return
        self._cancel()
        if self._quiet:
            return
        self._timer = threading.Timer(PATIENCE_S, terminal.line, (f"  {step} ...",), {"err": True})
        self._timer.daemon = True
        self._timer.start()

    def within(self, prefix: str) -> Progress:
        """A Progress whose steps begin with ``prefix``."""
        return lambda step: self(prefix + step)

    def echo(self, line: str, *, err: bool = False) -> None:
        """Print a line of its own."""
        self._cancel()
        if self._quiet and not err:
            return
        if self._live is not None:
            self._live.stop()
        terminal.line(line, err=err)
        if self._live is not None:
            self._live.start()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def __enter__(self) -> Display:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cancel()
        if self._live is not None:
            self._live.stop()
