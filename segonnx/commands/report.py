"""``segonnx report``."""

from __future__ import annotations

from pathlib import Path

import click

from segonnx.errors import InputError


@click.command("report")
@click.argument("paths", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="RESULT.json...")
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Write a page: one file, no network.")
@click.option("--markdown", is_flag=True, help="Print the tables in GitHub's markdown.")
def command(paths: tuple[Path, ...], html: Path | None, markdown: bool) -> None:
    """Show the result of a bench, or several of one machine, as a page or as markdown for a README.

    \b
    segonnx report results/all.json --html results/all.html
    segonnx report results/3d.json results/2d.json --html both.html
    segonnx report results/all.json --markdown
    """
    from segonnx.bench import result
    from segonnx.core import files
    from segonnx.report import html as page
    from segonnx.report import markdown as md

    if html is None and not markdown:
        raise InputError("give --html FILE or --markdown")
    content = result.merge([result.read(path) for path in paths])
    if html is not None:
        files.require_writable(html)
        files.write(html, page.render(content))
        click.echo(html)
    if markdown:
        click.echo(md.result(content))
