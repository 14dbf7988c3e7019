"""``segonnx quantize``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segonnx.commands import options
from segonnx.errors import InputError

if TYPE_CHECKING:
    from segonnx.quantization.run import Quantized


@click.command("quantize")
@click.argument("artifact", type=options.PATH)
@click.option(
    "--calibration",
    type=options.PATH,
    required=True,
    metavar="IMAGES",
    help="Images as `segonnx predict` takes them, or .npy files of the network's own input.",
)
@click.option(
    "--held-out", type=options.PATH, metavar="IMAGES", help="Images of the verdict. [default: one in four of IMAGES]"
)
@options.out("Folder that the new artifact is made in.", required=True)
@click.option(
    "--min-dice",
    type=float,
    default=0.99,
    show_default=True,
    help="The least Dice against float32 that each label must keep.",
)
@click.option(
    "--budget",
    type=click.IntRange(0),
    default=0,
    metavar="LAYERS",
    help="How many layers may go back to float32, those that hurt most first. [default: none]",
)
@click.option(
    "--to",
    "kind",
    default="int8",
    metavar="KIND",
    show_default=True,
    help="What to compute in: int8, of static ranges.",
)
@options.threads("Threads of ONNX Runtime.")
@options.bounds("one step")
@options.overwrite()
@options.json_file("Write what was found.")
def command(artifact: Path, json_path: Path | None, **how: Any) -> None:
    """Make an artifact whose convolutions compute in int8, if labels stay what they are.

    Ranges of values are found on some of the images; the label maps of the others, in int8 and in float32, are
    compared. A label that loses more than is allowed is an error, and nothing is written.

    \b
    segonnx quantize artifacts/liver --calibration imagesTr/ --out int8
    segonnx quantize artifacts/liver --calibration imagesTr/ --held-out imagesTs/ --out int8 --budget 4
    """
    from segonnx.core import hardware
    from segonnx.core.subprocesses import Bounds
    from segonnx.quantization import run

    if (kind := how.pop("kind")) != "int8":
        why = run.REFUSED.get(kind, "there is int8")
        raise InputError(f"--to {kind}: {why}")
    bounds = Bounds(how.pop("timeout"), how.pop("max_memory"))
    threads = how.pop("threads") or hardware.usable_cores()
    options.require_folder(artifact)
    options.require_writable(json_path, artifact)
    request = run.Request(artifact, threads=threads, bounds=bounds, **how)
    with options.display() as display:
        done = run.quantize(request, display)
        for warning in done.warnings:
            display.echo(f"segonnx: {warning}", err=True)
        display.echo(_line(done))
    options.write_json(json_path, _as_json(done))


def _line(done: Quantized) -> str:
    entry, timed = done.manifest["quantization"], done.timed
    size, seconds, peak = timed.bytes, timed.seconds, timed.peak_rss_bytes
    return (
        f"{done.manifest['name']}: {entry['int8']} layers in int8, {len(entry['float32'])} in float32; {done.verdict}; "
        f"{size['int8'] / 1e6:,.1f} MB instead of {size['float32'] / 1e6:,.1f}; a pass {1e3 * seconds['int8']:,.0f} ms "
        f"instead of {1e3 * seconds['float32']:,.0f} ({timed.speedup:.2f}x), peak {peak['int8'] / 1e9:.2f} GB instead "
        f"of {peak['float32'] / 1e9:.2f} -> {done.folder}"
    )


def _as_json(done: Quantized) -> dict[str, Any]:
    return {
        "folder": str(done.folder),
        "seconds": done.seconds,
        "warnings": list(done.warnings),
        "worst_image": done.verdict.worst[2],
        **done.manifest["quantization"],
    }
