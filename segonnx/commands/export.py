"""``segonnx export``."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from segonnx.commands import options
from segonnx.core import terminal
from segonnx.errors import InputError, SegonnxError

if TYPE_CHECKING:
    from segonnx.core.progress import Display
    from segonnx.core.subprocesses import Bounds
    from segonnx.exporters.nnunet import Selection, Trained
    from segonnx.exporters.pipeline import Exported, Settings
    from segonnx.sources.catalog import ModelSpec

OPTIMIZE = ("cpu", "none")
CPUS = ("avx512", "avx2", "native")
OUTPUTS = ("logits", "probabilities", "labels")
INPUTS = ("float", "uint8-nhwc", "uint8-nchw")
WEIGHTS_DTYPES = ("float32", "float16", "bfloat16")
BACKENDS = ("ort", "openvino")
CHECKPOINTS = ("final", "best")
PLANS_FROM = ("folder", "checkpoint")


@dataclass(frozen=True)
class Request:
    """What a user asked for: the options, by their names here."""

    names: tuple[str, ...]
    everything: bool
    out: Path
    weights: Path | None
    weights_prefix: str | None
    trust_checkpoint: bool
    pretrained: bool
    smp: str | None
    nnunet: Path | None
    totalsegmentator: str | None
    weights_dir: Path | None
    fold: str | None
    checkpoint: Literal["final", "best"] | None
    configuration: str | None
    plans_from: Literal["folder", "checkpoint"] | None
    allow_network_only: bool
    ensemble: bool
    postprocessing: str | None
    seed: int
    shape: tuple[int, ...] | None
    batch: int
    dynamic: bool
    optimize: Literal["cpu", "none"]
    cpu: Literal["avx512", "avx2", "native"]
    tune: bool
    tune_time: float | None
    tuning: Path | None
    max_weight_growth: float | None
    opset: int
    ir_version: int | None
    output: Literal["logits", "probabilities", "labels"]
    input: Literal["float", "uint8-nhwc", "uint8-nchw"]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    labels: Path | None
    check_with: tuple[str, ...]
    weights_dtype: Literal["float32", "float16", "bfloat16"]
    overwrite: bool
    threads: int | None
    timeout: float | None
    max_memory: int | None
    scheduler: str | None

    @property
    def reading(self) -> Bounds:
        """What reading a checkpoint may take."""
        from segonnx.core.subprocesses import Bounds

        return Bounds(self.timeout, self.max_memory)


@click.command("export")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--all", "everything", is_flag=True, help="Export all reference systems, smallest first.")
@options.out("Folder that artifacts are made in.", default=Path("artifacts"), show_default=True)
@click.option(
    "--weights",
    type=options.PATH,
    help="Checkpoint to load: safetensors, or a torch file read without running its code.",
)
@click.option(
    "--weights-prefix",
    metavar="PREFIX",
    help="Of --weights: take the tensors whose names begin so, and leave the others out. [default: found]",
)
@click.option(
    "--trust-checkpoint",
    is_flag=True,
    help="Run the code that a checkpoint brings. For files of people whom you trust with this machine.",
)
@click.option("--pretrained", is_flag=True, help="Load the weights that timm publishes, from its cache or the network.")
@click.option(
    "--smp",
    metavar="FOLDER",
    help="Export what smp's save_pretrained wrote: a folder, or OWNER/NAME of Hugging Face's hub.",
)
@click.option(
    "--nnunet",
    type=options.PATH,
    metavar="FOLDER",
    help="Export what nnU-Net v2 trained: the folder that holds plans.json and fold_0, or nnU-Net's zip file of it.",
)
@click.option(
    "--totalsegmentator",
    metavar="TASK",
    help="Export a task of TotalSegmentator whole: total, total_fast, body, ... `segonnx list --totalsegmentator`.",
)
@click.option(
    "--weights-dir",
    type=options.PATH,
    metavar="FOLDER",
    help="Of --totalsegmentator: what holds Dataset291_... [default: where TotalSegmentator keeps them]",
)
@click.option(
    "--fold",
    metavar="N[,N]...|all|ensemble",
    help="Of --nnunet: one fold, or the mean of several or all. [default: each fold]",
)
@click.option("--checkpoint", type=click.Choice(CHECKPOINTS), help="Of --nnunet.  [default: final]")
@click.option("--configuration", metavar="NAME", help="Of --nnunet, such as 3d_fullres, where there are several.")
@click.option(
    "--plans-from",
    type=click.Choice(PLANS_FROM),
    help="Of --nnunet: whose plans.json and dataset.json count, where they differ.  [default: folder]",
)
@click.option(
    "--allow-network-only",
    is_flag=True,
    help="Of --nnunet: export a network that `segonnx predict` can't prepare images for.",
)
@click.option(
    "--ensemble",
    is_flag=True,
    help="Of --nnunet DATASET: the configurations that nnU-Net found best, or those named as NAME, as one artifact.",
)
@click.option(
    "--postprocessing",
    metavar="FILE|none",
    help="Of --nnunet: the postprocessing.pkl to carry. [default: what the folder holds]",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Seed of the random weights, where there is no checkpoint.",
)
@click.option("--shape", type=options.Shape(), help="Spatial sizes of the input, instead of the system's.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Instances per pass.")
@click.option("--dynamic", is_flag=True, help="Leave the batch and the spatial sizes open.")
@click.option(
    "--optimize",
    type=click.Choice(OPTIMIZE),
    default="cpu",
    show_default=True,
    help="Rewrite the graph for CPUs, in standard ONNX; none: the graph as PyTorch wrote it.",
)
@click.option(
    "--cpu",
    type=click.Choice(CPUS),
    default="avx512",
    show_default=True,
    help="Processors that are to run the file; native: this one. It matters to networks with groups of 8 channels.",
)
@click.option("--tune", is_flag=True, help="Choose the rewrites by timing them on this machine: some minutes.")
@click.option(
    "--tune-time", type=click.FloatRange(1), metavar="SECONDS", help="Of --tune: how long it may search. [default: 600]"
)
@click.option(
    "--tuning",
    type=options.PATH,
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
    "--opset", type=int, default=20, show_default=True, metavar="N", help="Version of ONNX's operators, from 17 to 23."
)
@click.option(
    "--ir-version", type=int, metavar="N", help="Version of ONNX's file format.  [default: the least for the opset]"
)
@click.option(
    "--output",
    type=click.Choice(OUTPUTS),
    default="logits",
    show_default=True,
    help="What the file gives: logits or probabilities of each class, or one label per voxel.",
)
@click.option(
    "--input",
    type=click.Choice(INPUTS),
    default="float",
    show_default=True,
    help="What the file takes: normalised float32, or pictures of 8 bits, which it scales and normalises itself.",
)
@click.option(
    "--mean",
    type=options.Reals(),
    help="Of pictures in 0..1, for each channel: what `segonnx predict`, or the graph, takes off. "
    "[default: of the encoder's weights]",
)
@click.option("--std", type=options.Reals(), help="What it then divides by. Goes with --mean.")
@click.option(
    "--labels",
    type=options.PATH,
    metavar="FILE",
    help="Names of the classes: one a line, or JSON, a list or an object of values and names.",
)
@click.option(
    "--weights-dtype",
    type=click.Choice(WEIGHTS_DTYPES),
    default="float32",
    show_default=True,
    help="How weights are stored. 16 bits halve the file; they are widened at loading, and arithmetic stays float32.",
)
@click.option(
    "--check-with",
    type=click.Choice(BACKENDS),
    multiple=True,
    help="A runtime that must compute what PyTorch does, too; several times for several. ONNX Runtime always must.",
)
@options.overwrite("Replace artifacts that are there already.")
@options.threads("Threads for the checks.")
@options.timeout("reading a checkpoint", "by its size")
@options.max_memory("reading a checkpoint", "by its size")
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Export on the workers of a Dask cluster, as tcp://HOST:8786, a network on each; artifacts come back here.",
)
@options.json_file("Write what was done, with times and memory.")
def command(json_path: Path | None, **asked: Any) -> None:
    """Convert networks to ONNX artifacts, checked before and after.

    An artifact that is there already, made with the same arguments, is verified and kept.

    \b
    segonnx export stunet-s unet-resnet18
    segonnx export --all --out artifacts
    segonnx export --all --scheduler tcp://HOST:8786
    segonnx export stunet-b --weights base_ep4k.model
    segonnx export totalsegmentator --shape 128,128,128
    segonnx export --nnunet nnUNet_results/Dataset004_Hippocampus --configuration 3d_fullres --fold ensemble
    segonnx export --nnunet nnUNet_results/Dataset004_Hippocampus --ensemble
    segonnx export --nnunet nnUNet_results/Dataset004_Hippocampus --ensemble 2d 3d_fullres
    segonnx export --totalsegmentator total
    segonnx export smp:segformer:mit_b0 --dynamic --check-with openvino
    segonnx export totalsegmentator --output labels
    segonnx export stunet-b --tune
    segonnx export stunet-h --weights-dtype float16
    segonnx export encoder-lcnet-100 --pretrained
    segonnx export --smp FOLDER --shape 256,256
    segonnx export unet-resnet18 --input uint8-nhwc --output labels
    segonnx export smp:unet:resnet34 --weights best.ckpt --mean 0.5,0.5,0.5 --std 0.25,0.25,0.25 --labels names.txt
    """
    from segonnx.core import file_runs
    from segonnx.exporters import libraries

    request = Request(**{**asked, "check_with": tuple(dict.fromkeys(asked["check_with"]))})
    specs = _named(request)
    if request.scheduler is None:  # whose workers have what it takes
        file_runs.chosen(request.check_with, "--check-with")
        options.require_torch("export")
        libraries.preload()  # while this process imports its own
    options.require_writable(
        json_path, *(path for path in (request.weights, request.nnunet, request.labels) if path is not None)
    )
    with options.display() as display, contextlib.ExitStack() as stack:
        failed: dict[str, SegonnxError] = {}
        if request.ensemble:
            done = [_export_ensemble(request, display, stack)]
        elif request.totalsegmentator is not None:
            done = [_export_task(request, display)]
        else:
            jobs = _jobs(request, specs, display, stack)
            if request.scheduler is None:
                done, failed = _export(jobs, display)
            else:
                done, failed = _export_on_workers(request.scheduler, jobs, request.threads, display)
    options.write_json(json_path, [_as_json(exported) for exported in done])
    if failed:
        _fail(done, failed)


def _named(request: Request) -> list[ModelSpec]:
    """The systems that the user named; none where a folder says which network it is.

    Raises:
        InputError: options contradict each other.
    """
    ways = {
        "--weights": request.weights,
        "--pretrained": request.pretrained or None,
        "--smp": request.smp,
        "--nnunet": request.nnunet,
        "--totalsegmentator": request.totalsegmentator,
    }
    given = [way for way, value in ways.items() if value is not None]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} each say where the weights are: give one")
    if request.trust_checkpoint and (not given or request.pretrained):
        raise InputError(
            "--trust-checkpoint is for the file of --weights, or the folders of --smp, --nnunet or --totalsegmentator"
        )
    if request.weights_prefix is not None and (request.weights is None or not request.weights_prefix.strip(".")):
        raise InputError("--weights-prefix PREFIX goes with --weights FILE, whose tensors' names begin so")
    if request.tune_time is not None and not request.tune:
        raise InputError("--tune-time goes with --tune")
    _require_said_of_pictures(request)
    if request.scheduler is not None:
        _require_for_workers(request)
    if request.nnunet is None:
        _require_nnunet(request)
    if request.weights_dir is not None and request.totalsegmentator is None:
        raise InputError("--weights-dir goes with --totalsegmentator TASK")
    if request.totalsegmentator is not None and request.names:
        raise InputError("--totalsegmentator TASK says what is exported: give no names with it")
    if request.ensemble or request.totalsegmentator is not None:
        _require_for_all(request)
        return []
    if request.smp is not None or request.nnunet is not None:
        if request.names or request.everything:
            raise InputError(f"{given[0]} FOLDER says which network it is: give no names or --all with it")
        return []
    specs = options.systems(request.names, request.everything)
    if request.weights is not None and len(specs) > 1:
        raise InputError("--weights is one network's: name one system")
    return specs


def _require_said_of_pictures(request: Request) -> None:
    """See to it that what is said of pictures and classes is whole, and not of a folder that tells it.

    Raises:
        InputError: it isn't.
    """
    from segonnx.exporters import naming

    naming.require_normalisation(request.mean, request.std)
    given = {"--mean": request.mean, "--std": request.std, "--labels": request.labels}
    if request.nnunet is None and request.totalsegmentator is None:
        return
    if found := [option for option, value in given.items() if value is not None]:
        what = "--totalsegmentator TASK" if request.nnunet is None else "--nnunet FOLDER"
        raise InputError(f"{what} says how images are prepared and what the classes are: leave {found[0]} out")
    if request.input != "float":
        raise InputError(
            f"--input {request.input} is for 2D networks that see pictures, and nnU-Net's images are prepared in other "
            "ways: leave it out"
        )


def _require_nnunet(request: Request) -> None:
    """See to it that no option of ``--nnunet`` is given without it.

    Raises:
        InputError: one is.
    """
    given = {
        "--fold": request.fold,
        "--checkpoint": request.checkpoint,
        "--configuration": request.configuration,
        "--plans-from": request.plans_from,
        "--allow-network-only": request.allow_network_only or None,
        "--ensemble": request.ensemble or None,
        "--postprocessing": request.postprocessing,
    }
    if found := [option for option, value in given.items() if value is not None]:
        raise InputError(f"{' and '.join(found)} {'goes' if len(found) == 1 else 'go'} with --nnunet FOLDER")


def _require_for_all(request: Request) -> None:
    """Refuse the options that one network of an ensemble or a task can follow, and not all."""
    alone = {
        "--all": request.everything,
        "--configuration": request.configuration is not None,
        "--shape": request.shape is not None,
        "--batch": request.batch != 1,
        "--tuning": request.tuning is not None,
        f"--output {request.output}": request.output != "logits",
    }
    if given := [option for option, there in alone.items() if there]:
        several = "--totalsegmentator exports a task of several"
        if request.ensemble:
            several = "--ensemble exports several, and averages their probabilities"
        raise InputError(f"{given[0]} is for one network: {several}")


def _require_for_workers(request: Request) -> None:
    """Refuse the options that speak of this machine, or of files on it.

    Raises:
        InputError: one is given.
    """
    here = {
        "--weights": request.weights,
        "--smp": request.smp,
        "--nnunet": request.nnunet,
        "--totalsegmentator": request.totalsegmentator,
        "--tune": request.tune or None,
        "--tuning": request.tuning,
    }
    if given := [option for option, value in here.items() if value is not None]:
        raise InputError(
            f"{given[0]} goes without --scheduler: what it takes is on this machine, and the workers export systems by "
            "their names"
        )


def _export_ensemble(request: Request, display: Display, stack: contextlib.ExitStack) -> Exported:
    """What was exported of --nnunet DATASET --ensemble.

    What is unpacked for that stays until ``stack`` is closed.
    """
    from segonnx.exporters import ensemble, nnunet

    assert request.nnunet is not None
    folder = stack.enter_context(nnunet.opened(request.nnunet))
    found = ensemble.find(folder, request.names, _selection(request), display)
    networks = _checked([member.network for member in found.members], request, display)
    members = tuple(replace(member, network=own) for member, own in zip(found.members, networks, strict=True))
    exported = ensemble.export(replace(found, members=members), _settings(request), display.within(f"{found.name}: "))
    display.echo(ensemble_line(exported))
    return exported


def _export_task(request: Request, display: Display) -> Exported:
    """What was exported of --totalsegmentator TASK."""
    from segonnx.exporters import totalsegmentator

    assert request.totalsegmentator is not None
    selection = replace(_selection(request), fold=None)
    found = totalsegmentator.find(request.totalsegmentator, request.weights_dir, selection, display)
    networks = dict(zip(found.networks, _checked(list(found.networks.values()), request, display), strict=True))
    for note in found.notes:
        display.echo(f"segonnx: {note}", err=True)
    whole = replace(found, networks=networks)
    exported = totalsegmentator.export(whole, _settings(request), display.within(f"{found.name}: "))
    display.echo(task_line(exported))
    return exported


def _jobs(
    request: Request, specs: Sequence[ModelSpec], display: Display, stack: contextlib.ExitStack
) -> list[tuple[ModelSpec, Settings]]:
    """Every network to export, with its settings; those that are known to fail are refused before any work.

    What is unpacked for that stays until ``stack`` is closed.
    """
    from segonnx.exporters import nnunet, outputs, pipeline, pixels
    from segonnx.sources import smp

    settings = _settings(request)
    if request.nnunet is not None:
        folder = stack.enter_context(nnunet.opened(request.nnunet))
        found = _checked(nnunet.trained(folder, _selection(request), display), request, display)
        jobs = [(trained.spec, replace(settings, checkpoints=trained.checkpoints)) for trained in found]
    elif request.smp is not None:
        spec, weights = smp.find(request.smp)
        jobs = [(spec, replace(settings, checkpoints=(weights,)))]
    else:
        jobs = [(spec, settings) for spec in specs]
    for spec, _ in jobs:
        pipeline.input_shape(spec, request.shape, request.batch)
        outputs.require(spec, request.output)
        pixels.require(spec, request.input)
    return jobs


def _selection(request: Request) -> Selection:
    from segonnx.exporters import nnunet

    return nnunet.Selection(
        fold=request.fold,
        which=request.checkpoint or "final",
        configuration=request.configuration,
        trust=request.trust_checkpoint,
        plans_from=request.plans_from or "folder",
        postprocessing=request.postprocessing,
        reading=request.reading,
    )


def _checked(networks: Sequence[Trained], request: Request, display: Display) -> list[Trained]:
    """The networks of a trained folder as they are exported; what a user should know of them is printed.

    Raises:
        InputError: ``segonnx predict`` won't take one of them, and the user doesn't allow that.
    """
    checked = [replace(network, spec=_predictable(network.spec, request)) for network in networks]
    for note in dict.fromkeys(note for network in networks for note in network.notes):
        display.echo(f"segonnx: {note}", err=True)
    return checked


def _predictable(spec: ModelSpec, request: Request) -> ModelSpec:
    """The network, if ``segonnx predict`` will take it, or if the user allows that it won't: then the artifact says so.

    Raises:
        InputError: it won't.
    """
    from segonnx.predict import config

    try:
        config.of_network(spec.described, spec.name)
    except InputError as error:
        if not request.allow_network_only:
            raise InputError(f"{error} (--allow-network-only exports the network without that)") from error
        return replace(spec, described={**spec.described, "network_only": str(error)})
    return spec


def _settings(request: Request) -> Settings:
    from segonnx.core import hardware
    from segonnx.exporters import naming, pipeline

    return pipeline.Settings(
        out=request.out,
        checkpoints=() if request.weights is None else (request.weights,),
        trust=request.trust_checkpoint,
        weights_prefix=request.weights_prefix,
        pretrained=request.pretrained,
        seed=request.seed,
        shape=request.shape,
        batch=request.batch,
        dynamic=request.dynamic,
        optimize=request.optimize,
        cpu=request.cpu,
        tune=request.tune,
        tune_time=request.tune_time or pipeline.TUNE_S,
        tuning=request.tuning,
        max_weight_growth=request.max_weight_growth,
        opset=request.opset,
        ir_version=request.ir_version,
        output=request.output,
        input=request.input,
        mean=request.mean,
        std=request.std,
        labels=None if request.labels is None else naming.read_labels(request.labels),
        check_with=request.check_with,
        weights_dtype=request.weights_dtype,
        overwrite=request.overwrite,
        threads=request.threads or hardware.usable_cores(),
        reading=request.reading,
    )


def _export(
    jobs: Sequence[tuple[ModelSpec, Settings]], display: Display
) -> tuple[list[Exported], dict[str, SegonnxError]]:
    """What was exported, and the errors of what wasn't, by name.

    Raises:
        SegonnxError: the only one failed.
    """
    from segonnx.exporters import pipeline

    done: list[Exported] = []
    failed: dict[str, SegonnxError] = {}
    for number, (spec, settings) in enumerate(jobs, 1):
        place = f"[{number}/{len(jobs)}] " if len(jobs) > 1 else ""
        try:
            exported = pipeline.export(spec, settings, display.within(f"{place}{spec.name}: "))
        except SegonnxError as error:
            failed[spec.name] = error
            if len(jobs) == 1:
                raise
            display.echo(f"{place}{spec.name}: FAILED: {error}", err=True)
        else:
            done.append(exported)
            display.echo(place + exported_line(exported))
            if settings.checkpoints and exported.manifest["family"] == "smp" and (line := _unprepared(exported)):
                display.echo(f"segonnx: {line}", err=True)
    return done, failed


def _export_on_workers(
    address: str, jobs: Sequence[tuple[ModelSpec, Settings]], threads: int | None, display: Display
) -> tuple[list[Exported], dict[str, SegonnxError]]:
    """What was exported on the workers of a cluster, in the order of the jobs, and the errors of what wasn't, by name.

    Raises:
        SegonnxError: the only one failed, or there is no cluster.
    """
    from segonnx.core import cluster
    from segonnx.exporters import machines

    done: dict[str, Exported] = {}
    failed: dict[str, SegonnxError] = {}

    def end(spec: ModelSpec, ended: Exported | SegonnxError) -> None:
        place = f"[{len(done) + len(failed) + 1}/{len(jobs)}] " if len(jobs) > 1 else ""
        if isinstance(ended, SegonnxError):
            failed[spec.name] = ended
            if len(jobs) == 1:
                raise ended
            display.echo(f"{place}{spec.name}: FAILED: {ended}", err=True)
        else:
            done[spec.name] = ended
            display.echo(place + exported_line(ended))

    with cluster.connect(address) as client:
        machines.export(client, jobs, threads, end, display)
    return [done[spec.name] for spec, _ in jobs if spec.name in done], failed


def _fail(done: Sequence[Exported], failed: dict[str, SegonnxError]) -> None:
    message = f"{len(failed)} of {len(done) + len(failed)} failed: {', '.join(failed)}"
    if not done and all(isinstance(error, InputError) for error in failed.values()):
        raise InputError(message)
    terminal.line(f"segonnx: {message}", err=True)
    sys.exit(1)


def _unprepared(exported: Exported) -> str | None:
    """What to say where nothing tells how pictures are normalised."""
    if "mean" in exported.manifest["preprocessing"]:
        return None
    return (
        f"{exported.manifest['name']}: nothing tells mean and standard deviation of its pictures, so `segonnx predict` "
        "can't prepare any: --mean and --std say them"
    )


def exported_line(exported: Exported) -> str:
    """One line on an export."""
    from segonnx.core import file_runs

    content = exported.manifest
    if exported.kept:
        same = "intact and made with these arguments"
        return f"{content['name']}: kept {exported.folder}, {same} ({exported.seconds:.1f} s)"
    parity = content["parity"]
    known = "as referenced" if content["parameters"]["reference"] is not None else "(no reference to compare)"
    if "training" in content:
        known = "as in the checkpoint"
    size = sum(entry["bytes"] for name, entry in content["files"].items() if ".onnx" in name)
    also = "".join(f"; {file_runs.line(one)}" for one in parity.get("also", ()))
    return (
        f"{content['name']}: {content['parameters']['count']:,} parameters {known}; {_parity([content])}{also}; "
        f"{_storage(content)}"
        f"{size / 1e6:,.1f} MB, {exported.seconds:.1f} s, "
        f"peak {exported.peak_rss_bytes / 1e9:.2f} GB -> {exported.folder}"
    )


def _storage(content: dict[str, Any]) -> str:
    """What rounding the weights did, where they are in 16 bits."""
    if (storage := content["weights"].get("storage")) is None:
        return ""
    effect = storage["effect"]
    return (
        f"{storage['dtype']} weights against float32: max {effect['max_rel_error']:.1e}, "
        f"rms {effect['rms_rel_error']:.1e} of std, labels {100 * effect['label_agreement']:.4f} %; "
    )


def _parity(contents: Sequence[dict[str, Any]]) -> str:
    """How far the graphs of some manifests are from PyTorch, at most."""
    graphs = [content["parity"] for content in contents]
    graphs += [content["cpu_graph"]["parity"] for content in contents if "cpu_graph" in content]
    worst, rms = (max(one[key] for one in graphs) for key in ("max_rel_error", "rms_rel_error"))
    agreement = min(one["label_agreement"] for one in graphs)
    return f"ONNX against PyTorch: max {worst:.1e}, rms {rms:.1e} of std, labels {100 * agreement:.4f} %"


def ensemble_line(exported: Exported) -> str:
    """One line on an export of an ensemble."""
    content = exported.manifest
    if exported.kept:
        same = "intact and made with these arguments"
        return f"{content['name']}: kept {exported.folder}, {same} ({exported.seconds:.1f} s)"
    averaged = sum(member["averaged"] for member in content["members"])
    stages = len(content["members"]) - averaged
    also = f" and {stages} first stage{'s' if stages > 1 else ''}" if stages else ""
    size = sum(entry["bytes"] for name, entry in content["files"].items() if ".onnx" in name)
    return (
        f"{content['name']}: the mean of {averaged} network{'s' if averaged > 1 else ''}{also}; {size / 1e6:,.1f} MB, "
        f"{exported.seconds:.1f} s, peak {exported.peak_rss_bytes / 1e9:.2f} GB -> {exported.folder}"
    )


def task_line(exported: Exported) -> str:
    """One line on an export of a task."""
    from segonnx.artifacts import manifest

    content = exported.manifest
    if exported.kept:
        same = "intact and made with these arguments"
        return f"{content['name']}: kept {exported.folder}, {same} ({exported.seconds:.1f} s)"
    members = [manifest.read(exported.folder / member["folder"]) for member in content["members"]]
    count = sum(member["parameters"]["count"] for member in members)
    size = sum(entry["bytes"] for name, entry in content["files"].items() if ".onnx" in name)
    return (
        f"{content['name']}: {len(members)} network{'s' if len(members) > 1 else ''}, {count:,} parameters as in the "
        f"checkpoints; {_parity(members)}; {size / 1e6:,.1f} MB, "
        f"{exported.seconds:.1f} s, peak {exported.peak_rss_bytes / 1e9:.2f} GB -> {exported.folder}"
    )


def _as_json(exported: Exported) -> dict[str, Any]:
    from dataclasses import asdict

    told = ("parameters", "parity", "members")
    return {
        "name": exported.manifest["name"],
        "folder": str(exported.folder),
        "kept": exported.kept,
        "seconds": exported.seconds,
        "peak_rss_bytes": exported.peak_rss_bytes,
        "stages": {name: asdict(stage) for name, stage in exported.stages.items()},
        **{key: exported.manifest[key] for key in told if key in exported.manifest},
    }
