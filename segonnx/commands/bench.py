"""``segonnx bench``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segonnx.commands import options
from segonnx.commands.export import exported_line
from segonnx.errors import InputError, SegonnxError

if TYPE_CHECKING:
    from segonnx.bench.plan import Target
    from segonnx.bench.result import Row
    from segonnx.core.progress import Display

BACKENDS = (
    "eager", "eager-channels-last", "compile", "compile-channels-last",
    "ort", "ort-stock", "openvino", "openvino-stock",
)  # fmt: skip
FAMILIES = ("3d", "2d", "encoder")


@click.command("bench")
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
@click.option(
    "--threads", callback=options.numbers, metavar="N[,N]...", help="Threads of every runtime. [default: all cores]"
)
@click.option(
    "--batch", callback=options.numbers, metavar="N[,N]...", default="1", show_default=True, help="Batch sizes."
)
@click.option(
    "--shape",
    "shapes",
    callback=lambda ctx, param, values: tuple(options.shape(ctx, param, value) for value in values),
    metavar="[D,]H,W",
    multiple=True,
    help="Spatial sizes of the input, instead of the system's; several times for a sweep.",
)
@click.option(
    "--precision",
    callback=options.fraction,
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
@click.option("--diagnose", is_flag=True, help="Measure the core-to-core latency before every block.")
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
def command(
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
    diagnose: bool,
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
    from segonnx.commands import bench_targets
    from segonnx.core import files, hardware
    from segonnx.core.progress import Display
    from segonnx.report import tables
    from segonnx.runtimes import ort
    from segonnx.runtimes.base import Options
    from segonnx.sources import catalog

    chosen = [spec.name for spec in catalog.systems() if spec.family in family]
    systems = (
        [] if artifacts and not (names or everything or family) else options.systems((*names, *chosen), everything)
    )
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
        roofline=not no_ceilings,
        diagnose=diagnose,
    )
    plan.resolve_autocast(autocast)
    if json_path is not None:
        files.require_writable(json_path)
    if pyperf_path is not None:
        pyperf_suites.require(pyperf_path)
    with Display() as display:
        models: list[Target] = [bench_targets.from_artifact(artifact, display) for artifact in artifacts]
        models += [
            bench_targets.from_system(
                spec, out, settings, lambda exported: display.echo(exported_line(exported)), display, shape, size
            )
            for spec in systems
            for shape in shapes or (None,)
            for size in batch
        ]
        targets.require_alike(models, settings)
        x = targets.read_input(input_path, models) if input_path is not None else None
        result = run.bench(models, settings, x, lambda rows: _print_rows(rows, display), display)
    click.echo(f"\n{result.autocast}")
    for key in result.families():
        click.echo("\n" + tables.family(result, key))
    if found := tables.conclusions(result):
        click.echo("\n" + tables.conclusions_table(found))
    click.echo("\n" + tables.notes(result))
    if json_path is not None:
        result.write(json_path)
    if pyperf_path is not None:
        pyperf_suites.write(result, pyperf_path)
    if result.interrupted:
        sys.exit(options.INTERRUPTED)
    present = [name for name in settings.backends if not runtimes.get(name).missing()]
    failed = [row for row in result.rows if row.status != "ok" and row.backend in present]
    if not any(row.status == "ok" for row in result.rows):
        raise SegonnxError("nothing could be timed")
    if failed:
        rows = "; ".join(f"{row.model} in {row.backend}: {row.status}" for row in failed[:3])
        raise SegonnxError(f"{len(failed)} of {len(result.rows)} rows failed: {rows}")


def _print_rows(rows: list[Row], display: Display) -> None:
    from segonnx.report import rows as formatted

    for row in rows:
        ratio = f", {formatted.speedup(row)} eager" if row.speedup_over_eager is not None else ""
        display.echo(f"{row.model} {row.backend}: {formatted.time(row) or row.status}{ratio}")
