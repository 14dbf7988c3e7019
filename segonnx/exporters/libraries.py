"""What the steps of an export import, which takes longer than many a step."""

from __future__ import annotations

from segonnx.core import subprocesses

LIBRARIES = ("torch._dynamo", "onnxscript", "onnx_ir", "onnxruntime", "segonnx.models.preloaded")


def preload() -> None:
    """Start to import them, beside what this process does, for the steps' processes."""
    subprocesses.start_preloading(LIBRARIES)
