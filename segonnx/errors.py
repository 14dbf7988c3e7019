"""The exceptions that segonnx raises on purpose.

SegonnxError
 ├── InputError        wrong use or bad input                          exit code 2
 │    ├── CheckpointError   a weights file that can't be used
 │    └── ResourceError     too little memory or disk, a folder that can't be written
 └── CheckFailed       a check ran and its answer is no                exit code 1
      ├── ParityError       the network or its ONNX file isn't what it should be
      ├── ConversionError   torch can't express the network in ONNX
      ├── VerifyError       an artifact isn't intact
      └── StageError        a worker process ended without an answer
"""

from __future__ import annotations

MAX_LINE = 2000
"""The most letters of a line that is shown: what strangers name may be of any length."""


def one_line(text: str, length: int = MAX_LINE) -> str:
    """Text as one line that only shows: what would move a cursor, turn the direction of reading or hide is written out.

    Args:
        text: of anybody.
        length: the most letters; what is longer loses its middle.
    """
    if len(text) > length:
        text = f"{text[: length // 2]} ... {text[-(length // 4) :]}"
    shown = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
    return shown if len(shown) <= length else f"{shown[: length - 4]} ..."


def first_line(error: BaseException, length: int = 300) -> str:
    """The first line of what an error says, cut at ``length`` letters; its class, where it says nothing."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)[:length]


class SegonnxError(Exception):
    """Base of every error that is printed as one line instead of a traceback. Its message may quote strangers."""

    exit_code = 1

    def __str__(self) -> str:
        return one_line(super().__str__())


class InputError(SegonnxError):
    """Wrong use or bad input: the caller can mend it."""

    exit_code = 2


class CheckpointError(InputError):
    """A weights file is missing, damaged, unsafe or of another network."""


class ResourceError(InputError):
    """The machine lacks what the work needs: memory, disk, a writable folder."""


class CheckFailed(SegonnxError):
    """A check ran and its answer is no."""


class ParityError(CheckFailed):
    """The network isn't the published one, or its ONNX file computes something else. Its message may hold a table."""

    def __str__(self) -> str:
        return "\n".join(map(one_line, Exception.__str__(self).split("\n")))


class ConversionError(CheckFailed):
    """torch can't express the network in ONNX."""


class VerifyError(CheckFailed):
    """An artifact isn't intact."""


class StageError(CheckFailed):
    """A worker process ended without an answer (crashed or was killed)."""
