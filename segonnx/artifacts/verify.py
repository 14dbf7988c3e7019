"""Is an artifact what was exported, to the last byte, and does it still compute what it should?"""

from __future__ import annotations

import bisect
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy.typing as npt

from segonnx.artifacts import compounds, graph_sessions, graphs, layout, manifest, replays, signature, testdata
from segonnx.artifacts.layout import MODEL
from segonnx.artifacts.manifest import Manifest
from segonnx.core import file_runs, files, subprocesses
from segonnx.core.file_runs import Replayed
from segonnx.core.files import sha256
from segonnx.core.ort_session import SessionSettings, load_seconds, model_bytes, open_session, run_seconds
from segonnx.core.subprocesses import Bounds, Progress
from segonnx.core.tolerances import (
    TOLERANCES,
    Agreement,
    Difference,
    Tolerance,
    compare,
    compare_labels,
    compare_values,
)
from segonnx.errors import VerifyError, first_line


@dataclass(frozen=True)
class Verified:
    """What was found of an intact artifact.

    Attributes:
        manifest: the content of its manifest.
        files: how many files were hashed.
        bytes: the size of all files.
        weights: the files beside ``model.onnx`` that hold weights of its graph; an ensemble and a task have none here.
        difference: how far the replay is from the recorded logits or labels, of the graph, or of the member, that is
            farthest; None where it wasn't asked for.
        also: the same in other runtimes, of those that were asked for.
    """

    manifest: Manifest
    files: int
    bytes: int
    weights: tuple[str, ...]
    difference: Difference | Agreement | None
    also: tuple[Replayed, ...] = ()


def verify(
    folder: Path,
    *,
    replay: bool = True,
    test_data: bool = True,
    also: Sequence[str] = (),
    threads: int = 0,
    bounds: Bounds | None = None,
    key: Path | None = None,
    progress: Progress = subprocesses.silent,
) -> Verified:
    """Check an artifact's schema, files, hashes and graph, and replay its test data in ONNX Runtime.

    Args:
        folder: the artifact.
        replay: run the model too.
        test_data: hash the test data too, which may be far larger than the model; False for who never reads it. Its
            names and sizes are checked all the same.
        also: replay in these, too: names of ``file_runs``.
        threads: threads of the replay; 0 leaves the number to the runtime.
        key: the public key of who must have signed it, in PEM.
        bounds: what the check of the graph and the replay may take; None lets their size and the machine decide.
        progress: callback that gets the name of each step.

    Raises:
        VerifyError: what is wrong, in one line.
        InputError: the key can't be used.
    """
    if folder.is_symlink():
        raise VerifyError(f"{folder} is a link")
    progress("reading the manifest")
    try:
        content = manifest.read(folder)
        _check_files(folder, content, progress, test_data=test_data or replay)
    except OSError as error:
        raise VerifyError(f"{error.filename or folder} can't be read: {error.strerror}") from error
    if key is not None:
        progress("checking the signature")
        signature.check(folder, key)
    networks = compounds.members(folder, content) if manifest.is_compound(content) else {folder: content}
    differences: list[Difference | Agreement] = []
    others: list[Replayed] = []
    # The checker and the runtime are C++ that reads files which may be hostile: not in this process.
    mapped = sum(model_bytes(path / MODEL) for path in networks)
    bound = replace(bounds or Bounds(), mapped=mapped)
    weights = subprocesses.call(_check_graphs, networks, progress=progress, bounds=bound).value
    for path, described in networks.items():
        tolerance = _tolerance(path, described)
        own = replace(bound, mapped=model_bytes(path / MODEL))
        if replay:
            replayed = subprocesses.call(_replay, path, described, threads, own.timeout, progress=progress, bounds=own)
            for model, difference in replayed.value.items():
                if not difference.within(tolerance):
                    what = described["outputs"][0].get("kind", "logits")
                    raise VerifyError(
                        f"{path}: the replay of {model} differs from the recorded {what}: {difference}; "
                        f"allowed: {tolerance}"
                    )
                differences.append(difference)
            for runtime in also:
                elsewhere = subprocesses.call(
                    replays.replay, path, described, runtime, tolerance, threads, own.timeout, progress=progress,
                    bounds=own,
                )  # fmt: skip
                others.append(elsewhere.value)
    entries = content["files"].values()
    farthest = min(differences, key=lambda one: one.label_agreement, default=None)
    size = sum(entry["bytes"] for entry in entries)
    return Verified(content, len(entries), size, weights.get(folder, ()), farthest, file_runs.farthest(others))


def inside(folder: Path) -> list[Path]:
    """The artifacts in a folder that only holds artifacts, as the one of the graphs without rewrites; or itself.

    Where one of its folders is an artifact, all are taken for artifacts: one that lacks its manifest is damaged.

    Raises:
        VerifyError: it can't be read.
    """
    try:
        if os.path.lexists(folder / layout.MANIFEST) or os.path.lexists(folder / layout.MODEL):
            return [folder]
        children = sorted(child for child in folder.iterdir() if child.is_dir() or not child.exists())
        held = [child for child in children if not files.is_scratch(child)]
        return held if any(os.path.lexists(child / layout.MANIFEST) for child in held) else [folder]
    except OSError as error:
        raise VerifyError(f"{folder} can't be read: {error.strerror}") from error


def _tolerance(folder: Path, content: Manifest) -> Tolerance:
    """What the manifest allows the replay; it may allow no more than segonnx does."""
    wanted = content["parity"]["tolerance"]
    tolerance = Tolerance(wanted["max_rel_error"], wanted["rms_rel_error"], wanted["label_agreement"])
    ours = TOLERANCES.get(wanted["dtype"])
    if (
        ours is None
        or (wanted["dtype"] == "int8") != ("quantization" in content)  # what computes in float32 is held to that
        or tolerance.max_rel_error > ours.max_rel_error
        or tolerance.rms_rel_error > ours.rms_rel_error
        or tolerance.label_agreement < ours.label_agreement
    ):
        raise VerifyError(f"{folder} allows its replay {tolerance}, more than segonnx does")
    return tolerance


def _check_files(folder: Path, content: Manifest, progress: Progress, *, test_data: bool) -> None:
    wanted = content["files"]
    own = {layout.MANIFEST, layout.SIGNATURE}
    found = set(_walk(folder, own | wanted.keys()))
    if layout.SIGNATURE in found and (folder / layout.SIGNATURE).stat().st_size > manifest.MAX_BYTES:
        raise VerifyError(f"{folder / layout.SIGNATURE} is larger than {manifest.MAX_BYTES:,} bytes")
    for name in sorted(wanted.keys() - (found - own)):
        raise VerifyError(f"{folder} lacks {name}")
    for name, entry in wanted.items():
        path = folder / name
        if path.stat().st_size != entry["bytes"]:
            raise VerifyError(f"{path} has {path.stat().st_size:,} bytes, the manifest says {entry['bytes']:,}")
    for name, entry in wanted.items():
        if not test_data and _is_test_data(name):
            continue
        progress(f"hashing {name}")
        digest = sha256(folder / name)
        if digest != entry["sha256"]:
            raise VerifyError(
                f"{folder / name} was changed: its SHA-256 is {digest[:16]}..., not {entry['sha256'][:16]}..."
            )


def _is_test_data(name: str) -> bool:
    """Whether a file of an artifact, or of a member of one, lies in the folder of the test data."""
    return layout.TEST_DATA in PurePosixPath(name).parts[:-1]


def _walk(folder: Path, known: set[str]) -> Iterator[str]:
    """The relative paths of all files below ``folder``; what isn't known, links and special files are refused."""
    ordered = sorted(known)
    left = [""]
    while left:
        prefix = left.pop()
        with os.scandir(folder / prefix) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
        for entry in entries:
            info = os.lstat(entry.path)  # what the entry itself knows has no count of links on Windows
            name = prefix + entry.name
            if stat.S_ISDIR(info.st_mode):
                after = bisect.bisect(ordered, f"{name}/")
                if not (after < len(ordered) and ordered[after].startswith(f"{name}/")):
                    raise VerifyError(f"{folder} holds the folder {name}, which the manifest doesn't know")
                left.append(f"{name}/")
            elif not stat.S_ISREG(info.st_mode):
                raise VerifyError(f"{entry.path} is a link or a special file")
            elif name not in known:
                raise VerifyError(f"{folder} holds {name}, which the manifest doesn't know")
            elif info.st_nlink != 1:
                raise VerifyError(f"{entry.path} is a hard link: its bytes can be changed from elsewhere")
            else:
                yield name


def _check_graphs(networks: Mapping[Path, Manifest], progress: Progress) -> dict[Path, tuple[str, ...]]:
    """Check the graphs of networks, in these folders, against their manifests.

    Returns:
        By folder, the names of the files of its first graph's weights.
    """
    found = {}
    for folder, content in networks.items():
        progress("checking the graph")
        found[folder], *_ = [_check_graph(folder / model, content) for model in manifest.models(content)]
    return found


def _check_graph(path: Path, content: Manifest) -> tuple[str, ...]:
    """Check a graph against the manifest. The result is the names of the files of its weights."""
    import onnx

    found: dict[str, list[dict[str, object]]] = {}
    try:
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(str(path), load_external_data=False)
        found["inputs"] = [describe(value) for value in model.graph.input]
        found["outputs"] = [describe(value) for value in model.graph.output]
        foreign, weights = graphs.foreign_operators(model), graphs.external_files(model)
    except Exception as error:
        raise VerifyError(f"{path} isn't a valid ONNX model: {first_line(error, 500)}") from error
    for what, values in found.items():
        said = [{key: value[key] for key in ("name", "shape", "dtype")} for value in content[what]]
        if values != said:
            raise VerifyError(f"{path} has the {what} {values}, the manifest says {said}")
    dtype = str(found["outputs"][0]["dtype"])
    if manifest.gives_labels(content) != dtype.startswith("uint"):
        raise VerifyError(f"{path} gives {dtype}, the manifest says {'labels' if dtype == 'float32' else 'logits'}")
    if foreign:
        raise VerifyError(f"{path} has operators that aren't ONNX's own: {', '.join(foreign[:3])}")
    if unknown := sorted(set(weights) - content["files"].keys()):
        raise VerifyError(f"{path} has weights in {unknown[0]!r}, which the manifest doesn't know")
    if misplaced := [name for name in weights if _is_test_data(name)]:
        raise VerifyError(f"{path} has weights in {misplaced[0]!r}, where test data is")
    return tuple(weights)


def describe(value: onnx.ValueInfoProto) -> dict[str, object]:  # type: ignore[name-defined]  # noqa: F821
    """Name, shape and type of a graph's input or output, as in the manifest."""
    import onnx

    tensor = value.type.tensor_type
    shape = [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return {"name": value.name, "shape": shape, "dtype": dtype}


def _replay(
    folder: Path, content: Manifest, threads: int, timeout: float | None, progress: Progress
) -> dict[str, Difference | Agreement]:
    """How far what each graph gives for the test data is from what is recorded."""
    import onnxruntime  # noqa: F401 (its import isn't the graph's time)

    given = [testdata.read(folder / layout.input_file(number)) for number in range(len(content["inputs"]))]
    expected, *others = [
        testdata.read(folder / layout.output_file(number)) for number in range(len(content["outputs"]))
    ]
    positions = manifest.positions(content, given[0])
    differences: dict[str, Difference | Agreement] = {}
    for model in manifest.models(content):
        exactly = model == MODEL and content["parity"]["runtime"] == graph_sessions.STABLE_NORM_RUNTIME
        found, *more = _run(folder / model, given, positions, threads, timeout, progress, exactly=exactly)
        progress("comparing")
        for number, (wanted, had) in enumerate(zip(others, more, strict=True), 1):
            _require_alike(wanted, had, f"{folder}: output {number} of {model}")
        if manifest.gives_labels(content):
            differences[model] = compare_labels(expected, found)
        else:
            differences[model] = compare(expected, found, rule=manifest.given_rule(content))
    return differences


def _run(
    model: Path,
    given: list[npt.NDArray[Any]],
    positions: int,
    threads: int,
    timeout: float | None,
    progress: Progress,
    *,
    exactly: bool,
) -> list[npt.NDArray[Any]]:
    """What a graph gives for its inputs, the first of which has so many pixels or voxels.

    It runs as export ran it: ``exactly`` with norms that lose no digits.

    Raises:
        VerifyError: it doesn't load, or doesn't run.
    """
    progress(f"loading {model.name} in ONNX Runtime")
    try:
        with subprocesses.limited(load_seconds(model, timeout), "loading the model"):
            settings = SessionSettings(threads=threads)
            session = graph_sessions.open_plain(model, settings)[0] if exactly else open_session(model, settings)
        progress(f"replaying the test data in {model.name}")
        with subprocesses.limited(run_seconds(model, positions, timeout), "the replay"):
            names = [value.name for value in session.get_inputs()]
            found: list[npt.NDArray[Any]] = session.run(None, dict(zip(names, given, strict=True)))
    except Exception as error:
        raise VerifyError(f"{model} doesn't run: {first_line(error, 500)}") from error
    return found


def _require_alike(expected: npt.NDArray[Any], found: npt.NDArray[Any], what: str) -> None:
    """Compare an output that isn't the segmentation with what was recorded.

    Raises:
        VerifyError: it is another.
    """
    difference = compare_values(expected, found)
    if difference is None or not difference.within(TOLERANCES["float32"]):
        raise VerifyError(f"{what} differs from the recorded one")
