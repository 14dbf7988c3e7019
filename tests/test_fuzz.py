"""A small part of the campaign with documents that their schemas allow."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import faults_documents
from benchmarks.faults_documents import Material
from segonnx.artifacts import manifest
from segonnx.core import documents
from tests import fuzz, handmade

SEEDS = st.integers(0, 2**32 - 1)
COUNTS = {
    "manifest": 30, "ensemble": 10, "result": 25, "machines": 15, "bench plan": 30, "plans": 20, "checkpoint": 30,
}  # fmt: skip


@pytest.fixture(scope="module")
def material(hand: Path, ensemble: Path, tmp_path_factory: pytest.TempPathFactory) -> Material:
    return faults_documents.prepare(tmp_path_factory.mktemp("fuzz"), hand, ensemble)


@pytest.mark.parametrize("part", [0.4, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", COUNTS)
def test_no_document_that_its_schema_allows_ends_a_command_in_another_way(
    kind: str, part: float, material: Material
) -> None:
    codes: set[int | None] = set()

    @settings(max_examples=round(part * COUNTS[kind]), derandomize=True, deadline=None, database=None)
    @given(SEEDS)
    def check(seed: int) -> None:
        found = faults_documents.trials(material, kind, seed)
        assert not [(one.command, one.wrong) for one in found if one.wrong is not None]
        codes.update(one.code for one in found)

    check()
    assert {0} < codes <= {0, 1, 2}  # some are read, some are refused


def test_the_page_tells_what_was_found() -> None:
    found = [
        faults_documents.Trial("manifest", "verify", 0, 0, None, 1.0),
        faults_documents.Trial("manifest", "predict", 0, 2, None, 1.0),
        faults_documents.Trial("manifest", "verify", 1, None, "KeyError: 'x'", 1.0),
    ]
    assert "| manifests, hashes made anew | 2 | verify, predict | 1 | 0 | 1 | 1 |" in faults_documents.page(found)


def test_a_file_elsewhere_is_told(material: Material, monkeypatch: pytest.MonkeyPatch) -> None:
    def act(_: Material, __: random.Random, work: Path) -> dict[str, faults_documents.Act]:
        return {"report": lambda: (0, str((work.parent / "evil").write_text("x"))[:0])}

    monkeypatch.setitem(faults_documents._ACTS, "result", act)
    monkeypatch.setattr(faults_documents, "LIMIT_BYTES", 1)
    wrong = [str(one.wrong) for one in faults_documents.trials(material, "result", 0) if one.wrong is not None]
    assert wrong[0] == "'evil' was written" and "GB of memory" in wrong[1]


def test_another_end_is_told() -> None:
    def ended(act: faults_documents.Act) -> str | None:
        return faults_documents._trial("result", "report", 0, act).wrong

    assert ended(lambda: (0, "")) is None
    assert ended(lambda: (2, "segonnx: it isn't")) is None
    assert ended(lambda: (1, "")) is None  # a regression
    assert ended(lambda: (70, "segonnx: a fault")) is not None
    assert ended(lambda: (2, "")) is not None
    assert ended(lambda: (2, "two\nlines")) is not None
    assert ended(lambda: (2, "x" * 3000)) is not None
    assert ended(lambda: json.loads("{")) is not None


SCHEMAS: dict[str, tuple[Any, documents.Schema]] = {
    "plans": (handmade.plans(), faults_documents.plans_schema()),
    "manifest": (
        json.loads((Path(__file__).parent / "artifacts" / "manifest-1.json").read_bytes()), manifest.schema(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", SCHEMAS)
def test_changed_documents_fit_their_schema_and_reach_all_of_it(kind: str) -> None:
    document, schema = SCHEMAS[kind]
    before = copy.deepcopy(document)
    places: set[str] = set()
    for seed in range(150):
        found = fuzz.changed(document, schema, random.Random(seed))
        assert documents.misfit(found, schema) is None
        assert found != document
        places |= {key for key in document if found.get(key) != document[key]}
    assert document == before
    assert len(places) > 0.4 * len(document)
