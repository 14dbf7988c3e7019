"""A small part of ``make faults``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import faults, faults_documents, writing_faults
from segonnx.artifacts import packing
from segonnx.artifacts.verify import verify
from tests.conftest import SMALL

pytestmark = pytest.mark.usefixtures("copied_workers")


@pytest.fixture(scope="module")
def artifacts(exports: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The small artifact, and the same with its weights in a file of their own."""
    return [exports / SMALL, faults.external(exports / SMALL, tmp_path_factory.mktemp("external") / "external")]


@pytest.mark.parametrize(
    "every", [pytest.param(1, marks=pytest.mark.slow), 3]
)  # 50 s; the kinds have tests of their own
def test_damage_is_found(every: int, artifacts: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = dict(list(faults.DAMAGE.items())[::every])
    monkeypatch.setattr(faults, "DAMAGE", kinds)
    monkeypatch.setattr(faults, "SLOW", [kind for kind in faults.SLOW if kind in kinds])
    verify(artifacts[1])
    outcomes = faults.campaign(artifacts, 2 * len(kinds))
    assert len(outcomes) == 2 * len(kinds)
    assert {one.kind for one in outcomes} == kinds.keys()
    assert not [one for one in outcomes if one.found_by is None or one.wrong]


def test_what_fits_together_is_not_found_and_the_page_says_so(artifacts: list[Path]) -> None:
    outcome = faults.damage(artifacts[0], "consistent", 0)
    assert (outcome.found_by, outcome.wrong) == (None, None)
    page = faults.page([faults.damage(artifacts[0], "flip", 0)], [outcome], {"pack": [None, "half"]})
    assert "`segonnx verify` found 1, each in" in page
    assert "Of 1 such changes (a licence, the card)\n0 were found" in page
    assert "| pack | 2 | 1 |" in page


@pytest.mark.slow
def test_kills_leave_nothing_or_all(artifacts: list[Path], tmp_path: Path) -> None:
    packed = packing.pack(artifacts[0], "zip", tmp_path / "packed.zip")
    stock = faults.Stock(artifacts[0], packed, faults.predictor(tmp_path))
    killed = faults.kills(stock, 6, ("pack", "unpack", "predict"))
    assert sum(map(len, killed.values())) == 6
    assert not [why for its in killed.values() for why in its if why]


def test_damaged_archives_end_in_one_line(artifacts: list[Path], tmp_path: Path) -> None:
    packed = (
        packing.pack(artifacts[0], "zip", tmp_path / "whole.zip"),
        packing.pack(artifacts[0], "oci", tmp_path / "whole.oci"),
    )
    row = writing_faults.archives(packed, 4 * len(writing_faults.DAMAGE))
    assert (row.tried, row.wrong) == (36, [])


def test_processes_that_write_at_once_lose_nothing() -> None:
    row = writing_faults.races(200)
    assert (row.tried, row.wrong) == (200, [])


@pytest.mark.slow
def test_kills_while_replacing_lose_nothing(artifacts: list[Path], tmp_path: Path) -> None:
    packed = packing.pack(artifacts[0], "zip", tmp_path / "whole.zip")
    row = writing_faults.replacements(artifacts[0], packed, 6)
    assert (row.tried, row.wrong) == (6, [])


def test_the_page_counts_wrong_ends() -> None:
    page = writing_faults.page([writing_faults.Row("races", 1200, ["one", "two"])])
    assert "| races | 1,200 | 2 |" in page


def test_an_archive_that_ends_wrong_is_told(
    artifacts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = packing.pack(artifacts[0], "zip", tmp_path / "whole.zip")

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(packing, "unpack", fail)
    assert "ZeroDivisionError" in str(writing_faults.unpack_damaged([packed], 0))


def test_what_a_part_found_is_kept_and_the_page_is_written_from_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- faults: x -->\n<!-- /faults -->\n")
    trial = faults_documents.Trial("plans", "export", 7, None, "KeyError: 'x'", 1.0)
    found: dict[str, Any] = {
        "damage": [
            faults.Outcome("a", "flip", 0, None, None, 1.0),
            faults.Outcome("a", "flip", 1, "hashing", None, 1.0),
        ],
        "beyond": [],
        "kills": {"pack": [None, "half a zip file"]},
        "documents": [trial],
        "writing": [writing_faults.Row("races", 2, ["one was lost"])],
    }
    ran: list[str] = []

    def part(name: str) -> Callable[[object], Any]:
        def run(_: object) -> Any:
            ran.append(name)
            return found[name]

        return run

    monkeypatch.setattr(faults, "PAGE", page)
    monkeypatch.setattr(faults, "PARTS", {name: part(name) for name in found})
    for arguments, wanted in ((["--part", "kills"], ["kills"]), ([], [name for name in found if name != "kills"])):
        ran.clear()
        monkeypatch.setattr("sys.argv", ["faults", "--keep", str(tmp_path), *arguments])
        with pytest.raises(SystemExit, match="True"):
            faults.main()
        assert ran == wanted
        assert ("## Kills" in page.read_text()) is not bool(arguments)
    said = capsys.readouterr().out
    for line in ("flip (seed 0): not found", "half a zip file", "export of plans 7: KeyError", "one was lost"):
        assert line in said
    assert "4 ended as they shouldn't" in said
