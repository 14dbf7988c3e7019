"""What came of the cases of a cohort: a file for each that is done, and a report with a line for each that ended."""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from segonnx._version import __version__
from segonnx.core import documents, files
from segonnx.errors import InputError, ResourceError, SegonnxError

FOLDER = ".segonnx"
"""The folder beside the label maps that holds what segonnx notes of them. Programs that read images pass over it."""
SCHEMA_VERSION = 1
MAX_BYTES = 2**24
"""A larger record isn't read."""
MAX_LINES = 10_000_000
"""A report with more lines isn't read."""

_BEGIN = b'{"schema_version": '
"""How each line of a report begins."""

Record = dict[str, Any]
"""What ``record.schema.json`` says."""
Recipe = dict[str, Any]
"""What decides on the labels of a case, beside its image: the digest of the artifact, and options."""
Status = Literal["done", "failed", "refused", "left"]


def new(case: str, status: Status, recipe: Recipe, **more: Any) -> Record:
    """A record of now.

    Args:
        case: The case's name.
        status: What came of it.
        recipe: How it was to be predicted.
        more: Further keys of ``record.schema.json``. None leaves a key out.
    """
    given = {key: value for key, value in more.items() if value is not None}
    return {
        "schema_version": SCHEMA_VERSION,
        "case": case,
        "status": status,
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": platform.node(),
        "segonnx": __version__,
        "recipe": recipe,
        **given,
    }


def described(path: Path, name: str) -> dict[str, Any]:
    """A file, as a record has it.

    Raises:
        OSError: It can't be read.
    """
    info = path.stat()
    return {"file": name, "bytes": info.st_size, "modified_ns": info.st_mtime_ns, "sha256": files.sha256(path)}


def path_of(target: Path, case: str) -> Path:
    """The file of a case that is done, in the folder of the label maps."""
    return target / FOLDER / "done" / f"{case}.json"


def write(target: Path, record: Record) -> None:
    """Write the file of a case that is done.

    Raises:
        ResourceError: It can't be written.
    """
    path = path_of(target, record["case"])
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, _line(record))


def read(target: Path, case: str) -> Record | None:
    """What is known of a case that was done; None where nothing is, or what is there is damaged."""
    with contextlib.suppress(SegonnxError):
        content = documents.read(path_of(target, case), MAX_BYTES)
        if _misfit(content) is None and content["status"] == "done":
            record: Record = content
            return record
    return None


def differs(record: Record, recipe: Recipe) -> str | None:
    """How a case that was done was predicted otherwise, in words; None where it was in the same way."""
    made = record["recipe"]
    if made["artifact"] != recipe["artifact"]:
        return f"made by another artifact ({made['artifact'][:12]})"
    if made["previous"] != recipe["previous"]:
        return "made with another first stage"
    if made["options"] != recipe["options"]:
        keys = sorted(key for key in made["options"].keys() | recipe["options"].keys()
                      if made["options"].get(key) != recipe["options"].get(key))  # fmt: skip
        return f"made with other options ({', '.join(keys)})"
    return None


def changed(record: Record, target: Path, inputs: Mapping[str, Path]) -> str | None:
    """What of a case's files isn't as it was when the case was done, in words; None where all of it is.

    Args:
        record: The case's record.
        target: The folder of the label maps.
        inputs: The files that it is predicted from now, by their names.
    """
    known = {entry["file"]: entry for entry in record.get("inputs", [])}
    if known.keys() != inputs.keys():
        return "made of other files"
    for name, path in inputs.items():
        if not _same(path, known[name]):
            return f"made before {name} was changed"
    for entry in record.get("outputs", []):
        if not _same(target / entry["file"], entry):
            return f"{entry['file']} was changed since"
    return None


def name_of(path: Path, target: Path) -> str:
    """What a record calls a file that was made: its place as seen from the folder of the label maps."""
    return Path(os.path.relpath(path, target)).as_posix()


def lacks(record: Record, target: Path, wanted: Iterable[Path]) -> str | None:
    """Which of the files that are wanted of a case was never made, in words; None where all were."""
    known = {entry["file"] for entry in record.get("outputs", [])}
    missing = [path for path in wanted if name_of(path, target) not in known]
    return f"made without {missing[0].name}" if missing else None


def _same(path: Path, entry: Mapping[str, Any]) -> bool:
    """Whether a file is the one that a record has. It is read where its time is another one, as a copy's is."""
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode) or info.st_size != entry["bytes"]:
            return False
        if info.st_mtime_ns == entry["modified_ns"]:
            return True
        return bool(files.sha256(path) == entry["sha256"])
    except OSError:
        return False


class Report:
    """The report of a cohort: a line of JSON for each case that ended. Several processes may append to it.

    Args:
        path: The file. What it holds stays.

    Attributes:
        known: The last record of each case that it holds.

    Raises:
        InputError: It is there, and no report of a cohort.
        ResourceError: It can't be written.
    """

    def __init__(self, path: Path) -> None:
        files.require_writable(path)
        self.path = path
        self.known: dict[str, Record] = {}
        if path.exists() and path.stat().st_size:
            self.known = load([path]).records

    def append(self, record: Record, cases: int) -> None:
        """Append a line, whole and on the disk. What a killed process left of a line is taken away first.

        Args:
            record: What came of a case.
            cases: How many cases the cohort has.

        Raises:
            ResourceError: It can't be written.
        """
        try:
            with self.path.open("r+b" if self.path.exists() else "x+b", buffering=0) as file, _alone(file):
                end = _mended(file)
                file.seek(end)
                data = _line(record | {"cases": cases}).encode()
                if file.write(data) != len(data):
                    file.truncate(end)
                    raise ResourceError(f"can't write {self.path}: the disk is full")
                os.fsync(file.fileno())
        except FileExistsError:  # another process was quicker
            self.append(record, cases)
        except OSError as error:
            raise ResourceError(f"can't write {self.path}: {error.strerror or error}") from error
        self.known[record["case"]] = record


@contextlib.contextmanager
def _alone(file: io.FileIO) -> Iterator[None]:
    """Hold the lock of an open file, where the system has such locks. It goes with the file."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)
    except (ImportError, OSError):
        pass
    yield


def _mended(file: io.FileIO) -> int:
    """Take a line that was cut away from the end of a report. The answer is where the file ends then."""
    end = file.seek(0, os.SEEK_END)
    begin = end
    while begin:
        size = min(begin, 1 << 16)
        file.seek(begin - size)
        at = (file.read(size) or b"").rfind(b"\n")
        if at >= 0:
            begin += at + 1 - size
            break
        begin -= size
    if begin < end:
        file.truncate(begin)
    return begin


@dataclass
class Cohort:
    """What reports tell.

    Attributes:
        records: The last record of each case. One that says that a case is done stays, whatever was tried later.
        cases: How many cases the cohort has, as far as is known.
        cut: Lines that killed processes left halves of.
    """

    records: dict[str, Record] = field(default_factory=dict)
    cases: int = 0
    cut: int = 0


def load(paths: Sequence[Path]) -> Cohort:
    """Read reports of a cohort.

    Raises:
        InputError: A file can't be read, or is no such report.
    """
    found = Cohort()
    for path in paths:
        try:
            with files.opened(path) as file:
                _load(file, path, found)
        except OSError as error:
            raise InputError(f"{path} can't be read: {error.strerror or error}") from error
    return found


def _load(file: io.BufferedReader, path: Path, found: Cohort) -> None:
    number = 0
    while line := file.readline(MAX_BYTES + 1):
        number += 1
        if number > MAX_LINES:
            raise InputError(f"{path} has more than {MAX_LINES:,} lines")
        where = f"{path}, line {number},"
        try:
            content = documents.parse(line, where, MAX_BYTES)
        except InputError:
            if line.endswith(b"\n") or not (line.startswith(_BEGIN) or _BEGIN.startswith(line)):
                raise
            found.cut += 1  # the last line
            continue
        if (wrong := _misfit(content)) is not None:
            raise InputError(f"{where} is no line of a report of a cohort: {wrong}")
        found.cases = max(found.cases, content.get("cases", 0))
        before = found.records.get(content["case"])
        if before is None or before["status"] != "done" or content["status"] == "done":
            found.records[content["case"]] = content
    found.cases = max(found.cases, len(found.records))


def _line(record: Record) -> str:
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"


def _misfit(content: object) -> str | None:
    return documents.misfit(content, documents.packaged("segonnx.predict", "record.schema.json"), _contradiction)


def _contradiction(record: Record) -> str | None:
    try:
        datetime.fromisoformat(record["ended"])
    except ValueError:
        return f"ended: {record['ended']} is no time"
    return None
