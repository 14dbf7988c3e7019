"""Parameter parity before conversion: is the built network the one that was published, to the last parameter?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from segonnx import models
from segonnx.errors import ParityError
from segonnx.models import counting
from segonnx.sources.catalog import ModelSpec, Reference

MACS_TOLERANCE = 0.005
"""How far multiply-adds may lie from the published figure, beyond its rounding: 0.5 %."""


@dataclass(frozen=True)
class Check:
    """One comparison of the catalogue's check.

    Attributes:
        what: what was compared, for example ``parameters`` or ``parameters @105 classes``.
        expected: the reference or the published figure, as printed.
        found: the count of the built network.
        passed: whether the two agree.
    """

    what: str
    expected: str
    found: int
    passed: bool


def count(spec: ModelSpec) -> Reference:
    """Build the spec's network on the meta device and count it."""
    built = models.build_meta(spec)
    training_parameters = counting.parameters(built.module)
    built = built.finalized()
    return Reference(
        parameters=counting.parameters(built.module),
        training_parameters=training_parameters,
        modules=counting.parameters_per_module(built.module),
        macs=counting.macs(built, spec.input_shape, all_heads=True),
        inference_macs=counting.macs(built, spec.input_shape, all_heads=False),
    )


def check(spec: ModelSpec, counted: Reference | None = None) -> list[Check]:
    """Compare the built network with the spec's reference and with every published figure.

    Specs without a reference (smp) give no checks.
    """
    if spec.reference is None:
        return []
    counted = count(spec) if counted is None else counted
    reference = spec.reference
    checks = [
        Check(what, f"{expected:,}", found, expected == found)
        for what, expected, found in (
            ("parameters", reference.parameters, counted.parameters),
            ("training parameters", reference.training_parameters, counted.training_parameters),
            ("multiply-adds", reference.macs, counted.macs),
            ("inference multiply-adds", reference.inference_macs, counted.inference_macs),
        )
    ]
    for figure in spec.published:
        found = counted.parameters
        what = f"published parameters ({figure.source})"
        if figure.num_classes is not None:
            built = models.build_meta(spec, num_classes=figure.num_classes).finalized()
            found = counting.parameters(built.module)
            what += f" @{figure.num_classes} classes"
        checks.append(Check(what, figure.text, found, figure.matches(found)))
    for figure in spec.published_macs:
        shape = spec.input_shape if figure.size is None else (*spec.input_shape[:2], *figure.size)
        overrides = {} if figure.num_classes is None else {"num_classes": figure.num_classes}
        built = models.build_meta(spec, **overrides).finalized()
        found = counting.macs(built, shape, all_heads=True)
        close = figure.matches(found) or abs(found - figure.value) <= MACS_TOLERANCE * figure.value
        size = "x".join(map(str, shape[2:]))
        checks.append(Check(f"published multiply-adds ({figure.source}) @{size}", figure.text, found, close))
    return checks


def require(spec: ModelSpec, modules: Mapping[str, int], training_parameters: int) -> None:
    """Stop unless the built network's counts are the reference's and round to what was published.

    Without a reference (other classes than the catalogue's) the published figures for those classes are all there is.

    Args:
        spec: what was to be built.
        modules: parameters per module of the built inference form.
        training_parameters: the number of parameters of its training form.

    Raises:
        ParityError: they aren't; the message holds a table of the modules that differ.
    """
    reference = spec.reference
    total = sum(modules.values())
    if reference is None:
        for figure in spec.published:
            if figure.num_classes in (None, spec.num_classes) and not figure.matches(total):
                raise ParityError(
                    f"{spec.name}: parameter parity failed: published parameters ({figure.source}): expected "
                    f"{figure.text}, found {total:,}"
                )
        return
    if dict(modules) != dict(reference.modules) or total != reference.parameters:
        raise ParityError(
            f"{spec.name}: parameter parity failed: the reference has {reference.parameters:,} parameters, the built "
            f"network has {total:,}\n" + mismatch_table(reference.modules, modules)
        )
    counted = replace(reference, parameters=total, training_parameters=training_parameters)
    for comparison in check(spec, counted):
        if not comparison.passed:
            raise ParityError(
                f"{spec.name}: parameter parity failed: {comparison.what}: expected {comparison.expected}, "
                f"found {comparison.found:,}"
            )


def mismatch_table(expected: Mapping[str, int], found: Mapping[str, int]) -> str:
    """A line per module whose count differs: its name, the reference's count, the network's, the difference."""
    rows = [
        (name, expected.get(name, 0), found.get(name, 0))
        for name in dict.fromkeys((*expected, *found))
        if expected.get(name) != found.get(name)
    ]
    width = max((len(name) for name, *_ in rows), default=6)
    lines = [f"  {'module':<{width}}  {'reference':>14}  {'built':>14}  {'difference':>14}"]
    lines += [f"  {name:<{width}}  {want:>14,}  {have:>14,}  {have - want:>+14,}" for name, want, have in rows]
    return "\n".join(lines)
