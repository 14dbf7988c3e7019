"""``segonnx report``."""

from __future__ import annotations

from pathlib import Path

import click

from segonnx.errors import InputError


@click.command("report")
@click.argument("paths", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="RESULT.json...")
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Write a page: one file, no network.")
@click.option(
    "--svg",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write a picture of the speed-ups over eager, and a dark one beside it (FILE with -dark before the ending).",
)
@click.option("--markdown", is_flag=True, help="Print the tables in GitHub's markdown.")
def command(paths: tuple[Path, ...], html: Path | None, svg: Path | None, markdown: bool) -> None:
    """Show the result of a bench, or several of one machine, as a page, a picture, or markdown for a README.

    \b
    segonnx report results/all.json --html results/all.html
    segonnx report results/3d.json results/2d.json --html both.html
    segonnx report results/all.json --svg speedups.svg
    segonnx report results/all.json --markdown
    """
    from segonnx.bench import result
    from segonnx.core import files
    from segonnx.report import html as page
    from segonnx.report import markdown as md
    from segonnx.report import picture

    if html is None and svg is None and not markdown:
        raise InputError("give --html FILE, --svg FILE or --markdown")
    content = result.merge([result.read(path) for path in paths])
    if html is not None:
        files.require_writable(html)
        files.write(html, page.render(content))
        click.echo(html)
    if svg is not None:
        files.require_writable(svg)
        for path, dark in ((svg, False), (svg.with_stem(f"{svg.stem}-dark"), True)):
            files.write(path, picture.speedups_svg(content, dark=dark))
            click.echo(path)
    if markdown:
        click.echo(md.result(content))
