"""Files and folders that appear complete or not at all, files that are read without trust, and hashes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from segonnx.errors import InputError, ResourceError

MARK = ".segonnx-scratch"
"""The file that tells that a scratch folder is ours. Whoever works in the folder holds a lock on it."""
_MARK_TEXT = b"A scratch folder of segonnx, which clears it away once nobody holds the lock on this file.\n"
_UNMARKED = ".segonnx-new"
"""How the name of a scratch folder ends until it has its mark, and the mark its lock."""
UNMARKED_S = 600.0
"""The age at which a folder of such a name belongs to nobody: it has it for the time of three calls."""
_PREVIOUS = "previous"
"""The folder in a scratch folder that holds what stood at the target, where the two can't change places in one step."""
LOCK_PATIENCE_S = 60.0
"""How long the lock of a folder is waited for. It is held for the time of a few renames."""
_NO_REPLACE, _EXCHANGE = 1, 2
"""The flags of Linux's renameat2."""
_UNKNOWN_CALL = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)


def opened(path: Path, *, follow: bool = True) -> io.BufferedReader:
    """Open a plain file to read. A pipe, a device or a folder isn't opened, and nothing is waited for.

    Args:
        path: the file.
        follow: open the file that a link leads to; otherwise a link isn't opened.

    Raises:
        OSError: it isn't a plain file, or can't be read.
    """
    _require_plain(path.stat(follow_symlinks=follow), path)
    flags = os.O_RDONLY
    for name in ("O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY", "O_BINARY", *(() if follow else ("O_NOFOLLOW",))):
        flags |= getattr(os, name, 0)  # which not every system has
    descriptor = os.open(path, flags)
    try:
        _require_plain(os.fstat(descriptor), path)  # it may be another than a moment ago
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read(path: Path, max_bytes: int, *, follow: bool = True) -> bytes:
    """The bytes of a plain file, read once.

    Args:
        path: the file.
        max_bytes: a larger file isn't read.
        follow: see ``opened``.

    Raises:
        OSError: it isn't a plain file, can't be read, or is larger.
    """
    with opened(path, follow=follow) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise OSError(errno.EFBIG, f"it is larger than {max_bytes:,} bytes", str(path))
    return data


def _require_plain(info: os.stat_result, path: Path) -> None:
    if stat.S_ISLNK(info.st_mode):
        raise OSError(errno.ELOOP, "it is a link", str(path))
    if not stat.S_ISREG(info.st_mode):
        raise OSError(errno.EINVAL, "it isn't a plain file", str(path))


@contextlib.contextmanager
def staging(target: Path) -> Iterator[Path]:
    """A new scratch folder beside ``target`` for as long as the block runs; the block's content vanishes with it.

    Whatever is to stay must be moved out of it with ``publish``. What killed processes left behind is cleared away.

    Raises:
        ResourceError: the folder can't be made, or nothing can stand at ``target``.
    """
    require_name(target)
    parent = target.parent
    with contextlib.ExitStack() as stack:
        try:
            parent.mkdir(parents=True, exist_ok=True)
            _clear_abandoned(parent)
            folder = stack.enter_context(_scratch(parent, target.name))
        except OSError as error:
            raise ResourceError(f"can't write to {parent}: {error.strerror}") from error
        yield folder


def require_name(path: Path) -> None:
    """See to it that a path can be written to, before the work for it.

    Raises:
        ResourceError: a part of it is too long, it leads through a file, or it is the working folder or one around it.
    """
    if path.name in ("", ".."):  # which no rename replaces
        raise ResourceError(f"can't write {path}: choose a name for what is made")
    whole = path.absolute()
    there = next(parent for parent in whole.parents if os.path.lexists(parent))
    for part in whole.relative_to(there).parts:
        try:
            (there / part).lstat()
        except FileNotFoundError:
            pass
        except OSError as error:
            raise ResourceError(f"can't write {path}: {error.strerror}") from error


def is_scratch(folder: Path) -> bool:
    """Whether a folder is a scratch folder, of this process or of another one."""
    try:
        return not folder.is_symlink() and read(folder / MARK, len(_MARK_TEXT), follow=False) == _MARK_TEXT
    except OSError:
        return False


def _nothing_stays(_: Path) -> None:
    """The check of ``publish`` that lets everything be replaced."""


def publish(made: Path, target: Path, *, replace: bool = True, check: Callable[[Path], None] = _nothing_stays) -> None:
    """Move a file or folder from its scratch folder to ``target``, once all its bytes are on the disk.

    At any moment all of the old or all of the new stands at ``target``. Processes that publish there take turns.

    Args:
        made: a file or folder that stands directly in the folder of ``staging``.
        target: where it is to stand.
        replace: whether what stands there may be replaced.
        check: gets the path at which the old one stands, and raises if that must stay.

    Raises:
        InputError: something stands at ``target``, and may not be replaced.
        OSError: it can't be moved.
    """
    for path in [*made.rglob("*"), made]:
        _sync(path)
    with _locked(target.parent):
        if not _rename_at_once(made, target, _NO_REPLACE):
            if not os.path.lexists(target):
                made.rename(target)
            elif replace:
                check(target)
                _replace(made, target, check)
            else:
                raise InputError(f"{target} exists: --overwrite replaces it")
    _sync(target.parent)


def _replace(made: Path, target: Path, check: Callable[[Path], None]) -> None:
    """Put ``made`` in the place of ``target``. The old one stays in the scratch folder, and goes with it."""
    if _rename_at_once(made, target, _EXCHANGE):
        try:
            check(made)  # where the old one is now: it may be another than the one that was looked at
        except BaseException:
            _rename_at_once(made, target, _EXCHANGE)
            raise
    elif made.is_file() and not (target.is_dir() and not target.is_symlink()):
        made.replace(target)
    else:
        old = made.parent / _PREVIOUS / target.name
        old.parent.mkdir()
        target.rename(old)
        try:
            made.rename(target)
        except BaseException:
            old.rename(target)
            raise


def _rename_at_once(source: Path, target: Path, flag: int) -> bool:
    """Rename with a flag of renameat2. False where the system can't, or, unless it exchanges, something is there.

    Raises:
        OSError: it can't be renamed.
    """
    if sys.platform != "linux":
        return False
    import ctypes

    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    here = -100  # AT_FDCWD: paths are as this process sees them
    if rename(here, os.fsencode(source), here, os.fsencode(target), flag) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNKNOWN_CALL or (flag == _NO_REPLACE and code == errno.EEXIST):
        return False
    raise OSError(code, os.strerror(code), str(target))


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
    require_replaceable(path)


def require_replaceable(path: Path) -> None:
    """See to it that a file may stand at ``path``: what stands there is a plain file or a link to one, or nothing.

    Raises:
        ResourceError: it is a folder, a device or a pipe.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return  # nothing is there, or a link to nothing
    if stat.S_ISDIR(mode):
        raise ResourceError(f"can't write {path}: it is a folder")
    if not stat.S_ISREG(mode):
        raise ResourceError(f"can't write {path}: it isn't a plain file")


def require_apart(made: Path, *used: Path) -> None:
    """See to it that what is made takes nothing away of what is used: it is none of it, in none of it, and holds none.

    Args:
        made: the path of a file or folder that is to be written.
        used: the files and folders that it is made from.

    Raises:
        InputError: it isn't apart from them.
    """
    target = Path(os.path.realpath(made))
    for one in used:
        require_outside(made, one)
        if target in Path(os.path.realpath(one)).parents:
            raise InputError(f"{made} holds {one}, which is read: choose another place")


def require_outside(made: Path, used: Path) -> None:
    """See to it that what is made doesn't lie in a file or folder that is read, and isn't that itself.

    Raises:
        InputError: it does, or is.
    """
    target, source = Path(os.path.realpath(made)), Path(os.path.realpath(used))
    if target == source or same_file(made, used):
        raise InputError(f"{made} is {used}, which is read: choose another place")
    if source in target.parents:
        raise InputError(f"{made} lies in {used}, which is read: choose another place")


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths lead to one file or folder that is there."""
    try:
        return one.samefile(other)
    except OSError:
        return False


def write(path: Path, content: str | bytes) -> None:
    """Write a file completely or not at all.

    Raises:
        ResourceError: it can't be written.
    """
    data = content.encode() if isinstance(content, str) else content
    if not path.parent.is_dir():
        raise ResourceError(f"can't write {path}: {path.parent} is not a folder")
    require_replaceable(path)
    try:
        with staging(path) as work:
            made = work / "made"
            made.write_bytes(data)
            made.chmod(0o644)
            publish(made, path, check=require_replaceable)
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
    """SHA-256 of a plain file, as hexadecimal digits.

    Raises:
        OSError: it isn't a plain file, or can't be read.
    """
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _scratch(parent: Path, name: str) -> Iterator[Path]:
    """A new folder that is marked as ours and locked before it gets its name."""
    folder = Path(tempfile.mkdtemp(prefix=".", suffix=_UNMARKED, dir=parent))
    descriptor = None
    try:
        descriptor = os.open(folder / MARK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        _lock(descriptor)
        os.write(descriptor, _MARK_TEXT)
        folder = folder.rename(parent / f".{name[:40]}{folder.name.removesuffix(_UNMARKED)}.partial")
        yield folder
    finally:
        _remove(folder, descriptor)


def _clear_abandoned(parent: Path) -> None:
    """Remove the scratch folders whose owner is dead: its lock went with it. What they took away is put back."""
    with os.scandir(parent) as scan:
        names = [entry.name for entry in scan if entry.name.startswith(".")]
    for folder in (parent / name for name in names if name.endswith(_UNMARKED)):
        _clear_unmarked(folder)
    for folder in (parent / name for name in names if name.endswith(".partial")):
        if (descriptor := _taken_over(folder)) is not None:
            with contextlib.suppress(OSError):
                for old in (folder / _PREVIOUS).iterdir():
                    if not os.path.lexists(parent / old.name):
                        old.rename(parent / old.name)
            _remove(folder, descriptor)


def _clear_unmarked(folder: Path) -> None:
    """Remove what a process left that was killed before it had marked its folder. It holds the mark, or nothing."""
    with contextlib.suppress(OSError):
        if not folder.is_symlink() and time.time() - folder.stat().st_mtime > UNMARKED_S:
            (folder / MARK).unlink(missing_ok=True)
            folder.rmdir()


def _taken_over(folder: Path) -> int | None:
    """The descriptor of a folder's mark, which this process has locked now; None if it isn't ours, or in use."""
    if not is_scratch(folder):
        return None
    try:
        descriptor = os.open(folder / MARK, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return None
    with contextlib.suppress(OSError):
        if _lock(descriptor) and os.path.samestat(os.fstat(descriptor), (folder / MARK).lstat()):
            return descriptor
    os.close(descriptor)
    return None


def _remove(folder: Path, mark: int | None) -> None:
    """Remove a scratch folder: the mark last, so that a process that is killed meanwhile leaves one that is marked."""
    with contextlib.suppress(OSError):
        for entry in folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name != MARK:
                entry.unlink(missing_ok=True)
    if mark is not None and sys.platform == "win32":  # which removes no file that is open
        os.close(mark)
    shutil.rmtree(folder, ignore_errors=True)
    if mark is not None and sys.platform != "win32":
        os.close(mark)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder, where the system has such locks. They leave nothing behind.

    Raises:
        ResourceError: another process holds it for too long.
    """
    if sys.platform == "win32":  # which opens no folders
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        until = time.monotonic() + LOCK_PATIENCE_S
        while not _lock(descriptor, otherwise=True):
            if time.monotonic() > until:
                raise ResourceError(f"another process holds the lock on {folder}")
            time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, *, otherwise: bool = False) -> bool:
    """Lock an open file until it is closed, or its process dies. Nothing is waited for.

    Args:
        descriptor: of the file.
        otherwise: the answer where there are no such locks. There nothing tells that the owner of a scratch folder is
            dead, and none is cleared away.

    Returns:
        Whether it is locked now. It isn't where another process has locked it.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return otherwise
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
