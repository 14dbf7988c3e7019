"""Which of the outputs of a caller's module is the segmentation, and in which order its axes stand."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from segonnx.errors import InputError

if TYPE_CHECKING:
    import torch

Key = str | int
OutputAxes = Literal["NCHW", "NHWC", "NHW", "NCDHW", "NDHWC", "NDHW", "NC"]
"""What ``segonnx.export`` takes as ``output_axes``."""


def path_of(output: Key | Sequence[Key] | None) -> tuple[Key, ...]:
    """The keys that lead to the chosen output.

    Raises:
        InputError: they aren't texts and whole numbers.
    """
    if output is None:
        return ()
    keys = tuple(output) if isinstance(output, list | tuple) else (output,)
    if not all(isinstance(key, str | int) for key in keys):
        raise InputError(f"output= takes a key, a number, or a tuple of them, and not {output!r}")
    return keys


def select(given: Any, path: tuple[Key, ...]) -> torch.Tensor:
    """The output that a path of keys leads to.

    Args:
        given: what the module gave: a tensor, or dictionaries, tuples, lists and dataclasses of them, nested at will.
        path: a key or a number for each level. A level of one entry needs none.

    Raises:
        InputError: it leads to no tensor, or to several; the message says which keys there are.
    """
    import torch

    chosen: tuple[Key, ...] = ()
    for key in path:
        entries = _entries(given)
        if entries is None:
            where = f"output={_said(chosen)} is" if chosen else "the module gives"
            raise InputError(f"{where} one tensor: leave out {'the rest of ' if chosen else ''}output={_said(path)}")
        if isinstance(key, int) and not isinstance(given, Mapping) and -len(entries) <= key < 0:
            key += len(entries)  # noqa: PLW2901 (counted from the end, as in Python)
        if key not in entries:
            place = f"in output={_said(chosen)} " if chosen else ""
            raise InputError(f"the module gives no output {key!r} {place}(output=): {_listed(entries)}")
        given, chosen = entries[key], (*chosen, key)
    while (entries := _entries(given)) is not None:
        if len(entries) != 1:
            choice = f"({', '.join(map(repr, chosen))}, KEY)" if chosen else "KEY"
            raise InputError(
                f"the module gives several outputs: choose one with output={choice}, where KEY is {_listed(entries)}"
            )
        given, chosen = next(iter(entries.values())), (*chosen, next(iter(entries)))
    if not isinstance(given, torch.Tensor):
        raise InputError(f"the module gives a {type(given).__name__}, not a tensor")
    return given


def every(given: Any, path: tuple[Key, ...], names: Sequence[str]) -> tuple[torch.Tensor, ...]:
    """All outputs, the chosen one first, then the others in the order in which the module gives them.

    Args:
        given: what the module gave.
        path: leads to the chosen one; without it, the first.
        names: a name for each.

    Raises:
        InputError: there are more or fewer than names, or one is no tensor.
    """
    import torch

    tensors: list[Any] = []
    waiting = [given]
    while waiting:
        entries = _entries(one := waiting.pop(0))
        waiting[:0] = [] if entries is None else [entries[key] for key in entries if not _is_alias(one, key)]
        tensors += [one] if entries is None else []
    for tensor in tensors:
        if not isinstance(tensor, torch.Tensor):
            raise InputError(f"the module gives a {type(tensor).__name__} among its outputs, not a tensor")
    if len(tensors) != len(names):
        raise InputError(f"output_names= has {len(names)} names for {len(tensors)} outputs")
    first = select(given, path) if path else tensors[0]
    return (first, *(tensor for tensor in tensors if tensor is not first))


def _is_alias(given: Any, key: Key) -> bool:
    """Whether a key is the name of a field that a tuple has by its number, too."""
    return isinstance(given, tuple) and isinstance(key, str)


def _entries(given: Any) -> dict[Key, Any] | None:
    """The parts of what a module gave by their keys; None where it has none."""
    if isinstance(given, Mapping):
        return dict(given)
    if isinstance(given, list | tuple):
        fields: dict[Key, Any] = dict(zip(getattr(given, "_fields", ()), given, strict=False))
        return dict(enumerate(given)) | fields
    if dataclasses.is_dataclass(given) and not isinstance(given, type):
        return {field.name: getattr(given, field.name) for field in dataclasses.fields(given)}
    return None


def _listed(entries: Mapping[Key, Any]) -> str:
    keys = [*entries]
    if keys == list(range(len(keys))):
        return f"a number from 0 to {len(keys) - 1}" if len(keys) > 1 else "0"
    shown = [repr(key) for key in keys[:20]]
    return f"{', '.join(shown[:-1])} or {shown[-1]}" if len(shown) > 1 else shown[0] if shown else "there is none"


def _said(path: tuple[Key, ...]) -> str:
    return repr(path[0] if len(path) == 1 else path)


def arranged(given: torch.Tensor, axes: OutputAxes | None) -> torch.Tensor:
    """The output as (N, classes, spatial...).

    Args:
        given: the module's.
        axes: the order of its axes; None where it is that already.
    """
    if axes is None or axes in ("NCHW", "NCDHW", "NC"):
        return given
    return given.movedim(-1, 1) if axes.endswith("C") else given.unsqueeze(1)


def require_axes(given: torch.Tensor, example: torch.Tensor, axes: OutputAxes | None) -> None:
    """See to it that the output's axes are those that they are taken for.

    The spatial sizes of an output are the input's, or all of them divided by the same. Where they stand elsewhere than
    behind N and the classes, or may stand so, ``output_axes`` must say it.

    Args:
        given: the module's output, before ``arranged``.
        example: the input that it is of, (N, C, spatial...).
        axes: what was said of the output's axes, if anything.

    Raises:
        InputError: the output isn't (N, classes, spatial...), or may be something else.
    """
    if axes is not None:
        if axes not in get_args(OutputAxes):
            raise InputError(f"output_axes={axes!r} isn't known; there are {', '.join(get_args(OutputAxes))}")
        if len(axes) != given.ndim:
            raise InputError(f"output_axes={axes!r} has {len(axes)} axes, the module gives {tuple(given.shape)}")
    if given.ndim < 2 or given.shape[0] != example.shape[0]:
        raise InputError(
            f"the module gives {tuple(given.shape)} for {example.shape[0]} images: it must be (N, classes, spatial...)"
        )
    if axes is not None or given.ndim == 2:
        return
    spatial = tuple(example.shape[2:])
    letters = "DHW"[-len(spatial) :]
    read = {f"NC{letters}": given.shape[2:], f"N{letters}C": given.shape[1:-1], f"N{letters}": given.shape[1:]}
    fits = {
        order: tuple(found)
        for order, found in read.items()
        if len(order) == given.ndim and _scaled(tuple(found), spatial)
    }
    exact = [order for order, found in fits.items() if found == spatial]
    likely = exact or [*fits]
    if likely == [f"NC{letters}"]:
        return
    shapes = f"the module gives {tuple(given.shape)} of images {tuple(example.shape)}"
    if len(likely) > 1:
        raise InputError(f"{shapes}, which may be {' or '.join(likely)}: say which with output_axes=")
    if likely:
        raise InputError(f"{shapes}, which looks like {likely[0]}: output_axes={likely[0]!r} takes it so")
    raise InputError(
        f"{shapes}, which isn't (N, classes, spatial...): if it is, say so with output_axes='NC{letters}'"
        if given.ndim == len(spatial) + 2
        else f"{shapes}; it must be (N, classes, spatial...)"
    )


def _scaled(found: tuple[int, ...], spatial: tuple[int, ...]) -> bool:
    """Whether the sizes are the input's, multiplied or divided by one number for all axes, rounded up or down."""
    if found == spatial:
        return True
    low = max((have - 1) / size for have, size in zip(found, spatial, strict=True))
    high = min((have + 1) / size for have, size in zip(found, spatial, strict=True))
    return low < high
