"""``segonnx export``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from segonnx.commands import options
from segonnx.errors import InputError, SegonnxError

if TYPE_CHECKING:
    from segonnx.exporters.pipeline import Exported, Settings
    from segonnx.sources.catalog import ModelSpec

OPTIMIZE = ("cpu", "none")
OUTPUTS = ("logits", "labels")
CHECKPOINTS = ("final", "best")


@click.command("export")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--all", "everything", is_flag=True, help="Export all reference systems, smallest first.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("artifacts"),
    show_default=True,
    help="Folder that artifacts are made in.",
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    help="Checkpoint to load: safetensors, or a torch file read without running its code.",
)
@click.option(
    "--trust-checkpoint",
    is_flag=True,
    help="Run the code that a checkpoint brings. For files of people whom you trust with this machine.",
)
@click.option("--pretrained", is_flag=True, help="Load the weights that timm publishes, from its cache or the network.")
@click.option(
    "--smp",
    "smp_source",
    metavar="FOLDER",
    help="Export what smp's save_pretrained wrote: a folder, or OWNER/NAME of Hugging Face's hub.",
)
@click.option(
    "--nnunet",
    "nnunet_folder",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Export what nnU-Net v2 trained: the folder that holds plans.json and fold_0.",
)
@click.option("--fold", metavar="N|all|ensemble", help="Of --nnunet: one fold, or the mean. [default: each fold]")
@click.option("--checkpoint", type=click.Choice(CHECKPOINTS), help="Of --nnunet.  [default: final]")
@click.option("--configuration", metavar="NAME", help="Of --nnunet, such as 3d_fullres, where there are several.")
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Seed of the random weights, where there is no checkpoint.",
)
@click.option(
    "--shape", callback=options.shape, metavar="[D,]H,W", help="Spatial sizes of the input, instead of the system's."
)
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Instances per pass.")
@click.option("--dynamic", is_flag=True, help="Leave the batch and the spatial sizes open.")
@click.option(
    "--optimize",
    type=click.Choice(OPTIMIZE),
    default="cpu",
    show_default=True,
    help="Rewrite the graph for CPUs, in standard ONNX; none: the graph as PyTorch wrote it.",
)
@click.option("--tune", is_flag=True, help="Choose the rewrites by timing them on this machine: some minutes.")
@click.option(
    "--tune-time", type=click.FloatRange(1), metavar="SECONDS", help="Of --tune: how long it may search. [default: 600]"
)
@click.option(
    "--tuning",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Make the choices that the manifest of a tuned artifact records.",
)
@click.option(
    "--max-weight-growth",
    type=click.FloatRange(1),
    metavar="TIMES",
    help="Rewrite 3D convolutions so that the runtime holds at most so many times their weights.",
)
@click.option(
    "--output",
    type=click.Choice(OUTPUTS),
    default="logits",
    show_default=True,
    help="What the file gives: logits of each class, or one label per voxel.",
)
@click.option("--overwrite", is_flag=True, help="Replace artifacts that are there already.")
@click.option("--threads", type=click.IntRange(1), help="Threads for the checks. [default: all cores]")
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path), help="Write what was done, with times and memory."
)
def command(
    names: tuple[str, ...],
    everything: bool,
    out: Path,
    weights: Path | None,
    trust_checkpoint: bool,
    pretrained: bool,
    smp_source: str | None,
    nnunet_folder: Path | None,
    fold: str | None,
    checkpoint: Literal["final", "best"] | None,
    configuration: str | None,
    seed: int,
    shape: tuple[int, ...] | None,
    batch: int,
    dynamic: bool,
    optimize: Literal["cpu", "none"],
    tune: bool,
    tune_time: float | None,
    tuning: Path | None,
    max_weight_growth: float | None,
    output: Literal["logits", "labels"],
    overwrite: bool,
    threads: int | None,
    json_path: Path | None,
) -> None:
    """Convert networks to ONNX artifacts, checked before and after.

    An artifact that is there already, made with the same arguments, is verified and kept.

    \b
    segonnx export stunet-s unet-resnet18
    segonnx export --all --out artifacts
    segonnx export stunet-b --weights base_ep4k.model
    segonnx export totalsegmentator --shape 128,128,128
    segonnx export --nnunet nnUNet_results/Dataset004_Hippocampus --configuration 3d_fullres --fold ensemble
    segonnx export smp:segformer:mit_b0 --dynamic
    segonnx export totalsegmentator --output labels
    segonnx export stunet-b --tune
    segonnx export encoder-lcnet-100 --pretrained
    segonnx export --smp FOLDER --shape 256,256
    """
    from segonnx.core import files, hardware
    from segonnx.core.progress import Display
    from segonnx.exporters import labels, pipeline
    from segonnx.sources import smp

    ways = {"--weights": weights, "--pretrained": pretrained or None, "--smp": smp_source, "--nnunet": nnunet_folder}
    given = [way for way, value in ways.items() if value is not None]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} each say where the weights are: give one")
    if trust_checkpoint and (not given or pretrained):
        raise InputError("--trust-checkpoint is for the file of --weights, or the folder of --smp or --nnunet")
    if tune_time is not None and not tune:
        raise InputError("--tune-time goes with --tune")
    if nnunet_folder is None and any(option is not None for option in (fold, checkpoint, configuration)):
        raise InputError("--fold, --checkpoint and --configuration go with --nnunet FOLDER")
    systems: list[ModelSpec] = []
    if smp_source is None and nnunet_folder is None:
        systems = options.systems(names, everything)
    elif names or everything:
        raise InputError(f"{given[0]} FOLDER says which network it is: give no names or --all with it")
    if weights is not None and len(systems) > 1:
        raise InputError("--weights is one network's: name one system")
    options.require_torch("export")
    if smp_source is not None:
        spec, weights = smp.find(smp_source)
        systems = [spec]
    if json_path is not None:
        files.require_writable(json_path)
    settings = pipeline.Settings(
        out=out,
        checkpoints=() if weights is None else (weights,),
        trust=trust_checkpoint,
        pretrained=pretrained,
        seed=seed,
        shape=shape,
        batch=batch,
        dynamic=dynamic,
        optimize=optimize,
        tune=tune,
        tune_time=tune_time or pipeline.TUNE_S,
        tuning=tuning,
        max_weight_growth=max_weight_growth,
        output=output,
        overwrite=overwrite,
        threads=threads or hardware.usable_cores(),
    )
    jobs = [(spec, settings) for spec in systems]
    if nnunet_folder is not None:
        jobs = _trained(nnunet_folder, fold, checkpoint or "final", configuration, settings)
    for spec, _ in jobs:
        pipeline.input_shape(spec, shape, batch)
        if output == "labels":
            labels.require(spec)
    done: list[Exported] = []
    failed: dict[str, SegonnxError] = {}
    with Display() as display:
        for number, (spec, how) in enumerate(jobs, 1):
            place = f"[{number}/{len(jobs)}] " if len(jobs) > 1 else ""
            try:
                exported = pipeline.export(spec, how, display.within(f"{place}{spec.name}: "))
            except SegonnxError as error:
                failed[spec.name] = error
                if len(jobs) == 1:
                    raise
                display.echo(f"{place}{spec.name}: FAILED: {error}", err=True)
            else:
                done.append(exported)
                display.echo(place + exported_line(exported))
    if json_path is not None:
        files.write(json_path, json.dumps([_exported_json(one) for one in done], indent=1) + "\n")
    if failed:
        message = f"{len(failed)} of {len(jobs)} failed: {', '.join(failed)}"
        if not done and all(isinstance(error, InputError) for error in failed.values()):
            raise InputError(message)
        click.echo(f"segonnx: {message}", err=True)
        sys.exit(1)


def _trained(
    nnunet_folder: Path,
    fold: str | None,
    checkpoint: Literal["final", "best"],
    configuration: str | None,
    settings: Settings,
) -> list[tuple[ModelSpec, Settings]]:
    """The networks of a folder that nnU-Net trained, each with its checkpoints."""
    from dataclasses import replace

    from segonnx.core.progress import Display
    from segonnx.exporters import nnunet

    with Display() as display:
        selection = nnunet.Selection(fold, checkpoint, configuration, settings.trust)
        found = nnunet.trained(nnunet_folder, selection, display)
    return [(one.spec, replace(settings, checkpoints=one.checkpoints)) for one in found]


def exported_line(exported: Exported) -> str:
    """One line on an export."""
    content = exported.manifest
    if exported.kept:
        return (
            f"{content['name']}: kept {exported.folder}, whole and made with these arguments ({exported.seconds:.1f} s)"
        )
    parity = content["parity"]
    known = "as referenced" if content["parameters"]["reference"] is not None else "(no reference to compare)"
    if "training" in content:
        known = "as in the checkpoint"
    size = sum(entry["bytes"] for name, entry in content["files"].items() if name.startswith("model.onnx"))
    return (
        f"{content['name']}: {content['parameters']['count']:,} parameters {known}; ONNX against PyTorch: "
        f"max {parity['max_rel_error']:.1e}, rms {parity['rms_rel_error']:.1e} of the spread, "
        f"labels {100 * parity['label_agreement']:.4f} %; {size / 1e6:,.1f} MB, {exported.seconds:.1f} s, "
        f"peak {exported.peak_rss_bytes / 1e9:.2f} GB -> {exported.folder}"
    )


def _exported_json(exported: Exported) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "name": exported.manifest["name"],
        "folder": str(exported.folder),
        "kept": exported.kept,
        "seconds": exported.seconds,
        "peak_rss_bytes": exported.peak_rss_bytes,
        "stages": {name: asdict(stage) for name, stage in exported.stages.items()},
        "parameters": exported.manifest["parameters"],
        "parity": exported.manifest["parity"],
    }
