"""What --overwrite may replace by an artifact's folder: another artifact, whole or damaged, and nothing else."""

from __future__ import annotations

import stat
from pathlib import Path, PurePosixPath

from segonnx.artifacts import compounds, layout, manifest
from segonnx.errors import InputError, VerifyError

_OWN = frozenset(
    {
        layout.MODEL, f"{layout.MODEL}.data", layout.CPU_MODEL, layout.MANIFEST, layout.CARD, layout.SBOM,
        layout.SIGNATURE, layout.TASK, layout.TEST_DATA, layout.TOLERANCES,
    }
)  # fmt: skip


def require_artifact(path: Path) -> None:
    """See to it that nothing but an artifact is lost where ``path`` is replaced. A link, or an empty folder, may go.

    Raises:
        InputError: it is a file, or a folder that holds something else.
    """
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return
    if not stat.S_ISDIR(mode):
        raise InputError(f"{path} is a file, and no artifact: --overwrite leaves it alone")
    names = {entry.name for entry in path.iterdir()}
    if not names:
        return
    known = _known(path)
    if compounds.MEMBERS in names - known and layout.MANIFEST in names:
        for member in (path / compounds.MEMBERS).iterdir():  # of a damaged ensemble or task
            require_artifact(member)
        known |= {compounds.MEMBERS}
    if others := sorted(names - _OWN - known):
        raise InputError(f"{path} holds {others[0]}, which is no file of an artifact: --overwrite leaves it alone")
    if not names & {layout.MANIFEST, layout.MODEL}:
        raise InputError(f"{path} isn't an artifact: --overwrite leaves it alone")


def _known(path: Path) -> set[str]:
    """The first parts of the names that the manifest gives, if it can be read."""
    try:
        return {PurePosixPath(name).parts[0] for name in manifest.read(path)["files"] if PurePosixPath(name).parts}
    except (VerifyError, OSError):
        return set()
