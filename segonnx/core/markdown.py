"""Strangers' text in a Markdown file: it can't become markup or HTML."""

from __future__ import annotations

import re

from segonnx.errors import one_line

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_SIGNS = frozenset("\\`*_[]|~#$")
"""What begins or ends markup within a line, in CommonMark and GitHub's dialect."""
_BEGINNING = re.compile(r"^(?:([-+=:])|(\d{1,9})([.)]))")
"""What begins a list or underlines a heading at the beginning of a line."""


def escape(text: str) -> str:
    """Text as a part of a line of Markdown, or of a cell, that shows just that text."""
    shown = one_line(" ".join(str(text).split()))
    return "".join(_ENTITIES.get(sign, f"\\{sign}" if sign in _SIGNS else sign) for sign in shown)


def line(text: str) -> str:
    """Text as a line of Markdown, from its beginning, that shows just that text."""
    return _BEGINNING.sub(lambda found: f"{found[2] or ''}\\{found[1] or found[3]}", escape(text))


def code(text: str) -> str:
    """Text as a code span of Markdown, which shows just that text."""
    shown = one_line(text)
    longest = max((len(run) for run in re.findall(r"`+", shown)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {shown} {fence}" if longest or shown != shown.strip() or not shown else f"{fence}{shown}{fence}"
