"""A zip file of ``nnUNetv2_export_model_to_zip``: what an export needs of it, unpacked. The file isn't trusted."""

from __future__ import annotations

import re
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from segonnx.core import zips
from segonnx.core.files import require_space
from segonnx.errors import InputError, SegonnxError
from segonnx.sources.nnunet.plans import DATASET, MAX_BYTES, PLANS

MAX_GROWTH = 100
"""How many times its size a zip file may grow. Weights stay below; zeros and overlapping entries don't."""
MAX_DEPTH = 8
"""How many folders deep an entry may lie; nnU-Net's lie four deep."""
BLOCK = 2**20
NOTES = (PLANS, DATASET, "inference_information.json", "postprocessing.pkl", "postprocessing.json")
"""The small files that say how a network is used."""
_CHECKPOINT = re.compile(r"(.+/)?fold_(\d+|all)/checkpoint_[a-z]+\.pth")


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """The folder in a zip file, which is there as long as the block runs: a data set's, or a trained one.

    Raises:
        InputError: the file is no zip file, a damaged one, or one that no nnU-Net wrote.
        ResourceError: there is too little disk.
    """
    with tempfile.TemporaryDirectory(prefix="segonnx-") as name:
        root = Path(name) / (path.stem or "archive")
        root.mkdir()
        with zips.opened(path) as (archive, size), zips.reading(path, "unpacked"):
            _extract(archive, path, size, root)
        try:
            yield _innermost(root)
        except SegonnxError as error:
            # The user knows the zip file, and not where it was unpacked.
            raise type(error)(str(error).replace(str(root), str(path))) from error


def _extract(archive: zipfile.ZipFile, path: Path, size: int, root: Path) -> None:
    """Write what is needed below ``root``; nothing else is written."""
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    names = [entry.filename for entry in entries]
    if len(set(names)) != len(names):
        raise InputError(f"{path} holds files of the same name")
    chosen = [entry for entry in entries if _is_needed(entry.filename)]
    for entry in chosen:
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFREG) or not _is_safe(entry.filename):
            raise InputError(f"{path}: {entry.filename[:200]!r} isn't a plain file within the folder")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or entry.flag_bits & 1:
            raise InputError(f"{path}: {entry.filename[:200]} is compressed or locked in a strange way")
        if not entry.filename.endswith(".pth") and entry.file_size > MAX_BYTES:
            raise InputError(f"{path}: {entry.filename[:200]} is larger than {MAX_BYTES:,} bytes")
    total = sum(entry.file_size for entry in chosen)
    if total > MAX_GROWTH * size:
        raise InputError(f"{path} would grow more than {MAX_GROWTH}-fold: a bomb")
    if not any(entry.filename.endswith(PLANS) for entry in chosen):
        raise InputError(f"{path} holds no {PLANS}: nnUNetv2_export_model_to_zip wrote no such file")
    require_space(total, root, f"unpacking {path}", "free some space, or set TMPDIR to a folder that has it")
    for entry in chosen:
        target = root / entry.filename
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(entry) as source, target.open("xb") as file:
            shutil.copyfileobj(source, file, BLOCK)


def _is_needed(name: str) -> bool:
    return PurePosixPath(name).name in NOTES or _CHECKPOINT.fullmatch(name) is not None


def _is_safe(name: str) -> bool:
    parts = name.split("/")
    strange = any(part in ("", ".", "..") or not part.isprintable() or set(part) & set('\\:*?"<>|') for part in parts)
    return len(parts) <= MAX_DEPTH and not strange


def _innermost(root: Path) -> Path:
    """The folder that holds a choice: of data sets, of trained folders, or of a trained folder's folds."""
    folder = root
    while not (folder / PLANS).exists():
        children = [child for child in folder.iterdir() if child.is_dir()]
        if len(children) != 1 or (children[0] / PLANS).exists():
            break
        folder = children[0]
    return folder
