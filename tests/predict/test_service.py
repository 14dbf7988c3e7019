"""The example service, in a process of its own."""

from __future__ import annotations

import gzip
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

import httpx
import numpy as np
import pytest
import SimpleITK

from segonnx.predict.predictor import Artifact
from tests.conftest import ROOT, SMALL
from tests.predict.conftest import SHAPE, SPACING, save, volume
from tests.predict.test_headers import ascii_nifti

RUNNING = 2
MAX_BYTES = 200_000
MAX_VOXELS = 100_000
COUNTS = {"two channels": 2, "many files": 30}
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
        ("text", 422, "channel_0 can't be read as a .nii.gz file"),
        ("text as NIfTI", 422, "channel_0 can't be read as a .nii file"),
        ("text", 422, "channel_0 isn't an intact gzip file"),
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
        ("many files", 422, "30 files were sent"),
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
