"""The example service, in a process of its own."""

from __future__ import annotations

import contextlib
import gzip
import importlib.util
import io
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import highdicom
import httpx
import imageio.v3
import numpy as np
import pydicom
import pytest
import SimpleITK
import tifffile
from fastapi import UploadFile

from segonnx.core import subprocesses
from segonnx.dicom import libraries
from segonnx.errors import InputError
from segonnx.predict import images, uploads
from segonnx.predict.predictor import Artifact
from segonnx.predict.preprocessing import Times
from segonnx.predict.readers import READERS
from tests.conftest import ROOT, SMALL, steps_in_process
from tests.dicom.series_maker import PATIENT, Maker
from tests.dicom.series_maker import save as save_slice
from tests.dicom.test_files import packed
from tests.predict.conftest import SHAPE, SPACING, save, volume
from tests.predict.test_headers import ascii_nifti

RUNNING = 2
MAX_BYTES = 200_000
MAX_VOXELS = 100_000
COUNTS = {"two channels": 2, "many files": 5}
MAX_MEMORY = 15_000_000
MAX_SILENCE = 1.0
FORM = "send a form whose field image is a file"


@dataclass(frozen=True)
class Service:
    client: httpx.Client
    temporary: Path
    """Where its temporary files are, while they are."""
    log: list[str]
    """What it has printed so far."""

    def left(self) -> list[str]:
        """Temporary files that are there now, but ONNX Runtime's own, and the socket that decoders are started by."""
        own = (".ses", "pymp-")
        return [path.name for path in self.temporary.iterdir() if not path.name.startswith(own)]

    def predict(self, *files: Path) -> httpx.Response:
        return self.client.post("/predict", files=[("image", (file.name, file.read_bytes())) for file in files])


def start(artifact: Path, temporary: Path) -> subprocess.Popen[str]:
    env = {
        **os.environ,
        "TMPDIR": str(temporary),
        "SEGONNX_ARTIFACT": str(artifact),
        "SEGONNX_RUNNING": str(RUNNING),
        "SEGONNX_MAX_BYTES": str(MAX_BYTES),
        "SEGONNX_MAX_VOXELS": str(MAX_VOXELS),
        "SEGONNX_MAX_MEMORY": str(MAX_MEMORY),
        "SEGONNX_MAX_SILENCE": str(MAX_SILENCE),
    }
    command = [sys.executable, "-m", "uvicorn", "--app-dir", "examples", "service:app", "--port", "0"]
    return subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)


def keep(lines: Iterable[str], log: list[str]) -> None:
    with contextlib.suppress(ValueError):  # the stream is closed at the end
        for line in lines:
            log.append(line)  # noqa: PERF402 (each as it comes)


@pytest.fixture(scope="module")
def service(hand: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(hand, tmp_path_factory.mktemp("temporary")) as found:
        yield found


@contextlib.contextmanager
def serving(artifact: Path, temporary: Path) -> Iterator[Service]:
    with start(artifact, temporary) as running:
        try:
            assert running.stderr is not None
            address = next(found[0] for line in running.stderr if (found := re.search(r"http://[\d.:]+", line)))
            log: list[str] = []
            threading.Thread(target=keep, args=(running.stderr, log), daemon=True).start()
            with httpx.Client(limits=httpx.Limits(max_keepalive_connections=0), base_url=address, timeout=60) as client:
                yield Service(client, temporary, log)
        finally:
            running.terminate()


def labels(answer: httpx.Response, path: Path) -> SimpleITK.Image:
    assert answer.status_code == 200, answer.text
    path.write_bytes(answer.content)
    return SimpleITK.ReadImage(str(path))


def test_eight_clients_get_what_the_artifact_predicts(service: Service, loaded: Artifact, tmp_path: Path) -> None:
    sent = [save(volume(seed), tmp_path / f"{seed}.nii.gz") for seed in range(8)]
    seen = []
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(service.predict, tmp_path / f"{seed}.nii.gz") for seed in range(8)]
        while not all(answer.done() for answer in answers):
            seen.append(service.client.get("/health").raise_for_status().json()["running"])
            time.sleep(0.005)
    for seed, (answer, image) in enumerate(zip(answers, sent, strict=True)):
        found = labels(answer.result(), tmp_path / "labels.nii.gz")
        np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(found), loaded.predict(volume(seed), SPACING))
        for what in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
            assert getattr(found, what)() == pytest.approx(getattr(image, what)())
    assert 1 <= max(seen) <= RUNNING  # it answered meanwhile
    assert not service.left()


def test_pictures_of_8_bits_are_served(tmp_path: Path) -> None:
    import torch

    import segonnx

    torch.manual_seed(0)
    module, example = torch.nn.Conv2d(3, 3, 3, padding=1), torch.zeros(1, 3, 32, 48)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    with steps_in_process():
        for kind in ("uint8-nhwc", "float"):
            segonnx.export(module, example, tmp_path / kind, mean=mean, std=std, input_kind=kind)
    taken = [Artifact(tmp_path / kind) for kind in ("uint8-nhwc", "float")]
    colours = np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)
    imageio.v3.imwrite(tmp_path / "a.png", colours)
    (tmp_path / "temporary").mkdir()
    with serving(tmp_path / "uint8-nhwc", tmp_path / "temporary") as service:
        found = SimpleITK.GetArrayFromImage(labels(service.predict(tmp_path / "a.png"), tmp_path / "labels.png"))
    for artifact in taken:
        np.testing.assert_array_equal(found, artifact.predict(colours.transpose(2, 0, 1)[:, None], (1.0,) * 3)[0])


def zipped(folder: Path, headers: list[Any] | None = None) -> Path:
    """A zip file of a DICOM series, under a patient's name."""
    made = Maker((volume(2, (6, 24, 20)).astype(int) + 1024).clip(0, 4000).astype(np.uint16), (1.5, 1.5), 3.0)
    for number, header in enumerate(headers or made.headers()):
        save_slice(header, folder / "series" / f"{PATIENT}_{number}.dcm")
    return packed(folder / "series", folder / f"{PATIENT}.zip", f"{PATIENT}/")


def test_a_series_in_a_zip_file_comes_back_as_a_seg(service: Service, loaded: Artifact, tmp_path: Path) -> None:
    path = zipped(tmp_path)
    answer = service.predict(path)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/dicom"
    (tmp_path / "a.dcm").write_bytes(answer.content)
    made = pydicom.dcmread(tmp_path / "a.dcm")
    assert made.PatientName == PATIENT
    reader = SimpleITK.ImageSeriesReader()
    names = reader.GetGDCMSeriesFileNames(str(tmp_path / "series"))
    reader.SetFileNames(names)
    image = reader.Execute()
    expected = loaded.predict(SimpleITK.GetArrayFromImage(image), image.GetSpacing()[::-1])
    uids = [pydicom.dcmread(name, stop_before_pixels=True).SOPInstanceUID for name in names]
    found = highdicom.seg.Segmentation.from_dataset(made).get_pixels_by_source_instance(
        uids, combine_segments=True, assert_missing_frames_are_empty=True
    )
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(expected)) > 1
    assert not service.left()
    assert not [line for line in service.log if "Doe" in line or "Jane" in line]


def _missing(headers: list[Any]) -> list[Any]:
    return [*headers[:2], *headers[3:]]


def _cut(headers: list[Any]) -> list[Any]:
    headers[2].PixelData = bytes(100)
    return headers


def _breaking(headers: list[Any]) -> list[Any]:
    for header in headers:
        header.StudyDate = "on Jane's birthday"
    return headers


def _large(headers: list[Any]) -> list[Any]:
    for header in headers:
        header.Rows, header.Columns, header.PixelData = 200, 200, bytes(80_000)
    return headers


BAD_SERIES: dict[str, tuple[Callable[[list[Any]], list[Any]], int, str]] = {
    "a slice is missing": (
        _missing,
        422,
        "a slice is missing between instance 2 (file 2 of the zip file) and instance 4",
    ),
    "pixels end early": (_cut, 422, "instance 3 (file 3 of the zip file) has pixels that can't be decoded"),
    "too large": (_large, 413, "the image is too large"),
    "breaks the rules": (_breaking, 422, "no DICOM SEG can be made of this series"),
}


@pytest.mark.parametrize("kind", BAD_SERIES)
def test_a_bad_series_is_refused_in_one_line(service: Service, kind: str, tmp_path: Path) -> None:
    change, status, line = BAD_SERIES[kind]
    with libraries.quiet():
        path = zipped(tmp_path, change(Maker(volume(2, (6, 24, 20)).astype(np.int16)).headers()))
    answer = service.predict(path)
    assert (answer.status_code, line in answer.text) == (status, True), answer.text
    for text in (answer.text, *service.log):
        assert "Doe" not in text and "Jane" not in text
    assert str(service.temporary) not in answer.text and not service.left()


def test_a_zip_file_of_something_else_is_refused_in_one_line(service: Service, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"no zip file")
    answer = service.predict(tmp_path / "a.zip")
    assert answer.status_code == 422 and "channel_0.zip is no zip file, or a damaged one" in answer.text
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.dcm", bytes(128) + b"DICM" + bytes(10**8))
    answer = service.predict(tmp_path / "b.zip")
    assert answer.status_code == 422 and "a bomb" in answer.text
    assert not service.left()


def bad(kind: str, folder: Path) -> list[Path]:
    """Uploads that are refused."""
    save(volume(), folder / "good.nii.gz")
    whole = (folder / "good.nii.gz").read_bytes()
    if kind == "text":
        (folder / "a.nii.gz").write_text("no image")
    elif kind == "text as NIfTI":
        (folder / "a.nii").write_text("no image")
    elif kind == "cut gzip":
        (folder / "a.nii.gz").write_bytes(whole[: len(whole) // 2])
    elif kind == "cut by one byte":
        (folder / "a.nii.gz").write_bytes(whole[:-1])
    elif kind == "damaged gzip":
        (folder / "a.nii.gz").write_bytes(whole[:-8] + bytes(8))
    elif kind == "cut NIfTI":
        (folder / "a.nii").write_bytes(gzip.decompress(whole)[:-1])
    elif kind == "NaN":
        save(np.full(SHAPE, np.nan, np.float32), folder / "a.tif")
    elif kind == "four axes":
        image = SimpleITK.GetImageFromArray(np.zeros((2, 3, 4, 5), np.int16), isVector=False)
        SimpleITK.WriteImage(image, str(folder / "a.nii.gz"))
    elif kind == "many voxels":
        save(np.zeros((101, 100, 10), np.int16), folder / "a.nii.gz")
    elif kind == "large voxels":
        image = SimpleITK.GetImageFromArray(np.zeros((10, 10, 10), np.int16))
        image.SetSpacing((20, 20, 20))
        SimpleITK.WriteImage(image, str(folder / "a.nii.gz"))
    elif kind == "bomb":
        (folder / "a.nii.gz").write_bytes(gzip.compress(bytes(10**8)))
        assert (folder / "a.nii.gz").stat().st_size < MAX_BYTES
    elif kind == "large file":
        (folder / "a.nii.gz").write_bytes(bytes(MAX_BYTES))
    elif "another file" in kind:
        _naming_another(kind, folder, gzip.decompress(whole))
    elif kind in COUNTS:
        return [folder / "good.nii.gz"] * COUNTS[kind]
    return [*folder.glob("a.*")]


def _naming_another(kind: str, folder: Path, whole: bytes) -> None:
    """A file whose voxels are in another one, anywhere on the machine."""
    (folder / "secret.nia").write_bytes(bytes(3072))
    if kind == "another file as NIfTI":
        (folder / "a.nii").write_bytes(ascii_nifti(folder / "secret.nia"))
    elif kind == "another file as packed NIfTI":
        (folder / "a.nii.gz").write_bytes(gzip.compress(ascii_nifti(folder / "secret.nia")))
    elif kind == "another file of a pair":
        (folder / "a.nii").write_bytes(whole[:344] + b"ni1\0" + whole[348:])
    else:
        header = (
            "ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementDataFile = /etc/passwd\n"
        )
        (folder / "a.mha").write_text(header)
        assert SimpleITK.ReadImage(str(folder / "a.mha")).GetSize() == (2, 2, 2)


@pytest.mark.parametrize(
    ("kind", "status", "line"),
    [
        ("text", 422, "channel_0.nii can't be read as an image"),
        ("text as NIfTI", 422, "channel_0.nii can't be read as an image"),
        ("cut gzip", 422, "channel_0 isn't an intact gzip file"),
        ("cut by one byte", 422, "channel_0 isn't an intact gzip file"),
        ("damaged gzip", 422, "channel_0 isn't an intact gzip file"),
        ("cut NIfTI", 422, "channel_0.nii isn't intact"),
        ("NaN", 422, "aren't finite"),
        ("four axes", 422, "channel_0.nii has 4 dimensions"),
        ("another file as NIfTI", 422, "can't be read as an image"),
        ("another file as packed NIfTI", 422, "can't be read as an image"),
        ("another file of a pair", 422, "its voxels are in another file"),
        ("two channels", 422, "2 files were sent; the network takes 1, a channel for each"),
        ("many files", 422, "5 files were sent"),
        ("many voxels", 413, "the image is too large"),
        ("large voxels", 413, "the image is too large"),
        ("bomb", 413, "the image is too large"),
        ("large file", 413, "Content Too Large"),
        ("names another file", 422, "must end with one of .nii.gz"),
        ("no file", 422, FORM),
    ],
)
def test_a_bad_upload_is_refused_in_one_line(
    service: Service, kind: str, status: int, line: str, tmp_path: Path
) -> None:
    answer = service.predict(*bad(kind, tmp_path))
    assert answer.status_code == status, answer.text
    assert line in answer.text
    assert "\n" not in answer.text and str(service.temporary) not in answer.text
    assert not service.left()
    save(volume(shape=(4, 5, 6)), tmp_path / "good.nii")
    assert labels(service.predict(tmp_path / "good.nii"), tmp_path / "labels.nii.gz").GetSize() == (6, 5, 4)


def test_an_image_whose_windows_take_too_much_memory_is_refused(
    service: Service, loaded: Artifact, tmp_path: Path
) -> None:
    deep = loaded.config.transpose_forward[0]
    for thin, status in ((deep, 413), (loaded.config.transpose_forward[2], 200)):
        shape = [250, 250, 250]
        shape[thin] = 1
        save(np.zeros(shape, np.int16), tmp_path / "flat.nii.gz")
        answer = service.predict(tmp_path / "flat.nii.gz")
        assert answer.status_code == status
        assert status == 200 or "its windows take more memory" in answer.text


@pytest.fixture(scope="module")
def imported(hand: Path) -> Iterator[Any]:
    """The service as a module, in this process. Tests get it by ``module``."""
    spec = importlib.util.spec_from_file_location("service_in_a_test", ROOT / "examples" / "service.py")
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGONNX_ARTIFACT", str(hand))
        patch.setenv("SEGONNX_RUNNING", "1")
        patch.setitem(sys.modules, spec.name, loaded)  # where FastAPI looks for the types of its functions
        with steps_in_process():
            spec.loader.exec_module(loaded)
        yield loaded


@pytest.fixture
def module(imported: Any) -> Iterator[Any]:
    """The service's module, whose names and whose artifact's are put back after the test."""
    kept = [(one, dict(vars(one))) for one in (imported, imported.artifact)]
    imported.slots = anyio.CapacityLimiter(1)  # one belongs to an event loop
    yield imported
    for one, names in kept:
        vars(one).clear()
        vars(one).update(names)


def served(module: Any, reader: str, *files: Path) -> bytes:
    """What the service answers where its artifact's images are read by another of nnU-Net's readers."""
    module.reader = reader
    module.answer_ending, _ = module.ANSWERS.get(reader, (".nii.gz", ""))
    uploads = [UploadFile(io.BytesIO(file.read_bytes()), filename=file.name) for file in files]
    answer: tuple[bytes, str] = module._predict(uploads)
    return answer[0]


@pytest.mark.parametrize(
    ("reader", "name", "answer"),
    [
        ("SimpleITKIO", "a.nii", "labels.nii.gz"),
        ("SimpleITKIO", "packed.nii.gz", "labels.nii.gz"),
        ("SimpleITKIO", "not_packed.nii.gz", "labels.nii.gz"),
        ("SimpleITKIOWithReorient", "a.nii", "labels.nii.gz"),
        ("NibabelIO", "a.nii", "labels.nii.gz"),
        ("NibabelIOWithReorient", "packed.nii.gz", "labels.nii.gz"),
        ("Tiff3DIO", "a.tif", "labels.tif"),
        ("NaturalImage2DIO", "a.png", "labels.png"),
        ("NaturalImage2DIO", "a.bmp", "labels.png"),
    ],
)
def test_every_reader_is_served(module: Any, reader: str, name: str, answer: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if path.suffix in (".png", ".bmp"):
        imageio.v3.imwrite(path, np.random.default_rng(0).integers(0, 255, (20, 30)).astype(np.uint8))
    elif name == "not_packed.nii.gz":
        save(volume(), tmp_path / "a.nii")
        (tmp_path / "a.nii").rename(path)
    else:
        save(volume(), path)
    (tmp_path / answer).write_bytes(served(module, reader, path))
    image = images.read([path], "SimpleITKIO" if name == "not_packed.nii.gz" else reader)
    found = images.read([tmp_path / answer], reader)
    np.testing.assert_array_equal(found.array[0], module.artifact.predict(image.array, image.spacing))


@pytest.mark.parametrize("reader", ["SimpleITKIO", "Tiff3DIO", "NaturalImage2DIO"])
@pytest.mark.parametrize("named", ["/absolute", "neighbour", "&#110;eighbour"])
def test_an_upload_that_names_another_file_reads_none(module: Any, reader: str, named: str, tmp_path: Path) -> None:
    """A TIFF whose OME-XML says that its planes are in another one, which tifffile then reads."""
    secret = tmp_path / "secret.tif"
    tifffile.imwrite(secret, np.full((4, 6, 7), 77, np.uint8), compression="zlib", photometric="minisblack")
    file = str(secret) if named == "/absolute" else f"{named}.tif"
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:2"><Image ID="Image:0">'
        '<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="7" SizeY="6" SizeZ="4" SizeC="1" SizeT="1">'
        '<Channel ID="Channel:0:0" SamplesPerPixel="1"/>'
        f"<TiffData IFD='0' PlaneCount='4'><UUID FileName='{file}'>urn:uuid:1</UUID></TiffData></Pixels></Image></OME>"
    )
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((4, 6, 7), np.uint8), description=xml, photometric="minisblack", metadata=None)
    if named == "/absolute":
        assert tifffile.imread(path).max() == 77
    with pytest.raises(InputError, match="takes planes from other files") as caught:
        served(module, reader, path)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("reader", list(READERS))
def test_what_a_reader_does_not_take_is_refused(module: Any, reader: str, tmp_path: Path) -> None:
    for ending in (".mha", ".nrrd", ".hdr", ".eps"):
        (tmp_path / f"a{ending}").write_bytes(b"0")
        with pytest.raises(InputError, match="must end with one of"):
            served(module, reader, tmp_path / f"a{ending}")
    for ending in module.ENDINGS[reader]:
        (tmp_path / f"a{ending}").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
        with pytest.raises(InputError, match="can't be read as") as caught:
            served(module, reader, tmp_path / f"a{ending}")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("reader", "name"),
    [("NibabelIO", "a.nii"), ("Tiff3DIO", "a.tif"), ("NaturalImage2DIO", "a.png"), ("NaturalImage2DIO", "moves.png")],
)
def test_what_says_it_is_too_large_is_not_read(
    module: Any, reader: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module.MAX_VOXELS = MAX_VOXELS
    if name == "moves.png":
        frames = np.random.default_rng(0).integers(0, 255, (20, 100, 100)).astype(np.uint8)
        imageio.v3.imwrite(tmp_path / name, frames, is_batch=True)
    elif name == "a.png":
        imageio.v3.imwrite(tmp_path / name, np.zeros((500, 500), np.uint8))
    else:
        save(np.zeros((101, 100, 10), np.uint8), tmp_path / name)
    with pytest.raises(uploads.TooLargeError):
        served(module, reader, tmp_path / name)
    monkeypatch.setattr(images, "read", lambda *_: pytest.fail("it was read"))
    with pytest.raises(uploads.TooLargeError):
        uploads.decoded([tmp_path / name], reader, MAX_VOXELS)


def test_a_wrong_request_is_refused_in_one_line(service: Service) -> None:
    for wrong in (
        {"files": {"picture": ("a.nii", b"0")}},
        {"data": {"image": "a.nii"}},
        {"content": b"0"},
        {"json": {"image": "a"}},
    ):
        answer = service.client.post("/predict", **wrong)
        assert answer.status_code == 422, answer.text
        assert FORM in answer.json()["detail"]


def test_a_request_that_tells_no_length_is_bounded(service: Service) -> None:
    def content() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.nii"\r\n\r\n'
        for _ in range(MAX_BYTES // 10_000 + 1):
            yield bytes(10_000)

    answer = service.client.post(
        "/predict", content=content(), headers={"Content-Type": "multipart/form-data; boundary=x"}
    )
    assert answer.status_code == 413


def test_without_a_fit_artifact_it_ends_in_one_line(exports: Path, tmp_path: Path) -> None:
    with start(exports / SMALL, tmp_path) as running:
        _, printed = running.communicate(timeout=60)
    assert running.returncode == 1
    assert re.fullmatch(r"service: .*no label for each place.*\n", printed)


def test_connections_without_a_request_are_closed_and_keep_nobody_out(service: Service, tmp_path: Path) -> None:
    address = (service.client.base_url.host, service.client.base_url.port or 80)
    head = b"POST /predict HTTP/1.1\r\nHost: a\r\n"
    form = b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 1000\r\n\r\n--x\r\n"
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(address)) for _ in range(100)]
        for index, connection in enumerate(silent):
            connection.sendall([b"", head, head + form, b"GET /health HTTP/1.1\r\nHost: a\r\n\r\nG"][index % 4])
        assert service.client.get("/health").status_code == 200
        for connection in silent:
            connection.settimeout(60)
            while connection.recv(1000):
                pass  # until it is closed
    save(volume(shape=(4, 5, 6)), tmp_path / "good.nii")
    assert labels(service.predict(tmp_path / "good.nii"), tmp_path / "labels.nii.gz").GetSize() == (6, 5, 4)


def test_addresses_of_memory_are_not_told(service: Service, tmp_path: Path) -> None:
    save(volume(), tmp_path / "a.nii")
    data = bytearray((tmp_path / "a.nii").read_bytes())
    data[80:84] = struct.pack("<f", 7.0)  # another spacing than its matrix has: SimpleITK warns
    (tmp_path / "a.nii").write_bytes(data)
    with subprocess.Popen(
        [sys.executable, "-c", f"import SimpleITK; SimpleITK.ReadImage({str(tmp_path / 'a.nii')!r})"],
        stderr=subprocess.PIPE, text=True,
    ) as alone:  # fmt: skip
        assert alone.stderr is not None and re.search("0x[0-9a-f]+", alone.stderr.read())
    service.predict(tmp_path / "a.nii")
    assert not [line for line in service.log if re.search("0x[0-9a-f]{4}", line)]


def _form(folder: Path) -> bytes:
    save(volume(), folder / "a.nii.gz")
    head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.nii.gz"\r\n\r\n'
    return head + (folder / "a.nii.gz").read_bytes() + b"\r\n--x--\r\n"


async def _ask(module: Any, body: bytes, leave: Callable[[], bool]) -> int:
    """The status of an answer to a client that leaves once it should."""
    left = [{"type": "http.request", "body": body, "more_body": False}]
    scope = {
        "type": "http", "method": "POST", "path": "/predict", "raw_path": b"/predict", "root_path": "",
        "scheme": "http", "query_string": b"", "http_version": "1.1", "asgi": {"version": "3.0"},
        "client": ("a", 1), "server": ("b", 2), "headers": [(b"content-type", b"multipart/form-data; boundary=x")],
    }  # fmt: skip
    said = []

    async def receive() -> dict[str, Any]:
        if left:
            return left.pop()
        while not leave():  # noqa: ASYNC110 (threads tell)
            await anyio.sleep(0.01)
        return {"type": "http.disconnect"}

    async def send(what: dict[str, Any]) -> None:
        said.append(what)

    with anyio.fail_after(60):
        await module.app(scope, receive, send)
    return int(said[0]["status"])


@pytest.mark.parametrize("between", ["windows", "steps"])
def test_a_client_that_leaves_gives_up_its_place(between: str, module: Any, tmp_path: Path) -> None:
    began, ended = threading.Event(), threading.Event()

    def predict(*_: object, progress: Callable[[int, int], None], times: Times) -> None:
        began.set()
        try:
            while True:
                if between == "windows":
                    progress(1, 10**9)
                with times.of("resample") if between == "steps" else contextlib.nullcontext():
                    time.sleep(0.01)
        finally:
            ended.set()

    module.artifact.predict = predict
    anyio.run(_ask, module, _form(tmp_path), began.is_set)
    assert ended.is_set()
    assert module.slots.borrowed_tokens == 0


def test_a_client_that_leaves_while_its_image_is_decoded_ends_the_process(module: Any, tmp_path: Path) -> None:
    began = threading.Event()

    def decode(*_: object, progress: Callable[[str], None], **__: object) -> None:
        began.set()
        subprocesses.call(tell_for_ever, progress=progress)

    module.uploads = SimpleNamespace(decode=decode, TooLargeError=uploads.TooLargeError)
    module.artifact.predict = None  # nobody comes so far
    anyio.run(_ask, module, _form(tmp_path), began.is_set)
    assert module.slots.borrowed_tokens == 0


def tell_for_ever(progress: Callable[[str], None]) -> None:
    while True:
        progress("decoding")
        time.sleep(0.01)


def test_a_client_that_waits_may_leave_too(module: Any, tmp_path: Path) -> None:
    module.artifact.predict = None  # nobody comes so far

    async def ask() -> None:
        async with module.slots:
            await _ask(module, _form(tmp_path), lambda: module.slots.statistics().tasks_waiting == 1)

    anyio.run(ask)


def test_a_client_that_stays_gets_its_answer_and_too_many_are_sent_away(module: Any, tmp_path: Path) -> None:
    assert anyio.run(_ask, module, _form(tmp_path), lambda: False) == 200
    module.MAX_WAITING = 0
    assert anyio.run(_ask, module, _form(tmp_path), lambda: False) == 503


def test_a_fault_of_the_service_is_one_answer_without_addresses(
    module: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:

    def predict(*_: object, **__: object) -> None:
        raise RuntimeError(f"{object()} stands at {id(module):x}")

    module.artifact.predict = predict
    assert anyio.run(_ask, module, _form(tmp_path), lambda: False) == 500
    assert "a prediction failed" in caplog.text and "Traceback" in caplog.text
    assert not re.search("0x[0-9a-f]{4}|[0-9a-f]{11}", caplog.text)
