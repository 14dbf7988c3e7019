"""Whatever is shown is shown as it is: a parser of CommonMark is the judge."""

from __future__ import annotations

import html
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from segonnx.core import markdown

TEXT = st.text(st.sampled_from("ab1. \\`*_[]()<>&|~#!-+=:$\"'/@\n\té"), max_size=40)
PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def shown(text: str) -> str:
    return _html(" ".join(text.split()))


def _html(text: str) -> str:
    """As the parser writes it."""
    return html.escape(text, quote=False).replace('"', "&quot;")


@settings(max_examples=300, deadline=None)
@example("<img src=x onerror=alert(1)> [x](javascript:alert(1))")
@example("1. one")
@example("- item")
@example("# heading #")
@example("a\n===")
@given(TEXT)
def test_a_line_shows_its_text_and_nothing_else(text: str) -> None:
    if " ".join(text.split()):
        assert PARSER.render(markdown.line(text)) == f"<p>{shown(text)}</p>\n"
        assert PARSER.render(f"# {markdown.escape(text)}") == f"<h1>{shown(text)}</h1>\n"


@settings(max_examples=200, deadline=None)
@given(TEXT)
def test_a_cell_holds_its_text(text: str) -> None:
    table = PARSER.render(f"| a | b |\n| --- | --- |\n| {markdown.escape(text)} | 2 |")
    assert re.findall(r"<td>(.*?)</td>", table) == [shown(text), "2"]


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("ab`\\<>*é \n"), max_size=20))
def test_a_code_span_holds_its_text(text: str) -> None:
    rendered = PARSER.render(f"x {markdown.code(text)} y")
    wanted = _html(text.replace("\n", "\\n"))
    (found,) = re.findall(r"<p>x <code>(.*)</code> y</p>", rendered)
    assert found.strip() == wanted.strip()


@pytest.mark.parametrize("letter", ["\x1b", "\u202e", "\x07", "\x00"])
def test_what_moves_a_cursor_is_written_out(letter: str) -> None:
    for made in (markdown.escape(f"a{letter}b"), markdown.line(f"{letter}b"), markdown.code(f"a{letter}b")):
        assert letter not in made
