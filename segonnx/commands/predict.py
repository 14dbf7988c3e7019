"""``segonnx predict``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segonnx.commands import options

if TYPE_CHECKING:
    from segonnx.predict.files import Predicted


@click.command("predict")
@click.argument("artifact", type=options.PATH)
@click.argument("source", type=options.PATH, metavar="INPUT")
@click.argument("target", type=options.PATH, metavar="OUTPUT")
@click.option("--previous", type=options.PATH, help="Of a cascade: the first stage's artifact.")
@click.option("--tta", "mirror", is_flag=True, help="Test-time mirroring, along the axes that the artifact allows.")
@click.option("--step", type=click.FloatRange(0, 1, min_open=True), help="Between windows, in windows. [default: 0.5]")
@options.threads("Threads of the network.")
@options.bounds("one step, such as loading or a window,")
@click.option("--probabilities", is_flag=True, help="Write the outputs' probabilities beside the label map.")
@options.overwrite()
@options.json_file("Write what was done, with times by step.")
def command(artifact: Path, source: Path, target: Path, json_path: Path | None, **how: Any) -> None:
    """Make the label maps of images, as nnU-Net's own inference does. Needs no torch.

    INPUT is an image, or a folder of files CASE_0000.nii.gz, CASE_0001.nii.gz, ... (the channels of a case); OUTPUT a
    file, or for a folder, a folder. The artifact must be of a folder that nnU-Net trained, or of a network for
    pictures. Its graph runs in a process that has bounds on memory and time.

    \b
    segonnx predict artifacts/liver ct.nii.gz liver.nii.gz
    segonnx predict artifacts/liver imagesTs/ labels/ --tta
    segonnx predict artifacts/fine ct.nii.gz labels.nii.gz --previous artifacts/coarse
    """
    from segonnx.core.subprocesses import Bounds
    from segonnx.predict import bounded, files, images

    previous, threads = how.pop("previous"), how.pop("threads")
    bounds = Bounds(how.pop("timeout"), how.pop("max_memory"))
    settings = files.FileOptions(**how)
    images.require()
    options.require_writable(json_path)
    done: list[Predicted] = []
    with options.display() as display:
        checked = bounded.check(artifact, bounds, display)
        if settings.mirror and not checked.config.mirror_axes:
            display.echo(f"{artifact}: its network was trained without mirroring; --tta changes nothing", err=True)
        first = None if previous is None else bounded.check(previous, bounds, display)
        cases = bounded.predict(
            (checked, first), source, target, settings, threads=threads, bounds=bounds, progress=display
        )
        for case in cases:
            done.append(case)
            display.echo(_line(case))
    options.write_json(json_path, [asdict(case) | {"path": str(case.path)} for case in done])


def _line(case: Predicted) -> str:
    times = ", ".join(f"{step} {seconds:.1f} s" for step, seconds in case.seconds.items())
    return f"{case.case}: {'x'.join(map(str, case.shape))} -> {case.path} ({times})"
