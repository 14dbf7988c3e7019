"""Whatever is done to an artifact, verify finds it."""

from __future__ import annotations

import json
import os
import random
import shutil
import warnings
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import onnxruntime.backend
import pytest
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner

from segonnx.artifacts import graphs, layout, manifest, testdata
from segonnx.artifacts.verify import inside, verify
from segonnx.core import files
from segonnx.core.tolerances import TOLERANCES
from segonnx.errors import VerifyError
from tests.artifacts.resealed import reseal
from tests.conftest import SMALL, message, run

pytestmark = pytest.mark.usefixtures("copied_workers")

FILES = (
    "README.md",
    "data.json",
    "manifest.json",
    "model.onnx",
    "sbom.cdx.json",
    "test_data_set_0/input_0.pb",
    "test_data_set_0/output_0.pb",
)


def _reseal(artifact: Path, change) -> None:  # type: ignore[no-untyped-def]
    """Change the manifest and give it a digest that fits, as somebody with bad intentions would."""
    path = artifact / layout.MANIFEST
    content = json.loads(path.read_text())
    change(content)
    path.write_bytes(manifest.seal(content))


def test_a_whole_artifact_passes_and_replays(artifact: Path) -> None:
    verified = verify(artifact)
    assert verified.files == len(FILES) - 1
    assert verified.difference is not None
    result = run("verify", artifact)
    assert result.returncode == 0
    assert ": OK (" in result.stdout


@pytest.mark.parametrize("name", FILES)
def test_any_flipped_byte_is_found(artifact: Path, name: str) -> None:
    path = artifact / name
    original = path.read_bytes()
    places = [*random.Random(0).sample(range(len(original)), 12), 0, len(original) - 1]
    for place in places:
        changed = bytearray(original)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(VerifyError):
            verify(artifact, replay=False)
    path.write_bytes(original)
    verify(artifact, replay=False)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_found(artifact: Path, name: str) -> None:
    (artifact / name).unlink()
    result = run("verify", artifact)
    assert result.returncode == 1
    assert Path(name).name in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_found(artifact: Path, name: str) -> None:
    path = artifact / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(VerifyError):
        verify(artifact, replay=False)


@pytest.mark.parametrize("name", ["extra", ".hidden", "test_data_set_0/more.pb", "test_data_set_1/input_0.pb"])
def test_an_extra_file_is_found(artifact: Path, name: str) -> None:
    (artifact / name).parent.mkdir(exist_ok=True)
    (artifact / name).write_text("x")
    with pytest.raises(VerifyError, match="the manifest doesn't know"):
        verify(artifact, replay=False)


def test_links_are_found(artifact: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.onnx"
    shutil.copy(artifact / "model.onnx", outside)
    (artifact / "model.onnx").unlink()
    (artifact / "model.onnx").symlink_to(outside)
    with pytest.raises(VerifyError, match="a link"):
        verify(artifact, replay=False)
    (artifact / "model.onnx").unlink()
    os.link(outside, artifact / "model.onnx")
    with pytest.raises(VerifyError, match="hard link"):
        verify(artifact, replay=False)
    outside.unlink()
    verify(artifact, replay=False)
    (tmp_path / "alias").symlink_to(artifact)
    with pytest.raises(VerifyError, match="is a link"):
        verify(tmp_path / "alias", replay=False)
    os.mkfifo(artifact / "pipe")
    with pytest.raises(VerifyError, match="special file"):
        verify(artifact, replay=False)


def test_a_manifest_that_was_edited_is_found(artifact: Path) -> None:
    path = artifact / layout.MANIFEST
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(VerifyError, match="digest"):
        verify(artifact)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("parity"),
        lambda m: m["parity"].update(passed=False),
        lambda m: m.update(schema_version=3),
        lambda m: m["files"].update({"model.onnx": {"sha256": "0", "bytes": 1}}),
        lambda m: m["parameters"].update(count=-1),
    ],
)
def test_a_manifest_that_does_not_fit_the_schema_is_refused(artifact: Path, change) -> None:  # type: ignore[no-untyped-def]
    _reseal(artifact, change)
    with pytest.raises(VerifyError, match="schema"):
        verify(artifact)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000])
def test_a_manifest_that_is_no_manifest_is_refused(artifact: Path, text: str) -> None:
    (artifact / layout.MANIFEST).write_text(text)
    with pytest.raises(VerifyError):
        verify(artifact)


def test_paths_outside_the_folder_are_not_followed(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    entry = {"sha256": "0" * 64, "bytes": 1}
    for name in ("../secret", str(tmp_path / "secret")):
        _reseal(artifact, lambda m, name=name: m["files"].update({name: entry}))
        with pytest.raises(VerifyError, match="at files: '.*secret' does not match"):
            verify(artifact)


def test_a_model_with_other_numbers_fails_the_replay_whatever_its_hashes_say(artifact: Path) -> None:
    model = onnx.load(artifact / "model.onnx")
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "classifier.weight")
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 1.01, weight.name))
    onnx.save(model, artifact / "model.onnx")
    data = (artifact / "model.onnx").read_bytes()
    import hashlib

    _reseal(
        artifact,
        lambda m: m["files"].update({"model.onnx": {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}}),
    )
    verify(artifact, replay=False)
    with pytest.raises(VerifyError, match=r"replay of model.onnx differs"):
        verify(artifact)
    result = run("verify", artifact)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr


def test_a_model_that_is_not_the_manifests_is_found(artifact: Path) -> None:
    _reseal(artifact, lambda m: m["inputs"][0].update(name="other"))
    with pytest.raises(VerifyError, match="the manifest says"):
        verify(artifact)


def test_external_data_outside_the_folder_is_refused(artifact: Path, tmp_path: Path) -> None:
    import hashlib

    (tmp_path / "weights").write_bytes((artifact / "model.onnx").read_bytes())
    model = onnx.load(artifact / "model.onnx")
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "classifier.weight")
    size = len(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "../weights"), ("offset", "0"), ("length", str(size))):
        tensor.external_data.add(key=key, value=value)
    data = model.SerializeToString()
    (artifact / "model.onnx").write_bytes(data)
    _reseal(
        artifact,
        lambda m: m["files"].update({"model.onnx": {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}}),
    )
    with pytest.raises(VerifyError, match="isn't a valid ONNX model"):
        verify(artifact)


def test_a_folder_that_does_not_belong_is_found(artifact: Path) -> None:
    (artifact / "more").mkdir()
    with pytest.raises(VerifyError, match="holds the folder more"):
        verify(artifact, replay=False)


def test_a_wider_tolerance_is_refused(artifact: Path) -> None:
    for key, value in (("max_rel_error", 0.1), ("rms_rel_error", 0.1), ("label_agreement", 0.5), ("dtype", "int8")):
        original = (artifact / layout.MANIFEST).read_bytes()
        _reseal(artifact, lambda m, key=key, value=value: m["parity"]["tolerance"].update({key: value}))
        with pytest.raises(VerifyError, match="parity/tolerance/dtype: |allows its replay .* more than segonnx does"):
            verify(artifact)
        (artifact / layout.MANIFEST).write_bytes(original)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_tolerance_of_another_type_lets_no_wrong_weights_pass(dtype: str, artifact: Path) -> None:
    """The weights are off by bfloat16's rounding, and so is the replay: the manifest says that this is allowed."""
    rng = np.random.default_rng(1)
    model = onnx.load(artifact / layout.MODEL)
    for weight in model.graph.initializer:
        values = onnx.numpy_helper.to_array(weight)
        if values.dtype == np.float32 and values.size > 8:
            near = (values * (1 + 0.004 * rng.standard_normal(values.shape))).astype(np.float32)
            weight.CopyFrom(onnx.numpy_helper.from_array(near, weight.name))
    (artifact / layout.MODEL).write_bytes(model.SerializeToString())
    reseal(artifact, rehash=True)
    with pytest.raises(VerifyError, match=r"the replay of model.onnx differs"):
        verify(artifact)
    allowed = {"dtype": dtype, **asdict(TOLERANCES["bfloat16"])}
    _reseal(artifact, lambda m: m["parity"].update(tolerance=allowed))
    with pytest.raises(VerifyError, match="parity/tolerance/dtype: |allows its replay .* more than segonnx does"):
        verify(artifact)
    done = run("verify", artifact)
    assert done.returncode == 1 and "\n" not in message(done)


@pytest.mark.parametrize("value", ["NaN", "1e999", '"\\ud800"', "[" * 900 + "]" * 900])
def test_what_is_not_quite_json_is_refused(artifact: Path, value: str) -> None:
    path = artifact / layout.MANIFEST
    path.write_text(path.read_text().replace('"seed": 0', f'"seed": {value}'))
    with pytest.raises(VerifyError):
        verify(artifact)


def test_test_data_that_lies_elsewhere_is_refused(artifact: Path) -> None:
    path = artifact / "test_data_set_0" / "output_0.pb"
    tensor = onnx.load_tensor(path)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    path.write_bytes(tensor.SerializeToString())
    with pytest.raises(VerifyError, match="in another file"):
        testdata.read(path)
    path.write_bytes(b"\xff" * 20)
    with pytest.raises(VerifyError, match="holds no tensor"):
        testdata.read(path)


def test_a_name_can_not_write_on_the_terminal(artifact: Path) -> None:
    (artifact / "two\n\x1b[2Jlines").touch()
    result = run("verify", artifact)
    assert result.returncode == 1
    assert "two\\n\\x1b[2Jlines" in result.stderr
    assert "\n" not in message(result)


def test_a_file_that_can_not_be_read_is_one_line(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("segonnx.artifacts.verify.sha256", refuse)
    with pytest.raises(VerifyError, match="can't be read: Permission denied"):
        verify(artifact, replay=False)


def test_somebody_elses_runner_replays_the_artifact_as_it_is(exports: Path, tmp_path: Path) -> None:
    """onnx.backend.test loads the folder and runs it in onnxruntime, with the tolerances of data.json."""
    (tmp_path / "cases").mkdir()
    shutil.copytree(exports / SMALL, tmp_path / "cases" / f"test_{SMALL}")
    cases = load_model_tests(str(tmp_path), "cases")
    assert [case.name for case in cases] == [f"test_{SMALL}"]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the runner makes its own cases too, and overflows in some
        runner = Runner(onnxruntime.backend.backend.OnnxRuntimeBackend, __name__)
    runner._add_model_test(cases[0], "Cases")
    name = f"test_{SMALL}_cpu"
    suite = runner.test_cases["OnnxBackendCasesModelTest"]
    getattr(suite(name), name)()
    # The same with a wrong expectation fails.
    logits = tmp_path / "cases" / f"test_{SMALL}" / "test_data_set_0" / "output_0.pb"
    tensor = onnx.load_tensor(logits)
    onnx.save_tensor(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) + 0.1, "logits"), logits)
    with pytest.raises(AssertionError):
        getattr(suite(name), name)()


def test_the_card_tells_what_matters(exports: Path) -> None:
    card = (exports / SMALL / "README.md").read_text()
    content = manifest.read(exports / SMALL)
    assert "The weights are random" in card
    assert f"{content['parameters']['count']:,}" in card
    assert "2.5M (reference benchmark)" in card
    code = card.split("```python\n")[1].split("```")[0]
    here = Path.cwd()
    os.chdir(exports / SMALL)
    try:
        exec(compile(code, "card", "exec"), {})
    finally:
        os.chdir(here)


def test_a_folder_of_artifacts_stands_for_all_of_them(artifact: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    for name in ("one", "two"):
        shutil.copytree(artifact, both / name)
    done = run("verify", both)
    assert done.returncode == 0, done.stderr
    assert [line.partition(": OK")[0] for line in done.stdout.splitlines()] == [str(both / "one"), str(both / "two")]
    (both / "two" / "README.md").write_text("changed")
    done = run("verify", both)
    assert done.returncode == 1
    assert "1 of 2 artifacts failed" in done.stderr


def _gone(artifact: Path) -> None:
    (artifact / "manifest.json").unlink()


def _dangling(artifact: Path) -> None:
    (artifact / "manifest.json").unlink()
    (artifact / "manifest.json").symlink_to("nowhere")


def _folder_dangling(artifact: Path) -> None:
    shutil.rmtree(artifact)
    artifact.symlink_to("nowhere")


def _linked(artifact: Path) -> None:
    artifact.rename(artifact.parent.parent / "aside")
    artifact.symlink_to(artifact.parent.parent / "aside")


def _emptied(artifact: Path) -> None:
    shutil.rmtree(artifact)
    artifact.mkdir()


def _folder_for_manifest(artifact: Path) -> None:
    (artifact / "manifest.json").unlink()
    (artifact / "manifest.json").mkdir()


@pytest.mark.parametrize(
    "harm", [_gone, _dangling, _folder_dangling, _linked, _emptied, _folder_for_manifest], ids=lambda one: one.__name__
)
def test_every_folder_of_a_folder_is_told_of(harm, artifact: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    both = tmp_path / "both"
    for name in "ab":
        shutil.copytree(artifact, both / name)
    (both / "notes.txt").write_text("no folder")
    harm(both / "b")
    done = run("verify", both)
    assert done.returncode == 1
    assert "1 of 2 artifacts failed" in done.stderr and f"{both / 'b'}: FAILED" in done.stderr
    assert done.stdout.startswith(f"{both / 'a'}: OK")


def test_a_scratch_folder_is_no_artifact(artifact: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    shutil.copytree(artifact, both / "a")
    with files.staging(both / "b"):
        assert inside(both) == [both / "a"]
    (both / ".hidden").mkdir()
    assert inside(both) == [both / ".hidden", both / "a"]


def test_a_very_deep_or_long_name_is_one_short_line(artifact: Path) -> None:
    for name in ("/".join(["a"] * 200_000), "a" * 5_000_000):
        _reseal(artifact, lambda m, name=name: m["files"].update({name: {"sha256": "0" * 64, "bytes": 1}}))
        done = run("verify", artifact)
        assert done.returncode == 1 and len(done.stderr) < 2100 and "\n" not in message(done)
        _reseal(artifact, lambda m, name=name: m["files"].pop(name))


def test_a_signature_of_any_size_is_not_taken(artifact: Path) -> None:
    with (artifact / "model.sig").open("wb") as file:
        file.truncate(6 * 2**30)  # it takes no place
    with pytest.raises(VerifyError, match="is larger than 16,777,216 bytes"):
        verify(artifact, replay=False)


def _foreign(model: onnx.ModelProto) -> None:
    model.opset_import.add(domain="com.microsoft", version=1)
    model.graph.node[0].domain = "com.microsoft"


def _foreign_within(model: onnx.ModelProto) -> None:
    """In the branch of an If that is never taken."""
    model.opset_import.add(domain="com.example", version=1)
    inner = onnx.helper.make_node("Own", [], ["inner"], domain="com.example")
    plain = onnx.helper.make_node("Constant", [], ["plain"], value_float=1.0)
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, []) for name in ("inner", "plain")]
    branches = [
        onnx.helper.make_graph([node], "b", [], [value]) for node, value in zip((inner, plain), values, strict=True)
    ]
    model.graph.initializer.append(onnx.helper.make_tensor("never", onnx.TensorProto.BOOL, [], [False]))
    model.graph.node.append(
        onnx.helper.make_node("If", ["never"], ["unused"], then_branch=branches[0], else_branch=branches[1])
    )


def _foreign_in_function(model: onnx.ModelProto) -> None:
    model.opset_import.add(domain="local", version=1)
    node = onnx.helper.make_node("Own", ["x"], ["y"], domain="com.example")
    opsets = [onnx.helper.make_opsetid("com.example", 1)]
    model.functions.append(onnx.helper.make_function("local", "F", ["x"], ["y"], [node], opsets))


@pytest.mark.parametrize("change", [_foreign, _foreign_within, _foreign_in_function], ids=lambda one: one.__name__)
def test_operators_that_are_not_onnx_s_own_are_refused(change, artifact: Path) -> None:  # type: ignore[no-untyped-def]
    model = onnx.load(artifact / "model.onnx")
    change(model)
    (artifact / "model.onnx").write_bytes(model.SerializeToString())
    reseal(artifact, rehash=True)
    with pytest.raises(VerifyError, match="aren't ONNX's own|isn't a valid ONNX model"):
        verify(artifact, replay=False)
    assert graphs.foreign_operators(model)


def test_a_function_that_is_written_out_is_no_foreign_operator(artifact: Path) -> None:
    model = onnx.load(artifact / "model.onnx")
    model.opset_import.add(domain="local", version=1)
    version = next(one.version for one in model.opset_import if not one.domain)
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    model.functions.append(
        onnx.helper.make_function("local", "F", ["x"], ["y"], [node], [onnx.helper.make_opsetid("", version)])
    )
    model.graph.node.append(onnx.helper.make_node("F", [model.graph.input[0].name], ["unused"], domain="local"))
    assert graphs.foreign_operators(model) == []


def test_weights_in_a_file_that_the_manifest_does_not_know_are_refused(artifact: Path) -> None:
    model = onnx.load(artifact / "model.onnx")
    tensor = max(model.graph.initializer, key=lambda one: len(one.raw_data))
    size = len(tensor.raw_data)
    (artifact / "weights").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "./weights"), ("offset", "0"), ("length", str(size))):
        tensor.external_data.add(key=key, value=value)
    (artifact / "model.onnx").write_bytes(model.SerializeToString())
    reseal(artifact, rehash=True)
    with pytest.raises(VerifyError, match="which the manifest doesn't know|isn't a valid ONNX model"):
        verify(artifact, replay=False)


@pytest.mark.parametrize(
    ("name", "found"), [(layout.OUTPUT, False), (layout.INPUT, False), (layout.MODEL, True), (layout.CARD, True)]
)
def test_who_does_not_read_the_test_data_need_not_hash_it(name: str, *, found: bool, artifact: Path) -> None:
    path = artifact / name
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    path.write_bytes(changed)
    with pytest.raises(VerifyError, match="was changed"):
        verify(artifact, replay=False)
    with pytest.raises(VerifyError, match="was changed"):
        verify(artifact, test_data=False)
    if found:
        with pytest.raises(VerifyError, match="was changed"):
            verify(artifact, replay=False, test_data=False)
    else:
        verify(artifact, replay=False, test_data=False)
        path.write_bytes(changed[:-1])
        with pytest.raises(VerifyError, match="bytes, the manifest says"):
            verify(artifact, replay=False, test_data=False)


def test_weights_do_not_hide_among_the_test_data(artifact: Path) -> None:
    model = onnx.load(artifact / "model.onnx")
    tensor = max(model.graph.initializer, key=lambda one: len(one.raw_data))
    size = len(tensor.raw_data)
    path = artifact / layout.TEST_DATA / "weights"
    path.write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", f"{layout.TEST_DATA}/weights"), ("offset", "0"), ("length", str(size))):
        tensor.external_data.add(key=key, value=value)
    (artifact / "model.onnx").write_bytes(model.SerializeToString())
    reseal(artifact, rehash=True)
    with pytest.raises(VerifyError, match="where test data is"):
        verify(artifact, replay=False, test_data=False)


def test_an_artifact_without_its_manifest_stays_one(artifact: Path) -> None:
    (artifact / "manifest.json").unlink()
    done = run("verify", artifact)
    assert done.returncode == 1
    assert "manifest.json" in done.stderr
