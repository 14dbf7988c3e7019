"""The runtimes that segonnx compares.

To add one: one file here with a class, and its place in ``RUNTIMES``; ``tests/runtimes/test_conformance.py`` checks it
with the others.
"""

from __future__ import annotations

from segonnx.runtimes.base import Runtime
from segonnx.runtimes.compiled import CompileChannelsLastRuntime, CompileRuntime
from segonnx.runtimes.eager import EagerChannelsLastRuntime, EagerRuntime
from segonnx.runtimes.openvino import OpenVinoRuntime, OpenVinoStockRuntime
from segonnx.runtimes.ort import OrtRuntime, OrtStockRuntime

RUNTIMES: tuple[type[Runtime], ...] = (
    EagerRuntime,
    EagerChannelsLastRuntime,
    CompileRuntime,
    CompileChannelsLastRuntime,
    OrtRuntime,
    OrtStockRuntime,
    OpenVinoRuntime,
    OpenVinoStockRuntime,
)
NAMES = tuple(runtime.name for runtime in RUNTIMES)
DEFAULTS = ("eager", "compile", "ort", "openvino")
"""Those that a bench compares where none is named."""


def get(name: str) -> type[Runtime]:
    """The runtime called ``name``."""
    return next(runtime for runtime in RUNTIMES if runtime.name == name)
