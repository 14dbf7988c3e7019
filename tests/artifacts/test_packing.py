from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from segonnx.artifacts import manifest, packing
from segonnx.artifacts.layout import MANIFEST
from segonnx.artifacts.packing import oci, triton
from segonnx.artifacts.packing import zipped as zipped_form
from segonnx.artifacts.verify import verify
from segonnx.commands.pack import PACKINGS
from segonnx.errors import InputError, SegonnxError, VerifyError
from tests.conftest import ROOT, SMALL, message, run


@pytest.fixture(scope="module")
def zipped(exports: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packing.pack(exports / SMALL, "zip", tmp_path_factory.mktemp("packed") / "small.zip")


@pytest.fixture(scope="module")
def layout(exports: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packing.pack(exports / SMALL, "oci", tmp_path_factory.mktemp("packed") / "small.oci")


@pytest.fixture
def external(artifact: Path) -> Path:
    """The artifact with its weights in a file of their own."""
    model = onnx.load(artifact / "model.onnx")
    (artifact / "model.onnx").unlink()
    onnx.save(model, artifact / "model.onnx", save_as_external_data=True, location="model.onnx.data")
    content = json.loads((artifact / MANIFEST).read_bytes())
    for name in ("model.onnx", "model.onnx.data"):
        data = (artifact / name).read_bytes()
        content["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (artifact / MANIFEST).write_bytes(manifest.seal(content))
    return artifact


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_every_form_has_a_word_on_the_command_line() -> None:
    assert tuple(packing.FORMATS) == PACKINGS


@pytest.mark.parametrize("form", ["zip", "oci"])
def test_what_was_packed_comes_out_as_it_was(
    form: str, exports: Path, tmp_path: Path, without_torch: dict[str, str]
) -> None:
    packed, out = tmp_path / "packed", tmp_path / "deep" / "out"
    done = run("pack", exports / SMALL, "--format", form, "--out", packed, env=without_torch)
    assert done.returncode == 0, done.stderr
    done = run("unpack", packed, "--out", out, env=without_torch)
    assert done.returncode == 0, done.stderr
    assert files(out) == files(exports / SMALL)
    verify(out)
    assert not list(tmp_path.rglob("*.partial"))


def test_a_zip_file_has_the_same_bytes_each_time(zipped: Path, artifact: Path, tmp_path: Path) -> None:
    for path in artifact.rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o755 if path.is_dir() else 0o600)
    again = packing.pack(artifact, "zip", tmp_path / "again.zip")
    assert again.read_bytes() == zipped.read_bytes()


def test_an_image_layout_is_what_the_specification_says(layout: Path, exports: Path) -> None:
    assert json.loads((layout / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    (described,) = json.loads((layout / "index.json").read_bytes())["manifests"]
    image = json.loads(blob(layout, described))
    assert image["artifactType"] == described["artifactType"] == oci.ARTIFACT_TYPE
    assert blob(layout, image["config"]) == b"{}"
    titles = {layer["annotations"]["org.opencontainers.image.title"]: layer for layer in image["layers"]}
    assert {name: blob(layout, layer) for name, layer in titles.items()} == files(exports / SMALL)
    known = {blob["digest"] for blob in (described, image["config"], *image["layers"])}
    assert {f"sha256:{path.name}" for path in (layout / "blobs" / "sha256").iterdir()} == known


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo isn't installed (apt-get install skopeo)")
def test_skopeo_copies_an_image_layout(layout: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copy"
    subprocess.run(["skopeo", "copy", f"oci:{layout}:latest", f"oci:{copied}:latest"], check=True, capture_output=True)
    verify(packing.unpack(copied, tmp_path / "out"))


def blob(layout: Path, descriptor: dict[str, Any]) -> bytes:
    data = (layout / "blobs" / "sha256" / descriptor["digest"].removeprefix("sha256:")).read_bytes()
    assert (len(data), f"sha256:{hashlib.sha256(data).hexdigest()}") == (descriptor["size"], descriptor["digest"])
    return data


def test_triton_finds_the_model_and_its_shapes(exports: Path, tmp_path: Path) -> None:
    out = packing.pack(exports / SMALL, "triton", tmp_path / "repository")
    assert (out / SMALL / "1" / "model.onnx").read_bytes() == (exports / SMALL / "model.onnx").read_bytes()
    config = (out / SMALL / "config.pbtxt").read_text()
    for line in (
        f'name: "{SMALL}"', 'backend: "onnxruntime"', 'name: "input"', "dims: [ 1, 3, 512, 512 ]", 'name: "logits"',
        "data_type: TYPE_FP32", "dims: [ 1, 1000 ]",
    ):  # fmt: skip
        assert line in config
    content = json.loads((exports / SMALL / MANIFEST).read_bytes())
    content["inputs"][0]["shape"] = ["batch", 3, "32*height", 512]
    assert "dims: [ -1, 3, -1, 512 ]" in triton.config(content)


def test_external_data_lies_in_triton_s_model_folder(external: Path, tmp_path: Path) -> None:
    verify(external)
    out = packing.pack(external, "triton", tmp_path / "repository")
    assert sorted(files(out / SMALL / "1")) == ["model.onnx/model.onnx", "model.onnx/model.onnx.data"]
    onnx.checker.check_model(str(out / SMALL / "1" / "model.onnx" / "model.onnx"))
    again = packing.unpack(packing.pack(external, "zip", tmp_path / "x.zip"), tmp_path / "again")
    assert files(again) == files(external)


def test_a_bundle_has_monai_s_places(external: Path, tmp_path: Path) -> None:
    out = packing.pack(external, "bundle", tmp_path / "bundle")
    assert sorted(files(out)) == [
        "LICENSE", "configs/metadata.json", "docs/README.md", "docs/manifest.json", "models/model.onnx",
        "models/model.onnx.data",
    ]  # fmt: skip
    data = json.loads((out / "configs" / "metadata.json").read_bytes())
    image = data["network_data_format"]["inputs"]["image"]
    assert (image["num_channels"], image["spatial_shape"], image["dtype"]) == (3, [512, 512], "float32")
    assert data["network_data_format"]["outputs"]["pred"]["num_channels"] == 1000
    onnx.checker.check_model(str(out / "models" / "model.onnx"))


def test_a_damaged_artifact_is_not_packed(artifact: Path, tmp_path: Path) -> None:
    (artifact / "README.md").write_text("other")
    for form in packing.FORMATS:
        with pytest.raises(VerifyError, match=r"README\.md has"):
            packing.pack(artifact, form, tmp_path / "packed")
    assert os.listdir(tmp_path) == [SMALL]


def test_what_is_there_is_replaced_only_when_asked(zipped: Path, exports: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out.zip").write_text("mine")
    with pytest.raises(InputError, match="--overwrite"):
        packing.unpack(zipped, tmp_path / "out")
    with pytest.raises(InputError, match="--overwrite"):
        packing.pack(exports / SMALL, "zip", tmp_path / "out.zip")
    assert (tmp_path / "out.zip").read_text() == "mine"
    verify(packing.unpack(zipped, tmp_path / "out", overwrite=True), replay=False)
    packing.pack(exports / SMALL, "zip", tmp_path / "out.zip", overwrite=True)
    assert (tmp_path / "out.zip").read_bytes() == zipped.read_bytes()


def rewritten(source: Path, target: Path, change: Callable[[zipfile.ZipFile, zipfile.ZipInfo, bytes], None]) -> Path:
    """The zip file, each entry passed through ``change``, which writes what it likes."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            change(new, zipfile.ZipInfo(entry.filename), old.read(entry))
    return target


def _and(name: str, data: bytes = b"x", mode: int = 0) -> Callable[[zipfile.ZipFile, zipfile.ZipInfo, bytes], None]:
    """Adds an entry before the first one."""

    def change(new: zipfile.ZipFile, entry: zipfile.ZipInfo, content: bytes) -> None:
        if not new.namelist():
            extra = zipfile.ZipInfo(name)
            extra.external_attr = mode << 16
            new.writestr(extra, data)
        new.writestr(entry, content)

    return change


def _with(name: str, becomes: Callable[[bytes], bytes | None], compress: int = zipfile.ZIP_STORED) -> Any:
    """Changes or drops an entry."""

    def change(new: zipfile.ZipFile, entry: zipfile.ZipInfo, content: bytes) -> None:
        data = becomes(content) if entry.filename == name else content
        if data is not None:
            new.writestr(entry, data, compress if entry.filename == name else zipfile.ZIP_STORED)

    return change


HOSTILE = {
    "a way up": (_and("../evil"), "isn't a plain relative one"),
    "an absolute path": (_and("/tmp/evil"), "isn't a plain relative one"),
    "another system's path": (_and("a\\..\\..\\evil"), "isn't a plain relative one"),
    "a drive": (_and("C:evil"), "isn't a plain relative one"),
    "an empty part": (_and("a//b"), "isn't a plain relative one"),
    "a hidden file": (_and(".bashrc"), "isn't a plain relative one"),
    "a link": (_and("evil", b"/etc/passwd", stat.S_IFLNK | 0o777), "isn't a plain file"),
    "a device": (_and("evil", b"", stat.S_IFCHR | 0o666), "isn't a plain file"),
    "a folder": (_and("evil/"), "isn't a plain relative one"),
    "a foreign file": (_and("evil.txt"), "which the manifest doesn't know"),
    "another case": (_and("MODEL.onnx"), "would be one file"),
    "no manifest": (_with("manifest.json", lambda _: None), "it has no manifest.json"),
    "a changed manifest": (_with("manifest.json", lambda data: data.replace(b"small", b"large", 1)), "digest doesn't"),
    "a manifest that is no JSON": (_with("manifest.json", lambda _: b"{"), "isn't JSON"),
    "a missing file": (_with("data.json", lambda _: None), "lacks data.json"),
    "another byte": (_with("model.onnx", lambda data: data[:-1] + bytes([data[-1] ^ 1])), "model.onnx was changed"),
    "a byte less": (_with("model.onnx", lambda data: data[:-1]), "model.onnx has"),
    "a bomb": (_with("data.json", lambda _: bytes(2**28), zipfile.ZIP_DEFLATED), "more than the"),
    "a bomb for a manifest": (_with("manifest.json", lambda _: bytes(2**28), zipfile.ZIP_DEFLATED), "larger than"),
    "a strange compression": (_with("data.json", lambda data: data, zipfile.ZIP_BZIP2), "strange way"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_zip_file_writes_nothing(what: str, zipped: Path, tmp_path: Path) -> None:
    change, message = HOSTILE[what]
    hostile = rewritten(zipped, tmp_path / "hostile.zip", change)
    with pytest.raises(SegonnxError, match=message):
        packing.unpack(hostile, tmp_path / "out" / "artifact")
    assert not list((tmp_path / "out").rglob("*"))
    assert not Path("/tmp/evil").exists() and not (tmp_path / "evil").exists()


def test_a_bomb_that_the_manifest_names_is_refused(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (artifact / "data.json").write_bytes(bytes(2**24))
    content = json.loads((artifact / MANIFEST).read_bytes())
    content["files"]["data.json"] = {"sha256": hashlib.sha256(bytes(2**24)).hexdigest(), "bytes": 2**24}
    (artifact / MANIFEST).write_bytes(manifest.seal(content))
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w") as archive:
        for name in (MANIFEST, *content["files"]):
            archive.write(artifact / name, name, zipfile.ZIP_DEFLATED)
    monkeypatch.setattr(zipped_form, "MAX_GROWTH", 2)
    with pytest.raises(VerifyError, match="a bomb"):
        packing.unpack(tmp_path / "bomb.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_name_that_is_there_twice_is_refused(zipped: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        hostile = rewritten(zipped, tmp_path / "hostile.zip", _and("data.json"))
    with pytest.raises(VerifyError, match="would be one file"):
        packing.unpack(hostile, tmp_path / "out" / "artifact")


def test_a_file_of_another_kind_is_refused(zipped: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("PK, but no zip file")
    (tmp_path / "half.zip").write_bytes(zipped.read_bytes()[: zipped.stat().st_size // 2])
    (tmp_path / "empty").mkdir()
    for name, text in (
        ("text", "no zip file"),
        ("half.zip", "no zip file"),
        ("empty", "no OCI image layout"),
        ("none", "doesn't exist"),
    ):
        done = run("unpack", tmp_path / name, "--out", tmp_path / "out")
        assert done.returncode == 2
        assert text in message(done) and "\n" not in message(done)
    assert not (tmp_path / "out").exists()


def _image(layout: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the image's manifest, and whatever names its digest."""
    index = json.loads((layout / "index.json").read_bytes())
    image = json.loads(blob(layout, index["manifests"][0]))
    change(image)
    data = json.dumps(image).encode()
    digest = hashlib.sha256(data).hexdigest()
    (layout / "blobs" / "sha256" / digest).write_bytes(data)
    index["manifests"][0].update(digest=f"sha256:{digest}", size=len(data))
    (layout / "index.json").write_text(json.dumps(index))


def _blob_of(layout: Path, name: str) -> Path:
    index = json.loads((layout / "index.json").read_bytes())
    for layer in json.loads(blob(layout, index["manifests"][0]))["layers"]:
        if layer["annotations"]["org.opencontainers.image.title"] == name:
            return layout / "blobs" / "sha256" / layer["digest"].removeprefix("sha256:")
    raise AssertionError(name)


def _change(path: Path) -> None:
    path.write_bytes(path.read_bytes().swapcase())


def _link(path: Path) -> None:
    path.rename(path.with_name("aside"))
    path.symlink_to("aside")


def _title(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda image: image["layers"][1]["annotations"].update({"org.opencontainers.image.title": name})


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "a way up": (lambda layout: _image(layout, _title("../evil")), "isn't a plain relative one"),
    "a digest that leads away": (
        lambda layout: _image(layout, lambda image: image["layers"][0].update(digest="sha256:../../index.json")),
        "lacks the blob",
    ),
    "a missing layer": (lambda layout: _image(layout, lambda image: image["layers"].pop()), "lacks "),
    "a missing blob": (lambda layout: _blob_of(layout, "model.onnx").unlink(), "lacks the blob"),
    "a changed blob": (lambda layout: _change(_blob_of(layout, "data.json")), "data.json was changed"),
    "a changed manifest": (lambda layout: _blob_of(layout, "manifest.json").write_bytes(b"{}"), "has other bytes"),
    "a link": (lambda layout: _link(_blob_of(layout, "data.json")), "lacks the blob"),
    "no layers": (lambda layout: _image(layout, lambda image: image.pop("layers")), "no OCI image layout"),
    "no index": (lambda layout: (layout / "index.json").unlink(), "can't be read"),
    "an index of something else": (lambda layout: (layout / "index.json").write_text("[1]"), "no OCI image layout"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_hostile_image_layout_writes_nothing(what: str, layout: Path, tmp_path: Path) -> None:
    change, message = BROKEN[what]
    hostile = shutil.copytree(layout, tmp_path / "hostile")
    change(hostile)
    with pytest.raises(SegonnxError, match=message):
        packing.unpack(hostile, tmp_path / "out" / "artifact")
    assert not list((tmp_path / "out").rglob("*"))


@pytest.mark.parametrize("delay", [0.3, 0.6, 0.9])
def test_a_killed_unpack_leaves_no_artifact_or_an_intact_one(delay: float, zipped: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "artifact"
    command = [sys.executable, "-m", "segonnx", "unpack", str(zipped), "--out", str(out)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as unpacking:
        time.sleep(delay)
        unpacking.kill()
    if out.exists():
        verify(out, replay=False)
    assert packing.unpack(zipped, out, overwrite=True) == out
    assert [path.name for path in out.parent.iterdir()] == ["artifact"]
