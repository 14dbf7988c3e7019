"""What several commands share: types of options, and how systems are named."""

from __future__ import annotations

import math
from typing import Any

import click

from segonnx.errors import InputError

INTERRUPTED = 130
"""The exit code that shells give a program that Ctrl-C ended."""


def shape(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """Spatial sizes, as 64,128,128 or 64x128x128."""
    if value is None:
        return None
    try:
        return tuple(int(size) for size in value.replace("x", ",").split(","))
    except ValueError:
        raise InputError(f"--shape takes whole numbers, for example 64,128,128 or 512,512; found {value!r}") from None


def numbers(_ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """Whole numbers above 0, separated by commas."""
    if value is None:
        return None
    parts = value.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise InputError(f"--{param.name} takes whole numbers above 0, for example 1 or 1,2,4; found {value!r}")
    return tuple(dict.fromkeys(map(int, parts)))


def fraction(_ctx: click.Context, param: click.Parameter, value: str) -> float:
    """A fraction above 0, as 3% or 0.03."""
    try:
        number = float(value.removesuffix("%")) / (100 if value.endswith("%") else 1)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        name = (param.name or "").replace("_", "-")
        raise InputError(f"--{name} takes a percentage, for example 3%; found {value!r}")
    return number


def systems(names: tuple[str, ...], everything: bool) -> list[Any]:
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
