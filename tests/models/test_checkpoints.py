from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import struct
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from segonnx import models
from segonnx.core import subprocesses
from segonnx.core.subprocesses import Bounds
from segonnx.errors import CheckpointError, StageError
from segonnx.models import checkpoints, random_weights, weight_names
from segonnx.models.base import BuiltModel
from segonnx.sources import catalog
from segonnx.sources.catalog import ModelSpec


@pytest.fixture
def state(tiny: ModelSpec) -> dict[str, torch.Tensor]:
    module = models.build_empty(tiny).module
    random_weights.randomize(module, 7)
    return module.state_dict()


def _write(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize("wrapper", [None, *checkpoints.WRAPPERS])
def test_checkpoints_load_under_their_wrappers(
    wrapper: str | None, tiny: ModelSpec, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    network = models.build(tiny)
    checkpoints.load(network, _write(tmp_path / "w.pth", state if wrapper is None else {wrapper: state, "epoch": 4000}))
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.module.state_dict().items())


def test_safetensors_load(tiny: ModelSpec, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(state, tmp_path / "w.safetensors")
    network = models.build(tiny)
    checkpoints.load(network, tmp_path / "w.safetensors")
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.module.state_dict().items())


class Evil:
    """Its pickle makes a folder wherever it is run."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.proof),)


class Forged:
    """Pickled as a call of ``function``."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.call


def _objects(proof: Path) -> dict[str, Any]:
    """Objects that run code, or take all memory, wherever they are unpickled without care."""
    numpy_scalar, reconstruct = np.float64(1).__reduce__()[0], np.zeros(1).__reduce__()[0]
    objects, huge = (1, (1,), np.dtype("O"), False, [Evil(proof)]), (1, (10**14,), np.dtype("f8"), False, b"12")
    return {
        "at the top": Evil(proof),
        "in a nested key": {"state_dict": {"w": torch.ones(1)}, "meta": [{"deep": (Evil(proof),)}]},
        "as a tensor": {"state_dict": {"w": Evil(proof)}},
        "as a key": {"state_dict": {Evil(proof): torch.ones(1)}},
        "builtins": Forged(eval, f"__import__('os').mkdir({str(proof)!r})"),
        "getattr": Forged(getattr, "", "format"),
        "subclass of an array": Forged(reconstruct, Evil, (0,), b"b"),
        "array of objects": Forged(reconstruct, np.ndarray, (0,), b"b", state=objects),
        "array of structures": np.zeros(2, "i4,O"),
        "array that is too large": Forged(reconstruct, np.ndarray, (0,), b"b", state=huge),
        "array of its size": Forged(np.ndarray, (10**14,)),
        "scalar of objects": Forged(numpy_scalar, np.dtype("O"), Evil(proof)),
        "scalar of bytes": Forged(numpy_scalar, np.dtype("f8"), b"123"),
    }  # fmt: skip


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("where", _objects(Path()))
def test_no_code_of_a_checkpoint_runs(where: str, legacy: bool, tmp_path: Path) -> None:
    proof = tmp_path / "it ran"
    torch.save(_objects(proof)[where], tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError) as caught:
        checkpoints.read(tmp_path / "w.pth")
    assert "\n" not in str(caught.value)
    assert not proof.exists()


def test_a_refusal_names_the_code_and_the_way_past(tmp_path: Path) -> None:
    path = _write(tmp_path / "w.pth", {"state_dict": {"w": torch.ones(1)}, "extra": Evil(tmp_path / "it ran")})
    with pytest.raises(CheckpointError, match=r"it needs posix\.mkdir, .*--trust-checkpoint"):
        checkpoints.read(path)
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Evil(tmp_path / "it ran")))
    with pytest.raises(CheckpointError, match="can't be read safely"):
        checkpoints.read(tmp_path / "plain.pth")
    assert not (tmp_path / "it ran").exists()
    assert list(checkpoints.read(path, trust=True).values) == ["w"]
    assert (tmp_path / "it ran").exists()


def test_code_that_is_left_out_of_trust_is_an_error_in_one_line(tmp_path: Path) -> None:
    path = _write(tmp_path / "w.pth", Forged(os.mkdir, "/proc/nowhere"))
    with pytest.raises(CheckpointError, match="can't be read: ") as caught:
        checkpoints.read(path, trust=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["w.safetensors", "w.bin"])
def test_a_header_whose_length_reads_like_a_pickle_is_safetensors_yet(name: str, tmp_path: Path) -> None:
    header = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'.ljust(0x0280)
    data = len(header).to_bytes(8, "little") + header + np.ones(2, np.float32).tobytes()
    assert data.startswith(b"\x80\x02")  # as pickles of torch do
    assert list(checkpoints.read(_file(tmp_path / name, data)).values) == ["w"]


@pytest.mark.parametrize("legacy", [False, True])
def test_what_trainers_keep_beside_the_weights_is_read(legacy: bool, tmp_path: Path) -> None:
    logging = {"dice": [np.float64(0.5), np.float32(0.25)], "epoch": np.int64(7), "ok": np.bool_(True)}
    content = {
        "network_weights": {"w": torch.ones(2)},
        "logging": logging,
        "curve": np.arange(6, dtype=">f4").reshape(2, 3),
        "columns": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "args": argparse.Namespace(lr=0.1, model="resnet18"),
        "device": torch.device("cuda:0"),
        "grad_scaler_state": None,
        "inference_allowed_mirroring_axes": (0, 1),
    }
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    read = checkpoints.content(tmp_path / "w.pth")
    assert read["logging"] == logging
    assert [type(value) for value in read["logging"]["dice"]] == [np.float64, np.float32]
    assert np.array_equal(read["curve"], content["curve"])  # type: ignore[arg-type]
    assert np.array_equal(read["columns"], content["columns"])  # type: ignore[arg-type]
    assert read["args"] == content["args"]
    assert read["inference_allowed_mirroring_axes"] == (0, 1)
    assert list(checkpoints.tensors(read, tmp_path)) == ["w"]


def test_names_of_an_older_numpy_are_read(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2), "epoch": np.float64(7), "curve": np.arange(3)}, tmp_path / "new.pth")
    with zipfile.ZipFile(tmp_path / "new.pth") as new, zipfile.ZipFile(tmp_path / "old.pth", "w") as old:
        for name in new.namelist():
            old.writestr(name, new.read(name).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    read = checkpoints.content(tmp_path / "old.pth")
    assert read["epoch"] == 7
    assert list(read["curve"]) == [0, 1, 2]


def test_zip_files_are_mapped(tmp_path: Path) -> None:
    path = _write(tmp_path / "w.pth", {"w": torch.ones(1000)})
    tensor = checkpoints.read(path).values["w"]
    assert str(path) in Path("/proc/self/maps").read_text()
    assert tensor.sum() == 1000


def _storage() -> torch.storage.TypedStorage:
    return torch.storage.TypedStorage(wrap_storage=torch.ones(4).untyped_storage(), dtype=torch.float32, _internal=True)


def _declared(path: Path, size: tuple[int, ...], stride: tuple[int, ...], **more: Any) -> Path:
    build = Forged(torch._utils._rebuild_tensor_v2, _storage(), 0, size, stride, False, OrderedDict())
    torch.save({"w": build, **more}, path)
    return path


def _zip_bomb(path: Path, *, level: int) -> Path:
    torch.save({"w": torch.ones(4)}, path.with_suffix(".small"))
    with zipfile.ZipFile(path.with_suffix(".small")) as small, zipfile.ZipFile(path, "w", level) as bomb:
        for name in small.namelist():
            more = b"0" * 2**26 if name.endswith("data.pkl") else b""
            bomb.writestr(name, small.read(name) + more)
    return path


def _overlapping(path: Path) -> Path:
    """Many entries of a directory that all lie on the same bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/data/0", b"0" * 2**16)
        archive.filelist *= 200
    return path


def _many_entries(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/" + "n" * 60000, b"")
        archive.filelist *= 300
    return path


def _safetensors(path: Path, entries: dict[str, Any], data: bytes = bytes(16), header: int | None = None) -> Path:
    text = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text) if header is None else header) + text + data)
    return path


def _entry(shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


def _zip(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "<xml/>")
    return path


def _tar(path: Path) -> Path:
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    return path


def _pickled(path: Path, data: bytes) -> Path:
    """A torch file with this pickle."""
    torch.save({"w": torch.ones(4)}, path.with_suffix(".small"))
    with zipfile.ZipFile(path.with_suffix(".small")) as small, zipfile.ZipFile(path, "w") as out:
        for name in small.namelist():
            out.writestr(name, data if name.endswith("data.pkl") else small.read(name))
    return path


def _link(path: Path, target: Path) -> Path:
    path.symlink_to(target)
    return path


def _pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def _file(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def _scripted(path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), path)
    return path


BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda p: p, "is not a file"),
    "a folder": (lambda p: p.parent, "is not a file"),
    "a pipe": (_pipe, "is not a file"),
    "a link to nowhere": (lambda p: _link(p, p.parent / "nowhere"), "is not a file"),
    "a device": (lambda p: _link(p, Path("/dev/zero")), "is not a file"),
    "empty": (lambda p: _file(p, b""), "is empty"),
    "text": (lambda p: _file(p, b"not weights\n"), "a text that begins with 'not weights'"),
    "a pointer of git-lfs": (
        lambda p: _file(p, b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"), "begins with 'version https"
    ),
    "bytes": (lambda p: _file(p, bytes(100)), "neither a torch file nor safetensors"),
    "a tar": (_tar, "neither a torch file nor safetensors"),
    "TorchScript": (_scripted, "is TorchScript, which holds code"),
    "a pickle": (lambda p: _file(p, pickle.dumps([1])), "can't be read safely"),
    "a truncated pickle": (lambda p: _file(p, b"\x80\x02"), "can't be read safely"),
    "a zip of something else": (_zip, "can't be read safely"),
    "compressed": (lambda p: _zip_bomb(p, level=zipfile.ZIP_DEFLATED), "its entries are compressed"),
    "overlapping entries": (_overlapping, "larger than the file"),
    "many entries": (_many_entries, "too many entries"),
    "a huge size": (lambda p: _declared(p, (10**12,), (1,)), "can't be read safely"),
    "a huge size in one place": (lambda p: _declared(p, (10**12,), (0,)), "larger than the data"),
    "huge strides": (lambda p: _declared(p, (2, 2), (10**12, 1)), "can't be read safely"),
    "a negative size": (lambda p: _declared(p, (-1,), (1,)), "can't be read safely"),
    "nested lists": (lambda p: _pickled(p, b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b"."), "holds no weights"),
    "nested tuples": (
        lambda p: _pickled(p, b"\x80\x02})" + b"\x85" * 10**6 + b"K\x01s."), "tuples in tuples without end"
    ),
    "tuples that are shared": (
        lambda p: _pickled(p, b"\x80\x02})" + b"q\0h\0\x86" * 200 + b"K\x01s."), "tuples in tuples without end"
    ),
    "a memo that isn't there": (lambda p: _pickled(p, b"\x80\x02h\x07."), "can't be read safely"),
    "a stack that is empty": (lambda p: _pickled(p, b"\x80\x02a."), "can't be read safely"),
    "a storage that isn't there": (
        lambda p: _pickled(
            p, b"\x80\x02(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x009X\x03\0\0\0cpuJ\xff\xff\xff\x7ftQ."
        ),
        "can't be read safely",
    ),
    "bytes by their number": (
        lambda p: _pickled(p, b"\x80\x02}X\x01\0\0\0wcbuiltins\nbytearray\n\x8a\x04\0\0\0\x70\x85Rs."),
        "bytes by their number",
    ),
    "bytes by the number that a tensor holds": (
        lambda p: _write(p, Forged(bytearray, torch.tensor(2 * 10**9))), "takes more than .* of memory: --max-memory"
    ),
    "a tensor by its size": (lambda p: _write(p, Forged(torch.Tensor, 10**10)), "takes more than .* of memory"),
    "a quantized tensor by its size": (
        lambda p: _write(
            p,
            Forged(
                torch._utils._rebuild_qtensor, _storage(), 0, (10**10,), (1,),
                (torch.per_tensor_affine, 1.0, 0), False, OrderedDict(),
            ),
        ),
        "can't be read safely",
    ),
    "another codec": (
        lambda p: _pickled(
            p, b"\x80\x02}X\x01\0\0\0wc_codecs\nencode\nX\x02\0\0\0\xc4\x80X\x08\0\0\0punycode\x86Rs."
        ),
        "another codec than latin1",
    ),
    "another codec that the memo gives": (
        lambda p: _pickled(
            p,
            b"\x80\x02}X\x08\0\0\0punycodeq\x010c_codecs\nencode\nq\x020"
            b"X\x01\0\0\0wh\x02X\x02\0\0\0\xc4\x80h\x01\x86Rs.",
        ),
        "another codec than latin1",
    ),
    "sparse": (lambda p: _write(p, {"w": torch.eye(3).to_sparse()}), "isn't a plain tensor"),
    "on no device": (lambda p: _write(p, {"w": torch.empty(3, device="meta")}), "isn't a plain tensor"),
    "no names": (lambda p: _write(p, {}), "holds no weights"),
    "a list": (lambda p: _write(p, [torch.ones(1)]), "holds no weights"),
    "a number": (lambda p: _write(p, 1), "holds no weights"),
    "no tensors": (lambda p: _write(p, {"state_dict": {"w": 1}}), "things that aren't tensors: w"),
    "text for safetensors": (lambda p: _file(p.with_suffix(".safetensors"), b"not weights"), "can't be read safely"),
    "an oversized header": (lambda p: _safetensors(p, {}, header=2**62), "can't be read safely"),
    "a header beyond the end": (lambda p: _safetensors(p, {}, header=2**20), "can't be read safely"),
    "overlapping tensors": (
        lambda p: _safetensors(p, {"a": _entry([4], 0, 16), "b": _entry([4], 0, 16)}), "can't be read safely"
    ),
    "tensors beyond the end": (lambda p: _safetensors(p, {"a": _entry([400], 0, 1600)}), "can't be read safely"),
    "shapes that overflow": (lambda p: _safetensors(p, {"a": _entry([2**62, 4], 0, 16)}), "can't be read safely"),
    "a gap": (lambda p: _safetensors(p, {"a": _entry([1], 0, 4), "b": _entry([1], 12, 16)}), "can't be read safely"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    make, message = BAD[kind]
    path = make(tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoints.read(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_bytes_are_read(tmp_path: Path) -> None:
    content = {"w": torch.ones(1), "bytes": b"a\xff", "array": bytearray(b"a\xff"), "none": bytearray()}
    assert checkpoints.content(_write(tmp_path / "w.pth", content)) == content


def _colliding(path: Path) -> Path:
    """A dict whose keys all have one hash: each is compared with all before it."""
    count, prime = 60_000, 2**61 - 1
    keys = [(i * prime).to_bytes(11, "little") for i in range(1, count)]
    return _pickled(path, b"\x80\x02}(" + b"".join(b"\x8a\x0b" + key + b"N" for key in keys) + b"u.")


def read_content(path: Path, bounds: Bounds | None, progress: subprocesses.Progress) -> None:
    checkpoints.content(path, bounds=bounds)


def test_reading_has_a_bound_on_its_time(tmp_path: Path) -> None:
    path = _colliding(tmp_path / "w.pth")
    with pytest.raises(StageError, match=r"reading w\.pth took more than 1 s: --timeout allows more"):
        subprocesses.call(read_content, path, Bounds(timeout=1.0))


def read_within(paths: list[tuple[Path, int]], trust: bool, progress: subprocesses.Progress) -> list[str]:
    """What becomes of each file within its bytes of memory, in a process that has no freed memory to take again."""
    found = []
    for path, memory in paths:
        try:
            found.append(str(len(checkpoints.content(path, trust, Bounds(memory=memory)))))
        except CheckpointError as error:
            found.append(str(error))
    return found


@pytest.mark.parametrize("trust", [False, True])
def test_reading_has_a_bound_on_its_memory(trust: bool, tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    large = _write(tmp_path / "large.pth", Forged(torch.Tensor, 5 * 10**7))
    many = _pickled(tmp_path / "many.pth", b"\x80\x02](" + b"}" * (2 * 10**6) + b"e.")
    good = _write(tmp_path / "good.pth", state)
    asked = [(large, 10**8), (many, 10**8), (good, 10**8), (large, 10**9)]
    *refused, known, numbers = subprocesses.call(read_within, asked, trust).value
    for path, said in zip((large, many), refused, strict=True):
        assert str(path) in said and "takes more than 0.1 GB of memory" in said
    assert (known, numbers) == (str(len(state)), str(5 * 10**7))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.999])
def test_truncated_files_are_refused(legacy: bool, kept: float, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    data = (tmp_path / "w.pth").read_bytes()
    (tmp_path / "w.pth").write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(CheckpointError, match="can't be read safely|isn't a file of torch"):
        checkpoints.read(tmp_path / "w.pth")


def test_a_file_without_permission_is_refused(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = _write(tmp_path / "w.pth", state)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("root reads every file")
    with pytest.raises(CheckpointError, match="Permission denied"):
        checkpoints.read(path)


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.", "ema.module.", "module.ema.module."],
)
def test_prefixes_of_wrapped_modules_go(prefix: str, tmp_path: Path) -> None:
    content = {f"{prefix}{name}": torch.ones(1) for name in ("a.weight", "module.bias")}
    assert list(checkpoints.read(_write(tmp_path / "w.pth", content)).values) == ["a.weight", "module.bias"]


def test_checkpoints_of_another_network_are_refused_in_one_line(
    tiny: ModelSpec, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    name = "seg_outputs.4.weight"
    with_nan = {**state, name: torch.full_like(state[name], float("nan"))}
    with_infinity = {**state, name: torch.full_like(state[name], float("inf"))}
    cases = {
        _write(tmp_path / "less.pth", {k: v for k, v in state.items() if k != name}): f"misses {name}",
        _write(tmp_path / "more.pth", {**state, "new.weight": torch.ones(1)}): "has unknown new.weight",
        _write(tmp_path / "other.pth", {**state, name: state[name][:3]}): f"other shapes for {name}",
        _write(tmp_path / "nan.pth", with_nan): f"{name} holds NaN",
        _write(tmp_path / "infinity.pth", with_infinity): f"{name} holds NaN or infinite",
    }
    for path, message in cases.items():
        with pytest.raises(CheckpointError, match=message) as caught:
            checkpoints.load(models.build(tiny), path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["stunet-tiny", "encoder-lcnet-100", "smp:segformer:mit_b0", "totalsegmentator"])
def test_saved_state_is_restored_to_the_last_tensor(name: str, tiny: ModelSpec, tmp_path: Path) -> None:
    spec = tiny if name == tiny.name else catalog.find(name)
    if name == "totalsegmentator":
        spec = replace(spec, options={"features": (4, 4, 4)})
    network = models.build(spec).finalized()
    checkpoints.save(network.module, tmp_path / "w.safetensors")
    restored = checkpoints.restore(spec, tmp_path / "w.safetensors").module
    expected = checkpoints.state(network.module)
    assert checkpoints.state(restored).keys() == expected.keys()
    for key, tensor in checkpoints.state(restored).items():
        assert torch.equal(tensor, expected[key]), key


class Net(torch.nn.Module):
    """A network whose code is importable where the tests run."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = torch.nn.Conv2d(3, 4, 1), torch.nn.Conv2d(4, 2, 1)


def _built() -> BuiltModel:
    return BuiltModel(Net())


def _wrapped(how: str, network: Net) -> Any:
    """What people save of a network besides its weights by name."""
    compiled: Any = torch.compile(network)
    averaged = torch.optim.swa_utils.AveragedModel(network)
    return {
        "module": network,
        "DataParallel": torch.nn.DataParallel(network),
        "under model": {"model": network, "epoch": 3, "ema": None},
        "under a name of their own": {"best_net": network, "epoch": 3},
        "average first": {"model": Net(), "ema": network},
        "state of a compiled one": {"state_dict": compiled.state_dict()},
        "average": averaged,
        "state of an average of a DataParallel": torch.optim.swa_utils.AveragedModel(
            torch.nn.DataParallel(network)
        ).state_dict(),
        "record of an average beside": {"ema": {"decay": 0.9, "shadow": []}, "state_dict": network.state_dict()},
    }[how]


@pytest.mark.parametrize("how", [
    "module", "DataParallel", "under model", "under a name of their own", "average first", "state of a compiled one",
    "average", "state of an average of a DataParallel", "record of an average beside",
])  # fmt: skip
def test_whole_modules_are_read_where_their_code_is_trusted(how: str, tmp_path: Path) -> None:
    network, built = Net(), _built()
    path = _write(tmp_path / "w.pth", _wrapped(how, network))
    checkpoints.load(built, path, trust=True)
    assert all(torch.equal(one, built.module.state_dict()[name]) for name, one in network.state_dict().items())


def test_whole_modules_stay_unread_without_trust(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="--trust-checkpoint loads it, and runs that code"):
        checkpoints.load(_built(), _write(tmp_path / "w.pth", Net()))


def test_code_that_cannot_be_imported_is_said(tmp_path: Path) -> None:
    data = b"\x80\x02cnowhere_at_all\nNet\n)\x81."
    with pytest.raises(
        CheckpointError, match=r"No module named 'nowhere_at_all'; .*PYTHONPATH names its folder"
    ) as caught:
        checkpoints.load(_built(), _pickled(tmp_path / "w.pth", data), trust=True)
    assert "\n" not in str(caught.value)


def _lightning(prefix: str, network: Net, **beside: torch.Tensor) -> dict[str, Any]:
    state = {f"{prefix}{name}": tensor for name, tensor in network.state_dict().items()}
    return {"state_dict": {**state, **beside}, "pytorch-lightning_version": "2.5.0", "epoch": 3}


BESIDE = {"criterion.weight": torch.ones(2), "val_dice.total": torch.zeros(())}


@pytest.mark.parametrize("prefix", ["model.", "net.", "_orig_mod.model.", "student.backbone.module."])
def test_a_network_is_found_under_its_prefix(prefix: str, tmp_path: Path) -> None:
    network, built = Net(), _built()
    path = _write(tmp_path / "w.ckpt", _lightning(prefix, network, **BESIDE))
    checkpoints.load(built, path)
    assert torch.equal(built.module.state_dict()["stem.weight"], network.stem.weight)
    found = weight_names.of_network(checkpoints.read(path).values, [network.state_dict()], path)
    assert found.note == f"the tensors under {prefix}, without criterion.weight, val_dice.total"


def test_a_network_that_is_there_twice_is_not_guessed(tmp_path: Path) -> None:
    network, other, built = Net(), Net(), _built()
    more = {f"teacher.{name}": tensor for name, tensor in other.state_dict().items()}
    path = _write(tmp_path / "w.ckpt", _lightning("student.", network, **more))
    with pytest.raises(CheckpointError, match=r"under student\. and teacher\.: --weights-prefix says which"):
        checkpoints.load(built, path)
    for prefix in ("teacher", "teacher."):
        checkpoints.load(built, path, prefix=prefix)
        assert torch.equal(built.module.state_dict()["head.weight"], other.head.weight)
    with pytest.raises(CheckpointError, match=r"no names that begin with aunt\.; its names begin with student\. "):
        checkpoints.load(built, path, prefix="aunt")


def test_a_prefix_takes_what_is_whole_and_leaves_out_what_is_no_tensor(tmp_path: Path) -> None:
    network, built = Net(), _built()
    path = _write(tmp_path / "w.ckpt", _lightning("net.", network, **{"metric.preds": []}))  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=r"aren't tensors: metric\.preds; its names begin with net\. \(4\)"):
        checkpoints.load(built, path)
    checkpoints.load(built, path, prefix="net")
    assert torch.equal(built.module.state_dict()["head.bias"], network.state_dict()["head.bias"])
    del network.head
    with pytest.raises(CheckpointError, match=r"it misses stem.* and 1 more; its names begin with net\. \(2\)"):
        checkpoints.load(built, _write(tmp_path / "less.ckpt", _lightning("net.", network)))
    more = _lightning("net.", Net(), **{"net.third.bias": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"has unknown third\.bias"):
        checkpoints.load(built, _write(tmp_path / "more.ckpt", more))
