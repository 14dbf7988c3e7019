"""``segonnx pack``."""

from __future__ import annotations

from pathlib import Path

import click

from segonnx.errors import InputError

PACKINGS = ("zip", "triton", "oci", "bundle")


@click.command("pack")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(PACKINGS), required=True, help="What to make of it.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The file (zip) or folder to make.")
@click.option("--overwrite", is_flag=True, help="Replace what is there already.")
def command(artifact: Path, form: str, out: Path, overwrite: bool) -> None:
    """Write an artifact as one zip file, or in the layout that another program takes. Needs no torch.

    The artifact is checked first. A zip file has the same bytes each time.

    \b
    segonnx pack artifacts/stunet-s --format zip --out stunet-s.zip
    segonnx pack artifacts/stunet-s --format triton --out model_repository
    segonnx pack artifacts/stunet-s --format oci --out stunet-s.oci
    segonnx pack artifacts/stunet-s --format bundle --out stunet-s-bundle
    """
    from segonnx.artifacts import packing
    from segonnx.core.progress import Display

    if not artifact.is_dir():
        raise InputError(f"{artifact} is not a folder")
    with Display() as display:
        packing.pack(artifact, form, out, overwrite=overwrite, progress=display)
    click.echo(f"{artifact}: packed as {form} -> {out}")
