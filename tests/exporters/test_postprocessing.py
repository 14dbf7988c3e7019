"""nnU-Net's postprocessing.pkl, of which no code is run."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nnunetv2.postprocessing.remove_connected_components import load_postprocess_save
from nnunetv2.postprocessing.remove_connected_components import (
    remove_all_but_largest_component_from_segmentation as keep_largest,
)

from segonnx.errors import InputError
from segonnx.exporters import postprocessing
from tests.conftest import message, run

pytestmark = pytest.mark.usefixtures("steps_here")


def written(tmp_path: Path, content: object, protocol: int = 4) -> Path:
    path = tmp_path / "postprocessing.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize(
    ("given", "labels"),
    [
        (1, [1]),
        (np.int64(300), [300]),
        (np.uint8(7), [7]),
        (np.dtype(">i4").type(5), [5]),
        ((1, 2), [1, 2]),
        ([np.int64(2), np.int64(1)], [1, 2]),
        ([(1, 2), 2, (3,)], [1, 2, 3]),
        ([[1, 2]], [1, 2]),
    ],
)
def test_what_nnunet_writes_is_read(given: object, labels: list[int], protocol: int, tmp_path: Path) -> None:
    path = written(tmp_path, ([keep_largest], [{"labels_or_regions": given}]), protocol)
    assert postprocessing.read(path) == [{"keep_largest_component": labels}]


def test_a_background_label_of_0_is_the_rule_and_no_step_is_none(tmp_path: Path) -> None:
    arguments = {"labels_or_regions": 1, "background_label": 0}
    assert postprocessing.read(written(tmp_path, ([keep_largest], [arguments]))) == [{"keep_largest_component": [1]}]
    assert postprocessing.read(written(tmp_path, ([], []))) == []


class _Runs:
    """Runs a command when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> Any:
        return self.reduced


class _Calls:
    """Calls nnU-Net's function when it is unpickled."""

    def __reduce__(self) -> Any:
        return keep_largest, (np.zeros(3), 1)


def _nested(depth: int) -> bytes:
    """A tuple in a tuple, and so on."""
    return b")" + b"\x85" * depth + b"."


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (([print], [{"labels_or_regions": 1}]), "builtins.print"),
        (([load_postprocess_save], [{"labels_or_regions": 1}]), "load_postprocess_save"),
        ((["keep"], [{"labels_or_regions": 1}]), "doesn't know"),
        (([keep_largest], []), "isn't a list"),
        ([keep_largest], "isn't a list"),
        ({"a": 1}, "isn't a list"),
        (([keep_largest], [{"labels_or_regions": 1, "background_label": 2}]), "background_label"),
        (([keep_largest], [{"labels_or_regions": 1, "connectivity": 1}]), "other arguments"),
        (([keep_largest], [{}]), "other arguments"),
        (([keep_largest], [{"labels_or_regions": "1"}]), "something else"),
        (([keep_largest], [{"labels_or_regions": -1}]), "something else"),
        (([keep_largest], [{"labels_or_regions": 70000}]), "something else"),
        (([keep_largest], [{"labels_or_regions": True}]), "something else"),
        (([keep_largest], [{"labels_or_regions": []}]), "something else"),
        (([keep_largest], [{"labels_or_regions": [[[1]]]}]), "something else"),
        (([keep_largest], [{"labels_or_regions": np.float64(1)}]), "aren't whole"),
        (([keep_largest], [{"labels_or_regions": np.array([1])}]), "names numpy"),
        (([_Calls()], [{"labels_or_regions": 1}]), "isn't"),
    ],
)
def test_anything_else_is_refused_in_one_line(content: object, text: str, tmp_path: Path) -> None:
    path = written(tmp_path, content)
    with pytest.raises(InputError) as caught:
        postprocessing.read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert text in str(caught.value) or text == "isn't"


def test_no_code_is_run(tmp_path: Path) -> None:
    path = written(tmp_path, _Runs(os.mkdir, str(tmp_path / "made")))
    with pytest.raises(InputError, match="mkdir"):
        postprocessing.read(path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no pickle",
        pickle.dumps(([keep_largest], [{"labels_or_regions": 1}]))[:-20],
        _nested(50_000),
        b"\x80\x04r\xff\xff\xff\xff.",
        b"\x80\x04]r\xff\xff\xff\xff.",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
        bytes(2**20 + 1),
    ],
    ids=["empty", "text", "cut", "deep", "memo", "large memo", "huge bytes", "large"],
)
def test_a_damaged_file_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "postprocessing.pkl"
    path.write_bytes(data)
    with pytest.raises(InputError, match="postprocessing"):
        postprocessing.read(path)


def test_the_postprocessing_of_the_exported_folds_is_taken(tmp_path: Path) -> None:
    assert postprocessing.find(tmp_path, ["0"]) is None
    for folds in ("0", "0_1"):
        (tmp_path / f"crossval_results_folds_{folds}").mkdir()
    several = tmp_path / "crossval_results_folds_0_1" / "postprocessing.pkl"
    several.touch()
    assert postprocessing.find(tmp_path, ["0"]) == several
    own = tmp_path / "crossval_results_folds_0" / "postprocessing.pkl"
    own.touch()
    assert postprocessing.find(tmp_path, ["0"]) == own
    assert postprocessing.find(tmp_path, ["0", "1"]) == several
    with pytest.raises(InputError, match=r"several sets of folds \(0, 0_1\).*--postprocessing"):
        postprocessing.find(tmp_path, ["all"])
    (tmp_path / "postprocessing.pkl").touch()
    for path in (several, own):
        path.unlink()
    assert postprocessing.find(tmp_path, ["all"]) == tmp_path / "postprocessing.pkl"


def test_a_hostile_file_can_be_left_out(tmp_path: Path) -> None:
    from tests import handmade

    folder = handmade.write(tmp_path / "results", handmade.plans(), handmade.dataset())
    (folder / "crossval_results_folds_0").mkdir()
    hostile = folder / "crossval_results_folds_0" / "postprocessing.pkl"
    hostile.write_bytes(pickle.dumps(_Runs(os.mkdir, str(tmp_path / "made"))))
    done = run("export", "--nnunet", folder, "--out", tmp_path / "out")
    assert done.returncode == 2 and "is no postprocessing of nnU-Net's" in message(done), done.stderr
    assert not (tmp_path / "made").exists() and not (tmp_path / "out").exists()
    from segonnx.exporters import nnunet

    (found,) = nnunet.trained(folder, nnunet.Selection(postprocessing="none"))
    assert "postprocessing" not in found.spec.described["inference"]
    path = written(tmp_path, ([keep_largest], [{"labels_or_regions": 2}]))
    (found,) = nnunet.trained(folder, nnunet.Selection(postprocessing=str(path)))
    assert found.spec.described["inference"]["postprocessing"] == [{"keep_largest_component": [2]}]
