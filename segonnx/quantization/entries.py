"""What is written beside a graph in int8: its own test data, the card, and the manifest."""

from __future__ import annotations

import copy
import datetime
from collections import Counter
from pathlib import Path
from typing import Any

from segonnx._version import __version__
from segonnx.artifacts import card, layout, manifest, sbom, testdata
from segonnx.artifacts.layout import MODEL
from segonnx.artifacts.manifest import Manifest
from segonnx.core import hardware
from segonnx.core.files import sha256
from segonnx.core.ort_session import SessionSettings, open_session
from segonnx.core.subprocesses import Progress
from segonnx.core.tolerances import (
    TOLERANCES,
    Agreement,
    Difference,
    Tolerance,
    compare,
    compare_labels,
    std_of,
)

DTYPE = "int8"


def record(artifact: Path, content: Manifest, made: Path, threads: int, progress: Progress) -> dict[str, Any]:
    """Write the graph's own answer on the artifact's test input, and give the manifest's entry ``parity``.

    A replay may differ from it by as much as int8 does from float32 on that input: on a processor with other kernels,
    or in another runtime, rounding falls otherwise. The input is noise, and no image of the calibration's: those may be
    patients'.
    """
    progress("recording the test data")
    x = testdata.read(artifact / layout.INPUT)
    expected = testdata.read(artifact / layout.OUTPUT)
    name = content["inputs"][0]["name"]
    session = open_session(made / MODEL, SessionSettings(threads=threads))
    own = session.run(None, {name: x})[0]
    again = open_session(made / MODEL, SessionSettings(threads=1)).run(None, {name: x})[0]
    effect, replay = _compared(content, expected, own), _compared(content, own, again)
    tolerance = _allowed(effect)
    std = 0.0 if manifest.gives_labels(content) else std_of(own)
    testdata.write(
        made,
        {name: x},
        {content["outputs"][0].get("kind", "logits"): own},
        atol=tolerance.max_rel_error * std,
        rtol=0.0,
    )
    first = content["parity"]["inputs"][0]
    found = _figures(replay)
    return {
        "inputs": [
            {**{key: first[key] for key in ("kind", "shape", "sha256")}, **found, "spread": std},
        ],
        **found,
        "tolerance": {
            "dtype": DTYPE,
            "max_rel_error": tolerance.max_rel_error,
            "rms_rel_error": tolerance.rms_rel_error,
            "label_agreement": tolerance.label_agreement,
        },
        "reference": "the same file in ONNX Runtime, with all threads",
        "runtime": "ONNX Runtime CPU, with one thread",
        "passed": True,
    }


def _compared(content: Manifest, one: Any, other: Any) -> Difference | Agreement:
    if manifest.gives_labels(content):
        return compare_labels(one, other)
    return compare(one, other, rule=manifest.given_rule(content))


def _figures(found: Difference | Agreement) -> dict[str, float]:
    keys = ("max_abs_error", "max_rel_error", "rms_rel_error", "label_agreement")
    return {key: getattr(found, key, 0.0) for key in keys}


def _allowed(effect: Difference | Agreement) -> Tolerance:
    """What a replay may differ: the effect, at least float32's tolerance, at most that of int8."""
    least, most = TOLERANCES["float32"], TOLERANCES[DTYPE]
    errors = (getattr(effect, key, 0.0) for key in ("max_rel_error", "rms_rel_error"))
    largest, rms = errors
    return Tolerance(
        min(max(largest, least.max_rel_error), most.max_rel_error),
        min(max(rms, least.rms_rel_error), most.rms_rel_error),
        max(min(effect.label_agreement, least.label_agreement), most.label_agreement),
    )


def write(folder: Path, source: Manifest, entry: dict[str, Any], parity: dict[str, Any]) -> Manifest:
    """Write the card, the bill of materials and the manifest.

    Args:
        folder: the new artifact's, which holds the graph and its test data.
        source: the manifest of the artifact that was quantized.
        entry: the manifest's ``quantization``.
        parity: what ``record`` gave.
    """
    import onnx

    model = onnx.load(str(folder / MODEL), load_external_data=False)
    content = copy.deepcopy({key: value for key, value in source.items() if key not in ("cpu_graph", "tuning")})
    content["weights"].pop("storage", None)
    content |= {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "operators": dict(sorted(Counter(node.op_type for node in model.graph.node).items())),
        "opset": next(one.version for one in model.opset_import if one.domain in ("", "ai.onnx")),
        "ir_version": model.ir_version,
        "parity": parity,
        "rewrites": [],
        "quantization": entry,
        "producer": hardware.versions() | {"segonnx": __version__},
        "files": {},
    }
    (folder / layout.CARD).write_text(card.render(content), encoding="utf-8")
    (folder / layout.SBOM).write_text(sbom.render(content["name"], manifest.precision(content)), encoding="utf-8")
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    content["files"] = {
        path.relative_to(folder).as_posix(): {"sha256": sha256(path), "bytes": path.stat().st_size} for path in paths
    }
    (folder / layout.MANIFEST).write_bytes(manifest.sealed(content, content["name"]))
    return manifest.read(folder)
