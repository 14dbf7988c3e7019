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

MAX_MESSAGE = 1000
"""Letters of a message; what is beyond is cut."""


def first_line(error: BaseException, length: int = 300) -> str:
    """The first line of what an error says, cut at ``length`` letters; its class, where it says nothing."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)[:length]


class SegonnxError(Exception):
    """Base of every error that is printed instead of a traceback.

    Its message may quote strangers, who have names of 5 MB: it is one line of bounded length, and moves no terminal's
    cursor.
    """

    exit_code = 1

    def __str__(self) -> str:
        text = super().__str__()
        text = text if len(text) <= MAX_MESSAGE else f"{text[:MAX_MESSAGE]}..."
        return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


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
    """The network isn't the published one, or its ONNX file computes something else."""


class ConversionError(CheckFailed):
    """torch can't express the network in ONNX."""


class VerifyError(CheckFailed):
    """An artifact isn't intact."""


class StageError(CheckFailed):
    """A worker process ended without an answer (crashed or was killed)."""
