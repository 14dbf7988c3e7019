"""What an export writes into the manifest: the arguments that it was made with, and what its steps found."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from segonnx._version import __version__
from segonnx.artifacts import layout, manifest
from segonnx.artifacts.layout import CPU_MODEL, MODEL
from segonnx.artifacts.manifest import Manifest
from segonnx.artifacts.verify import describe
from segonnx.core import hardware
from segonnx.core.file_runs import Replayed
from segonnx.core.files import sha256
from segonnx.core.synthetic_inputs import ParityInput
from segonnx.core.tolerances import TOLERANCES, Difference
from segonnx.errors import CheckpointError
from segonnx.exporters import outputs, parity_inputs, preprocessing
from segonnx.exporters.accounting import Account
from segonnx.exporters.assemble import Converted, Graph
from segonnx.exporters.parity import DTYPE, Measured, Parity
from segonnx.exporters.prepare import Prepared, Values
from segonnx.exporters.settings import Settings
from segonnx.optimize import FOR_BLOCKS
from segonnx.optimize.opsets import OPSET
from segonnx.sources.catalog import ModelSpec


@dataclass(frozen=True)
class Findings:
    """What the steps of an export found.

    Attributes:
        spec: the network, with what was found of its output.
        prepared: the network's counts.
        converted: the graph's facts.
        account: where the parameters went.
        measured: the parity of each graph, by the name of its file.
        random_weights: whether the weights were made from the seed.
        tuning: the choice of the rewrites; None where the package's defaults were taken.
        also: the parity in other runtimes.
        rounding: how far the network with its rounded weights is from itself; None where they are float32.
    """

    spec: ModelSpec
    prepared: Prepared
    converted: Converted
    account: Account
    measured: Mapping[str, Parity]
    random_weights: bool
    tuning: Mapping[str, Any] | None
    also: Sequence[Replayed] = ()
    rounding: Difference | None = None


def arguments(
    spec: ModelSpec,
    settings: Settings,
    shape: tuple[int, ...],
    tuning: Mapping[str, Any] | None = None,
    *,
    random_weights: bool,
) -> dict[str, Any]:
    """The arguments that decide what an export gives: an artifact with the same ones is kept.

    Args:
        spec: the network.
        settings: how it is exported.
        shape: the input's, (N, C, spatial...).
        tuning: the entry ``tuning`` of the manifest whose choices are taken.
        random_weights: whether the weights are made from the seed.

    Raises:
        CheckpointError: a checkpoint can't be read.
    """
    try:
        digests = [sha256(path) for path in settings.checkpoints]
    except OSError as error:
        raise CheckpointError(f"{error.filename} can't be read: {error.strerror}") from error
    found = {
        "name": spec.name,
        "shape": list(shape),
        "dynamic": settings.dynamic,
        "optimize": settings.optimize,
        "seed": settings.seed if random_weights else None,
        "checkpoint_sha256": None if not digests else digests[0] if len(digests) == 1 else digests,
    }
    normalised = settings.mean is not None and settings.std is not None
    asked = {
        "pretrained": settings.pretrained or None,
        "tune": settings.tune or None,
        "tuning_sha256": None if tuning is None else _digest(tuning),
        "max_weight_growth": settings.max_weight_growth,
        "cpu": None if settings.blocks == "avx512" else settings.blocks,
        "opset": None if settings.opset == OPSET else settings.opset,
        "ir_version": settings.ir_version,
        "output": None if settings.output == "logits" else settings.output,
        "input": None if settings.input == "float" else settings.input,
        "trusted": settings.trust or None,
        "mean": list(settings.mean or ()) if normalised else None,
        "std": list(settings.std or ()) if normalised else None,
        "labels_sha256": None if settings.labels is None else _digest(sorted(settings.labels.items())),
        "weights_prefix": settings.weights_prefix,
        "weights_dtype": None if settings.weights_dtype == "float32" else settings.weights_dtype,
        "check_with": list(settings.check_with) or None,
        "plans_sha256": _digest([spec.options, spec.described]) if spec.described else None,
    }
    # What isn't asked for has no key, as in manifests of earlier versions.
    return found | {key: value for key, value in asked.items() if value is not None}


@dataclass(frozen=True)
class Tensors:
    """The graph's inputs and outputs, each as in the manifest; see ``verify.describe``."""

    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]


def tensors(artifact: Path) -> Tensors:
    """The inputs and outputs of the model in a folder."""
    import onnx

    graph = onnx.load(str(artifact / MODEL), load_external_data=False).graph
    return Tensors([describe(value) for value in graph.input], [describe(value) for value in graph.output])


def require_writable(
    spec: ModelSpec,
    settings: Settings,
    made_with: dict[str, Any],
    shape: tuple[int, ...],
    *,
    random_weights: bool,
    tuning: Mapping[str, Any] | None = None,
    reasons: Collection[str] = (),
) -> None:
    """See to it that the manifest can be written, before the work: all that is known of it now, by the same way.

    Args:
        spec: the network.
        settings: how it is to be exported.
        made_with: see ``arguments``.
        shape: the input's, (N, C, spatial...).
        random_weights: whether the weights are made from the seed.
        tuning: the entry ``tuning`` whose choices are taken, if any.
        reasons: why parameters may be missing.

    Raises:
        InputError: some text or number can't be written, or doesn't fit the manifest's schema; the message names it.
    """
    spec = replace(spec, gives=spec.gives or "logits", overlapping=bool(spec.overlapping))
    labels = settings.output == "labels"
    classes = [] if labels else [spec.num_classes]
    spatial = [] if spec.family == "encoder" else [*shape[2:]]
    output = {
        "name": outputs.name_of(spec, settings.output),
        "shape": [shape[0], *classes, *spatial],
        "dtype": ("uint8" if spec.num_classes <= 256 else "uint16") if labels else "float32",
    }
    more = [{"name": one.name, "shape": [*one.shape], "dtype": one.dtype} for one in spec.more_inputs]
    others = [{"name": name, "shape": [1], "dtype": "float32"} for name in spec.more_outputs]
    image = {"name": spec.input, "shape": list(shape), "dtype": "float32"}
    if spec.pixels is not None:
        image |= {"shape": spec.pixels.shape(shape), "dtype": "uint8"}
    graph = Tensors([image, *more], [output, *others])
    empty = "0" * 64
    measured = Parity((Measured(ParityInput("noise", shape), empty, Difference(0.0, 0.0, 0.0, 1.0, 0.0)),))
    findings = Findings(
        spec=spec,
        prepared=Prepared(parameters=0, macs=0, weights_sha256=empty, values=Values(), inputs=()),
        converted=Converted(1, 1, Graph({}, {}), (), {}),
        account=Account(0, 0, 0, dict.fromkeys(reasons, 0)),
        measured={MODEL: measured},
        random_weights=random_weights,
        tuning=tuning,
    )
    content = compose(spec, settings, made_with, findings, graph)
    names = [MODEL, layout.CARD, layout.SBOM, layout.TOLERANCES]
    names += [layout.input_file(number) for number in range(1 + len(more))]
    names += [layout.output_file(number) for number in range(1 + len(others))]
    content["files"] = {name: {"sha256": empty, "bytes": 0} for name in names}
    manifest.sealed(content, spec.name)


def compose(
    spec: ModelSpec, settings: Settings, made_with: dict[str, Any], findings: Findings, graph: Tensors
) -> Manifest:
    """The manifest of an export, but for its files.

    Args:
        spec: the network.
        settings: how it was exported.
        made_with: see ``arguments``.
        findings: what the steps found.
        graph: the model's input and output.
    """
    described = {
        key: value for key, value in spec.described.items() if key != "inference" or settings.output in (None, "logits")
    }
    content: Manifest = {
        "schema_version": manifest.SCHEMA_VERSION,
        "name": spec.name,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "family": spec.family,
        "source": spec.source,
        "parameters": _parameters(spec, findings),
        "macs": findings.prepared.macs,
        "inputs": [{**graph.inputs[0], **_input_layout(spec)}, *graph.inputs[1:]],
        "outputs": [{**graph.outputs[0], **_output_kind(spec, settings)}, *graph.outputs[1:]],
        "opset": findings.converted.opset,
        "ir_version": findings.converted.ir_version,
        "operators": findings.converted.plain.operators,
        "weights": _weights(spec, settings, findings),
        "preprocessing": preprocessing.of(spec),
        "labels": [],
        **described,
        "parity": _parity(spec, findings.measured[MODEL]),
        "rewrites": list(findings.converted.plain.rewrites),
        "files": {},
        "producer": hardware.versions() | {"segonnx": __version__},
        "arguments": made_with,
    }
    if (cpu := findings.converted.cpu) is not None:
        content["cpu_graph"] = {
            "file": CPU_MODEL,
            "operators": cpu.operators,
            "rewrites": list(cpu.rewrites),
            "parity": _worst(findings.measured[CPU_MODEL]),
        }
        if those := [name for name in cpu.rewrites if name in FOR_BLOCKS]:
            content["cpu_graph"]["blocks"] = {"cpu": settings.blocks, "rewrites": those}
    if findings.also:
        content["parity"]["also"] = [one.entry for one in findings.also]
    return content if findings.tuning is None else {**content, "tuning": findings.tuning}


def files(artifact: Path) -> dict[str, dict[str, Any]]:
    """The entry ``files``: the SHA-256 and the size of each file in the folder, by its relative path."""
    paths = sorted(path for path in artifact.rglob("*") if path.is_file())
    return {
        path.relative_to(artifact).as_posix(): {"sha256": sha256(path), "bytes": path.stat().st_size} for path in paths
    }


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _parameters(spec: ModelSpec, findings: Findings) -> dict[str, Any]:
    return {
        "count": findings.prepared.parameters,
        "reference": spec.reference.parameters if spec.reference is not None else None,
        "published": spec.published_parameters,
        "published_figures": [
            {"text": figure.text, "source": figure.source, "num_classes": figure.num_classes}
            for figure in spec.published
        ],
        **asdict(findings.account),
    }


def _input_layout(spec: ModelSpec) -> dict[str, Any]:
    """What the manifest says of pictures of 8 bits that the graph takes."""
    return {} if spec.pixels is None else {"layout": spec.pixels.layout}


def _output_kind(spec: ModelSpec, settings: Settings) -> dict[str, Any]:
    """What the manifest says of an output: what it is where it isn't logits, and how labels follow or followed."""
    if spec.family == "encoder":
        return {}
    decided = {"decision": outputs.given_rule(spec, settings.output).text}
    if settings.output == "labels":
        return {"kind": "labels", "classes": max(2, spec.num_classes), **decided}
    kind = settings.output or spec.gives
    return decided if kind == "logits" else {"kind": kind, **decided}


def _weights(spec: ModelSpec, settings: Settings, findings: Findings) -> dict[str, Any]:
    checkpoints = " and ".join(f"file {_short(path)}" for path in settings.checkpoints)
    source, licence, seed = spec.weights_source or checkpoints, spec.licence, None
    if findings.random_weights:
        seed = settings.seed
        source, licence = f"random weights (seed {seed}); they predict nothing", "apache-2.0"
    weights = {"source": source, "sha256": findings.prepared.weights_sha256, "licence": licence, "seed": seed}
    if settings.trust and settings.checkpoints:
        weights["trusted"] = True
    return weights | _storage(findings)


def _storage(findings: Findings) -> dict[str, Any]:
    """What the manifest says of weights in 16 bits."""
    stored, effect = findings.converted.rounded, findings.rounding
    if stored is None or effect is None:
        return {}
    keys = ("max_rel_error", "rms_rel_error", "label_agreement")
    return {
        "storage": {
            "dtype": stored.dtype,
            "tensors": len(stored.sources),
            "numbers": stored.numbers,
            "float32": dict(stored.kept),
            "effect": {key: getattr(effect, key) for key in keys},
        }
    }


def _short(path: Path) -> str:
    """The file's name, with its fold's."""
    return f"{path.parent.name}/{path.name}" if path.parent.name.startswith("fold_") else path.name


def _worst(measured: Parity) -> dict[str, Any]:
    """The largest differences of a graph on any test input, and what ran it."""
    differences = [result.difference for result in measured.inputs]
    return {
        "max_abs_error": max(difference.max_abs_error for difference in differences),
        "max_rel_error": max(difference.max_rel_error for difference in differences),
        "rms_rel_error": max(difference.rms_rel_error for difference in differences),
        "label_agreement": min(difference.label_agreement for difference in differences),
        "runtime": measured.runtime,
    }


def _parity(spec: ModelSpec, measured: Parity) -> dict[str, Any]:
    more = {
        name: [result.more[number] for result in measured.inputs if result.more]
        for number, name in enumerate(spec.more_outputs)
    }
    return {
        "inputs": [
            {
                "kind": result.input.kind,
                "shape": parity_inputs.graph_shape(result.input, spec),
                "sha256": result.sha256,
                **asdict(result.difference),
            }
            for result in measured.inputs
        ],
        **_worst(measured),
        "tolerance": {"dtype": DTYPE, **asdict(TOLERANCES[DTYPE])},
        "reference": "PyTorch",
        "passed": True,
        **({"more_outputs": {name: _largest(found) for name, found in more.items()}} if more else {}),
    }


def _largest(found: list[Difference]) -> dict[str, float]:
    return {key: max((getattr(one, key) for one in found), default=0.0) for key in ("max_rel_error", "rms_rel_error")}
