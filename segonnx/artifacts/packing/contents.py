"""What the formats share: which files are packed, whether names are safe, and copies that check their bytes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from segonnx.artifacts import layout, manifest
from segonnx.artifacts.layout import MODEL
from segonnx.artifacts.manifest import Manifest
from segonnx.artifacts.packing.serving import Serving
from segonnx.artifacts.verify import Verified
from segonnx.core import files
from segonnx.errors import InputError, ResourceError, VerifyError

BLOCK = 2**20
"""Bytes that are read at a time."""
_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.+-]{0,198}[A-Za-z0-9_+-])?")
_DEVICE = re.compile(r"(?i)(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?")
"""What Windows takes for a device, whatever its ending."""
MAX_DEPTH = 8
"""The most folders that a file of an artifact may lie in."""
MAX_FILES = 10_000
"""The most files that an artifact may hold."""


@dataclass(frozen=True)
class Source:
    """A verified artifact that is packed.

    Attributes:
        folder: The artifact's folder.
        content: The manifest.
        weights: The files beside ``model.onnx`` that hold its weights.
        signature: The bytes of the signature. None if the artifact has none.
        serving: How a server is to run it, in a format for one.
    """

    folder: Path
    content: Manifest
    weights: tuple[str, ...]
    signature: bytes | None
    serving: Serving = field(default_factory=Serving)

    @classmethod
    def of(cls, folder: Path, verified: Verified, serving: Serving | None = None) -> Source:
        """The source of an artifact that was just verified.

        Args:
            folder: The artifact's folder.
            verified: What was found of it.
            serving: How a server is to run it.

        Raises:
            VerifyError: A name can't be packed.
            OSError: The signature can't be read.
        """
        path = folder / layout.SIGNATURE
        signature = files.read(path, manifest.MAX_BYTES, follow=False) if path.exists() else None
        require_safe(names(verified.manifest, signed=True))
        return cls(folder, verified.manifest, verified.weights, signature, serving or Serving())

    @property
    def every(self) -> list[str]:
        """The names of all files in a fixed order, the manifest first."""
        return names(self.content, signed=self.signature is not None)

    @property
    def model(self) -> list[str]:
        """The names of the files that a runtime needs: the model's, and those of its weights."""
        return [MODEL, *self.weights]

    @property
    def documents(self) -> list[str]:
        """The names of the files that people read: the manifest, and the card if there is one."""
        return [layout.MANIFEST, *([layout.CARD] if layout.CARD in self.content["files"] else [])]

    def entry(self, name: str) -> dict[str, Any]:
        """The size and the SHA-256 of a file, as the manifest has them: also of those that it can't name."""
        if name in self.content["files"]:
            known: dict[str, Any] = self.content["files"][name]
            return known
        return entry(self._own(name))

    def blocks(self, name: str) -> Iterator[bytes]:
        """The bytes of a file, which are checked on the way.

        Raises:
            VerifyError: The file was changed since the artifact was verified.
        """
        known = self.entry(name)
        whole = _file(self.folder / name) if name in self.content["files"] else iter([self._own(name)])
        return checked(whole, known["bytes"], known["sha256"], name)

    def copy(self, name: str, target: Path) -> None:
        """Copy a file, and check its bytes on the way.

        Raises:
            VerifyError: The file was changed since the artifact was verified.
        """
        write(self.blocks(name), target)

    def _own(self, name: str) -> bytes:
        """The bytes of a file that the manifest can't name."""
        if name == layout.MANIFEST:
            return manifest.seal(self.content)
        assert name == layout.SIGNATURE and self.signature is not None
        return self.signature


def names(content: Manifest, *, signed: bool) -> list[str]:
    """The names of an artifact's files in a fixed order, the manifest first.

    Args:
        content: The manifest.
        signed: Whether the artifact holds a signature.
    """
    return [layout.MANIFEST, *([layout.SIGNATURE] if signed else []), *sorted(content["files"])]


def require_known(found: Collection[str], content: Manifest, path: Path) -> None:
    """Check that these names are the files of an artifact, with or without a signature.

    Args:
        found: The names that were found.
        content: The manifest.
        path: The packed file or folder, which messages name.

    Raises:
        VerifyError: A file is missing, or isn't the artifact's.
    """
    wanted = set(names(content, signed=layout.SIGNATURE in found))
    if extra := sorted(set(found) - wanted):
        raise VerifyError(f"{path} holds {extra[0]}, which the manifest doesn't know")
    if missing := sorted(wanted - set(found)):
        raise VerifyError(f"{path} lacks {missing[0]}")


def require_safe(found: Iterable[str]) -> None:
    """Check that files of these names can be written below a folder on any system, without overwriting each other.

    Raises:
        VerifyError: A name is absolute, leads outside the folder, holds unusual characters, is a device's, or differs
            from another one in case only; or a file's name is that of another one's folder.
    """
    seen: dict[str, str] = {}
    folders: dict[str, str] = {}
    for number, name in enumerate(found, 1):
        if number > MAX_FILES:
            raise VerifyError(f"it holds more than {MAX_FILES:,} files")
        parts = name.split("/", MAX_DEPTH + 1)
        if len(parts) > MAX_DEPTH + 1 or not all(_PART.fullmatch(part) for part in parts):
            raise VerifyError(f"the name {name[:100]!r} isn't a plain relative one")
        if any(_DEVICE.fullmatch(part) for part in parts):
            raise VerifyError(f"the name {name!r} is a device's, on some systems at least")
        if (other := seen.get(name.lower())) is not None:
            raise VerifyError(f"the names {other!r} and {name!r} would be one file, on some systems at least")
        seen[name.lower()] = name
        folders |= {"/".join(parts[:depth]).lower(): name for depth in range(1, len(parts))}
    if both := sorted(seen.keys() & folders.keys()):
        raise VerifyError(f"the name {seen[both[0]]!r} is a file, and a folder of {folders[both[0]]!r}")


def checked(blocks: Iterable[bytes], size: int, sha256: str, name: str) -> Iterator[bytes]:
    """The same blocks of a file whose size and hash are known. No byte beyond that size is passed on.

    Args:
        blocks: The file's bytes.
        size: The number of bytes that the manifest says.
        sha256: The SHA-256 that the manifest says, in hexadecimal.
        name: The file's name, which messages name.

    Raises:
        VerifyError: The file has other bytes.
    """
    digest = hashlib.sha256()
    left = size
    for block in blocks:
        left -= len(block)
        if left < 0:
            raise VerifyError(f"{name} has more than the {size:,} bytes that the manifest says")
        digest.update(block)
        yield block
    if left:
        raise VerifyError(f"{name} has {size - left:,} bytes, the manifest says {size:,}")
    if digest.hexdigest() != sha256:
        raise VerifyError(f"{name} was changed: its SHA-256 is {digest.hexdigest()[:16]}..., not {sha256[:16]}...")


def write(whole: Iterable[bytes], target: Path) -> None:
    """Write a new file, and the folders that it lies in."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as file:
        for block in whole:
            file.write(block)


def entry(data: bytes) -> dict[str, Any]:
    """The size and the SHA-256 of a file, as a manifest has them."""
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def blocks(file: IO[bytes]) -> Iterator[bytes]:
    """The bytes of an open file."""
    while block := file.read(BLOCK):
        yield block


def parse(data: bytes, work: Path) -> Manifest:
    """Parse a manifest, and check it as ``manifest.read`` does, and the names in it.

    Args:
        data: The bytes of the manifest.
        work: The folder that messages name.

    Raises:
        VerifyError: The bytes are no manifest, or a name in it isn't safe.
    """
    content = manifest.parse(data, work / layout.MANIFEST)
    require_safe(names(content, signed=True))
    return content


def require_written(folder: Path, wanted: dict[str, dict[str, Any]]) -> None:
    """Read a folder that was written, and check that it holds these files and no others.

    Args:
        folder: The folder.
        wanted: The size and the SHA-256 of each file, by its relative path.

    Raises:
        ResourceError: It doesn't: the disk gives other bytes than were written.
    """
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    try:
        if different := sorted(found ^ wanted.keys()):
            raise VerifyError(f"{different[0]} isn't where it was written")
        for name, known in wanted.items():
            for _ in checked(_file(folder / name), known["bytes"], known["sha256"], name):
                pass
    except VerifyError as error:
        raise unlike(folder, error) from error


def require_layout(out: Path, known: Collection[str], allowed: Callable[[Path], bool], *, needed: str) -> None:
    """See to it that a folder holds what a format writes and nothing else, before it is replaced.

    Args:
        out: The folder. A link, or an empty folder, may be replaced.
        known: The relative paths of the files and folders that the format writes.
        allowed: Tells of any other relative path whether the format writes it.
        needed: A path that the format always writes.

    Raises:
        InputError: It holds something else, or is a file.
    """
    if out.is_symlink():
        return
    if not out.is_dir():
        raise InputError(f"{out} is a file: --overwrite leaves it alone")
    found = [path.relative_to(out) for path in out.rglob("*")]
    if others := sorted(path.as_posix() for path in found if path.as_posix() not in known and not allowed(path)):
        raise InputError(f"{out} holds {others[0]}, which pack doesn't write: --overwrite leaves it alone")
    if found and Path(needed) not in found:
        raise InputError(f"{out} lacks {needed}, and isn't what pack wrote: --overwrite leaves it alone")


def unlike(made: Path, error: object) -> ResourceError:
    """The error of what was written and reads otherwise."""
    return ResourceError(f"{made.name} reads otherwise than it was written ({error}): is the disk sound?")


def _file(path: Path) -> Iterator[bytes]:
    with files.opened(path, follow=False) as file:
        yield from blocks(file)
