"""An artifact in the forms that other programs take: a zip file, Triton's and MONAI's folders, an OCI image layout.

A zip file and an image layout hold the artifact as it is, so ``unpack`` gives it back. The two others hold the model
where their programs look for it, and can't be made into an artifact again.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from segonnx.artifacts.manifest import Manifest
from segonnx.artifacts.packing import bundle, oci, triton, zipped
from segonnx.artifacts.verify import verify
from segonnx.core import files, subprocesses
from segonnx.core.subprocesses import Progress
from segonnx.errors import InputError, ResourceError

FORMATS: dict[str, ModuleType] = {"zip": zipped, "triton": triton, "oci": oci, "bundle": bundle}


def pack(
    artifact: Path, form: str, out: Path, *, overwrite: bool = False, progress: Progress = subprocesses.silent
) -> Path:
    """Write an artifact in another form; it appears whole or not at all.

    Args:
        artifact: its folder, every byte and the graph of which are checked first.
        form: a key of ``FORMATS``.
        out: the file (zip) or folder (the others) to make.
        overwrite: replace what is there.
        progress: told of each step.

    Returns:
        ``out``.

    Raises:
        VerifyError: the artifact isn't whole.
        InputError: something is at ``out`` already, or it can't be written.
    """
    _require_free(out, overwrite=overwrite)
    content = verify(artifact, replay=False, progress=progress).manifest
    with files.staging(out) as work:
        _require_space(content, work)
        made = work / "packed"
        try:
            FORMATS[form].write(artifact, content, made, progress)
        except OSError as error:
            raise ResourceError(f"can't write {out}: {error.strerror}") from error
        files.publish(made, out)
    return out


def unpack(packed: Path, out: Path, *, overwrite: bool = False, progress: Progress = subprocesses.silent) -> Path:
    """The artifact in a zip file or an OCI image layout; nothing is written unless all of it is as it should be.

    Args:
        packed: what ``pack`` wrote. It isn't trusted.
        out: the artifact's folder to make.
        overwrite: replace what is there.
        progress: told of each step.

    Returns:
        ``out``.

    Raises:
        InputError: it is of no such form, holds what it shouldn't, or ``out`` can't be written.
        VerifyError: what it holds isn't a whole artifact.
    """
    _require_free(out, overwrite=overwrite)
    if not packed.exists():
        raise InputError(f"{packed} doesn't exist")
    form = oci if packed.is_dir() else zipped
    with form.opened(packed) as source:
        progress("reading the manifest")
        content = source.manifest()
        with files.staging(out) as work:
            _require_space(content, work)
            artifact = work / "artifact"
            artifact.mkdir()
            try:
                source.extract(content, artifact, progress)
            except OSError as error:
                raise ResourceError(f"can't unpack {packed}: {error.strerror}") from error
            verify(artifact, replay=False, progress=progress)
            files.publish(artifact, out)
    return out


def _require_free(out: Path, *, overwrite: bool) -> None:
    if (out.exists() or out.is_symlink()) and not overwrite:
        raise InputError(f"{out} exists: --overwrite replaces it")


def _require_space(content: Manifest, work: Path) -> None:
    needed = sum(entry["bytes"] for entry in content["files"].values())
    files.require_space(needed, work, content["name"], "free some space, or choose another --out")
