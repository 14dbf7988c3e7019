"""Writes the tables of options in docs/ from the commands: python -m tools.make_option_tables.

A table stands between ``<!-- options NAME: generated -->`` and ``<!-- /options NAME -->``, where NAME is a command, or
``segonnx`` for the options that every command takes. tests/test_docs.py checks that the tables are up to date.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click

from segonnx import cli

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(<!-- options (\S+): generated -->\n).*?(<!-- /options \2 -->)", re.DOTALL)


def main() -> None:
    for page in sorted((ROOT / "docs").glob("*.md")):
        text = page.read_text("utf-8")
        if (updated := with_tables(text)) != text:
            page.write_text(updated, "utf-8")
            print(f"wrote {page.relative_to(ROOT)}")


def with_tables(text: str) -> str:
    """Replace each table of a page by what its command says now."""
    return BLOCK.sub(lambda block: f"{block[1]}{table(block[2])}\n{block[3]}", text)


def table(name: str) -> str:
    """The markdown table of a command's options, without those that every command takes."""
    lines = ["| option | what it does |", "|---|---|"]
    lines += [f"| {_cell(f'`{option}`')} | {_cell(what)} |" for option, what in _options(name)]
    return "\n".join(lines)


def _options(name: str) -> Iterator[tuple[str, str]]:
    """Each option of a command as its --help spells it, and its help."""
    group = click.Context(cli.main, info_name="segonnx")
    shared = {option for parameter in cli.main.params for option in parameter.opts}
    if name == "segonnx":
        command: click.Command = cli.main
    else:
        found = cli.main.get_command(group, name)
        assert found is not None, f"segonnx has no command {name}"
        command = found
    context = click.Context(command, parent=group, info_name=name)
    for parameter in command.params:
        everywhere = shared.issuperset(parameter.opts)
        if isinstance(parameter, click.Option) and parameter.name != "version" and everywhere == (name == "segonnx"):
            option, what = parameter.get_help_record(context) or ("", "")
            yield option.replace("INTEGER RANGE", "N").replace("FLOAT RANGE", "X"), what


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


if __name__ == "__main__":
    main()
