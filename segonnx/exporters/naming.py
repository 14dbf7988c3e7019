"""What a user says of a network that its weights don't tell: how pictures are normalised, and what its classes are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from segonnx.core import documents, files
from segonnx.errors import InputError
from segonnx.sources.catalog import ModelSpec

MAX_BYTES = 2**20
MAX_NUMBER = 1e6
MIN_STD = 1e-6
"""What a manifest holds of means and standard deviations."""

WORDS = ("--mean", "--std")
"""What the two are on the command line."""

Labels = Mapping[int, str]
"""Names of classes by their values."""


def require_normalisation(
    mean: Sequence[float] | None, std: Sequence[float] | None, words: tuple[str, str] = WORDS
) -> None:
    """See to it that means and standard deviations can be those of pictures in 0..1, whatever the network is.

    Args:
        mean: of each channel.
        std: of each channel.
        words: what the user calls the two, for messages.

    Raises:
        InputError: one is given without the other, their numbers differ, or some number can't be one.
    """
    if mean is None and std is None:
        return
    if mean is None or std is None:
        given, lacking = words if std is None else words[::-1]
        raise InputError(f"{given} goes with {lacking}: pictures are scaled to 0..1, then (picture - mean) / std")
    if len(mean) != len(std):
        raise InputError(
            f"{words[0]} gives {len(mean)} numbers and {words[1]} {len(std)}: each needs one for a channel"
        )
    if not all(math.isfinite(one) and abs(one) <= MAX_NUMBER for one in (*mean, *std)):
        raise InputError(f"{words[0]} and {words[1]} take finite numbers up to {MAX_NUMBER:,.0f}")
    if min(std) < MIN_STD:
        raise InputError(f"{words[1]} takes numbers of at least {MIN_STD}; found {min(std)}")


def normalised(
    spec: ModelSpec, mean: Sequence[float] | None, std: Sequence[float] | None, words: tuple[str, str] = WORDS
) -> ModelSpec:
    """The spec with how pictures are normalised; as it is where nothing is said.

    Args:
        spec: the network, with its own number of channels.
        mean: of each channel, of pictures that are scaled to 0..1.
        std: the standard deviation of each channel, alike.
        words: what the user calls the two, for messages.

    Raises:
        InputError: see ``require_normalisation``; the network has other channels, or takes no pictures.
    """
    require_normalisation(mean, std, words)
    if mean is None or std is None:
        return spec
    said = " and ".join(words)
    if len(spec.input_shape) != 4 or spec.family == "nnunet":
        raise InputError(f"{spec.name} takes no pictures that {said} would normalise")
    channels = spec.input_shape[1]
    if len(mean) != channels:
        raise InputError(f"{spec.name} takes {channels} channels; {said} give {len(mean)}")
    preprocessing = {
        "modality": spec.modality,
        "note": "scaled to 0..1, then normalised per channel with the mean and standard deviation that the user gave",
        "mean": [float(one) for one in mean],
        "std": [float(one) for one in std],
    }
    return replace(spec, described={**spec.described, "preprocessing": preprocessing})


def read_labels(path: Path) -> Labels:
    """The names of classes in a file: one a line, a JSON list of them, or a JSON object of values and names.

    An object may have the values as keys (``{"0": "background"}``) or the names (``{"background": 0}``).

    Raises:
        InputError: it can't be read, or holds something else.
    """
    try:
        with files.opened(path) as file:
            data = file.read(MAX_BYTES + 1)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} isn't a text in UTF-8: one name of a class a line, or JSON") from error
    if not text.lstrip().startswith(("[", "{")):
        if len(data) > MAX_BYTES:
            raise InputError(f"{path} is larger than {MAX_BYTES:,} bytes")
        return dict(enumerate(line.strip() for line in text.rstrip().splitlines()))
    content = documents.parse(text.encode(), path, MAX_BYTES)
    if isinstance(content, list) and all(isinstance(name, str) for name in content):
        return dict(enumerate(content))
    if isinstance(content, dict) and all(map(_is_value, content)) and all(isinstance(x, str) for x in content.values()):
        return {int(value): name for value, name in content.items()}
    if isinstance(content, dict) and all(isinstance(x, int) and not isinstance(x, bool) for x in content.values()):
        named = {value: name for name, value in content.items()}
        if len(named) == len(content):
            return named
    raise InputError(f"{path} must hold a list of names of classes, or an object of values and names, each once")


def _is_value(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 6


def _of_one_class(labels: Labels) -> Labels:
    """The one name of what is there, whose value is 1: alone in a file it has none, and an object may name 0, too."""
    if labels.keys() == {0}:
        return {1: labels[0]}
    return {1: labels[1]} if labels.keys() == {0, 1} else labels


def named(spec: ModelSpec, labels: Labels | None, where: str = "--labels") -> ModelSpec:
    """The spec with the names of its classes; as it is where there are none.

    Args:
        spec: the network, with its own number of classes.
        labels: names by value. A network of one class has one name, whose value is 1; 0 is what isn't of it.
        where: whose names they are, for messages.

    Raises:
        InputError: there is another number of classes; a name is empty, there twice, or of a value that no class has.
    """
    if labels is None:
        return spec
    if spec.family == "nnunet":
        raise InputError(f"{spec.name} has the names of its classes from its dataset.json: leave {where} out")
    classes = spec.num_classes
    values = [1] if classes == 1 else [*range(classes)]
    if classes == 1:
        labels = _of_one_class(labels)
    if len(labels) != len(values):
        one = "; one class has one name, of what is there" if classes == 1 else ""
        raise InputError(f"{spec.name} has {classes} class{'es' * (classes > 1)}; {where} names {len(labels)}{one}")
    if sorted(labels) != values:
        strange = next(value for value in labels if value not in values)
        allowed = "1" if classes == 1 else f"0 to {classes - 1}"
        raise InputError(f"{where} names the value {strange}; the classes of {spec.name} are {allowed}")
    names = [labels[value] for value in values]
    for name in names:
        if not name.strip():
            raise InputError(f"{where} has an empty name: of class {names.index(name)}")
        if names.count(name) > 1:
            raise InputError(f"{where} names two classes {name!r}")
    entries: list[dict[str, Any]] = [{"name": labels[value], "value": value, "labels": [value]} for value in values]
    return replace(spec, described={**spec.described, "labels": entries})
