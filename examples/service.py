"""An HTTP service around an artifact: images in, label maps out.

    pip install 'segonnx[predict]' 'fastapi>=0.165' uvicorn python-multipart
    SEGONNX_ARTIFACT=artifacts/NAME uvicorn --app-dir examples service:app
    curl --fail-with-body -F image=@ct.nii.gz -o labels.nii.gz http://127.0.0.1:8000/predict
    curl --fail-with-body -F image=@series.zip -o labels.dcm http://127.0.0.1:8000/predict

A network of several channels takes ``-F image=@...`` for each, in order. An image that doesn't fit is answered with 4xx
and one line, as is one that holds NaN. The answer is a .nii.gz file, for a network of pictures a .png, and for one of
stacks (nnU-Net's Tiff3DIO) a .tif file. A zip file of one DICOM series is answered with a DICOM SEG, where
``segonnx[dicom]`` is installed; nothing of its headers is logged. Put a server in front that knows who may ask.

Files are decoded in a process of their own. Where Linux has Landlock (5.13 and later), that sees no other file.

Environment variables:

    SEGONNX_ARTIFACT    the artifact's folder
    SEGONNX_RUNNING     how many predictions may run at the same time; the others wait (default 1)
    SEGONNX_MAX_BYTES   the largest request, in bytes (default 256 MiB)
    SEGONNX_MAX_VOXELS  the largest image, in voxels, as sent and at the network's spacing (default 2^28)
    SEGONNX_MAX_MEMORY  the most memory that one prediction may take, in bytes (default: its share of what is free)
    SEGONNX_MAX_DECODE  how many seconds reading an image may take (default 120)
    SEGONNX_MAX_WAITING how many requests may be under way or wait; more are answered with 503 (default 64)
    SEGONNX_MAX_SILENCE how many seconds a client may take for its next bytes (default 10)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import re
import shutil
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import SimpleITK
from fastapi import FastAPI, HTTPException, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from segonnx.core import confinement, hardware, subprocesses
from segonnx.dicom import libraries
from segonnx.errors import InputError, ResourceError, SegonnxError, StageError
from segonnx.predict import images, segments, series_files, uploads
from segonnx.predict.predictor import Artifact
from segonnx.predict.preprocessing import Times

RUNNING = int(os.environ.get("SEGONNX_RUNNING", "1"))
MAX_BYTES = int(os.environ.get("SEGONNX_MAX_BYTES", "268435456"))
MAX_VOXELS = int(os.environ.get("SEGONNX_MAX_VOXELS", "268435456"))
MAX_MEMORY = int(os.environ.get("SEGONNX_MAX_MEMORY", str(int(0.8 * hardware.available_memory() / RUNNING))))
MAX_DECODE = float(os.environ.get("SEGONNX_MAX_DECODE", "120"))
MAX_WAITING = int(os.environ.get("SEGONNX_MAX_WAITING", "64"))
MAX_SILENCE = float(os.environ.get("SEGONNX_MAX_SILENCE", "10"))
# The formats whose files need no other file. The header of a MetaImage or NRRD file may name any file of this machine.
NIFTI, TIFF = (".nii.gz", ".nii"), (".tif", ".tiff")
ENDINGS = {
    "SimpleITKIO": (*NIFTI, ".png", *TIFF),
    "SimpleITKIOWithReorient": NIFTI,
    "NibabelIO": NIFTI,
    "NibabelIOWithReorient": NIFTI,
    "NaturalImage2DIO": (".png", ".bmp", ".jpg", ".jpeg", *TIFF),
    "Tiff3DIO": TIFF,
    "TotalSegmentatorIO": NIFTI,
}
ANSWERS = {"NaturalImage2DIO": (".png", "image/png"), "Tiff3DIO": (".tif", "image/tiff")}
SERIES = (".zip", "application/dicom")

try:
    artifact = Artifact(os.environ.get("SEGONNX_ARTIFACT", "SEGONNX_ARTIFACT (unset)"), concurrent=RUNNING)
except SegonnxError as error:
    sys.exit(f"service: {error}")

reader = artifact.config.reader
answer_ending, answer_type = ANSWERS.get(reader, (".nii.gz", "application/gzip"))
log = logging.getLogger("uvicorn.error")


class Gone(Exception):
    """The client has left: nobody waits for the answer."""


class WhileWanted(Times):
    """Ends a prediction before its next step where the client has left: a slice, a window, or a part between them."""

    def __init__(self, gone: threading.Event) -> None:
        super().__init__()
        self.gone = gone

    @contextlib.contextmanager
    def of(self, step: str) -> Iterator[None]:
        """Go on, or raise."""
        self.go_on()
        with super().of(step):
            yield

    def go_on(self, *_: object) -> None:
        """Raise where the client has left."""
        if self.gone.is_set():
            raise Gone


class Crowded:
    """Answers at once where too many requests wait, and gives up on clients that stop in the middle of a request."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.waiting = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        if self.waiting >= MAX_WAITING:
            answer = JSONResponse({"detail": "too many requests wait: try again later"}, 503)
            await answer(scope, receive, send)
            return
        whole = False

        async def receive_soon() -> Message:
            nonlocal whole
            if whole:
                return await receive()
            message: Message = {"type": "http.disconnect"}
            with anyio.move_on_after(MAX_SILENCE):
                message = await receive()
            whole = not message.get("more_body", False)
            return message

        self.waiting += 1
        try:
            await self.app(scope, receive_soon, send)
        finally:
            self.waiting -= 1


def close_silent_connections() -> None:
    """Have uvicorn close connections on which no whole request comes. Left alone, it waits for ever."""
    protocols: list[Any] = [H11Protocol]
    with contextlib.suppress(ImportError):  # httptools isn't installed
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

        protocols.append(HttpToolsProtocol)
    for protocol in protocols:
        made = protocol.connection_made

        def connection_made(self: Any, transport: asyncio.Transport, made: Any = made) -> None:
            made(self, transport)
            asyncio.get_running_loop().call_later(MAX_SILENCE, _look, self, None)

        protocol.connection_made = connection_made


def _look(connection: Any, last: object) -> None:
    """Close a connection that has been without a request since the last look."""
    if connection.transport.is_closing():
        return
    cycle = connection.cycle
    if cycle is last and (cycle is None or cycle.response_complete):
        connection.transport.close()
        return
    asyncio.get_running_loop().call_later(MAX_SILENCE, _look, connection, cycle)


class NoAddresses(logging.Filter):
    """Takes addresses of memory out of what is logged: they help whoever attacks."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record."""
        record.msg, record.args = without_addresses(record.getMessage()), ()
        if record.exc_info and record.exc_info[1] is not None:
            record.exc_text = without_addresses("".join(traceback.format_exception(record.exc_info[1])))
        return True


def without_addresses(text: str) -> str:
    """The text without addresses of memory, as Python and SimpleITK print them."""
    return re.sub(r" ?\(0x[0-9a-fA-F]+\)|0x[0-9a-fA-F]+|\b[0-9a-f]{11,16}\b", "", text)


close_silent_connections()
for name in ("uvicorn.error", "asyncio"):
    logging.getLogger(name).addFilter(NoAddresses())
SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
subprocesses.start_preloading(uploads.LIBRARIES)  # which the first request would wait for
if not confinement.possible():
    log.warning("this system has no Landlock: the process that decodes uploads sees the files that this one sees")
app = FastAPI(title="segonnx", max_body_size=MAX_BYTES)
app.add_middleware(Crowded)
slots = anyio.CapacityLimiter(RUNNING)


@app.get("/health")
async def health() -> dict[str, object]:
    """Answer at once, also while predictions run: these have threads of their own."""
    return {"artifact": artifact.manifest["name"], "running": slots.borrowed_tokens}


@app.post("/predict")
async def predict(request: Request, image: list[UploadFile]) -> Response:
    """Answer with the label map of an image, in the image's geometry. A client that leaves gives up its place."""
    gone = threading.Event()
    answer = Response(status_code=499)  # which nobody reads

    async def work() -> None:
        nonlocal answer
        answer = await _answer(image, gone)
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(work)
        while (await request.receive())["type"] != "http.disconnect":
            pass  # the form is read: nothing else comes
        gone.set()  # which ends the prediction before its next step, if it has begun
        group.cancel_scope.cancel()
    return answer


async def _answer(sent: list[UploadFile], gone: threading.Event) -> Response:
    """Predict once there is a place, and answer with the label map or with what is wrong."""
    try:
        made, kind = await anyio.to_thread.run_sync(_predict, sent, gone, limiter=slots)
    except Gone:
        return Response(status_code=499)
    except HTTPException as error:
        return JSONResponse({"detail": error.detail}, error.status_code)
    except uploads.TooLargeError as error:
        return JSONResponse({"detail": str(error)}, 413)
    except StageError:
        log.exception("decoding failed")
        return JSONResponse({"detail": "the image can't be decoded"}, 422)
    except (ResourceError, MemoryError):  # the disk is full, say
        return JSONResponse({"detail": "the service lacks room"}, 503)
    except InputError as error:
        return JSONResponse({"detail": without_addresses(str(error))}, 422)
    except Exception:
        log.exception("a prediction failed")
        return JSONResponse({"detail": "the service failed"}, 500)
    return Response(made, media_type=kind)


@app.exception_handler(RequestValidationError)
async def refuse(_: Request, __: RequestValidationError) -> JSONResponse:
    """Answer a request without a form in one line."""
    return JSONResponse({"detail": "send a form whose field image is a file, once for each channel"}, 422)


def _predict(sent: list[UploadFile], gone: threading.Event | None = None) -> tuple[bytes, str]:
    """Predict, and return the bytes of the label map's file, and their type. No file stays behind, whatever happens."""
    _require_count(sent)
    times = WhileWanted(gone or threading.Event())
    with tempfile.TemporaryDirectory(prefix="segonnx-") as name:
        folder = Path(name)
        try:
            paths = [_save(upload, folder / f"channel_{i}") for i, upload in enumerate(sent)]
            series = paths[0].suffix == SERIES[0]
            given: Any = paths[0] if series else paths
            decode = uploads.decode_series if series else uploads.decode
            image = decode(given, reader, MAX_VOXELS, timeout=MAX_DECODE, progress=times.go_on)
            _require_size(image)
            labels = artifact.predict(image.array, image.spacing, progress=times.go_on, times=times)
        except InputError as error:
            raise type(error)(str(error).replace(f"{folder}/", "")) from error
        path = folder / f"labels{answer_ending}"
        images.write(labels, artifact.like(image), path)
        if not series:
            return path.read_bytes(), answer_type
        found, made_by = segments.of(artifact), series_files.algorithm(artifact)
        made = uploads.segmentation(path, found, made_by, MAX_VOXELS, timeout=MAX_DECODE, progress=times.go_on)
        return made, SERIES[1]


def _require_count(sent: list[UploadFile]) -> None:
    """Refuse more or fewer files than the network has channels, before any is unpacked. A picture may hold several."""
    channels = len(artifact.config.channels)
    if len(sent) != channels and not (len(sent) == 1 and artifact.config.natural):
        raise InputError(f"{len(sent)} files were sent; the network takes {channels}, a channel for each")


def _save(upload: UploadFile, stem: Path) -> Path:
    """Write an upload as it is to a file whose name is ours, but for its ending."""
    endings = ENDINGS[reader]
    if reader in series_files.READERS and len(artifact.config.channels) == 1 and libraries.installed():
        endings = (*endings, SERIES[0])
    ending = next((known for known in endings if (upload.filename or "").lower().endswith(known)), None)
    if ending is None:
        raise InputError(f"{stem.name}: the file's name must end with one of {', '.join(endings)}")
    path = stem.with_name(stem.name + ending)
    with path.open("wb") as file:
        shutil.copyfileobj(upload.file, file)
    return path


def _require_size(image: images.Image) -> None:
    """Refuse an image that is too large at the network's spacing, as a small image of large voxels may be.

    A flat image is too large, too, where the windows that cover it are deep.
    """
    wanted = artifact.config.spacing
    own = [image.spacing[axis] for axis in artifact.config.transpose_forward][-len(wanted) :]
    _require(image.array.size * math.prod(own) / math.prod(wanted))
    if artifact.memory(image.array.shape, image.spacing) > MAX_MEMORY:
        raise HTTPException(413, "the image is too large: its windows take more memory than the service gives one")


def _require(voxels: float) -> None:
    if voxels > MAX_VOXELS:
        raise HTTPException(413, f"the image is too large: at most {MAX_VOXELS} voxels are taken")
