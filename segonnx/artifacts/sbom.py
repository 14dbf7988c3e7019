"""sbom.cdx.json: the packages that made an artifact, as a CycloneDX bill of materials, for programs that seek flaws."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re

from segonnx._version import __version__


def render(model: str, precision: str) -> str:
    """The bill of materials of this Python environment: the same text each time.

    Args:
        model: the name of what it made.
        precision: see ``manifest.precision``.
    """
    packages = {
        _normal(found.metadata["Name"]): found.version
        for found in importlib.metadata.distributions()
        if found.metadata["Name"]
    }
    packages["segonnx"] = __version__
    components = [
        _component("library", name, version, f"pkg:pypi/{name}@{version}") for name, version in packages.items()
    ]
    python = platform.python_version()
    name = platform.python_implementation().lower()
    components.append(_component("platform", name, python, f"pkg:generic/{name}@{python}"))
    content = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "machine-learning-model",
                "name": model,
                "bom-ref": "model",
                "properties": [{"name": "segonnx:precision", "value": precision}],
            },
            "lifecycles": [{"phase": "build"}],
        },
        "components": sorted(components, key=lambda component: component["bom-ref"]),
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _component(kind: str, name: str, version: str, purl: str) -> dict[str, str]:
    return {"type": kind, "bom-ref": purl, "name": name, "version": version, "purl": purl}


def _normal(name: str) -> str:
    """A package's name as the index knows it."""
    return re.sub(r"[-_.]+", "-", name).lower()
