"""The work of ``segonnx bench``: a plan, and on this machine what it times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from segonnx import runtimes
from segonnx.bench import fitting, targets
from segonnx.bench.plan import Target
from segonnx.bench.plan_file import Network, Plan
from segonnx.bench.result import OK, Result
from segonnx.commands import bench_targets
from segonnx.core import synthetic_inputs
from segonnx.core.subprocesses import Bounds, Progress
from segonnx.errors import InputError
from segonnx.sources import catalog


@dataclass(frozen=True)
class Work:
    """What a bench runs.

    Attributes:
        plan: whatever the machine.
        targets: the plan's networks on this machine.
        x: the input for all; None where noise is made.
    """

    plan: Plan
    targets: list[Target]
    x: synthetic_inputs.Array | None


def planned(plan: Plan, folders: Mapping[str, Path], given: Path | None, progress: Progress) -> Work:
    """The work of a plan that was read.

    Args:
        plan: the plan. It isn't trusted.
        folders: the artifacts by their digests.
        given: file of the input, where a user names one.
        progress: progress callback.

    Raises:
        InputError: an artifact, a network or the input isn't the plan's, or a runtime can't time it.
        VerifyError: an artifact isn't intact.
    """
    if given is None and plan.input_sha256 is not None:
        raise InputError(f"the plan times an input of SHA-256 {plan.input_sha256[:16]}...: --input FILE names it")
    if given is not None and plan.input_sha256 is None:
        raise InputError("the plan makes its inputs itself: leave --input out")
    bounds = plan.settings.bounds
    found = [_target(network, folders, bounds, plan, progress) for network in plan.networks]
    x = None if given is None else targets.read_input(given, found)
    if x is not None and (digest := synthetic_inputs.sha256(x)) != plan.input_sha256:
        raise InputError(
            f"{given} isn't the plan's input: its numbers have the SHA-256 {digest[:16]}..., the plan's "
            f"{str(plan.input_sha256)[:16]}..."
        )
    return Work(plan, found, x)


def _target(network: Network, folders: Mapping[str, Path], bounds: Bounds, plan: Plan, progress: Progress) -> Target:
    if network.artifact is not None:
        found = bench_targets.from_artifact(folders[network.artifact], progress, bounds)
    else:
        spec = catalog.find(network.name)
        if spec.reference is None:
            raise InputError(f"the plan has no artifact of {network.name}, which isn't a reference system")
        found = targets.from_spec(spec, bench_targets.network)
    if found.digest != network.artifact:
        raise InputError(f"{found.artifact} was changed since it was found")
    if found.precision is not None and network.name == f"{found.name} {found.precision.kind}":
        found = replace(found, name=network.name)
    if (found.name, found.input_shape) != (network.name, network.input_shape):
        shapes = ["x".join(map(str, shape)) for shape in (found.input_shape, network.input_shape)]
        raise InputError(
            f"the plan isn't of its artifact: that is {found.name} on {shapes[0]}, the plan's {network.name} on "
            f"{shapes[1]}"
        )
    fitting.require(found, replace(plan.settings, backends=network.backends))
    return replace(found, backends=network.backends)


def failed(result: Result) -> list[str]:
    """A line for each row that failed, though its runtime is installed on this machine."""
    return [
        f"{row.model} in {row.backend}: {row.status}"
        for row in result.rows
        if row.status != OK and not runtimes.get(row.backend).missing()
    ]
