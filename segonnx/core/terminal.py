"""The one place through which commands print. What they print may quote strangers, and moves no terminal's cursor."""

from __future__ import annotations

import sys

import click

from segonnx.errors import one_line


def line(text: str, *, err: bool = False) -> None:
    """Print text as one line.

    Args:
        text: whatever it holds, it stays one line, and only shows.
        err: print it on standard error.
    """
    _print(one_line(text), err=err)


def lines(text: str, *, err: bool = False) -> None:
    """Print text of several lines, such as a table.

    Args:
        text: its line feeds stay; each line is printed as ``line`` prints it.
        err: print it on standard error.
    """
    _print("\n".join(map(one_line, text.split("\n"))), err=err)


def _print(text: str, *, err: bool) -> None:
    encoding = getattr(sys.stderr if err else sys.stdout, "encoding", None) or "utf-8"
    # A terminal of few letters gets the others written out, and no error.
    click.echo(text.encode(encoding, "backslashreplace").decode(encoding), err=err)
