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
@click.option(
    "--postprocess/--no-postprocess",
    default=None,
    help="Apply the postprocessing that the artifact carries.  [default: where it carries one]",
)
@options.bounds("one step, such as loading or a window,")
@click.option("--probabilities", is_flag=True, help="Write the outputs' probabilities beside the label map.")
@click.option("--nan-as-zero", is_flag=True, help="Take 0 for NaN and infinities, which are refused otherwise.")
@click.option(
    "--evaluate",
    type=options.PATH,
    metavar="LABELS",
    help="Compare with the label maps in this folder; write summary.json.",
)
@click.option(
    "--roi-subset",
    metavar="NAME[,NAME]...",
    help="Of a task: these classes alone, in the part of the image where a rough network finds them.",
)
@click.option("--remove-small-blobs", is_flag=True, help="Of a task: drop components up to 200 mm3 of each class.")
@click.option(
    "--one-file-per-class", is_flag=True, help="Of a task: OUTPUT is a folder that gets a mask of each class."
)
@click.option("--series", metavar="UID|NUMBER", help="Of DICOM: the series to take, where there are several.")
@click.option(
    "--format",
    "formats",
    type=click.Choice(["nifti", "dicom-seg", "dicom-rtstruct"]),
    multiple=True,
    default=["nifti"],
    show_default=True,
    help="Of DICOM: what to write; several times for several.",
)
@click.option(
    "--seg-type",
    type=click.Choice(["binary", "labelmap"]),
    default="binary",
    show_default=True,
    help="Of dicom-seg: a bit for each segment, which every viewer reads, or a label for each voxel.",
)
@click.option("--codes", type=options.PATH, metavar="FILE.csv", help="SNOMED codes and colours of the labels.")
@click.option("--preview", type=options.PATH, metavar="FILE.png", help="Write a picture of the label map.")
@click.option(
    "--preview-layout",
    "layout",
    type=click.Choice(["planes", "slices"]),
    default="planes",
    show_default=True,
    help="A plane of each direction, or slices.",
)
@click.option(
    "--statistics",
    type=options.PATH,
    metavar="FILE.csv|FILE.json",
    help="Write volume, mean, deviation and place of each label.",
)
@options.overwrite()
@options.json_file("Write what was done, with times by step.")
def command(artifact: Path, source: Path, target: Path, json_path: Path | None, **how: Any) -> None:
    """Make the label maps of images, as nnU-Net's own inference does. Needs no torch.

    INPUT is an image, or a folder of files CASE_0000.nii.gz, CASE_0001.nii.gz, ... (the channels of a case); OUTPUT a
    file, or for a folder, a folder. Or INPUT is a DICOM series, in a folder or a zip file. The artifact must be of a
    folder that nnU-Net trained, of a task of TotalSegmentator, or of a network for pictures. Its graph runs in a
    process that has bounds on memory and time.

    \b
    segonnx predict artifacts/liver ct.nii.gz liver.nii.gz
    segonnx predict artifacts/liver imagesTs/ labels/ --tta
    segonnx predict artifacts/fine ct.nii.gz labels.nii.gz --previous artifacts/coarse
    segonnx predict artifacts/liver imagesTs/ labels/ --evaluate labelsTs/
    segonnx predict artifacts/totalsegmentator-total ct.nii.gz labels.nii.gz --roi-subset liver,spleen
    segonnx predict artifacts/liver series/ liver.dcm --format dicom-seg --preview liver.png
    """
    from segonnx.artifacts import manifest
    from segonnx.core.subprocesses import Bounds
    from segonnx.predict import bounded, files
    from segonnx.predict.looks import Wanted

    previous, threads, postprocess = how.pop("previous"), how.pop("threads"), how.pop("postprocess")
    bounds = Bounds(how.pop("timeout"), how.pop("max_memory"))
    subset = how.pop("roi_subset")
    how["roi_subset"] = None if subset is None else tuple(dict.fromkeys(subset.split(",")))
    how["looks"] = Wanted(**{key: how.pop(key) for key in ("preview", "layout", "statistics", "codes")})
    settings = files.FileOptions(postprocess=postprocess is not False, **how)
    options.require_writable(json_path, artifact, *(() if previous is None else (previous,)))
    for folder in (artifact, *(() if previous is None else (previous,))):
        options.require_outside(target, folder)
    done: list[Predicted] = []
    with options.display() as display:
        checked = bounded.check(artifact, bounds, display)
        if settings.mirror and not checked.config.mirror_axes and not manifest.is_task(checked.manifest):
            display.echo(f"{artifact}: its network was trained without mirroring; --tta changes nothing", err=True)
        if postprocess and not checked.config.postprocessing:
            display.echo(f"{artifact} carries no postprocessing; --postprocess changes nothing", err=True)
        first = None if previous is None else bounded.check(previous, bounds, display)
        cases = bounded.predict(
            (checked, first), source, target, settings, threads=threads, bounds=bounds, progress=display
        )
        for case in cases:
            done.append(case)
            display.echo(_line(case))
            for note in case.notes:
                display.echo(note, err=True)
        if settings.evaluate is not None and done:
            display.echo(_evaluated(done))
    options.write_json(json_path, [_as_json(case) for case in done])


def _as_json(case: Predicted) -> dict[str, Any]:
    import math

    content = asdict(case) | {"path": str(case.path), "also": [str(path) for path in case.also]}
    if case.metrics is None:
        del content["metrics"]
    else:  # a label that is nowhere has no Dice
        content["metrics"] = {
            key: {name: None if math.isnan(value) else value for name, value in metrics.items()}
            for key, metrics in case.metrics.items()
        }
    return content


def _line(case: Predicted) -> str:
    times = ", ".join(f"{step} {seconds:.1f} s" for step, seconds in case.seconds.items())
    dice = ""
    if case.metrics is not None:
        dice = "; Dice " + ", ".join(f"{key} {metrics['Dice']:.4f}" for key, metrics in case.metrics.items())
    made = ", ".join(map(str, (case.path, *case.also)))
    return f"{case.case}: {'x'.join(map(str, case.shape))} -> {made} ({times}){dice}"


def _evaluated(done: list[Predicted]) -> str:
    import json

    from segonnx.predict.evaluation import SUMMARY

    path = done[0].path.with_name(SUMMARY)
    dice = json.loads(path.read_text("utf-8"))["foreground_mean"]["Dice"]
    return f"mean Dice {dice:.4f} of {len(done)} case{'s' if len(done) > 1 else ''} -> {path}"
