"""Packs an artifact into other formats: a zip file, an OCI image layout, and the folders of Triton and MONAI.

A zip file and an image layout hold the artifact as it is, and ``unpack`` gives it back. The two others hold the model
where their programs look for it, and can't be unpacked.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from segonnx.artifacts.manifest import Manifest
from segonnx.artifacts.packing import bundle, oci, triton, zipped
from segonnx.artifacts.verify import verify
from segonnx.core import files, subprocesses
from segonnx.core.subprocesses import Bounds, Progress
from segonnx.errors import InputError, ResourceError

FORMATS: dict[str, ModuleType] = {"zip": zipped, "triton": triton, "oci": oci, "bundle": bundle}
"""The module that writes each format."""


def pack(
    artifact: Path,
    packing: str,
    out: Path,
    *,
    overwrite: bool = False,
    bounds: Bounds | None = None,
    progress: Progress = subprocesses.silent,
) -> Path:
    """Write an artifact in another format. A failure leaves nothing at ``out``.

    Args:
        artifact: The artifact's folder. Every hash and the graph are checked first.
        packing: The format, a key of ``FORMATS``.
        out: The file (zip) or the folder (the others) to make.
        overwrite: Replace what is at ``out``.
        bounds: What the check of the graph may take; see ``verify``.
        progress: A progress callback.

    Returns:
        ``out``.

    Raises:
        VerifyError: The artifact isn't intact.
        InputError: Something is at ``out`` already.
        ResourceError: ``out`` can't be written.
    """
    _require_free(out, overwrite=overwrite)
    content = verify(artifact, replay=False, bounds=bounds, progress=progress).manifest
    with files.staging(out) as work:
        _require_space(content, work)
        made = work / "packed"
        try:
            FORMATS[packing].write(artifact, content, made, progress)
        except OSError as error:
            raise ResourceError(f"can't write {out}: {error.strerror}") from error
        files.publish(made, out)
    return out


def unpack(
    packed: Path,
    out: Path,
    *,
    overwrite: bool = False,
    bounds: Bounds | None = None,
    progress: Progress = subprocesses.silent,
) -> Path:
    """Unpack the artifact in a zip file or an OCI image layout. A failure leaves nothing at ``out``.

    Args:
        packed: The file or folder that ``pack`` wrote. It isn't trusted.
        out: The artifact's folder to make.
        overwrite: Replace what is at ``out``.
        bounds: What the check of the graph may take; see ``verify``.
        progress: A progress callback.

    Returns:
        ``out``.

    Raises:
        InputError: ``packed`` is neither a zip file nor an image layout, or something is at ``out`` already.
        VerifyError: ``packed`` holds no artifact, or one that isn't intact.
        ResourceError: ``out`` can't be written.
    """
    _require_free(out, overwrite=overwrite)
    if not packed.exists():
        raise InputError(f"{packed} doesn't exist")
    module = oci if packed.is_dir() else zipped
    with module.opened(packed) as source:
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
            verify(artifact, replay=False, bounds=bounds, progress=progress)
            files.publish(artifact, out)
    return out


def _require_free(out: Path, *, overwrite: bool) -> None:
    if (out.exists() or out.is_symlink()) and not overwrite:
        raise InputError(f"{out} exists: --overwrite replaces it")


def _require_space(content: Manifest, work: Path) -> None:
    needed = sum(entry["bytes"] for entry in content["files"].values())
    files.require_space(needed, work, content["name"], "free some space, or choose another --out")
