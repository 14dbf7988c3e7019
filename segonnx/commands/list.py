"""``segonnx list``."""

from __future__ import annotations

import json
from typing import Any

import click

from segonnx.commands import options
from segonnx.core import terminal


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array instead of a table.")
@click.option("--check", is_flag=True, help="Build every network without memory, count it, and compare. Needs torch.")
def command(as_json: bool, check: bool) -> None:
    """Show the reference systems.

    \b
    segonnx list
    segonnx list --json | jq '.[].name'
    segonnx list --check
    """
    from segonnx.sources import catalog

    systems = catalog.systems()
    if as_json:
        terminal.lines(json.dumps([_as_json(spec) for spec in systems], indent=2))
    elif not check:
        terminal.lines(_table(systems))
    if check:
        _check_catalogue()


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
