"""An artifact on its way between machines: its zip file in blocks, unpacked and verified where it arrives.

The other machine is whoever runs functions there: ``ask(function, *arguments)`` gives what a function gives there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from segonnx.artifacts import packing
from segonnx.artifacts.packing import zipped
from segonnx.artifacts.verify import verify
from segonnx.core import files, subprocesses
from segonnx.core.subprocesses import Bounds, Progress
from segonnx.errors import ResourceError, VerifyError

Ask = Callable[..., Any]
BLOCK = 4 * 2**20
"""Bytes that are sent at a time."""
ABANDONED_S = 86_400.0
"""The age from which a file that was never received whole belongs to nobody."""
MOST_BYTES = 50 * 10**9
"""So much this machine keeps of what others sent it, unless more is in use."""
RECENT_S = 3_600.0
"""What was asked for within this time is in use: whoever asked may be about to load it."""
_PART = ".part"


def cache() -> Path:
    """The folder in which this machine keeps what others sent it. It may be removed at any time."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "segonnx"


def kept(digest: str) -> Path:
    """Where this machine keeps the artifact of a digest."""
    return cache() / "artifacts" / digest


@contextlib.contextmanager
def in_use(digest: str) -> Iterator[Path]:
    """Where this machine keeps the artifact of a digest, which stays there until the block, or this process, ends."""
    with _locked(digest, exclusively=False):
        _touch(kept(digest))
        yield kept(digest)


def tidy() -> None:
    """Remove what was used longest ago, until no more than ``MOST_BYTES`` is kept. What is in use stays."""
    found = []
    for path in (*(cache() / "artifacts").glob("[!.]*"), *(cache() / "files").glob("*")):
        if path.suffix == _PART:
            continue
        with contextlib.suppress(OSError):
            found.append((path.lstat().st_mtime, path, _size(path)))
    left = sum(size for *_, size in found)
    for used, path, size in sorted(found):
        if left <= MOST_BYTES:
            return
        if time.time() - used > RECENT_S and _removed(path):
            left -= size


def _size(path: Path) -> int:
    return sum(one.lstat().st_size for one in (path, *path.rglob("*")) if not one.is_dir())


def _removed(path: Path) -> bool:
    """Remove an artifact or a file that is kept, unless it is in use."""
    try:
        with _locked(path.name, exclusively=True):
            if path.is_dir():
                gone = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
                path.rename(gone)
                shutil.rmtree(gone, ignore_errors=True)
            else:
                path.unlink()
    except OSError:  # it is in use, or another process was quicker
        return False
    return True


@contextlib.contextmanager
def _locked(name: str, *, exclusively: bool) -> Iterator[None]:
    """Hold the lock of something that is kept, where the system has such locks. It goes with the process.

    Raises:
        OSError: Another process holds it, and one wants it exclusively.
    """
    folder = cache() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("wb") as file:
        with contextlib.suppress(ImportError):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB if exclusively else fcntl.LOCK_SH)
        yield


def _touch(path: Path) -> None:
    with contextlib.suppress(OSError):
        os.utime(path)


class Parcel(contextlib.AbstractContextManager["Parcel"]):
    """An artifact that is brought to other machines; it is packed once, when the first of them lacks it.

    Args:
        folder: The artifact.
        digest: Of its manifest.
        bounds: What the check of its graph may take, here and there.
    """

    def __init__(self, folder: Path, digest: str, bounds: Bounds | None = None) -> None:
        self.digest = digest
        self._artifact, self._bounds = folder, bounds
        self._folder = tempfile.TemporaryDirectory(prefix="segonnx-", ignore_cleanup_errors=True)
        self._packing = _Once(self._pack)

    def __exit__(self, *error: object) -> None:
        self._folder.cleanup()

    def bring(self, ask: Ask, progress: Progress = subprocesses.silent) -> None:
        """See to it that another machine has the artifact in its cache, intact.

        Raises:
            VerifyError: The artifact isn't intact, here or there, or is another one than it was.
            ResourceError: A disk is full.
        """
        if ask(holds, self.digest, self._bounds):
            return
        progress("packing the artifact")
        there = send(ask, self._packing(), progress)
        progress("verifying the artifact there")
        ask(accept, there, self.digest, self._bounds)

    def _pack(self) -> Path:
        path = packing.pack(self._artifact, "zip", Path(self._folder.name) / "artifact.zip", bounds=self._bounds)
        with zipped.opened(path) as packed:
            if packed.manifest()["digest"] != self.digest:
                raise VerifyError(f"{self._artifact} was changed since it was found")
        return path


class _Once:
    """A function that several threads call, and one runs."""

    def __init__(self, function: Callable[[], Path]) -> None:
        import threading

        self._function, self._lock = function, threading.Lock()
        self._value: Path | None = None

    def __call__(self) -> Path:
        with self._lock:
            if self._value is None:
                self._value = self._function()
            return self._value


def send(ask: Ask, path: Path, progress: Progress = subprocesses.silent) -> Path:
    """Send a file to another machine, whose bytes are checked there. Returns its path there, which nobody else has.

    Raises:
        VerifyError: It came with other bytes.
    """
    digest, size = files.sha256(path), path.stat().st_size
    there: Path = ask(begin)
    for number, block in enumerate(_blocks(path)):
        progress(f"sending {number * BLOCK / 1e6:,.0f} of {size / 1e6:,.0f} MB")
        ask(append, there, number * BLOCK, block)
    ask(check, there, digest)
    return there


def share(ask: Ask, path: Path, progress: Progress = subprocesses.silent) -> Path:
    """See to it that another machine keeps a file, for all who have the same. Returns its path there.

    Raises:
        VerifyError: It came with other bytes.
    """
    digest = files.sha256(path)
    there: Path | None = ask(find, digest)
    return there or ask(keep, send(ask, path, progress), digest)


def fetch(
    ask: Ask,
    folder: Path,
    out: Path,
    *,
    overwrite: bool = False,
    bounds: Bounds | None = None,
    progress: Progress = subprocesses.silent,
) -> Path:
    """Get an artifact from another machine. It appears at ``out`` whole and verified, or not at all.

    Args:
        ask: See above.
        folder: The artifact on the other machine.
        out: The artifact's folder to make here.
        overwrite: Replace what is there, if that is an artifact.
        bounds: What the check of its graph may take, here and there.
        progress: A progress callback.

    Raises:
        VerifyError: What came isn't an intact artifact.
        InputError: Something is at ``out`` that stays.
        ResourceError: A disk is full.
    """
    there, size = ask(pack, folder, bounds)
    with tempfile.TemporaryDirectory(prefix="segonnx-", ignore_cleanup_errors=True) as name:
        files.require_space(size, Path(name), "what comes from another machine", "free some space, or set TMPDIR")
        path = Path(name) / "artifact.zip"
        with path.open("xb") as file:
            for offset in range(0, size, BLOCK):
                progress(f"fetching {offset / 1e6:,.0f} of {size / 1e6:,.0f} MB")
                file.write(ask(read, there, offset))
        return packing.unpack(path, out, overwrite=overwrite, bounds=bounds, progress=progress)


def holds(digest: str, bounds: Bounds | None) -> bool:
    """Whether this machine keeps an artifact, intact."""
    folder = kept(digest)
    if not folder.is_dir():
        return False
    _touch(folder)
    try:
        return bool(verify(folder, replay=False, bounds=bounds).manifest["digest"] == digest)
    except VerifyError:
        return False


def accept(packed: Path, digest: str, bounds: Bounds | None) -> None:
    """Keep the artifact that was sent as a zip file, which goes.

    Raises:
        VerifyError: It isn't an intact artifact, or not that of the digest.
    """
    try:
        if holds(digest, bounds):  # another machine on the same storage was quicker
            return
        with zipped.opened(packed) as source:
            if (found := source.manifest()["digest"]) != digest:
                raise VerifyError(f"another artifact came than was asked for: {found[:16]}..., not {digest[:16]}...")
        packing.unpack(packed, kept(digest), overwrite=True, bounds=bounds)
        tidy()
    finally:
        packed.unlink(missing_ok=True)


def begin() -> Path:
    """A new file for what is sent to this machine. Those that nobody finished are removed."""
    folder = _files()
    for path in folder.glob(f"*{_PART}"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > ABANDONED_S:
                path.unlink()
    path = folder / f"{uuid.uuid4().hex}{_PART}"
    path.touch(exist_ok=False)
    return path


def append(path: Path, offset: int, block: bytes) -> None:
    """Write a block of a file that is sent."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(block)


def check(path: Path, digest: str) -> None:
    """See to it that a file came as it was sent.

    Raises:
        VerifyError: It has other bytes, and is gone.
    """
    if (found := files.sha256(path)) != digest:
        path.unlink()
        raise VerifyError(f"a file came with other bytes than were sent: {found[:16]}..., not {digest[:16]}...")


def keep(path: Path, digest: str) -> Path:
    """Keep a file that was sent, under its digest. Returns where."""
    kept_at = path.replace(_files() / digest)
    _touch(kept_at)
    tidy()
    return kept_at


def find(digest: str) -> Path | None:
    """A file that this machine keeps; None where there is none of these bytes."""
    path = _files() / digest
    if not path.is_file() or files.sha256(path) != digest:
        return None
    _touch(path)
    return path


def pack(folder: Path, bounds: Bounds | None) -> tuple[Path, int]:
    """Pack an artifact of this machine into a file beside it, to be read elsewhere. Returns the file, and its size."""
    path = packing.pack(folder, "zip", folder.with_name(f"{folder.name}.zip"), overwrite=True, bounds=bounds)
    return path, path.stat().st_size


def read(path: Path, offset: int) -> bytes:
    """A block of a file of this machine."""
    with files.opened(path) as file:
        file.seek(offset)
        return file.read(BLOCK)


def _blocks(path: Path) -> Iterator[bytes]:
    with files.opened(path) as file:
        while block := file.read(BLOCK):
            yield block


def _files() -> Path:
    folder = cache() / "files"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"can't write to {folder}: {error.strerror}") from error
    return folder
