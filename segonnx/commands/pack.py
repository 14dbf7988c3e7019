"""``segonnx pack``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from segonnx.commands import options

PACKINGS = ("zip", "triton", "oci", "bundle")
KINDS = ("cpu", "gpu")


@click.command("pack")
@click.argument("artifact", type=options.PATH)
@click.option("--format", "form", type=click.Choice(PACKINGS), required=True, help="What to make of it.")
@options.out("The file (zip) or folder to make.", required=True)
@options.overwrite()
@click.option(
    "--max-batch",
    type=click.IntRange(0),
    metavar="N",
    help="For triton: how many instances it may join into a pass; 0: none. [default: 8, if the batch is open]",
)
@click.option(
    "--preferred-batch", type=options.Numbers(), help="For triton: sizes of passes that it waits a moment for."
)
@click.option(
    "--instances", type=click.IntRange(1), metavar="N", help="For triton: how many passes run at a time, per device."
)
@click.option("--instance-kind", type=click.Choice(KINDS), help="For triton: what they run on.  [default: as it finds]")
@options.bounds("the check of the graph", "1800")
@options.json_file("Write what was made of what.")
def command(artifact: Path, form: str, out: Path, overwrite: bool, json_path: Path | None, **how: Any) -> None:
    """Write an artifact as one zip file, or in the layout that another program takes. Needs no torch.

    The artifact is checked first. A zip file has the same bytes each time.

    \b
    segonnx pack artifacts/stunet-s --format zip -o stunet-s.zip
    segonnx pack artifacts/stunet-s --format triton -o model_repository
    segonnx pack artifacts/open --format triton --max-batch 16 --instances 2 --instance-kind gpu -o model_repository
    segonnx pack artifacts/stunet-s --format oci -o stunet-s.oci
    segonnx pack artifacts/stunet-s --format bundle -o stunet-s-bundle
    """
    from segonnx.artifacts import packing
    from segonnx.artifacts.packing.serving import Serving
    from segonnx.core.subprocesses import Bounds

    bounds = Bounds(how["timeout"], how["max_memory"])
    serving = Serving(how["max_batch"], how["preferred_batch"] or (), how["instances"], how["instance_kind"])
    options.require_folder(artifact)
    options.require_writable(json_path, artifact)
    with options.display() as display:
        packing.pack(artifact, form, out, serving=serving, overwrite=overwrite, bounds=bounds, progress=display)
        display.echo(f"{artifact}: packed as {form} -> {out}")
    files = [path for path in (out, *out.rglob("*")) if path.is_file()]
    made = {
        "artifact": str(artifact),
        "format": form,
        "path": str(out),
        "files": len(files),
        "bytes": sum(path.stat().st_size for path in files),
    }
    options.write_json(json_path, made)
