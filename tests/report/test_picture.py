from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from segonnx.bench.machines import Machines
from segonnx.errors import InputError
from segonnx.report import picture
from tests.conftest import run
from tests.report import results

FACTORS = {"eager": 1.0, "compile": 0.5, "ort": 0.25, "ort-stock": 0.3, "openvino": 0.2}


def test_the_picture_has_a_bar_for_each_runtime_and_model() -> None:
    made = results.make(("stunet-s", "unet-resnet18"), FACTORS)
    for dark in (False, True):
        svg = picture.speedups_svg(results.alone(made), dark=dark)
        texts = [element.text for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("}text")]
        assert {"stunet-s", "unet-resnet18", *picture.RUNTIMES.values()} <= set(texts)
        drawn = [row for row in made.rows if row.backend in picture.RUNTIMES]
        for row in drawn:
            assert f"{row.speedup_over_eager:.1f}x" in texts
        assert len([text for text in texts if text and text.endswith("x")]) == len(drawn) == 6
        width = float(ElementTree.fromstring(svg).get("width", "0"))
        assert 600 < width <= 800
        assert ("#e6edf3" in svg) == dark


def test_each_machine_has_its_own_bars() -> None:
    made = results.make(("stunet-s",), FACTORS)
    content = Machines([made, results.elsewhere(made, cpu="Other CPU")])
    values = picture._spec(content, dark=False)["data"]["values"]
    assert [value["model"] for value in values] == (
        ["stunet-s, 2 cores of Example CPU"] * 3 + ["stunet-s, 2 cores of Other CPU"] * 3
    )


def test_rows_that_failed_have_no_bar() -> None:
    made = results.make(("stunet-s",), FACTORS)
    made.rows = [results.failed(row, "it crashed") if row.backend == "ort" else row for row in made.rows]
    values = picture._spec(results.alone(made), dark=False)["data"]["values"]
    assert [value["runtime"] for value in values] == [picture.RUNTIMES["compile"], picture.RUNTIMES["openvino"]]


def test_without_eager_there_is_nothing_to_draw() -> None:
    with pytest.raises(InputError, match="nothing to draw"):
        picture.speedups_svg(results.alone(results.make(("stunet-s",), {"ort": 1.0})), dark=False)


def test_the_command_writes_a_light_and_a_dark_picture(tmp_path: Path) -> None:
    results.make(("stunet-s",), FACTORS).write(tmp_path / "r.json")
    done = run("report", tmp_path / "r.json", "--svg", tmp_path / "new" / "speed.svg")
    assert done.returncode == 0, done.stderr
    light, dark = ((tmp_path / "new" / name).read_text() for name in ("speed.svg", "speed-dark.svg"))
    assert light.startswith("<svg") and dark.startswith("<svg") and light != dark


def test_without_its_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(InputError, match=r"pip install 'segonnx\[report\]'"):
        picture.speedups_svg(results.alone(results.make(("stunet-s",), FACTORS)), dark=False)
