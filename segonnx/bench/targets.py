"""From artifacts and specs to the targets that a bench times. Nothing here exports."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from segonnx import runtimes
from segonnx.artifacts import layout, manifest
from segonnx.artifacts.manifest import Manifest, given_rule, gives_labels, require_one_network
from segonnx.artifacts.verify import verify
from segonnx.bench.plan import Settings, Target, TorchNetwork
from segonnx.bench.result import FLOAT32, Precision, Published, WeightsKind
from segonnx.core import hardware, synthetic_inputs
from segonnx.core.ort_session import model_bytes
from segonnx.core.subprocesses import Bounds, Progress
from segonnx.core.tolerances import Tolerance
from segonnx.errors import InputError, ResourceError
from segonnx.sources import catalog
from segonnx.sources.catalog import ModelSpec

MakeNetwork = Callable[[ModelSpec, int], TorchNetwork]
"""Gives a spec's network with the random weights of a seed, for runtimes that run PyTorch."""

DERIVING = frozenset({"UnrollDepthPass", "UnrollRowsPass", "WinogradPhasesPass"})
"""Rewrites with Winograd's algorithms; the last is of earlier artifacts."""


def derives(rewrites: Sequence[str]) -> bool:
    """Whether a runtime computes other weights from an artifact's: what Winograd's algorithms multiply by."""
    return not DERIVING.isdisjoint(rewrites)


def from_artifact(
    folder: Path,
    progress: Progress,
    make_network: MakeNetwork | None = None,
    shape: tuple[int, ...] | None = None,
    bounds: Bounds | None = None,
) -> Target:
    """The target of an artifact, whose every byte is checked first.

    Args:
        folder: the artifact.
        progress: progress callback.
        make_network: makes the network again in PyTorch, where the artifact's weights are random ones of a spec that
            has a name; None leaves the runtimes out that need it.
        shape: of the input, (N, C, spatial...); None takes the one that the artifact was made for.
        bounds: what the check of the graph may take; see ``verify``.

    Raises:
        VerifyError: it isn't intact.
        InputError: it doesn't take that shape.
        ResourceError: the machine has no memory for its input.
    """
    content = verify(folder, replay=False, bounds=bounds, progress=progress).manifest
    require_one_network(content, folder, "a bench")
    if content["inputs"][0]["dtype"] != "float32":
        raise InputError(
            f"{folder} takes pictures of 8 bits; segonnx bench times networks on float32: export it with --input float"
        )
    own = tuple(content["parity"]["inputs"][0]["shape"])
    if shape is not None and shape != own:
        fixed = "x".join(map(str, own))
        raise InputError(f"{folder} was made for inputs of {fixed}: export it with another --shape and --batch")
    if len(content["inputs"]) > 1:
        raise InputError(f"{folder} takes {len(content['inputs'])} inputs; segonnx bench times networks of one")
    if (needed := 4 * math.prod(own)) > (available := hardware.available_memory()):
        raise ResourceError(
            f"{folder} takes {'x'.join(map(str, own))} numbers, {needed / 1e9:.1f} GB; {available / 1e9:.1f} GB of "
            "memory are available"
        )
    spec = _spec(content)
    seed = content["weights"].get("seed")
    weights: WeightsKind = "seeded" if seed is not None else "file"
    if content["arguments"].get("pretrained"):
        weights = "published"
    num_classes = _num_classes(content)
    known = spec is not None and (content["parameters"]["count"], num_classes) == _identity(spec)
    return Target(
        name=content["name"],
        family=content["family"],
        parameters=content["parameters"]["count"],
        macs=content["macs"],
        input_shape=own,
        modality=content["preprocessing"]["modality"],
        num_classes=num_classes,
        artifact=folder,
        cpu_model=manifest.fastest_model(content),
        recorded=folder,
        rewritten=derives(content["rewrites"]),
        derives=derives([*content["rewrites"], *content.get("cpu_graph", {}).get("rewrites", ())]),
        network=None if make_network is None or spec is None or seed is None else make_network(spec, seed),
        weights=weights,
        weights_sha256=content["weights"]["sha256"],
        digest=content["digest"],
        published=published(spec, own, weights) if spec is not None and known else None,
        gives=content["outputs"][0].get("kind", "logits"),
        rule=None if gives_labels(content) else given_rule(content),
        effect=_effect(content),
        computes="int8" if "quantization" in content else FLOAT32,
        precision=_precision(content, folder),
    )


def _effect(content: Manifest) -> Tolerance | None:
    """How far an artifact's network is from the one that its weights were made from, as its manifest says."""
    if "quantization" in content:  # which has a verdict of its own
        return Tolerance(math.inf, math.inf, 0.0)
    if (storage := content["weights"].get("storage")) is None:
        return None
    effect = storage["effect"]
    return Tolerance(effect["max_rel_error"], effect["rms_rel_error"], effect["label_agreement"])


def _precision(content: Manifest, folder: Path) -> Precision:
    """What an artifact holds its weights in, with what its manifest says of labels."""
    kind, size = manifest.precision(content), model_bytes(folder / layout.MODEL)
    if kind == "int8":
        verdict = content["quantization"]["verdict"]
        return Precision(kind, size, verdict["label_agreement"], min(verdict["dice"].values()))
    if kind == FLOAT32:
        return Precision(kind, size)
    return Precision(kind, size, content["weights"]["storage"]["effect"]["label_agreement"])


def from_spec(spec: ModelSpec, make_network: MakeNetwork) -> Target:
    """The target of a reference system that has no artifact, with the random weights of seed 0.

    Args:
        spec: of a reference system: its counts stand in the catalogue.
        make_network: makes the network in PyTorch.
    """
    assert spec.reference is not None
    return Target(
        name=spec.name,
        family=spec.family,
        parameters=spec.reference.parameters,
        macs=spec.reference.inference_macs,
        input_shape=spec.input_shape,
        modality=spec.modality,
        num_classes=spec.num_classes,
        network=make_network(spec, 0),
        weights="seeded",
        published=published(spec, spec.input_shape, "seeded"),
    )


def published(spec: ModelSpec, input_shape: tuple[int, ...], weights: WeightsKind) -> Published | None:
    """What others published of a reference system that may stand beside its times here.

    Its times hold for the architecture with the same classes on the same input, whatever the weights. Its Dice is that
    of its published weights: it may describe the architecture where the weights are random, and says nothing of
    weights from a file.

    Args:
        spec: of the network, with its own number of classes.
        input_shape: of the input that is timed, (N, C, spatial...).
        weights: whose weights are timed.

    Returns:
        None where nothing is published, or the input is another.
    """
    time, dice = spec.published_time, None if weights == "file" else spec.dsc_percent
    if spec.reference is None or input_shape != spec.input_shape:
        return None
    return Published(
        parameters=spec.published_parameters,
        dsc_percent=dice,
        time_ms=None if time is None else time.time_ms,
        images_per_s=None if time is None else time.images_per_s,
        efficiency=None if time is None else time.efficiency,
    )


def _spec(content: Manifest) -> ModelSpec | None:
    """The spec that the artifact was made of; None where its name is only a user's name for a network of theirs."""
    try:
        spec = catalog.find(content["name"])
    except InputError:
        return None
    if (spec.family, spec.source) != (content.get("family"), content.get("source")):
        return None
    shape = content["arguments"].get("shape", ())
    return catalog.at_shape(spec, shape) if len(shape) == len(spec.input_shape) else spec


def _num_classes(content: Manifest) -> int:
    """How many channels the logits have that the artifact computes, or takes the labels of."""
    output = content["outputs"][0]
    return int(output["classes"] if gives_labels(content) else output["shape"][1])


def _identity(spec: ModelSpec) -> tuple[int | None, int]:
    """Parameters and classes of a reference system's own network."""
    return None if spec.reference is None else spec.reference.parameters, spec.num_classes


def require_alike(targets: list[Target], settings: Settings) -> None:
    """Refuse to time artifacts that end in labels or probabilities beside runtimes that give logits.

    Raises:
        InputError: which.
    """
    others = [name for name in settings.backends if runtimes.get(name).needs != "artifact"]
    for target in targets:
        if target.gives != "logits" and others:
            raise InputError(
                f"{target.artifact} gives {target.gives}, and {', '.join(others)} would give logits: "
                "time it with --backend ort and --backend openvino alone"
            )


def told_apart(targets: Sequence[Target]) -> list[Target]:
    """The targets, those of one name and shape named by their precision, too: a network in float32 keeps its name."""
    count = Counter((target.name, target.input_shape) for target in targets)
    return [
        replace(target, name=f"{target.name} {target.precision.kind}")
        if count[target.name, target.input_shape] > 1 and target.precision and target.precision.kind != FLOAT32
        else target
        for target in targets
    ]


def require_distinct(targets: Sequence[Target]) -> None:
    """Refuse targets whose rows nobody could tell apart.

    Raises:
        InputError: two have one name and one shape.
    """
    seen: dict[tuple[str, tuple[int, ...]], Target] = {}
    for target in targets:
        other = seen.setdefault((target.name, target.input_shape), target)
        if other is not target:
            both = " and ".join(str(one.artifact or one.name) for one in (other, target))
            raise InputError(
                f"{both} would have rows of one name, {target.name} on {'x'.join(map(str, target.input_shape))}: time "
                "them one after the other, and compare the results"
            )


def read_input(path: Path, targets: list[Target]) -> synthetic_inputs.Array:
    """An input from a ``.npy`` file.

    Raises:
        InputError: the file holds no array of float32, or one that doesn't fit every target.
    """
    try:
        x = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} isn't a .npy file of numbers: {error}") from error
    if not isinstance(x, np.ndarray) or x.dtype != np.float32:
        raise InputError(f"{path} must hold one array of float32")
    for target in targets:
        if x.shape != target.input_shape:
            raise InputError(f"{path} has the shape {x.shape}, {target.name} takes {target.input_shape}")
    return np.ascontiguousarray(x)
