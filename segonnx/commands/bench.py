"""``segonnx bench``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from segonnx import runtimes
from segonnx.commands import options
from segonnx.commands.export import exported_line
from segonnx.core import terminal
from segonnx.errors import InputError, SegonnxError, one_line
from segonnx.sources import catalog

if TYPE_CHECKING:
    from segonnx.bench.machines import Machines
    from segonnx.bench.plan import Settings, Target
    from segonnx.bench.plan_file import Plan
    from segonnx.bench.result import Result, Row
    from segonnx.commands.bench_plan import Work
    from segonnx.core.progress import Display
    from segonnx.sources.catalog import ModelSpec

FAMILIES = tuple(dict.fromkeys(spec.family for spec in catalog.systems()))
AUTOCAST = ("auto", "bf16", "off")
WITH_PLAN = ("artifacts", "out", "input_path", "plan_path", "scheduler", "json_path", "pyperf_path")
"""What may stand beside ``--plan``: where things are, on this machine."""


@dataclass(frozen=True)
class Request:
    """What a user asked for: the options, by their names here."""

    names: tuple[str, ...]
    everything: bool
    families: tuple[str, ...]
    artifacts: tuple[Path, ...]
    backends: tuple[str, ...]
    threads: tuple[int, ...] | None
    batch: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    precision: float
    max_time: float
    rounds: int | None
    processes: int
    timeout: float | None
    max_memory: int | None
    seed: int
    input_path: Path | None
    autocast: Literal["auto", "bf16", "off"]
    ort_options: tuple[str, ...]
    profile: bool
    diagnose: bool
    no_roofline: bool
    out: Path


@click.command("bench")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--all", "everything", is_flag=True, help="Time all reference systems, smallest first.")
@click.option("--family", "families", type=click.Choice(FAMILIES), multiple=True, help="Time a family of them.")
@click.option("--artifact", "artifacts", type=options.PATH, multiple=True, help="Time this artifact.")
@click.option(
    "--backend",
    "backends",
    type=click.Choice(runtimes.NAMES),
    multiple=True,
    help=f"Runtime; give it several times to compare. [default: those that can of {', '.join(runtimes.DEFAULTS)}]",
)
@click.option("--threads", type=options.Numbers(), help="Threads of every runtime. [default: all cores]")
@click.option("--batch", type=options.Numbers(), default="1", show_default=True, help="Batch sizes.")
@click.option(
    "--shape",
    "shapes",
    type=options.Shape(),
    multiple=True,
    help="Spatial sizes of the input, instead of the system's; several times for a sweep.",
)
@click.option(
    "--precision",
    type=options.Percentage(),
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
@click.option("--rounds", type=click.IntRange(1, 100_000), help="Exactly so many rounds, whatever the intervals are.")
@click.option(
    "--processes",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Processes of every runtime, one after another, that share time and rounds.",
)
@options.timeout("loading, or one block of passes,", "1800")
@options.max_memory("each process that runs an artifact")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the order in the rounds.")
@click.option("--input", "input_path", type=options.PATH, help="Input as a .npy file of float32, instead of noise.")
@click.option(
    "--autocast",
    type=click.Choice(AUTOCAST),
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
@click.option("--diagnose", is_flag=True, help="Measure the core-to-core latency before every block.")
@click.option(
    "--no-roofline",
    "--no-ceilings",
    "no_roofline",
    is_flag=True,
    help="Don't measure the machine's matrix product and memory rates.",
)
@click.option(
    "--artifacts",
    "out",
    type=options.PATH,
    default=Path("artifacts"),
    show_default=True,
    help="Folder of the artifacts; what is missing there is exported first.",
)
@click.option(
    "--plan-out",
    type=options.PATH,
    metavar="FILE",
    help="Write all that decides what is run as a plan for other machines, and run nothing.",
)
@click.option(
    "--plan",
    "plan_path",
    type=options.PATH,
    metavar="FILE",
    help="Run a plan: its artifacts are found by their digests, among those of --artifact and --artifacts.",
)
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Time on the machines of a Dask cluster, as tcp://HOST:8786: one of each kind that has a worker with the "
    "resource bench.",
)
@options.json_file("Write the result with every sample.")
@click.option("--pyperf", "pyperf_path", type=options.PATH, metavar="FOLDER", help="Write a pyperf suite per runtime.")
def command(
    json_path: Path | None,
    pyperf_path: Path | None,
    plan_path: Path | None,
    plan_out: Path | None,
    scheduler: str | None,
    **asked: Any,
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
    segonnx bench --family 2d --plan-out plan.json
    segonnx bench --plan plan.json --json here.json
    segonnx bench --plan plan.json --scheduler tcp://HOST:8786 --json machines.json
    """
    from segonnx.bench import pyperf_suites, run

    request = Request(**asked)
    if plan_path is None:
        specs, settings = _named(request), _settings(request, here=plan_out is None and scheduler is None)
    else:
        _require_beside_plan(click.get_current_context())
    used = [*request.artifacts, *(path for path in (request.input_path, plan_path) if path is not None)]
    if scheduler is not None and (plan_out is not None or pyperf_path is not None):
        given = "--plan-out" if plan_out is not None else "--pyperf"
        raise InputError(f"{given} doesn't go with --scheduler: its result is of several machines")
    for path in (json_path, plan_out):
        options.require_writable(path, *used)
    if pyperf_path is not None:
        pyperf_suites.require(pyperf_path)
    with options.display() as display:
        work = _asked(request, specs, settings, display) if plan_path is None else _read(request, plan_path, display)
        if plan_out is not None:
            work.plan.write(plan_out)
            display.echo(f"{_summary(work.plan)} -> {plan_out}")
            return
        if scheduler is not None:
            _bench_machines(scheduler, work, json_path, display)
            return
        result = run.bench(work.targets, work.plan.here(), work.x, lambda rows: _print_rows(rows, display), display)
    _print(result)
    if json_path is not None:
        result.write(json_path)
    if pyperf_path is not None:
        pyperf_suites.write(result, pyperf_path)
    _end(result)


def _named(request: Request) -> list[ModelSpec]:
    """The systems that the user named; none where there are only artifacts."""
    chosen = [spec.name for spec in catalog.systems() if spec.family in request.families]
    if request.artifacts and not (request.names or request.everything or chosen):
        return []
    return options.systems((*request.names, *chosen), request.everything)


def _require_beside_plan(ctx: click.Context) -> None:
    """Refuse options that say what a plan says.

    Raises:
        InputError: which.
    """
    default = click.core.ParameterSource.DEFAULT
    for param in ctx.command.params:
        assert param.name is not None
        if param in options.EVERYWHERE or param.name in WITH_PLAN or ctx.get_parameter_source(param.name) is default:
            continue
        named = max(param.opts, key=len) if isinstance(param, click.Option) else "NAME"
        raise InputError(f"--plan says what is run: leave {named} out")


def _settings(request: Request, *, here: bool) -> Settings:
    """How to time.

    Args:
        request: what the user asked for.
        here: whether it is timed on this machine.

    Raises:
        InputError: a runtime that was asked for isn't installed, or something can't be done here.
    """
    from segonnx.bench import plan
    from segonnx.bench.rounds import Rule
    from segonnx.core import hardware
    from segonnx.core.subprocesses import STEP_S
    from segonnx.runtimes import ort
    from segonnx.runtimes.base import Options

    backends = tuple(dict.fromkeys(request.backends))
    for name in backends if here else ():
        if (why := runtimes.get(name).missing()) is not None:
            raise InputError(why)
    if here:
        plan.resolve_autocast(request.autocast)
    return plan.Settings(
        backends=backends or runtimes.DEFAULTS,
        threads=request.threads or (hardware.usable_cores(),),
        rule=Rule(request.precision, request.max_time, request.rounds, request.seed),
        processes=request.processes,
        timeout_s=request.timeout or STEP_S,
        max_memory=request.max_memory,
        autocast=request.autocast,
        options=Options(threads=1, **ort.parse_options(request.ort_options)),
        profile=request.profile,
        roofline=not request.no_roofline,
        diagnose=request.diagnose,
    )


def _read(request: Request, path: Path, display: Display) -> Work:
    """What a plan times here."""
    from segonnx.bench import plan_file
    from segonnx.commands import bench_plan

    plan = plan_file.read(path)
    folders = plan_file.find(plan.networks, request.artifacts, request.out)
    return bench_plan.planned(plan, folders, request.input_path, display)


def _asked(request: Request, specs: list[ModelSpec], settings: Settings, display: Display) -> Work:
    """What the user named; what isn't there is exported."""
    from segonnx.bench import fitting, plan_file, targets
    from segonnx.commands import bench_targets
    from segonnx.commands.bench_plan import Work
    from segonnx.core import synthetic_inputs

    def fit(target: Target) -> Target:
        if request.backends:
            fitting.require(target, settings)
            return target
        chosen, said = fitting.fitted(target, settings)
        if said is not None:
            display.echo(f"segonnx: {said}", err=True)
        return chosen

    _preload(request, specs)
    timed = [fit(bench_targets.from_artifact(artifact, display, settings.bounds)) for artifact in request.artifacts]
    timed += [
        fit(
            bench_targets.from_system(
                spec,
                request.out,
                settings,
                lambda exported: display.echo(exported_line(exported)),
                display,
                shape,
                size,
            )
        )
        for spec in specs
        for shape in request.shapes or (None,)
        for size in request.batch
    ]
    timed = targets.told_apart(timed)
    targets.require_distinct(timed)
    x = targets.read_input(request.input_path, timed) if request.input_path is not None else None
    digest = None if x is None else synthetic_inputs.sha256(x)
    used = fitting.used(timed, settings)
    return Work(plan_file.of(timed, used, every_core=request.threads is None, input_sha256=digest), timed, x)


def _preload(request: Request, specs: Sequence[ModelSpec]) -> None:
    """Import what makes networks, while artifacts are verified, for the processes that make them."""
    from segonnx.bench import session
    from segonnx.core import subprocesses
    from segonnx.exporters import libraries

    names = request.backends or runtimes.DEFAULTS
    if not specs or not any(runtimes.get(name).needs == "network" for name in names):
        return
    if all((request.out / spec.name).exists() for spec in specs):
        subprocesses.start_preloading(session.PRELOADED)
    else:  # they are exported first
        libraries.preload()


def _summary(plan: Plan) -> str:
    """One line on a plan."""
    count = len(plan.networks)
    threads = "all cores" if plan.every_core else f"{' and '.join(map(str, plan.settings.threads))} threads"
    return f"{count} network{'s' if count > 1 else ''} in {', '.join(plan.settings.backends)} with {threads}"


def _bench_machines(address: str, work: Work, json_path: Path | None, display: Display) -> None:
    """Time on the machines of a cluster, print what they gave, and write it.

    Raises:
        SegonnxError: nothing could be timed, or something of it failed.
    """
    from segonnx.commands import bench_machines
    from segonnx.core import cluster

    with cluster.connect(address) as client:
        timed = bench_machines.chosen(client, display)
        for machine in timed:
            display.echo(f"{machine.title}: {machine.member.address}")
        found = bench_machines.bench(
            client, timed, work, lambda title, part: _print_rows(part.result.rows, display, title), display
        )
    _print_machines(found.machines())
    if found.parts and json_path is not None:
        found.machines().write(json_path)
    if found.interrupted:
        sys.exit(options.INTERRUPTED)
    if not any(row.status == "ok" for part in found.parts for row in part.result.rows):
        raise SegonnxError("; ".join(["nothing could be timed", *found.failed[:3]]))
    if found.failed:
        raise SegonnxError(f"{len(found.failed)} failed: {'; '.join(found.failed[:3])}")


def _print_rows(rows: list[Row], display: Display, where: str = "") -> None:
    from segonnx.report import rows as formatted

    prefix = f"{where}: " if where else ""
    for row in rows:
        ratio = f", {formatted.speedup(row)} eager" if row.speedup_over_eager is not None else ""
        display.echo(f"{prefix}{row.model} {row.backend}: {formatted.time(row) or row.status}{ratio}")


def _print(result: Result) -> None:
    from segonnx.report import tables

    terminal.lines(f"\n{one_line(result.autocast)}")
    for key in result.families():
        terminal.lines("\n" + tables.family(result, key))
    if found := tables.conclusions(result):
        terminal.lines("\n" + tables.conclusions_table(found))
    terminal.lines("\n" + tables.notes(result))


def _print_machines(found: Machines) -> None:
    from segonnx.report import tables

    for key in found.families():
        terminal.lines("\n" + tables.by_processor(found, key))
    terminal.lines("\n" + tables.machine_notes(found))


def _end(result: Result) -> None:
    """The exit code.

    Raises:
        SegonnxError: nothing was timed, or a runtime that is installed failed.
    """
    from segonnx.commands import bench_plan

    if result.interrupted:
        sys.exit(options.INTERRUPTED)
    failed = bench_plan.failed(result)
    if not any(row.status == "ok" for row in result.rows):
        raise SegonnxError("nothing could be timed")
    if failed:
        raise SegonnxError(f"{len(failed)} of {len(result.rows)} rows failed: {'; '.join(failed[:3])}")
