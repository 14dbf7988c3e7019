"""The command line: the group, its errors and exit codes. Each command has a file in ``commands``.

A command is imported once somebody asks for it, and imports heavy libraries where it needs them, so that
``segonnx --help`` answers at once.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

import click

from segonnx._version import __version__
from segonnx.commands import options
from segonnx.core import terminal
from segonnx.errors import SegonnxError, one_line

COMMANDS = ("list", "export", "verify", "sign", "predict", "pack", "unpack", "bench", "compare", "report")
"""The commands in the order of the help; ``segonnx.commands.NAME`` holds each."""


class _Group(click.Group):
    """Imports commands when they are asked for, prints an expected error as one line, and exits with its code."""

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

    def make_context(self, *args: Any, **more: Any) -> click.Context:
        with _quoted():
            return super().make_context(*args, **more)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _quoted():
                return super().invoke(ctx)
        except SegonnxError as error:
            if options.debugging(ctx):
                raise
            _fail(error)


@contextlib.contextmanager
def _quoted() -> Iterator[None]:
    """What click prints of wrong use quotes names of files, such as a pattern of the shell gives: keep it one line."""
    try:
        yield
    except click.ClickException as error:
        error.message = one_line(error.message)  # type: ignore[misc]  # which click prints as it stands there
        raise


def _fail(error: SegonnxError) -> NoReturn:
    terminal.line(f"segonnx: {error}", err=True)
    sys.exit(error.exit_code)


@click.group(cls=_Group, params=list(options.EVERYWHERE), context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Segmentation networks as verified ONNX artifacts, and honest timings of the runtimes that run them.

    \b
    segonnx list                          the reference systems
    segonnx export stunet-s               one of them as an ONNX artifact in artifacts/stunet-s
    segonnx verify artifacts/stunet-s     is it intact, and does it compute what it should?
    segonnx bench stunet-s                its time in every runtime, side by side

    Exit codes: 0 done; 1 a check failed; 2 wrong use or bad input; 130 interrupted.
    """
