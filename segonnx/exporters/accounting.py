"""Parameter parity after conversion: every parameter is in the file, and nothing in the file is unexplained."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from segonnx.core.subprocesses import Progress
from segonnx.errors import ParityError
from segonnx.exporters.provenance import CONSTANTS, Origin
from segonnx.exporters.rounding import TINIEST, UNIT, Rounded, rounded

FOLD_TOLERANCE = 1e-5
"""How far a folded weight may lie from the one computed here in float64, relative to the largest number in it."""

COMPUTED_TOLERANCE = 1e-3
"""The same for what is computed from positions: the sine of a thousand keeps four digits in float32."""

FEW = 16
"""A constant of more numbers than this, unless they are all the same, could hide weights."""

ZERO = "all zero; the graph leaves it out"
"""Why a bias that nobody trained is missing."""

Read = Callable[[str], npt.NDArray[Any]]


@dataclass(frozen=True)
class Account:
    """Where the network's parameters went. The three counts add up to the network's parameters.

    Attributes:
        used: parameters that stand in the file as they are.
        folded: parameters that were computed into others (BatchNorm into a convolution).
        unused: parameters that inference doesn't use.
        unused_reasons: parameters per reason.
    """

    used: int
    folded: int
    unused: int
    unused_reasons: dict[str, int]


def account(
    onnx_path: Path,
    weights_path: Path,
    parameters: Sequence[str],
    origins: Mapping[str, Origin],
    unused: Mapping[str, str],
    progress: Progress,
    stored: Rounded | None = None,
) -> Account:
    """Hold the initializers of an ONNX file against the network's tensors, one at a time.

    Args:
        onnx_path: the ONNX file, with its external data beside it.
        weights_path: the safetensors file of the network's inference form. Beside it lies the one of constants that
            torch's graph computes from a few numbers.
        parameters: the names of the network's parameters in that file; the rest are buffers.
        origins: what each initializer is said to be made of.
        unused: patterns of names of parameters that may be missing, with the reason.
        progress: callback that gets the name of each step.
        stored: which initializers hold the network's weights in 16 bits; None where all are float32.

    Raises:
        ParityError: a tensor differs from the network's, has no explanation, or is missing without a reason.
    """
    import onnx_ir as ir
    from safetensors import safe_open
    from safetensors.numpy import load_file

    progress("accounting for every parameter")
    model = ir.load(onnx_path)

    def read(name: str) -> npt.NDArray[Any]:
        with safe_open(weights_path, "numpy") as tensors:  # opened anew each time: its pages are unmapped again
            array: npt.NDArray[Any] = tensors.get_tensor(name)
            return array

    with safe_open(weights_path, "numpy") as tensors:
        sizes = {name: math.prod(tensors.get_slice(name).get_shape()) for name in parameters}
    constants = load_file(weights_path.with_name(CONSTANTS))
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        assert tensor is not None
        if stored is not None and name in stored.sources:
            _explain_rounded(name, tensor.numpy(), origins.get(name), read, stored.dtype)
        else:
            _explain(name, tensor.numpy(), origins.get(name), read, constants)
        if isinstance(tensor, ir.ExternalTensor):
            tensor.release()  # unmaps its pages
    here = {name: origins[name] for name in model.graph.initializers}
    used = {source for origin in here.values() if origin.kind == "parameter" for source in origin.sources}
    folded = {source for origin in here.values() for source in origin.sources} - used
    # Tensors with the same values may be stored once.
    missing = [name for name in parameters if name not in used | folded]
    shared = _shared(missing, sizes, (used | folded) & sizes.keys(), read)
    used |= {name for name, others in shared.items() if others & used}
    folded |= shared.keys() - used
    reasons: dict[str, int] = {}
    for name in missing:
        if name in shared:
            continue
        reason = next((why for pattern, why in unused.items() if re.fullmatch(pattern, name)), None)
        if reason is None and not np.any(read(name)):
            reason = ZERO
        if reason is None:
            raise ParityError(
                f"the network's parameter {name} isn't in the ONNX file, and no reason is known (segonnx.export "
                "takes reasons as unused=)"
            )
        reasons[reason] = reasons.get(reason, 0) + sizes[name]
    return Account(
        used=sum(sizes[name] for name in parameters if name in used),
        folded=sum(sizes[name] for name in parameters if name in folded),
        unused=sum(reasons.values()),
        unused_reasons=reasons,
    )


def _explain(
    name: str, found: npt.NDArray[Any], origin: Origin | None, read: Read, constants: Mapping[str, npt.NDArray[Any]]
) -> None:
    """Raise unless the initializer is what its origin says."""
    if origin is None:
        raise ParityError(f"the ONNX file holds {name}, which the network doesn't explain")
    if origin.kind == "parameter":
        if not np.array_equal(found, read(origin.sources[0])):
            raise ParityError(f"{name} in the ONNX file isn't the network's, bit by bit")
    elif origin.kind in ("batch_norm_weight", "batch_norm_bias"):
        expected, scale = _fold(origin, read)
        error = float(np.max(np.abs(found - expected))) / scale if found.shape == expected.shape else math.inf
        if not error <= FOLD_TOLERANCE:
            raise ParityError(
                f"{name} in the ONNX file isn't the network's layer with its BatchNorm (off by {error:.1e})"
            )
    elif origin.kind == "computed":
        if not _close(found, constants[name]):
            raise ParityError(f"{name} in the ONNX file isn't what PyTorch's graph computes there")
    elif origin.kind == "constant" and found.dtype.kind == "f" and found.size > FEW and np.ptp(found) != 0:
        raise ParityError(f"the ONNX file holds {name} {found.shape}, whose values the network doesn't explain")


def _explain_rounded(name: str, found: npt.NDArray[Any], origin: Origin | None, read: Read, dtype: str) -> None:
    """Raise unless the initializer is what its origin says, each number rounded to the nearest that the type has."""
    if found.dtype.name != dtype or origin is None:
        raise ParityError(f"the ONNX file holds {name} in {found.dtype}, and it should be in {dtype}")
    if origin.kind == "batch_norm_weight":
        expected, scale = _fold(origin, read)
        allowed = FOLD_TOLERANCE * scale + UNIT[dtype] * np.abs(expected) + TINIEST[dtype] / 2
        same = found.shape == expected.shape and bool(np.all(np.abs(found.astype(np.float64) - expected) <= allowed))
    else:
        own = read(origin.sources[0])
        same = np.array_equal(found, rounded(own if origin.kind == "parameter" else own.T, dtype))
    if not same:
        raise ParityError(f"{name} in the ONNX file isn't the network's, rounded to {dtype}")


def _close(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> bool:
    """Whether a constant is another computation of the same, with as many digits as its type has."""
    if (found.shape, found.dtype) != (expected.shape, expected.dtype):
        return False
    if found.dtype.kind != "f":
        return np.array_equal(found, expected)
    largest = float(np.max(np.abs(expected), initial=0.0, where=np.isfinite(expected)))
    return np.allclose(found, expected, rtol=COMPUTED_TOLERANCE, atol=COMPUTED_TOLERANCE * largest)


def _fold(origin: Origin, read: Read) -> tuple[npt.NDArray[np.float64], float]:
    """The layer's weight or bias with its BatchNorm folded in, in float64, and the largest number that it is made of.

    A bias is a sum whose parts may cancel, and float32 keeps the digits of the parts.
    """
    weight, bias, scale, shift, mean, variance = (read(s).astype(np.float64) if s else None for s in origin.sources)
    assert weight is not None and scale is not None and shift is not None and mean is not None and variance is not None
    factor = scale / np.sqrt(variance + origin.epsilon)
    if origin.kind == "batch_norm_bias":
        own = np.zeros_like(mean) if bias is None else bias
        parts = (own * factor, mean * factor, shift)
        result: npt.NDArray[np.float64] = (own - mean) * factor + shift
        return result, _largest(result, *parts)
    shape = [1] * weight.ndim
    shape[origin.axis] = -1
    result = weight * factor.reshape(shape)
    return result, _largest(result)


def _largest(*arrays: npt.NDArray[np.float64]) -> float:
    return max(float(np.finfo(np.float32).tiny), *(float(np.max(np.abs(array))) for array in arrays))


def _shared(missing: list[str], sizes: Mapping[str, int], there: set[str], read: Read) -> dict[str, set[str]]:
    """The missing tensors whose values are those of others of the same shape that are in the file, and these.

    Those others stand in the file as they are, or were computed into another tensor: equal ones give equal tensors.
    """
    wanted = {sizes[name] for name in missing}
    by_digest: dict[bytes, set[str]] = {}
    for name in there:
        if sizes[name] in wanted:
            by_digest.setdefault(_values(read(name)), set()).add(name)
    found = {name: by_digest.get(_values(read(name)), set()) for name in missing}
    return {name: others for name, others in found.items() if others}


def _values(array: npt.NDArray[Any]) -> bytes:
    """A digest of a tensor's shape and values; zeros are alike whatever their sign."""
    return hashlib.sha256(repr(array.shape).encode() + (array + array.dtype.type(0)).tobytes()).digest()
