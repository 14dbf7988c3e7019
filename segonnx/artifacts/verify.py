"""Is an artifact what was exported, to the last byte, and does it still compute what it should?"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from segonnx import process
from segonnx.artifacts import manifest, testdata
from segonnx.artifacts.manifest import Manifest
from segonnx.errors import VerifyError
from segonnx.numeric import Difference, Tolerance, compare
from segonnx.process import Progress

MODEL = "model.onnx"


@dataclass(frozen=True)
class Verified:
    """What was found of a whole artifact.

    Attributes:
        manifest: its content.
        files: how many files were hashed.
        bytes: their size.
        difference: of the replay from the recorded logits; None where it wasn't asked for.
    """

    manifest: Manifest
    files: int
    bytes: int
    difference: Difference | None


def verify(folder: Path, *, replay: bool = True, threads: int = 0, progress: Progress = process.silent) -> Verified:
    """Check an artifact's schema, files, hashes and graph, and replay its test data in ONNX Runtime.

    Args:
        folder: the artifact.
        replay: run the model too.
        threads: of the replay; 0 leaves the number to the runtime.
        progress: told of each step.

    Raises:
        VerifyError: what is wrong, in one line.
    """
    if folder.is_symlink():
        raise VerifyError(f"{folder} is a link")
    progress("reading the manifest")
    content = manifest.read(folder)
    _check_files(folder, content, progress)
    # The checker and the runtime are C++ that reads a file which may be hostile: not in this process.
    process.call(_check_graph, folder, content, progress=progress)
    difference = None
    if replay:
        difference = process.call(_replay, folder, threads, progress=progress).value
        wanted = content["parity"]["tolerance"]
        tolerance = Tolerance(wanted["max_rel_error"], wanted["rms_rel_error"], wanted["label_agreement"])
        if not difference.within(tolerance):
            raise VerifyError(
                f"{folder}: the replay differs from the recorded logits: {difference}; allowed: {tolerance}"
            )
    files = content["files"]
    return Verified(content, len(files), sum(entry["bytes"] for entry in files.values()), difference)


def _check_files(folder: Path, content: Manifest, progress: Progress) -> None:
    wanted = content["files"]
    found = set(_walk(folder)) - {manifest.NAME}
    for name in sorted(found - wanted.keys()):
        raise VerifyError(f"{folder} holds {name}, which the manifest doesn't know")
    for name in sorted(wanted.keys() - found):
        raise VerifyError(f"{folder} lacks {name}")
    for name, entry in wanted.items():
        path = folder / name
        if path.stat().st_size != entry["bytes"]:
            raise VerifyError(f"{path} has {path.stat().st_size:,} bytes, the manifest says {entry['bytes']:,}")
    for name, entry in wanted.items():
        progress(f"hashing {name}")
        digest = sha256(folder / name)
        if digest != entry["sha256"]:
            raise VerifyError(
                f"{folder / name} was changed: its SHA-256 is {digest[:16]}..., not {entry['sha256'][:16]}..."
            )


def _walk(folder: Path, prefix: str = "") -> list[str]:
    """The relative paths of all files below ``folder``; links and special files are refused."""
    names = []
    with os.scandir(folder) as scan:
        entries = sorted(scan, key=lambda entry: entry.name)
    for entry in entries:
        info = entry.stat(follow_symlinks=False)
        name = prefix + entry.name
        if stat.S_ISDIR(info.st_mode):
            names += _walk(Path(entry.path), f"{name}/")
        elif not stat.S_ISREG(info.st_mode):
            raise VerifyError(f"{entry.path} is a link or a special file")
        elif info.st_nlink != 1:
            raise VerifyError(f"{entry.path} is a hard link: its bytes can be changed from elsewhere")
        else:
            names.append(name)
    return names


def _check_graph(folder: Path, content: Manifest, progress: Progress) -> None:
    import onnx

    progress("checking the graph")
    path = folder / MODEL
    try:
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:
        raise VerifyError(f"{path} isn't a valid ONNX model: {str(error).strip().splitlines()[0]}") from error
    for what, declared, values in (
        ("inputs", content["inputs"], model.graph.input),
        ("outputs", content["outputs"], model.graph.output),
    ):
        found = [describe(value) for value in values]
        if found != declared:
            raise VerifyError(f"{path} has the {what} {found}, the manifest says {declared}")


def describe(value: onnx.ValueInfoProto) -> dict[str, object]:  # type: ignore[name-defined]  # noqa: F821
    """Name, shape and type of a graph's input or output, as in the manifest."""
    import onnx

    tensor = value.type.tensor_type
    shape = [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return {"name": value.name, "shape": shape, "dtype": dtype}


def _replay(folder: Path, threads: int, progress: Progress) -> Difference:
    import onnxruntime

    progress("loading the model in ONNX Runtime")
    data = folder / testdata.FOLDER
    x = testdata.read(data / "input_0.pb")
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(folder / MODEL), settings, providers=["CPUExecutionProvider"])
        progress("replaying the test data")
        logits = session.run(None, {session.get_inputs()[0].name: x})[0]
    except Exception as error:
        raise VerifyError(f"{folder} doesn't run: {str(error).strip().splitlines()[0]}") from error
    progress("comparing")
    return compare(testdata.read(data / "output_0.pb"), logits)


def sha256(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
