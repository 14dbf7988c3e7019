"""Memory and disk that an export needs, and the refusal to start where the machine lacks them."""

from __future__ import annotations

import math
from pathlib import Path

from segonnx.core import files, hardware
from segonnx.errors import ResourceError
from segonnx.exporters.assemble import EXTERNAL_BYTES
from segonnx.sources.catalog import ModelSpec


def memory_needed(spec: ModelSpec, shape: tuple[int, ...], *, rounded: bool = False) -> int:
    """Bytes that the largest process of an export takes, rounded up from measured peaks.

    The weights and a quarter (they're mapped from a file, and once loaded by the runtime), and once more where the
    runtime derives others from them; six times the logits (what the widest layers and the comparison hold); and a
    gigabyte for the libraries.

    Args:
        spec: the network.
        shape: the input's, (N, C, spatial...).
        rounded: PyTorch runs the network with rounded weights, too, which are copies.
    """
    from segonnx.optimize.unroll_depth import MAX_BYTES

    parameters = _parameters(spec)
    return (9 if rounded or 4 * parameters <= MAX_BYTES else 5) * parameters + 6 * _logits_bytes(spec, shape) + 10**9


def require_memory(spec: ModelSpec, shape: tuple[int, ...], times: int = 1, *, rounded: bool = False) -> None:
    """See to it that the machine has ``times`` the memory that an export needs; see ``memory_needed``.

    Raises:
        ResourceError: it has less.
    """
    needed, available = times * memory_needed(spec, shape, rounded=rounded), hardware.available_memory()
    if needed > available:
        raise ResourceError(
            f"{spec.name} needs about {needed / 1e9:.1f} GB of memory to export, {available / 1e9:.1f} GB are "
            "available: close other programs, use a larger machine, or a smaller --shape"
        )


def require_disk(spec: ModelSpec, shape: tuple[int, ...], work: Path) -> None:
    """See to it that the disk of the folder ``work`` has the room that an export needs.

    Raises:
        ResourceError: it has less.
    """
    weights = 4 * _parameters(spec)
    # The weights lie there as safetensors and as ONNX (twice while they move inside), the test inputs and
    # their logits as arrays and as test data.
    arrays = 4 * (_logits_bytes(spec, shape) + 4 * math.prod(shape))
    needed = weights * (2 if weights > EXTERNAL_BYTES else 3) + arrays + 10**7
    files.require_space(needed, work, spec.name, "free some space, or choose another folder with --out")


def _parameters(spec: ModelSpec) -> int:
    return spec.reference.training_parameters if spec.reference is not None else spec.parameters


def _logits_bytes(spec: ModelSpec, shape: tuple[int, ...]) -> int:
    return 4 * shape[0] * spec.num_classes * math.prod(shape[2:])
