"""What a caller's module is called with: the example, and more test inputs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segonnx.errors import InputError, first_line
from segonnx.sources.catalog import ModelSpec

if TYPE_CHECKING:
    import torch
    from torch import nn

AXES = {4: "images (N, C, H, W)", 5: "volumes (N, C, D, H, W)"}
MORE_TYPES = ("float32", "bool", "uint8", "int8", "int16", "int32", "int64")
"""The types that inputs besides the image, and outputs besides the segmentation, may have."""


@dataclass(frozen=True)
class Call:
    """What a module is called with: the image first, then what else it takes, in the order of its ``forward``.

    Attributes:
        tensors: the example.
        arguments: the keyword of each; None where it goes by its place.
    """

    tensors: tuple[torch.Tensor, ...]
    arguments: tuple[str | None, ...]

    @property
    def image(self) -> torch.Tensor:
        """The image, (N, C, spatial...)."""
        return self.tensors[0]

    def run(self, module: nn.Module) -> Any:
        """What the module gives."""
        by_place, by_keyword = self.sorted(tuple(tensor.detach().cpu() for tensor in self.tensors))
        return module(*by_place, **by_keyword)

    def sorted(self, tensors: tuple[torch.Tensor, ...]) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
        """Tensors in place of the example's: those that go by their place, and those that go by a keyword."""
        places = list(zip(self.arguments, tensors, strict=True))
        by_place = tuple(tensor for argument, tensor in places if argument is None)
        return by_place, {argument: tensor for argument, tensor in places if argument is not None}


def names(what: str, one: str | None, several: Sequence[str] | None) -> tuple[str, ...]:
    """The names of inputs or outputs, from the two arguments that may give them.

    Args:
        what: ``input`` or ``output``.
        one: ``input_name`` or ``output_name``.
        several: ``input_names`` or ``output_names``.

    Raises:
        InputError: both do.
    """
    if one is not None and several is not None:
        raise InputError(f"{what}_name= and {what}_names= say the same: give one")
    if isinstance(several, str):
        raise InputError(f"{what}_names= takes a list of names, and not {several!r}")
    return (one,) if one is not None else tuple(several or ())


def input_names(call: Call, names: Sequence[str]) -> tuple[str, ...]:
    """The names of the graph's inputs."""
    if names:
        return tuple(names)
    more = (argument or f"input_{place}" for place, argument in enumerate(call.arguments[1:], 1))
    return ("input", *more)


def call_of(module: nn.Module, example: Any, what: str) -> Call:
    """What a module is called with, from what a caller gave.

    Raises:
        InputError: it is no image, or not what the module takes.
    """
    import torch

    if isinstance(example, torch.Tensor):
        call = Call((example,), (None,))
    elif isinstance(example, Mapping) and example:
        try:
            bound = inspect.signature(module.forward).bind(**example)
        except (TypeError, ValueError) as error:
            raise InputError(f"the {what} doesn't fit the module's forward: {first_line(error)}") from error
        keys = [key for key in bound.arguments if key in example] + [
            key for key in example if key not in bound.arguments
        ]
        call = Call(tuple(example[key] for key in keys), tuple(keys))
    elif isinstance(example, tuple | list) and example:
        call = Call(tuple(example), (None,) * len(example))
    else:
        raise InputError(
            f"the {what} is a {type(example).__name__}; it must be a tensor, or a tuple or dictionary of tensors"
        )
    for tensor in call.tensors:
        if not isinstance(tensor, torch.Tensor):
            raise InputError(f"the {what} holds a {type(tensor).__name__}; segonnx exports networks of tensors")
    _check_image(call.image, what)
    for tensor in call.tensors[1:]:
        if dtype_of(tensor) not in MORE_TYPES:
            raise InputError(f"the {what} holds a tensor of {tensor.dtype}; there may be {', '.join(MORE_TYPES)}")
    return call


def dtype_of(tensor: torch.Tensor) -> str:
    """NumPy's name of a tensor's type."""
    return str(tensor.dtype).removeprefix("torch.")


def _check_image(image: torch.Tensor, what: str) -> None:
    import torch

    if image.ndim not in AXES or image.dtype != torch.float32:
        raise InputError(
            f"the {what} is {tuple(image.shape)} of {image.dtype}; it must be float32, " + " or ".join(AXES.values())
        )
    if not image.numel():
        raise InputError(f"the {what} is {tuple(image.shape)}, which holds nothing: no size may be 0")
    if not bool(torch.isfinite(image).all()):
        raise InputError(f"the {what} holds NaN or infinite values")


def test_input(module: nn.Module, given: Any, example: Call, divisor: int | None) -> Call:
    """A caller's own test input.

    Raises:
        InputError: the artifact won't take it.
    """
    call = call_of(module, given, "test input")
    for mine, theirs in zip(call.tensors, example.tensors, strict=False):
        steps = {0, *range(2, theirs.ndim)} if divisor is not None else set()
        wrong = mine.ndim != theirs.ndim or any(
            size != wanted
            for axis, (size, wanted) in enumerate(zip(mine.shape, theirs.shape, strict=True))
            if axis not in steps
        )
        if wrong or mine.dtype != theirs.dtype:
            raise InputError(
                f"a test input is {tuple(mine.shape)} of {mine.dtype}, the example is {tuple(theirs.shape)} of "
                f"{theirs.dtype}"
            )
    if len(call.tensors) != len(example.tensors) or call.arguments != example.arguments:
        raise InputError("a test input has other tensors than the example")
    if divisor is not None and any(size % divisor for size in call.image.shape[2:]):
        raise InputError(f"a test input is {tuple(call.image.shape)}: its sizes must be multiples of {divisor}")
    return call


def write(call: Call, spec: ModelSpec, path: Path) -> Path:
    """Write the arrays of an input; see ``parity_inputs.ModuleInput``."""
    from safetensors.torch import save_file

    names = [spec.input, *(one.name for one in spec.more_inputs)]
    save_file(
        {name: one.detach().cpu().contiguous().clone() for name, one in zip(names, call.tensors, strict=True)}, path
    )
    return path
