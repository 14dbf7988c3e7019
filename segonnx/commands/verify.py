"""``segonnx verify``."""

from __future__ import annotations

from pathlib import Path

import click

from segonnx.errors import InputError, SegonnxError, VerifyError


@click.command("verify")
@click.argument("artifacts", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="ARTIFACT...")
@click.option("--threads", type=click.IntRange(1), help="Threads of the replay. [default: the runtime's choice]")
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=1800,
    show_default=True,
    metavar="SECONDS",
    help="The longest that a step may take: a graph may hold a loop without end.",
)
@click.option("--key", type=click.Path(path_type=Path), metavar="PUBLIC", help="Who must have signed them: a PEM file.")
def command(artifacts: tuple[Path, ...], threads: int | None, timeout: float, key: Path | None) -> None:
    """Check artifacts: schema, every byte, the graph, and a replay of their test data. Needs no torch.

    A folder that holds artifacts stands for all of them.

    \b
    segonnx verify artifacts/stunet-s
    segonnx verify artifacts/*
    segonnx verify artifacts/stunet-s --key sender.pub
    """
    from segonnx.artifacts.verify import inside
    from segonnx.artifacts.verify import verify as verify_artifact
    from segonnx.core.progress import Display

    for artifact in artifacts:
        if not artifact.is_dir():
            raise InputError(f"{artifact} is not a folder")
    folders = [one for artifact in artifacts for one in inside(artifact)]
    failed = 0
    with Display() as display:
        for artifact in folders:
            try:
                found = verify_artifact(artifact, threads=threads or 0, timeout=timeout, key=key, progress=display)
            except SegonnxError as error:
                if len(folders) == 1:
                    raise
                failed += 1
                display.echo(f"{artifact}: FAILED: {error}", err=True)
            else:
                signed = f"signed by the owner of {key}, " if key is not None else ""
                display.echo(
                    f"{artifact}: {signed}OK ({found.files} files, {found.bytes:,} bytes); replay: {found.difference}"
                )
    if failed:
        raise VerifyError(f"{failed} of {len(folders)} artifacts failed")
