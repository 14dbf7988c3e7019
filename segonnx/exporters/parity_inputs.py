"""The inputs that an export is checked on."""

from __future__ import annotations

from dataclasses import dataclass

from segonnx.core import synthetic_inputs
from segonnx.sources.catalog import ModelSpec


@dataclass(frozen=True)
class ParityInput:
    """One input.

    Attributes:
        kind: a name that ``inputs.make`` knows.
        shape: (N, C, spatial...).
        seed: of its noise.
    """

    kind: str
    shape: tuple[int, ...]
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.kind} {'x'.join(map(str, self.shape))}"

    def make(self, modality: str) -> synthetic_inputs.Array:
        return synthetic_inputs.make(self.kind, self.shape, modality, self.seed)


def plan(spec: ModelSpec, shape: tuple[int, ...], *, dynamic: bool) -> tuple[ParityInput, ...]:
    """The probes of an export at ``shape``; a file with open sizes is checked at a second size and batch too."""
    probes = [ParityInput(kind, shape) for kind in ("noise", "phantom", "constant")]
    if dynamic:
        grown = (shape[0] + 1, shape[1], *(size + step for size, step in zip(shape[2:], spec.divisors, strict=True)))
        probes += [ParityInput("noise", grown), ParityInput("phantom", grown)]
    return tuple(probes)


def halved(spec: ModelSpec, shape: tuple[int, ...]) -> tuple[int, ...]:
    """One instance at half the spatial size, in multiples of what the network divides by.

    The last axis keeps two of them, so that the deepest level has more than one voxel to normalise over.
    """
    sizes = [max(step, size // 2 // step * step) for size, step in zip(shape[2:], spec.divisors, strict=True)]
    return (1, shape[1], *sizes[:-1], max(2 * spec.divisors[-1], sizes[-1]))
