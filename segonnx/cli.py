"""The command line: the group, its errors and exit codes. Each command has a file in ``commands``.

A command is imported once somebody asks for it, and imports heavy libraries where it needs them, so that
``segonnx --help`` answers at once.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

import click

from segonnx._version import __version__
from segonnx.commands import options
from segonnx.core import standard_streams, terminal
from segonnx.errors import ResourceError, SegonnxError, first_line, one_line

COMMANDS = ("list", "export", "quantize", "verify", "sign", "predict", "pack", "unpack", "bench", "compare", "report")
"""The commands in the order of the help; ``segonnx.commands.NAME`` holds each."""


INTERNAL = 70
"""The exit code of an error that nobody expected, as in BSD's sysexits."""
BROKEN_PIPE = 141
"""The exit code that shells give a program whose output nobody reads any more."""


LEAST_MEMORY = 2**28
FEW_THREADS = 2**32
"""Address space in bytes: what every command needs, and below what NumPy's threads are kept from taking theirs."""


class _Group(click.Group):
    """Imports commands when they are asked for, prints every error as one line, and exits with its code."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        standard_streams.prepare()
        return super().main(*args, **kwargs)

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"segonnx.commands.{cmd_name}").command
        command.params += [option for option in options.EVERYWHERE if option not in command.params]
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        options.expect_debug(ctx, args)
        with _one_line(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        with _one_line(ctx):
            _require_memory()
            return super().invoke(ctx)


@contextlib.contextmanager
def _one_line(ctx: click.Context) -> Iterator[None]:
    """End the program with one line, and the exit code, of whatever goes wrong in the block."""
    try:
        yield
    except click.ClickException as error:  # click prints it, and quotes names of files in it
        error.message = one_line(error.message)  # type: ignore[misc]
        raise
    except (click.Abort, click.exceptions.Exit):
        raise
    except KeyboardInterrupt:
        _fail("interrupted", options.INTERRUPTED)
    except standard_streams.OutputError as error:
        if error.unread:
            sys.exit(BROKEN_PIPE)
        _fail(str(error), 2)
    except Exception as error:
        if options.debugging(ctx):
            raise
        _fail(*_told(error))


def _require_memory() -> None:
    """See to it that libraries find the memory to begin with: some end the program, or print lines of their own.

    Raises:
        ResourceError: the user's limit leaves too little.
    """
    try:
        import resource
    except ImportError:  # Windows
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if 0 <= limit < LEAST_MEMORY:
        raise ResourceError(
            f"ulimit -v leaves {limit / 1e6:.0f} MB of memory: at least {LEAST_MEMORY / 1e6:.0f} MB are needed"
        )
    if 0 <= limit < FEW_THREADS:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # each takes some 40 MB when NumPy is imported


def _told(error: Exception) -> tuple[str, int]:
    """What a user reads of an error, and the exit code."""
    if isinstance(error, SegonnxError):
        return str(error), error.exit_code
    try:
        from segonnx.core import subprocesses
    except (ImportError, MemoryError):  # there's not enough for that
        return "the memory ran out", ResourceError.exit_code
    ours = subprocesses.translate(error)
    if isinstance(ours, ResourceError):
        return str(ours), ours.exit_code
    said = first_line(error)
    what = type(error).__name__ + (f": {said}" if said != type(error).__name__ else "")
    return f"something went wrong that shouldn't: {what} (--debug shows where)", INTERNAL


def _fail(line: str, exit_code: int) -> NoReturn:
    with contextlib.suppress(OSError):  # nobody hears of it
        terminal.lines(f"segonnx: {line}", err=True)
    sys.exit(exit_code)


@click.group(cls=_Group, params=list(options.EVERYWHERE), context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Segmentation networks as verified ONNX artifacts, and honest timings of the runtimes that run them.

    \b
    segonnx list                          the reference systems
    segonnx export stunet-s               one of them as an ONNX artifact in artifacts/stunet-s
    segonnx verify artifacts/stunet-s     is it intact, and does it compute what it should?
    segonnx bench stunet-s                its time in every runtime, side by side

    Exit codes: 0 done; 1 a check failed; 2 wrong use or bad input; 70 a fault of segonnx; 130 interrupted.
    """
