"""Packs an artifact into other formats: a zip file, an OCI image layout, and the folders of Triton and MONAI.

A zip file and an image layout hold the artifact as it is, and ``unpack`` gives it back. The two others hold the model
where their programs look for it, and can't be unpacked.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from segonnx.artifacts import manifest
from segonnx.artifacts.manifest import Manifest
from segonnx.artifacts.packing import bundle, contents, oci, triton, zipped
from segonnx.artifacts.packing.contents import Source
from segonnx.artifacts.packing.serving import Serving
from segonnx.artifacts.replacing import require_artifact
from segonnx.artifacts.verify import verify
from segonnx.core import files, subprocesses
from segonnx.core.subprocesses import Bounds, Progress
from segonnx.errors import InputError, ResourceError, SegonnxError

FORMATS: dict[str, ModuleType] = {"zip": zipped, "triton": triton, "oci": oci, "bundle": bundle}
"""The module that writes each format."""
_UNPACKED = (zipped, oci)
"""The formats that ``unpack`` reads. They hold the artifact as it is; the others hold one network."""


def pack(
    artifact: Path,
    packing: str,
    out: Path,
    *,
    serving: Serving | None = None,
    overwrite: bool = False,
    bounds: Bounds | None = None,
    progress: Progress = subprocesses.silent,
) -> Path:
    """Write an artifact in another format. A failure leaves nothing at ``out``.

    Args:
        artifact: The artifact's folder. Every hash and the graph are checked first.
        packing: The format, a key of ``FORMATS``.
        out: The file (zip) or the folder (the others) to make. What was written is read again.
        serving: How Triton is to run it, and which batches it may form.
        overwrite: Replace what is at ``out``, if that is a file (zip) or a folder of the same format (the others).
        bounds: What the check of the graph may take; see ``verify``.
        progress: A progress callback.

    Returns:
        ``out``.

    Raises:
        VerifyError: The artifact isn't intact, or holds a name that can't be packed.
        InputError: Something is at ``out`` that stays, ``out`` and the artifact lie in each other, the format has no
            place for an ensemble, or ``serving`` doesn't go with the format or the artifact.
        ResourceError: ``out`` can't be written.
    """
    form = FORMATS[packing]
    serving = serving or Serving()
    if (given := serving.given()) and form is not triton:
        raise InputError(f"{' and '.join(given)} {'goes' if len(given) == 1 else 'go'} with --format triton")
    serving.require()
    may_go = form.require_own if form is not zipped else files.require_replaceable
    _require_free(out, may_go, overwrite=overwrite)
    files.require_apart(out, artifact)
    verified = verify(artifact, replay=False, bounds=bounds, progress=progress)
    if form not in _UNPACKED:
        manifest.require_one_network(verified.manifest, artifact, f"--format {packing}")
    if form is triton:
        serving.largest_batch(verified.manifest)
    with files.staging(out) as work:
        _require_space(verified.manifest, work)
        made = work / "packed"
        try:
            source = Source.of(artifact, verified, serving)
            form.write(source, made, progress)
            progress("reading what was written")
            _require_written(form, source, made)
            files.publish(made, out, replace=overwrite, check=may_go)
        except OSError as error:
            raise ResourceError(f"can't write {out}: {error.strerror}") from error
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
        overwrite: Replace what is at ``out``, if that is an artifact.
        bounds: What the check of the graph may take; see ``verify``.
        progress: A progress callback.

    Returns:
        ``out``.

    Raises:
        InputError: ``packed`` is neither a zip file nor an image layout, something is at ``out`` that stays, or ``out``
            and ``packed`` lie in each other.
        VerifyError: ``packed`` holds no artifact, or one that isn't intact.
        ResourceError: ``out`` can't be written.
    """
    _require_free(out, require_artifact, overwrite=overwrite)
    if not os.path.lexists(packed):
        raise InputError(f"{packed} doesn't exist")
    files.require_apart(out, packed)
    module = oci if packed.is_dir() else zipped
    with module.opened(packed) as source:
        progress("reading the manifest")
        content = source.manifest()
        with files.staging(out) as work:
            _require_space(content, work)
            artifact = work / "artifact"
            artifact.mkdir()
            try:
                for name, blocks in source.files(content):
                    progress(f"unpacking {name}")
                    contents.write(blocks, artifact / name)
                verify(artifact, replay=False, bounds=bounds, progress=progress)
                files.publish(artifact, out, replace=overwrite, check=require_artifact)
            except OSError as error:
                raise ResourceError(f"can't write {out}: {error.strerror}") from error
    return out


def _require_written(form: ModuleType, source: Source, made: Path) -> None:
    """Read what was written, and check that it is the artifact.

    Raises:
        ResourceError: It isn't.
    """
    if form not in _UNPACKED:
        form.require_written(source, made)
        return
    try:
        with form.opened(made) as written:
            if written.manifest() != source.content:
                raise InputError("the manifest")
            names = []
            for name, blocks in written.files(source.content):
                for _ in blocks:
                    pass
                names.append(name)
            if sorted(names) != sorted(source.every):
                raise InputError("the list of its files")
    except SegonnxError as error:
        raise contents.unlike(made, error) from error


def _require_free(out: Path, may_go: Callable[[Path], None], *, overwrite: bool) -> None:
    """See to it that ``out`` may be written, before the work.

    Raises:
        InputError: Something is there that stays.
        ResourceError: It can't be replaced by a file, or the system takes no such name.
    """
    files.require_name(out)
    if os.path.lexists(out):
        if not overwrite:
            raise InputError(f"{out} exists: --overwrite replaces it")
        may_go(out)


def _require_space(content: Manifest, work: Path) -> None:
    needed = sum(entry["bytes"] for entry in content["files"].values())
    files.require_space(needed, work, content["name"], "free some space, or choose another --out")
