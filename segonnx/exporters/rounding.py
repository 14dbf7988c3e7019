"""Weights in 16 bits: which of them are rounded, how a graph widens them, and what that does to the network's answers.

Arithmetic stays in float32: a Cast behind each rounded weight makes float32 of it, which a runtime does once, when it
loads the file. The reference of numeric parity is PyTorch with the same rounded weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import numpy.typing as npt

from segonnx.core.subprocesses import Progress
from segonnx.core.tolerances import Difference, compare, compare_values, std_of
from segonnx.errors import ParityError
from segonnx.exporters.prepare import STATE, Preparation, call
from segonnx.exporters.provenance import Origin

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch
    from torch import nn

    from segonnx.models.base import BuiltModel

WeightsDtype = Literal["float32", "float16", "bfloat16"]
"""What ``segonnx export --weights-dtype`` takes."""
WEIGHTS_DTYPES: tuple[WeightsDtype, ...] = get_args(WeightsDtype)

UNIT = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
"""The most that rounding changes a number that the type has in full, relative to the number."""
TINIEST = {"float16": 2.0**-24, "bfloat16": 2.0**-133}
"""The least number of a type that isn't 0."""

FOLDED = "rounded.safetensors"
"""The file of what the weights of layers with a BatchNorm are in PyTorch, so that folding gives the rounded ones."""

FEW_AXES = "norms and biases"
OTHER = "no weight of one layer"
SHARED = "several layers share it"
RANGE = "beyond what the type has digits for"


@dataclass(frozen=True)
class Rounded:
    """Which tensors of the graphs are stored in 16 bits.

    Attributes:
        dtype: their type.
        sources: for the name of each, the network's parameter that it was made of.
        numbers: how many numbers they hold.
        kept: numbers that stay float32, by the reason.
        twins: parameters that are equal to one of ``sources``, and stand in the file as that one, with it.
    """

    dtype: WeightsDtype
    sources: Mapping[str, str]
    numbers: int
    kept: Mapping[str, int]
    twins: Mapping[str, str] = field(default_factory=dict)


def rounded(numbers: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[np.generic]:
    """Numbers in a type of 16 bits, each the nearest; infinite where it has none."""
    import ml_dtypes

    with np.errstate(over="ignore"):
        return numbers.astype(np.float16 if dtype == "float16" else ml_dtypes.bfloat16)


def is_kept(numbers: npt.NDArray[np.float32], dtype: str) -> str | None:
    """Why a weight stays float32; None where it is rounded.

    Rounding changes each number by at most ``UNIT`` of it, and so their norm, unless some are too large for the type or
    so small that it has fewer digits of them.
    """
    error = rounded(numbers, dtype).astype(np.float32) - numbers
    within = float(np.linalg.norm(error.ravel())) <= UNIT[dtype] * float(np.linalg.norm(numbers.ravel()))
    return None if within else RANGE


def round_weights(
    graphs: Sequence[ir.Model],
    origins: Mapping[str, Origin],
    parameters: Mapping[str, torch.Tensor],
    dtype: WeightsDtype,
    folder: Path,
) -> Rounded:
    """Let graphs hold their weights in 16 bits, with a Cast to float32 behind each; the same tensors in all of them.

    Args:
        graphs: the first is the plain one, whose initializers the others have under the same names.
        origins: what each initializer of the first is made of.
        parameters: the network's, by their names.
        dtype: the type.
        folder: gets the file ``FOLDED``.
    """
    from safetensors.numpy import save_file

    initializers = graphs[0].graph.initializers
    # A norm's bias that is folded into a layer's is made of that layer's weight, too, by name alone.
    claims = Counter(origins[name].sources[0] for name in initializers if _is_weight(origins[name]))
    sources: dict[str, str] = {}
    kept: dict[str, int] = {}
    folded: dict[str, npt.NDArray[np.float32]] = {}
    count = 0
    for name, value in initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.dtype.name != "FLOAT":
            continue
        numbers = tensor.numpy()
        source = _source(origins[name], numbers, parameters)
        if sum(size > 1 for size in numbers.shape) < 2:
            why: str | None = FEW_AXES
        elif source is None or value.is_graph_output():
            why = OTHER
        elif claims[source] > 1:
            why = SHARED
        else:
            why = is_kept(numbers, dtype)
        if why is not None or source is None:
            kept[why or OTHER] = kept.get(why or OTHER, 0) + numbers.size
            continue
        sources[name] = source
        count += numbers.size
        if origins[name].kind == "batch_norm_weight":
            folded[source] = _unfolded(parameters[source].detach().numpy(), numbers, dtype)
    save_file(folded, folder / FOLDED)
    twins = _twins(sources.values(), origins, parameters)
    for model in graphs:
        _widen(model.graph, [name for name in sources if name in model.graph.initializers], initializers, dtype)
    return Rounded(dtype, sources, count, dict(sorted(kept.items())), twins)


def _is_weight(origin: Origin) -> bool:
    return bool(origin.sources) and origin.kind != "batch_norm_bias"


def _source(origin: Origin, numbers: npt.NDArray[np.float32], parameters: Mapping[str, torch.Tensor]) -> str | None:
    """The one parameter that a weight is, is the transpose of, or was folded with a BatchNorm of."""
    name = origin.sources[0] if origin.sources else ""
    if name not in parameters:
        return None
    if origin.kind in ("parameter", "batch_norm_weight"):
        return name
    own = parameters[name].detach().numpy()
    turned = origin.kind == "folded" and len(origin.sources) == 1 and own.ndim == 2
    return name if turned and np.array_equal(own.T, numbers) else None


def _unfolded(
    own: npt.NDArray[np.float32], folded: npt.NDArray[np.float32], dtype: WeightsDtype
) -> npt.NDArray[np.float32]:
    """A layer's weight from which its BatchNorm makes the rounded one, as it makes ``folded`` of ``own``."""
    ratio = np.divide(rounded(folded, dtype).astype(np.float32), folded, out=np.ones_like(folded), where=folded != 0)
    return np.ascontiguousarray(own * ratio)


def _twins(
    sources: Collection[str], origins: Mapping[str, Origin], parameters: Mapping[str, torch.Tensor]
) -> dict[str, str]:
    """The parameters that no initializer is made of, and that are equal to a rounded one."""
    import torch

    there = {source for origin in origins.values() for source in origin.sources}
    found: dict[str, str] = {}
    for name in parameters.keys() - there:
        own = parameters[name]
        for source in sources:
            if parameters[source].shape == own.shape and torch.equal(parameters[source], own):
                found[name] = source
                break
    return found


def _widen(graph: ir.Graph, names: Sequence[str], initializers: Mapping[str, ir.Value], dtype: WeightsDtype) -> None:
    """Put a Cast to float32 behind initializers, and let them hold their numbers in 16 bits."""
    import onnx_ir as ir

    casts = []
    kind = ir.DataType[dtype.upper()]
    for name in names:
        value = graph.initializers[name]
        users = list(value.uses())
        cast = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)})
        (wide,) = cast.outputs
        wide.name, wide.type, wide.shape = f"{name}.float32", value.type, value.shape
        for node, place in users:
            node.replace_input_with(place, wide)
        if value is not initializers[name]:
            value.const_value = initializers[name].const_value
        elif value.const_value is not None:
            value.const_value = _lazily(value.const_value, kind, dtype)
        value.type = ir.TensorType(kind)
        casts.append(cast)
    if casts:
        graph.insert_before(graph[0], casts)


def _lazily(tensor: ir.TensorProtocol, kind: ir.DataType, dtype: WeightsDtype) -> ir.LazyTensor:
    """A tensor that is rounded when it is written: the network's own lies in a file that is mapped."""
    import onnx_ir as ir

    def make() -> ir.TensorProtocol:
        return ir.tensor(rounded(tensor.numpy(), dtype), dtype=kind, name=tensor.name)

    return ir.LazyTensor(make, dtype=kind, shape=ir.Shape(tensor.numpy().shape), name=tensor.name)


def answers(preparation: Preparation, stored: Rounded, threads: int, progress: Progress) -> Difference:
    """Run the network of a spec with its rounded weights, in place of the answers that ``prepare`` wrote down.

    Args:
        preparation: the network, its test inputs, and the folder of its weights and answers.
        stored: which weights are rounded.
        threads: threads of PyTorch.
        progress: callback that gets the name of each step.

    Returns:
        The effect of rounding; see ``network_answers``.
    """
    import torch

    from segonnx.models import checkpoints

    torch.set_num_threads(threads)
    progress("loading the network")
    built = checkpoints.restore(preparation.spec, preparation.folder / STATE)
    return network_answers(built, preparation, stored, progress)


def network_answers(built: BuiltModel, preparation: Preparation, stored: Rounded, progress: Progress) -> Difference:
    """Run a network with its rounded weights, in place of its own answers; afterwards it has its own weights again.

    Returns:
        The effect of rounding: how far the answers are from the network's own, the most on any test input.

    Raises:
        ParityError: with rounded weights it gives NaN or infinite values.
    """
    folder, spec = preparation.folder, preparation.spec
    before = [folder / f"logits_{i}.npy" for i in range(len(preparation.inputs))]
    scale = max(std_of(np.load(path, mmap_mode="r")) for path in before)
    found: list[Difference] = []
    with _Swapped(built.module, stored, folder):
        for i, test_input in enumerate(preparation.inputs):
            progress(f"running PyTorch with {stored.dtype} weights on {test_input.name}")
            for k, array in enumerate(_answer(built.module, preparation, i)):
                path = folder / (f"more_{i}_{k}.npy" if k else f"logits_{i}.npy")
                own = np.load(path, mmap_mode="r", allow_pickle=False)
                effect = compare_values(own, array) if k else compare(own, array, scale, spec.rule)
                if effect is not None and not np.isfinite(effect.max_rel_error):
                    raise ParityError(
                        f"{spec.name} gives NaN or infinite values on {test_input.name} with its weights in "
                        f"{stored.dtype}: leave them in float32"
                    )
                if effect is not None and not k:
                    found.append(effect)
                del own
                np.save(path, array)
    return worst(found)


def worst(found: Sequence[Difference]) -> Difference:
    """The largest of several differences, figure by figure."""

    def most(figure: Callable[[Difference], float]) -> float:
        return max(figure(one) for one in found)

    return Difference(
        max_abs_error=most(lambda one: one.max_abs_error),
        max_rel_error=most(lambda one: one.max_rel_error),
        rms_rel_error=most(lambda one: one.rms_rel_error),
        label_agreement=min(one.label_agreement for one in found),
        spread=most(lambda one: one.spread),
    )


def _answer(module: nn.Module, preparation: Preparation, i: int) -> list[npt.NDArray[np.generic]]:
    import torch

    from segonnx.exporters.parity_inputs import feeds

    with torch.inference_mode():
        given = call(module, preparation.spec, feeds(preparation.inputs[i], preparation.spec))
    return [tensor.numpy() for tensor in (given if isinstance(given, tuple) else (given,))]


class _Swapped:
    """A network with its rounded weights, until the end of the block."""

    def __init__(self, module: nn.Module, stored: Rounded, folder: Path) -> None:
        self._parameters = dict(module.named_parameters())
        self._stored, self._folder = stored, folder
        self._own: dict[str, torch.Tensor] = {}

    def __enter__(self) -> None:
        import torch
        from safetensors.torch import load_file

        folded = load_file(self._folder / FOLDED)
        kind = getattr(torch, self._stored.dtype)
        sources = {name: name for name in self._stored.sources.values()} | dict(self._stored.twins)
        for name, source in sources.items():
            parameter = self._parameters[name]
            self._own[name] = parameter.data
            parameter.data = folded[source] if source in folded else parameter.data.to(kind).to(torch.float32)

    def __exit__(self, *_: object) -> None:
        for name, data in self._own.items():
            self._parameters[name].data = data
