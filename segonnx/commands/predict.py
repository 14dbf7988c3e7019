"""``segonnx predict``."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segonnx.commands import options
from segonnx.core import cluster
from segonnx.errors import CheckFailed, InputError, ResourceError

if TYPE_CHECKING:
    from distributed import Client

    from segonnx.core.progress import Display
    from segonnx.core.subprocesses import Bounds, Progress
    from segonnx.predict.bounded import Verified
    from segonnx.predict.cohort import Cohort
    from segonnx.predict.executors import Executor
    from segonnx.predict.files import FileOptions, Predicted

TELL_S = 60.0
"""How often a line tells how far a cohort is."""


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
@click.option(
    "--part",
    type=options.Part(),
    help="Of a folder: this part of its cases alone, of so many; parts are dealt by the images' sizes.",
)
@click.option("--fail-fast", is_flag=True, help="Of a folder: end with the first case that fails.")
@click.option(
    "--report",
    type=options.PATH,
    metavar="FILE.jsonl",
    help="Of a folder: append a line for each case that ends; `segonnx report` shows them.",
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
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Of a folder: do its cases on the workers of a Dask cluster, whose scheduler is at tcp://HOST:8786.",
)
@click.option(
    "--transfer", is_flag=True, help="Of --scheduler: send images and label maps. [default: workers see the same paths]"
)
@click.option(
    "--worker-wait",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="Of --scheduler: so long no worker may be there, before the command ends. [default: 60]",
)
@options.overwrite("Replace what is there already, but for what is done in the same way.")
@options.json_file("Write what was done, with times by step.")
def command(artifact: Path, source: Path, target: Path, json_path: Path | None, **how: Any) -> None:
    """Make the label maps of images, as nnU-Net's own inference does. Needs no torch.

    INPUT is an image, or a folder of files CASE_0000.nii.gz, CASE_0001.nii.gz, ... (the channels of a case); OUTPUT a
    file, or for a folder, a folder. There, cases that are done are skipped, and one that fails doesn't end the run,
    which then ends with exit code 1. Or INPUT is a DICOM series, in a folder or a zip file. The artifact must be of a
    folder that nnU-Net trained, of a task of TotalSegmentator, or of a network for pictures. Its graph runs in a
    process that has bounds on memory and time.

    \b
    segonnx predict artifacts/liver ct.nii.gz liver.nii.gz
    segonnx predict artifacts/liver imagesTs/ labels/ --tta
    segonnx predict artifacts/fine ct.nii.gz labels.nii.gz --previous artifacts/coarse
    segonnx predict artifacts/liver imagesTs/ labels/ --evaluate labelsTs/
    segonnx predict artifacts/liver cohort/ labels/ --part 3/16 --report part3.jsonl
    segonnx predict artifacts/liver cohort/ labels/ --scheduler tcp://10.0.0.5:8786
    segonnx predict artifacts/totalsegmentator-total ct.nii.gz labels.nii.gz --roi-subset liver,spleen
    """
    from segonnx.artifacts import manifest
    from segonnx.core.subprocesses import Bounds
    from segonnx.predict import bounded, series_files
    from segonnx.predict.cohort import Cohort, CohortOptions
    from segonnx.predict.files import FileOptions
    from segonnx.predict.looks import Wanted

    previous, threads, postprocess = how.pop("previous"), how.pop("threads"), how.pop("postprocess")
    bounds = Bounds(how.pop("timeout"), how.pop("max_memory"))
    scheduler, transfer, patience = how.pop("scheduler"), how.pop("transfer"), how.pop("worker_wait")
    through = {key: how.pop(key) for key in ("part", "fail_fast", "report")}
    subset = how.pop("roi_subset")
    how["roi_subset"] = None if subset is None else tuple(dict.fromkeys(subset.split(",")))
    looks = {key: how.pop(key) for key in ("preview", "layout", "statistics", "codes")}
    if scheduler is not None:  # workers stand in other folders
        how["evaluate"] = None if how["evaluate"] is None else how["evaluate"].absolute()
        source, target = source.absolute(), target.absolute()
        looks |= {key: looks[key].absolute() for key in ("preview", "statistics", "codes") if looks[key] is not None}
    if transfer and (given := [key for key in ("preview", "statistics", "codes") if looks[key] is not None]):
        raise InputError(
            f"--{given[0]} isn't sent back by workers: leave --transfer out, where they see the same paths"
        )
    how["looks"] = Wanted(**looks)
    settings = FileOptions(postprocess=postprocess is not False, **how)
    folders = (artifact, *(() if previous is None else (previous,)))
    for path in (json_path, through["report"]):
        options.require_writable(path, *folders)
    for folder in folders:
        options.require_outside(target, folder)
    _require_folder(source, {**through, "scheduler": scheduler})
    if transfer and scheduler is None:
        raise InputError("--transfer sends images to workers: it needs --scheduler ADDRESS")
    if patience is not None and scheduler is None:
        raise InputError("--worker-wait is for workers of a cluster: it needs --scheduler ADDRESS")
    done: list[Predicted] = []
    cohort = None
    with options.display() as display, options.orderly_end(), contextlib.ExitStack() as stack:
        client = None if scheduler is None else stack.enter_context(cluster.connect(scheduler))
        checked = bounded.check(artifact, bounds, display)
        if settings.mirror and not checked.config.mirror_axes and not manifest.is_task(checked.manifest):
            display.echo(f"{artifact}: its network was trained without mirroring; --tta changes nothing", err=True)
        if postprocess and not checked.config.postprocessing:
            display.echo(f"{artifact} carries no postprocessing; --postprocess changes nothing", err=True)
        artifacts = (checked, None if previous is None else bounded.check(previous, bounds, display))
        if source.is_dir() and not series_files.is_series(source, checked.config, settings):
            series_files.require_no_format(source, settings)
            cohort = Cohort(artifacts, source, target, settings, CohortOptions(**through), display)
            work = _Work(cohort, artifacts, settings, threads, bounds)
            executor = work.here(display) if client is None else work.on(client, display, patience, transfer=transfer)
            done = _through(cohort, executor, display, carried=client is None)
        else:
            for case in bounded.predict(
                artifacts, source, target, settings, threads=threads, bounds=bounds, progress=display
            ):
                done.append(case)
                display.echo(_line(case))
                for note in case.notes:
                    display.echo(note, err=True)
        if settings.evaluate is not None and (done or cohort is not None):
            display.echo(_evaluated(target if cohort is not None else target.parent))
    options.write_json(json_path, [_as_json(case) for case in done])
    if cohort is not None and (left := cohort.not_done):
        names = ", ".join(ended.case for ended in left)
        raise CheckFailed(f"{len(left):,} of {cohort.mine:,} cases aren't done: {names}")


def _require_folder(source: Path, given: dict[str, Any]) -> None:
    """Refuse options for folders where there is one image."""
    if not source.is_dir() and (names := [name for name, value in given.items() if value]):
        raise InputError(f"--{names[0].replace('_', '-')} is for a folder of cases, and {source} is none")


@dataclass(frozen=True)
class _Work:
    """What an executor needs to know."""

    cohort: Cohort
    artifacts: tuple[Verified, Verified | None]
    settings: FileOptions
    threads: int | None
    bounds: Bounds

    def here(self, display: Display) -> Executor:
        """An executor of this machine."""
        from segonnx.predict.executors import Local

        progress = _counted(self.cohort, display)
        return Local(
            self.artifacts,
            self.settings,
            self.cohort.recipe,
            threads=self.threads,
            bounds=self.bounds,
            progress=progress,
        )

    def on(self, client: Client, display: Display, patience: float | None, *, transfer: bool) -> Executor:
        """An executor of a cluster, which waits so many seconds for a worker where none is there."""
        from segonnx.predict.cluster_executor import PATIENCE_S, Cluster
        from segonnx.predict.remote import Run

        recipe = self.cohort.recipe
        run = Run(
            self.cohort.name,
            (recipe["artifact"], recipe["previous"]),
            self.settings,
            recipe,
            self.threads,
            self.bounds,
            None if transfer else self.cohort.mark,
        )
        progress = _counted(self.cohort, display)
        return Cluster(
            client,
            self.artifacts,
            run,
            progress=progress,
            tell=lambda line: display.echo(line, err=True),
            patience=patience or PATIENCE_S,
        )


def _counted(cohort: Cohort, display: Display) -> Progress:
    """A callback that says before each step how far the cohort is."""

    def progress(step: str, /) -> None:
        display(f"{_how_far(cohort)}; {step}")

    return progress


def _how_far(cohort: Cohort) -> str:
    left = cohort.remaining_s()
    time = "" if left is None else f", about {_duration(left)} left"
    return f"{len(cohort.ended):,} of {cohort.mine:,} cases{time}"


def _duration(seconds: float) -> str:
    """A time in words, as exact as an estimate is."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"


def _through(cohort: Cohort, executor: Executor, display: Display, *, carried: bool) -> list[Predicted]:
    """Go through a cohort, and tell what comes of it. The answer is what was done now."""
    import time
    from collections import Counter

    if cohort.part is not None:
        part, parts = cohort.part
        display.echo(
            f"part {part} of {parts}: {cohort.mine:,} of {cohort.cases:,} cases; the others are other processes'"
        )
    done: list[Predicted] = []
    told = time.monotonic()
    try:
        for ended in cohort.predict(executor, carried=carried):
            if ended.predicted is not None:
                done.append(ended.predicted)
                display.echo(_line(ended.predicted))
            elif ended.error is not None:
                display.echo(f"segonnx: {ended.case}: {ended.error}", err=True)
            if time.monotonic() - told > TELL_S:
                told = time.monotonic()
                display.echo(_how_far(cohort))
    except ResourceError:
        whole = sum(ended.status in ("done", "before") for ended in cohort.ended.values())
        display.echo(f"{whole:,} of {cohort.mine:,} cases are done, {cohort.mine - whole:,} aren't")
        raise
    counts = Counter(ended.status for ended in cohort.ended.values())
    if counts["before"] or counts["elsewhere"] or cohort.not_done:
        before = f", {counts['before']:,} of them before" if counts["before"] else ""
        elsewhere = f"; {counts['elsewhere']:,} are in the hands of other processes" if counts["elsewhere"] else ""
        display.echo(f"{counts['done'] + counts['before']:,} of {cohort.mine:,} cases are done{before}{elsewhere}")
    return done


def _as_json(case: Predicted) -> dict[str, Any]:
    from segonnx.predict import evaluation

    content = asdict(case) | {"path": str(case.path), "also": [str(path) for path in case.also]}
    if case.metrics is None:
        del content["metrics"]
    else:
        content["metrics"] = evaluation.jsonable(case.metrics)
    return content


def _line(case: Predicted) -> str:
    times = ", ".join(f"{step} {seconds:.1f} s" for step, seconds in case.seconds.items())
    dice = ""
    if case.metrics is not None:
        dice = "; Dice " + ", ".join(f"{key} {metrics['Dice']:.4f}" for key, metrics in case.metrics.items())
    made = ", ".join(map(str, (case.path, *case.also)))
    return f"{case.case}: {'x'.join(map(str, case.shape))} -> {made} ({times}){dice}"


def _evaluated(folder: Path) -> str:
    import json

    from segonnx.predict.evaluation import SUMMARY

    path = folder / SUMMARY
    if not path.exists():
        return "no case could be compared"
    summary = json.loads(path.read_text("utf-8"))
    count = len(summary["metric_per_case"])
    return f"mean Dice {summary['foreground_mean']['Dice']:.4f} of {count} case{'s' if count > 1 else ''} -> {path}"
