"""``segonnx sign``."""

from __future__ import annotations

from pathlib import Path

import click

from segonnx.commands import options


@click.command("sign")
@click.argument("artifact", type=options.PATH)
@click.option("--key", type=options.PATH, required=True, help="Private key of an elliptic curve: a PEM file.")
@options.bounds("the check of the graph", "1800")
@options.json_file("Write what was signed.")
def command(artifact: Path, key: Path, timeout: float | None, max_memory: int | None, json_path: Path | None) -> None:
    """Sign an artifact with the sender's key, so that a receiver with the public key finds any change.

    The artifact is checked first. Needs the extra segonnx[sign].

    \b
    openssl ecparam -name prime256v1 -genkey -noout -out sender.key
    openssl ec -in sender.key -pubout -out sender.pub
    segonnx sign artifacts/stunet-s --key sender.key
    segonnx verify artifacts/stunet-s --key sender.pub
    """
    from segonnx.artifacts import signature
    from segonnx.artifacts.verify import verify
    from segonnx.core.subprocesses import Bounds

    options.require_folder(artifact)
    options.require_writable(json_path, artifact, key)
    with options.display() as display:
        content = verify(artifact, replay=False, bounds=Bounds(timeout, max_memory), progress=display).manifest
        made = signature.sign(artifact, key)
        display.echo(f"{artifact}: signed -> {made}")
    options.write_json(json_path, {"artifact": str(artifact), "digest": content["digest"], "signature": str(made)})
