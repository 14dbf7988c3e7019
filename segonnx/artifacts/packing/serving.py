"""How a server is to run a packed model: batches that it forms, and instances of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from segonnx.artifacts.manifest import Manifest
from segonnx.errors import InputError

InstanceKind = Literal["cpu", "gpu"]

MAX_BATCH = 8
"""The largest batch that a server may form of requests, where the batch is open and nothing else is said."""
LARGEST = 2**31 - 1
"""What a field of 32 bits holds."""


@dataclass(frozen=True)
class Serving:
    """What a user says of the server; the options of ``segonnx pack --format triton``.

    Attributes:
        max_batch: the largest batch that the server may form of requests; 0 lets it form none. None takes
            ``MAX_BATCH`` where the batch is open.
        preferred: the sizes of batches that the server waits for.
        instances: how many passes run at a time, on each device; None leaves that to the server.
        kind: the devices that they run on; None leaves that to the server.
    """

    max_batch: int | None = None
    preferred: tuple[int, ...] = ()
    instances: int | None = None
    kind: InstanceKind | None = None

    def given(self) -> list[str]:
        """The options that were given."""
        said = {
            "--max-batch": self.max_batch is not None,
            "--preferred-batch": bool(self.preferred),
            "--instances": self.instances is not None,
            "--instance-kind": self.kind is not None,
        }
        return [option for option, there in said.items() if there]

    def require(self) -> None:
        """Refuse what contradicts itself, before any work.

        Raises:
            InputError: it does.
        """
        least = {"--max-batch": 0, "--preferred-batch": 1, "--instances": 1}
        numbers = {
            "--max-batch": [self.max_batch],
            "--preferred-batch": self.preferred,
            "--instances": [self.instances],
        }
        for option, found in numbers.items():
            if any(number is not None and not least[option] <= number <= LARGEST for number in found):
                raise InputError(f"{option} takes whole numbers from {least[option]} to {LARGEST:,}")
        if self.preferred and self.max_batch == 0:
            raise InputError(
                "--preferred-batch names batches that the server forms, and --max-batch 0 lets it form none"
            )
        largest = MAX_BATCH if self.max_batch is None else self.max_batch
        if self.preferred and max(self.preferred) > largest:
            raise InputError(
                f"--preferred-batch {max(self.preferred)} is more than --max-batch allows, which is {largest}"
            )

    def largest_batch(self, content: Manifest) -> int:
        """The largest batch that the server may form of an artifact's requests; 0 where it forms none.

        Args:
            content: the artifact's manifest.

        Raises:
            InputError: batches are asked for, and the artifact's has a fixed size.
        """
        if is_batch_open(content):
            return MAX_BATCH if self.max_batch is None else self.max_batch
        asked = "--preferred-batch" if self.preferred else "--max-batch" if self.max_batch else None
        if asked is not None:
            raise InputError(
                f"{asked} is for a batch that is open: {content['name']} takes {_shapes(content['inputs'])} and gives "
                f"{_shapes(content['outputs'])}; export it with --dynamic"
            )
        return 0


def is_batch_open(content: Manifest) -> bool:
    """Whether every input and output begins with one open batch, so that passes of several requests can be one pass."""
    first = {one["shape"][0] if one["shape"] else 0 for one in (*content["inputs"], *content["outputs"])}
    return len(first) == 1 and all(isinstance(size, str) for size in first)


def _shapes(tensors: Sequence[Manifest]) -> str:
    return " and ".join("x".join(map(str, one["shape"])) or "one number" for one in tensors)
