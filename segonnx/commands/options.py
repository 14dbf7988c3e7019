"""What commands share: types of values, options of the same name and meaning, and how systems are named."""

from __future__ import annotations

import contextlib
import logging
import math
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from segonnx.core import terminal
from segonnx.errors import InputError

if TYPE_CHECKING:
    from segonnx.core.progress import Display
    from segonnx.sources.catalog import ModelSpec

    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType  # which has no parameters before click 8.4

F = TypeVar("F", bound=Callable[..., Any])

INTERRUPTED = 130
"""The exit code that shells give a program that Ctrl-C ended."""

TERMINATED = 143
"""The exit code that shells give a program that SIGTERM ended."""

PATH = click.Path(path_type=Path)


class _Type(_ParamType):
    """A type whose wrong values are one line that names the option."""

    metavar: str
    takes: str

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        del param, ctx
        return self.metavar

    def refuse(self, value: str, param: click.Parameter | None) -> NoReturn:
        """Say which option takes what, and what it got."""
        option = "the value" if param is None else max(param.opts, key=len)
        raise InputError(f"{option} takes {self.takes}; found {value!r}")


class Shape(_Type):
    """Spatial sizes, as 64,128,128 or 64x128x128. Whether a network takes them is its own to say."""

    name = "shape"
    metavar = "[D,]H,W"
    takes = "whole numbers, for example 64,128,128 or 512,512"

    def convert(
        self, value: str | tuple[int, ...], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        del ctx
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(size) for size in value.replace("x", ",").split(","))
        except ValueError:
            self.refuse(value, param)


class Numbers(_Type):
    """Whole numbers above 0, separated by commas; each once."""

    name = "numbers"
    metavar = "N[,N]..."
    takes = "whole numbers above 0, for example 1 or 1,2,4"

    def convert(
        self, value: str | tuple[int, ...], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        del ctx
        if isinstance(value, tuple):
            return value
        parts = value.split(",")
        if not all(part.isdecimal() and len(part) < 100 and int(part) for part in parts):
            self.refuse(value, param)
        return tuple(dict.fromkeys(map(int, parts)))


class Reals(_Type):
    """Numbers, separated by commas, one for each channel."""

    name = "reals"
    metavar = "X[,X]..."
    takes = "numbers, one for each channel, for example 0.485,0.456,0.406"

    def convert(
        self, value: str | tuple[float, ...], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        del ctx
        if isinstance(value, tuple):
            return value
        try:
            found = tuple(float(number) for number in value.split(","))
        except ValueError:
            self.refuse(value, param)
        if not all(map(math.isfinite, found)):
            self.refuse(value, param)
        return found


class Percentage(_Type):
    """A fraction above 0, as 3% or 0.03."""

    name = "percentage"
    metavar = "PERCENT"
    takes = "a percentage, for example 3%"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        del ctx
        if isinstance(value, float):
            return value
        try:
            number = float(value.removesuffix("%")) / (100 if value.endswith("%") else 1)
        except ValueError:
            number = math.nan
        if not 0 < number < math.inf:
            self.refuse(value, param)
        return number


class Size(_Type):
    """Bytes, as 8GB, 500MB or 2GiB."""

    name = "size"
    metavar = "SIZE"
    takes = "a size above 0, for example 8GB or 500MB"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        del ctx
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?) ?(?:([KMGT])(I?))?B?", value.strip().upper())
        size = 0
        if found is not None:
            base = 1024 if found[3] else 1000
            size = int(float(found[1]) * base ** (" KMGT".index(found[2] or " ")))
        if not 0 < size < 2**62:
            self.refuse(value, param)
        return size


class Part(_Type):
    """A part of how many, as 3/16."""

    name = "part"
    metavar = "K/N"
    takes = "a part of so many, for example 3/16; the first one is 1/16"

    def convert(
        self, value: str | tuple[int, int], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        del ctx
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", value)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            self.refuse(value, param)
        return int(found[1]), int(found[2])


def json_file(what: str) -> Callable[[F], F]:
    """``--json FILE``: what a command did, for programs."""
    return click.option("--json", "json_path", type=PATH, metavar="FILE", help=what)


def threads(what: str, default: str = "all cores") -> Callable[[F], F]:
    """``--threads N``, whose default isn't a number."""
    return click.option("--threads", type=click.IntRange(1), metavar="N", help=f"{what} [default: {default}]")


def overwrite(what: str = "Replace what is there already.") -> Callable[[F], F]:
    """``--overwrite``."""
    return click.option("--overwrite", is_flag=True, help=what)


def out(what: str, **more: Any) -> Callable[[F], F]:
    """``-o``, ``--out``: what a command makes."""
    return click.option("-o", "--out", type=PATH, help=what, **more)


def timeout(what: str, default: str) -> Callable[[F], F]:
    """``--timeout SECONDS``, whose default isn't a number."""
    return click.option(
        "--timeout",
        type=click.FloatRange(0, min_open=True),
        metavar="SECONDS",
        help=f"The longest that {what} may take. [default: {default}]",
    )


def max_memory(what: str, default: str = "what is free") -> Callable[[F], F]:
    """``--max-memory SIZE``, whose default isn't a number."""
    return click.option(
        "--max-memory", type=Size(), help=f"The most memory that {what} may take, as 8GB. [default: {default}]"
    )


def bounds(what: str, default: str = "by its size, at most 1800") -> Callable[[F], F]:
    """``--timeout`` and ``--max-memory`` of the processes that run strangers' graphs."""

    def decorate(function: F) -> F:
        return timeout(what, default)(max_memory("a process that runs a graph")(function))

    return decorate


class _ToStandardError(logging.Handler):
    """Prints each record as a line."""

    def emit(self, record: logging.LogRecord) -> None:
        terminal.line(self.format(record), err=True)


def _remember(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta[f"segonnx.{param.name}"] = True


def _log(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """Show the package's log until the program ends."""
    if not value or _given("verbose", ctx):
        return
    _remember(ctx, param, value)
    logger, handler = logging.getLogger("segonnx"), _ToStandardError()
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s", "%H:%M:%S"))
    before = logger.level

    def end() -> None:
        logger.removeHandler(handler)
        logger.setLevel(before)

    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    ctx.find_root().call_on_close(end)


def _given(name: str, ctx: click.Context) -> bool:
    return f"segonnx.{name}" in ctx.meta  # which a command shares with its group


def _everywhere(*names: str, callback: Callable[..., None], what: str) -> click.Option:
    # Eager: they hold for what is wrong with the other options, too.
    return click.Option(names, is_flag=True, is_eager=True, expose_value=False, callback=callback, help=what)


EVERYWHERE = (
    _everywhere("--debug", callback=_remember, what="Show the traceback of an error."),
    _everywhere("-q", "--quiet", callback=_remember, what="Show errors and what was asked for; no progress."),
    _everywhere("-v", "--verbose", callback=_log, what="Tell what passes, stages and workers do."),
)
"""Options that stand before a command's name or after it."""


def expect_debug(ctx: click.Context, words: Sequence[str]) -> None:
    """Take note of ``--debug`` anywhere on the command line: the command that it belongs to may not even be there."""
    if "--debug" in words:
        ctx.meta["segonnx.debug"] = True


def debugging(ctx: click.Context) -> bool:
    """Whether the user wants to see tracebacks."""
    return _given("debug", ctx)


def display() -> Display:
    """The progress of the running command, as its user wants it."""
    from segonnx.core.progress import Display

    ctx = click.get_current_context()
    return Display(quiet=_given("quiet", ctx), moving=not _given("verbose", ctx))


@contextlib.contextmanager
def orderly_end() -> Iterator[None]:
    """Let SIGTERM, which schedulers send before they kill, end the block as Ctrl-C does: what it holds is given up."""

    def end(*_: object) -> NoReturn:
        raise SystemExit(TERMINATED)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def require_writable(path: Path | None, *used: Path) -> None:
    """See to it that a file that was asked for can be written, before the work, and takes nothing of what is used."""
    from segonnx.core import files

    if path is not None:
        for one in used:
            files.require_outside(path, one)
        files.require_writable(path)


def require_outside(made: Path, folder: Path) -> None:
    """See to it that what is made doesn't lie in an artifact's folder, and isn't that."""
    from segonnx.core import files

    files.require_outside(made, folder)


def write_json(path: Path | None, content: Any) -> None:
    """Write what ``--json`` asks for, if it does."""
    import json

    from segonnx.core import files

    if path is not None:
        files.write(path, json.dumps(content, indent=1) + "\n")


def require_folder(artifact: Path) -> None:
    """Refuse an artifact that isn't there."""
    if not artifact.is_dir():
        raise InputError(f"{artifact} is not a folder")


def systems(names: tuple[str, ...], everything: bool) -> list[ModelSpec]:
    """The systems that a user named, or all, smallest first."""
    from segonnx.sources import catalog

    if everything == bool(names):
        raise InputError("give the names of systems, or --all (`segonnx list` shows them)")
    if names:
        return [catalog.find(name) for name in dict.fromkeys(names)]
    return sorted(catalog.systems(), key=lambda spec: spec.reference.parameters if spec.reference else 0)


def require_torch(what: str) -> None:
    """Refuse what needs PyTorch where it isn't installed."""
    import importlib.util

    if importlib.util.find_spec("torch") is None:
        raise InputError(f"{what} needs PyTorch, which isn't installed: pip install 'segonnx[export]'")
