"""The command line: parse, call one function, print. Nothing else.

Heavy libraries are imported where they are needed, so that ``segonnx --help`` answers at once.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import click

from segonnx._version import __version__
from segonnx.errors import InputError, SegonnxError, VerifyError

if TYPE_CHECKING:
    from segonnx.bench.plan import Target
    from segonnx.bench.result import Row
    from segonnx.core.progress import Display
    from segonnx.exporters.pipeline import Exported, Settings
    from segonnx.sources.catalog import ModelSpec

BACKENDS = (
    "eager", "eager-channels-last", "compile", "compile-channels-last",
    "ort", "ort-stock", "openvino", "openvino-stock",
)  # fmt: skip
OPTIMIZE = ("cpu", "none")
OUTPUTS = ("logits", "labels")
PACKINGS = ("zip", "triton", "oci", "bundle")
CHECKPOINTS = ("final", "best")
FAMILIES = ("3d", "2d", "encoder")
INTERRUPTED = 130
"""The exit code that shells give a program that Ctrl-C ended."""


class _Group(click.Group):
    """Prints an expected error as one line, and exits with its code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SegonnxError as error:
            if ctx.params.get("debug"):
                raise
            _fail(error)


def _fail(error: SegonnxError) -> NoReturn:
    click.echo(f"segonnx: {error}", err=True)
    sys.exit(error.exit_code)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Segmentation networks as verified ONNX artifacts, and honest timings of the runtimes that run them.

    \b
    segonnx list                          the reference systems
    segonnx export stunet-s               one of them as an ONNX artifact in artifacts/stunet-s
    segonnx verify artifacts/stunet-s     is it whole, and does it compute what it should?
    segonnx bench stunet-s                its time in every runtime, side by side

    Exit codes: 0 done; 1 a check failed; 2 wrong use or bad input; 130 interrupted.
    """


@main.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array instead of a table.")
@click.option("--check", is_flag=True, help="Build every network without memory, count it, and compare. Needs torch.")
def list_(as_json: bool, check: bool) -> None:
    """Show the reference systems.

    \b
    segonnx list
    segonnx list --json | jq '.[].name'
    segonnx list --check
    """
    from segonnx.report import tables
    from segonnx.sources import catalog

    systems = catalog.systems()
    if as_json:
        click.echo(json.dumps([_as_json(spec) for spec in systems], indent=2))
    elif not check:
        click.echo(tables.systems(systems))
    if check:
        _check_catalogue()


def _as_json(spec: Any) -> dict[str, Any]:
    reference = spec.reference
    return {
        "name": spec.name,
        "family": spec.family,
        "input_shape": list(spec.input_shape),
        "num_classes": spec.num_classes,
        "parameters": reference.parameters,
        "training_parameters": reference.training_parameters,
        "published_parameters": spec.published_parameters,
        "published": [
            {"text": f.text, "source": f.source, "num_classes": f.num_classes or spec.num_classes}
            for f in spec.published
        ],
        "macs": reference.macs,
        "inference_macs": reference.inference_macs,
        "source": spec.source,
        "published_dsc_percent": spec.dsc_percent,
    }


def _check_catalogue() -> None:
    _require_torch("list --check")
    from segonnx.errors import ParityError
    from segonnx.exporters import parameters
    from segonnx.sources import catalog

    failed = []
    for spec in catalog.systems():
        assert spec.reference is not None
        counted = parameters.count(spec)
        checks = parameters.check(spec, counted)
        for one in checks:
            mark = "ok  " if one.passed else "FAIL"
            click.echo(f"{mark} {spec.name:32} {one.what}: {one.found:,} (expected {one.expected})")
        if not all(one.passed for one in checks):
            failed.append(spec.name)
            click.echo(parameters.mismatch_table(spec.reference.modules, counted.modules))
    if failed:
        raise ParityError(f"{len(failed)} of {len(catalog.systems())} systems differ: {', '.join(failed)}")


def _shape(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    try:
        return tuple(int(size) for size in value.replace("x", ",").split(","))
    except ValueError:
        raise InputError(f"--shape takes whole numbers, for example 64,128,128 or 512,512; found {value!r}") from None


def _numbers(_ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """Whole numbers above 0, separated by commas."""
    if value is None:
        return None
    parts = value.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise InputError(f"--{param.name} takes whole numbers above 0, for example 1 or 1,2,4; found {value!r}")
    return tuple(dict.fromkeys(map(int, parts)))


def _fraction(_ctx: click.Context, param: click.Parameter, value: str) -> float:
    """A fraction above 0, as 3% or 0.03."""
    try:
        number = float(value.removesuffix("%")) / (100 if value.endswith("%") else 1)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        name = (param.name or "").replace("_", "-")
        raise InputError(f"--{name} takes a percentage, for example 3%; found {value!r}")
    return number


@main.command()
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
    "--shape", callback=_shape, metavar="[D,]H,W", help="Spatial sizes of the input, instead of the system's."
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
def export(
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
        systems = _systems(names, everything)
    elif names or everything:
        raise InputError(f"{given[0]} FOLDER says which network it is: give no names or --all with it")
    if weights is not None and len(systems) > 1:
        raise InputError("--weights is one network's: name one system")
    _require_torch("export")
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
                display.echo(place + _exported_line(exported))
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
    from segonnx.sources.nnunet import folder

    with Display() as display:
        found = folder.trained(
            nnunet_folder,
            fold=fold,
            which=checkpoint,
            configuration=configuration,
            trust=settings.trust,
            progress=display,
        )
    return [(one.spec, replace(settings, checkpoints=one.checkpoints)) for one in found]


def _systems(names: tuple[str, ...], everything: bool) -> list[Any]:
    from segonnx.sources import catalog

    if everything == bool(names):
        raise InputError("give the names of systems, or --all (`segonnx list` shows them)")
    if names:
        return [catalog.find(name) for name in dict.fromkeys(names)]
    return sorted(catalog.systems(), key=lambda spec: spec.reference.parameters if spec.reference else 0)


def _require_torch(what: str) -> None:
    import importlib.util

    if importlib.util.find_spec("torch") is None:
        raise InputError(f"{what} needs PyTorch, which isn't installed: pip install 'segonnx[export]'")


def _exported_line(exported: Exported) -> str:
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


@main.command()
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
def verify(artifacts: tuple[Path, ...], threads: int | None, timeout: float, key: Path | None) -> None:
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
                    f"{artifact}: {signed}whole ({found.files} files, {found.bytes:,} bytes); "
                    f"replay: {found.difference}"
                )
    if failed:
        raise VerifyError(f"{failed} of {len(folders)} artifacts failed")


@main.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--key", type=click.Path(path_type=Path), required=True, help="Private key of an elliptic curve: a PEM file."
)
def sign(artifact: Path, key: Path) -> None:
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


@main.command()
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
def predict(
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
    done = []
    with Display() as display:
        display("loading the artifact")
        loaded = Artifact(artifact, threads=threads)
        if tta and not loaded.recipe.mirror_axes:
            display.echo(f"{artifact}: its network was trained without mirroring; --tta changes nothing", err=True)
        first = None if previous is None else Artifact(previous, threads=threads)
        for one in predict_files.predict(
            loaded, source, target, previous=first, probabilities=probabilities, mirror=tta, step=step,
            overwrite=overwrite, progress=display,
        ):  # fmt: skip
            done.append(one)
            told = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in one.seconds.items())
            display.echo(f"{one.case}: {'x'.join(map(str, one.shape))} -> {one.path} ({told})")
    if json_path is not None:
        rows = [{"case": one.case, "path": str(one.path), "shape": one.shape, "seconds": one.seconds} for one in done]
        files.write(json_path, json.dumps(rows, indent=1) + "\n")


@main.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(PACKINGS), required=True, help="What to make of it.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The file (zip) or folder to make.")
@click.option("--overwrite", is_flag=True, help="Replace what is there already.")
def pack(artifact: Path, form: str, out: Path, overwrite: bool) -> None:
    """Write an artifact as one zip file, or in the layout that another program takes. Needs no torch.

    The artifact is checked first. A zip file has the same bytes each time.

    \b
    segonnx pack artifacts/stunet-s --format zip --out stunet-s.zip
    segonnx pack artifacts/stunet-s --format triton --out model_repository
    segonnx pack artifacts/stunet-s --format oci --out stunet-s.oci
    segonnx pack artifacts/stunet-s --format bundle --out stunet-s-bundle
    """
    from segonnx.artifacts import packing
    from segonnx.core.progress import Display

    if not artifact.is_dir():
        raise InputError(f"{artifact} is not a folder")
    with Display() as display:
        packing.pack(artifact, form, out, overwrite=overwrite, progress=display)
    click.echo(f"{artifact}: packed as {form} -> {out}")


@main.command()
@click.argument("packed", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The artifact's folder to make.")
@click.option("--overwrite", is_flag=True, help="Replace what is there already.")
def unpack(packed: Path, out: Path, overwrite: bool) -> None:
    """Get the artifact out of a zip file or an OCI image layout. Needs no torch.

    Nothing is written unless every name, byte and the graph are as the manifest says.

    \b
    segonnx unpack stunet-s.zip --out artifacts/stunet-s
    segonnx unpack stunet-s.oci --out artifacts/stunet-s
    """
    from segonnx.artifacts import packing
    from segonnx.core.progress import Display

    with Display() as display:
        packing.unpack(packed, out, overwrite=overwrite, progress=display)
    click.echo(f"{packed}: whole -> {out}")


@main.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--all", "everything", is_flag=True, help="Time all reference systems, smallest first.")
@click.option("--family", type=click.Choice(FAMILIES), multiple=True, help="Time a family of them.")
@click.option("--artifact", "artifacts", type=click.Path(path_type=Path), multiple=True, help="Time this artifact.")
@click.option(
    "--backend",
    "backends",
    type=click.Choice(BACKENDS),
    multiple=True,
    help="Runtime; give it several times to compare. [default: eager, compile, ort, openvino]",
)
@click.option("--threads", callback=_numbers, metavar="N[,N]...", help="Threads of every runtime. [default: all cores]")
@click.option("--batch", callback=_numbers, metavar="N[,N]...", default="1", show_default=True, help="Batch sizes.")
@click.option(
    "--shape",
    "shapes",
    callback=lambda ctx, param, values: tuple(_shape(ctx, param, value) for value in values),
    metavar="[D,]H,W",
    multiple=True,
    help="Spatial sizes of the input, instead of the system's; several times for a sweep.",
)
@click.option(
    "--precision",
    callback=_fraction,
    metavar="PERCENT",
    default="3%",
    show_default=True,
    help="Rounds go on until all 95 % intervals reach no further than this.",
)
@click.option(
    "--max-time",
    type=click.FloatRange(0),
    default=300,
    show_default=True,
    metavar="SECONDS",
    help="Time for the rounds of one model.",
)
@click.option("--rounds", type=click.IntRange(1), help="Exactly so many rounds, whatever the intervals are.")
@click.option(
    "--processes",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Processes of every runtime, one after another, that share time and rounds.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=1800,
    show_default=True,
    metavar="SECONDS",
    help="The longest that loading, or one turn, may take.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the order in the rounds.")
@click.option(
    "--input", "input_path", type=click.Path(path_type=Path), help="Input as a .npy file of float32, instead of noise."
)
@click.option(
    "--autocast",
    type=click.Choice(["auto", "bf16", "off"]),
    default="off",
    show_default=True,
    help="bfloat16 in PyTorch; auto: where the processor multiplies it.",
)
@click.option(
    "--ort-option",
    "ort_options",
    multiple=True,
    metavar="KEY=VALUE",
    help="graph_optimization=all|layout|extended|basic|disabled, spinning=on|off, arena=on|off, outputs=bound|fresh.",
)
@click.option("--profile", is_flag=True, help="Tell the time by operator, from passes of their own.")
@click.option("--no-ceilings", is_flag=True, help="Don't measure the machine's matrix product and memory rates.")
@click.option(
    "--artifacts",
    "out",
    type=click.Path(path_type=Path),
    default=Path("artifacts"),
    show_default=True,
    help="Folder of the artifacts; what is missing there is exported first.",
)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the result with every sample.")
@click.option("--pyperf", "pyperf_path", type=click.Path(path_type=Path), help="Write a pyperf suite per runtime here.")
def bench(
    names: tuple[str, ...],
    everything: bool,
    family: tuple[str, ...],
    artifacts: tuple[Path, ...],
    backends: tuple[str, ...],
    threads: tuple[int, ...] | None,
    batch: tuple[int, ...],
    shapes: tuple[tuple[int, ...], ...],
    precision: float,
    max_time: float,
    rounds: int | None,
    processes: int,
    timeout: float,
    seed: int,
    input_path: Path | None,
    autocast: Any,
    ort_options: tuple[str, ...],
    profile: bool,
    no_ceilings: bool,
    out: Path,
    json_path: Path | None,
    pyperf_path: Path | None,
) -> None:
    """Time networks in several runtimes side by side, on the same input.

    Each runtime has processes of its own; they take turns in rounds until the intervals are narrow. The logits are
    compared, too. Ctrl-C ends the bench and keeps what was measured.

    \b
    segonnx bench stunet-s
    segonnx bench --all --backend ort
    segonnx bench --family encoder --autocast auto --json encoders.json
    segonnx bench --artifact artifacts/stunet-s --backend ort --threads 1,2
    segonnx bench stunet-s --shape 32,64,64 --shape 64,128,128 --profile
    """
    from segonnx import runtimes
    from segonnx.bench import plan, pyperf_suites, run, targets
    from segonnx.bench.rounds import Rule
    from segonnx.core import files, hardware
    from segonnx.core.progress import Display
    from segonnx.report import tables
    from segonnx.runtimes import ort
    from segonnx.runtimes.base import Options
    from segonnx.sources import catalog

    chosen = [spec.name for spec in catalog.systems() if spec.family in family]
    systems = [] if artifacts and not (names or everything or family) else _systems((*names, *chosen), everything)
    for name in dict.fromkeys(backends):
        if (why := runtimes.get(name).missing()) is not None:
            raise InputError(why)
    settings = plan.Settings(
        backends=tuple(dict.fromkeys(backends)) or runtimes.DEFAULTS,
        threads=threads or (hardware.usable_cores(),),
        rule=Rule(precision, max_time, rounds, seed),
        processes=processes,
        timeout_s=timeout,
        autocast=autocast,
        options=Options(threads=1, **ort.parse_options(ort_options)),
        profile=profile,
        ceilings=not no_ceilings,
    )
    plan.resolve_autocast(autocast)
    if json_path is not None:
        files.require_writable(json_path)
    if pyperf_path is not None:
        pyperf_suites.require(pyperf_path)
    with Display() as display:
        models: list[Target] = [targets.from_artifact(artifact, display) for artifact in artifacts]
        models += [
            targets.from_system(
                spec, out, settings, lambda exported: display.echo(_exported_line(exported)), display, shape, size
            )
            for spec in systems
            for shape in shapes or (None,)
            for size in batch
        ]
        targets.require_alike(models, settings)
        x = targets.read_input(input_path, models) if input_path is not None else None
        result = run.bench(models, settings, x, lambda rows: _tell(rows, display), display)
    click.echo(f"\n{result.autocast}")
    for key in catalog.FAMILIES:
        if any(row.family == key for row in result.rows):
            click.echo("\n" + tables.family(result, key))
    if found := tables.conclusions(result):
        click.echo("\n" + tables.conclusions_table(found))
    click.echo("\n" + tables.notes(result))
    if json_path is not None:
        result.write(json_path)
    if pyperf_path is not None:
        pyperf_suites.write(result, pyperf_path)
    if result.interrupted:
        sys.exit(INTERRUPTED)
    present = [name for name in settings.backends if not runtimes.get(name).missing()]
    failed = [row for row in result.rows if row.status != "ok" and row.backend in present]
    if not any(row.status == "ok" for row in result.rows):
        raise SegonnxError("nothing could be timed")
    if failed:
        rows = "; ".join(f"{row.model} in {row.backend}: {row.status}" for row in failed[:3])
        raise SegonnxError(f"{len(failed)} of {len(result.rows)} rows failed: {rows}")


def _tell(rows: list[Row], display: Display) -> None:
    from segonnx.report import tables

    for row in rows:
        time = row.status
        if row.median_s is not None and row.ci95_s is not None and row.status == "ok":
            time = tables.interval(row.median_s, row.ci95_s)
        ratio = f", {tables.speedup(row)} eager" if row.speedup_over_eager is not None else ""
        display.echo(f"{row.model} {row.backend}: {time}{ratio}")


@main.command()
@click.argument("old", type=click.Path(path_type=Path), metavar="OLD.json")
@click.argument("new", type=click.Path(path_type=Path), metavar="NEW.json")
@click.option(
    "--fail-above",
    callback=_fraction,
    metavar="PERCENT",
    default="5%",
    show_default=True,
    help="A row that is slower by more than this, beyond doubt, is a regression.",
)
@click.option("--force", is_flag=True, help="Compare other machines, inputs or settings, too.")
@click.option("--markdown", is_flag=True, help="Print GitHub's markdown, for the summary of a CI job.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the comparison.")
def compare(old: Path, new: Path, fail_above: float, force: bool, markdown: bool, json_path: Path | None) -> None:
    """Hold the result of a bench against an older one; exit code 1 tells of a regression.

    \b
    segonnx compare main.json branch.json
    segonnx compare main.json branch.json --fail-above 3% --markdown >> "$GITHUB_STEP_SUMMARY"
    """
    from segonnx.bench import comparison, result
    from segonnx.core import files
    from segonnx.report import markdown as md
    from segonnx.report import tables

    found = comparison.compare(result.read(old), result.read(new), fail_above, force=force)
    click.echo(md.comparison(found) if markdown else tables.comparison(found))
    if json_path is not None:
        files.require_writable(json_path)
        files.write(json_path, json.dumps(found.as_dict(), indent=1) + "\n")
    if found.regressions:
        sys.exit(1)


@main.command()
@click.argument("paths", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="RESULT.json...")
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Write a page: one file, no network.")
@click.option("--markdown", is_flag=True, help="Print the tables in GitHub's markdown.")
def report(paths: tuple[Path, ...], html: Path | None, markdown: bool) -> None:
    """Show the result of a bench, or several of one machine, as a page or as markdown for a README.

    \b
    segonnx report results/all.json --html results/all.html
    segonnx report results/3d.json results/2d.json --html both.html
    segonnx report results/all.json --markdown
    """
    from segonnx.bench import result
    from segonnx.core import files
    from segonnx.report import html as page
    from segonnx.report import markdown as md

    if html is None and not markdown:
        raise InputError("give --html FILE or --markdown")
    content = result.merge([result.read(path) for path in paths])
    if html is not None:
        files.require_writable(html)
        files.write(html, page.render(content))
        click.echo(html)
    if markdown:
        click.echo(md.result(content))
