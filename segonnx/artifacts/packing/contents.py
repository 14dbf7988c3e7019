"""What the forms share: names that are safe to write, and copies whose bytes are checked on the way."""

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
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}")
MAX_FILES = 10_000


def names(content: Manifest, *, signed: bool) -> list[str]:
    """The files of an artifact, its manifest first: the same order each time."""
    return [layout.MANIFEST, *([layout.SIGNATURE] if signed else []), *sorted(content["files"])]


def require_known(found: Collection[str], content: Manifest, path: Path) -> None:
    """See to it that these names are the files of an artifact, with or without a signature.

    Raises:
        VerifyError: one is missing, or isn't the artifact's.
    """
    wanted = set(names(content, signed=layout.SIGNATURE in found))
    if extra := sorted(set(found) - wanted):
        raise VerifyError(f"{path} holds {extra[0]}, which the manifest doesn't know")
    if missing := sorted(wanted - set(found)):
        raise VerifyError(f"{path} lacks {missing[0]}")


def require_safe(found: Iterable[str]) -> None:
    """See to it that names of files can be written below a folder, on any system, each to a place of its own.

    Raises:
        VerifyError: a name is absolute, leads outside, holds strange characters, or is another one's in other case.
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
    """Copy a file whose size and hash are known; never more than that is read or written.

    Raises:
        VerifyError: it has other bytes.
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
    """The manifest in these bytes, checked as ``manifest.read`` checks a file, and the names in it.

    Raises:
        VerifyError: it isn't one.
    """
    content = manifest.parse(data, work / layout.MANIFEST)
    require_safe(names(content, signed=True))
    return content
