"""An HTTP service around an artifact: images in, label maps out.

    pip install 'segonnx[predict]' 'fastapi>=0.165' uvicorn python-multipart
    SEGONNX_ARTIFACT=artifacts/NAME uvicorn --app-dir examples service:app --limit-concurrency 64
    curl --fail-with-body -F image=@ct.nii.gz -o labels.nii.gz http://127.0.0.1:8000/predict

A network of several channels takes ``-F image=@...`` for each, in order. An image that doesn't fit is answered with 4xx
and one line, as is one that holds NaN. The answer is a .nii.gz file, for a network of pictures a .png, and for one of
stacks (nnU-Net's Tiff3DIO) a .tif file. Put a server in front that knows who may ask.

Environment variables:

    SEGONNX_ARTIFACT    the artifact's folder
    SEGONNX_RUNNING     how many predictions may run at the same time; the others wait (default 1)
    SEGONNX_MAX_BYTES   the largest request, in bytes (default 256 MiB)
    SEGONNX_MAX_VOXELS  the largest image, in voxels, as sent and at the network's spacing (default 2^28)
"""

from __future__ import annotations

import gzip
import math
import os
import sys
import tempfile
import zlib
from pathlib import Path

import anyio
import SimpleITK
from fastapi import FastAPI, HTTPException, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response

from segonnx.errors import InputError, ResourceError, SegonnxError
from segonnx.predict import headers, images
from segonnx.predict.predictor import Artifact

RUNNING = int(os.environ.get("SEGONNX_RUNNING", "1"))
MAX_BYTES = int(os.environ.get("SEGONNX_MAX_BYTES", "268435456"))
MAX_VOXELS = int(os.environ.get("SEGONNX_MAX_VOXELS", "268435456"))
# The formats whose files need no other file. The header of a MetaImage or NRRD file may name any file of this machine.
NIFTI, TIFF = (".nii.gz", ".nii"), (".tif", ".tiff")
ENDINGS = {
    "SimpleITKIO": (*NIFTI, ".png", *TIFF),
    "SimpleITKIOWithReorient": NIFTI,
    "NibabelIO": NIFTI,
    "NibabelIOWithReorient": NIFTI,
    "NaturalImage2DIO": (".png", ".bmp", ".jpg", ".jpeg", *TIFF),
    "Tiff3DIO": TIFF,
}
ANSWERS = {"NaturalImage2DIO": (".png", "image/png"), "Tiff3DIO": (".tif", "image/tiff")}
# SimpleITK goes by what a file holds, and may take another of its readers than the one of the file's ending.
SIMPLEITK = {".nii": "NiftiImageIO", ".png": "PNGImageIO", ".tif": "TIFFImageIO", ".tiff": "TIFFImageIO"}

try:
    artifact = Artifact(os.environ.get("SEGONNX_ARTIFACT", "SEGONNX_ARTIFACT (unset)"), concurrent=RUNNING)
except SegonnxError as error:
    sys.exit(f"service: {error}")

reader = artifact.config.reader
answer_ending, answer_type = ANSWERS.get(reader, (".nii.gz", "application/gzip"))
app = FastAPI(title="segonnx", max_body_size=MAX_BYTES)
slots = anyio.CapacityLimiter(RUNNING)


@app.get("/health")
async def health() -> dict[str, object]:
    """Answer at once, also while predictions run: these have threads of their own."""
    return {"artifact": artifact.manifest["name"], "running": slots.borrowed_tokens}


@app.post("/predict")
async def predict(image: list[UploadFile]) -> Response:
    """Answer with the label map of an image, in the image's geometry."""
    try:
        labels = await anyio.to_thread.run_sync(_predict, image, limiter=slots)
    except (ResourceError, MemoryError) as error:  # the disk is full, say
        raise HTTPException(503, "the service lacks room") from error
    except InputError as error:
        raise HTTPException(422, str(error)) from error
    return Response(labels, media_type=answer_type)


@app.exception_handler(RequestValidationError)
async def refuse(_: Request, __: RequestValidationError) -> JSONResponse:
    """Answer a request without a form in one line."""
    return JSONResponse({"detail": "send a form whose field image is a file, once for each channel"}, 422)


def _predict(uploads: list[UploadFile]) -> bytes:
    """Predict, and return the bytes of the label map's file. No file stays behind, whatever happens."""
    _require_count(uploads)
    with tempfile.TemporaryDirectory(prefix="segonnx-") as name:
        folder = Path(name)
        try:
            paths = [_save(upload, folder / f"channel_{i}") for i, upload in enumerate(uploads)]
            image = images.read(paths, reader)
            _require_size(image)
            labels = artifact.predict(image.array, image.spacing)
        except InputError as error:
            raise type(error)(str(error).replace(f"{folder}/", "")) from error
        images.write(labels, image, folder / f"labels{answer_ending}")
        return (folder / f"labels{answer_ending}").read_bytes()


def _require_count(uploads: list[UploadFile]) -> None:
    """Refuse more or fewer files than the network has channels, before any is unpacked. A picture may hold several."""
    channels = len(artifact.config.channels)
    if len(uploads) != channels and not (len(uploads) == 1 and artifact.config.natural):
        raise InputError(f"{len(uploads)} files were sent; the network takes {channels}, a channel for each")


def _save(upload: UploadFile, stem: Path) -> Path:
    """Write an upload to a file whose name is ours, and check that it is intact and not too large to be read."""
    endings = ENDINGS[reader]
    ending = next((known for known in endings if (upload.filename or "").lower().endswith(known)), None)
    if ending is None:
        raise InputError(f"{stem.name}: the file's name must end with one of {', '.join(endings)}")
    packed = ending == ".nii.gz" and upload.file.read(2) == b"\x1f\x8b"
    upload.file.seek(0)
    path = stem.with_name(stem.name + ending.removesuffix(".gz"))
    try:
        with (
            gzip.GzipFile(fileobj=upload.file, mode="rb") if packed else upload.file as source,
            path.open("wb") as file,
        ):
            while chunk := source.read(1 << 20):
                file.write(chunk)
                _require(file.tell() / 8)  # no voxel takes more bytes
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{stem.name} isn't an intact gzip file: {error}") from error
    headers.require_whole(path)
    if reader.startswith("SimpleITKIO"):
        chosen = SimpleITK.ImageFileReader.GetImageIOFromFileName(str(path))
        if chosen != SIMPLEITK[path.suffix]:
            raise InputError(f"{stem.name} can't be read as a {ending} file")
    _require(images.count(path, reader))
    return path


def _require_size(image: images.Image) -> None:
    """Refuse an image that is too large at the network's spacing, as a small image of large voxels may be."""
    wanted = artifact.config.spacing
    own = [image.spacing[axis] for axis in artifact.config.transpose_forward][-len(wanted) :]
    _require(image.array.size * math.prod(own) / math.prod(wanted))


def _require(voxels: float) -> None:
    if voxels > MAX_VOXELS:
        raise HTTPException(413, f"the image is too large: at most {MAX_VOXELS} voxels are taken")
