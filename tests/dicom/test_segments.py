from __future__ import annotations

from pathlib import Path

import pytest

from segonnx.dicom import segments
from segonnx.dicom.segments import Code, Codes, Segment
from segonnx.errors import InputError

HEAD = "label,category,type,modifier,region,region_modifier,colour\n"
KIDNEY = "SCT:123037004:Anatomical Structure,SCT:64033007:Kidney"


def read(path: Path, text: str) -> dict[str, segments.Row]:
    path.write_text(text, "utf-8")
    return segments.read(path)


def test_codes_are_read(tmp_path: Path) -> None:
    text = (
        f"\ufeff{HEAD}"
        f"kidney_left,{KIDNEY},SCT:7771000:Left,,,#D86c36\n"
        '"3",SCT:49755003:Morphologically Altered Structure,"SCT:4147007:Mass, any: all",,SCT:39607008:Lung,'
        "SCT:24028007:Right,\n"
        ",,,,,,\n"
    )
    rows = read(tmp_path / "codes.csv", text)
    structure = Code("SCT", "123037004", "Anatomical Structure")
    assert rows["kidney_left"].codes == Codes(
        structure, Code("SCT", "64033007", "Kidney"), Code("SCT", "7771000", "Left")
    )
    assert rows["kidney_left"].colour == (216, 108, 54)
    assert rows["3"].codes.type.meaning == "Mass, any: all" and rows["3"].codes.region_modifier is not None
    assert rows["3"].colour is None
    assert list(read(tmp_path / "short.csv", "type,label,category\nSCT:1:a,x,SCT:2:b\n")) == ["x"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "must begin with the names of its columns"),
        ("label,type\n", "must begin with the names of its columns"),
        ("label,category,type,size\n", "must begin with the names of its columns"),
        ("label,label,category,type\n", "must begin with the names of its columns"),
        (f"{HEAD},{KIDNEY},,,,\n", "line 2 names no label"),
        (f"{HEAD}a,{KIDNEY},,,,\na,{KIDNEY},,,,\n", "line 3 names 'a' a second time"),
        (f"{HEAD}a,,SCT:1:b,,,,\n", "line 2 has no category"),
        (f"{HEAD}a,SCT:1:b,,,,,\n", "line 2 has no type"),
        (f"{HEAD}a,SCT 1 b,SCT:1:b,,,,\n", "line 2 has the code 'SCT 1 b'; it must be SCHEME:VALUE:MEANING"),
        (f"{HEAD}a,SCT:12345678901234567:b,SCT:1:b,,,,\n", "line 2 has the code"),
        (f"{HEAD}a,SCT:1:{'b' * 65},SCT:1:b,,,,\n", "line 2 has the code"),
        (f"{HEAD}a,SCT:1:b\\c,SCT:1:b,,,,\n", "line 2 has the code"),
        (f"{HEAD}a,{KIDNEY},,,SCT:7771000:Left,\n", "line 2 has a region_modifier and no region"),
        (f"{HEAD}a,{KIDNEY},,,,red\n", "line 2 has the colour 'red'"),
        (f"{HEAD}a,{KIDNEY},,,,,,\n", "line 2 has more cells"),
        (f'{HEAD}a,"b\n', "is no CSV file in UTF-8"),
        ("\udcff", "is no CSV file in UTF-8"),
        (HEAD * 30000, "can't be read: it is larger"),
    ],
)
def test_wrong_codes_are_one_line(text: str, line: str, tmp_path: Path) -> None:
    path = tmp_path / "codes.csv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError) as caught:
        segments.read(path)
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"codes.csv can't be read: No such file"):
        segments.read(tmp_path / "codes.csv")


def test_colours_are_stable_and_differ() -> None:
    colours = [segments.colour(value) for value in range(1, 37)]
    assert colours[:2] == [segments.colour(1), segments.colour(2)]
    nearest = min(
        sum(abs(a - b) for a, b in zip(one, other, strict=True))
        for number, one in enumerate(colours)
        for other in colours[:number]
    )
    assert nearest > 20
    assert all(0 <= part <= 255 for one in colours for part in one)


@pytest.mark.parametrize(
    ("given", "shown"),
    [("a\\b", "a/b"), ("  ", "-"), ("a\nb\u202e", "a\\nb\\u202e"), ("x" * 100, "x" * 32 + " ... " + "x" * 16)],
)
def test_text_fits_an_element(given: str, shown: str) -> None:
    found = segments.text(given)
    assert len(found) <= 64
    assert found == shown


def test_regions_that_share_labels_overlap() -> None:
    codes = segments.private(1, "a")
    first, second, third = (Segment("a", 1, labels, codes, (0, 0, 0)) for labels in ((1, 2), (2,), (3,)))
    assert segments.overlap([first, second]) and not segments.overlap([second, third])
    assert not first.coded
