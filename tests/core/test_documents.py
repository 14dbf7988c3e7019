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
        (b"[1e999]", "a number too large for a float"),
        (b"[-1e999]", "a number too large for a float"),
        (b'{"seed": 9223372036854775808}', "a whole number of more than 64 bits"),
        (b"[" + b"9" * 400 + b"]", "a whole number of more than 64 bits"),
        (b"[" + b"9" * 5000 + b"]", "isn't JSON"),
        (b'["\\ud800"]', "half a character"),
        (b'{"a": {"\\udfff": 1}}', "half a character"),
        (b"[" * 66 + b"]" * 66, "more than 64 lists and objects in each other"),
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


def test_what_every_program_reads_is_read() -> None:
    text = '{"\\ud83e\\udde0": [-9223372036854775807, 1e308, true, null, "\\u65e5"]}'
    assert documents.parse(text.encode(), "x", 1000) == {"\U0001f9e0": [-(2**63) + 1, 1e308, True, None, "\u65e5"]}
    assert documents.parse(b"[" * 64 + b"]" * 64, "x", 1000)


@pytest.mark.parametrize("value", [8.0, True, "8", None])
def test_a_size_is_a_whole_number_and_nothing_like_one(value: object) -> None:
    assert documents.misfit(8, {"type": "integer"}) is None
    wrong = documents.misfit(value, {"type": "integer"})
    assert wrong is not None and "is not of type 'integer'" in wrong


def test_a_pattern_ends_where_the_text_ends() -> None:
    schema = {"pattern": "^[a-z]+$"}
    assert documents.misfit("nii", schema) is None
    assert documents.misfit("nii\n", schema) == r"its top: 'nii\n' does not match '^[a-z]+$'"


def test_what_fits_is_asked_whether_it_contradicts_itself() -> None:
    def contradiction(content: dict[str, str]) -> str | None:
        return "name: taken" if content["name"] == "x" else None

    assert documents.misfit({"name": "y"}, SCHEMA, contradiction) is None
    assert documents.misfit({"name": "x"}, SCHEMA, contradiction) == "name: taken"
    assert documents.misfit({}, SCHEMA, contradiction) == "its top: 'name' is a required property"
    with pytest.raises(InputError, match="the list doesn't fit its schema at name: taken"):
        documents.require({"name": "x"}, SCHEMA, "the list", contradiction)


def test_names_of_megabytes_are_cut_wherever_they_stand() -> None:
    huge = "n" * 5_000_000
    schema = {"additionalProperties": {"type": "integer"}}
    for content in ({huge: "text"}, {"name": huge}, {huge: {huge: [huge]}}):
        wrong = documents.misfit(content, schema)
        assert wrong is not None and len(wrong) < 400
    assert len(str(InputError(f"{huge} is no name"))) < 2100
    assert len(str(VerifyError(huge))) < 2100


@pytest.mark.parametrize("error", [InputError, VerifyError])
def test_an_error_is_one_line_whatever_it_quotes(error: type[InputError | VerifyError]) -> None:
    said = str(error("a\nb\x1b[2J \u202e\u2028\ud800 \u65e5"))
    assert said == r"a\nb\x1b[2J \u202e\u2028\ud800 " + "\u65e5"


def test_a_document_wrong_in_a_million_places_is_refused_all_the_same() -> None:
    wrong = documents.misfit({"list": ["x"] * 1_000_000}, {"properties": {"list": {"items": {"type": "integer"}}}})
    assert wrong is not None and wrong.endswith("'x' is not of type 'integer'")


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
