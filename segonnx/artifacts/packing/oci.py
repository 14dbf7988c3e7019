"""Packs an artifact into an OCI image layout, a folder that registries' tools copy.

The specification is https://github.com/opencontainers/image-spec. Every file is a layer whose title is its path, as
oras writes and restores it. There is nothing to run, so the configuration is the specification's empty one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from segonnx.artifacts import layout, manifest
from segonnx.artifacts.manifest import Manifest
from segonnx.artifacts.packing import contents
from segonnx.artifacts.packing.contents import Source
from segonnx.core import documents, files
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
_DIGEST = re.compile(r"[0-9a-f]{64}")


def write(source: Source, out: Path, progress: Progress) -> None:
    """Write a verified artifact as the layout ``out``."""
    (out / _BLOBS).mkdir(parents=True)
    layers = []
    for name in source.every:
        progress(f"packing {name}")
        entry = source.entry(name)
        if not (out / _BLOBS / entry["sha256"]).exists():  # two files of the same bytes are one blob
            source.copy(name, out / _BLOBS / entry["sha256"])
        layers.append(
            {
                "mediaType": LAYER_TYPES.get(Path(name).suffix, "application/octet-stream"),
                "digest": f"sha256:{entry['sha256']}",
                "size": entry["bytes"],
                "annotations": {_TITLE: name},
            }
        )
    content = source.content
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


def require_own(out: Path) -> None:
    """See to it that a folder holds an image layout and nothing else, before it is replaced.

    Raises:
        InputError: It doesn't.
    """
    known = {"index.json", "oci-layout", "blobs", "ingest"}
    contents.require_layout(out, known, lambda path: path.parts[0] == "blobs", needed="oci-layout")


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
    yield Layout(path)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Say in one line what is wrong with an image layout."""
    try:
        yield
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
        if any((path / folder).is_symlink() for folder in (_BLOBS.parent, _BLOBS)):
            raise InputError(f"{path / _BLOBS} is a link, or lies in one")
        with _reading(path):
            self._layers = self._find()

    def manifest(self) -> Manifest:
        """Read the manifest, and check that the layout holds the files that it names, and no other.

        Raises:
            InputError: The layout is damaged.
            VerifyError: A file is missing, or isn't the artifact's.
        """
        if layout.MANIFEST not in self._layers:
            raise VerifyError(f"{self._path} holds no artifact: it has no {layout.MANIFEST}")
        with _reading(self._path):
            self._manifest = self._blob(self._layers[layout.MANIFEST])
        content = contents.parse(self._manifest, self._path)
        contents.require_known(self._layers, content, self._path)
        return content

    def files(self, content: Manifest) -> Iterator[tuple[str, Iterator[bytes]]]:
        """The artifact's files: the name of each, and its bytes, which are checked on the way.

        Raises:
            InputError: The layout is damaged.
            VerifyError: A file has other bytes.
        """
        yield layout.MANIFEST, iter([self._manifest])
        if layout.SIGNATURE in self._layers:
            with _reading(self._path):
                signature = self._blob(self._layers[layout.SIGNATURE])
            yield layout.SIGNATURE, iter([signature])
        for name, entry in content["files"].items():
            yield name, contents.checked(self._blocks(name), entry["bytes"], entry["sha256"], name)

    def _find(self) -> dict[str, dict[str, Any]]:
        """The layers of the one artifact, by their titles."""
        index = self._json(files.read(self._path / "index.json", manifest.MAX_BYTES, follow=False))
        images = []
        left = manifest.MAX_BYTES  # for all images: whoever names one often could fill the memory
        for descriptor in index["manifests"][:MAX_IMAGES]:
            data = self._blob(descriptor)
            left -= len(data)
            if left < 0:
                raise InputError(f"{self._path}: its images are described in more than {manifest.MAX_BYTES:,} bytes")
            image = self._json(data)
            # The index holds the artifact type, too, but tools that copy a layout leave it out there.
            if image.get("artifactType") == ARTIFACT_TYPE:
                images.append(image)
        if len(images) != 1:
            raise InputError(f"{self._path} holds {len(images)} artifacts of segonnx, not one")
        layers = [(layer["annotations"][_TITLE], layer) for layer in images[0]["layers"]]
        contents.require_safe([name for name, _ in layers])
        return dict(layers)

    def _json(self, data: bytes) -> Any:
        return documents.parse(data, self._path, manifest.MAX_BYTES)

    def _open(self, descriptor: dict[str, Any]) -> IO[bytes]:
        algorithm, _, digest = descriptor["digest"].partition(":")
        path = self._path / _BLOBS / digest
        if algorithm != "sha256" or not _DIGEST.fullmatch(digest) or path.is_symlink() or not path.is_file():
            raise VerifyError(f"{self._path} lacks the blob {descriptor['digest'][:80]!r}")
        return files.opened(path, follow=False)

    def _blocks(self, name: str) -> Iterator[bytes]:
        with _reading(self._path), self._open(self._layers[name]) as file:
            yield from contents.blocks(file)

    def _blob(self, descriptor: dict[str, Any]) -> bytes:
        with self._open(descriptor) as file:
            data = file.read(manifest.MAX_BYTES + 1)
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != descriptor["digest"]:
            raise VerifyError(f"{self._path}: the blob {descriptor['digest'][:80]} has other bytes")
        return data
