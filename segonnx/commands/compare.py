"""``segonnx compare``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from segonnx.commands import options
from segonnx.core import terminal


@click.command("compare")
@click.argument("old", type=options.PATH, metavar="OLD.json")
@click.argument("new", type=options.PATH, metavar="NEW.json")
@click.option(
    "--fail-above",
    type=options.Percentage(),
    default="5%",
    show_default=True,
    help="A row that is slower by more than this, beyond doubt, is a regression.",
)
@click.option("--force", is_flag=True, help="Compare other machines, inputs or settings, too.")
@click.option("--markdown", is_flag=True, help="GitHub's markdown, for the summary of a CI job.")
@options.out("Write the table to a file, instead of printing it.", metavar="FILE")
@options.json_file("Write the comparison.")
def command(
    old: Path, new: Path, fail_above: float, force: bool, markdown: bool, out: Path | None, json_path: Path | None
) -> None:
    """Hold the result of a bench against an older one; exit code 1 tells of a regression.

    Of results of several machines each is held against itself.

    \b
    segonnx compare main.json branch.json
    segonnx compare main.json branch.json --fail-above 3% --markdown >> "$GITHUB_STEP_SUMMARY"
    """
    from segonnx.bench import comparison, machines
    from segonnx.core import files
    from segonnx.report import markdown as md
    from segonnx.report import tables

    found = comparison.compare_machines(machines.read(old), machines.read(new), fail_above, force=force)
    text = md.comparison(found) if markdown else tables.comparison(found)
    for path in (out, json_path):
        options.require_writable(path, old, new)
    if out is None:
        terminal.lines(text)
    else:
        files.write(out, text + "\n")
    options.write_json(json_path, found.as_dict())
    if found.regressions:
        sys.exit(1)
