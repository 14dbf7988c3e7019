"""Standard input, output and error, where they are closed, full, or read by nobody any more."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator

_NAMES = ("stdin", "stdout", "stderr")


class OutputError(Exception):
    """Standard output can't be written to.

    Attributes:
        unread: its reader has gone, as ``head`` does once it has enough.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(f"can't write to standard output: {error.strerror}")
        self.unread = isinstance(error, BrokenPipeError)


def open_descriptors() -> None:
    """Open those of the descriptors 0, 1 and 2 that are closed, so that no other file takes their place.

    A standard output that was closed stays one that can't be written to; what goes to standard error vanishes.
    """
    for number, name in enumerate(_NAMES):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_WRONLY if name == "stderr" else os.O_RDONLY)
            if opened == number:
                os.set_inheritable(number, True)  # or a child's other files take its place
            else:
                os.dup2(opened, number)
                os.close(opened)


def prepare() -> None:
    """Have standard streams, whatever the caller closed; writing to the output raises ``OutputError`` from now on."""
    open_descriptors()
    for number, name in enumerate(_NAMES):
        if getattr(sys, name) is None:
            stream = open(number, "w" if number else "r", encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)  # which stays, and with it the buffer that ours writes to
    if type(sys.stdout) is io.TextIOWrapper:  # nobody's stand-in
        sys.stdout = _Output(
            sys.stdout.buffer, sys.stdout.encoding, sys.stdout.errors, line_buffering=sys.stdout.line_buffering
        )


class _Output(io.TextIOWrapper):
    """Standard output, whose errors are told from those of other files."""

    def write(self, text: str, /) -> int:
        with _errors():
            return super().write(text)

    def flush(self) -> None:
        with _errors():
            super().flush()


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # What is left of the output goes nowhere, when Python writes it at its end.
        with contextlib.suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.close(nowhere)
        raise OutputError(error) from error
