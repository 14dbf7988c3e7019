"""How fast artifacts are with AVX2 alone, measured on a processor that has AVX-512, into docs/performance.md.

    python -m benchmarks.avx2 time ROOT ARTIFACT...    bench each artifact that ROOT has no result of
    python -m benchmarks.avx2 table ROOT               put the results into the page

OpenVINO takes ``ONEDNN_MAX_CPU_ISA``. ONNX Runtime has no such switch, so ROOT gets a copy of it whose library doesn't
find AVX-512: one comparison with the processor's flags is changed. A network whose plain graph is taken on processors
with AVX2 has no line. Nothing else may run meanwhile.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from benchmarks import docs
from benchmarks.other_networks import HEAD, bench, cells
from segonnx.artifacts.layout import MANIFEST
from segonnx.bench import result

BLOCK_VERSION = 1
"""Raised when what this program writes, or measures, changes."""
PAGE = docs.ROOT / "docs" / "performance.md"
ASKS_FOR_AVX512 = re.compile(rb"(?P<test>\x41?\xf7[\xc0-\xc7])\x00\x00\x01\x00(?=.{1,24}?\xa8\xe0)", re.DOTALL)
"""In x86-64: whether bit 16 is set, AVX512F of the processor's flags, shortly before bits 5 to 7, whether the system
keeps its registers."""
PROBE = """
import numpy as np, onnx, onnxruntime, sys
from onnx import TensorProto, helper, numpy_helper
weight = numpy_helper.from_array(np.ones((8, 8, 3, 3), np.float32), "w")
values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8, 8, 8]) for name in "xy"]
conv = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4)
model = helper.make_model(helper.make_graph([conv], "probe", values[:1], values[1:], [weight]), ir_version=10)
model.opset_import[0].version = 20
options = onnxruntime.SessionOptions()
options.optimized_model_filepath = sys.argv[1]
options.log_severity_level = 3
onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
print(max(weight.dims[0] for weight in onnx.load(sys.argv[1]).graph.initializer))
"""
"""A convolution of 8 channels has as many in blocks of 8, those of AVX2, and 16 in one of AVX-512."""


def without_avx512(library: bytes) -> bytes:
    """ONNX Runtime's library, which doesn't find AVX-512.

    Raises:
        SystemExit: it asks for it otherwise than is known here.
    """
    if len(ASKS_FOR_AVX512.findall(library)) != 1:
        raise SystemExit("ONNX Runtime's library asks for AVX-512 in another way than this program knows")
    return ASKS_FOR_AVX512.sub(lambda found: found["test"] + bytes(4), library)


def environment(root: Path) -> dict[str, str]:
    """The environment in which both runtimes use AVX2, with a copy of ONNX Runtime in ROOT.

    Raises:
        SystemExit: the copy still uses AVX-512.
    """
    found = find_spec("onnxruntime")
    assert found is not None and found.origin is not None
    source, copy = Path(found.origin).parent, root / "avx2" / "onnxruntime"
    if not copy.exists():
        unfinished = copy.with_name("unfinished")
        shutil.copytree(source, unfinished, dirs_exist_ok=True)
        for library in (unfinished / "capi").glob("onnxruntime_pybind11_state*.so"):
            library.write_bytes(without_avx512(library.read_bytes()))
        unfinished.rename(copy)
    changed = {**os.environ, "PYTHONPATH": str(copy.parent), "ONEDNN_MAX_CPU_ISA": "AVX2"}
    probe = [sys.executable, "-c", PROBE, str(root / "probe.onnx")]
    if subprocess.run(probe, env=changed, check=True, capture_output=True, text=True).stdout.strip() != "8":
        raise SystemExit("the copy of ONNX Runtime uses AVX-512")
    return changed


def time(root: Path, artifacts: Sequence[Path]) -> None:
    """Bench each artifact that has no result yet; the result in ROOT."""
    changed = environment(root)
    for artifact in artifacts:
        kept = root / f"{artifact.name}.json"
        graph = json.loads((artifact / MANIFEST).read_text("utf-8")).get("cpu_graph", {})
        if not kept.exists() and graph.get("rewrites") != graph.get("blocks", {}).get("rewrites", ()):
            bench(artifact, kept, changed)


def table(root: Path) -> str:
    """What was measured, as markdown."""
    found = [result.read(path) for path in sorted(root.glob("*.json"))]
    lines = [f"| {' | '.join(cells(each.rows[0].model, each))} |" for each in found]
    return "\n".join([f"{docs.machine()}, with AVX-512 switched off in both runtimes:", "", *HEAD, *lines, ""])


def main(command: str, folder: str, *artifacts: str) -> None:
    """Run one of the commands."""
    root = Path(folder).resolve()
    if command == "table":
        docs.put_block(PAGE, "avx2", table(root), __spec__.name)
    else:
        root.mkdir(parents=True, exist_ok=True)
        time(root, [Path(artifact).resolve() for artifact in artifacts])


if __name__ == "__main__":
    main(*sys.argv[1:])
