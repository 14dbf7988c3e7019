"""The targets of ``segonnx bench``: exports what is missing, and makes networks for the runtimes that need them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from segonnx import runtimes
from segonnx.bench import targets
from segonnx.bench.plan import Settings, Target, TorchNetwork
from segonnx.core.subprocesses import Bounds, Progress
from segonnx.errors import InputError
from segonnx.exporters import pipeline, prepare
from segonnx.sources.catalog import ModelSpec
from segonnx.sources.smp import TIMM

if TYPE_CHECKING:
    from torch import nn


def restore(spec: ModelSpec, weights: Path) -> nn.Module:
    """The spec's network in eval mode, with the weights that an export wrote; called in a runtime's process."""
    from segonnx.models import checkpoints

    return checkpoints.restore(spec, weights).module


def network(spec: ModelSpec, seed: int) -> TorchNetwork:
    """The spec's network with the random weights that an export makes of this seed."""
    return TorchNetwork(
        build=functools.partial(restore, spec), write_weights=functools.partial(prepare.write_weights, spec, seed)
    )


def from_artifact(folder: Path, progress: Progress, bounds: Bounds | None = None) -> Target:
    """The target of an artifact; see ``bench.targets.from_artifact``."""
    return targets.from_artifact(folder, progress, network, bounds=bounds)


def from_system(
    spec: ModelSpec,
    out: Path,
    settings: Settings,
    on_export: Callable[[pipeline.Exported], None],
    progress: Progress,
    spatial: tuple[int, ...] | None = None,
    batch: int = 1,
) -> Target:
    """The target of a spec: its artifact in ``out``, exported first if it isn't there and a runtime needs it.

    Artifacts for another shape than the spec's are in a folder of that name, such as ``out/1x1x64x64x64``.

    Args:
        spec: what to time.
        out: the folder of the artifacts.
        settings: of the bench.
        on_export: called with an export that was made.
        progress: progress callback.
        spatial: sizes of the input; None takes the spec's.
        batch: instances per pass.

    Raises:
        InputError: the network doesn't take that shape, or what is missing can't be exported here.
    """
    shape = pipeline.input_shape(spec, spatial, batch)
    own = shape == spec.input_shape
    # An encoder of timm's may take one size alone, which its export finds.
    found = spatial is None and batch == 1 and spec.family == "smp" and spec.options["encoder"].startswith(TIMM)
    expected = None if found else shape
    if not own:
        out /= "x".join(map(str, shape))
    torch = runtimes.get("eager").missing() is None
    needs = {runtimes.get(name).needs for name in settings.backends}

    folder = out / pipeline.folder_name(spec)
    # What isn't in the catalogue is counted by the export.
    needed = not own or spec.reference is None or "artifact" in needs
    if needed and torch and not folder.exists():
        how = pipeline.Settings(out, shape=spatial, batch=batch)
        on_export(pipeline.export(spec, how, lambda step: progress(f"{spec.name}: {step}")))
    if folder.exists():
        return targets.from_artifact(folder, progress, network, expected, settings.bounds)
    if not own or spec.reference is None:
        raise InputError(f"{folder} isn't there, and exporting {spec.name} needs torch: pip install 'segonnx[export]'")
    return targets.from_spec(spec, network)
