"""What the formats share: the check that names are safe to write, and copies that check the bytes they write."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import IO

from segonnx.artifacts import layout, manifest
from segonnx.artifacts.manifest import Manifest
from segonnx.errors import VerifyError

BLOCK = 2**20
"""Bytes that are read at a time."""
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}")
MAX_FILES = 10_000
"""The most files that an artifact may hold."""


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
        VerifyError: A name is absolute, leads outside the folder, holds unusual characters, or differs from another
            one in case only.
    """
    seen: dict[str, str] = {}
    for name in found:
        if not all(_PART.fullmatch(part) for part in name.split("/")) or name.count("/") > 8:
            raise VerifyError(f"the name {name[:100]!r} isn't a plain relative one")
        if (other := seen.get(name.lower())) is not None:
            raise VerifyError(f"the names {other!r} and {name!r} would be one file, on some systems at least")
        seen[name.lower()] = name
        if len(seen) > MAX_FILES:
            raise VerifyError(f"it holds more than {MAX_FILES:,} files")


def copy(source: IO[bytes], target: Path, size: int, sha256: str, name: str) -> None:
    """Copy a file whose size and hash are known. No byte beyond that size is written.

    Args:
        source: The file to read.
        target: The file to make.
        size: The number of bytes that the manifest says.
        sha256: The SHA-256 that the manifest says, in hexadecimal.
        name: The file's name, which messages name.

    Raises:
        VerifyError: The file has other bytes.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    left = size
    with target.open("xb") as file:
        while block := source.read(min(BLOCK, left + 1)):
            left -= len(block)
            if left < 0:
                raise VerifyError(f"{name} has more than the {size:,} bytes that the manifest says")
            digest.update(block)
            file.write(block)
    if left:
        raise VerifyError(f"{name} has {size - left:,} bytes, the manifest says {size:,}")
    if digest.hexdigest() != sha256:
        raise VerifyError(f"{name} was changed: its SHA-256 is {digest.hexdigest()[:16]}..., not {sha256[:16]}...")


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
