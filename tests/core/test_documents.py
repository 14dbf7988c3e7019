"""JSON of strangers: what is refused, and how."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from segonnx.core import documents
from segonnx.errors import InputError, VerifyError

SCHEMA = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}, "sizes": {"items": {}}}}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "isn't JSON"),
        (b"{", "isn't JSON"),
        (b"\xff\xfe{}", "isn't JSON"),
        (b"[" * 100_000, "isn't JSON"),
        (b"[NaN]", "NaN is no number"),
        (b"[-Infinity]", "-Infinity is no number"),
        (b" " * 101, "is larger than 100 bytes"),
    ],
)
def test_what_is_no_json_is_refused_in_one_line(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(data)
    limit = 100 if len(data) == 101 else 10**6
    with pytest.raises(VerifyError, match=message) as caught:
        documents.read(tmp_path / "x.json", limit, error=VerifyError)
    assert str(caught.value).startswith(str(tmp_path / "x.json"))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_said() -> None:
    with pytest.raises(InputError, match="nowhere.json can't be read: No such file"):
        documents.read(Path("nowhere.json"), 100)


def test_a_file_at_its_bound_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps({"name": "x"}))
    size = (tmp_path / "x.json").stat().st_size
    assert documents.read(tmp_path / "x.json", size) == {"name": "x"}
    with pytest.raises(InputError, match="is larger than"):
        documents.read(tmp_path / "x.json", size - 1)


def test_the_first_misfit_is_named_and_cut() -> None:
    assert documents.misfit({"name": "x"}, SCHEMA) is None
    assert documents.misfit([], SCHEMA) == "its top: [] is not of type 'object'"
    wrong = documents.misfit({"name": ["line\nbreak" * 100]}, SCHEMA)
    assert wrong is not None
    assert wrong.startswith("name: ") and wrong.endswith("...") and len(wrong) < 220 and "\n" not in wrong
    with pytest.raises(VerifyError, match=r"the list doesn't fit its schema at its top: "):
        documents.require([], SCHEMA, "the list", error=VerifyError)
    documents.require({"name": "x"}, SCHEMA, "the list")
