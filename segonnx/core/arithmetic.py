"""How a thread computes with floating-point numbers: what libraries change of that is put back."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import platform
import struct
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def denormals_as_zero() -> Iterator[None]:
    """Let this thread take 0 for denormal numbers while the block runs, where we know how: x86-64 Linux."""
    with kept() as found:
        if found is not None:
            libm, before = found
            changed = ctypes.create_string_buffer(before.raw, _ENVIRONMENT)
            (control,) = struct.unpack_from("<I", changed, _CONTROL)
            struct.pack_into("<I", changed, _CONTROL, control | _DENORMALS_AS_ZERO)
            libm.fesetenv(changed)
        yield


_ENVIRONMENT, _CONTROL, _DENORMALS_AS_ZERO = 32, 28, 0x8040
"""C's floating-point environment on x86-64 Linux: its size, where the control word is, and two of that one's bits."""


@contextlib.contextmanager
def kept() -> Iterator[tuple[ctypes.CDLL, ctypes.Array[ctypes.c_char]] | None]:
    """Give this thread its way to compute back after the block."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        yield None
        return
    libm, before = _libm(), ctypes.create_string_buffer(_ENVIRONMENT)
    libm.fegetenv(before)
    try:
        yield libm, before
    finally:
        libm.fesetenv(before)


@functools.cache
def _libm() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libm.so.6")
    except OSError:  # where it is a part of libc
        return ctypes.CDLL(None)
