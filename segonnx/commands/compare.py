"""``segonnx compare``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from segonnx.commands import options


@click.command("compare")
@click.argument("old", type=click.Path(path_type=Path), metavar="OLD.json")
@click.argument("new", type=click.Path(path_type=Path), metavar="NEW.json")
@click.option(
    "--fail-above",
    callback=options.fraction,
    metavar="PERCENT",
    default="5%",
    show_default=True,
    help="A row that is slower by more than this, beyond doubt, is a regression.",
)
@click.option("--force", is_flag=True, help="Compare other machines, inputs or settings, too.")
@click.option("--markdown", is_flag=True, help="Print GitHub's markdown, for the summary of a CI job.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the comparison.")
def command(old: Path, new: Path, fail_above: float, force: bool, markdown: bool, json_path: Path | None) -> None:
    """Hold the result of a bench against an older one; exit code 1 tells of a regression.

    \b
    segonnx compare main.json branch.json
    segonnx compare main.json branch.json --fail-above 3% --markdown >> "$GITHUB_STEP_SUMMARY"
    """
    from segonnx.bench import comparison, result
    from segonnx.core import files
    from segonnx.report import markdown as md
    from segonnx.report import tables

    found = comparison.compare(result.read(old), result.read(new), fail_above, force=force)
    click.echo(md.comparison(found) if markdown else tables.comparison(found))
    if json_path is not None:
        files.require_writable(json_path)
        files.write(json_path, json.dumps(found.as_dict(), indent=1) + "\n")
    if found.regressions:
        sys.exit(1)
