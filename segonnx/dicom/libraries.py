"""The libraries of the extra ``dicom``: whether they are there, and that they say nothing of what they read."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import threading
import warnings
from collections.abc import Iterator

from segonnx.errors import InputError, SegonnxError

NEEDED = {
    "SimpleITK": "SimpleITK",
    "contourpy": "contourpy",
    "highdicom": "highdicom",
    "imagecodecs": "imagecodecs",
    "openjpeg": "pylibjpeg-openjpeg",
    "jpeg_ls": "pyjpegls",
    "pydicom": "pydicom",
    "pylibjpeg": "pylibjpeg",
}
"""The packages of the extra, by their modules."""
_LOGGERS = ("highdicom", "jpeg_ls", "openjpeg", "pydicom", "pylibjpeg")


def installed() -> bool:
    """Whether the extra is installed."""
    return all(importlib.util.find_spec(module) for module in NEEDED)


def require() -> None:
    """Check that the extra is installed.

    Raises:
        InputError: A package of it isn't.
    """
    for module, package in NEEDED.items():
        if importlib.util.find_spec(module) is None:
            raise InputError(f"{package}, which DICOM needs, isn't installed: pip install 'segonnx[dicom]'")


class _Inside:
    """How many are in a block of ``quiet``, and what the first one of them changed."""

    def __init__(self) -> None:
        self.lock, self.count, self.changes = threading.Lock(), 0, contextlib.ExitStack()

    def enter(self) -> None:
        with self.lock:
            if not self.count:
                self.changes = _changes()
            self.count += 1

    def leave(self) -> None:
        with self.lock:
            self.count -= 1
            if not self.count:
                self.changes.close()


_INSIDE = _Inside()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries from logging and warning, and from refusing what only breaks a rule of spelling.

    What they say quotes the values that they stumble over, such as names of patients. Any number of threads may be in
    such a block: it holds for all until the last one leaves.
    """
    _INSIDE.enter()
    try:
        yield
    finally:
        _INSIDE.leave()


@contextlib.contextmanager
def refusing(said: str) -> Iterator[None]:
    """Use the libraries quietly, and refuse what they stumble over in one line, without the values that they quote.

    Args:
        said: The line.

    Raises:
        InputError: The block raised something that nobody expected.
    """
    try:
        with quiet():
            yield
    except (SegonnxError, MemoryError):
        raise
    except Exception as error:
        raise InputError(said) from error


def _changes() -> contextlib.ExitStack:
    from pydicom import config

    stack = contextlib.ExitStack()
    stack.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore")
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.CRITICAL + 1)
    for mode in ("reading_validation_mode", "writing_validation_mode"):
        stack.callback(setattr, config.settings, mode, getattr(config.settings, mode))
        setattr(config.settings, mode, config.IGNORE)
    return stack
