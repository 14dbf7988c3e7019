"""From what a user names to the models that a bench times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from segonnx import runtimes
from segonnx.artifacts.manifest import gives_labels
from segonnx.artifacts.verify import verify
from segonnx.bench.plan import Settings, Target
from segonnx.core import synthetic_inputs
from segonnx.core.subprocesses import Progress
from segonnx.errors import InputError
from segonnx.sources import catalog
from segonnx.sources.catalog import ModelSpec

STOCK = "artifacts/stock"
"""Where artifacts without rewrites are, if the others are in ``artifacts``."""

if TYPE_CHECKING:
    from segonnx.exporters.pipeline import Exported


def derives(rewrites: Sequence[str]) -> bool:
    """Whether a runtime computes other weights from an artifact's: what Winograd's algorithms multiply by."""
    return not {"UnrollDepthPass", "WinogradPhasesPass"}.isdisjoint(rewrites)


def from_artifact(
    folder: Path, progress: Progress, shape: tuple[int, ...] | None = None, stock: Path | None = None
) -> Target:
    """The model of an artifact, whose every byte is checked first.

    Args:
        folder: the artifact.
        progress: told of each step.
        shape: of the input, (N, C, spatial...); None takes the one that the artifact was made for.
        stock: an artifact of the same without rewrites.

    Raises:
        VerifyError: it isn't whole.
        InputError: it doesn't take that shape.
    """
    content = verify(folder, replay=False, progress=progress).manifest
    own = tuple(content["parity"]["inputs"][0]["shape"])
    if shape is not None and shape != own:
        fixed = "x".join(map(str, own))
        raise InputError(f"{folder} was made for inputs of {fixed}: export it with another --shape and --batch")
    try:
        spec = catalog.find(content["name"])
    except InputError:
        spec = None
    return Target(
        name=content["name"],
        family=content["family"],
        parameters=content["parameters"]["count"],
        macs=content["macs"],
        input_shape=own,
        modality=content["preprocessing"]["modality"],
        artifact=folder,
        stock=stock,
        derives=derives(content["rewrites"]),
        spec=spec,
        seed=content["weights"]["seed"],
        weights_sha256=content["weights"]["sha256"],
        labels=gives_labels(content),
    )


def from_system(
    spec: ModelSpec,
    out: Path,
    settings: Settings,
    tell: Callable[[Exported], None],
    progress: Progress,
    spatial: tuple[int, ...] | None = None,
    batch: int = 1,
) -> Target:
    """The model of a system: its artifact in ``out``, exported first if it isn't there and a runtime needs it.

    Artifacts for another shape than the system's are in a folder of that name, such as ``out/1x1x64x64x64``.

    Args:
        spec: what to time.
        out: the folder of the artifacts.
        settings: of the bench.
        tell: called with an export that was made.
        progress: told of each step.
        spatial: sizes of the input; None takes the system's.
        batch: instances per pass.

    Raises:
        InputError: the network doesn't take that shape, or what is missing can't be exported here.
    """
    from segonnx.exporters import pipeline

    shape = pipeline.input_shape(spec, spatial, batch)
    own = shape == spec.input_shape
    if not own:
        out /= "x".join(map(str, shape))
    torch = runtimes.get("eager").missing() is None
    needs = {runtimes.get(name).needs for name in settings.backends}

    def made(folder: Path, optimize: Literal["cpu", "none"]) -> Path | None:
        if not folder.exists():
            if not torch:
                return None
            how = pipeline.Settings(folder.parent, shape=spatial, batch=batch, optimize=optimize)
            tell(pipeline.export(spec, how, lambda step: progress(f"{spec.name}: {step}")))
        return folder

    folder = out / pipeline.folder_name(spec)
    stock = None
    if "stock" in needs and (stock := made(out / "stock" / folder.name, "none")) is not None:
        from_artifact(stock, progress, shape)  # checks its bytes
    # What isn't in the catalogue is counted by the export.
    needed = folder.exists() or not own or spec.reference is None or "artifact" in needs
    if needed and (artifact := made(folder, "cpu")) is not None:
        return from_artifact(artifact, progress, shape, stock)
    if not own or spec.reference is None:
        raise InputError(f"{folder} isn't there, and exporting {spec.name} needs torch: pip install 'segonnx[export]'")
    return Target(
        name=spec.name,
        family=spec.family,
        parameters=spec.reference.parameters,
        macs=spec.reference.inference_macs,
        input_shape=shape,
        modality=spec.modality,
        stock=stock,
        spec=spec,
    )


def require_alike(models: list[Target], settings: Settings) -> None:
    """Refuse to time artifacts that give labels beside runtimes that give logits: they'd do less work.

    Raises:
        InputError: which.
    """
    others = [name for name in settings.backends if runtimes.get(name).needs != "artifact"]
    for model in models:
        if model.labels and others:
            raise InputError(
                f"{model.artifact} gives labels, and {', '.join(others)} would give logits: "
                "time it with --backend ort and --backend openvino alone"
            )


def read_input(path: Path, models: list[Target]) -> synthetic_inputs.Array:
    """An input from a ``.npy`` file.

    Raises:
        InputError: it isn't one, or doesn't fit every model.
    """
    try:
        x = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} isn't a .npy file of numbers: {error}") from error
    if not isinstance(x, np.ndarray) or x.dtype != np.float32:
        raise InputError(f"{path} must hold one array of float32")
    for model in models:
        if x.shape != model.input_shape:
            raise InputError(f"{path} has the shape {x.shape}, {model.name} takes {model.input_shape}")
    return np.ascontiguousarray(x)
