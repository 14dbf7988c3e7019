"""Changes to an artifact with hashes that fit, as somebody with bad intentions makes them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from segonnx.artifacts import layout, manifest


def reseal(
    artifact: Path, change: Callable[[dict[str, Any]], object] = lambda _: None, *, rehash: bool = False
) -> None:
    """Change the manifest, and give it a digest that fits.

    Args:
        artifact: the folder.
        change: changes the manifest's content.
        rehash: list every file of the folder anew.
    """
    path = artifact / layout.MANIFEST
    content = json.loads(path.read_bytes())
    change(content)
    if rehash:
        content["files"] = {
            file.relative_to(artifact).as_posix(): {
                "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
                "bytes": file.stat().st_size,
            }
            for file in sorted(artifact.rglob("*"))
            if file.is_file() and file.name not in (layout.MANIFEST, layout.SIGNATURE)
        }
    path.write_bytes(manifest.seal(content))
