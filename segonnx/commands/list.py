"""``segonnx list``."""

from __future__ import annotations

import json
from typing import Any

import click

from segonnx.commands import options
from segonnx.core import terminal


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array instead of a table.")
@click.option("--totalsegmentator", is_flag=True, help="Show TotalSegmentator's tasks instead.")
@click.option("--check", is_flag=True, help="Build every network without memory, count it, and compare. Needs torch.")
def command(as_json: bool, totalsegmentator: bool, check: bool) -> None:
    """Show the reference systems, or TotalSegmentator's tasks.

    \b
    segonnx list
    segonnx list --json | jq '.[].name'
    segonnx list --check
    segonnx list --totalsegmentator
    """
    from segonnx.errors import InputError
    from segonnx.sources import catalog

    if totalsegmentator:
        if check:
            raise InputError("--check is for the reference systems: leave --totalsegmentator out")
        _show_tasks(as_json)
        return
    systems = catalog.systems()
    if as_json:
        terminal.lines(json.dumps([_as_json(spec) for spec in systems], indent=2))
    elif not check:
        terminal.lines(_table(systems))
    if check:
        _check_catalogue()


def _show_tasks(as_json: bool) -> None:
    """Print TotalSegmentator's tasks, and which of them segonnx exports."""
    from segonnx.report import tables
    from segonnx.sources import totalsegmentator

    tasks = totalsegmentator.tasks()
    if as_json:
        entries = [
            {
                "name": task.name,
                "modality": task.modality,
                "classes": [label["name"] for label in task.labels],
                "data_sets": [network.folder for network in task.networks],
                "spacing": task.entries["spacing"],
                "cropped_by": None if task.crop is None else task.crop["task"],
                "roi_subset": task.subset is not None,
                "licence": task.licence,
                "unsupported": task.unsupported,
            }
            for task in tasks
        ]
        terminal.lines(json.dumps(entries, indent=2))
        return
    columns = ("<task", "<images", "classes", "networks", "<mm", "<cropped by", "<licence", "<exported")
    lines = [
        (
            task.name,
            task.modality,
            str(len(task.labels)),
            str(len(task.networks) or ""),
            "" if task.entries["spacing"] is None else " x ".join(f"{size:.3g}" for size in task.entries["spacing"]),
            "" if task.crop is None else task.crop["task"],
            task.licence.partition(" ")[0],
            "yes" if task.unsupported is None else f"no: {task.unsupported}",
        )
        for task in tasks
    ]
    terminal.lines(tables.table(columns, lines))
    terminal.lines(f"as of TotalSegmentator {totalsegmentator.version()}")


def _table(systems: Any) -> str:
    from segonnx.report import rows, tables
    from segonnx.sources import catalog

    columns = ("<name", "<family", "<input", "classes", "parameters", "<published", "multiply-adds", "<source")
    lines = [
        (
            spec.name,
            catalog.FAMILIES[spec.family],
            rows.shape(spec.input_shape),
            str(spec.num_classes),
            f"{spec.reference.parameters:,}",
            ", ".join(f.text + (f" @{f.num_classes}" if f.num_classes else "") for f in spec.published),
            f"{spec.reference.macs / 1e9:,.2f} G",
            spec.source,
        )
        for spec in systems
    ]
    return tables.table(columns, lines)


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
    options.require_torch("list --check")
    from segonnx.errors import ParityError
    from segonnx.exporters import parameters
    from segonnx.sources import catalog

    failed = []
    with options.display() as display:
        for spec in catalog.systems():
            assert spec.reference is not None
            counted = parameters.count(spec)
            checks = parameters.check(spec, counted)
            for check in checks:
                line = f"{spec.name:32} {check.what}: {check.found:,} (expected {check.expected})"
                if check.passed:
                    display.echo(f"ok   {line}")
                else:
                    terminal.line(f"FAIL {line}")
            if not all(check.passed for check in checks):
                failed.append(spec.name)
                terminal.lines(parameters.mismatch_table(spec.reference.modules, counted.modules))
    if failed:
        raise ParityError(f"{len(failed)} of {len(catalog.systems())} systems differ: {', '.join(failed)}")
