"""The inputs that an export is checked on."""

from __future__ import annotations

from segonnx.core.synthetic_inputs import ParityInput
from segonnx.sources.catalog import ModelSpec


def plan(spec: ModelSpec, shape: tuple[int, ...], *, dynamic: bool) -> tuple[ParityInput, ...]:
    """The test inputs of an export at ``shape``; a file with open sizes is checked at a second size and batch, too."""
    inputs = [ParityInput(kind, shape) for kind in ("noise", "phantom", "constant")]
    if dynamic:
        grown = (shape[0] + 1, shape[1], *(size + step for size, step in zip(shape[2:], spec.divisors, strict=True)))
        inputs += [ParityInput("noise", grown), ParityInput("phantom", grown)]
    return tuple(inputs)


def halved(spec: ModelSpec, shape: tuple[int, ...]) -> tuple[int, ...]:
    """One instance at half the spatial size, in multiples of what the network divides by.

    The last axis keeps two of them, so that the deepest level has more than one voxel to normalise over.
    """
    sizes = [max(step, size // 2 // step * step) for size, step in zip(shape[2:], spec.divisors, strict=True)]
    return (1, shape[1], *sizes[:-1], max(2 * spec.divisors[-1], sizes[-1]))
