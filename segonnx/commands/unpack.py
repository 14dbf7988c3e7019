"""``segonnx unpack``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("unpack")
@click.argument("packed", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The artifact's folder to make.")
@click.option("--overwrite", is_flag=True, help="Replace what is there already.")
def command(packed: Path, out: Path, overwrite: bool) -> None:
    """Get the artifact out of a zip file or an OCI image layout. Needs no torch.

    Nothing is written unless every name, byte and the graph are as the manifest says.

    \b
    segonnx unpack stunet-s.zip --out artifacts/stunet-s
    segonnx unpack stunet-s.oci --out artifacts/stunet-s
    """
    from segonnx.artifacts import packing
    from segonnx.core.progress import Display

    with Display() as display:
        packing.unpack(packed, out, overwrite=overwrite, progress=display)
    click.echo(f"{packed}: whole -> {out}")
