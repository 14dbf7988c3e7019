from __future__ import annotations

import errno
import hashlib
import importlib.util
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
from google.protobuf import text_format

from segonnx.artifacts import manifest, packing
from segonnx.artifacts.layout import MANIFEST
from segonnx.artifacts.packing import contents, oci, triton
from segonnx.artifacts.packing import zipped as zipped_form
from segonnx.artifacts.packing.serving import Serving
from segonnx.artifacts.verify import verify
from segonnx.commands.pack import PACKINGS
from segonnx.core import zips
from segonnx.errors import InputError, ResourceError, SegonnxError, VerifyError
from tests.artifacts.resealed import reseal
from tests.conftest import ROOT, SMALL, message, run

pytestmark = pytest.mark.usefixtures("copied_workers")


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
        f'name: "{SMALL}"', 'backend: "onnxruntime"', 'name: "input"', "dims: [1, 3, 512, 512]", 'name: "logits"',
        "data_type: TYPE_FP32", "dims: [1, 1000]",
    ):  # fmt: skip
        assert line in config
    content = json.loads((exports / SMALL / MANIFEST).read_bytes())
    content["inputs"][0]["shape"] = ["batch", 3, "32*height", 512]
    assert "dims: [-1, 3, -1, 512]" in triton.config(content)
    judged = text_format.Parse(config, _tritons_own().ModelConfig())
    assert (judged.name, judged.backend, judged.max_batch_size) == (SMALL, "onnxruntime", 0)
    for judge, entry in ((judged.input, content["inputs"]), (judged.output, content["outputs"])):
        assert [(one.name, one.data_type) for one in judge] == [(entry[0]["name"], _tritons_own().TYPE_FP32)]
    assert [*judged.output[0].dims] == [1, 1000]


def _open_batch(content: dict[str, Any]) -> dict[str, Any]:
    for tensor in (*content["inputs"], *content["outputs"]):
        tensor["shape"][0] = "batch"
    return content


def _of_several() -> dict[str, Any]:
    """What a manifest says of a model of three inputs and three outputs, whose batch is open."""
    return {
        "name": "several",
        "inputs": [
            {"name": "image", "dtype": "float32", "shape": ["batch", 3, "height", 64]},
            {"name": "valid", "dtype": "bool", "shape": ["batch"]},
            {"name": "prompt", "dtype": "int64", "shape": ["batch", 77]},
        ],
        "outputs": [
            {"name": "logits", "dtype": "float32", "shape": ["batch", 5, "height", 64]},
            {"name": "scores", "dtype": "float16", "shape": ["batch"]},
            {"name": "labels", "dtype": "uint8", "shape": ["batch", "height", 64]},
        ],
    }


@pytest.mark.parametrize(
    ("serving", "largest", "preferred", "instances"),
    [
        (Serving(), 8, None, []),
        (Serving(max_batch=0), 0, None, []),
        (Serving(max_batch=1), 1, None, []),
        (Serving(16, (16, 4, 8), 3, "gpu"), 16, [4, 8, 16], [(3, "KIND_GPU")]),
        (Serving(preferred=(8,), kind="cpu"), 8, [8], [(1, "KIND_CPU")]),
        (Serving(instances=2), 8, None, [(2, "KIND_AUTO")]),
        (Serving(1, (1,)), 1, [1], []),
    ],
)
def test_triton_s_own_message_holds_every_field(
    serving: Serving, largest: int, preferred: list[int] | None, instances: list[tuple[int, str]]
) -> None:
    """Judged by NVIDIA's message, which takes no field that it doesn't know."""
    content, own = _of_several(), _tritons_own()
    judged = text_format.Parse(triton.config(content, serving), own.ModelConfig())
    made = triton._config(content, serving)
    assert judged.SerializeToString(deterministic=True) == made.SerializeToString(deterministic=True)
    assert (judged.name, judged.backend, judged.max_batch_size) == ("several", "onnxruntime", largest)
    for tensors, described in ((judged.input, content["inputs"]), (judged.output, content["outputs"])):
        assert [(one.name, own.DataType.Name(one.data_type)) for one in tensors] == [
            (one["name"], triton.TYPES[one["dtype"]][0]) for one in described
        ]
        for one, said in zip(tensors, described, strict=True):
            sizes = [-1 if isinstance(size, str) else size for size in said["shape"]]
            assert [*one.dims] == (sizes[1:] or [1] if largest else sizes)
            assert one.HasField("reshape") == (largest > 0 and len(sizes) == 1)
            assert [*one.reshape.shape] == []
    kinds = own.ModelInstanceGroup.Kind
    assert [(group.count, kinds.Name(group.kind)) for group in judged.instance_group] == instances
    assert judged.HasField("dynamic_batching") == (largest > 1 or preferred is not None)
    assert [*judged.dynamic_batching.preferred_batch_size] == (preferred or [])
    known = {"name", "backend", "input", "output", "max_batch_size", "instance_group", "dynamic_batching"}
    assert {field.name for field, _ in judged.ListFields()} <= known


@pytest.mark.parametrize(
    "shapes",
    [
        ([1, 3, 8, 8], ["batch", 2, 8, 8]),
        (["batch", 3, 8, 8], [1, 2, 8, 8]),
        (["batch", 3, 8, 8], ["2*batch", 2, 8, 8]),
        (["batch", 3, 8, 8], []),
        ([1, 3, "height", "width"], [1, 2, "height", "width"]),
    ],
)
def test_triton_forms_no_batches_of_what_has_none(shapes: tuple[list[int | str], list[int | str]]) -> None:
    content = {
        "name": "x",
        "inputs": [{"name": "i", "dtype": "float32", "shape": shapes[0]}],
        "outputs": [{"name": "o", "dtype": "float32", "shape": shapes[1]}],
    }
    for serving in (Serving(), Serving(max_batch=0)):
        judged = text_format.Parse(triton.config(content, serving), _tritons_own().ModelConfig())
        assert judged.max_batch_size == 0 and not judged.HasField("dynamic_batching")
        assert len(judged.input[0].dims) == 4 and len(judged.output[0].dims) == max(1, len(shapes[1]))
    with pytest.raises(InputError, match=r"^--max-batch is for a batch that is open: x takes .*--dynamic$"):
        triton.config(content, Serving(max_batch=4))


def test_an_open_batch_is_triton_s_to_fill(artifact: Path, tmp_path: Path) -> None:
    model = onnx.load(artifact / "model.onnx")
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del model.graph.value_info[:]
    onnx.save(model, artifact / "model.onnx")
    content = _open_batch(json.loads((artifact / MANIFEST).read_bytes()))
    (artifact / MANIFEST).write_bytes(manifest.seal(content))
    reseal(artifact, rehash=True)
    out = tmp_path / "repository"
    more = ("--max-batch", 16, "--preferred-batch", "4,16", "--instances", 2, "--instance-kind", "cpu")
    done = run("pack", artifact, "--format", "triton", "-o", out, *more)
    assert done.returncode == 0, done.stderr
    config = (out / SMALL / "config.pbtxt").read_text()
    judged = text_format.Parse(config, _tritons_own().ModelConfig())
    assert (judged.max_batch_size, [*judged.input[0].dims], [*judged.output[0].dims]) == (16, [3, 512, 512], [1000])
    assert [*judged.dynamic_batching.preferred_batch_size] == [4, 16] and judged.instance_group[0].count == 2
    again = run("pack", artifact, "--format", "triton", "-o", out, "--overwrite")
    assert again.returncode == 0 and "max_batch_size: 8" in (out / SMALL / "config.pbtxt").read_text()


@pytest.mark.parametrize(
    ("form", "more", "said"),
    [
        ("zip", ["--max-batch", 4], "--max-batch goes with --format triton"),
        ("oci", ["--instances", 1, "--instance-kind", "gpu"], "--instances and --instance-kind go with --format"),
        ("bundle", ["--preferred-batch", "2"], "--preferred-batch goes with --format triton"),
        ("triton", ["--max-batch", 4], "--max-batch is for a batch that is open: "),
        ("triton", ["--preferred-batch", 4], "--preferred-batch is for a batch that is open: "),
        ("triton", ["--preferred-batch", "4,9"], "--preferred-batch 9 is more than --max-batch allows, which is 8"),
        ("triton", ["--max-batch", 0, "--preferred-batch", 1], "--max-batch 0 lets it form none"),
        ("triton", ["--preferred-batch", "0"], "--preferred-batch takes whole numbers above 0"),
        ("triton", ["--preferred-batch", "9" * 5000], "--preferred-batch takes whole numbers"),
        ("triton", ["--max-batch", 2**31], "--max-batch takes whole numbers from 0 to"),
        ("triton", ["--instances", 2**31], "--instances takes whole numbers from 1 to"),
        ("triton", ["--max-batch", -1], "--max-batch"),
        ("triton", ["--instance-kind", "tpu"], "--instance-kind"),
    ],
)
def test_what_triton_can_t_follow_is_refused(
    form: str, more: list[object], said: str, exports: Path, tmp_path: Path
) -> None:
    done = run("pack", exports / SMALL, "--format", form, "-o", tmp_path / "out", *more)
    assert done.returncode == 2 and said in message(done), done.stderr
    assert not (tmp_path / "out").exists()


def _tritons_own() -> Any:
    """The messages as NVIDIA's client has them; it imports gRPC beside them, which isn't needed here."""
    found = importlib.util.find_spec("tritonclient")
    if found is None or not found.submodule_search_locations:
        pytest.skip("tritonclient isn't installed")
    name = "tritons_model_config_pb2"
    if name not in sys.modules:
        path = Path(found.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def test_every_type_has_triton_s_number() -> None:
    assert {name: _tritons_own().DataType.Value(name) for name, _ in triton.TYPES.values()} == dict(
        triton.TYPES.values()
    )


INJECTED = (
    'input"\n    data_type: TYPE_FP32\n    dims: [ 1 ]\n  }\n]\n'
    'model_operations { op_library_filename: "1/model.onnx/model.onnx.so" }\ninput [\n  {\n    name: "y'
)


@pytest.mark.parametrize("name", [INJECTED, 'a"', "a\\", "a\nb", "\x00\x1b", "é\u202e", "a } # {"])
def test_a_tensor_s_name_is_text_in_triton_s_file(name: str, artifact: Path, tmp_path: Path) -> None:
    content = json.loads((artifact / MANIFEST).read_bytes())
    content["inputs"][0]["name"] = name
    judged = text_format.Parse(triton.config(content), _tritons_own().ModelConfig())
    assert [one.name for one in judged.input] == [name]
    assert {field.name for field, _ in judged.ListFields()} == {"name", "input", "output", "backend"}


def test_nothing_but_the_model_s_own_files_goes_along(artifact: Path, tmp_path: Path) -> None:
    """A library beside the model would be loaded by whoever makes the server do so."""
    for name in ("model.onnx.so", "model.onnx_evil", "model.onnx.data", "extra.txt"):
        (artifact / name).write_bytes(b"\x7fELF")
    reseal(artifact, rehash=True)
    verify(artifact, replay=False)
    for form in ("triton", "bundle"):
        made = files(packing.pack(artifact, form, tmp_path / form))
        assert not [name for name in made if Path(name).suffix == ".so" or "evil" in name or "extra" in name]
        assert [name for name in made if ".onnx" in name] in ([f"{SMALL}/1/model.onnx"], ["models/model.onnx"])


@pytest.mark.parametrize("name", ["..", ".", "../../x", "a/b", "...", "x" * 5000, "\u00e4" * 300, "a\nb", "\x1b"])
def test_triton_s_folder_is_one_folder_below_out(name: str, exports: Path, tmp_path: Path) -> None:
    source = contents.Source.of(exports / SMALL, verify(exports / SMALL, replay=False))
    source.content["name"] = name
    out = tmp_path / "deep" / "out"
    triton.write(source, out, lambda _: None)
    triton.require_written(source, out)
    triton.require_own(out)
    (model,) = out.iterdir()
    assert sorted(path.name for path in model.iterdir()) == ["1", "README.md", "config.pbtxt", "manifest.json"]
    assert (model / "1" / "model.onnx").is_file()
    assert os.listdir(tmp_path) == ["deep"] and os.listdir(tmp_path / "deep") == ["out"]


def test_weights_under_another_name_go_along(artifact: Path, tmp_path: Path) -> None:
    model = onnx.load(artifact / "model.onnx")
    (artifact / "model.onnx").unlink()
    onnx.save(model, artifact / "model.onnx", save_as_external_data=True, location="weights.bin")
    reseal(artifact, rehash=True)
    assert verify(artifact, replay=False).weights == ("weights.bin",)
    out = packing.pack(artifact, "triton", tmp_path / "t") / SMALL / "1" / "model.onnx"
    assert sorted(os.listdir(out)) == ["model.onnx", "weights.bin"]
    assert (packing.pack(artifact, "bundle", tmp_path / "b") / "models" / "weights.bin").is_file()


@pytest.mark.parametrize(
    "name", ["with space", "a/../b", "CON", "con.txt", "end.", "a/b/c/d/e/f/g/h/i/j", "é", "data.json/x", "x" * 300]
)
def test_what_unpack_would_refuse_is_not_packed(name: str, artifact: Path, tmp_path: Path) -> None:
    content = json.loads((artifact / MANIFEST).read_bytes())
    content["files"][name] = {"sha256": "0" * 64, "bytes": 1}
    with pytest.raises(VerifyError, match="name"):
        contents.require_safe(contents.names(content, signed=True))
    if name == "with space":
        (artifact / name).write_text("x")
        reseal(artifact, rehash=True)
        for form in packing.FORMATS:
            done = run("pack", artifact, "--format", form, "--out", tmp_path / "packed")
            assert done.returncode in (1, 2) and "\n" not in message(done)
        assert os.listdir(tmp_path) == [SMALL]


@pytest.mark.parametrize("form", packing.FORMATS)
def test_what_was_written_is_read_again(
    form: str, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that gives other bytes than were written."""
    module = packing.FORMATS[form]
    real = module.write

    def write(source: Any, out: Path, progress: Any) -> None:
        real(source, out, progress)
        path = max(([out] if out.is_file() else out.rglob("*")), key=lambda path: path.stat().st_size)
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 2)
            byte = file.read(1)
            file.seek(-1, 1)
            file.write(bytes([byte[0] ^ 1]))

    monkeypatch.setattr(module, "write", write)
    with pytest.raises(ResourceError, match="reads otherwise than it was written"):
        packing.pack(artifact, form, tmp_path / "packed")
    assert os.listdir(tmp_path) == [SMALL]


def test_a_file_that_changes_while_it_is_packed_is_found(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = verify

    def then_change(*arguments: Any, **more: Any) -> Any:
        found = real(*arguments, **more)
        (artifact / "data.json").unlink()
        (artifact / "data.json").symlink_to("/etc/passwd")
        return found

    monkeypatch.setattr(packing, "verify", then_change)
    for form in ("zip", "oci"):
        with pytest.raises(SegonnxError):
            packing.pack(artifact, form, tmp_path / "packed")
    assert os.listdir(tmp_path) == [SMALL]


def test_out_and_the_artifact_stay_apart(artifact: Path, zipped: Path, layout: Path, tmp_path: Path) -> None:
    before = files(artifact)
    for form in packing.FORMATS:
        for out in (artifact, artifact / "packed", tmp_path, artifact / "test_data_set_0" / "x"):
            done = run("pack", artifact, "--format", form, "--out", out, "--overwrite")
            assert done.returncode == 2 and "\n" not in message(done), (form, out)
    done = run("pack", artifact, "--format", "zip", "--out", tmp_path / "x.zip", "--json", artifact / MANIFEST)
    assert done.returncode == 2 and "which is read" in done.stderr
    assert files(artifact) == before and os.listdir(tmp_path) == [SMALL]
    copied = shutil.copytree(layout, tmp_path / "layout")
    packed = Path(shutil.copy(zipped, tmp_path / "a.zip"))
    inside = files(copied)
    for source, out in ((copied, copied), (copied, copied / "x"), (copied, tmp_path), (packed, packed)):
        done = run("unpack", source, "--out", out, "--overwrite")
        assert done.returncode == 2 and "\n" not in message(done), (source, out)
    assert files(copied) == inside and packed.read_bytes() == zipped.read_bytes()


def test_overwrite_replaces_its_own_kind_alone(artifact: Path, exports: Path, zipped: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("mine")
    (tmp_path / "notes").write_text("mine")
    with_notes = shutil.copytree(artifact, tmp_path / "noted")
    (with_notes / "notes").write_text("mine")
    models = packing.pack(artifact, "triton", tmp_path / "models")
    (models / "another model").mkdir()
    made = {form: packing.pack(artifact, form, tmp_path / form) for form in packing.FORMATS}
    before = files(tmp_path)
    for out in (tmp_path / "thesis", tmp_path / "notes", with_notes, models, made["zip"], made["oci"], made["bundle"]):
        done = run("unpack", zipped, "--out", out, "--overwrite")
        assert done.returncode == 2 and "--overwrite leaves it alone" in message(done), out
    for form in packing.FORMATS:
        others = [tmp_path / "thesis", artifact, with_notes, models, *(made[other] for other in made if other != form)]
        for out in others if form != "zip" else others[:-1]:
            done = run("pack", exports / SMALL, "--format", form, "--out", out, "--overwrite")
            assert done.returncode == 2 and "\n" not in message(done), (form, out, done.stderr)
    assert files(tmp_path) == before
    for form in packing.FORMATS:
        done = run("pack", exports / SMALL, "--format", form, "--out", made[form], "--overwrite")
        assert done.returncode == 0, done.stderr
    (artifact / "README.md").write_text("damaged")
    assert run("unpack", zipped, "--out", artifact, "--overwrite").returncode == 0
    verify(artifact, replay=False)


@pytest.mark.parametrize("form", packing.FORMATS)
@pytest.mark.parametrize("out", [".", "..", "a" * 300, f"b/{'a' * 300}"], ids=["here", "around", "long", "long within"])
def test_an_out_that_nothing_can_stand_at_is_refused_first(
    out: str, form: str, exports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(packing, "verify", lambda *_, **__: pytest.fail("the work began"))
    for overwrite in (False, True):
        with pytest.raises(InputError, match="can't write") as caught:
            packing.pack(exports / SMALL, form, Path(out), overwrite=overwrite)
        assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_of_several_at_once_one_wins_and_the_others_say_so(zipped: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "segonnx", "unpack", str(zipped), "--out", str(tmp_path / "out")]
    running = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate()[1] for process in running]
    assert sorted(process.returncode for process in running) == [0, 2, 2]
    assert sum("--overwrite replaces it" in text for text in said) == 2
    assert os.listdir(tmp_path) == ["out"]
    verify(tmp_path / "out", replay=False)


def test_a_target_that_can_not_be_written_is_not_the_archive_s_fault(
    zipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, "Input/output error", "x")

    monkeypatch.setattr("segonnx.core.files.publish", fail)
    with pytest.raises(ResourceError, match=r"can't write .*out: Input/output error"):
        packing.unpack(zipped, tmp_path / "out")


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
    "a device file": (_and("evil", b"", stat.S_IFCHR | 0o666), "isn't a plain file"),
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
    "a manifest whose deflation is damaged": (
        _with("manifest.json", lambda data: data, zipfile.ZIP_DEFLATED), "damaged one"
    ),
    "a device": (_and("NUL.txt"), "is a device's"),
    "a file that is a folder, too": (_and("data.json/x"), "is a file, and a folder of"),
    "a signature that is too large": (_and("model.sig", bytes(manifest.MAX_BYTES + 1)), "model.sig is larger than"),
    "a strange compression": (_with("data.json", lambda data: data, zipfile.ZIP_BZIP2), "strange way"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_zip_file_writes_nothing(what: str, zipped: Path, tmp_path: Path) -> None:
    change, message = HOSTILE[what]
    hostile = rewritten(zipped, tmp_path / "hostile.zip", change)
    if what == "a manifest whose deflation is damaged":
        _spoil(hostile, "manifest.json")
    with pytest.raises(SegonnxError, match=message):
        packing.unpack(hostile, tmp_path / "out" / "artifact")
    assert not list((tmp_path / "out").rglob("*"))
    assert not Path("/tmp/evil").exists() and not (tmp_path / "evil").exists()


def _spoil(path: Path, name: str) -> None:
    """Damage the first bytes of an entry."""
    with zipfile.ZipFile(path) as archive:
        begin = archive.getinfo(name).header_offset + 30 + len(name)
    data = bytearray(path.read_bytes())
    data[begin : begin + 2] = b"\xff\xff"
    path.write_bytes(data)


def test_a_zip_file_of_very_many_entries_is_not_read(zipped: Path, tmp_path: Path) -> None:
    """The list of entries says how many there are, and may itself be larger than memory."""
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for index in range(contents.MAX_FILES + 1):
            archive.writestr(f"f{index}", b"")
    with pytest.raises(VerifyError, match="more than 10,000 files"):
        packing.unpack(tmp_path / "many.zip", tmp_path / "out")
    data = bytearray(zipped.read_bytes())
    end = data.rindex(b"PK\x05\x06")
    listed = int.from_bytes(data[end + 16 : end + 20], "little")
    longer = data[:listed] + data[listed:end] * (zips.MAX_READ // (end - listed) + 1)
    tail = bytearray(data[end:])
    tail[12:16] = (len(longer) - listed).to_bytes(4, "little")
    (tmp_path / "long.zip").write_bytes(longer + tail)
    with pytest.raises(InputError, match="list of entries is too long"):
        packing.unpack(tmp_path / "long.zip", tmp_path / "out")


@pytest.mark.parametrize("size", [manifest.MAX_BYTES - 1, manifest.MAX_BYTES])
def test_a_large_signature_comes_back_whole(size: int, artifact: Path, tmp_path: Path) -> None:
    (artifact / "model.sig").write_bytes(b"x" * size)
    for form in ("zip", "oci"):
        out = packing.unpack(packing.pack(artifact, form, tmp_path / form), tmp_path / f"{form}-out")
        assert (out / "model.sig").stat().st_size == size
    (artifact / "model.sig").write_bytes(b"x" * (manifest.MAX_BYTES + 1))
    with pytest.raises(VerifyError, match="is larger than"):
        packing.pack(artifact, "zip", tmp_path / "large")


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
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for name, text in (
        ("text", "no zip file"),
        ("half.zip", "no zip file"),
        ("empty", "no OCI image layout"),
        ("none", "doesn't exist"),
        ("pipe", "isn't a plain file"),
        ("zeros", "isn't a plain file"),
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


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _elsewhere(path: Path, target: str) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to(target)


def _many(layout: Path) -> None:
    """The same description of an image of 1 MiB, many times."""
    data = json.dumps({"x": "x" * 2**20}).encode()
    digest = hashlib.sha256(data).hexdigest()
    (layout / "blobs" / "sha256" / digest).write_bytes(data)
    (layout / "index.json").write_text(json.dumps({"manifests": [{"digest": f"sha256:{digest}"}] * 50}))


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
    "an index that is a pipe": (lambda layout: _pipe(layout / "index.json"), "isn't a plain file"),
    "an index that is a link": (lambda layout: _elsewhere(layout / "index.json", "/dev/zero"), "it is a link"),
    "blobs that are a link": (lambda layout: _elsewhere(layout / "blobs", "/"), "is a link, or lies in one"),
    "a blob that is a pipe": (lambda layout: _pipe(_blob_of(layout, "data.json")), "lacks the blob"),
    "images that are many and large": (_many, "described in more than"),
    "a digest of another kind": (
        lambda layout: _image(layout, lambda image: image["layers"][0].update(digest="sha512:" + "0" * 128)),
        "lacks the blob",
    ),
    "NaN": (lambda layout: (layout / "index.json").write_text('{"manifests": NaN}'), "isn't JSON"),
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
