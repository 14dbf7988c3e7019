"""Which tensors of a checkpoint are the network's, whatever a trainer put before their names and beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from segonnx.errors import CheckpointError

T = TypeVar("T")

PREFIXES = ("module.", "_orig_mod.", "ema.")
"""What DataParallel and AveragedModel, torch.compile, and trainers that average put before every name."""
COUNTERS = ("n_averaged",)
"""What torch's AveragedModel keeps beside the network."""
_FEW = 3


@dataclass(frozen=True)
class Named(Generic[T]):
    """A network's tensors.

    Attributes:
        values: the tensors by the network's own names.
        prefix: what the file has before these; what wraps every name isn't told.
        left_out: the names outside of the prefix.
    """

    values: dict[str, T]
    prefix: str = ""
    left_out: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        """What to say of it; nothing where every tensor of the file is the network's."""
        if not self.prefix and not self.left_out:
            return ""
        without = f", without {few(self.left_out)}" if self.left_out else ""
        return f"the tensors under {self.prefix}{without}"


def unwrapped(values: Mapping[str, T]) -> dict[str, T]:
    """Without the prefixes that all names have, in any order."""
    found = {name: value for name, value in values.items() if name not in COUNTERS} or dict(values)
    while (prefix := next((one for one in PREFIXES if all(name.startswith(one) for name in found)), None)) and found:
        found = {name.removeprefix(prefix): value for name, value in found.items()}
    return found


def under(values: Mapping[str, T], prefix: str, path: Path) -> Named[T]:
    """Those that a user's prefix names, with or without its dot; it may lie behind those that wrap every name.

    Raises:
        CheckpointError: there are none; the message says which prefixes there are.
    """
    start = f"{prefix.rstrip('.')}."
    for names in (dict(values), unwrapped(values)):
        inside = {name.removeprefix(start): value for name, value in names.items() if name.startswith(start)}
        if inside:
            left_out = tuple(name for name in names if not name.startswith(start))
            return Named(unwrapped(inside), start, left_out)
    raise CheckpointError(f"{path} has no names that begin with {start}; {begin(values)}")


def of_network(values: Mapping[str, T], forms: Sequence[Collection[str]], path: Path) -> Named[T]:
    """Those of a network that has all its tensors under one prefix; all where there is none, or none is needed.

    Args:
        values: the file's, by name.
        forms: the names of the network's tensors, in each form that it may be saved in.
        path: the file, for messages.

    Raises:
        CheckpointError: two prefixes have it.
    """
    for form in forms:
        found = _prefixes(values, form)
        if not found or "" in found:
            continue
        if len(found) > 1:
            raise CheckpointError(
                f"{path} has the network more than once, under {' and '.join(sorted(found))}: --weights-prefix says "
                "which"
            )
        (prefix,) = found
        return Named(
            {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)},
            prefix,
            tuple(name for name in values if not name.startswith(prefix)),
        )
    return Named(dict(values))


def _prefixes(values: Collection[str], form: Collection[str]) -> set[str]:
    """What all names of the form have before them somewhere in the file."""
    longest = max(form, key=len, default="")
    starts = {name.removesuffix(longest) for name in values if name.endswith(longest)}
    return {start for start in starts if start[-1:] in ("", ".") and all(f"{start}{name}" in values for name in form)}


def begin(names: Collection[str]) -> str:
    """What the names in a file begin with, and how many do."""
    counted = Counter(name.partition(".")[0] + "." for name in names if "." in name)
    return "its names begin with " + few([f"{start} ({count})" for start, count in counted.most_common()])


def few(names: Sequence[str]) -> str:
    """Some names, and how many more there are."""
    return ", ".join(names[:_FEW]) + (f" and {len(names) - _FEW} more" if len(names) > _FEW else "")
