"""``segonnx unpack``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from segonnx.commands import options


@click.command("unpack")
@click.argument("packed", type=options.PATH)
@options.out("The artifact's folder to make.", required=True)
@options.overwrite()
@options.bounds("the check of the graph", "1800")
@options.json_file("Write what was made of what.")
def command(packed: Path, out: Path, overwrite: bool, json_path: Path | None, **how: Any) -> None:
    """Get the artifact out of a zip file or an OCI image layout. Needs no torch.

    Nothing is written unless every name, byte and the graph are as the manifest says.

    \b
    segonnx unpack stunet-s.zip -o artifacts/stunet-s
    segonnx unpack stunet-s.oci -o artifacts/stunet-s
    """
    from segonnx.artifacts import manifest, packing
    from segonnx.core.subprocesses import Bounds

    bounds = Bounds(how["timeout"], how["max_memory"])
    options.require_writable(json_path, packed)
    with options.display() as display:
        packing.unpack(packed, out, overwrite=overwrite, bounds=bounds, progress=display)
        display.echo(f"{packed}: intact -> {out}")
    made = {"packed": str(packed), "artifact": str(out), "digest": manifest.read(out)["digest"]}
    options.write_json(json_path, made)
