"""``segonnx verify``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segonnx.commands import options
from segonnx.errors import SegonnxError, VerifyError

if TYPE_CHECKING:
    from segonnx.artifacts.verify import Verified

BACKENDS = ("ort", "openvino")


@click.command("verify")
@click.argument("artifacts", type=options.PATH, nargs=-1, required=True, metavar="ARTIFACT...")
@click.option(
    "--backend",
    "backends",
    type=click.Choice(BACKENDS),
    multiple=True,
    help="Replay in this runtime, too; several times for several.  [default: ort, always]",
)
@options.threads("Threads of the replay.", "the runtime's choice")
@options.bounds("a step, such as the replay,")
@click.option("--key", type=options.PATH, metavar="PUBLIC", help="Who must have signed them: a PEM file.")
@options.json_file("Write what was found of each artifact.")
def command(
    artifacts: tuple[Path, ...],
    backends: tuple[str, ...],
    threads: int | None,
    key: Path | None,
    json_path: Path | None,
    **how: Any,
) -> None:
    """Check artifacts: schema, every byte, the graph, and a replay of their test data. Needs no torch.

    A folder that holds artifacts stands for all of them.

    \b
    segonnx verify artifacts/stunet-s
    segonnx verify artifacts/*
    segonnx verify artifacts/stunet-s --key sender.pub
    segonnx verify artifacts/stunet-s --backend openvino
    """
    from segonnx.artifacts.verify import inside, verify
    from segonnx.core import file_runs
    from segonnx.core.subprocesses import Bounds

    bounds = Bounds(how["timeout"], how["max_memory"])
    also = tuple(name for name in file_runs.chosen(backends, "--backend") if name != "ort")
    for artifact in artifacts:
        options.require_folder(artifact)
    folders = [folder for artifact in artifacts for folder in inside(artifact)]
    options.require_writable(json_path, *folders, *(() if key is None else (key,)))
    found: dict[Path, Verified | SegonnxError] = {}
    with options.display() as display:
        for folder in folders:
            try:
                verified = verify(folder, also=also, threads=threads or 0, bounds=bounds, key=key, progress=display)
            except SegonnxError as error:
                found[folder] = error
                if len(folders) > 1:
                    display.echo(f"{folder}: FAILED: {error}", err=True)
            else:
                found[folder] = verified
                display.echo(f"{folder}: {_line(verified, key)}")
    options.write_json(json_path, [_as_json(folder, result) for folder, result in found.items()])
    errors = [result for result in found.values() if isinstance(result, SegonnxError)]
    if errors:
        raise errors[0] if len(folders) == 1 else VerifyError(f"{len(errors)} of {len(folders)} artifacts failed")


def _line(verified: Verified, key: Path | None) -> str:
    also = "".join(f"; {one}" for one in verified.also)
    signed = f"signed by the owner of {key}, " if key is not None else ""
    return f"{signed}OK ({verified.files} files, {verified.bytes:,} bytes); replay: {verified.difference}{also}"


def _as_json(folder: Path, result: Verified | SegonnxError) -> dict[str, Any]:
    from dataclasses import asdict

    if isinstance(result, SegonnxError):
        return {"artifact": str(folder), "status": "failed", "error": str(result)}
    assert result.difference is not None  # the replay was asked for
    return {
        "artifact": str(folder),
        "status": "ok",
        "digest": result.manifest["digest"],
        "files": result.files,
        "bytes": result.bytes,
        "replay": asdict(result.difference),
        **({"also": [one.entry for one in result.also]} if result.also else {}),
    }
