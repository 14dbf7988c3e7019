"""Compound artifacts: a folder that holds artifacts, and a manifest that binds them as an ensemble or a task."""

from __future__ import annotations

from pathlib import Path

from segonnx.artifacts import ensembles, layout, manifest, tasks
from segonnx.artifacts.manifest import Manifest
from segonnx.errors import VerifyError

MEMBERS = "members"
"""The folder that holds the members' artifacts."""


def members(folder: Path, content: Manifest) -> dict[Path, Manifest]:
    """The members of a compound artifact whose files were hashed, and their manifests.

    Args:
        folder: the artifact.
        content: its manifest.

    Raises:
        VerifyError: a member's manifest isn't intact or names other files than the artifact's, or the members don't go
            together.
    """
    found = {}
    listed = {layout.CARD, layout.TASK} if manifest.is_task(content) else {layout.CARD}
    for member in content["members"]:
        name = member["folder"]
        own = manifest.read(folder / name)
        if manifest.is_compound(own):
            raise VerifyError(f"{folder / name} holds networks of its own")
        for file, entry in own["files"].items():
            if content["files"].get(f"{name}/{file}") != entry:
                raise VerifyError(f"{folder}: its manifest and that of {name} differ on {file}")
        listed |= {f"{name}/{file}" for file in (layout.MANIFEST, *own["files"])}
        found[name] = own
    if extra := sorted(content["files"].keys() - listed):
        raise VerifyError(f"{folder} holds {extra[0]}, which is no member's")
    if manifest.is_task(content):
        wrong = tasks.misfit(tasks.read(folder, content), found)
    else:
        wrong = ensembles.misfit(content["members"], found)
    if wrong is not None:
        raise VerifyError(f"{folder}: {wrong}")
    return {folder / name: own for name, own in found.items()}
