"""Packs an artifact into an OCI image layout, a folder that registries' tools copy.

The specification is https://github.com/opencontainers/image-spec. Every file is a layer whose title is its path, as
oras writes and restores it. There is nothing to run, so the configuration is the specification's empty one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from segonnx.artifacts import layout, manifest
from segonnx.artifacts.manifest import Manifest
from segonnx.artifacts.packing import contents
from segonnx.core.subprocesses import Progress
from segonnx.errors import InputError, VerifyError

ARTIFACT_TYPE = "application/vnd.segonnx.artifact.v1"
LAYER_TYPES = {".onnx": "application/vnd.onnx.model", ".json": "application/json", ".md": "text/markdown"}
"""The media type of a layer by the file's suffix. Other files are ``application/octet-stream``."""
MAX_IMAGES = 100
"""How many images of a layout are looked at."""
_INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
_TITLE = "org.opencontainers.image.title"
_BLOBS = Path("blobs") / "sha256"


def write(artifact: Path, content: Manifest, out: Path, progress: Progress) -> None:
    """Write a verified artifact as the layout ``out``."""
    (out / _BLOBS).mkdir(parents=True)
    layers = []
    for name in contents.names(content, signed=(artifact / layout.SIGNATURE).exists()):
        progress(f"packing {name}")
        entry = content["files"].get(name)
        if entry is None:
            layer = _put(out, (artifact / name).read_bytes())
        else:
            layer = {"digest": f"sha256:{entry['sha256']}", "size": entry["bytes"]}
            shutil.copyfile(artifact / name, out / _BLOBS / entry["sha256"])
        kind = LAYER_TYPES.get(Path(name).suffix, "application/octet-stream")
        layers.append({"mediaType": kind, **layer, "annotations": {_TITLE: name}})
    image = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST_TYPE,
        "artifactType": ARTIFACT_TYPE,
        "config": {"mediaType": _EMPTY_TYPE, **_put(out, b"{}"), "data": "e30="},
        "layers": layers,
        "annotations": {
            "org.opencontainers.image.title": content["name"],
            "org.opencontainers.image.created": content["created"],
            "org.opencontainers.image.licenses": content["weights"]["licence"],
            "org.opencontainers.image.description": f"{content['source']}, as ONNX",
        },
    }
    index = {
        "schemaVersion": 2,
        "mediaType": _INDEX_TYPE,
        "manifests": [
            {
                "mediaType": _MANIFEST_TYPE,
                **_put(out, _dump(image)),
                "artifactType": ARTIFACT_TYPE,
                "annotations": {"org.opencontainers.image.ref.name": "latest"},
            }
        ],
    }
    (out / "index.json").write_bytes(_dump(index))
    (out / "oci-layout").write_bytes(_dump({"imageLayoutVersion": "1.0.0"}))


def _put(out: Path, data: bytes) -> dict[str, Any]:
    """Write a blob. The result is its digest and size, as descriptors hold them."""
    digest = hashlib.sha256(data).hexdigest()
    (out / _BLOBS / digest).write_bytes(data)
    return {"digest": f"sha256:{digest}", "size": len(data)}


def _dump(content: object) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Layout]:
    """Open the artifact in an image layout.

    Raises:
        InputError: The folder is no image layout of exactly one artifact.
    """
    try:
        yield Layout(path)
    except OSError as error:
        raise InputError(f"{error.filename or path} can't be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise InputError(f"{path} is no OCI image layout of an artifact: {type(error).__name__} {error}") from error


class Layout:
    """An image layout that isn't trusted: a blob counts only if it has the digest that was asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        if not (path / "oci-layout").is_file():
            raise InputError(f"{path} is no OCI image layout: it has no file oci-layout")
        index = json.loads(self._read(path / "index.json"))
        # The index holds the artifact type, too, but tools that copy a layout leave it out there.
        every = [json.loads(self._blob(descriptor)) for descriptor in index["manifests"][:MAX_IMAGES]]
        images = [image for image in every if image.get("artifactType") == ARTIFACT_TYPE]
        if len(images) != 1:
            raise InputError(f"{path} holds {len(images)} artifacts of segonnx, not one")
        layers = [(layer["annotations"][_TITLE], layer) for layer in images[0]["layers"]]
        contents.require_safe([name for name, _ in layers])
        self._layers: dict[str, dict[str, Any]] = dict(layers)

    def manifest(self) -> Manifest:
        """Read the manifest, and check that the layout holds the files that it names, and no other.

        Raises:
            VerifyError: A file is missing, or isn't the artifact's.
        """
        if layout.MANIFEST not in self._layers:
            raise VerifyError(f"{self._path} holds no artifact: it has no {layout.MANIFEST}")
        self._manifest = self._blob(self._layers[layout.MANIFEST])
        content = contents.parse(self._manifest, self._path)
        contents.require_known(self._layers, content, self._path)
        return content

    def extract(self, content: Manifest, target: Path, progress: Progress) -> None:
        """Write the files below ``target``, and check their bytes on the way.

        Raises:
            VerifyError: A file has other bytes.
        """
        (target / layout.MANIFEST).write_bytes(self._manifest)
        if layout.SIGNATURE in self._layers:
            (target / layout.SIGNATURE).write_bytes(self._blob(self._layers[layout.SIGNATURE]))
        for name, entry in content["files"].items():
            progress(f"unpacking {name}")
            with self._open(self._layers[name]) as source:
                contents.copy(source, target / name, entry["bytes"], entry["sha256"], name)

    def _open(self, descriptor: dict[str, Any]) -> Any:
        algorithm, _, digest = descriptor["digest"].partition(":")
        path = self._path / _BLOBS / digest
        if algorithm != "sha256" or not digest.isalnum() or path.is_symlink() or not path.is_file():
            raise VerifyError(f"{self._path} lacks the blob {descriptor['digest'][:80]!r}")
        return path.open("rb")

    def _blob(self, descriptor: dict[str, Any]) -> bytes:
        with self._open(descriptor) as file:
            data: bytes = file.read(manifest.MAX_BYTES + 1)
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != descriptor["digest"]:
            raise VerifyError(f"{self._path}: the blob {descriptor['digest'][:80]} has other bytes")
        return data

    @staticmethod
    def _read(path: Path) -> bytes:
        if path.stat().st_size > manifest.MAX_BYTES:
            raise InputError(f"{path} is larger than {manifest.MAX_BYTES:,} bytes")
        return path.read_bytes()
