"""``segonnx predict``."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command("predict")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("source", type=click.Path(path_type=Path), metavar="INPUT")
@click.argument("target", type=click.Path(path_type=Path), metavar="OUTPUT")
@click.option("--previous", type=click.Path(path_type=Path), help="Of a cascade: the first stage's artifact.")
@click.option("--tta", is_flag=True, help="Test-time mirroring, along the axes that the artifact allows.")
@click.option("--step", type=click.FloatRange(0, 1, min_open=True), help="Between windows, in windows. [default: 0.5]")
@click.option("--threads", type=click.IntRange(1), help="Threads of the network. [default: all cores]")
@click.option("--probabilities", is_flag=True, help="Write the outputs' probabilities beside the label map.")
@click.option("--overwrite", is_flag=True, help="Replace what is there already.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write what was done, with times by step.")
def command(
    artifact: Path,
    source: Path,
    target: Path,
    previous: Path | None,
    tta: bool,
    step: float | None,
    threads: int | None,
    probabilities: bool,
    overwrite: bool,
    json_path: Path | None,
) -> None:
    """Make the label maps of images, as nnU-Net's own inference does. Needs no torch.

    INPUT is an image, or a folder of files CASE_0000.nii.gz, CASE_0001.nii.gz, ... (the channels of a case); OUTPUT a
    file, or for a folder, a folder. The artifact must be of a folder that nnU-Net trained, or of a network for
    pictures.

    \b
    segonnx predict artifacts/liver ct.nii.gz liver.nii.gz
    segonnx predict artifacts/liver imagesTs/ labels/ --tta
    segonnx predict artifacts/fine ct.nii.gz labels.nii.gz --previous artifacts/coarse
    """
    from segonnx.core import files
    from segonnx.core.progress import Display
    from segonnx.predict import files as predict_files
    from segonnx.predict import images
    from segonnx.predict.predictor import Artifact

    images.require()
    if json_path is not None:
        files.require_writable(json_path)
    options = predict_files.FileOptions(tta, step, probabilities, overwrite)
    done = []
    with Display() as display:
        display("loading the artifact")
        loaded = Artifact(artifact, threads=threads)
        if tta and not loaded.config.mirror_axes:
            display.echo(f"{artifact}: its network was trained without mirroring; --tta changes nothing", err=True)
        first = None if previous is None else Artifact(previous, threads=threads)
        for one in predict_files.predict(loaded, source, target, options, previous=first, progress=display):
            done.append(one)
            told = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in one.seconds.items())
            display.echo(f"{one.case}: {'x'.join(map(str, one.shape))} -> {one.path} ({told})")
    if json_path is not None:
        rows = [{"case": one.case, "path": str(one.path), "shape": one.shape, "seconds": one.seconds} for one in done]
        files.write(json_path, json.dumps(rows, indent=1) + "\n")
