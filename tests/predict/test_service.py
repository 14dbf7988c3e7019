"""The example service, in a process of its own."""

from __future__ import annotations

import gzip
import importlib.util
import io
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import imageio.v3
import numpy as np
import pytest
import SimpleITK
import tifffile
from fastapi import HTTPException, UploadFile

from segonnx.errors import InputError
from segonnx.predict import images
from segonnx.predict.predictor import Artifact
from segonnx.predict.readers import READERS
from tests.conftest import ROOT, SMALL
from tests.predict.conftest import SHAPE, SPACING, save, volume

RUNNING = 2
MAX_BYTES = 200_000
MAX_VOXELS = 100_000
FORM = "send a form whose field image is a file"


@dataclass(frozen=True)
class Service:
    client: httpx.Client
    temporary: Path
    """Where its temporary files are, while they are."""

    def left(self) -> list[str]:
        """Temporary files that are there now, but ONNX Runtime's own."""
        return [path.name for path in self.temporary.iterdir() if path.name != ".ses"]

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
    }
    command = [sys.executable, "-m", "uvicorn", "--app-dir", "examples", "service:app", "--port", "0"]
    return subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def service(hand: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    temporary = tmp_path_factory.mktemp("temporary")
    with start(hand, temporary) as running:
        try:
            assert running.stderr is not None
            address = next(found[0] for line in running.stderr if (found := re.search(r"http://[\d.:]+", line)))
            threading.Thread(target=running.stderr.read, daemon=True).start()
            with httpx.Client(base_url=address, timeout=60) as client:
                yield Service(client, temporary)
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
    elif kind == "names another file":
        header = (
            "ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementDataFile = /etc/passwd\n"
        )
        (folder / "a.mha").write_text(header)
        assert SimpleITK.ReadImage(str(folder / "a.mha")).GetSize() == (2, 2, 2)
    elif kind == "two channels":
        return [folder / "good.nii.gz", folder / "good.nii.gz"]
    return [*folder.glob("a.*")]


@pytest.mark.parametrize(
    ("kind", "status", "line"),
    [
        ("text", 422, "channel_0 can't be read as a .nii.gz file"),
        ("text as NIfTI", 422, "channel_0 can't be read as a .nii file"),
        ("cut gzip", 422, "channel_0 isn't an intact gzip file"),
        ("cut by one byte", 422, "channel_0 isn't an intact gzip file"),
        ("damaged gzip", 422, "channel_0 isn't an intact gzip file"),
        ("cut NIfTI", 422, "channel_0.nii isn't intact"),
        ("NaN", 422, "aren't finite"),
        ("four axes", 422, "channel_0.nii has 4 dimensions"),
        ("two channels", 422, "a channel for each"),
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


@pytest.fixture
def example(hand: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The service as a module, in this process."""
    monkeypatch.setenv("SEGONNX_ARTIFACT", str(hand))
    spec = importlib.util.spec_from_file_location("service_example", ROOT / "examples" / "service.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def served(example: Any, reader: str, *files: Path) -> bytes:
    """What the service answers where its artifact's images are read by another of nnU-Net's readers."""
    example.reader = reader
    example.answer_ending, _ = example.ANSWERS.get(reader, (".nii.gz", ""))
    uploads = [UploadFile(io.BytesIO(file.read_bytes()), filename=file.name) for file in files]
    answer: bytes = example._predict(uploads)
    return answer


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
def test_every_reader_is_served(example: Any, reader: str, name: str, answer: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if path.suffix in (".png", ".bmp"):
        imageio.v3.imwrite(path, np.random.default_rng(0).integers(0, 255, (20, 30)).astype(np.uint8))
    elif name == "not_packed.nii.gz":
        save(volume(), tmp_path / "a.nii")
        (tmp_path / "a.nii").rename(path)
    else:
        save(volume(), path)
    (tmp_path / answer).write_bytes(served(example, reader, path))
    image = images.read([path], "SimpleITKIO" if name == "not_packed.nii.gz" else reader)
    found = images.read([tmp_path / answer], reader)
    np.testing.assert_array_equal(found.array[0], example.artifact.predict(image.array, image.spacing))


@pytest.mark.parametrize("reader", ["SimpleITKIO", "Tiff3DIO", "NaturalImage2DIO"])
@pytest.mark.parametrize("named", ["/absolute", "neighbour", "&#110;eighbour"])
def test_an_upload_that_names_another_file_reads_none(example: Any, reader: str, named: str, tmp_path: Path) -> None:
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
        served(example, reader, path)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("reader", list(READERS))
def test_what_a_reader_does_not_take_is_refused(example: Any, reader: str, tmp_path: Path) -> None:
    for ending in (".mha", ".nrrd", ".hdr", ".eps"):
        (tmp_path / f"a{ending}").write_bytes(b"0")
        with pytest.raises(InputError, match="must end with one of"):
            served(example, reader, tmp_path / f"a{ending}")
    for ending in example.ENDINGS[reader]:
        (tmp_path / f"a{ending}").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
        with pytest.raises(InputError, match="can't be read as") as caught:
            served(example, reader, tmp_path / f"a{ending}")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("reader", "ending"), [("NibabelIO", ".nii"), ("Tiff3DIO", ".tif"), ("NaturalImage2DIO", ".png")]
)
def test_what_says_it_is_too_large_is_not_read(
    example: Any, reader: str, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example.MAX_VOXELS = MAX_VOXELS
    array = np.zeros((101, 100, 10) if ending != ".png" else (500, 500), np.uint8)
    imageio.v3.imwrite(tmp_path / "a.png", array) if ending == ".png" else save(array, tmp_path / f"a{ending}")
    monkeypatch.setattr(images, "read", lambda *_: pytest.fail("it was read"))
    with pytest.raises(HTTPException) as caught:
        served(example, reader, tmp_path / f"a{ending}")
    assert caught.value.status_code == 413


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
