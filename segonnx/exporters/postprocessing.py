"""nnU-Net's postprocessing, read from the pickle that ``nnUNetv2_find_best_configuration`` writes. None of it is run.

The pickle holds a list of functions and a list of their keyword arguments. One function is known, the only one that
nnU-Net writes; NumPy's numbers are read by classes of this file.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segonnx.errors import InputError, first_line
from segonnx.models import pickles

FILE = "postprocessing.pkl"
MAX_BYTES = 2**20
"""A larger pickle isn't read. nnU-Net's have a few hundred bytes for each label."""
MAX_LABEL = 65535

Steps = list[dict[str, list[int]]]
"""The entry ``inference.postprocessing`` of a manifest."""

_MODULE = "nnunetv2.postprocessing.remove_connected_components"
_KEEP_LARGEST = "remove_all_but_largest_component_from_segmentation"


class _Function:
    """Stands for nnU-Net's function. It can't be called."""


class _Dtype:
    """Stands for NumPy's type of whole numbers."""

    def __init__(self, code: object, *_: object) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[iu][1248]", code):
            raise ValueError("it holds numbers that aren't whole")
        self.signed = code[0] == "i"
        self.bytes = int(code[1])
        self.order = "<"

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|"):
            raise ValueError("it holds numbers of an unknown type")
        self.order = state[1]


def _number(dtype: object, data: object) -> int:
    """A number of NumPy's."""
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes) or len(data) != dtype.bytes:
        raise ValueError("it holds a damaged number")
    return int.from_bytes(data, "big" if dtype.order == ">" else "little", signed=dtype.signed)


_KNOWN: Mapping[tuple[str, str], object] = {
    (_MODULE, _KEEP_LARGEST): _Function(),
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "scalar"): _number,
    ("numpy._core.multiarray", "scalar"): _number,
}


class _Unpickler(pickle._Unpickler):
    """Python's own in Python, whose memory grows with the file alone; it finds what stands in ``_KNOWN``."""

    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) not in _KNOWN:
            raise ValueError(f"it names {module[:100]}.{name[:100]}, which nnU-Net's postprocessing doesn't")
        return _KNOWN[module, name]


def read(path: Path) -> Steps:
    """The steps of a postprocessing.

    Args:
        path: nnU-Net's postprocessing.pkl.

    Raises:
        InputError: the file can't be read, or holds anything else; no code of it was run.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise InputError(f"{path} is larger than {MAX_BYTES:,} bytes: it is no postprocessing of nnU-Net's")
    try:
        pickles.check(io.BytesIO(data))
        return _steps(_Unpickler(io.BytesIO(data)).load())
    except Exception as error:  # a damaged pickle fails in any way
        why = first_line(error) if str(error).strip() else type(error).__name__
        raise InputError(f"{path} is no postprocessing of nnU-Net's: {why}") from error


def _steps(content: object) -> Steps:
    if not isinstance(content, tuple | list) or len(content) != 2:
        raise ValueError("it isn't a list of functions and one of their arguments")
    functions, arguments = content
    if not isinstance(functions, list) or not isinstance(arguments, list) or len(functions) != len(arguments):
        raise ValueError("it isn't a list of functions and one of their arguments")
    if not all(isinstance(function, _Function) for function in functions):
        raise ValueError("it names a function that segonnx doesn't know")
    return [{"keep_largest_component": _labels(one)} for one in arguments]


def _labels(arguments: object) -> list[int]:
    """The labels whose largest component is kept: those of all labels and regions of a list count as one."""
    if not isinstance(arguments, dict) or not {"labels_or_regions"} <= arguments.keys() <= {
        "labels_or_regions", "background_label",
    }:  # fmt: skip
        raise ValueError("a function has other arguments than labels_or_regions")
    if arguments.get("background_label", 0) != 0:
        raise ValueError("a background_label other than 0 isn't supported")
    given = arguments["labels_or_regions"]
    flat: list[object] = []
    for item in given if isinstance(given, Sequence) else [given]:
        flat += item if isinstance(item, list | tuple) else [item]
    if not flat or not all(type(label) is int and 0 <= label <= MAX_LABEL for label in flat):
        raise ValueError("labels_or_regions holds something else than labels")
    return sorted({label for label in flat if type(label) is int})


def find(model: Path, folds: Sequence[str]) -> Path | None:
    """The postprocessing that nnU-Net determined for a configuration; None where it determined none.

    Args:
        model: the folder of one trainer and configuration.
        folds: those that are exported. Where several postprocessings are there, theirs is taken.

    Raises:
        InputError: several are there, and none is theirs.
    """
    own = model / FILE
    found = {path.parent.name.partition("_folds_")[2]: path for path in model.glob(f"crossval_results_folds_*/{FILE}")}
    return _chosen(found, folds, model) or (own if own.is_file() else None)


def find_for_ensemble(dataset: Path, models: Sequence[str], folds: Sequence[str]) -> Path | None:
    """The postprocessing that nnU-Net determined for an ensemble of configurations; None where it determined none.

    Args:
        dataset: the folder of the data set's results.
        models: the names of the folders TRAINER__PLANS__CONFIGURATION.
        folds: those that are exported.

    Raises:
        InputError: several are there, and none is of these folds.
    """
    found = {}
    for path in dataset.glob(f"ensembles/ensemble___*/{FILE}"):
        _, *named, ensembled = path.parent.name.split("___")
        if sorted(named) == sorted(models):
            found[ensembled] = path
    return _chosen(found, folds, dataset / "ensembles")


def _chosen(found: Mapping[str, Path], folds: Sequence[str], where: Path) -> Path | None:
    """That of these folds, or else the only one."""
    if (own := found.get("_".join(folds))) is not None:
        return own
    if len(found) > 1:
        names = ", ".join(sorted(found))
        raise InputError(
            f"{where} holds the postprocessing of several sets of folds ({names}): name one's {FILE}, "
            "or none, with --postprocessing"
        )
    return next(iter(found.values()), None)
