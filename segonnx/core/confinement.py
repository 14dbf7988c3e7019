"""Takes the machine's files away from this process, by Linux's Landlock: a library that is misled then reads none.

Landlock needs no rights, and can't be undone. Linux has it since 5.13; elsewhere nothing is taken away.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

_CREATE, _ADD, _RESTRICT = 444, 445, 446
"""The numbers of Landlock's calls, alike on every processor."""
_VERSION_FLAG, _PATH_BENEATH, _NO_NEW_PRIVILEGES = 1, 1, 38
_WRITE, _READ, _LIST, _REMOVE, _MAKE, _TRUNCATE = 1 << 1, 1 << 2, 1 << 3, 1 << 5, 1 << 8, 1 << 14


def possible() -> bool:
    """Whether this system can confine a process."""
    return _version() > 0


def confine(folder: Path) -> bool:
    """Let this thread, and those that it starts, open no file from here on but those in ``folder`` and of libraries.

    What is open stays open. Nor can they start a program or a connection by TCP.

    Args:
        folder: may be read and written.

    Returns:
        Whether the system could do that.
    """
    version = _version()
    if version < 1:
        return False
    files = (1 << min(12 + version, 15 if version < 5 else 16)) - 1
    network = 0b11 if version >= 4 else 0
    attributes = struct.pack("=QQQ", files, network, 0)[: 8 if version < 4 else 16 if version < 6 else 24]
    rules = _call(_CREATE, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))
    if rules < 0:
        return False
    try:
        _allow(rules, [folder], (_WRITE | _READ | _LIST | _REMOVE | _MAKE | _TRUNCATE) & files)
        _allow(rules, _libraries(), _READ | _LIST)
        ctypes.CDLL(None).prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        return _call(_RESTRICT, ctypes.c_int(rules), ctypes.c_uint32(0)) == 0
    finally:
        os.close(rules)


def _libraries() -> list[Path]:
    """Where Python, its packages and the system's libraries are: much is loaded when it is first used."""
    paths = sysconfig.get_paths()
    own = [Path(paths[name]) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return [*own, Path(__file__).parents[1], *map(Path, ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib"))]


def _allow(rules: int, folders: Iterable[Path], access: int) -> None:
    """Allow access to what is in folders. One that isn't there is left out."""
    for folder in folders:
        try:
            descriptor = os.open(folder, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            rule = struct.pack("=Qi", access, descriptor)
            _call(_ADD, ctypes.c_int(rules), ctypes.c_int(_PATH_BENEATH), rule, ctypes.c_uint32(0))
        finally:
            os.close(descriptor)


def _version() -> int:
    """Landlock's version here; 0 or less where there is none."""
    if sys.platform != "linux":
        return 0
    return _call(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION_FLAG))


def _call(number: int, *arguments: object) -> int:
    return int(ctypes.CDLL(None).syscall(ctypes.c_long(number), *arguments))
