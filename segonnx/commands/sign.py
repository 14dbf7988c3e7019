"""``segonnx sign``."""

from __future__ import annotations

from pathlib import Path

import click

from segonnx.errors import InputError


@click.command("sign")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--key", type=click.Path(path_type=Path), required=True, help="Private key of an elliptic curve: a PEM file."
)
def command(artifact: Path, key: Path) -> None:
    """Sign an artifact with the sender's key, so that a receiver with the public key finds any change.

    The artifact is checked first. Needs the extra segonnx[sign].

    \b
    openssl ecparam -name prime256v1 -genkey -noout -out sender.key
    openssl ec -in sender.key -pubout -out sender.pub
    segonnx sign artifacts/stunet-s --key sender.key
    segonnx verify artifacts/stunet-s --key sender.pub
    """
    from segonnx.artifacts import signature
    from segonnx.artifacts.verify import verify as verify_artifact
    from segonnx.core.progress import Display

    if not artifact.is_dir():
        raise InputError(f"{artifact} is not a folder")
    with Display() as display:
        verify_artifact(artifact, replay=False, progress=display)
        made = signature.sign(artifact, key)
    click.echo(f"{artifact}: signed -> {made}")
