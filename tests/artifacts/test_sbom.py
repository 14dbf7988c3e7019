"""The bill of materials is CycloneDX, names what is installed, and is the same each time."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest

from segonnx.artifacts import layout, sbom
from tests.conftest import SMALL


def test_it_names_the_environment_and_stays_the_same() -> None:
    text = sbom.render("net", "float32")
    assert sbom.render("net", "float32") == text
    found = {one["purl"]: one for one in json.loads(text)["components"]}
    assert f"pkg:pypi/numpy@{importlib.metadata.version('numpy')}" in found
    assert f"pkg:pypi/onnxruntime@{importlib.metadata.version('onnxruntime')}" in found
    assert list(found) == sorted(found)


def test_an_artifact_has_one(exports: Path) -> None:
    content = json.loads((exports / SMALL / layout.SBOM).read_bytes())
    assert content["metadata"]["component"]["name"] == SMALL
    assert content["metadata"]["component"]["properties"] == [{"name": "segonnx:precision", "value": "float32"}]
    assert any(one["name"] == "torch" for one in content["components"])


def test_it_fits_the_schema() -> None:
    validation = pytest.importorskip("cyclonedx.validation.json", reason="cyclonedx-python-lib isn't installed")
    from cyclonedx.schema import SchemaVersion

    check = validation.JsonStrictValidator(SchemaVersion.V1_6).validate_str
    assert check(sbom.render("net", "float32")) is None
    assert check(sbom.render("net", "float32").replace('"library"', '"book"', 1)) is not None
