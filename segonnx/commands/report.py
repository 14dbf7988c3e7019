"""``segonnx report``."""

from __future__ import annotations

from pathlib import Path

import click

from segonnx.commands import options
from segonnx.core import terminal
from segonnx.errors import InputError

COHORT = ".jsonl"
"""How the names of reports of cohorts end."""


@click.command("report")
@click.argument("paths", type=options.PATH, nargs=-1, required=True, metavar="RESULT...")
@click.option(
    "-o", "--out", "--html", "page_path", type=options.PATH, metavar="FILE", help="Write a page: one file, no network."
)
@click.option(
    "--svg",
    type=options.PATH,
    metavar="FILE",
    help="Write a picture of the speed-ups over eager, and a dark one beside it (FILE with -dark before the ending).",
)
@click.option("--markdown", is_flag=True, help="Print the tables in GitHub's markdown.")
@options.json_file("Write the results as one.")
def command(
    paths: tuple[Path, ...], page_path: Path | None, svg: Path | None, markdown: bool, json_path: Path | None
) -> None:
    """Show results of a bench, of one machine or of several, as a page, a picture, or markdown for a README.

    What is of one machine comes together. Of several machines there is one table, by processor type.
    Or show what came of a cohort: reports of `segonnx predict --report`, whose names end in .jsonl.

    \b
    segonnx report results/all.json --html results/all.html
    segonnx report results/3d.json results/2d.json --html both.html
    segonnx report results/all.json --svg speedups.svg
    segonnx report results/all.json --markdown
    segonnx report part*.jsonl --html cohort.html
    """
    from segonnx.bench import machines
    from segonnx.core import files
    from segonnx.report import html, picture
    from segonnx.report import markdown as md

    if page_path is None and svg is None and json_path is None and not markdown:
        raise InputError("give --html FILE, --svg FILE, --markdown or --json FILE")
    if any(path.suffix == COHORT for path in paths):
        _cohort(paths, page_path, svg, json_path, markdown=markdown)
        return
    content = machines.together(machines.read(path) for path in paths)
    for path in (page_path, svg, None if svg is None else _dark(svg), json_path):
        options.require_writable(path, *paths)
    with options.display() as display:
        if page_path is not None:
            files.write(page_path, html.render(content))
            display.echo(str(page_path))
        if svg is not None:
            for path, dark in ((svg, False), (_dark(svg), True)):
                files.write(path, picture.speedups_svg(content, dark=dark))
                display.echo(str(path))
    if markdown:
        terminal.lines(md.result(content))
    if json_path is not None:
        content.write(json_path)


def _cohort(
    paths: tuple[Path, ...], page_path: Path | None, svg: Path | None, json_path: Path | None, *, markdown: bool
) -> None:
    """Show what came of a cohort."""
    from segonnx.core import files
    from segonnx.predict import records
    from segonnx.report import cohorts

    if other := [path for path in paths if path.suffix != COHORT]:
        raise InputError(f"{other[0]} is no report of a cohort, whose name ends in {COHORT}, and the others are")
    if svg is not None:
        raise InputError("--svg draws the speed-ups of a bench: leave it out for a cohort")
    for path in (page_path, json_path):
        options.require_writable(path, *paths)
    cohort = records.load(paths)
    with options.display() as display:
        if page_path is not None:
            files.write(page_path, cohorts.render(cohort))
            display.echo(str(page_path))
    if markdown:
        terminal.lines(cohorts.text(cohort))
    options.write_json(json_path, list(cohort.records.values()))


def _dark(svg: Path) -> Path:
    """The file of the picture for a dark ground."""
    return svg.with_stem(f"{svg.stem}-dark")
