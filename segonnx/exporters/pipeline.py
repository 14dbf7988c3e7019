"""The one path from a network to an artifact: prepare, tune, convert, assemble, measure, write."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segonnx.artifacts import card, layout, manifest, sbom
from segonnx.artifacts.layout import MODEL
from segonnx.artifacts.manifest import Manifest
from segonnx.artifacts.replacing import require_artifact
from segonnx.core import files, subprocesses
from segonnx.core.subprocesses import Progress
from segonnx.core.synthetic_inputs import ParityInput
from segonnx.errors import ResourceError
from segonnx.exporters import elsewhere, manifest_entries, naming, outputs, parity_inputs, pixels, resources
from segonnx.exporters.assemble import Converted, assemble
from segonnx.exporters.convert import Conversion
from segonnx.exporters.manifest_entries import Findings
from segonnx.exporters.parity import ParityCheck, measure
from segonnx.exporters.prepare import STATE, Preparation
from segonnx.exporters.settings import TUNE_S, Settings, folder_name, input_shape, require_tunable
from segonnx.exporters.steps import ModuleSteps, SpecSteps, Stage, Steps
from segonnx.optimize import Optimize, opsets
from segonnx.optimize.choices import Choices
from segonnx.optimize.search import tune
from segonnx.optimize.tuning import parse as parse_tuning
from segonnx.optimize.tuning import read as read_tuning
from segonnx.sources import catalog
from segonnx.sources.catalog import ModelSpec

if TYPE_CHECKING:
    from segonnx.models.base import BuiltModel

# What callers need for an export stands here, whichever file it is written in.
__all__ = ["TUNE_S", "Exported", "Settings", "Stage", "export", "folder_name", "input_shape"]

Tuning = Mapping[str, Any]
"""The entry ``tuning`` of a manifest."""


@dataclass(frozen=True)
class Exported:
    """What an export gave.

    Attributes:
        folder: the artifact.
        manifest: the content of its manifest.
        kept: whether it was there already, intact and made with the same arguments.
        stages: what each step took, by its name; empty if the artifact was kept.
        seconds: what all of it took.
    """

    folder: Path
    manifest: Manifest
    kept: bool
    stages: dict[str, Stage]
    seconds: float

    @property
    def peak_rss_bytes(self) -> int:
        """The most memory that a process of the export held."""
        return max((stage.peak_rss_bytes for stage in self.stages.values()), default=0)


def export(
    spec: ModelSpec, settings: Settings, progress: Progress = subprocesses.silent, built: BuiltModel | None = None
) -> Exported:
    """Export one network to a folder in ``settings.out``.

    Args:
        spec: the network.
        settings: how to export it.
        progress: callback that gets the name of each step as it begins.
        built: the caller's own network, in its inference form. It stays in this process, which then prepares and
            converts it; an artifact that is there already is never kept. None builds the spec's network.

    Raises:
        InputError: an argument is wrong or can't stand in a manifest, an artifact with other arguments or something
            else is there, or the machine lacks something.
        ParityError: the network isn't the published one, or its ONNX file computes something else. Nothing is written.
    """
    started = time.perf_counter()
    require_tunable(settings)
    opsets.require(settings.opset, settings.ir_version)
    tuning = None if settings.tuning is None else read_tuning(settings.tuning)
    steps = _steps(settings, progress, built)
    naming.require_normalisation(settings.mean, settings.std)
    pixels.require(spec, settings.input)
    spec = steps.adapt(spec)
    spec = naming.named(naming.normalised(spec, settings.mean, settings.std), settings.labels)
    spec = pixels.taken(spec, settings.input)
    outputs.require(spec, settings.output)
    shape = input_shape(spec, settings.shape, settings.batch)
    spec = catalog.at_shape(spec, shape)
    arguments = manifest_entries.arguments(spec, settings, shape, tuning, random_weights=steps.random_weights)
    target = settings.out / (settings.folder or folder_name(spec))
    if os.path.lexists(target):
        if not settings.overwrite:
            kept = steps.existing(target, arguments)
            return Exported(target, kept, True, {}, time.perf_counter() - started)
        require_artifact(target)
    files.require_apart(target, *settings.checkpoints)
    reasons = () if built is None else (*built.unused.values(),)
    manifest_entries.require_writable(
        spec, settings, arguments, shape, random_weights=steps.random_weights, tuning=tuning, reasons=reasons
    )
    resources.require_memory(spec, shape, times=2 if settings.tune else 1, rounded=settings.weights_dtype != "float32")
    with files.staging(target) as work:
        resources.require_disk(spec, shape, work)
        job = _Job(spec, settings, shape, work, steps)
        findings = job.find(tuning)
        progress("hashing the artifact")
        content = job.write(findings, arguments)
        progress("writing the artifact")
        try:
            files.publish(job.artifact, target, replace=settings.overwrite, check=require_artifact)
        except OSError as error:
            raise ResourceError(f"can't write {target}: {error.strerror}") from error
    return Exported(target, content, False, steps.stages, time.perf_counter() - started)


def _steps(settings: Settings, progress: Progress, built: BuiltModel | None) -> Steps:
    if built is None:
        return SpecSteps(settings.weights, settings.threads, progress)
    return ModuleSteps(built, progress)


@dataclass(frozen=True)
class _Job:
    """One export under way.

    Attributes:
        spec: the network.
        settings: how it is exported.
        shape: the input's, (N, C, spatial...).
        work: a folder that vanishes with the export.
        steps: how the steps run.
    """

    spec: ModelSpec
    settings: Settings
    shape: tuple[int, ...]
    work: Path
    steps: Steps

    @property
    def artifact(self) -> Path:
        """The artifact's folder, before it is published."""
        return self.work / "artifact"

    def find(self, tuning: Tuning | None) -> Findings:
        """Make the artifact's model and test data, and check them."""
        self.artifact.mkdir()
        planned = parity_inputs.plan(self.spec, self.shape, dynamic=self.settings.dynamic)
        inputs = self.steps.test_inputs(self.spec, planned)
        prepared = self.steps.prepare(Preparation(self.spec, self.shape, inputs, self.work))
        if self.settings.tune:
            tuning = self._tune(prepared.inputs[0])
        converted = self._convert(tuning)
        spec = outputs.settle(self.spec, prepared.values, converted.activation, self.settings.output)
        output = None if self.settings.output == spec.gives else self.settings.output
        name = outputs.name_of(spec, output)
        if output is None:
            converted = replace(converted, outputs=(name, *converted.outputs[1:]))
        rounding = None
        if converted.rounded is not None:
            preparation = Preparation(spec, self.shape, prepared.inputs, self.work)
            rounding = self.steps.round(preparation, converted.rounded)
        account = self.steps.spawn("assemble", assemble, self.work / MODEL, converted, self.work / STATE, self.artifact)
        (self.work / STATE).unlink()
        settings = self.settings
        check = ParityCheck(prepared.inputs, spec, self.work, settings.threads)
        measured = self.steps.spawn("measure", measure, self.artifact, check, output)
        if output is not None:
            converted = self.steps.spawn(output, outputs.put, self.artifact, converted, output, name, check)
        also = [
            self.steps.spawn(runtime, elsewhere.measure, self.artifact, check, output, runtime)
            for runtime in settings.check_with
        ]
        return Findings(spec, prepared, converted, account, measured, self.steps.random_weights, tuning, also, rounding)

    def _tune(self, test_input: ParityInput) -> Tuning:
        """Choose the rewrites by timing them, on the graph as torch writes it."""
        baseline = self.work / "baseline.onnx"
        # Whatever prepares pictures is no layer to choose, and takes no time beside the network.
        conversion = replace(self._conversion("none", Choices(), baseline), spec=replace(self.spec, pixels=None))
        self.steps.convert("stock", conversion)
        settings, x = self.settings, parity_inputs.feeds(test_input, self.spec)[self.spec.input]
        tuning = self.steps.spawn(
            "tune", tune, baseline, x, settings.max_weight_growth, settings.threads,
            settings.tune_time,
        )  # fmt: skip
        for path in self.work.glob("baseline.onnx*"):
            path.unlink()
        return tuning

    def _convert(self, tuning: Tuning | None) -> Converted:
        chosen = Choices() if tuning is None else parse_tuning(tuning, "the tuning")
        chosen = replace(chosen, max_weight_growth=self.settings.max_weight_growth, blocks=self.settings.blocks)
        return self.steps.convert("convert", self._conversion(self.settings.optimize, chosen, self.work / MODEL))

    def _conversion(self, optimize: Optimize, chosen: Choices, path: Path) -> Conversion:
        settings = self.settings
        return Conversion(
            self.spec, self.shape, settings.dynamic, optimize, chosen, path, settings.opset, settings.ir_version,
            settings.weights_dtype if path.name == MODEL else "float32",
        )  # fmt: skip

    def write(self, findings: Findings, arguments: dict[str, Any]) -> Manifest:
        """Write the artifact's other files, the manifest last."""
        graph = manifest_entries.tensors(self.artifact)
        content = manifest_entries.compose(findings.spec, self.settings, arguments, findings, graph)
        (self.artifact / layout.CARD).write_text(card.render(content), encoding="utf-8")
        (self.artifact / layout.SBOM).write_text(
            sbom.render(self.spec.name, manifest.precision(content)), encoding="utf-8"
        )
        content["files"] = manifest_entries.files(self.artifact)
        (self.artifact / layout.MANIFEST).write_bytes(manifest.sealed(content, self.spec.name))
        return content
