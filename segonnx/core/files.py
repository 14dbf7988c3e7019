"""Files and folders that appear complete or not at all, and their hashes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from segonnx.errors import ResourceError

_LOCK = ".lock"


@contextlib.contextmanager
def staging(target: Path) -> Iterator[Path]:
    """A new empty folder beside ``target`` for as long as the block runs; the block's content vanishes with it.

    Whatever is to stay must be moved out of it with ``publish``. What killed processes left behind is cleared away.

    Raises:
        ResourceError: the folder can't be made.
    """
    parent = target.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _clear_abandoned(parent)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=parent))
    except OSError as error:
        raise ResourceError(f"can't write to {parent}: {error.strerror}") from error
    try:
        with (folder / _LOCK).open("w") as file:
            _lock(file, wait=True)
            file.write("locked")  # until then nobody may take the folder for abandoned
            file.flush()
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, target: Path) -> None:
    """Rename ``folder`` to ``target`` once all its bytes are on the disk; an older ``target`` is replaced."""
    for path in [*folder.rglob("*"), folder]:
        _sync(path)
    if target.exists():
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", suffix=".old", dir=target.parent) as aside:
            target.rename(Path(aside) / target.name)
            folder.rename(target)
    else:
        folder.rename(target)
    _sync(target.parent)


def require_writable(path: Path) -> None:
    """Make the folder of a file that is written later, after long work.

    Raises:
        ResourceError: the file couldn't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ResourceError(f"can't write {path}: {error.strerror}") from error
    if path.is_dir():
        raise ResourceError(f"can't write {path}: it is a folder")


def write(path: Path, content: str | bytes) -> None:
    """Write a file completely or not at all.

    Raises:
        ResourceError: it can't be written.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink()
            raise
    except OSError as error:
        raise ResourceError(f"can't write {path}: {error.strerror}") from error


def require_space(needed: int, folder: Path, what: str, hint: str) -> None:
    """See to it that a folder's disk has room.

    Args:
        needed: bytes.
        folder: where they are to be written.
        what: needs them, for the message.
        hint: what a user may do, for the message.

    Raises:
        ResourceError: there is too little.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ResourceError(
            f"{what} needs about {needed / 1e9:.2f} GB of disk, {folder} has {free / 1e9:.2f} GB free: {hint}"
        )


def sha256(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _clear_abandoned(parent: Path) -> None:
    """Remove the staging folders whose owner is dead: its lock went with it."""
    for folder in parent.glob(".*.partial"):
        try:
            with (folder / _LOCK).open("r+") as file:
                abandoned = _lock(file, wait=False) and file.read() != ""
        except OSError:
            continue  # its owner has just made it, or is clearing it away
        if abandoned:  # Windows removes no file that is open
            shutil.rmtree(folder, ignore_errors=True)


def _lock(file: IO[str], *, wait: bool) -> bool:
    """Lock an open file until it is closed, or its process dies.

    Args:
        file: open for writing.
        wait: wait until nobody else has it locked.

    Returns:
        Whether it is locked now. It isn't where another process has locked it, or the system has no such locks: there
        nothing tells that a staging folder's owner is dead, and none is cleared away.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True


def _sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's entries, are on the disk."""
    flags = os.O_RDONLY
    if os.name == "nt":  # which flushes files that are open for writing, and no folders
        if path.is_dir():
            return
        flags = os.O_RDWR
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
